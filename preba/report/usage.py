"""How busy units were and how long queues were, from intervals: exact integrals over time. No percentiles here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preba.records import Records, RunResult, as_slice, ascending

__all__ = [
    "QUEUES",
    "Intervals",
    "disjoint",
    "distinct_names",
    "first_of_batch",
    "integral_ns",
    "outage_intervals",
    "queue_intervals",
    "slice_busy",
    "station_busy",
    "work_units",
]

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

QUEUES = ("preprocessing", "batcher", "formed")
"""Waiting for preprocessing units; in a batcher; in a complete batch that waits for its slice."""


DENSE = 4
"""Batch ids may be this many times as many as requests before a table of them costs more than sorting."""


@dataclass(frozen=True)
class Intervals:
    """Half-open spans of time [from_ns, to_ns), int64[k] each; they may overlap."""

    from_ns: Int64
    to_ns: Int64

    def __len__(self) -> int:
        return len(self.from_ns)


def integral_ns(intervals: Intervals, edges_ns: Int64) -> Float64:
    """How much interval time lies between neighbouring edges.

    Parameters
    ----------
    intervals : Intervals
    edges_ns : int64[b + 1]
        Ascending.

    Returns
    -------
    float64[b]
        Nanoseconds per bin, overlapping intervals counted once each; divided by the bin's width this is the
        mean number of intervals open in it.
    """
    elapsed = _elapsed(intervals.from_ns, edges_ns) - _elapsed(intervals.to_ns, edges_ns)
    # Cancellation leaves rounding of either sign where nothing was open.
    found: Float64 = np.maximum(np.diff(elapsed), 0.0)
    return found


def _elapsed(times_ns: Int64, edges_ns: Int64) -> Float64:
    """For each edge t, the sum of ``t - x`` over all times x before it."""
    # Relative to the first edge, the sums stay small enough for doubles to keep single nanoseconds.
    times, edges = times_ns - edges_ns[0], edges_ns - edges_ns[0]
    if not ascending(times):
        times.sort()
    before = np.searchsorted(times, edges, side="left")
    sums = np.zeros(int(before[-1]) + 1)
    np.cumsum(times[: before[-1]], dtype=np.float64, out=sums[1:])
    found: Float64 = edges * before.astype(np.float64) - sums[before]
    return found


def disjoint(intervals: Intervals) -> Intervals:
    """The same covered time without overlaps: each interval starts where the earlier ones have ended."""
    begin, end = intervals.from_ns, intervals.to_ns
    if len(begin) == 0:
        return intervals
    if bool(np.all(begin[1:] >= end[:-1])) and bool(np.all(end > begin)):
        return intervals
    order = np.lexsort((end, begin))
    begin, end = begin[order], end[order]
    covered = np.concatenate((begin[:1], np.maximum.accumulate(end)[:-1]))
    begin = np.maximum(begin, covered)
    some = end > begin
    return Intervals(begin[some], end[some])


def work_units(result: RunResult, station_index: int) -> list[Intervals]:
    """When each unit of a preprocessing station was taken, without overlaps.

    Requests of one batch share their unit's time, and a pipelined unit is free again before its request leaves.
    """
    spans, units = result.spans, result.stations[station_index].units
    mine = np.flatnonzero(spans.station_index == station_index)
    if units == 1:
        return [disjoint(Intervals(spans.start_ns[mine], spans.released_ns[mine]))]
    unit = spans.unit_index[mine]
    # NumPy sorts numbers of 8 or 16 bits in one or two passes; one mask per unit would be a pass for each.
    mine = mine[np.argsort(unit.astype(np.min_scalar_type(units)), kind="stable")]
    ends = np.cumsum(np.bincount(unit, minlength=units)).tolist()
    start, released = spans.start_ns[mine], spans.released_ns[mine]
    return [
        disjoint(Intervals(start[begin:end], released[begin:end]))
        for begin, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def station_busy(result: RunResult, station_index: int, edges_ns: Int64) -> Float64:
    """Mean share of a station's units taken in each bin, float64[b] within 0..1."""
    units = work_units(result, station_index)
    total = sum((integral_ns(unit, edges_ns) for unit in units), np.zeros(len(edges_ns) - 1))
    found: Float64 = np.minimum(total / (len(units) * np.diff(edges_ns)), 1.0)
    return found


