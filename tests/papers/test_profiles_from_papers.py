"""Profiles made from published figures: reproducible by their commands, and true to the figures."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from preba.profile import load_profile

PAPERS = Path(__file__).parents[2] / "papers"
PROFILES = Path(__file__).parents[2] / "configs" / "profiles"


@pytest.fixture
def command(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Load one command of papers/ as a module, e.g. ``parvagpu/make_profiles``."""
    path = PAPERS / f"{request.param}.py"
    name = "papers_" + str(request.param).replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


@pytest.mark.parametrize(
    "command",
    ["parvagpu/make_profiles", "migprofiler/make_profiles", "mlperf/make_profiles", "preba/make_profiles"],
    indirect=True,
)
def test_regenerating_gives_the_shipped_files(command: ModuleType) -> None:
    """Each make_profiles.py writes byte for byte what is in configs/profiles, and every file of its name."""
    files: dict[str, str] = command.generate()
    prefix = next(iter(files)).split("-")[0]
    assert sorted(files) == sorted(path.name for path in PROFILES.glob(f"{prefix}-*.yaml"))
    for name, text in files.items():
        assert (PROFILES / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("command", ["parvagpu/make_profiles"], indirect=True)
def test_parvagpu_throughput_comes_back(command: ModuleType) -> None:
    """Batch / time of every ParvaGPU entry is the published throughput, to its three decimals."""
    count = 0
    for model, by_gpcs in command.published().items():
        profile = load_profile(f"parvagpu-{model}")
        for gpcs, rates in by_gpcs.items():
            assert profile.batch_max(f"{gpcs}g") == max(map(int, rates))
            for batch, rate in rates.items():
                again = int(batch) * 1e9 / profile.latency_ns(f"{gpcs}g", int(batch))
                assert round(again, 3) == rate, (model, gpcs, batch)
                count += 1
    assert count > 350


@pytest.mark.parametrize("command", ["migprofiler/make_profiles"], indirect=True)
def test_migprofiler_throughput_comes_back(command: ModuleType) -> None:
    """Batch / time of every MIGProfiler entry is the whole number on the plot's bar."""
    count = 0
    for model, by_gpcs in command.published().items():
        profile = load_profile(f"migprofiler-{model.lower().replace('_', '-')}")
        for gpcs, rates in by_gpcs.items():
            for batch, rate in rates.items():
                again = batch * 1e9 / profile.latency_ns(f"{gpcs}g", batch)
                assert round(again) == rate, (model, gpcs, batch)
                assert abs(again - rate) < 0.01
                count += 1
    assert count == 6 * 4 * 9


@pytest.mark.parametrize("command", ["mlperf/make_profiles"], indirect=True)
def test_mlperf_points_come_back(command: ModuleType) -> None:
    """Batch 1 takes the published latency, the harness batch runs at the published Offline throughput."""
    facts = command.published()
    for mlperf_round, model in command.WANTED:
        profile = load_profile(f"mlperf-{mlperf_round}-{model}")
        metric = "latency_mean" if mlperf_round == "v0.7" else "latency_p50"
        for key in ("1g", "full"):
            one_ms = facts[mlperf_round, model, key, "SingleStream", metric]
            rate = facts[mlperf_round, model, key, "Offline", "throughput"]
            batch = profile.batch_max(key)
            assert batch == facts[mlperf_round, model, key, "Offline", "batch"]
            assert profile.latency_ns(key, 1) / 1e6 == pytest.approx(one_ms, abs=1e-6)
            assert batch * 1e9 / profile.latency_ns(key, batch) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("command", ["mlperf/make_profiles"], indirect=True)
def test_mlperf_interference_is_the_measured_loss(command: ModuleType) -> None:
    """With all six neighbours busy, throughput falls to the figure measured that way."""
    facts = command.published()
    for model in ("resnet50", "bert-large-99"):
        profile = load_profile(f"mlperf-v1.0-{model}")
        assert profile.interference is not None
        batch = profile.batch_max("1g")
        alone_ns = profile.latency_ns("1g", batch)
        slowed_ns = profile.interference.slowed_ns(alone_ns, busy_neighbours=6, slices=7)
        busy = facts["v1.0", model, "1g", "OfflineBusyNeighbours", "throughput"]
        assert batch * 1e9 / slowed_ns == pytest.approx(busy, rel=1e-5)


@pytest.mark.parametrize("command", ["preba/make_profiles"], indirect=True)
def test_preba_profiles_keep_to_their_facts(command: ModuleType) -> None:
    """The derived profiles give back the PCIe traffic they came from and say that they are modelled."""
    mobilenet = load_profile("preba-mobilenet-v3-small")
    images_per_s = 7 * 16 * 1e9 / mobilenet.latency_ns("1g.5gb", 16)
    assert images_per_s * command.IMAGE_BYTES == pytest.approx(6.13e9, rel=1e-6)
    conformer = load_profile("preba-conformer-small")  # what the DPU just sustains
    audio_s_per_s = 7 * 4 * 15 * 1e9 / (conformer.latency_ns("1g.5gb", 4, 15 * 10**9))
    low = audio_s_per_s * command.AUDIO_BYTES_PER_S_INT16
    high = audio_s_per_s * command.AUDIO_BYTES_PER_S_FLOAT32
    assert low <= 0.9e9 <= high
    for path in PROFILES.glob("preba-*.yaml"):
        profile = load_profile(path)
        assert profile.provenance.kind == "modelled"
        assert {"floor", "slope", "exponent", "batch_max", "offset"} <= set(profile.parts)


@pytest.mark.parametrize("command", ["preba/make_profiles"], indirect=True)
def test_preba_slices_together_beat_the_whole_gpu(command: ModuleType) -> None:
    """At its knee 1g.5gb(7x) serves more than 7g.40gb(1x) at the same batch, for each vision model."""
    for model, batch in command.KNEES_1G.items():
        profile = load_profile(f"preba-{model}")
        small = 7 * batch / profile.latency_ns("1g.5gb", batch)
        large = batch / profile.latency_ns("7g.40gb", batch)
        assert small > large


@pytest.mark.parametrize("command", ["preba/knee_rules"], indirect=True)
def test_knee_rule_table_is_current(command: ModuleType) -> None:
    """papers/preba/knee-rules.md is what its command computes now."""
    assert (PAPERS / "preba" / "knee-rules.md").read_text(encoding="utf-8") == command.render()


@pytest.mark.parametrize("folder", ["mlperf", "parvagpu"])
def test_predictions_are_what_the_simulator_says_today(folder: str) -> None:
    """The published comparison is reproduced; a change of the simulator shows here."""
    command = [sys.executable, str(PAPERS / folder / "predict.py"), "--check"]
    assert subprocess.run(command, timeout=120, check=False).returncode == 0


def test_given_slices_come_back_and_predicted_ones_are_near() -> None:
    """The page's own errors: none where the figure went in, under 10 % where MLPerf published more."""
    lines = (PAPERS / "mlperf" / "comparison.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][1:]
    assert len(rows) == 18
    for row in rows:
        error = float(row[4].removesuffix(" %"))
        assert abs(error) < (0.1 if row[5] == "given" else 10), row
