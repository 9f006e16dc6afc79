"""Which cores a process may run on: preprocessing on cores of its own, everything else on the others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from preba.errors import ScenarioError

__all__ = ["bound_to", "split_cores"]


def split_cores(workers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cores for so many preprocessing workers, the last ones this process may use, and all others.

    Raises
    ------
    ScenarioError
        Nothing would be left for the rest of the server.
    """
    have = sorted(os.sched_getaffinity(0))
    if workers >= len(have):
        raise ScenarioError(
            f"scenario.live.preprocessing.pin: {workers} workers need {workers + 1} cores, one for the rest of the "
            f"server; this process may use {len(have)}"
        )
    return tuple(have[-workers:]), tuple(have[:-workers])


@contextlib.contextmanager
def bound_to(cores: Collection[int]) -> Iterator[None]:
    """Keeps every thread of this process, and processes started meanwhile, on some cores; no cores: anywhere."""
    before = os.sched_getaffinity(0)
    _bind(cores)
    try:
        yield
    finally:
        _bind(before if cores else ())


def _bind(cores: Collection[int]) -> None:
    if not cores:
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.sched_setaffinity(int(thread.name), cores)
