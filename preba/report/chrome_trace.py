"""A run as a Chrome/Perfetto trace: who worked on what when, and how long the queues were. Records in, JSON out.

Open the file in https://ui.perfetto.dev or chrome://tracing. Times are microseconds since the start of the run, with
nanoseconds behind the point.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from preba.errors import OutputError
from preba.records import RunResult
from preba.report.usage import QUEUES, distinct_names, first_of_batch, queue_intervals
from preba.units import NS_PER_US

__all__ = ["write_chrome_trace"]

PREPROCESSING_PID = 1
SLICES_PID = 2
QUEUES_PID = 3

EVENTS_PER_WRITE = 4096
"""Events turned into text at a time: few enough to fit the processor's cache."""

Event = dict[str, Any]


def write_chrome_trace(path: Path, result: RunResult, *, limit: int | None = None) -> None:
    """Writes a trace with a track per CPU core, DPU unit, link and slice, and a counter per queue.

    Parameters
    ----------
    path : Path
        Written in one step; compressed when it ends with ``.gz``.
    result : RunResult
    limit : int, optional
        Show the first so many requests only; the file says so.

    Raises
    ------
    OutputError
        The file cannot be written; nothing is left behind.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as raw:
            if path.suffix == ".gz":
                # No name and no date in the header: the same run gives the same bytes.
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                    _write(packed, result, limit)
            else:
                _write(raw, result, limit)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"--trace {path}: cannot be written: {error.strerror or error}") from error


def _write(file: IO[bytes] | gzip.GzipFile, result: RunResult, limit: int | None) -> None:
    shown = len(result.records) if limit is None else min(limit, len(result.records))
    about = {"engine": result.engine, "requests": len(result.records), "requests_shown": shown}
    file.write(b'{"displayTimeUnit":"ms","otherData":' + json.dumps(about).encode() + b',"traceEvents":[\n')
    encode = json.JSONEncoder(separators=(",", ":")).encode
    separator = ""
    events = _events(result, shown)
    while some := list(itertools.islice(events, EVENTS_PER_WRITE)):
        file.write((separator + ",\n".join(map(encode, some))).encode())
        separator = ",\n"
    file.write(b"\n]}\n")


def _events(result: RunResult, shown: int) -> Iterator[Event]:
    yield from _names(result)
    yield from _station_events(result, shown)
    yield from _slice_events(result, shown)
    yield from _outage_events(result)
    yield from _queue_events(result, shown)


def _us(time_ns: int) -> float:
    return time_ns / NS_PER_US


def _meta(what: str, pid: int, tid: int, **values: object) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": values}


def _names(result: RunResult) -> Iterator[Event]:
    processes = ((PREPROCESSING_PID, "preprocessing"), (SLICES_PID, "slices"), (QUEUES_PID, "queues"))
    for pid, name in processes:
        yield _meta("process_name", pid, 0, name=name)
        yield _meta("process_sort_index", pid, 0, sort_index=pid)
    for station_index, station in enumerate(result.stations):
        for unit in range(station.units):
            tid = _unit_tid(result, station_index, unit)
            yield _meta("thread_name", PREPROCESSING_PID, tid, name=f"{station.name} {unit}")
            yield _meta("thread_sort_index", PREPROCESSING_PID, tid, sort_index=tid)
    for index, name in enumerate(distinct_names([unit.name for unit in result.slices])):
        yield _meta("thread_name", SLICES_PID, index + 1, name=name)
        yield _meta("thread_sort_index", SLICES_PID, index + 1, sort_index=index + 1)


def _unit_tid(result: RunResult, station_index: int, unit: int) -> int:
    return 1 + sum(station.units for station in result.stations[:station_index]) + unit


def _station_events(result: RunResult, shown: int) -> Iterator[Event]:
    """One box per visit; the visits that a unit serves as one batch are one box."""
    spans = result.spans
    rows = np.flatnonzero(spans.request_id < shown)
    order = rows[np.lexsort((spans.request_id[rows], spans.unit_index[rows], spans.start_ns[rows]))]
    before: tuple[int, int, int] | None = None
    held: Event | None = None
    columns = (spans.station_index, spans.unit_index, spans.start_ns, spans.released_ns, spans.arrived_ns)
    values = zip(*(column[order].tolist() for column in (*columns, spans.request_id)), strict=True)
    first_tid = [_unit_tid(result, index, 0) for index in range(len(result.stations))]
    for station, unit, start, released, arrived, request in values:
        if held is not None and before == (station, unit, start):
            held["args"]["requests"].append(request)
            held["name"] = f"batch of {len(held['args']['requests'])}"
            continue
        if held is not None:
            yield held
        before = (station, unit, start)
        held = {
            "ph": "X",
            "name": f"request {request}",
            "cat": result.stations[station].kind,
            "pid": PREPROCESSING_PID,
            "tid": first_tid[station] + unit,
            "ts": _us(start),
            "dur": _us(released - start),
            "args": {"requests": [request], "waited_us": _us(start - arrived)},
        }
    if held is not None:
        yield held


def _slice_events(result: RunResult, shown: int) -> Iterator[Event]:
    """One box per batch, and inside it one for the preprocessing done on the slice."""
    records = result.records.select(np.arange(shown))
    members = np.argsort(records.batch_id, kind="stable")
    members = members[records.batch_id[members] >= 0]
    first = first_of_batch(records)
    starts = np.searchsorted(records.batch_id[members], records.batch_id[first])
    ends = np.append(starts, len(members))[1:]
    for row, begin, end in zip(first.tolist(), starts.tolist(), ends.tolist(), strict=True):
        start = int(records.execution_start_ns[row])
        model = result.models[int(records.model_index[row])]
        box = {"ph": "X", "cat": "execution", "pid": SLICES_PID, "tid": int(records.slice_index[row]) + 1}
        arguments = {
            "batch_id": int(records.batch_id[row]),
            "batch_size": int(records.batch_size[row]),
            "batch_units": int(records.batch_units[row]),
            "waited_for_slice_us": _us(start - int(records.dispatched_ns[row])),
            "requests": records.request_id[members[begin:end]].tolist(),
        }
        name = f"{model} x {int(records.batch_size[row])}"
        duration = _us(int(records.execution_end_ns[row]) - start)
        yield {**box, "name": name, "ts": _us(start), "dur": duration, "args": arguments}
        preprocess_ns = int(records.slice_preprocess_ns[row])
        if preprocess_ns:
            yield {**box, "name": "preprocessing", "ts": _us(start), "dur": _us(preprocess_ns), "args": {}}


def _outage_events(result: RunResult) -> Iterator[Event]:
    for slice_index, begin, end in result.outages:
        box = {
            "ph": "X",
            "cat": "outage",
            "name": "out of service",
            "pid": SLICES_PID,
            "tid": slice_index + 1,
        }
        yield {**box, "ts": _us(begin), "dur": _us(end - begin), "args": {}}


def _queue_events(result: RunResult, shown: int) -> Iterator[Event]:
    """One counter per queue, with a point wherever its length changes."""
    until_ns = int(result.records.completed_ns[:shown].max()) if shown else 0
    intervals = queue_intervals(result)
    for name in QUEUES:
        times = np.concatenate((intervals[name].from_ns, intervals[name].to_ns))
        steps = np.repeat((1, -1), len(intervals[name]))
        moments, place = np.unique(times, return_inverse=True)
        depth = np.cumsum(np.bincount(place, weights=steps, minlength=len(moments))).astype(np.int64)
        for moment, length in zip(moments.tolist(), depth.tolist(), strict=True):
            if moment <= until_ns:
                yield {
                    "ph": "C",
                    "name": name,
                    "pid": QUEUES_PID,
                    "tid": 0,
                    "ts": _us(moment),
                    "args": {"requests": length},
                }
