"""The record table and its Parquet form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preba.errors import FormatError, MissingFileError, OutputError
from preba.records import (
    OUTCOMES,
    Records,
    StationFacts,
    StationSpans,
    column_names,
    empty_columns,
    read_records,
    write_records,
    write_spans,
)

NEVER_NULL = {"request_id", "model_index", "scheduled_ns", "issued_ns", "preprocess_wait_ns", "slice_preprocess_ns"} | {
    "batch_size",
    "batch_units",
    "jpeg_bytes",
    "audio_ns",
    "outcome",
    "attempts",
}


def made(count: int, seed: int = 1) -> Records:
    """Records with arbitrary values and a good share of "never happened"."""
    rng = np.random.default_rng(seed)
    columns = empty_columns(count)
    for name, column in columns.items():
        if name == "outcome":
            column[:] = rng.integers(0, len(OUTCOMES), count)
        elif name != "request_id":
            low = 0 if name in NEVER_NULL else -1
            high = 7 if column.dtype == np.int32 else 1 << 62
            column[:] = np.where(rng.random(count) < 0.3, low, rng.integers(0, high, count))
    return Records(**columns)


@given(count=st.integers(0, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_survive_parquet(tmp_path: Path, count: int, seed: int) -> None:
    """What is written is read back, every field and its type, with the metadata."""
    records = made(count, seed)
    path = tmp_path / "records.parquet"
    write_records(path, records, {"engine": "reference", "name": "ä"})
    again, metadata = read_records(path)
    assert again.equals(records)
    assert metadata == {"engine": "reference", "name": "ä"}
    for name in column_names():
        assert getattr(again, name).dtype == getattr(records, name).dtype, name


def test_records_write_what_never_happened_as_null(tmp_path: Path) -> None:
    """-1 becomes a null in every column where it means "never", so that other tools do not average it."""
    write_records(tmp_path / "r.parquet", made(200), {})
    table = pq.read_table(tmp_path / "r.parquet")
    records = made(200)
    for name in column_names():
        nulls = 0 if name in NEVER_NULL else int(np.sum(getattr(records, name) == -1))
        assert table.column(name).null_count == nulls, name
        assert (nulls > 0) == (name not in NEVER_NULL)


def test_records_write_outcomes_by_name(tmp_path: Path) -> None:
    """Other tools read the outcome as text."""
    records = made(50)
    write_records(tmp_path / "r.parquet", records, {})
    names = pq.read_table(tmp_path / "r.parquet").column("outcome").to_pylist()
    assert names == [OUTCOMES[code] for code in records.outcome]


def test_records_are_written_byte_for_byte_the_same(tmp_path: Path) -> None:
    """Equal records and metadata give equal files, whatever the order in which the metadata was put together."""
    for name, metadata in (("a", {"x": "1", "y": "2"}), ("b", {"y": "2", "x": "1"})):
        write_records(tmp_path / name, made(500), metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_records(tmp_path / "c", made(500, seed=2), {"x": "1", "y": "2"})
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_records_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    """A folder that is not there is one clear error, and no file is left half written."""
    with pytest.raises(OutputError, match=r"nowhere/r\.parquet: cannot write records"):
        write_records(tmp_path / "nowhere" / "r.parquet", made(3), {})
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(OutputError, match=r"taken\.parquet: cannot write records"):
        write_records(tmp_path / "taken.parquet", made(3), {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken.parquet"]


def _without_column(path: Path) -> None:
    write_records(path, made(3), {})
    pq.write_table(pq.read_table(path).drop_columns(["batch_id"]), path)


def _text(path: Path) -> None:
    path.write_text("not Parquet at all")


def _odd_outcome(path: Path) -> None:
    write_records(path, made(3), {})
    table = pq.read_table(path)
    place = table.column_names.index("outcome")
    pq.write_table(table.set_column(place, "outcome", pa.array(["served", "eaten", "served"])), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_column, "column 'batch_id' is missing"),
        (_text, "not a Parquet file of records"),
        (_odd_outcome, "outcome 'eaten' is not known"),
    ],
)
def test_records_refuse_what_is_not_theirs(tmp_path: Path, spoil: Any, message: str) -> None:
    """A file that holds something else is one error of one line that names the file and what is wrong."""
    path = tmp_path / "r.parquet"
    spoil(path)
    with pytest.raises(FormatError, match=message) as caught:
        read_records(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_records_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    """A missing file is an error of its own kind."""
    with pytest.raises(MissingFileError, match=r"gone\.parquet: no such records file"):
        read_records(tmp_path / "gone.parquet")


def test_records_of_unequal_columns_cannot_exist() -> None:
    """All columns have one length."""
    columns = empty_columns(3)
    columns["attempts"] = columns["attempts"][:2]
    with pytest.raises(ValueError, match="differ in length"):
        Records(**columns)


def test_records_begin_with_nothing_having_happened() -> None:
    """Fresh columns are pending, with nulls wherever "never" is a value."""
    records = Records(**empty_columns(4))
    assert not records.served.any()
    assert set(records.outcome.tolist()) == {OUTCOMES.index("pending")}
    for name in set(column_names()) - NEVER_NULL:
        assert np.all(getattr(records, name) == -1), name


def test_records_can_be_selected_and_compared() -> None:
    """A mask keeps rows in order; equality looks at every field."""
    records = made(30)
    kept = records.select(records.served)
    assert len(kept) == int(np.sum(records.outcome == 0))
    assert np.array_equal(kept.latency_ns, kept.completed_ns - kept.scheduled_ns)
    for name in column_names():
        columns = {field: getattr(records, field).copy() for field in column_names()}
        columns[name][7] += 1
        assert not records.equals(Records(**columns)), name
    assert not records.equals(kept)


def test_outcome_names_are_those_of_the_batchers_codes() -> None:
    """The table of names follows the codes that batchers and engines use."""
    from preba.batching import state

    named = ("SERVED", "REFUSED_QUEUE_FULL", "REFUSED_TIMEOUT", "FAILED_SLICE_LOST", "PENDING")
    assert [OUTCOMES[getattr(state, name)] for name in named] == [name.lower() for name in named]


def spans(count: int) -> StationSpans:
    rng = np.random.default_rng(3)
    columns = {
        field.name: rng.integers(0, 2, count).astype(np.int32 if field.name.endswith("index") else np.int64)
        for field in dataclasses.fields(StationSpans)
    }
    return StationSpans(**columns)


def test_station_visits_are_written_with_their_station_by_name(tmp_path: Path) -> None:
    """Each visit names its station; the other columns are as they were."""
    visits = spans(20)
    write_spans(tmp_path / "s.parquet", visits, [StationFacts("cpu", "cpu", 2), StationFacts("hop", "hop", 1)])
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column("station").to_pylist() == [("cpu", "hop")[k] for k in visits.station_index]
    assert np.array_equal(table.column("start_ns").to_numpy(), visits.start_ns)
    assert visits.equals(spans(20))
    assert not visits.equals(dataclasses.replace(visits, end_ns=visits.end_ns + 1))


def test_station_visits_of_a_run_without_stations_are_an_empty_table(tmp_path: Path) -> None:
    """No preprocessing, no visits, but a readable file."""
    write_spans(tmp_path / "s.parquet", spans(0), [])
    assert pq.read_table(tmp_path / "s.parquet").num_rows == 0
