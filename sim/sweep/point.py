"""Running one point of a sweep: scenario, trace, engine, one line of figures. What points share is kept per worker."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preba.errors import PrebaError
from preba.report.keyfigures import key_figures
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.trace import Trace
from sim.context import report_context
from sim.run import simulate
from sim.vary import Space

TRACES_KEPT = 4
"""Traces a worker remembers: points that differ in anything but traffic share theirs."""


@dataclass(frozen=True)
class Task:
    """A few runs for one worker; small enough to be sent anywhere.

    Attributes
    ----------
    space : Space
    runs : tuple of (run number, settings)
        Settings by path, the seed among them.
    engine : str
    """

    space: Space
    runs: tuple[tuple[int, Mapping[str, str]], ...]
    engine: str


def run_task(task: Task) -> list[tuple[int, dict[str, Any]]]:
    """Runs a task; a run that cannot be gives a line with ``error`` instead of figures.

    Parameters
    ----------
    task : Task

    Returns
    -------
    list of (run number, line)
    """
    return [(number, _line(task, settings)) for number, settings in task.runs]


def _line(task: Task, settings: Mapping[str, str]) -> dict[str, Any]:
    try:
        return run_point(task.space, settings, engine=task.engine)
    except PrebaError as error:
        return {"error": str(error)}


def run_point(space: Space, settings: Mapping[str, str], *, engine: str) -> dict[str, Any]:
    """One run's figures, see ``preba.report.keyfigures``.

    Raises
    ------
    PrebaError
        The point makes no scenario, or the scenario cannot be run.
    """
    resolved = resolve(space.scenario(settings), folder=space.origin.parent)
    simulation = simulate(resolved, engine=engine, trace=trace_of(resolved))
    line = key_figures(simulation.result, report_context(resolved, simulation, text=False))
    return {**line, "warnings": list(simulation.warnings)}


def trace_of(resolved: ResolvedScenario) -> Trace:
    """A scenario's trace, drawn unless this worker has drawn the same one lately."""
    return _Traces.shared().get(resolved)


def _traffic(resolved: ResolvedScenario) -> str:
    """Everything that a scenario's trace depends on, as text."""
    scenario = resolved.scenario
    parts: list[Any] = [str(resolved.folder), scenario.seed, scenario.run.requests, scenario.run.duration_s]
    parts += [scenario.server.overheads.jitters(), scenario.server.overheads.slowness]
    for model in resolved.models:
        config = model.config
        parts += [config.arrivals, config.sizes, config.execution_jitter or model.profile.jitter]
        parts += [config.preprocess_jitter, config.batch_units, config.priority_shares, config.timeout_ms, config.name]
    parts += [event for event in scenario.events if event.kind == "rate_changes"]
    return repr(parts)


class _Traces:
    """The last few traces of this process, by what they depend on."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.traces: dict[str, Trace] = {}

    @staticmethod
    @functools.cache
    def shared() -> _Traces:
        """The traces of this process."""
        return _Traces(TRACES_KEPT)

    def get(self, resolved: ResolvedScenario) -> Trace:
        """The trace of a scenario; threads may draw one twice, which changes nothing."""
        key = _traffic(resolved)
        trace = self.traces.get(key)
        if trace is None:
            trace = draw_scenario_trace(resolved)
            while len(self.traces) >= self.kept:
                self.traces.pop(next(iter(self.traces)), None)
            self.traces[key] = trace
        return trace


def warm_up(engine: str) -> None:
    """Loads what every run needs before the first one is timed; for the start of a worker process."""
    if engine == "compiled":
        from sim.compiled import automatic  # noqa: F401 - Numba and the engine's modules


def as_settings(paths: Sequence[str], point: Sequence[str], seed: int) -> dict[str, str]:
    """A point's settings by path, with its seed unless the seed is an axis itself."""
    settings = dict(zip(paths, point, strict=True))
    settings.setdefault("seed", str(seed))
    return settings
