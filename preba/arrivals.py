"""Drawing when requests come: unit-rate points of each kind's own process, pushed through a time warp.

Gaps are never cut or clipped, so mean rate and variability are exact. The configurations are in
``preba.arrival_kinds`` (and importable from here), the warps in ``preba.rates``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preba.arrival_kinds import (
    ArrivalsConfig,
    ClosedLoopArrivals,
    DeterministicArrivals,
    DiurnalArrivals,
    GammaArrivals,
    MmppArrivals,
    MmppState,
    OnOffArrivals,
    PoissonArrivals,
    ReplayArrivals,
)
from preba.errors import TraceError, UnsupportedError
from preba.rates import (
    ChangedRate,
    ConstantRate,
    Float64,
    Rate,
    RateChange,
    SinusoidalRate,
    StatePath,
    per_ns,
)
from preba.units import NS_PER_S, ns_from_s

__all__ = [
    "REQUESTS_MAX",
    "ArrivalStream",
    "ArrivalsConfig",
    "ClosedLoopArrivals",
    "DeterministicArrivals",
    "DiurnalArrivals",
    "GammaArrivals",
    "Horizon",
    "MmppArrivals",
    "MmppState",
    "OnOffArrivals",
    "PoissonArrivals",
    "RateChange",
    "ReplayArrivals",
    "draw_arrivals",
    "draw_available",
]

Int64 = NDArray[np.int64]

REQUESTS_MAX = 100_000_000
"""Most requests one trace may hold (about 9 GB of columns); more is taken for a slip of the pen."""

_LATEST_NS = float(1 << 62)


@dataclass(frozen=True)
class Horizon:
    """How long a trace is: exactly one of a number of requests and a duration.

    With a duration, all arrivals at ``0 <= t < duration_ns`` belong to the trace.
    """

    requests: int | None = None
    duration_ns: int | None = None

    def __post_init__(self) -> None:
        if (self.requests is None) == (self.duration_ns is None):
            raise TraceError("horizon: give exactly one of requests and duration_ns")
        extent = self.requests if self.requests is not None else self.duration_ns
        if extent is None or extent < 1:
            raise TraceError(f"horizon: must be >= 1, got {extent}")
        if self.requests is not None and self.requests > REQUESTS_MAX:
            raise TraceError(f"horizon.requests: must be <= {REQUESTS_MAX}, got {self.requests}")


def draw_arrivals(
    config: ArrivalsConfig,
    *,
    rng: np.random.Generator,
    horizon: Horizon,
    rate_changes: Sequence[RateChange] = (),
    state_rng: np.random.Generator | None = None,
) -> Int64:
    """Draws when requests are scheduled.

    Renewal processes (gamma, deterministic) start with a full first gap after time 0. A longer horizon only
    adds arrivals behind those of a shorter one.

    Parameters
    ----------
    config : ArrivalsConfig
    rng : numpy.random.Generator
        Stream of the gaps.
    horizon : Horizon
    rate_changes : sequence of RateChange
        Composes with every open-loop kind; ``model_index`` is not looked at here.
    state_rng : numpy.random.Generator, optional
        Stream of the states; needed by ``mmpp`` and ``onoff``.

    Returns
    -------
    int64[n]
        Scheduled times in ns, ascending. All zero for a closed loop, whose times only playing it decides.

    Raises
    ------
    TraceError
        The process cannot yield the horizon asked for (a recording too short, a rate gone to 0 for good, a
        closed loop with a duration), or a closed loop is given rate changes.
    """
    times = draw_available(config, rng=rng, horizon=horizon, rate_changes=rate_changes, state_rng=state_rng)
    if horizon.requests is not None and len(times) < horizon.requests:
        if isinstance(config, ReplayArrivals):
            way_out = f"{config.file} holds no more; set loop: true or ask for fewer"
        else:
            way_out = "a rate change to factor 0 is never taken back"
        raise TraceError(f"arrivals: {horizon.requests} requests asked, only {len(times)} come: {way_out}")
    return times


def draw_available(
    config: ArrivalsConfig,
    *,
    rng: np.random.Generator,
    horizon: Horizon,
    rate_changes: Sequence[RateChange] = (),
    state_rng: np.random.Generator | None = None,
) -> Int64:
    """Draws as ``draw_arrivals`` does, but returns what there is where a request count cannot be reached."""
    if isinstance(config, ClosedLoopArrivals):
        return _closed_loop(horizon, rate_changes)
    rate = ChangedRate(_rate_of(config, state_rng), rate_changes)
    if horizon.duration_ns is not None:
        points = _points(config, rng, mass=rate.mass_at(float(horizon.duration_ns)), count=None)
        times = _integer_ns(rate.times_at(points))
        return times[times < horizon.duration_ns]
    points = _points(config, rng, mass=rate.total_mass, count=horizon.requests)
    return _integer_ns(rate.times_at(points))


class ArrivalStream:
    """The same times as ``draw_arrivals`` gives, so many at a time, for runs that no memory could hold.

    Parameters
    ----------
    config : ArrivalsConfig
        Not a closed loop, which has no times, nor a recording, which fits memory anyway.
    rng, state_rng : numpy.random.Generator
        Streams of the gaps and of the states.
    rate_changes : sequence of RateChange

    Raises
    ------
    UnsupportedError
        The arrivals are a closed loop's or recorded.
    """

    def __init__(
        self,
        config: ArrivalsConfig,
        *,
        rng: np.random.Generator,
        state_rng: np.random.Generator,
        rate_changes: Sequence[RateChange] = (),
    ) -> None:
        if isinstance(config, ClosedLoopArrivals | ReplayArrivals):
            raise UnsupportedError(
                f"arrivals.kind {config.kind}: cannot be streamed; leave --stream out, its requests fit memory"
            )
        self._rate = ChangedRate(_rate_of(config, state_rng), rate_changes)
        self._even = isinstance(config, DeterministicArrivals)
        self._gaps = _gaps(config, rng)
        self._reached = 0.0
        self._ended = False

    def draw(self, count: int) -> Int64:
        """The next ``count`` times in ns; fewer, or none, once the rate has gone to 0 for good."""
        if self._ended:
            return np.empty(0, dtype=np.int64)
        if self._even:
            points = self._reached + np.arange(1, count + 1, dtype=np.float64)
        else:
            points = self._gaps(count)
            # Added to the first gap, not to the sums: the rounding is then that of one long sum.
            points[0] += self._reached
            np.cumsum(points, out=points)
        self._reached = float(points[-1])
        mass = self._rate.total_mass
        if self._reached >= mass:
            self._ended = True
            points = points[points < mass]
        return _integer_ns(self._rate.times_at(points))


def _gaps(config: ArrivalsConfig, rng: np.random.Generator) -> Callable[[int], Float64]:
    """Draws gaps of the unit-rate process."""
    if isinstance(config, GammaArrivals):
        shape = 1.0 / config.cv**2
        return lambda size: rng.standard_gamma(shape, size) / shape
    return rng.standard_exponential


def _closed_loop(horizon: Horizon, rate_changes: Sequence[RateChange]) -> Int64:
    if rate_changes:
        raise TraceError("arrivals.kind closed_loop: a rate change has no rate to act on; use an open-loop kind")
    if horizon.requests is None:
        raise TraceError(
            "arrivals.kind closed_loop: a duration does not say how many requests to draw; give run.requests"
        )
    return np.zeros(horizon.requests, dtype=np.int64)


def _rate_of(config: ArrivalsConfig, state_rng: np.random.Generator | None) -> Rate:
    """The rate whose integral turns this process's unit-rate points into times."""
    if isinstance(config, OnOffArrivals):
        config = config.as_mmpp()
    if isinstance(config, MmppArrivals):
        if state_rng is None:
            raise ValueError("draw_arrivals: an mmpp or onoff process needs state_rng")
        rates = np.array([per_ns(state.rate_rps) for state in config.states])
        dwells = np.array([state.mean_dwell_s * NS_PER_S for state in config.states])
        return StatePath(rates, dwells, cyclic=config.next_state == "cyclic", rng=state_rng)
    if isinstance(config, DiurnalArrivals):
        return SinusoidalRate(
            mean_per_ns=per_ns(config.mean_rps),
            amplitude=config.amplitude,
            period_ns=float(ns_from_s(config.period_s)),
            phase_ns=float(ns_from_s(config.phase_s)),
        )
    if isinstance(config, ReplayArrivals):
        return ConstantRate(1.0)  # a recording's points are its own times
    if isinstance(config, ClosedLoopArrivals):
        raise ValueError("a closed loop has no rate")
    return ConstantRate(per_ns(config.rate_rps))


