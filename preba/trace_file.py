"""Traces as Parquet files: written in one step, read back exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preba import __version__
from preba.errors import FormatError, MissingFileError, OutputError, TraceError
from preba.trace_table import DTYPES, PARTS, Trace, steady_overheads

_METADATA = b"preba_trace"
_FORMAT = 1
NEWEST_PART = "overhead_factor_response_next"
"""Traces of before there was such a factor are read as if it were 1."""


def write_trace(path: Path, trace: Trace) -> None:
    """Writes a trace; the same trace gives the same bytes (with the same pyarrow).

    Parameters
    ----------
    path : Path
        Where to write; replaced in one step, so nothing half-written is ever seen.
    trace : Trace

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    columns: dict[str, pa.Array[Any]] = {}
    for name in DTYPES:
        column = getattr(trace, name)
        if name == "overhead_factor" and column.strides[0] == 0:
            continue  # nothing varies
        if name in PARTS:
            columns.update({f"{name}_{part}": pa.array(column[:, i]) for i, part in enumerate(PARTS[name])})
        else:
            columns[name] = pa.array(column)
    metadata = {
        "format": _FORMAT,
        "preba": __version__,
        "seed": trace.seed,
        "outstanding": trace.outstanding,
        "refusal_backoff_ns": trace.refusal_backoff_ns,
    }
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(metadata).encode()})
    partial = path.with_name(path.name + ".partial")
    try:
        pq.write_table(table, partial, compression="zstd")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot write the trace: {error}") from error


def read_trace(path: Path) -> Trace:
    """Reads a trace written by ``write_trace``.

    Raises
    ------
    MissingFileError, FormatError
        There is no such file, or it is not a trace.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such trace file")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise FormatError(f"{path}: not a Parquet file: {error}") from error
    metadata = _read_metadata(path, (table.schema.metadata or {}).get(_METADATA))
    columns: dict[str, Any] = {}
    for name in DTYPES:
        parts = [f"{name}_{part}" for part in PARTS.get(name, ())]
        if name == "overhead_factor" and not set(parts) & set(table.column_names):
            columns[name] = steady_overheads(table.num_rows)
        elif parts:
            columns[name] = np.column_stack([_part(path, table, part, name) for part in parts])
        else:
            columns[name] = _column(path, table, name, name)
    try:
        return Trace(**columns, **metadata)
    except TraceError as error:
        raise FormatError(f"{path}: {error}") from error


def _read_metadata(path: Path, raw: bytes | None) -> dict[str, Any]:
    if raw is None:
        raise FormatError(f"{path}: not a preba trace: its schema carries no {_METADATA.decode()!r}")
    data = json.loads(raw)
    if data.get("format") != _FORMAT:
        raise FormatError(f"{path}: trace format {data.get('format')!r} is not known; this preba reads {_FORMAT}")
    return {
        "seed": data["seed"],
        "outstanding": tuple(data["outstanding"]),
        "refusal_backoff_ns": tuple(data["refusal_backoff_ns"]),
    }


def _part(path: Path, table: pa.Table, part: str, name: str) -> Any:  # noqa: ANN401 - an array of DTYPES[name]
    if part == NEWEST_PART and part not in table.column_names:
        return np.ones(table.num_rows)
    return _column(path, table, part, name)


def _column(path: Path, table: pa.Table, column: str, name: str) -> Any:  # noqa: ANN401 - an array of DTYPES[name]
    if column not in table.column_names:
        raise FormatError(f"{path}: not a preba trace: column {column!r} is missing")
    values = table.column(column)
    expected = pa.from_numpy_dtype(np.dtype(DTYPES[name]))
    if values.type != expected or values.null_count:
        raise FormatError(f"{path}: column {column!r} must be {expected} without nulls, got {values.type}")
    return values.to_numpy()
