"""Promises of replaying recorded arrivals."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from preba.arrivals import ArrivalsConfig, Horizon, RateChange, draw_arrivals
from preba.errors import FormatError, MissingFileError, PrebaError, TraceError
from preba.replay import Column, read_arrivals, to_integers

MS = 1_000_000


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def play(path: Path, *, changes: tuple[RateChange, ...] = (), horizon: dict[str, int], **data: Any) -> list[int]:
    config = TypeAdapter(ArrivalsConfig).validate_json(json.dumps({"kind": "replay", "file": str(path), **data}))
    times = draw_arrivals(config, rng=np.random.default_rng(0), horizon=Horizon(**horizon), rate_changes=changes)
    return times.tolist()


def test_azure_time_stamps_are_read_to_their_seventh_digit(tmp_path: Path) -> None:
    """Time stamps with seven digits, as the Azure traces have, are exact and start at 0."""
    path = put(
        tmp_path,
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.6805900,374,44\r\n"
        "2023-11-16 23:59:59.9,396,109\r\n2023-11-17 00:00:01.0000001,879,55\r\n",
    )
    recording = read_arrivals(path, column="TIMESTAMP")
    assert recording.times_ns.tolist() == [0, 219_410_000, 1_319_410_100]
    assert recording.times_ns.dtype == np.int64
    assert not recording.repeats


@pytest.mark.parametrize(
    "stamps",
    [
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 02:00:00.009931+02:00"),
        ("2024-05-10T00:00:00,009930Z", "2024-05-10T00:00:00,009931Z"),
    ],
)
def test_time_zones_count(tmp_path: Path, stamps: tuple[str, str]) -> None:
    """The same moment in two zones is the same moment."""
    path = put(tmp_path, "zones.csv", f'when\n"{stamps[0]}"\n"{stamps[1]}"\n')
    assert read_arrivals(path).times_ns.tolist() == [0, 1000]


@given(
    start=st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1)),  # noqa: DTZ001 - drawn naive
    microseconds=st.integers(1, 10**12),
)
def test_time_stamps_agree_with_the_standard_library(
    tmp_path_factory: pytest.TempPathFactory, start: datetime, microseconds: int
) -> None:
    """Any two time stamps are as far apart as Python's own calendar says."""
    first = start.replace(tzinfo=UTC)
    later = first + timedelta(microseconds=microseconds)
    path = put(tmp_path_factory.mktemp("iso"), "t.csv", f"{first.isoformat()}\n{later.isoformat()}\n")
    assert read_arrivals(path).times_ns.tolist() == [0, microseconds * 1000]


@pytest.mark.parametrize(
    ("text", "options", "expected_ns"),
    [
        ("time_s\n0.5\n0.75\n2\n", {}, [0, 250 * MS, 1500 * MS]),
        ("time_ms\n5\n7.25\n", {}, [0, 2_250_000]),
        ("id,arrival_us\n1,3\n2,10\n", {"column": "arrival_us"}, [0, 7000]),
        ("1700000000.123456789\n1700000000.123456790\n", {"unit": "s"}, [0, 1]),
        ("\ufeffwhen\n1e3\n\n2E3\n", {"unit": "ns"}, [0, 1000]),
        ("t\n9\n4\n6\n", {"unit": "ms", "sort": True}, [0, 2 * MS, 5 * MS]),
    ],
)
def test_csv_times_are_exact_in_every_unit(
    tmp_path: Path, text: str, options: dict[str, Any], expected_ns: list[int]
) -> None:
    """Numbers in a named unit, or one told by the column's name, become exact nanoseconds from the first."""
    assert read_arrivals(put(tmp_path, "times.csv", text), **options).times_ns.tolist() == expected_ns


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=12))
def test_decimal_text_is_converted_without_loss(number: Decimal) -> None:
    """Decimal text times a unit is rounded once, from the exact value, halves away from zero."""
    column = Column("x", [format(number, "f")], [1])
    expected = int((number * 10**9).quantize(Decimal(1), rounding="ROUND_HALF_UP"))
    assert to_integers(Path("x"), column, per_unit=10**9).tolist() == [expected]


def test_parquet_time_stamps_and_numbers_are_read(tmp_path: Path) -> None:
    """A Parquet column of time stamps of any resolution, or of numbers, is read as times."""
    path = tmp_path / "trace.parquet"
    stamps = pa.array([1_700_000_000_000_001, 1_700_000_000_500_000], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"at": stamps, "seconds": [1.5, 1.75]}), path)
    assert read_arrivals(path, column="at").times_ns.tolist() == [0, 499_999_000]
    assert read_arrivals(path, column="seconds", unit="s").times_ns.tolist() == [0, 250 * MS]


def test_interval_files_repeat_as_in_perf_analyzer(tmp_path: Path) -> None:
    """Gaps in microseconds, one per line: the first request after the first gap, and over again at the end."""
    path = put(tmp_path, "gaps.txt", "100\n0\n250\n")
    assert play(path, horizon={"requests": 5}) == [100_000, 100_000, 350_000, 450_000, 450_000]
    assert play(path, horizon={"duration_ns": 450_000}) == [100_000, 100_000, 350_000]
    with pytest.raises(TraceError, match="only 3 come"):
        play(path, horizon={"requests": 5}, loop=False)


