"""Reading numbers and recorded arrival times from files: CSV, Parquet, perf_analyzer's two formats.

What the times mean for a trace is decided in ``preba.arrivals``; nothing is drawn here.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preba.errors import FormatError, MissingFileError, TraceError, nearest
from preba.units import NS_PER_MS, NS_PER_S, NS_PER_US

Int64 = NDArray[np.int64]

ReplayFormat = Literal["auto", "csv", "parquet", "perf_analyzer_intervals", "perf_analyzer_profile"]
TimeUnit = Literal["ns", "us", "ms", "s", "iso"]

NS_PER_UNIT = {"ns": 1, "us": NS_PER_US, "ms": NS_PER_MS, "s": NS_PER_S}

_FORMAT_OF_SUFFIX: dict[str, ReplayFormat] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "perf_analyzer_profile",
    ".txt": "perf_analyzer_intervals",
    "": "perf_analyzer_intervals",
}

_ISO = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)(?:[T ](?P<clock>\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"\s*(?P<zone>Z|[+-]\d\d:?\d\d)?\Z"
)
_NUMBER = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d*)\.?(?P<fraction>\d*)(?:[eE](?P<exponent>[+-]?\d{1,3}))?\Z")


@dataclass(frozen=True)
class Recording:
    """Recorded arrivals.

    Attributes
    ----------
    times_ns : int64[n]
        Ascending, counted from the first arrival (in an interval file: from the start of the first gap).
    period_ns : int
        After how long a second round would start: the sum of the gaps of an interval file; otherwise the last
        time plus one mean gap, so that repeating keeps the mean rate.
    repeats : bool
        Whether the format itself means to be repeated.
    """

    times_ns: Int64
    period_ns: int
    repeats: bool


@dataclass(frozen=True)
class Column:
    """The cells of one column as text or numbers, and where each stood in its file."""

    name: str
    cells: list[Any]
    lines: Sequence[int] | None
    """1-based line of each cell; ``None`` for Parquet, where the row counts from 0."""

    def where(self, path: Path, index: int) -> str:
        """The place of a cell, for a message."""
        return f"{path}:{self.lines[index]}" if self.lines is not None else f"{path}: row {index}"


def located(file: str, folder: Path) -> Path:
    """A user's path made absolute; relative ones count from ``folder`` (that of the scenario).

    Raises
    ------
    MissingFileError
        There is no such file; the nearest name beside it is suggested.
    """
    path = (folder / Path(file).expanduser()).resolve()
    _must_exist(path)
    return path


def read_arrivals(
    path: Path,
    *,
    form: ReplayFormat = "auto",
    column: str | None = None,
    unit: TimeUnit | None = None,
    experiment: int | None = None,
    sort: bool = False,
) -> Recording:
    """Reads recorded arrival times.

    Parameters
    ----------
    path : Path
    form : ReplayFormat
        ``auto`` goes by the file's ending: ``.csv``, ``.parquet``, ``.json`` (perf_analyzer profile export),
        ``.txt`` or none (perf_analyzer intervals, one integer gap in microseconds per line).
    column : str, optional
        Of a CSV or Parquet file; may be left out where there is only one.
    unit : TimeUnit, optional
        Of the numbers; ``iso`` are time stamps such as ``2023-11-16 18:15:46.6805900``. Left out, it is read
        from the column's name (``_ns``, ``_us``, ``_ms``, ``_s``), and time stamps are recognised.
    experiment : int, optional
        0-based index into the experiments of a profile export; may be left out where there is only one.
    sort : bool
        Accept times out of order, and sort them. (A profile export is always sorted: it lists requests by
        worker.)

    Returns
    -------
    Recording

    Raises
    ------
    MissingFileError, FormatError
        There is no such file, or a line of it cannot be read; the message names line and value.
    TraceError
        It holds fewer than two arrivals, none apart from each other, or they are out of order.

    Notes
    -----
    **Source**: Perf Analyzer documentation, options ``--request-intervals`` and ``--profile-export-file``.
    """
    _must_exist(path)
    if form == "auto":
        if path.suffix.lower() not in _FORMAT_OF_SUFFIX:
            raise FormatError(
                f"{path}: cannot tell the format from {path.suffix!r}; give format: "
                "csv, parquet, perf_analyzer_intervals or perf_analyzer_profile"
            )
        form = _FORMAT_OF_SUFFIX[path.suffix.lower()]
    if form == "perf_analyzer_intervals":
        return _read_intervals(path)
    if form == "perf_analyzer_profile":
        times, sort = _read_profile_export(path, experiment), True
    else:
        cells = read_column(path, column, form=form)
        times = _times_ns(path, cells, unit)
        _check_order(path, cells, times, sort=sort)
    if sort:
        times = np.sort(times)
    if len(times) < 2 or times[-1] == times[0]:
        raise TraceError(f"{path}: a recording needs at least two arrivals at different times, got {len(times)}")
    times = times - times[0]
    mean_gap_ns = round(int(times[-1]) / (len(times) - 1))
    return Recording(times, period_ns=int(times[-1]) + max(mean_gap_ns, 1), repeats=False)


def _must_exist(path: Path) -> None:
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MissingFileError(f"{path}: no such file{nearest(path.name, siblings)}")


def read_column(path: Path, column: str | None, *, form: ReplayFormat = "auto") -> Column:
    """Reads one column of a CSV or Parquet file.

    A CSV has a header, unless it has a single column whose first cell is itself a number or a time stamp.

    Raises
    ------
    MissingFileError, FormatError
    """
    _must_exist(path)
    if form == "parquet" or (form == "auto" and _FORMAT_OF_SUFFIX.get(path.suffix.lower()) == "parquet"):
        return _parquet_column(path, column)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: not a CSV text file: {error}") from error
    if not rows:
        raise FormatError(f"{path}: is empty")
    header = [cell.strip() for cell in rows[0][1]]
    if len(header) == 1 and (_NUMBER.match(header[0]) or _ISO.match(header[0])):
        header = [""]
    else:
        rows = rows[1:]
    index = _which(path, column, header)
    for line, row in rows:
        if len(row) != len(header):
            raise FormatError(f"{path}:{line}: has {len(row)} cells, the first line has {len(header)}")
    return Column(header[index], [row[index].strip() for _, row in rows], [line for line, _ in rows])


def _which(path: Path, column: str | None, names: Sequence[str]) -> int:
    if column is None:
        if len(names) == 1:
            return 0
        raise FormatError(f"{path}: has {len(names)} columns; give column: one of {', '.join(names)}")
    if column not in names:
        raise FormatError(f"{path}: has no column {column!r}{nearest(column, names)}")
    return list(names).index(column)


def _parquet_column(path: Path, column: str | None) -> Column:
    # pyarrow takes longer to import than a short run; only files in its format need it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        values = pq.read_table(path, columns=[names[_which(path, column, names)]]).column(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise FormatError(f"{path}: not a Parquet file: {error}") from error
    name = names[_which(path, column, names)]
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("ns", tz=values.type.tz)).cast(pa.int64())
        name = f"{name}_ns"
    return Column(name, values.to_pylist(), None)


def to_integers(path: Path, column: Column, *, per_unit: int) -> Int64:
    """The cells times ``per_unit``, rounded to integers; decimal text never passes through a float.

    Raises
    ------
    FormatError
        A cell is no finite number, or too large.
    """
    cells = column.cells
    numbers = np.empty(len(cells), dtype=np.int64)
    for index, cell in enumerate(cells):
        value = _scaled(cell, per_unit)
        if value is None or not -(1 << 63) <= value < 1 << 63:
            name = f" in column {column.name!r}" if column.name else ""
            raise FormatError(f"{column.where(path, index)}: expected a number{name}, got {cell!r}")
        numbers[index] = value
    return numbers


def _scaled(cell: object, per_unit: int) -> int | None:
    """``cell * per_unit`` to the nearest integer, exact for decimal text however long."""
    if isinstance(cell, bool) or cell is None:
        return None
    if isinstance(cell, int):
        return cell * per_unit
    match = _NUMBER.match(cell if isinstance(cell, str) else repr(cell))
    if match is None or not (match["whole"] or match["fraction"]):
        return None
    digits = int(match["whole"] + match["fraction"]) * per_unit
    power = int(match["exponent"] or 0) - len(match["fraction"])
    if power >= 0:
        size: int = digits * 10**power
    else:
        # To the nearest, halves up: symmetric about zero because the sign is put back afterwards.
        size = (2 * digits + 10**-power) // (2 * 10**-power)
    return -size if match["sign"] == "-" else size


def _times_ns(path: Path, column: Column, unit: TimeUnit | None) -> Int64:
    if not column.cells:
        raise TraceError(f"{path}: holds no arrivals")
    known: str | None = unit
    if known is None:
        suffix = column.name.rpartition("_")[2]
        if suffix in NS_PER_UNIT and "_" in column.name:
            known = suffix
        elif isinstance(column.cells[0], str) and _ISO.match(column.cells[0]):
            known = "iso"
        else:
            raise FormatError(
                f"{path}: the unit of column {column.name!r} is not known; give unit: ns, us, ms, s or iso"
            )
    if known == "iso":
        return np.array([_iso_ns(path, column, index) for index in range(len(column.cells))], dtype=np.int64)
    return to_integers(path, column, per_unit=NS_PER_UNIT[known])


def _iso_ns(path: Path, column: Column, index: int) -> int:
    """A time stamp as ns since 1970, to the last of up to nine digits; without a zone it counts as UTC."""
    cell = column.cells[index]
    match = _ISO.match(cell) if isinstance(cell, str) else None
    try:
        if match is None:
            raise ValueError("not of the form YYYY-MM-DD hh:mm:ss.fraction")
        zone = (match["zone"] or "Z").replace("Z", "+0000").replace(":", "")
        stamp = f"{match['date']} {match['clock'] or '00:00:00'}{zone}"
        seconds = (datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S%z") - _EPOCH) // _SECOND
    except ValueError as error:
        raise FormatError(f"{column.where(path, index)}: expected a time stamp, got {cell!r}: {error}") from error
    return seconds * NS_PER_S + int((match["fraction"] or "0").ljust(9, "0"))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


def _check_order(path: Path, column: Column, times: Int64, *, sort: bool) -> None:
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back) and not sort:
        index = int(back[0]) + 1
        raise TraceError(
            f"{column.where(path, index)}: {column.cells[index]!r} comes before {column.cells[index - 1]!r} "
            "above it; arrivals must ascend (or set sort: true)"
        )


def _read_intervals(path: Path) -> Recording:
    """One integer gap in microseconds per line; the first request comes after the first gap."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not a text file of intervals: {error}") from error
    gaps_us: list[int] = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        if not re.fullmatch(r"\d{1,12}", text):
            raise FormatError(f"{path}:{number}: expected one integer gap in microseconds, got {text!r}")
        gaps_us.append(int(text))
    if sum(gaps_us) == 0:
        raise TraceError(f"{path}: holds no gap longer than 0 us")
    times = np.cumsum(np.array(gaps_us, dtype=np.int64)) * NS_PER_US
    return Recording(times, period_ns=int(times[-1]), repeats=True)


