"""Compiled code is found on disk by the next process, and not taken for that of other sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import functools, sys
from sim.compiled import engine, structural

if sys.argv[1] != "as it is":
    engine.fingerprint = structural.fingerprint = functools.cache(lambda: sys.argv[1])
found = engine.entry(engine.Variant(kinds=(0,), rate_limited=False, failures=False)).stats
print(sum(found.cache_hits.values()), sum(found.cache_misses.values()))
"""
FAST = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
from preba.scenario.draw import draw_scenario_trace
from sim.compiled import structural
from sim.model import build_model

toy = conftest.Toy()
resolved = toy.resolve(toy.scenario([toy.model(toy.profile({"full": {"1": 4}}), {"kind": "poisson", "rate_rps": 9})],
    requests=50, preprocessing=toy.cpu(2, 1000)))
structural.run_structural(build_model(resolved, draw_scenario_trace(resolved)))
stats = [function.stats for function in structural._compiled()]
print(sum(sum(s.cache_hits.values()) for s in stats), sum(sum(s.cache_misses.values()) for s in stats))
"""


def python(code: str, argument: str, cache: Path) -> tuple[int, int]:
    """Cache hits and misses of a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code, argument], capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hits, misses = done.stdout.split()
    return int(hits), int(misses)


@pytest.mark.slow
def test_next_process_finds_compiled_code_on_disk(tmp_path: Path) -> None:
    """The first process compiles and stores, the second loads; other sources are compiled again."""
    assert python(CODE, "as it is", tmp_path) == (0, 1)
    assert python(CODE, "as it is", tmp_path) == (1, 0)
    assert python(CODE, "other sources", tmp_path) == (0, 1)
    assert python(CODE, "as it is", tmp_path) == (1, 0)


@pytest.mark.slow
def test_next_process_finds_the_fast_path_on_disk(tmp_path: Path) -> None:
    """Both passes of the structural fast path are loaded, not compiled, by the second process."""
    toy = str(Path(__file__).resolve().parents[1] / "conftest.py")
    assert python(FAST, toy, tmp_path) == (0, 2)
    assert python(FAST, toy, tmp_path) == (2, 0)
