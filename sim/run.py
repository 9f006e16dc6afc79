"""One call that runs a scenario on an engine: draw the trace, build the model, run, and say what to beware of."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from preba.errors import UnsupportedError, nearest
from preba.records import Records, RunResult, StationFacts, StationSpans
from preba.scenario.draw import draw_scenario_trace, long_run_rates, offered_duration_ns
from preba.scenario.resolve import ResolvedScenario
from preba.strict import Provenance
from preba.trace import Trace
from sim.capacity import StageLoad, overload_warnings, stage_loads
from sim.model import SimModel, build_model

Progress = Callable[[int, int], None]
Outages = tuple[tuple[int, int, int], ...]
Engine = Callable[[SimModel, Progress | None], tuple[Records, StationSpans, Outages]]


def run_compiled(model: SimModel, progress: Progress | None = None) -> tuple[Records, StationSpans, Outages]:
    """Runs the compiled engine, see ``sim.compiled``."""
    from sim.compiled import automatic  # imports Numba, which the reference needs not

    return automatic.run_compiled(model, progress)


def run_reference(model: SimModel, progress: Progress | None = None) -> tuple[Records, StationSpans, Outages]:
    """Runs the SimPy reference engine, see ``sim.reference``."""
    from sim import reference

    return reference.run_reference(model, progress)


DEFAULT_ENGINE = "compiled"
ENGINES: Mapping[str, Engine] = {"compiled": run_compiled, "reference": run_reference}
"""Every engine by name; all give identical records for the same model."""


@dataclass(frozen=True)
class Simulation:
    """A finished simulation.

    Attributes
    ----------
    result : RunResult
    trace : Trace
        What was played; another engine or a live server can play it again.
    loads : tuple of StageLoad
        Offered load against capacity per stage, heaviest first; empty for closed loops.
    warnings : tuple of str
        Overload and the like.
    provenance : tuple of (what, Provenance)
        Of the preprocessing stations' numbers.
    wall_s : float
        Time the engine took.
    """

    result: RunResult
    trace: Trace
    loads: tuple[StageLoad, ...]
    warnings: tuple[str, ...]
    provenance: tuple[tuple[str, Provenance], ...]
    wall_s: float


def simulate(
    resolved: ResolvedScenario,
    *,
    engine: str = DEFAULT_ENGINE,
    trace: Trace | None = None,
    progress: Progress | None = None,
) -> Simulation:
    """Runs a scenario.

    Parameters
    ----------
    resolved : ResolvedScenario
    engine : str
        A key of ``ENGINES``.
    trace : Trace, optional
        What to play; drawn from the scenario's seed when not given.
    progress : callable, optional
        Called now and then with (requests finished, requests in total).

    Returns
    -------
    Simulation

    Raises
    ------
    UnsupportedError
        There is no such engine.
    ScenarioError, ProfileRangeError
        The scenario goes beyond what its profiles cover.
    """
    if engine not in ENGINES:
        raise UnsupportedError(f"--engine: {engine!r} is not an engine{nearest(engine, ENGINES)}")
    if trace is None:
        trace = draw_scenario_trace(resolved)
    model = build_model(resolved, trace)
    names = [m.config.name for m in resolved.models]
    loads = stage_loads(model, names, offered_duration_ns(resolved, trace), long_run_rates(resolved))
    began = time.perf_counter()
    records, spans, outages = ENGINES[engine](model, progress)
    wall_s = time.perf_counter() - began
    result = RunResult(
        engine=engine,
        records=records,
        spans=spans,
        stations=tuple(StationFacts(s.name, s.kind, s.units, s.usable_fraction) for s in model.preprocessing.stations),
        slices=tuple(unit.facts() for unit in resolved.slices),
        models=tuple(names),
        end_ns=int(records.completed_ns.max(initial=0)),
        outages=outages,
    )
    warnings = [*overload_warnings(loads), *resolved.warnings()]
    pending = int((records.outcome == 4).sum())
    if pending:
        warnings.append(f"{pending} requests were never served: the slices they waited for did not come back")
    return Simulation(result, trace, tuple(loads), tuple(warnings), model.preprocessing.provenance, wall_s)
