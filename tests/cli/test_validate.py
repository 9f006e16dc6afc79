"""``preba validate`` from end to end: a live server, its simulation, the verdict and the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_serving import CODE, needs_triton
from pictures_and_speech import photographs

from preba.records import read_records

pytestmark = pytest.mark.slow


def validate(scenario: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    command = [sys.executable, "-c", CODE, "validate", str(scenario), "--repeats", "5", "--idle-requests", "20"]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.parametrize("sections", ["1", "2"])
def test_tensors_live_and_simulated_agree_on_throughput_and_batches(toy: Any, tmp_path: Path, sections: str) -> None:
    """Seven slices of 20 to 48 ms: everything is written, the same requests are in both runs, errors are small."""
    needs_triton()
    model = toy.model(
        toy.profile({"1g": {"1": 20, "8": 48}}), {"kind": "poisson", "rate_rps": 250},
        batcher={"kind": "fixed", "batch_max": 8, "timeout_ms": 10},
    )  # fmt: skip
    data = toy.scenario([model], partition="7x1g.5gb", requests=600)
    # Wide limits: what this machine is busy with besides is no business of a test.
    data["validation"] = {f"{name}_percent": 60.0 for name in ("mean", "p50", "p90", "p95", "p99", "batch")}
    data["validation"] |= {"throughput_percent": 5.0, "utilization_percent": 30.0}
    data["validation"] |= {"distribution_percent": 90.0, "stage_percent": 60.0}
    path, out = tmp_path / "scenario.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    done = validate(path, "--out", str(out), "--fresh", "2", "--sections", sections, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert (f"in {sections} turns" in done.stderr) == (sections != "1")
    found = json.loads(done.stdout)
    assert found["met"]
    assert json.loads((out / "validation.json").read_text(encoding="utf-8")) == found
    assert {row["metric"] for row in found["rows"]} >= {"throughput", "latency mean", "latency p99", "mean batch"}
    assert found["per_request"]["correlation"] > 0.3
    assert any("from the generator to the batcher" in note for note in found["notes"])
    own = {row["metric"]: row["hindsight_error_percent"] for row in found["rows"]}
    assert abs(own["throughput"]) < 5
    assert abs(own["latency mean"]) < 60
    measured, _ = read_records(out / "measured" / "records.parquet")
    simulated, _ = read_records(out / "simulated" / "records.parquet")
    assert len(measured) == len(simulated) == 600
    assert (measured.scheduled_ns == simulated.scheduled_ns).all()
    assert "<h2>Quantile against quantile</h2>" in (out / "validation.html").read_text(encoding="utf-8")
    # The calibrated scenario is a scenario: it runs again by itself.
    again = [sys.executable, "-c", CODE, "simulate", str(out / "simulated" / "scenario.yaml"), "--json"]
    assert subprocess.run(again, capture_output=True, timeout=60, check=False).returncode == 0


def test_runs_of_others_are_compared_without_serving_anything(toy: Any, tmp_path: Path) -> None:
    """A perf_analyzer CSV of the scenario's closed loop, and Triton's statistics beside it."""
    model = toy.model(
        toy.profile({"full": {"1": 10, "4": 16}}), {"kind": "closed_loop", "outstanding": 8},
        batcher={"kind": "greedy", "batch_max": 4},
    )  # fmt: skip
    path, report, out = tmp_path / "scenario.yaml", tmp_path / "report.csv", tmp_path / "out"
    path.write_text(yaml.safe_dump(toy.scenario([model], requests=4000)), encoding="utf-8")
    report.write_text(
        "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency,Avg latency\n"
        "4,1,1,1,1,1,1,1\n8,250.0,10,32000,32000,32000,32000,32000\n",
        encoding="utf-8",
    )
    done = validate(path, "--measured", str(report), "--json", "--out", str(out))
    found = json.loads(done.stdout)
    rows = {row["metric"]: row for row in found["rows"]}
    assert done.returncode == 0, done.stdout
    assert rows["throughput"]["error_percent"] == pytest.approx(0, abs=0.2)
    assert rows["latency p99"]["error_percent"] == pytest.approx(0, abs=0.2)
    assert rows["mean batch"]["measured"] is None
    assert "Errors" in (out / "validation.html").read_text(encoding="utf-8")
    report.write_text(report.read_text(encoding="utf-8").replace("250.0", "200.0"), encoding="utf-8")
    assert validate(path, "--measured", str(report)).returncode == 1
    assert validate(path, "--measured", str(report), "--report-only").returncode == 0
    broken = validate(path, "--measured", str(path))
    assert broken.returncode == 2
    assert "not a measured run" in broken.stderr


def test_images_are_validated_and_a_missed_limit_has_its_exit_code(toy: Any, tmp_path: Path) -> None:
    """Photographs through one core, and limits that hardly anybody meets: 1 as soon as one of them is missed."""
    needs_triton()
    model = toy.model(
        toy.profile({"3g": {"1": 20, "4": 30}}), {"kind": "poisson", "rate_rps": 30},
        batcher={"kind": "fixed", "batch_max": 4, "timeout_ms": 5},
    )  # fmt: skip
    data = toy.scenario([model], partition="2x3g.20gb", requests=150, preprocessing=toy.cpu(1, 3000.0))
    names = ("mean", "p50", "p90", "p95", "p99", "batch", "throughput", "utilization", "distribution", "stage")
    data["validation"] = {f"{name}_percent": 1e-9 for name in names}
    path, folder = tmp_path / "scenario.yaml", tmp_path / "pictures"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    folder.mkdir()
    for name in ("coffee", "chelsea"):
        (folder / f"{name}.jpg").write_bytes(photographs()[name])
    done = validate(path, "--payloads", str(folder), "--fresh", "0")
    assert done.returncode == int("missed" in done.stdout), done.stderr
    assert "unsure" in done.stdout or "missed" in done.stdout
    assert "image preprocessing (cpu) in the server" in done.stdout
