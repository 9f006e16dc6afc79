"""Promises of the Perfetto trace: valid, complete, limited on demand, and all or nothing."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preba.errors import OutputError
from preba.records import RunResult
from preba.report.chrome_trace import write_chrome_trace

Run = Callable[..., RunResult]


def _events(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    trace = json.loads(path.read_text(encoding="utf-8"))
    return trace["traceEvents"], trace["otherData"]


def _names(events: list[dict[str, Any]], what: str) -> dict[tuple[int, int], str]:
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == what}


def test_trace_shows_every_visit_and_every_batch(make_run: Run, tmp_path: Path) -> None:
    """Each visit to a core and each batch on a slice is one box with its times, on a named track."""
    result = make_run(300)
    write_chrome_trace(tmp_path / "t.json", result)
    events, about = _events(tmp_path / "t.json")
    assert about["requests"] == about["requests_shown"] == 300
    tracks = _names(events, "thread_name")
    processes = {name for _, name in _names(events, "process_name").items()}
    assert processes == {"preprocessing", "slices", "queues"}
    boxes = [e for e in events if e["ph"] == "X"]
    assert {(e["pid"], e["tid"]) for e in boxes} <= set(tracks)
    visits = [e for e in boxes if e["cat"] == "cpu"]
    batches = [e for e in boxes if e["cat"] == "execution"]
    assert len(visits) == 300
    assert len(batches) == len({int(b) for b in result.records.batch_id})
    spans, records = result.spans, result.records
    starts = {(round(e["ts"] * 1000), round(e["dur"] * 1000)) for e in visits}
    assert starts == set(zip(spans.start_ns.tolist(), (spans.released_ns - spans.start_ns).tolist(), strict=True))
    lengths = records.execution_end_ns - records.execution_start_ns
    assert {(round(e["ts"] * 1000), round(e["dur"] * 1000)) for e in batches} == set(
        zip(records.execution_start_ns.tolist(), lengths.tolist(), strict=True)
    )
    assert sorted(r for e in batches for r in e["args"]["requests"]) == list(range(300))
    for event in batches:
        name = result.slices[int(records.slice_index[event["args"]["requests"][0]])].name
        assert tracks[(event["pid"], event["tid"])] == name


def test_boxes_of_one_track_never_overlap(make_run: Run, tmp_path: Path) -> None:
    """On every track a box begins after the one before has ended, as viewers demand."""
    write_chrome_trace(tmp_path / "t.json", make_run(500, cores=2))
    events, _ = _events(tmp_path / "t.json")
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["dur"]))
    for boxes in tracks.values():
        boxes.sort()
        for (begin, length), (following, _) in itertools.pairwise(boxes):
            assert begin + length <= following + 1e-3


def test_counters_start_positive_and_end_at_zero(make_run: Run, tmp_path: Path) -> None:
    """Queue counters are never negative and every queue is empty in the end."""
    write_chrome_trace(tmp_path / "t.json", make_run(300, slices=1))
    events, _ = _events(tmp_path / "t.json")
    for name in ("preprocessing", "batcher", "formed"):
        depths = [e["args"]["requests"] for e in events if e["ph"] == "C" and e["name"] == name]
        assert min(depths) >= 0
        assert max(depths) > 0
        assert depths[-1] == 0


def test_preprocessing_on_the_slice_is_a_box_within_the_batch(make_run: Run, tmp_path: Path) -> None:
    """DALI on the model's slice shows inside its batch."""
    write_chrome_trace(tmp_path / "t.json", make_run(100, slice_preprocess_ms=0.5))
    events, _ = _events(tmp_path / "t.json")
    inner = [e for e in events if e["ph"] == "X" and e["name"] == "preprocessing"]
    assert len(inner) == 25
    assert all(e["dur"] == 500.0 for e in inner)


def test_limited_trace_says_so(make_run: Run, tmp_path: Path) -> None:
    """With a limit only the first requests are shown, and the file says how many there were."""
    write_chrome_trace(tmp_path / "t.json", make_run(300), limit=50)
    events, about = _events(tmp_path / "t.json")
    assert about["requests"] == 300
    assert about["requests_shown"] == 50
    shown = {r for e in events if e["ph"] == "X" for r in e["args"].get("requests", ())}
    assert shown == set(range(50))


def test_compressed_trace_is_the_same_trace_every_time(make_run: Run, tmp_path: Path) -> None:
    """A name ending in .gz gives the same JSON compressed, and equal runs give equal bytes."""
    result = make_run(120, outages=((0, 5, 10),))
    for name in ("a.json", "a.json.gz", "b.json.gz"):
        write_chrome_trace(tmp_path / name, result)
    packed = (tmp_path / "a.json.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "a.json").read_bytes()
    assert packed == (tmp_path / "b.json.gz").read_bytes()
    assert '"out of service"' in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_trace_of_an_empty_run_is_valid(make_run: Run, tmp_path: Path) -> None:
    """Even a run without requests gives a valid file."""
    write_chrome_trace(tmp_path / "t.json", make_run(0))
    events, _ = _events(tmp_path / "t.json")
    assert all(event["ph"] == "M" for event in events)


def test_unwritable_trace_leaves_nothing_behind(make_run: Run, tmp_path: Path) -> None:
    """A folder that does not exist is one clear error, and no half-written file stays."""
    with pytest.raises(OutputError, match="missing"):
        write_chrome_trace(tmp_path / "missing" / "t.json", make_run(10))
    folder = tmp_path / "taken.json"
    folder.mkdir()
    with pytest.raises(OutputError, match=r"taken\.json"):
        write_chrome_trace(folder, make_run(10))
    assert [item.name for item in tmp_path.iterdir()] == ["taken.json"]
