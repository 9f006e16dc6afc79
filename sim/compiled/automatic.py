"""Chooses between the compiled engine's two ways: the structural fast path where it is exact, else the event list."""

from __future__ import annotations

from preba.records import Records, StationSpans
from sim.compiled.engine import Progress, run_general
from sim.compiled.structural import run_structural, structural_obstacle
from sim.compiled.world import Outages
from sim.model import SimModel


def run_compiled(model: SimModel, progress: Progress | None = None) -> tuple[Records, StationSpans, Outages]:
    """Runs the compiled engine.

    Parameters
    ----------
    model : SimModel
    progress : callable, optional
        Called now and then with (requests finished, requests in total).

    Returns
    -------
    tuple
        Records, station spans, and outages as (slice, from_ns, to_ns): equal to the reference engine's.
    """
    if structural_obstacle(model) is None:
        result = run_structural(model)
        if result is not None:
            return result
    return run_general(model, progress)