def first_of_batch(records: Records) -> NDArray[np.intp]:
    """One row for each batch that was executed, in order of batch id."""
    rows = np.flatnonzero(records.batch_id >= 0)
    if len(rows) == 0:
        return rows
    batch_id = records.batch_id[as_slice(rows)]
    lowest = int(batch_id.min())
    count = int(batch_id.max()) - lowest + 1
    if count > DENSE * len(rows):
        return rows[np.unique(batch_id, return_index=True)[1]]
    # Ids count up, so a table of them is small; written backwards, each batch's first row is what stays.
    first = np.full(count, -1, dtype=np.intp)
    first[batch_id[::-1] - lowest] = rows[::-1]
    return first[first >= 0]


def slice_busy(result: RunResult, edges_ns: Int64) -> Float64:
    """Time in which each slice executes or preprocesses.

    Parameters
    ----------
    result : RunResult
    edges_ns : int64[b + 1]

    Returns
    -------
    float64[slices, b]
        Nanoseconds. A slice given to DALI is busy when its unit of the ``dali`` station is; the k-th such slice
        is the station's unit k.
    """
    records = result.records
    rows = first_of_batch(records)
    rows = rows[np.argsort(records.slice_index[rows], kind="stable")]
    ends = np.searchsorted(records.slice_index[rows], np.arange(len(result.slices) + 1)).tolist()
    busy = np.zeros((len(result.slices), len(edges_ns) - 1))
    for index in range(len(result.slices)):
        mine = rows[ends[index] : ends[index + 1]]
        runs = Intervals(records.execution_start_ns[mine], records.execution_end_ns[mine])
        busy[index] = integral_ns(disjoint(runs), edges_ns)
    own = [index for index, unit in enumerate(result.slices) if unit.role == "preprocessing"]
    for position, station in enumerate(result.stations):
        if station.kind == "dali":
            for index, unit in zip(own, work_units(result, position), strict=False):
                busy[index] += integral_ns(unit, edges_ns)
    return busy


def outage_intervals(result: RunResult, slice_index: int) -> Intervals:
    """When a slice was out of service."""
    mine = [(begin, end) for index, begin, end in result.outages if index == slice_index]
    table = np.array(mine, dtype=np.int64).reshape(-1, 2)
    return disjoint(Intervals(table[:, 0], table[:, 1]))


def queue_intervals(result: RunResult) -> dict[str, Intervals]:
    """When each request waited in which queue, one interval per stay.

    Returns
    -------
    dict of str to Intervals
        Keys are ``QUEUES``. A request that was refused, or is waiting still, waited until its refusal or the end.
    """
    records = result.records
    left_ns = _else(records.completed_ns, result.end_ns)
    return {
        "preprocessing": _preprocessing_queue(result),
        "batcher": _kept(records.enqueued_ns, _else(records.dispatched_ns, left_ns), records.enqueued_ns >= 0),
        "formed": _kept(records.dispatched_ns, _else(records.execution_start_ns, left_ns), records.dispatched_ns >= 0),
    }


def _else(times_ns: Int64, other_ns: Int64 | int) -> Int64:
    """The times, and the other ones where something never happened."""
    happened = times_ns >= 0
    return times_ns if bool(happened.all()) else np.where(happened, times_ns, other_ns)


def _preprocessing_queue(result: RunResult) -> Intervals:
    spans, records = result.spans, result.records
    if len(spans.request_id):
        counts = np.zeros(len(spans.station_index), dtype=bool)
        for index, station in enumerate(result.stations):
            if station.kind != "hop":
                counts |= spans.station_index == index
        return _kept(spans.arrived_ns, spans.start_ns, counts)
    # A log without spans still says when preprocessing began.
    return _kept(records.issued_ns, records.preprocess_start_ns, records.preprocess_start_ns >= 0)


def _kept(from_ns: Int64, to_ns: Int64, mask: NDArray[np.bool_]) -> Intervals:
    rows = as_slice(np.flatnonzero(mask & (to_ns > from_ns)))
    return Intervals(from_ns[rows], to_ns[rows])


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, with a counter behind those that occur again."""
    seen: dict[str, int] = {}
    found: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return found
