"""Which cores a process may run on: preprocessing on cores of its own, everything else on the others."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from preba.errors import ScenarioError

__all__ = ["bind", "bound_to", "split_cores"]


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
    if not cores:
        yield
        return
    own = os.sched_getaffinity(0)
    before = bind(cores)
    try:
        yield
    finally:
        for thread in _threads():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(thread, before.get(thread, own))


def bind(cores: Collection[int]) -> dict[int, set[int]]:
    """Binds every thread of this process, also those that start meanwhile; returns where each one was."""
    before: dict[int, set[int]] = {}
    while new := _threads() - before.keys():
        for thread in new:
            before[thread] = set(cores)
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, cores)
    return before


def _threads() -> set[int]:
    return {int(each.name) for each in Path("/proc/self/task").iterdir()}
