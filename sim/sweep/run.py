"""Running a sweep: its runs in tasks, on any executor, finished ones stored at once; then one row per point."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preba import __version__
from preba.errors import ScenarioError, UnsupportedError
from preba.report.keyfigures import FIGURES, INTERVALS
from preba.scenario.load import scenario_data
from preba.scenario.resolve import resolve
from preba.statistics.student import student_t_quantile
from sim.run import DEFAULT_ENGINE
from sim.sweep.point import Task, as_settings, run_task
from sim.sweep.store import SweepStore
from sim.vary import Axis, Mode, Point, Space, points_of

Row = dict[str, Any]
SweepProgress = Callable[[int, int], None]

TASKS_PER_WORKER = 12
"""Tasks a worker gets in a whole sweep: many enough to keep all busy to the end, few enough not to matter."""
MOST_RUNS_PER_TASK = 16
TASKS_AHEAD = 3
"""Tasks that wait per worker; more would only fill queues."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep is about.

    Attributes
    ----------
    space : Space
    axes : tuple of Axis
    points : tuple of Point
    replications : int
        Runs per point, each with a seed of its own, the same for all points (common random numbers).
    engine : str
    """

    space: Space
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    replications: int
    engine: str

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each axis."""
        return tuple(axis.path for axis in self.axes)

    @property
    def seed(self) -> int:
        """Seed of the first replication; the others follow."""
        return int(self.space.data.get("seed", 1))

    def plan(self) -> dict[str, Any]:
        """What tells one sweep from another, as plain JSON values."""
        text = json.dumps(self.space.data, sort_keys=True, default=str)
        return {
            "scenario": hashlib.sha256(text.encode()).hexdigest(),
            "vary": list(self.paths),
            "points": [list(point) for point in self.points],
            "replications": self.replications,
            "engine": self.engine,
            "preba": __version__,
        }


def plan_sweep(
    scenario: Path,
    axes: Sequence[Axis],
    *,
    mode: Mode = "grid",
    sobol: int = 0,
    replications: int = 1,
    engine: str = DEFAULT_ENGINE,
    overrides: Sequence[str] = (),
) -> Sweep:
    """Reads a scenario and lays out a sweep over it, every value of every axis tried against it.

    Parameters
    ----------
    scenario : Path
    axes : sequence of Axis
    mode : str
        ``grid``, ``zip`` or ``sobol``.
    sobol : int
        Points, in mode ``sobol``.
    replications : int
        >= 1.
    engine : str
    overrides : sequence of str
        ``path=value`` applied before everything else.

    Raises
    ------
    ScenarioError
        The file, an axis or a value of it makes no scenario; an unknown path names the nearest.
    MissingFileError, PartitionError, ProfileError
        Something a value names does not exist or does not fit.
    """
    if replications < 1:
        raise ScenarioError(f"--replications: must be >= 1, got {replications}")
    data, lines = scenario_data(scenario, overrides)
    space = Space(data, lines, scenario)
    if replications > 1 and "seed" in [axis.path for axis in axes]:
        raise ScenarioError("--vary seed: with --replications each run has a seed of its own; give one of the two")
    resolve(space.scenario({}), folder=scenario.parent)
    points = points_of(axes, mode, sobol=sobol, seed=int(data.get("seed", 1)))
    if mode == "grid":
        for axis in axes:  # a wrong value is found here, a wrong combination when its turn comes
            for value in axis.values:
                resolve(space.scenario({axis.path: value}), folder=scenario.parent)
    for point in {"grid": [], "zip": points, "sobol": points[:1]}[mode]:
        resolve(space.scenario(dict(zip([axis.path for axis in axes], point, strict=True))), folder=scenario.parent)
    return Sweep(space, tuple(axes), tuple(points), replications, engine)


