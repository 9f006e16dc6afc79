"""The one record schema of simulated and measured requests (law 5), and its Parquet form. No statistics here.

Inside, a record table is a set of NumPy columns of equal length, sorted by request id. ``-1`` in a time or index
column means "never happened" (a refused request has no slice); in Parquet it is a null.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.errors import FormatError, MissingFileError, OutputError

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]

OUTCOMES = ("served", "refused_queue_full", "refused_timeout", "failed_slice_lost", "pending")
"""Names of the outcome codes of ``preba.batching.state``, by code."""

_NULLABLE = frozenset(
    {
        "preprocess_start_ns", "preprocess_end_ns", "enqueued_ns", "dispatched_ns", "execution_start_ns",
        "execution_end_ns", "completed_ns", "server_index", "slice_index", "batch_id",
    }
)  # fmt: skip
_NARROW = frozenset({"model_index", "server_index", "slice_index", "batch_size", "batch_units", "attempts"})


@dataclass(frozen=True)
class Records:
    """One row per request; int64 nanoseconds since the start of the run unless the name says otherwise.

    Attributes
    ----------
    request_id : int64[n]
        0 .. n-1, the row of the trace.
    model_index : int32[n]
        Which model of the scenario.
    scheduled_ns : int64[n]
        When the request was meant to be sent; latency counts from here.
    issued_ns : int64[n]
        When it really was sent (equal in a simulation; the generator's lag otherwise).
    preprocess_start_ns, preprocess_end_ns : int64[n]
        First start and last end of preprocessing; both equal the arrival where there is none.
    preprocess_wait_ns : int64[n]
        Waiting for preprocessing units, summed over the stations (also between them), and the way to the first one.
    enqueued_ns : int64[n]
        When it reached the batcher, after any hop.
    dispatched_ns : int64[n]
        When its batch was complete: from then on nobody could join.
    execution_start_ns, execution_end_ns : int64[n]
        The batch on the slice, preprocessing on the same slice included.
    slice_preprocess_ns : int64[n]
        The part of the execution spent preprocessing on the slice (DALI sharing it), else 0.
    completed_ns : int64[n]
        When the answer was there, or the refusal.
    server_index, slice_index : int32[n]
        Which batcher and which slice served it.
    batch_id : int64[n]
        Counts batches over the whole run; rows with equal ids ran together.
    batch_size, batch_units : int32[n]
        Requests and batch units in that batch.
    jpeg_bytes, audio_ns : int64[n]
        Input size, 0 where it does not apply.
    outcome : int32[n]
        Index into ``OUTCOMES``.
    attempts : int32[n]
        How often it was started (2 after its slice was lost once).
    """

    request_id: Int64
    model_index: Int32
    scheduled_ns: Int64
    issued_ns: Int64
    preprocess_start_ns: Int64
    preprocess_end_ns: Int64
    preprocess_wait_ns: Int64
    enqueued_ns: Int64
    dispatched_ns: Int64
    execution_start_ns: Int64
    execution_end_ns: Int64
    slice_preprocess_ns: Int64
    completed_ns: Int64
    server_index: Int32
    slice_index: Int32
    batch_id: Int64
    batch_size: Int32
    batch_units: Int32
    jpeg_bytes: Int64
    audio_ns: Int64
    outcome: Int32
    attempts: Int32

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in column_names()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"record columns differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.request_id)

    @property
    def latency_ns(self) -> Int64:
        """Completion minus scheduled arrival, int64[n]; meaningful where ``served``."""
        return self.completed_ns - self.scheduled_ns

    @property
    def served(self) -> NDArray[np.bool_]:
        """Which requests got an answer, bool[n]."""
        return np.equal(self.outcome, 0)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> Records:
        """The rows that a mask or an index array names, as new records; neighbouring rows share their memory."""
        rows = as_slice(np.flatnonzero(keep) if keep.dtype == np.bool_ else keep.astype(np.intp, copy=False))
        if isinstance(rows, slice) and rows == slice(0, len(self)):
            return self
        return Records(**{name: getattr(self, name)[rows] for name in column_names()})

    def arrival_order(self, among: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
        """The rows that a mask names (or all) by scheduled arrival, of simultaneous ones the lower request id first."""
        rows = np.arange(len(self)) if among is None else np.flatnonzero(among)
        taken = as_slice(rows)
        scheduled_ns, request_id = self.scheduled_ns[taken], self.request_id[taken]
        if ascending(scheduled_ns) and ascending(request_id):
            return rows
        # A closed loop issues out of id order, and several models interleave.
        return rows[np.lexsort((request_id, scheduled_ns))]

    def record(self, row: int) -> RequestRecord:
        """One row as a value."""
        values: dict[str, Any] = {}
        for name in column_names():
            value = int(getattr(self, name)[row])
            values[name] = None if name in _NULLABLE and value < 0 else value
        values["outcome"] = OUTCOMES[values["outcome"]]
        return RequestRecord(**values)

    def batches(self) -> Iterator[Batch]:
        """Every batch that was executed, in order of batch id, its requests in order of request id."""
        order = np.argsort(self.batch_id, kind="stable")
        order = order[self.batch_id[order] >= 0]
        first = np.flatnonzero(np.diff(self.batch_id[order], prepend=-1))
        for rows in np.split(order, first[1:]):
            if len(rows):
                row = rows[0]
                yield Batch(
                    batch_id=int(self.batch_id[row]),
                    model_index=int(self.model_index[row]),
                    slice_index=int(self.slice_index[row]),
                    request_ids=tuple(self.request_id[rows].tolist()),
                    batch_units=int(self.batch_units[row]),
                    dispatched_ns=int(self.dispatched_ns[row]),
                    execution_start_ns=int(self.execution_start_ns[row]),
                    execution_end_ns=int(self.execution_end_ns[row]),
                )

    def equals(self, other: Records) -> bool:
        """Whether every field of every record is identical."""
        return all(np.array_equal(getattr(self, n), getattr(other, n)) for n in column_names())


@dataclass(frozen=True)
class RequestRecord:
    """One row of ``Records``; ``None`` where something never happened. See there for the fields."""

    request_id: int
    model_index: int
    scheduled_ns: int
    issued_ns: int
    preprocess_start_ns: int | None
    preprocess_end_ns: int | None
    preprocess_wait_ns: int
    enqueued_ns: int | None
    dispatched_ns: int | None
    execution_start_ns: int | None
    execution_end_ns: int | None
    slice_preprocess_ns: int
    completed_ns: int | None
    server_index: int | None
    slice_index: int | None
    batch_id: int | None
    batch_size: int
    batch_units: int
    jpeg_bytes: int
    audio_ns: int
    outcome: str
    attempts: int


@dataclass(frozen=True)
class Batch:
    """One executed batch: who was in it, where and when it ran."""

    batch_id: int
    model_index: int
    slice_index: int
    request_ids: tuple[int, ...]
    batch_units: int
    dispatched_ns: int
    execution_start_ns: int
    execution_end_ns: int


def ascending(values: Int64) -> bool:
    """Whether no value is below the one before it; much cheaper than sorting again what is in order."""
    return bool(np.all(values[1:] >= values[:-1]))


def as_slice(rows: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """An index array as the slice that names the same rows, where they are neighbours: it selects without copying."""
    if len(rows) == 0:
        return slice(0, 0)
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and first >= 0 and bool(np.all(rows[1:] > rows[:-1])):
        return slice(first, last + 1)
    return rows


SLICE_STAMPS = ("execution_start_ns", "execution_end_ns", "batch_id", "batch_size", "slice_index")
"""Record columns that a slice without a front end answers with, in the order of its output ``PREBA``."""


def column_names() -> tuple[str, ...]:
    """The column names of a record table, in order."""
    return tuple(field.name for field in dataclasses.fields(Records))


def empty_columns(count: int) -> dict[str, Any]:
    """Columns for ``count`` requests in which nothing has happened yet, for an engine to fill."""
    columns: dict[str, Any] = {}
    for name in column_names():
        dtype = np.int32 if name in _NARROW or name == "outcome" else np.int64
        columns[name] = np.full(count, -1 if name in _NULLABLE else 0, dtype=dtype)
    columns["request_id"] = np.arange(count, dtype=np.int64)
    columns["outcome"][:] = OUTCOMES.index("pending")
    return columns


@dataclass(frozen=True)
class StationSpans:
    """Which preprocessing unit worked on which request when: one row per (request, station) visit.

    Attributes
    ----------
    station_index : int32[m]
        Index into the run's stations.
    unit_index : int32[m]
        Which core, DPU unit or slice of that station.
    request_id : int64[m]
    arrived_ns : int64[m]
        When the request joined the station's queue.
    start_ns : int64[m]
    released_ns : int64[m]
        When the unit was free again.
    end_ns : int64[m]
        When the request left the station (later than ``released_ns`` in a pipelined unit).
    """

    station_index: Int32
    unit_index: Int32
    request_id: Int64
    arrived_ns: Int64
    start_ns: Int64
    released_ns: Int64
    end_ns: Int64

    def equals(self, other: StationSpans) -> bool:
        """Whether every field of every span is identical."""
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))


@dataclass(frozen=True)
class StationFacts:
    """What a report needs to know of a preprocessing station.

    ``kind`` is ``cpu``, ``dpu``, ``hop`` or ``dali``; ``usable_fraction`` is the share of each unit that
    preprocessing can really use, so utilisation shown is busy share times it.
    """

    name: str
    kind: str
    units: int
    usable_fraction: float = 1.0


@dataclass(frozen=True)
class SliceFacts:
    """What a report needs to know of a slice: its name, its GPU, its size and who uses it."""

    name: str
    gpu_index: int
    profile: str
    gpcs: int
    model_index: int | None
    role: str = "model"
    """``model``, ``preprocessing`` (a slice given to DALI) or ``unused``."""


@dataclass(frozen=True)
class RunResult:
    """A finished run, simulated or measured: the records and what is needed to read them."""

    engine: str
    records: Records
    spans: StationSpans
    stations: tuple[StationFacts, ...]
    slices: tuple[SliceFacts, ...]
    models: tuple[str, ...]
    end_ns: int
    """The last instant of the run: the latest completion."""
    outages: tuple[tuple[int, int, int], ...] = ()
    """(slice_index, from_ns, to_ns) during which a slice was out of service."""


def write_records(path: Path, records: Records, metadata: Mapping[str, str]) -> None:
    """Writes records as Parquet, byte for byte the same for the same records and metadata.

    Parameters
    ----------
    path : Path
        Where to write; replaced in one step, so nothing half-written is ever seen.
    records : Records
    metadata : mapping of str to str
        Stored in the file's schema under ``preba``.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    # pyarrow takes longer to import than a short run; only files in its format need it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, Any] = {}
    for name in column_names():
        column = getattr(records, name)
        mask = column < 0 if name in _NULLABLE else None
        arrays[name] = pa.array(column, mask=mask)
    outcome = pa.DictionaryArray.from_arrays(pa.array(records.outcome, type=pa.int8()), pa.array(list(OUTCOMES)))
    arrays["outcome"] = outcome
    table = pa.table(arrays)
    table = table.replace_schema_metadata({b"preba": json.dumps(dict(metadata), sort_keys=True).encode()})
    partial = path.with_name(path.name + ".partial")
    try:
        pq.write_table(table, partial, compression="zstd")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot write records: {error}") from error


def read_records(path: Path) -> tuple[Records, dict[str, str]]:
    """Reads records written by ``write_records``.

    Returns
    -------
    tuple of Records and dict
        The records and their metadata.

    Raises
    ------
    MissingFileError, FormatError
    """
    import pyarrow as pa  # as in write_records
    import pyarrow.parquet as pq

    if not path.exists():
        raise MissingFileError(f"{path}: no such records file")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise FormatError(f"{path}: not a Parquet file of records: {error}") from error
    missing = [name for name in column_names() if name not in table.column_names]
    if missing:
        raise FormatError(f"{path}: not preba records: column {missing[0]!r} is missing")
    columns: dict[str, Any] = {}
    for name in column_names():
        column = table.column(name)
        dtype = np.int32 if name in _NARROW or name == "outcome" else np.int64
        if name == "outcome":
            code_of = {outcome: code for code, outcome in enumerate(OUTCOMES)}
            unknown = [value for value in column.to_pylist() if value not in code_of]
            if unknown:
                raise FormatError(f"{path}: outcome {unknown[0]!r} is not known; known: {', '.join(OUTCOMES)}")
            codes = [code_of[str(value)] for value in column.to_pylist()]
            columns[name] = np.array(codes, dtype=dtype)
        else:
            columns[name] = column.combine_chunks().fill_null(-1).to_numpy(zero_copy_only=False).astype(dtype)
    raw = (table.schema.metadata or {}).get(b"preba", b"{}")
    return Records(**columns), json.loads(raw)


def write_spans(path: Path, spans: StationSpans, stations: Sequence[StationFacts]) -> None:
    """Writes station visits as Parquet, the station by name.

    Parameters
    ----------
    path : Path
    spans : StationSpans
    stations : sequence of StationFacts
        In the order of ``station_index``.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    import pyarrow as pa  # as in write_records
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        field.name: getattr(spans, field.name) for field in dataclasses.fields(spans) if field.name != "station_index"
    }
    names = pa.array([station.name for station in stations], type=pa.string())
    codes = pa.array(spans.station_index, type=pa.int32())
    table = pa.table({"station": pa.DictionaryArray.from_arrays(codes, names), **columns})
    try:
        pq.write_table(table, path, compression="zstd")
    except OSError as error:
        raise OutputError(f"{path}: cannot write station visits: {error}") from error
