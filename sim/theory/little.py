"""Little's law read off arrival and departure times: L by integrating over time, lambda and W by counting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preba.errors import ScenarioError, TraceError
from preba.units import NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class LittlesLaw:
    """Both sides of Little's law over a window, and what separates them.

    Attributes
    ----------
    number_mean : float
        L: number in system averaged over the window's time.
    rate_rps : float
        lambda: arrivals in the window per second.
    sojourn_mean_s : float
        W: mean sojourn of those that arrived in the window (0 when nobody did), seconds.
    edge_mean : float
        What the window's edges add to L: the time inside it of those that came before, less the time
        outside of those that left after, per unit of time. ``number_mean == rate_rps * sojourn_mean_s +
        edge_mean`` up to rounding; it is 0 for a window that begins and ends empty.
    """

    number_mean: float
    rate_rps: float
    sojourn_mean_s: float
    edge_mean: float

    @property
    def product(self) -> float:
        """The product lambda * W, to be compared with ``number_mean``."""
        return self.rate_rps * self.sojourn_mean_s


def littles_law(arrival_ns: npt.ArrayLike, departure_ns: npt.ArrayLike, *, start_ns: int, end_ns: int) -> LittlesLaw:
    """Both sides of Little's law from records.

    Parameters
    ----------
    arrival_ns, departure_ns : array_like of int, shape (n,)
        Times each request entered and left, nanoseconds, in any common order; arrivals at the window's end
        are out.
    start_ns, end_ns : int
        The window, nanoseconds.

    Returns
    -------
    LittlesLaw

    Raises
    ------
    ScenarioError
        The window is empty.
    TraceError
        The lengths differ, or a request departs before it arrives.
    """
    if end_ns <= start_ns:
        raise ScenarioError(f"start_ns, end_ns: must be a window of positive length, got [{start_ns}, {end_ns})")
    arrival = np.asarray(arrival_ns, dtype=np.int64)
    departure = np.asarray(departure_ns, dtype=np.int64)
    if arrival.shape != departure.shape or arrival.ndim != 1:
        raise TraceError(
            f"arrival_ns, departure_ns: must have one shape (n,), got {arrival.shape} and {departure.shape}"
        )
    if bool(np.any(departure < arrival)):
        i = int(np.argmax(departure < arrival))
        raise TraceError(f"departure_ns[{i}]: must be >= its arrival {arrival[i]}, got {departure[i]}")
    length = end_ns - start_ns
    # L is integrated as a step function of time, not summed over requests: else the law would be an identity.
    steps_ns = np.concatenate((arrival, departure))
    steps = np.concatenate((np.ones(arrival.size, dtype=np.int64), np.full(departure.size, -1, dtype=np.int64)))
    order = np.argsort(steps_ns, kind="stable")
    times = np.clip(steps_ns[order], start_ns, end_ns)
    number = np.cumsum(steps[order])
    area = int(np.sum(number * np.diff(np.append(times, end_ns))))
    inside = (arrival >= start_ns) & (arrival < end_ns)
    count = int(np.count_nonzero(inside))
    stay = int(np.sum(departure[inside] - arrival[inside]))
    before = np.clip(departure[arrival < start_ns], start_ns, end_ns) - start_ns
    after = np.maximum(departure[inside] - end_ns, 0)
    return LittlesLaw(
        number_mean=area / length,
        rate_rps=count * NS_PER_S / length,
        sojourn_mean_s=stay / count / NS_PER_S if count else 0.0,
        edge_mean=(int(before.sum()) - int(after.sum())) / length,
    )
