"""Measured preprocessing costs: the line through them, the files they become, and what simulate makes of those."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures_and_speech import jpeg
from PIL import Image
from typer.testing import CliRunner

from accel.measure import CostPoint, MeasuringPlan, cpu_costs, dali_costs, line_through, measure_costs
from preba.cli.main import run
from preba.cli.profile import profile_app
from preba.errors import MissingFileError, ProfileError, ScenarioError
from preba.preprocessing import load_costs
from preba.preprocessing_costs import CpuCosts, DaliCosts
from preba.profile_yaml import costs_to_yaml

FACTS = {"source": "a test's own numbers", "where": "here", "date": "2026-11-21", "notes": "none"}


def point(modality: str, size: float, batch: int, us: float, **more: Any) -> CostPoint:
    """A point whose call took so many microseconds."""
    fields = {"backend": "cpu", "hw_decoder_share": None, "count": 10, "p10_us": us, "p90_us": us, "cpu_us": us}
    return CostPoint(modality=modality, size=size, batch=batch, median_us=us, **{**fields, **more})


@given(fixed=st.floats(0, 5000), slope=st.floats(0, 5000), noise=st.floats(0, 0.05))
def test_line_is_found_again(fixed: float, slope: float, noise: float) -> None:
    """Points on a line give that line; neither part is ever negative; the worst distance is what it says."""
    sizes = [0.25, 0.5, 1.1, 2.0, 4.0]
    signs = [1, -1, 1, -1, 1]
    values = [max((fixed + slope * x) * (1 + noise * sign), 1e-3) for x, sign in zip(sizes, signs, strict=True)]
    line = line_through(sizes, values)
    assert line.fixed_us >= 0
    assert line.slope_us >= 0
    assert line.worst == pytest.approx(
        max(abs((line.fixed_us + line.slope_us * x) / y - 1) for x, y in zip(sizes, values, strict=True))
    )
    if noise == 0 and fixed + slope > 1:
        assert line.worst < 1e-6


def test_cpu_profile_holds_the_line_and_reads_back(tmp_path: Path) -> None:
    """Work per input is a fixed part and a part per 100 kB or second of audio."""
    points = [point("image", 1000 * kb, 1, 500 + 12 * kb) for kb in (25, 50, 110)]
    points += [point("audio", s, 1, 40 + 200 * s) for s in (2.5, 10, 30)]
    points += [point("image", 50_000, 8, 1e9)]  # larger batches say nothing of a core's work per input
    file = tmp_path / "costs.yaml"
    file.write_text(costs_to_yaml(cpu_costs("costs", points, FACTS), header="A test's"), encoding="utf-8")
    costs = load_costs(CpuCosts, str(file))
    assert costs.image is not None
    assert costs.audio is not None
    assert costs.image.fixed_us.value == pytest.approx(500, abs=0.01)
    assert costs.image.per_100kb_us.value == pytest.approx(1200, abs=0.01)
    assert costs.audio.fixed_us.value == pytest.approx(40, abs=0.01)
    assert costs.audio.per_audio_s_us.value == pytest.approx(200, abs=0.01)
    assert costs.image.fixed_us.kind == "measured"
    assert "0.0 % from the line" in str(costs.image.fixed_us.notes)


def test_dali_profile_tells_launch_work_and_engines_apart(tmp_path: Path) -> None:
    """From calls of launch + batch * work / GPCs, with and without engines, the parts come back."""
    points = []
    for share in (0.0, 1.0):
        for kb in (50, 110, 400):
            for batch in (1, 8, 32):
                work = (300 + 9 * kb) / 7 if share == 0 else (300 + 9 * kb) / 7 / 4
                more = {"backend": "dali_gpu", "hw_decoder_share": share}
                points.append(point("image", 1000 * kb, batch, 1500 + batch * work, **more))
    points += [
        point("audio", s, batch, 1500 + batch * 100 * s / 7, backend="dali_gpu") for s in (5, 20) for batch in (1, 16)
    ]
    costs = dali_costs("mine", points, FACTS, gpcs=7, jpeg_engines=7)
    file = tmp_path / "mine.yaml"
    file.write_text(costs_to_yaml(costs), encoding="utf-8")
    costs = load_costs(DaliCosts, str(file))
    assert costs.launch_us.value == pytest.approx(1500, rel=1e-6)
    assert costs.image is not None
    assert costs.audio is not None
    assert costs.image.fixed_us.value == pytest.approx(300, rel=1e-4)
    assert costs.image.per_100kb_us.value == pytest.approx(900, rel=1e-4)
    assert costs.audio.per_audio_s_us.value == pytest.approx(100, rel=1e-4)
    assert 0 < costs.image.decode_fraction.value < 1
    assert costs.image.engine_gpcs.value > 0
    assert costs.image.engine_gpcs.kind == "measured"
    assert costs.hop.latency_us.kind == "modelled"
    with pytest.raises(ProfileError, match="two or more batches"):
        dali_costs("mine", [each for each in points if each.batch == 1], FACTS, gpcs=7, jpeg_engines=7)


def test_measuring_keeps_to_one_core_and_gives_it_back() -> None:
    """The process's cores are its own again afterwards; points are complete and plausible."""
    before = os.sched_getaffinity(0)
    files = [jpeg(Image.fromarray(np.full((64, 64, 3), 99, dtype=np.uint8)))]
    found = measure_costs("image", [(float(len(files[0])), files)], MeasuringPlan("cpu", (1, 3), 1, 5))
    assert os.sched_getaffinity(0) == before
    assert [each.batch for each in found] == [1, 3]
    for each in found:
        assert 0 < each.p10_us <= each.median_us <= each.p90_us
        assert each.work_us == each.cpu_us / each.batch
    with pytest.raises(ProfileError, match="cannot be measured"):
        measure_costs("image", [(3.0, [b"bad"])], MeasuringPlan("cpu", (1,), 0, 5))
    assert os.sched_getaffinity(0) == before


