"""How fast the engines are, beside others on the same work in the same run. Prints; asserts equality, never time.

Run by ``make bench``. Times are CPU times of this process, medians of interleaved rounds.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.compiled.engine import run_general
from sim.compiled.structural import run_structural
from sim.reference import run_reference

pytestmark = pytest.mark.bench
ROOT = Path(__file__).resolve().parents[2]
CODE = "from preba.cli.main import run; run()"
REQUESTS = 1_000_000
NEEDS = {
    "SimPy, idiomatic": "simpy",
    "SimPy, one event": "simpy",
    "SimPy, callbacks": "simpy",
    "salabim": "salabim",
    "Ciw, no batching": "ciw",
}
COUNTS = {
    "SimPy, idiomatic": 100_000,
    "SimPy, one event": 100_000,
    "SimPy, callbacks": 300_000,
    "salabim": 30_000,
    "Ciw, no batching": 30_000,
}
ROUNDS = 5


def machine() -> str:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "simpy"))
    cpu = names[0] if names else platform.machine()
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def cpu_s(action: Callable[[], Any]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


@pytest.mark.parametrize(("name", "rate_rps", "cores"), [("A", 2000, 16), ("B", 5500, 40)])
def test_engines_beside_others(toy: Any, yardsticks: Any, c_loop: Any, name: str, rate_rps: float, cores: int) -> None:
    """Microseconds per request of every engine and yardstick, interleaved."""
    case = yardsticks.setting(toy, REQUESTS, rate_rps=rate_rps, cores=cores)
    alone = yardsticks.setting(toy, REQUESTS, rate_rps=900, cores=cores, batching=False)
    small = yardsticks.setting(toy, 100_000, rate_rps=rate_rps, cores=cores)
    entrants: dict[str, tuple[int, Callable[[], Any]]] = {}
    for other, function in yardsticks.by_name.items():
        try:
            __import__(NEEDS[other])
        except ImportError:
            print(f"{other}: not installed, left out")
            continue
        count, mine = COUNTS[other], alone if "no batching" in other else case
        entrants[other] = (count, lambda f=function, m=mine, n=count: f(m, n))
    entrants["preba, reference"] = (100_000, lambda: run_reference(small.model))
    entrants["preba, compiled"] = (REQUESTS, lambda: run_general(case.model))
    entrants["preba, fast path"] = (REQUESTS, lambda: run_structural(case.model))
    entrants["C loop, all columns"] = (REQUESTS, lambda: c_loop(case, REQUESTS))
    entrants["C loop, six columns"] = (REQUESTS, lambda: c_loop(case, REQUESTS, lean=True))
    run_general(case.model), run_structural(case.model)  # compiled or loaded before anything is timed
    per_request: dict[str, list[float]] = {entrant: [] for entrant in entrants}
    for _ in range(ROUNDS):
        for entrant, (count, action) in entrants.items():
            per_request[entrant].append(cpu_s(action) / count * 1e6)
    median = {entrant: statistics.median(values) for entrant, values in per_request.items()}
    base, c = median["SimPy, idiomatic"], median["C loop, all columns"]
    print(f"\nscenario {name}: {rate_rps:,.0f} req/s, {cores} cores, batches of 8 or 2 ms, 7 slices; {machine()}")
    print(f"{'':24}{'us/request':>12}{'x SimPy':>10}{'x C':>8}{'requests':>12}")
    for entrant, (count, _) in entrants.items():
        us = median[entrant]
        print(f"{entrant:24}{us:12.4f}{base / us:10.1f}{us / c:8.2f}{count:12,}")
    reference = run_reference(small.model)[0]
    for records in (run_general(small.model)[0], run_structural(small.model)[0]):
        assert all(np.array_equal(getattr(records, f), getattr(reference, f)) for f in reference.__dataclass_fields__)
    answer = c_loop(case, REQUESTS)
    fast = run_structural(case.model)[0]
    assert np.array_equal(answer.completed_ns, fast.completed_ns)
    assert np.array_equal(run_general(case.model)[0].completed_ns, fast.completed_ns)


def preba(*arguments: str, env: dict[str, str] | None = None) -> tuple[float, str]:
    """Wall-clock seconds of a command, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    return time.perf_counter() - began, done.stdout


@pytest.mark.parametrize("scenario", ["preba-image-base", "preba-image-preba", "mlperf-resnet50-whole-gpu"])
def test_a_million_requests_from_start_to_json(scenario: str, tmp_path: Path) -> None:
    """A new process with a warm cache, and the very first run with an empty one."""
    command = ("simulate", f"configs/scenarios/{scenario}.yaml", "--set", f"run.requests={REQUESTS}", "--json")
    first, _ = preba(*command, env={"NUMBA_CACHE_DIR": str(tmp_path)})
    again = [preba(*command, env={"NUMBA_CACHE_DIR": str(tmp_path)})[0] for _ in range(3)]
    print(f"\n{scenario}, {REQUESTS:,} requests, process start to JSON: {statistics.median(again):.2f} s (aim 1.5), "
          f"first ever {first:.2f} s (aim 6)")  # fmt: skip


def test_a_thousand_points(tmp_path: Path) -> None:
    """A sweep of 1,000 points x 100,000 requests, each with traffic of its own and with traffic in common."""
    for label, axis in (
        ("traffic of its own", "models[0].arrivals.rate_rps=500..1900"),
        ("traffic in common", "models[0].batcher.timeout_ms=0.5..19"),
    ):
        wall, _ = preba(
            "sweep", "configs/scenarios/preba-image-base.yaml", "--sobol", "1000", "--vary", axis, "--vary",
            "preprocessing.cores=32..64", "--set", "run.requests=100000", "--out", str(tmp_path / label[:10]),
        )  # fmt: skip
        print(f"\nsweep of 1,000 points x 100,000 requests, {label}: {wall:.1f} s (aim 15) on {os.cpu_count()} cores")


@pytest.mark.parametrize(
    ("label", "arguments"),
    [
        (
            "20 million requests",
            ("configs/scenarios/preba-image-base.yaml", "--set", "run.requests=20000000"),
        ),
        (
            "10 simulated seconds of 7,000 slices",
            ("docs/examples/fleet.yaml", "--set", "run.duration_s=10", "--set", "run.warmup_s=1"),
        ),
    ],
)
def test_streamed_runs(label: str, arguments: tuple[str, ...]) -> None:
    """Seconds and memory of long runs; longer ones take proportionally longer and no more memory."""
    wall, text = preba("simulate", *arguments, "--stream", "--json")
    summary = json.loads(text)
    megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"\nstreamed, {label}: {wall:.1f} s, {wall / summary['requests'] * 1e9:.0f} ns/request, simulated "
        f"{summary['duration_s']:.1f} s; largest process so far {megabytes:.0f} MB"
    )
