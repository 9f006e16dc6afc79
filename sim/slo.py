"""The highest rate at which a scenario keeps an objective: bisection on the same random numbers at every rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from preba.arrivals import ClosedLoopArrivals
from preba.errors import ScenarioError, nearest
from preba.report.keyfigures import key_figures
from preba.report.measures import PERCENTILES
from preba.scenario.draw import long_run_rates
from preba.scenario.resolve import ResolvedScenario
from sim.context import report_context
from sim.run import DEFAULT_ENGINE, simulate
from sim.saturation import at_rate_factor

__all__ = ["Capacity", "Objective", "find_capacity", "parse_objective"]

TOLERANCE = 0.002
"""Rates are found to this share of themselves."""
LOWEST_FACTOR, HIGHEST_FACTOR = 2.0**-20, 2.0**20
"""Of the scenario's own rate; beyond them the search gives up."""
LEAST_REQUESTS = 20_000


@dataclass(frozen=True)
class Objective:
    """At least a share ``level`` of the requests is answered within ``limit_ms``.

    Attributes
    ----------
    name : str
        A percentile's: ``p50`` .. ``p99``, ``p999``.
    level : float
    limit_ms : float
    """

    name: str
    level: float
    limit_ms: float


@dataclass(frozen=True)
class Capacity:
    """How much a scenario carries within an objective.

    Attributes
    ----------
    rate_rps : float
        Highest rate, over all models, at which the run meets the objective; 0 if none does.
    low_rps, high_rps : float
        Between them the true rate lies as far as this run's length can tell: up to ``low_rps`` the whole 95 % interval
        of the percentile keeps the limit, from ``high_rps`` on all of it misses.
    latency_ms : float or None
        The percentile at ``rate_rps``.
    figures : dict
        All figures of the run at ``rate_rps``, see ``preba.report.keyfigures``.
    limited_by : str
        What stands in the way of more: the objective, or the busiest stage where that saturates first.
    runs : int
        Simulations it took.
    """

    rate_rps: float
    low_rps: float
    high_rps: float
    latency_ms: float | None
    figures: dict[str, Any]
    limited_by: str
    runs: int


def parse_objective(text: str) -> Objective:
    """Reads ``p99=50``: the percentile and its limit in milliseconds.

    Raises
    ------
    ScenarioError
        The percentile is none of those reported, or the limit is no positive number.
    """
    name, found, limit = text.partition("=")
    name = {"p99.9": "p999"}.get(name.strip(), name.strip())
    if not found or name not in PERCENTILES:
        hint = nearest(name, PERCENTILES)
        raise ScenarioError(f"--slo {text}: expected one of {', '.join(PERCENTILES)} and ms, such as p99=50{hint}")
    try:
        limit_ms = float(limit)
    except ValueError as error:
        raise ScenarioError(f"--slo {text}: {limit!r} is no number of milliseconds") from error
    if not 0 < limit_ms < math.inf:
        raise ScenarioError(f"--slo {text}: must be > 0")
    return Objective(name, PERCENTILES[name], limit_ms)


class _Search:
    """Simulations of one scenario at different rates, remembered by rate."""

    def __init__(self, resolved: ResolvedScenario, objective: Objective, engine: str) -> None:
        for index, model in enumerate(resolved.models):
            if isinstance(model.config.arrivals, ClosedLoopArrivals):
                raise ScenarioError(
                    f"scenario.models[{index}].arrivals: a closed loop sets its own rate; capacity needs open arrivals"
                )
        rates = long_run_rates(resolved)
        if any(rate is None for rate in rates):
            raise ScenarioError("scenario.events: capacity needs a rate that does not change during the run")
        self.resolved = resolved
        self.objective = objective
        self.engine = engine
        self.base_rps = sum(rate or 0.0 for rate in rates)
        self.requests = max(resolved.scenario.run.requests or 0, LEAST_REQUESTS)
        self.lines: dict[float, dict[str, Any]] = {}

    def line(self, factor: float) -> dict[str, Any]:
        """Figures at a rate, with what limits it."""
        if factor not in self.lines:
            simulation = simulate(at_rate_factor(self.resolved, factor, self.requests), engine=self.engine)
            found = key_figures(simulation.result, report_context(self.resolved, simulation, text=False))
            worst = simulation.loads[0] if simulation.loads else None
            found["saturated"] = worst.stage if worst is not None and worst.load >= 1.0 else None
            self.lines[factor] = found
        return self.lines[factor]

    def meets(self, factor: float, end: str = "") -> bool:
        """Whether the percentile (or an end of its interval) keeps the limit and hardly anything is refused."""
        line = self.line(factor)
        if line["saturated"] is not None:
            return False
        lost = line["refused"] + line["pending"]
        if lost > (1.0 - self.objective.level) * line["requests"]:
            return False
        value = line[f"latency_{self.objective.name}_ms{end}"]
        if value is None:
            value = line[f"latency_{self.objective.name}_ms"]
        return value is not None and value <= self.objective.limit_ms

    def highest(self, low: float, high: float, end: str = "") -> float:
        """The highest factor that meets, between one that does and one that does not."""
        while high - low > TOLERANCE * low:
            middle = math.sqrt(low * high) if high > 2 * low else 0.5 * (low + high)
            if self.meets(middle, end):
                low = middle
            else:
                high = middle
        return low

    def bracket(self, start: float, end: str = "") -> tuple[float, float] | None:
        """Two factors, the first of which meets and the second does not; None where nothing meets."""
        low = high = start
        if self.meets(start, end):
            while self.meets(high, end):
                low, high = high, high * 2
                if high > HIGHEST_FACTOR:
                    raise ScenarioError(
                        f"--slo {self.objective.name}={self.objective.limit_ms:g}: is met at any rate tried; does the "
                        "traffic visit the slices at all?"
                    )
            return low, high
        while not self.meets(low, end):
            low, high = low / 2, low
            if low < LOWEST_FACTOR:
                return None
        return low, high


def find_capacity(resolved: ResolvedScenario, objective: Objective, *, engine: str = DEFAULT_ENGINE) -> Capacity:
    """Finds the highest rate that meets an objective, all models' arrivals scaled alike.

    Parameters
    ----------
    resolved : ResolvedScenario
        Open loops of constant long-run rate; ``run.requests`` (at least 20,000) is the length of every run.
    objective : Objective
        A refused or lost request counts as a miss; a rate at which some stage saturates never meets.
    engine : str

    Returns
    -------
    Capacity

    Raises
    ------
    ScenarioError
        A closed loop, a rate that changes, or an objective met at any rate.
    """
    search = _Search(resolved, objective, engine)
    found = search.bracket(1.0)
    if found is None:
        line = search.line(1.0)
        return Capacity(0.0, 0.0, 0.0, None, line, f"{objective.name} at any rate", len(search.lines))
    best = search.highest(*found)
    surely = search.bracket(best, "_high")
    low = search.highest(*surely, "_high") if surely is not None else 0.0
    hardly = search.bracket(best * (1 + TOLERANCE), "_low")
    high = search.highest(*hardly, "_low") * (1 + TOLERANCE) if hardly is not None else best * (1 + TOLERANCE)
    line = search.line(best)
    above = search.line(min(factor for factor in search.lines if factor > best and not search.meets(factor)))
    limited_by = above["saturated"] or objective.name
    return Capacity(
        rate_rps=best * search.base_rps,
        low_rps=min(low, best) * search.base_rps,
        high_rps=max(high, best) * search.base_rps,
        latency_ms=line[f"latency_{objective.name}_ms"],
        figures=line,
        limited_by=limited_by,
        runs=len(search.lines),
    )
