"""What the plots draw, as short arrays: binned time series and thinned distributions. No drawing here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preba.records import RunResult
from preba.report.usage import (
    Intervals,
    distinct_names,
    integral_ns,
    outage_intervals,
    queue_intervals,
    slice_busy,
    station_busy,
)
from preba.units import NS_PER_MS, NS_PER_S

__all__ = ["BINS_MAX", "POINTS_MAX", "TimeSeries", "latency_curve", "time_series"]

Float64 = NDArray[np.float64]

BINS_MAX = 160
"""Bins of a time series; more would be narrower than a printed line."""

BINS_MIN = 20
REQUESTS_PER_BIN = 60
"""Fewer arrivals than this per bin would show single batches, not load."""

POINTS_MAX = 600
"""Points of a latency curve."""


@dataclass(frozen=True)
class TimeSeries:
    """Usage over the whole run, in bins of equal length.

    Attributes
    ----------
    edges_s : float64[b + 1]
    stations : dict of str to float64[b]
        Share of each station's units taken, 0..1.
    slices : dict of str to float64[b]
        Share of the time that each slice was available in which it was busy; NaN where it was out of service.
    queues : dict of str to float64[b]
        Mean number of waiting requests.
    """

    edges_s: Float64
    stations: dict[str, Float64]
    slices: dict[str, Float64]
    queues: dict[str, Float64]


def time_series(result: RunResult) -> TimeSeries:
    """Usage over the whole run, the warm-up and the draining of queues included."""
    count = min(BINS_MAX, max(BINS_MIN, len(result.records) // REQUESTS_PER_BIN))
    end_ns = max(result.end_ns, count)
    edges = np.array([end_ns * i // count for i in range(count + 1)], dtype=np.int64)
    width = np.diff(edges).astype(np.float64)
    busy = slice_busy(result, edges)
    slices: dict[str, Float64] = {}
    for index, name in enumerate(distinct_names([unit.name for unit in result.slices])):
        available = width - integral_ns(outage_intervals(result, index), edges)
        share = np.full(count, np.nan)
        # A bin of which a thousandth is left says nothing about how busy the slice was.
        some = available > 1e-3 * width
        share[some] = np.minimum(busy[index][some] / available[some], 1.0)
        slices[name] = share
    stations = distinct_names([station.name for station in result.stations])
    return TimeSeries(
        edges_s=edges / NS_PER_S,
        stations={name: station_busy(result, i, edges) for i, name in enumerate(stations)},
        slices=slices,
        queues={name: integral_ns(stays, edges) / width for name, stays in queue_intervals(result).items()},
    )


def latency_curve(latency_ns: NDArray[np.int64]) -> tuple[Float64, Float64]:
    """The empirical distribution of latencies with at most ``POINTS_MAX`` points, denser towards the tail.

    Parameters
    ----------
    latency_ns : int64[n]
        In any order.

    Returns
    -------
    latency_ms : float64[k]
        Ascending.
    share : float64[k]
        Share of requests at or below it.
    """
    n = len(latency_ns)
    ordered = np.sort(latency_ns)
    if n <= POINTS_MAX:
        ranks = np.arange(1, n + 1)
    else:
        body = np.linspace(1, n, POINTS_MAX // 2)
        tail = n + 1 - np.geomspace(1, n, POINTS_MAX // 2)
        ranks = np.unique(np.round(np.concatenate((body, tail))).astype(np.int64))
    return ordered[ranks - 1] / NS_PER_MS, ranks / n


def outage_spans_s(result: RunResult) -> list[tuple[float, float]]:
    """When at least one slice was out of service."""
    parts: list[Intervals] = [outage_intervals(result, index) for index in range(len(result.slices))]
    return sorted(
        (float(a) / NS_PER_S, float(b) / NS_PER_S)
        for part in parts
        for a, b in zip(part.from_ns.tolist(), part.to_ns.tolist(), strict=True)
    )