def _points(config: ArrivalsConfig, rng: np.random.Generator, *, mass: float, count: int | None) -> Float64:
    """The first ``count`` points of the unit-rate process below ``mass``, or all of them without a count."""
    if isinstance(config, ReplayArrivals):
        return _recorded_points(config, mass=mass, count=count)
    if count is None and mass > REQUESTS_MAX:
        raise TraceError(
            f"arrivals: about {mass:.3g} requests would arrive within the duration; at most {REQUESTS_MAX} fit a trace"
        )
    if isinstance(config, DeterministicArrivals):
        numbers = count if count is not None and count < mass else math.ceil(mass)
        points = np.arange(1, numbers + 1, dtype=np.float64)
        return points[points < mass]
    gaps = _gaps(config, rng)
    spread = config.cv if isinstance(config, GammaArrivals) else 1.0
    if count is not None:
        points = np.cumsum(gaps(count))
        return points if mass == math.inf else points[points < mass]
    return _points_below(mass, gaps, spread)


def _points_below(mass: float, gaps: Callable[[int], Float64], spread: float) -> Float64:
    """All points of a renewal process below ``mass``; drawn in blocks, the same points for any blocks."""
    blocks: list[Float64] = []
    reached = 0.0
    while reached < mass:
        missing = mass - reached
        block = gaps(int(missing + 4.0 * max(spread, 1.0) * math.sqrt(missing)) + 64)
        # Added to the first gap, not to the sums: the rounding is then that of one long sum.
        block[0] += reached
        np.cumsum(block, out=block)
        blocks.append(block)
        reached = float(block[-1])
    points = np.concatenate(blocks) if blocks else np.empty(0)
    return points[points < mass]


def _recorded_points(config: ReplayArrivals, *, mass: float, count: int | None) -> Float64:
    recording = config.read()
    loops = recording.repeats if config.loop is None else config.loop
    times = recording.times_ns
    if loops:
        if count is None:
            rounds = math.ceil(mass * config.rate_scale / recording.period_ns)
        else:
            rounds = math.ceil(count / len(times))
        if rounds * len(times) > REQUESTS_MAX + len(times):
            raise TraceError(f"{config.file}: looped to {rounds * len(times)} requests; at most {REQUESTS_MAX} fit")
        starts = np.arange(rounds, dtype=np.int64) * recording.period_ns
        times = (starts[:, None] + times[None, :]).ravel()
    points: Float64 = times[:count] / config.rate_scale
    return points[points < mass]


def _integer_ns(times: Float64) -> Int64:
    if len(times) and not times[-1] < _LATEST_NS:
        raise TraceError(
            f"arrivals: the last request would come {times[-1] / NS_PER_S:.3g} s after the start, "
            f"beyond what 64-bit nanoseconds hold; raise the rate or ask for fewer requests"
        )
    return np.rint(times).astype(np.int64)