def run_sweep(
    sweep: Sweep,
    store: SweepStore,
    executor: Executor,
    *,
    workers: int | None = None,
    progress: SweepProgress | None = None,
) -> None:
    """Runs what of a sweep the store does not hold yet.

    Parameters
    ----------
    sweep : Sweep
    store : SweepStore
    executor : concurrent.futures.Executor
        Any: threads (the compiled engine releases the GIL), processes, a Dask cluster's.
    workers : int, optional
        How many tasks run at once; by default as many as this machine has cores.
    progress : callable, optional
        Called with (runs finished, runs in all).

    Raises
    ------
    OutputError
        A finished run could not be stored; those before are kept.
    UnsupportedError
        A worker was killed, for want of memory perhaps; finished runs are kept.
    """
    todo = _missing(sweep, store)
    total = len(sweep.points) * sweep.replications
    workers = workers or os.cpu_count() or 1
    size = max(1, min(MOST_RUNS_PER_TASK, math.ceil(len(todo) / (workers * TASKS_PER_WORKER))))
    tasks = iter([todo[start : start + size] for start in range(0, len(todo), size)])
    waiting: set[Future[list[tuple[int, dict[str, Any]]]]] = set()
    if progress is not None:
        progress(total - len(todo), total)
    try:
        while True:
            while len(waiting) < workers * TASKS_AHEAD and (runs := next(tasks, None)) is not None:
                waiting.add(executor.submit(run_task, Task(sweep.space, tuple(runs), sweep.engine)))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                store.add(future.result())
            if progress is not None:
                progress(len(store.lines), total)
    except BrokenExecutor as error:
        raise UnsupportedError(
            f"--executor: a worker ended before its time, perhaps for want of memory: {error} The "
            f"{len(store.lines)} runs finished so far are kept, and the same command goes on from "
            "there; fewer --workers need less memory"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


def _missing(sweep: Sweep, store: SweepStore) -> list[tuple[int, dict[str, str]]]:
    """Runs that have not finished, in order: all points of the first replication, then of the second."""
    count = len(sweep.points)
    missing: list[tuple[int, dict[str, str]]] = []
    for replication in range(sweep.replications):
        for place, point in enumerate(sweep.points):
            number = replication * count + place
            if number not in store.lines or "error" in store.lines[number]:
                missing.append((number, as_settings(sweep.paths, point, sweep.seed + replication)))
    return missing


def rows_of(sweep: Sweep, store: SweepStore) -> list[Row]:
    """One row per point: its values, its figures and, with replications, their means and 95 % intervals.

    Parameters
    ----------
    sweep : Sweep
    store : SweepStore

    Returns
    -------
    list of dict
        In the order of the points. A point with a failed run has ``error`` and no figures.
    """
    count = len(sweep.points)
    rows: list[Row] = []
    for place, point in enumerate(sweep.points):
        row: Row = {"point": place, **dict(zip(sweep.paths, map(_plain, point), strict=True)), "seed": sweep.seed}
        lines = [store.lines.get(replication * count + place) for replication in range(sweep.replications)]
        finished = [line for line in lines if line is not None and "error" not in line]
        row["replications"] = len(finished)
        errors = [line["error"] for line in lines if line is not None and "error" in line]
        row["error"] = errors[0] if errors else None if len(finished) == len(lines) else "not run yet"
        if finished and row["error"] is None:
            row |= _combined(finished)
        rows.append(row)
    return rows


def _plain(text: str) -> Any:  # noqa: ANN401 - a number or text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _combined(lines: Sequence[Row]) -> Row:
    """Figures of one run as they are; of several their means with t intervals over the replications."""
    if len(lines) == 1:
        return {**lines[0], "warnings": "; ".join(lines[0]["warnings"])}
    found: Row = {}
    for name in FIGURES:
        values = [line[name] for line in lines]
        if any(value is None for value in values):
            found[name] = None
            continue
        mean = sum(values) / len(values)
        found[name] = mean
        if name in INTERVALS:
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            half = student_t_quantile(0.975, len(values) - 1) * spread / math.sqrt(len(values))
            found[f"{name}_low"], found[f"{name}_high"] = max(0.0, mean - half), mean + half
    found["steady"] = all(line["steady"] for line in lines)
    found["slo_met"] = None if found["latency_p99_ms"] is None else _all_met(lines)
    found["p99_enough"] = all(line["p99_enough"] for line in lines)
    found["warnings"] = "; ".join(dict.fromkeys(text for line in lines for text in line["warnings"]))
    return found


def _all_met(lines: Sequence[Row]) -> bool | None:
    verdicts = [line["slo_met"] for line in lines]
    return None if any(verdict is None for verdict in verdicts) else all(verdicts)
