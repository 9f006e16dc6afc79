"""A histogram that counts any number of times in constant memory, with percentiles of known relative error.

Buckets follow the bits of a number: 1,024 to every doubling, so that a bucket is at most 1/1024 as wide as its values
are large, and its middle at most 1/2048 (0.05 %) from any of them; below 1,024 every number has a bucket of its own.

``bucket_of`` is written in the Numba subset: compiled engines count with it as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from preba.errors import ScenarioError, TraceError
from preba.statistics.estimates import CONFIDENCE, TAIL_EVENTS_PER_SECTION, VALUES_PER_SECTION, Estimate
from preba.statistics.student import student_t_quantile

__all__ = ["BUCKETS", "RELATIVE_ERROR", "bucket_of", "bucket_value", "histogram_mean", "histogram_quantiles"]

Int64 = NDArray[np.int64]

SUB_BUCKETS = 1024
OCTAVES = 42
"""Doublings beyond the first 1,024: up to 2**52 ns, 52 days; more is counted as that."""

BUCKETS = SUB_BUCKETS * (OCTAVES + 1)
RELATIVE_ERROR = 0.5 / SUB_BUCKETS
"""Largest relative error of a percentile."""


def bucket_of(value: int) -> int:
    """The bucket of a whole number >= 0."""
    octave = 0
    if (value >> 32) >= 1024:
        octave = 32
    if (value >> (octave + 16)) >= 1024:
        octave += 16
    if (value >> (octave + 8)) >= 1024:
        octave += 8
    if (value >> (octave + 4)) >= 1024:
        octave += 4
    if (value >> (octave + 2)) >= 1024:
        octave += 2
    if (value >> (octave + 1)) >= 1024:
        octave += 1
    if value < 1024:
        return value
    if octave >= 42:
        return 44_031  # BUCKETS - 1
    return (octave + 1) * 1024 + (value >> octave) - 1024


def bucket_value(bucket: int) -> float:
    """The middle of a bucket; the number itself below 2,048."""
    octave = bucket // SUB_BUCKETS - 1
    if octave < 1:
        return float(bucket)
    low = (bucket - octave * SUB_BUCKETS) << octave
    return low + 0.5 * ((1 << octave) - 1)


def histogram_quantiles(sections: Int64, qs: Sequence[float]) -> tuple[Estimate, ...]:
    """Percentiles of what was counted, with 95 % intervals from consecutive sections.

    Parameters
    ----------
    sections : int64[s, BUCKETS]
        Counts of each section of the run, in order of time.
    qs : sequence of float
        Levels, each strictly between 0 and 1.

    Returns
    -------
    tuple of Estimate
        Each within ``RELATIVE_ERROR`` of the smallest value that at least a share q does not exceed. The interval is
        that of the sections' percentiles; ``enough`` counts values, not their correlation, which a histogram forgets.

    Raises
    ------
    ScenarioError
        A level is out of range.
    TraceError
        There are fewer than two sections.
    """
    if len(sections) < 2:
        raise TraceError(f"sections: must be at least 2, got {len(sections)}")
    pooled = sections.sum(axis=0)
    count = int(pooled.sum())
    running = [np.cumsum(section) for section in sections]
    whole = np.cumsum(pooled)
    found: list[Estimate] = []
    for q in qs:
        if not 0.0 < q < 1.0:
            raise ScenarioError(f"q: must lie strictly between 0 and 1, got {q!r}")
        asked = math.ceil(TAIL_EVENTS_PER_SECTION * len(sections) / min(q, 1.0 - q) * (1.0 - 1e-12))
        if count == 0:
            found.append(Estimate(None, None, None, False, 0, asked))  # noqa: FBT003 - a field
            continue
        parts = [_quantile(sums, q) for sums in running if sums[-1] > 0]
        found.append(_with_interval(_quantile(whole, q), parts, count, asked, sections=len(sections)))
    return tuple(found)


def histogram_mean(totals: Int64, counts: Int64) -> Estimate:
    """Mean with its 95 % interval from exact sums and counts of each section, int64[s] both."""
    count = int(counts.sum())
    asked = math.ceil(VALUES_PER_SECTION * len(counts))
    if count == 0:
        return Estimate(None, None, None, False, 0, asked)  # noqa: FBT003 - a field
    parts = [int(total) / int(n) for total, n in zip(totals, counts, strict=True) if n > 0]
    value = sum(int(total) for total in totals) / count
    return _with_interval(value, parts, count, asked, sections=len(counts))


def _quantile(running: Int64, q: float) -> float:
    rank = max(0, math.ceil(q * int(running[-1]) * (1.0 - 1e-12)) - 1)
    return bucket_value(int(np.searchsorted(running, rank, side="right")))


def _with_interval(value: float, parts: Sequence[float], count: int, asked: int, *, sections: int) -> Estimate:
    if len(parts) < sections:
        return Estimate(value, None, None, False, count, asked)  # noqa: FBT003 - a field
    spread = float(np.std(np.array(parts), ddof=1))
    half = student_t_quantile(0.5 + 0.5 * CONFIDENCE, len(parts) - 1) * spread / math.sqrt(len(parts))
    return Estimate(
        value, value - half, value + half, count >= asked, count, min(asked, count) if count >= asked else asked
    )