def test_command_writes_what_simulate_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A profile measured here is a scenario's cost file; the report names it as measured."""
    costs = tmp_path / "here.yaml"
    arguments = ["preprocessing", "--sizes-kb", "20,60", "--lengths-s", "1,3", "--repeats", "5", "--warmup", "1"]
    result = CliRunner().invoke(profile_app, [*arguments, "--out", str(costs)])
    assert result.exit_code == 0, result.output
    assert "inputs/s a core" in result.output
    loaded = load_costs(CpuCosts, str(costs))
    assert loaded.image is not None
    assert loaded.audio is not None
    assert "opencv" in loaded.image.fixed_us.source
    scenario = Path(__file__).parents[2] / "docs" / "examples" / "live-image.yaml"
    run_arguments = ["simulate", str(scenario), "--set", f"preprocessing.cost={costs}", "--json"]
    with pytest.raises(SystemExit) as ended:
        run(run_arguments)
    assert ended.value.code == 0
    assert "preba profile preprocessing" in capsys.readouterr().out


def test_own_files_are_measured_in_groups_of_like_size(tmp_path: Path) -> None:
    """A folder of JPEGs becomes points from small to large; an empty one is an error."""
    for side in (16, 32, 64, 128):
        pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
        (tmp_path / f"{side}.jpg").write_bytes(jpeg(Image.fromarray(pixels)))
    arguments = ["preprocessing", "--modality", "image", "--images", str(tmp_path), "--repeats", "5", "--json"]
    result = CliRunner().invoke(profile_app, arguments)
    sizes = [each["size"] for each in json.loads(result.stdout)["points"]]
    assert sizes == sorted(float(path.stat().st_size) for path in tmp_path.iterdir())
    (tmp_path / "none").mkdir()
    wrong = CliRunner().invoke(profile_app, ["preprocessing", "--images", str(tmp_path / "none")])
    assert isinstance(wrong.exception, MissingFileError)
    wrong = CliRunner().invoke(profile_app, ["preprocessing", "--modality", "sound"])
    assert isinstance(wrong.exception, ScenarioError)
