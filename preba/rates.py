"""Rates over time as a time warp: arrivals expected up to a moment, and the moment so many are expected by.

Every open-loop arrival process is unit-rate points pushed through one of these; rate changes act on all of
them alike. No randomness lives here but the state path of a modulated process, and no configuration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from preba.errors import TraceError
from preba.units import NS_PER_S

Float64 = NDArray[np.float64]

_VISITS_PER_BLOCK = 1024
"""State visits drawn at a time. Fixed, so that a longer path begins with the shorter one."""

_MAX_VISITS = 200_000_000
"""A path with more state changes is a slip of the pen (microsecond dwells over days), not a workload."""


@dataclass(frozen=True)
class RateChange:
    """From ``at_ns`` on, arrivals come ``factor`` times as fast as configured (not as before).

    ``model_index`` names the model it is for; ``None`` means all.
    """

    at_ns: int
    factor: float
    model_index: int | None = None

    def __post_init__(self) -> None:
        if self.at_ns < 0:
            raise TraceError(f"rate change: at_ns must be >= 0, got {self.at_ns}")
        if not (math.isfinite(self.factor) and self.factor >= 0):
            raise TraceError(f"rate change: factor must be a finite number >= 0, got {self.factor!r}")


class Rate(Protocol):
    """A rate over time, seen through its integral (the mass)."""

    def mass_at(self, time_ns: float) -> float:
        """Arrivals expected in [0, time_ns)."""
        ...

    def times_at(self, mass: Float64) -> Float64:
        """When each mass is reached, ns, shape as given; masses ascend."""
        ...


@dataclass(frozen=True)
class ConstantRate:
    """The same rate for ever, in arrivals per nanosecond."""

    per_ns: float

    def mass_at(self, time_ns: float) -> float:
        """Arrivals expected in [0, time_ns)."""
        return self.per_ns * time_ns

    def times_at(self, mass: Float64) -> Float64:
        """When each mass is reached, ns."""
        return mass / self.per_ns


@dataclass(frozen=True)
class SinusoidalRate:
    """mean * (1 + amplitude * sin(2 pi (t + phase) / period)), in arrivals per nanosecond."""

    mean_per_ns: float
    amplitude: float
    period_ns: float
    phase_ns: float

    def mass_at(self, time_ns: float) -> float:
        """Arrivals expected in [0, time_ns)."""
        start = 2.0 * math.pi * self.phase_ns / self.period_ns
        end = 2.0 * math.pi * (time_ns + self.phase_ns) / self.period_ns
        swing = self.amplitude * self.period_ns / (2.0 * math.pi)
        return self.mean_per_ns * (time_ns - swing * (math.cos(end) - math.cos(start)))

    def times_at(self, mass: Float64) -> Float64:
        """When each mass is reached, ns, to well below a nanosecond.

        With theta the angle of the sine, the mass is theta - amplitude * cos(theta) up to scale and shift:
        Kepler's equation with a cosine. Solved inside one turn, from a table, by Newton steps that a bracket
        keeps honest (at amplitude 1 the rate touches zero, where plain Newton would leave).
        """
        turn = 2.0 * math.pi
        start = turn * self.phase_ns / self.period_ns
        scale = turn / (self.period_ns * self.mean_per_ns)
        wanted = mass * scale + (start - self.amplitude * math.cos(start))
        turns = np.floor((wanted + self.amplitude) / turn)
        angle = _solve_angle(wanted - turns * turn, self.amplitude)
        return turns * self.period_ns + (angle - start) * (self.period_ns / turn)


def _solve_angle(wanted: Float64, amplitude: float) -> Float64:
    """Solves angle - amplitude * cos(angle) = wanted for angles within [0, 2 pi]."""
    grid = np.linspace(0.0, 2.0 * math.pi, 2049)
    values = grid - amplitude * np.cos(grid)
    cell = np.clip(np.searchsorted(values, wanted, side="right") - 1, 0, len(grid) - 2)
    low, high = grid[cell], grid[cell + 1]
    angle = low + (high - low) * np.clip((wanted - values[cell]) / (values[cell + 1] - values[cell]), 0.0, 1.0)
    active = np.arange(len(wanted))
    for _ in range(64):
        guess = angle[active]
        excess = guess - amplitude * np.cos(guess) - wanted[active]
        low[active] = np.where(excess <= 0, guess, low[active])
        high[active] = np.where(excess >= 0, guess, high[active])
        slope = np.maximum(1.0 + amplitude * np.sin(guess), 1e-300)
        newton = guess - excess / slope
        inside = (newton >= low[active]) & (newton <= high[active])
        better = np.where(inside, newton, 0.5 * (low[active] + high[active]))
        angle[active] = better
        active = active[np.abs(better - guess) > 4e-15]
        if len(active) == 0:
            break
    return angle


class StatePath:
    """One drawn path of a Markov-modulated rate: exponential dwells in states, each with its own rate.

    The path starts in equilibrium (the state at time 0 has probability proportional to its mean dwell, which
    is right because both orders visit all states equally often) and grows as far as it is asked about. It
    owns the generator it is given.

    Parameters
    ----------
    rates_per_ns, mean_dwells_ns : float64[s]
        Per state.
    cyclic : bool
        Next state is the next in the list; otherwise any other state with equal probability.
    rng : numpy.random.Generator
        Stream of the states, apart from that of the arrivals.
    """

    def __init__(
        self, rates_per_ns: Float64, mean_dwells_ns: Float64, *, cyclic: bool, rng: np.random.Generator
    ) -> None:
        self._state_rates = rates_per_ns
        self._dwells = mean_dwells_ns
        self._cyclic = cyclic
        self._rng = rng
        shares = np.cumsum(mean_dwells_ns)
        self._next_state = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        self._blocks_ns: list[Float64] = []
        self._blocks_mass: list[Float64] = []
        self._blocks_rate: list[Float64] = []
        self._end_ns = 0.0
        self._end_mass = 0.0
        self._visits = 0

    def mass_at(self, time_ns: float) -> float:
        """Arrivals expected in [0, time_ns), given this path."""
        while self._end_ns <= time_ns:
            self._grow()
        starts, masses, rates = self._knots()
        segment = int(np.searchsorted(starts, time_ns, side="right")) - 1
        return float(masses[segment] + (time_ns - starts[segment]) * rates[segment])

    def times_at(self, mass: Float64) -> Float64:
        """When each mass is reached, ns, given this path."""
        if len(mass) == 0:
            return np.empty(0)
        while self._end_mass <= mass[-1]:
            self._grow()
        starts, masses, rates = self._knots()
        # From the right: a stretch of rate 0 has no mass, so no point falls into it.
        segment = np.searchsorted(masses, mass, side="right") - 1
        times: Float64 = starts[segment] + (mass - masses[segment]) / rates[segment]
        return times

    def _grow(self) -> None:
        if self._visits >= _MAX_VISITS:
            raise TraceError(
                f"arrivals: more than {_MAX_VISITS} state changes before the end of the trace; "
                f"give the states longer dwells or the trace a shorter run"
            )
        count = len(self._dwells)
        dwell_draws = self._rng.standard_exponential(_VISITS_PER_BLOCK)
        steps = np.ones(_VISITS_PER_BLOCK, dtype=np.int64)
        if not self._cyclic:
            steps = self._rng.integers(1, count, size=_VISITS_PER_BLOCK)
        reached = (self._next_state + np.cumsum(steps)) % count
        states = np.concatenate(([self._next_state], reached[:-1]))
        self._next_state = int(reached[-1])
        dwells = dwell_draws * self._dwells[states]
        rates = self._state_rates[states]
        ends_ns = self._end_ns + np.cumsum(dwells)
        ends_mass = self._end_mass + np.cumsum(dwells * rates)
        self._blocks_ns.append(np.concatenate(([self._end_ns], ends_ns[:-1])))
        self._blocks_mass.append(np.concatenate(([self._end_mass], ends_mass[:-1])))
        self._blocks_rate.append(rates)
        self._end_ns, self._end_mass = float(ends_ns[-1]), float(ends_mass[-1])
        self._visits += _VISITS_PER_BLOCK

    def _knots(self) -> tuple[Float64, Float64, Float64]:
        if len(self._blocks_ns) > 1:
            self._blocks_ns = [np.concatenate(self._blocks_ns)]
            self._blocks_mass = [np.concatenate(self._blocks_mass)]
            self._blocks_rate = [np.concatenate(self._blocks_rate)]
        return self._blocks_ns[0], self._blocks_mass[0], self._blocks_rate[0]


class ChangedRate:
    """A rate multiplied by a factor that changes at given moments.

    A modulated process keeps its own clock: a factor speeds its arrivals up, not its states.

    Parameters
    ----------
    rate : Rate
        As configured.
    changes : sequence of RateChange
        In any order; of two at the same moment the later in the list counts.
    """

    def __init__(self, rate: Rate, changes: Sequence[RateChange]) -> None:
        factor_from = {0: 1.0}
        for change in sorted(changes, key=lambda change: change.at_ns):
            factor_from[change.at_ns] = change.factor
        self._rate = rate
        self._starts_ns = list(factor_from)
        self._factors = np.array(list(factor_from.values()))
        base = np.array([rate.mass_at(float(at)) for at in self._starts_ns])
        self._base = base
        self._masses = np.concatenate(([0.0], np.cumsum(np.diff(base) * self._factors[:-1])))

    def mass_at(self, time_ns: float) -> float:
        """Arrivals expected in [0, time_ns)."""
        segment = int(np.searchsorted(np.array(self._starts_ns), time_ns, side="right")) - 1
        grown = (self._rate.mass_at(time_ns) - self._base[segment]) * self._factors[segment]
        return float(self._masses[segment] + grown)

    def times_at(self, mass: Float64) -> Float64:
        """When each mass is reached, ns; masses must lie below ``total_mass``."""
        segment = np.searchsorted(self._masses, mass, side="right") - 1
        base = self._base[segment] + (mass - self._masses[segment]) / self._factors[segment]
        return self._rate.times_at(base)

    @property
    def total_mass(self) -> float:
        """Arrivals expected in all time: infinite unless the last factor is 0."""
        return float(self._masses[-1]) if self._factors[-1] == 0 else math.inf


def per_ns(rate_rps: float) -> float:
    """Requests per second as arrivals per nanosecond."""
    return rate_rps / NS_PER_S
