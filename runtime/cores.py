"""Which cores a process may run on: preprocessing on its own, all else on the others. And what the host takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from preba.errors import ScenarioError

__all__ = ["CpuTicks", "bind", "bound_to", "cpu_ticks", "split_cores", "stolen_percent"]

STOLEN = 7
"""Place of the ticks that a hypervisor gave to others among those of /proc/stat (proc(5)); the two after it are parts
of the first two."""


@dataclass(frozen=True)
class CpuTicks:
    """What all cores of this machine have done since it was started, in the kernel's ticks.

    Attributes
    ----------
    every : int
    stolen : int
        The machine had work then, and its host did something else.
    """

    every: int
    stolen: int


def cpu_ticks(path: Path = Path("/proc/stat")) -> CpuTicks | None:
    """Reads them; ``None`` where the system does not say."""
    try:
        name, *words = path.read_text(encoding="ascii").partition("\n")[0].split()
        ticks = [int(word) for word in words[: STOLEN + 1]]
    except (OSError, ValueError):
        return None
    return CpuTicks(sum(ticks), ticks[STOLEN]) if name == "cpu" and len(ticks) > STOLEN else None


def stolen_percent(before: CpuTicks | None, after: CpuTicks | None) -> float | None:
    """Share of the cores' time that the host gave to others meanwhile."""
    if before is None or after is None or after.every <= before.every:
        return None
    return 100.0 * (after.stolen - before.stolen) / (after.every - before.every)


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
