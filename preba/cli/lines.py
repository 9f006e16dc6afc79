"""Means, lines and spreads of measured times, without the moments at which the machine stood still."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from preba.jitter import EmpiricalJitter, JitterConfig

__all__ = [
    "PAIRS_MIN", "Array", "Line", "line_by_size", "relative", "shifted", "spread_of", "steady_mean", "trimmed_mean",
    "without_stalls",
]  # fmt: skip

Array = NDArray[np.float64]

GAPS_MIN = 10
STALL, STALL_MIN = 10.0, 2.0
"""Stalls of the machine are further above the median than so many times the way to the 90th percentile, and above so
many medians."""
GAP_CUT = 0.05
SPREAD_MIN = 60
QUANTILES = 100
PAIRS_MIN = 100


@dataclass(frozen=True)
class Line:
    """A time that grows with the requests of a batch, ``fixed_us + per_request_us * batch``, from so many values."""

    fixed_us: float
    per_request_us: float
    values: int

    def of(self, batch: int) -> int:
        """The time for one batch, in nanoseconds."""
        return round(1e3 * (self.fixed_us + self.per_request_us * batch))


def without_stalls(values: Sequence[float] | Array) -> Array:
    """The values without those that a machine that stood still for a moment adds."""
    found = np.asarray(values, dtype=np.float64)
    middle, high = np.percentile(found, [50, 90])
    kept: Array = found[found <= max(middle + STALL * (high - middle), STALL_MIN * middle)]
    return kept


def steady_mean(values: Sequence[float] | Array) -> float:
    """The mean without stalls of the machine."""
    return float(without_stalls(values).mean())


def trimmed_mean(values: Sequence[float] | Array) -> float:
    """The mean without the outer twentieths."""
    return float(trim_mean(values, GAP_CUT))


def line_by_size(found: Mapping[int, list[float]], mean: Callable[[list[float]], float] = steady_mean) -> Line:
    """A line through the means of each batch size, in microseconds."""
    enough = {size: values for size, values in found.items() if len(values) >= GAPS_MIN}
    if not enough:
        return Line(0.0, 0.0, 0)
    count = sum(len(values) for values in enough.values())
    sizes, means = np.array(list(enough)), np.array([mean(values) for values in enough.values()])
    if len(enough) == 1:
        return Line(max(float(means[0]), 0.0), 0.0, count)
    weights = np.sqrt([len(values) for values in enough.values()])
    slope, fixed = (float(value) for value in np.polyfit(sizes, means, 1, w=weights))
    if slope < 0:
        slope, fixed = 0.0, float(np.average(means, weights=weights**2))
    elif fixed < 0:
        heavy = weights**2
        slope, fixed = float(np.average(means * sizes, weights=heavy) / np.average(sizes**2, weights=heavy)), 0.0
    return Line(max(fixed, 0.0), max(slope, 0.0), count)


def relative(found: Mapping[int, Sequence[float]], line: Line) -> list[float]:
    """Values by batch size, each divided by what the line says of it."""
    return [1e3 * value / max(line.of(size), 1) for size, values in found.items() for value in values]


def shifted(
    line: Line, found: Mapping[int, Sequence[float]], mean: Callable[[list[float]], float] = trimmed_mean
) -> Line:
    """The line moved to the mean of other values, if there are enough."""
    values = [gap - line.per_request_us * size for size, gaps in found.items() for gap in gaps]
    if len(values) < PAIRS_MIN:
        return line
    return Line(max(mean(values), 0.0), line.per_request_us, len(values))


def spread_of(factors: Sequence[float] | Array) -> JitterConfig | None:
    """How values vary about what is expected of them: their quantiles, without moments when the machine stood still.

    Parameters
    ----------
    factors : float64[n]
        Each value divided by the expected one.
    """
    found = np.maximum(np.asarray(factors, dtype=np.float64), 0.0)
    if len(found) < SPREAD_MIN:
        return None
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    quantiles = np.quantile(without_stalls(found), levels)
    if quantiles.max() <= 0:
        return None
    return EmpiricalJitter(kind="empirical", factors=tuple(round(float(value), 4) for value in quantiles))
