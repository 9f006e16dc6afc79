"""``preba sweep`` as a user runs it: results, resuming after a kill, and errors in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCENARIO = Path(__file__).resolve().parents[2] / "configs" / "scenarios" / "preba-image-base.yaml"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from preba.cli.main import run; run()", "sweep", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_sweep_killed_in_the_middle_is_finished_by_the_same_command(tmp_path: Path) -> None:
    """After kill -9 the same command runs only what is missing; every run is there once."""
    arguments = (
        SCENARIO, "--vary", "models[0].arrivals.rate_rps=300,400,500,600,700,800,900,1000", "--set",
        "run.requests=6000", "--engine", "reference", "--executor", "threads", "--workers", 1, "--out", tmp_path / "s",
    )  # fmt: skip
    runs = tmp_path / "s" / "runs.jsonl"
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (runs.exists() and runs.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = runs.read_bytes().count(b"\n")
    assert 2 <= before < 8
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"{8 - before} runs in" in done.stderr
    assert sorted(json.loads(line)["run"] for line in runs.read_text().splitlines()) == list(range(8))
    assert len((tmp_path / "s" / "sweep.csv").read_text().splitlines()) == 9


@pytest.mark.slow
def test_sweep_prints_a_table_and_writes_a_report(tmp_path: Path) -> None:
    """Worker processes, a Sobol design, a table on stdout, files in the folder."""
    done = run(
        SCENARIO, "--sobol", 4, "--vary", "models[0].arrivals.rate_rps=200..800", "--set", "run.requests=500", "--out",
        tmp_path / "s",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rate_rps" in done.stdout
    assert "p99 ms" in done.stdout
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"sweep.json", "runs.jsonl", "sweep.csv", "sweep.parquet", "report.html"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vary", "models[0].arrivals.rate_rp=1,2"), "rate_rps"),
        (("--vary", "seed=1", "--executor", "thread"), "did you mean 'threads'"),
        (("--vary", "seed=1", "--grid", "--zip"), "at most one"),
        (("--vary", "seed=1", "--engine", "compild"), "did you mean 'compiled'"),
    ],
)
def test_sweep_that_cannot_be_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """Wrong usage is said in one line on stderr with exit code 2."""
    done = run(SCENARIO, *arguments, "--out", tmp_path / "s")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_dask_address_nobody_answers_on_is_one_line(tmp_path: Path) -> None:
    """Without a scheduler the error comes within seconds and says how to start one; nothing finished is lost."""
    pytest.importorskip("distributed", reason="the extra dask is not installed")
    small = ("--vary", "seed=1,2", "--set", "run.requests=300", "--out", tmp_path / "s")
    done = run(SCENARIO, *small, "--executor", "dask://127.0.0.1:1")
    assert done.returncode == 2
    assert "no scheduler answers" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: --executor dask://127.0.0.1:1")
    assert run(SCENARIO, *small, "--executor", "threads").returncode == 0
