"""``preba capacity`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCENARIO = Path(__file__).resolve().parents[2] / "configs" / "scenarios" / "preba-image-base.yaml"


def capacity(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from preba.cli.main import run; run()"
    command = [sys.executable, "-c", code, "capacity", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_capacity_is_found_per_value_and_a_value_that_fails_is_named() -> None:
    """More cores carry more; a partition the profile does not know is an error in its line, the others are kept."""
    done = capacity(SCENARIO, "--slo", "p99=60", "--vary", "preprocessing.cores=16,64", "--json")
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)["points"]
    assert few["rate_rps"] < many["rate_rps"]
    for point in (few, many):
        low, high = point["interval_rps"]
        assert low <= point["rate_rps"] <= high
    mixed = capacity(SCENARIO, "--slo", "p99=60", "--vary", "gpus[0].partition=7x1g.5gb,full")
    assert mixed.returncode == 1
    assert "known to" in mixed.stdout
    assert "has no times for slice full" in mixed.stderr


def test_capacity_with_a_wrong_objective_is_one_line() -> None:
    """The percentile that does not exist is named with those that do."""
    done = capacity(SCENARIO, "--slo", "p98=60")
    assert done.returncode == 2
    assert "p99" in done.stderr
    assert len(done.stderr.splitlines()) == 1