def test_profile_exports_give_their_send_times(tmp_path: Path) -> None:
    """A perf_analyzer profile export is replayed by its send times, in order of time over all workers."""
    request = {"sequence_id": 1, "request_inputs": {}, "response_timestamps": [9], "response_outputs": [{}]}
    experiments = [
        {
            "experiment": {"mode": "request_rate", "value": 10},
            "requests": [{"timestamp": 1_723_000_000_000_000_000 + t, **request} for t in times],
            "window_boundaries": [0, 9],
        }
        for times in ([7, 3, 90], [5, 25])
    ]
    path = put(tmp_path, "export.json", json.dumps({"experiments": experiments, "version": "2.51"}))
    assert read_arrivals(path, experiment=0).times_ns.tolist() == [0, 4, 87]
    assert read_arrivals(path, experiment=1).times_ns.tolist() == [0, 20]
    with pytest.raises(FormatError, match=r"holds 2 experiments; give experiment: 0 \.\. 1"):
        read_arrivals(path)


def test_replay_is_scaled_looped_and_bent(tmp_path: Path) -> None:
    """Scaling divides times, looping keeps the mean rate, and rate changes bend the recording's clock."""
    path = put(tmp_path, "t.csv", "at_ms\n100\n110\n150\n")
    assert play(path, horizon={"requests": 3}) == [0, 10 * MS, 50 * MS]
    assert play(path, horizon={"requests": 3}, rate_scale=2) == [0, 5 * MS, 25 * MS]
    # The mean gap is 25 ms, so the second round starts at 75 ms.
    assert play(path, horizon={"requests": 5}, loop=True) == [0, 10 * MS, 50 * MS, 75 * MS, 85 * MS]
    assert play(path, horizon={"duration_ns": 80 * MS}, loop=True, rate_scale=0.5) == [0, 20 * MS]
    bent = play(path, horizon={"requests": 3}, changes=(RateChange(20 * MS, 2.0),))
    assert bent == [0, 10 * MS, 35 * MS]
    config = TypeAdapter(ArrivalsConfig).validate_python({"kind": "replay", "file": str(path)})
    assert config.mean_rate_rps() == pytest.approx(40.0)
    assert config.gap_cv() == pytest.approx(0.6)


def test_paths_count_from_the_scenario(tmp_path: Path) -> None:
    """A relative path is made absolute from the folder given; a missing file suggests its neighbour."""
    put(tmp_path, "arrivals.csv", "at_s\n1\n2\n")
    config: Any = TypeAdapter(ArrivalsConfig).validate_python({"kind": "replay", "file": "arrivals.csv"})
    assert config.located(tmp_path).file == str(tmp_path / "arrivals.csv")
    misspelt = config.model_copy(update={"file": "arivals.csv"})
    with pytest.raises(MissingFileError, match=r"did you mean 'arrivals\.csv'"):
        misspelt.located(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "options", "error", "message"),
    [
        (
            "t.csv",
            "at_s\n1\n2x\n",
            {},
            FormatError,
            r"t\.csv:3: expected a number in column 'at_s', got '2x'",
        ),
        ("t.csv", "at_s\n1\nnan\n", {}, FormatError, r"t\.csv:3: expected a number"),
        ("t.csv", "at_s\n1\n1e30\n", {}, FormatError, r"t\.csv:3: expected a number"),
        ("t.csv", "a,b\n1,2\n3\n", {"column": "a", "unit": "s"}, FormatError, r"t\.csv:3: has 1 cells"),
        ("t.csv", "a,b\n1,2\n", {}, FormatError, "give column: one of a, b"),
        ("t.csv", "start,b\n1,2\n", {"column": "stat"}, FormatError, "did you mean 'start'"),
        ("t.csv", "at\n1\n2\n", {}, FormatError, "unit of column 'at' is not known"),
        ("t.csv", "at_s\n3\n2\n", {}, TraceError, r"t\.csv:3: '2' comes before '3'.*sort: true"),
        ("t.csv", "at_s\n3\n", {}, TraceError, "at least two arrivals"),
        ("t.csv", "at_s\n3\n3\n", {}, TraceError, "at different times"),
        ("t.csv", "at_s\n", {}, TraceError, "holds no arrivals"),
        ("t.csv", "", {}, FormatError, "is empty"),
        ("t.csv", "w\n2023-02-30 00:00:00\n", {}, FormatError, r"t\.csv:2: expected a time stamp"),
        (
            "t.csv",
            "w\n2023-02-03 00:00:00\n7\n",
            {},
            FormatError,
            r"t\.csv:3: expected a time stamp, got '7'",
        ),
        ("t.txt", "10\n-4\n", {}, FormatError, r"t\.txt:2: expected one integer gap.*'-4'"),
        ("t.txt", "10\n1.5\n", {}, FormatError, r"t\.txt:2"),
        ("t.txt", "0\n", {}, TraceError, "no gap longer than 0"),
        ("t.json", "{", {}, FormatError, "not a JSON file"),
        ("t.json", "[]", {}, FormatError, "no list 'experiments'"),
        ("t.json", '{"experiments": [{"requests": []}]}', {}, TraceError, "holds no requests"),
        (
            "t.json",
            '{"experiments": [{"requests": [{"timestamp": 1.5}]}]}',
            {},
            FormatError,
            r"experiments\[0\]\.requests\[0\]\.timestamp: expected integer nanoseconds, got 1\.5",
        ),
        ("t.json", '{"experiments": [{}]}', {"experiment": 3}, FormatError, "must be < 1, got 3"),
        ("t.parquet", "no", {}, FormatError, "not a Parquet file"),
        ("t.log", "1\n", {}, FormatError, "cannot tell the format"),
    ],
)
def test_bad_recordings_name_file_line_and_value(
    tmp_path: Path, name: str, text: str, options: dict[str, Any], error: type[PrebaError], message: str
) -> None:
    """Whatever is wrong with a recording, one error says where and what."""
    path = put(tmp_path, name, text)
    with pytest.raises(error, match=message):
        read_arrivals(path, **options)
    with pytest.raises(MissingFileError):
        read_arrivals(tmp_path / "absent.csv")
