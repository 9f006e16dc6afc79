"""How much a scenario can carry: its saturated throughput, found by simulating it beyond its capacity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from preba.arrivals import ClosedLoopArrivals
from preba.errors import ScenarioError
from preba.scenario.resolve import ResolvedScenario
from preba.scenario.schema import RateChanges, Run
from preba.units import NS_PER_S
from sim.run import simulate

OVERLOAD = 1.4
"""Offered rate over the analytic capacity in a saturation run: a choice, far enough beyond to keep queues full."""

MIDDLE = (0.3, 0.9)
"""Share of the completions between which the rate is taken: after filling up, before running dry."""


def at_rate_factor(resolved: ResolvedScenario, factor: float, requests: int) -> ResolvedScenario:
    """The same scenario with all arrivals ``factor`` times as fast, for so many requests."""
    scenario = resolved.scenario
    speed_up = RateChanges(kind="rate_changes", at_s=0.0, factor=factor)
    changed = scenario.model_copy(
        update={"run": Run(requests=requests), "events": (speed_up, *scenario.events)},
    )
    return replace(resolved, scenario=changed)


def saturated_rps(resolved: ResolvedScenario, *, requests: int = 8000) -> float:
    """Throughput of a scenario that is offered more than it can carry.

    Parameters
    ----------
    resolved : ResolvedScenario
        One model, open loop, no rate changes of its own.
    requests : int
        Length of the run.

    Returns
    -------
    float
        Served requests per second, in the middle of the run.

    Raises
    ------
    ScenarioError
        The scenario is a closed loop or serves several models, whose mix would change under overload.
    """
    if len(resolved.models) != 1:
        raise ScenarioError(f"scenario.models: saturation is defined for one model, got {len(resolved.models)}")
    if isinstance(resolved.models[0].config.arrivals, ClosedLoopArrivals):
        raise ScenarioError("scenario.models[0].arrivals: a closed loop saturates by itself; raise its outstanding")
    probe = simulate(at_rate_factor(resolved, 1.0, min(requests, 1000)))
    worst = probe.loads[0]
    factor = OVERLOAD * worst.capacity_rps / worst.offered_rps
    records = simulate(at_rate_factor(resolved, factor, requests)).result.records
    done = np.sort(records.completed_ns[records.served])
    first, last = (int(share * (len(done) - 1)) for share in MIDDLE)
    return float((last - first) / (done[last] - done[first]) * NS_PER_S)
