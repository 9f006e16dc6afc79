"""perf_analyzer's CSV report and profile-export JSON.

Source of both forms: triton-inference-server/perf_analyzer, its documentation of reports and of the profile export.
CSV times are microseconds; JSON time stamps are nanoseconds.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.batching.state import SERVED
from preba.errors import FormatError
from preba.foreign.measured import Measured
from preba.records import SLICE_STAMPS, Records, empty_columns
from preba.units import NS_PER_S

__all__ = ["export_records", "looks_like_csv", "looks_like_export", "read_csv", "read_export"]

LOADS = ("Concurrency", "Request Rate")
PERCENTILES = {"p50 latency": "p50", "p90 latency": "p90", "p95 latency": "p95", "p99 latency": "p99"}
STAGES = {"Server Queue": "batching", "Server Compute Input": "hop", "Server Compute Infer": "execution"}
PARTS = (
    "Client Send", "Network+Server Send/Recv", "Server Queue", "Server Compute Input", "Server Compute Infer",
    "Server Compute Output", "Client Recv",
)  # fmt: skip


def looks_like_csv(text: str) -> bool:
    """Whether a text begins as the CSV report does."""
    head = text.lstrip("\ufeff").partition("\n")[0]
    return head.startswith(LOADS) and "Inferences/Second" in head


def looks_like_export(data: object) -> bool:
    """Whether JSON data are a profile export."""
    return isinstance(data, Mapping) and isinstance(data.get("experiments"), list)


def read_csv(text: str, *, origin: str, load: float | None = None) -> Measured:
    """Read the row for one load.

    Parameters
    ----------
    text : str
    origin : str
        Name of the file.
    load : float, optional
        The scenario's concurrency or rate; needed where the file has several rows.

    Raises
    ------
    FormatError
        It is not such a file, has no such row, or a figure is no number.
    """
    rows = list(csv.DictReader(io.StringIO(text.lstrip("\ufeff"))))
    if not rows or not looks_like_csv(text):
        raise FormatError(f"{origin}: no perf_analyzer CSV: its header begins with Concurrency or Request Rate")
    column = next(name for name in LOADS if name in rows[0])
    chosen = rows
    if len(rows) > 1:
        chosen = [
            row for row in rows if load is not None and math.isclose(_number(row, column, origin), load, rel_tol=1e-6)
        ]
        if len(chosen) != 1:
            have = ", ".join(str(row[column]) for row in rows)
            raise FormatError(f"{origin}: has rows for {column} {have}; the scenario's load is {load}")
    elif load is not None and not math.isclose(_number(rows[0], column, origin), load, rel_tol=0.01):
        raise FormatError(f"{origin}: was measured at {column} {rows[0][column]}; the scenario's load is {load:g}")
    row = chosen[0]
    latency = {ours: _number(row, name, origin) / 1e3 for name, ours in PERCENTILES.items() if row.get(name)}
    if row.get("Avg latency"):
        latency["mean"] = _number(row, "Avg latency", origin) / 1e3
    elif all(row.get(name) for name in PARTS):
        latency["mean"] = sum(_number(row, name, origin) for name in PARTS) / 1e3
    stages: dict[str, float] = {}
    for name, ours in STAGES.items():
        if row.get(name):
            stages[ours] = stages.get(ours, 0.0) + _number(row, name, origin) / 1e3
    return Measured(
        source=f"perf_analyzer CSV {origin} ({column} {row[column]})",
        throughput_rps=_number(row, "Inferences/Second", origin),
        latency_ms=latency,
        stages_ms=stages,
    )


def _number(row: Mapping[str, str | None], name: str, origin: str) -> float:
    try:
        return float(row[name] or "")
    except (KeyError, ValueError):
        raise FormatError(f"{origin}: {name}: not a number: {row.get(name)!r}") from None


def read_export(data: Mapping[str, Any], *, origin: str, load: float | None = None) -> Measured:
    """Read one experiment of a profile export: every request's latency, from its time stamp to its last response.

    Raises
    ------
    FormatError
        It has no such experiment, or a request lacks its time stamps.
    """
    times, stamps, failed = _answered(data, origin=origin, load=load)
    span_ns = int(times[:, 1].max() - times[:, 0].min())
    notes = (f"{failed} requests of {origin} have no response",) if failed else ()
    batches: dict[int, int] = {}
    if stamps is not None:
        rows = np.unique(stamps[:, SLICE_STAMPS.index("batch_id")], return_index=True)[1]
        sizes, counts = np.unique(stamps[rows, SLICE_STAMPS.index("batch_size")], return_counts=True)
        batches = dict(zip(sizes.tolist(), counts.tolist(), strict=True))
    return Measured(
        source=f"perf_analyzer profile export {origin}",
        throughput_rps=len(times) * NS_PER_S / max(span_ns, 1),
        latencies_ns=times[:, 1] - times[:, 0],
        batch_histogram=batches,
        requests=len(times),
        notes=notes,
    )


def export_records(data: Mapping[str, Any], *, origin: str, clock_ns: int, load: float | None = None) -> Records:
    """Records of a profile export of one of this project's emulated slices, whose answers say what batch they were in.

    Parameters
    ----------
    data : mapping
    origin : str
        Name of the file.
    clock_ns : int
        perf_analyzer's clock, the wall's, minus the monotonic one of the slices.
    load : float, optional
        The scenario's concurrency or rate, where the file has several experiments.

    Returns
    -------
    Records
        In order of sending, from the first one on. What the file does not say counts for the stage before it, as in a
        live run.

    Raises
    ------
    FormatError
        It has no such experiment, its answers are not those of emulated slices, or requests have several units.
    """
    times, stamps, _ = _answered(data, origin=origin, load=load)
    if stamps is not None and (stamps[:, -1] > 1).any():
        raise FormatError(f"{origin}: its requests have a batch dimension of their own (-b); records need 1")
    if stamps is None:
        raise FormatError(f"{origin}: its answers have no output PREBA: not a run against emulated slices")
    first_ns = int(times[0, 0])
    columns = empty_columns(len(times))
    for name in ("scheduled_ns", "issued_ns", "preprocess_start_ns", "preprocess_end_ns", "enqueued_ns",
                 "dispatched_ns"):  # fmt: skip
        columns[name] = times[:, 0] - first_ns
    for name, values in zip(SLICE_STAMPS, stamps.T[:-1], strict=True):
        shift_ns = clock_ns - first_ns if name.endswith("_ns") else 0
        columns[name] = (values + shift_ns).astype(columns[name].dtype)
    columns["batch_units"] = columns["batch_size"]
    columns["completed_ns"] = times[:, 1] - first_ns
    # Stamps of two processes may cross by the few microseconds between taking and sending them.
    for before, name in itertools.pairwise(("issued_ns", "execution_start_ns", "execution_end_ns", "completed_ns")):
        columns[name] = np.maximum(columns[name], columns[before])
    for name, value in (("outcome", SERVED), ("attempts", 1), ("server_index", 0)):
        columns[name] = np.full_like(columns[name], value)
    return Records(**columns)


def _answered(
    data: Mapping[str, Any], *, origin: str, load: float | None
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, int]:
    """Answered requests in order: (sent, answered) in ns; stamps of emulated slices and units; how many failed."""
    experiments = data["experiments"]
    if len(experiments) > 1:
        experiments = [one for one in experiments if one.get("experiment", {}).get("value") == load]
    if len(experiments) != 1:
        have = [one.get("experiment", {}).get("value") for one in data["experiments"]]
        raise FormatError(f"{origin}: has experiments {have}; the scenario's load is {load}")
    found: list[tuple[int, int, list[int] | None]] = []
    failed = 0
    for number, request in enumerate(experiments[0].get("requests", [])):
        try:
            answers = request["response_timestamps"]
            if not answers:
                failed += 1
                continue
            found.append((int(request["timestamp"]), int(answers[-1]), _stamps(request)))
        except (KeyError, TypeError, ValueError):
            raise FormatError(f"{origin}: experiments[0].requests[{number}]: no time stamps") from None
    if not found:
        raise FormatError(f"{origin}: holds no answered request")
    found.sort(key=lambda one: one[:2])
    times = np.array([one[:2] for one in found], dtype=np.int64)
    stamps = [one[2] for one in found if one[2] is not None]
    return times, np.array(stamps, dtype=np.int64) if len(stamps) == len(found) else None, failed


def _stamps(request: Mapping[str, Any]) -> list[int] | None:
    """The first row of an emulated slice's output, and how many rows there are: one a unit."""
    outputs = request.get("response_outputs")
    last = outputs[-1] if isinstance(outputs, list) and outputs else None
    values = last.get("PREBA") if isinstance(last, Mapping) else None
    width = len(SLICE_STAMPS)
    if not isinstance(values, list) or len(values) < width or not all(isinstance(value, int) for value in values):
        return None
    return [*values[:width], len(values) // width]