def _read_profile_export(path: Path, experiment: int | None) -> Int64:
    """Send times of one experiment of a perf_analyzer profile export, in file order."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path}: not a JSON file: {error}") from error
    experiments = data.get("experiments") if isinstance(data, dict) else None
    if not isinstance(experiments, list) or not experiments:
        raise FormatError(f"{path}: not a perf_analyzer profile export: no list 'experiments'")
    if experiment is None and len(experiments) > 1:
        raise FormatError(f"{path}: holds {len(experiments)} experiments; give experiment: 0 .. {len(experiments) - 1}")
    index = experiment or 0
    if index >= len(experiments):
        raise FormatError(f"{path}: experiment: must be < {len(experiments)}, got {index}")
    place = f"{path}: experiments[{index}].requests"
    requests = experiments[index].get("requests") if isinstance(experiments[index], dict) else None
    if not isinstance(requests, list) or not requests:
        raise TraceError(f"{place}: holds no requests")
    times = np.empty(len(requests), dtype=np.int64)
    for number, request in enumerate(requests):
        stamp = request.get("timestamp") if isinstance(request, dict) else None
        if isinstance(stamp, bool) or not isinstance(stamp, int) or not 0 <= stamp < 1 << 63:
            raise FormatError(f"{place}[{number}].timestamp: expected integer nanoseconds, got {stamp!r}")
        times[number] = stamp
    return times
