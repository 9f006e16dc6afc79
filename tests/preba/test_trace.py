"""Promises of the trace: drawn first, one stream per quantity, exact on disk."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from preba.arrivals import ArrivalsConfig, ClosedLoopArrivals
from preba.errors import FormatError, MissingFileError, OutputError, TraceError
from preba.jitter import JitterConfig
from preba.sizes import SizesConfig
from preba.trace import (
    STREAMS,
    Horizon,
    RateChange,
    StreamSpec,
    Trace,
    draw_trace,
    merge,
    read_trace,
    stream,
    write_trace,
)
from preba.trace_table import DTYPES

NS = 1_000_000_000
IMAGES = {"kind": "jpeg", "dataset": "imagenet"}
SPEECH = {"kind": "librispeech", "subset": "test-clean"}
CLOSED = {"kind": "closed_loop", "outstanding": 3, "think_ms": 1, "think_distribution": "exponential"}


def parse(union: Any, data: dict[str, Any]) -> Any:
    return TypeAdapter(union).validate_json(json.dumps(data))


def poisson(rate_rps: float) -> dict[str, Any]:
    return {"kind": "poisson", "rate_rps": rate_rps}


def spec(arrivals: dict[str, Any], sizes: dict[str, Any] = IMAGES, **more: Any) -> StreamSpec:
    jitter = parse(JitterConfig, more.pop("jitter", {"kind": "lognormal", "cv": 0.1}))
    return StreamSpec(
        parse(ArrivalsConfig, arrivals),
        parse(SizesConfig, sizes),
        execution_jitter=jitter,
        preprocess_jitter=jitter,
        **more,
    )


def draw(*specs: StreamSpec, seed: int = 1, changes: tuple[RateChange, ...] = (), **horizon: int) -> Trace:
    return draw_trace(specs, seed=seed, horizon=Horizon(**horizon), rate_changes=changes)


def rows_of(trace: Trace, model: int) -> dict[str, np.ndarray]:
    mine = trace.model_index == model
    return {name: getattr(trace, name)[mine] for name in DTYPES if name != "model_index"}


def differing(one: Trace, other: Trace) -> set[str]:
    return {name for name in DTYPES if not np.array_equal(getattr(one, name), getattr(other, name))}


def test_same_seed_gives_the_same_trace() -> None:
    """A seed decides every field of every request; another seed changes them."""
    specs = (spec(poisson(100)), spec(poisson(300), SPEECH))
    one, again = draw(*specs, requests=2000), draw(*specs, requests=2000)
    assert one.equals(again)
    assert one.seed == again.seed == 1
    other = draw(*specs, requests=2000, seed=2)
    assert differing(one, other) >= {
        "scheduled_ns",
        "jpeg_bytes",
        "audio_ns",
        "execution_factor",
        "balancer_draw",
    }


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        ({"arrivals": {"kind": "gamma", "rate_rps": 50, "cv": 3}}, {"scheduled_ns"}),
        ({"sizes": SPEECH}, {"jpeg_bytes", "audio_ns"}),
        ({"jitter": {"kind": "gamma", "cv": 0.4}}, {"preprocess_factor", "execution_factor"}),
        ({"priority_shares": {1: 1.0, 2: 1.0}}, {"priority"}),
        ({"timeout_ns": 5}, {"timeout_ns"}),
        ({"batch_units": 4}, {"batch_units"}),
    ],
)
def test_one_quantity_never_changes_another(change: dict[str, Any], columns: set[str]) -> None:
    """Changing how one quantity is drawn leaves every other column bit for bit the same."""
    base: dict[str, Any] = {"arrivals": poisson(100), "sizes": IMAGES}
    assert differing(draw(spec(**base), requests=500), draw(spec(**{**base, **change}), requests=500)) == columns


def test_the_two_jitters_have_streams_of_their_own() -> None:
    """Preprocessing and execution noise of one law are still different numbers, and uncorrelated."""
    trace = draw(spec(poisson(100)), requests=20_000)
    correlation = np.corrcoef(trace.preprocess_factor, trace.execution_factor)[0, 1]
    assert 0 < abs(correlation) < 3.3 / np.sqrt(20_000)


def test_streams_are_all_different() -> None:
    """No two (seed, model, quantity) share a stream, and the numbers in the key never change."""
    firsts = {stream(seed, model, name).random() for seed in range(3) for model in range(3) for name in STREAMS}
    assert len(firsts) == 9 * len(STREAMS)
    assert STREAMS == {
        "arrivals": 0,
        "arrival_states": 1,
        "sizes": 2,
        "preprocess_jitter": 3,
        "execution_jitter": 4,
        "priority": 5,
        "balancer": 6,
        "think": 7,
        "frontend_jitter": 8,
        "turnaround_jitter": 9,
        "response_jitter": 10,
        "response_next_jitter": 11,
        "slowness": 12,
    }
    assert stream(1, 0, "arrivals").integers(1 << 62) == 4065427831215112270


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63), requests=st.integers(1, 500), more=st.integers(0, 500))
def test_another_model_or_a_longer_run_disturbs_nobody(seed: int, requests: int, more: int) -> None:
    """A model added behind, or more requests asked for, leaves every request already there as it was."""
    onoff = {"kind": "onoff", "rate_on_rps": 900, "mean_on_s": 0.1, "mean_off_s": 0.2}
    first = draw(spec(onoff), requests=requests, seed=seed)
    both = draw(spec(onoff), spec(poisson(200), SPEECH), requests=requests + more, seed=seed)
    alone, together = rows_of(first, 0), rows_of(both, 0)
    count = min(len(first), len(together["scheduled_ns"]))
    for name, column in alone.items():
        assert np.array_equal(column[:count], together[name][:count]), name


def test_request_count_is_over_all_models_in_order_of_time() -> None:
    """So many requests are the first so many of all models, each at its share of the rate, sorted by time."""
    trace = draw(spec(poisson(100)), spec(poisson(300), SPEECH), requests=40_000)
    assert len(trace) == 40_000
    assert (np.diff(trace.scheduled_ns) >= 0).all()
    share = int((trace.model_index == 1).sum())
    assert stats.binomtest(share, 40_000, 0.75).pvalue > 0.001
    assert (trace.audio_ns[trace.model_index == 0] == 0).all()
    assert (trace.jpeg_bytes[trace.model_index == 0] > 0).all()
    assert (trace.audio_ns[trace.model_index == 1] > 0).all()


def test_duration_keeps_every_model_within_it() -> None:
    """With a duration every model has exactly its own arrivals within it."""
    specs = (spec(poisson(100)), spec({"kind": "deterministic", "rate_rps": 50}))
    trace = draw(*specs, duration_ns=10 * NS)
    assert trace.scheduled_ns.max() < 10 * NS
    assert (trace.model_index == 1).sum() == 499
    assert np.array_equal(rows_of(trace, 0)["scheduled_ns"], draw(specs[0], duration_ns=10 * NS).scheduled_ns)


def test_simultaneous_requests_are_ordered_by_model() -> None:
    """Requests of one moment stand in the order of their models."""
    clock = {"kind": "deterministic", "rate_rps": 100}
    trace = draw(spec(clock), spec(clock), spec(clock), requests=8)
    assert trace.model_index.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert trace.scheduled_ns[:6].tolist() == [10_000_000] * 3 + [20_000_000] * 3


def test_priorities_come_in_their_shares() -> None:
    """Levels are drawn in proportion to their shares, whatever the shares add up to."""
    trace = draw(spec(poisson(100), priority_shares={3: 5.0, 1: 2.0, 2: 1.0}), requests=40_000)
    counts = np.bincount(trace.priority, minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], np.array([2, 1, 5]) / 8 * 40_000).pvalue > 0.001


def test_balancer_draws_are_two_independent_uniforms() -> None:
    """Every request brings two independent uniforms in [0, 1) for its balancer."""
    draws = draw(spec(poisson(100)), requests=50_000).balancer_draw
    assert stats.kstest(draws[:, 0], "uniform").pvalue > 0.001
    assert stats.kstest(draws[:, 1], "uniform").pvalue > 0.001
    assert abs(np.corrcoef(draws.T)[0, 1]) < 3.3 / np.sqrt(50_000)


def test_closed_loops_carry_clients_and_think_times() -> None:
    """A closed loop's requests have no times, but think times, clients and a back-off; open ones have none."""
    trace = draw(spec(CLOSED), spec(poisson(100), SPEECH), spec({**CLOSED, "outstanding": 6}), requests=900)
    assert trace.closed_loop
    assert trace.outstanding == (3, None, 6)
    assert trace.refusal_backoff_ns == (1_000_000, 0, 1_000_000)
    assert np.bincount(trace.model_index).tolist() == [200, 300, 400]
    closed = trace.model_index != 1
    assert not trace.scheduled_ns[closed].any()
    assert trace.think_ns[closed].all()
    assert not trace.think_ns[~closed].any()
    assert not draw(spec(poisson(100)), requests=5).closed_loop


def test_rate_changes_reach_only_their_model() -> None:
    """A rate change for one model leaves the others alone; one for all skips closed loops."""
    specs = (spec(poisson(100)), spec(poisson(100)), spec(CLOSED))
    plain = draw(*specs[:2], duration_ns=10 * NS)
    bent = draw(*specs[:2], duration_ns=10 * NS, changes=(RateChange(0, 0.5, 1),))
    assert np.array_equal(rows_of(plain, 0)["scheduled_ns"], rows_of(bent, 0)["scheduled_ns"])
    assert (bent.model_index == 1).sum() < 0.7 * (plain.model_index == 1).sum()
    everyone = draw(*specs, requests=300, changes=(RateChange(0, 2.0),))
    unchanged = draw(*specs, requests=300)
    assert np.abs(2 * rows_of(everyone, 0)["scheduled_ns"][:90] - rows_of(unchanged, 0)["scheduled_ns"][:90]).max() <= 1


def test_requests_are_rows_as_plain_values() -> None:
    """A request is its row in plain Python numbers; a row that is not there is an IndexError."""
    trace = draw(spec(poisson(100), SPEECH, batch_units=2, timeout_ns=7), requests=10)
    request = trace.request(9)
    assert (request.request_id, request.batch_units, request.timeout_ns) == (9, 2, 7)
    assert request.audio_ns == trace.audio_ns[9]
    assert request.balancer_draw == tuple(trace.balancer_draw[9])
    assert type(request.execution_factor) is float
    assert type(request.scheduled_ns) is int
    assert trace.request(-1) == request
    with pytest.raises(IndexError):
        trace.request(10)


def test_columns_cannot_be_written_to() -> None:
    """A trace never changes, and making one does not freeze the caller's arrays."""
    trace = draw(spec(poisson(100)), requests=3)
    with pytest.raises(ValueError, match="read-only"):
        trace.scheduled_ns[0] = 5
    times = trace.scheduled_ns.copy()
    dataclasses.replace(trace, scheduled_ns=times)
    times[0] = 1


def test_merging_parts_gives_back_the_whole() -> None:
    """Traces of single models merge into the trace of both; contradictory closed loops do not merge."""
    whole = draw(spec(poisson(100)), spec(poisson(150), SPEECH), spec(CLOSED), requests=300)
    parts = []
    for model in (2, 0, 1):
        keep = whole.model_index == model
        columns: dict[str, Any] = {name: getattr(whole, name)[keep] for name in DTYPES}
        parts.append(dataclasses.replace(whole, **columns))
    assert merge(parts).equals(whole)
    other = dataclasses.replace(whole, outstanding=(None, None, 4))
    with pytest.raises(TraceError, match="model 2 has different closed loops"):
        merge([whole, other])


def test_trace_files_are_exact_and_repeatable(tmp_path: Path) -> None:
    """Writing and reading gives back every bit of every column; the same trace gives the same bytes."""
    trace = draw(spec(CLOSED), spec(poisson(100), SPEECH, priority_shares={1: 1.0, 2: 3.0}), requests=500)
    write_trace(tmp_path / "a.parquet", trace)
    write_trace(tmp_path / "b.parquet", trace)
    back = read_trace(tmp_path / "a.parquet")
    assert back.equals(trace)
    assert back.seed == 1
    assert (back.outstanding, back.refusal_backoff_ns) == (trace.outstanding, trace.refusal_backoff_ns)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_overheads_that_vary_are_kept_and_steady_ones_take_no_room(tmp_path: Path) -> None:
    """Through a file and merged with a model whose do not vary; without any, all rows are one in memory."""
    jitters = tuple(parse(JitterConfig, {"kind": "lognormal", "cv": cv}) for cv in (0.1, 0.2, 0.4, 0.3))
    varying, steady = spec(poisson(100), overhead_jitters=jitters), spec(poisson(50))
    alone = draw(varying, requests=2000)
    assert alone.overhead_factor.std(axis=0) == pytest.approx([0.1, 0.2, 0.4, 0.3], rel=0.1)
    both = draw(varying, steady, requests=600)
    assert (both.overhead_factor[both.model_index == 1] == 1.0).all()
    mine = both.overhead_factor[both.model_index == 0]
    assert np.array_equal(mine, alone.overhead_factor[: len(mine)])
    write_trace(tmp_path / "varying.parquet", both)
    assert read_trace(tmp_path / "varying.parquet").equals(both)
    table = pq.read_table(tmp_path / "varying.parquet")
    pq.write_table(table.drop_columns(["overhead_factor_response_next"]), tmp_path / "older.parquet")
    older = read_trace(tmp_path / "older.parquet").overhead_factor
    assert np.array_equal(older, np.column_stack([both.overhead_factor[:, :3], np.ones(len(both))]))
    plain = draw(steady, steady, requests=100)
    write_trace(tmp_path / "steady.parquet", plain)
    assert "overhead_factor_frontend" not in pq.read_table(tmp_path / "steady.parquet").column_names
    for trace in (plain, read_trace(tmp_path / "steady.parquet"), plain.rows(10, 20)):
        assert trace.overhead_factor.strides[0] == 0
        assert (trace.overhead_factor == 1.0).all()


def test_what_is_no_trace_is_not_read_as_one(tmp_path: Path) -> None:
    """A missing, foreign or damaged file is one clear error; an unwritable place leaves nothing behind."""
    trace = draw(spec(poisson(100)), requests=5)
    with pytest.raises(MissingFileError, match="no such trace"):
        read_trace(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(FormatError, match="not a Parquet file"):
        read_trace(tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(FormatError, match="not a preba trace"):
        read_trace(tmp_path / "foreign.parquet")
    write_trace(tmp_path / "good.parquet", trace)
    table = pq.read_table(tmp_path / "good.parquet")
    pq.write_table(table.drop_columns(["audio_ns"]), tmp_path / "hole.parquet")
    with pytest.raises(FormatError, match="'audio_ns' is missing"):
        read_trace(tmp_path / "hole.parquet")
    pq.write_table(table.take(list(reversed(range(5)))), tmp_path / "back.parquet")
    with pytest.raises(FormatError, match="sorted by scheduled_ns"):
        read_trace(tmp_path / "back.parquet")
    with pytest.raises(OutputError, match="cannot write the trace"):
        write_trace(tmp_path / "absent" / "t.parquet", trace)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("scheduled_ns", -1, r"trace.scheduled_ns\[0\]: must be >= 0, got -1"),
        ("jpeg_bytes", -5, "jpeg_bytes"),
        ("batch_units", 0, r"batch_units\[0\]: must be >= 1, got 0"),
        ("execution_factor", float("nan"), "execution_factor"),
        ("preprocess_factor", float("inf"), "must be finite"),
        ("balancer_draw", 1.0, "must be < 1"),
        ("model_index", 1, "model_index: must be < 1, got 1"),
    ],
)
def test_senseless_columns_are_refused(column: str, value: float, message: str) -> None:
    """A trace with a value that means nothing cannot be made; the message names column, row and value."""
    trace = draw(spec(poisson(100)), requests=4)
    changed = getattr(trace, column).copy()
    changed[0] = value
    with pytest.raises(TraceError, match=message):
        dataclasses.replace(trace, **{column: changed})


def test_misshapen_traces_are_refused() -> None:
    """Columns of another length, type or order are refused, and so are times in a closed loop."""
    trace = draw(spec(poisson(100)), requests=4)
    with pytest.raises(TraceError, match=r"audio_ns: must have shape \(4,\), got \(3,\)"):
        dataclasses.replace(trace, audio_ns=trace.audio_ns[:3])
    with pytest.raises(TraceError, match="think_ns: must be int64, got float64"):
        dataclasses.replace(trace, think_ns=trace.think_ns.astype(float))
    with pytest.raises(TraceError, match="row 1 must not come before row 0"):
        dataclasses.replace(trace, scheduled_ns=trace.scheduled_ns[::-1])
    with pytest.raises(TraceError, match="must be 0 in a closed loop"):
        dataclasses.replace(trace, outstanding=(3,))


@pytest.mark.parametrize(
    ("specs", "changes", "horizon", "message"),
    [
        ((), (), {"requests": 1}, "at least one model"),
        ((spec(poisson(1)),), (), {"duration_ns": 5}, "no request arrives"),
        ((spec(CLOSED),), (), {"duration_ns": NS}, "give run.requests"),
        ((spec(CLOSED), spec(poisson(1))), (), {"requests": 1}, "without any"),
        ((spec(CLOSED),), (RateChange(5, 2.0),), {"requests": 9}, "closed loop has no rate"),
        (
            (spec(CLOSED), spec(poisson(1))),
            (RateChange(5, 2.0, 0),),
            {"requests": 9},
            "closed loop has no rate",
        ),
        ((spec(poisson(1)),), (RateChange(5, 2.0, 1),), {"requests": 9}, "model_index: must be < 1, got 1"),
        ((spec(poisson(5)), spec(poisson(5))), (RateChange(NS, 0.0),), {"requests": 999}, "asked, only"),
    ],
)
def test_traces_that_cannot_be_drawn_say_why(
    specs: tuple[StreamSpec, ...], changes: tuple[RateChange, ...], horizon: dict[str, int], message: str
) -> None:
    """A trace that cannot be drawn is one error with the way out."""
    with pytest.raises(TraceError, match=message):
        draw(*specs, changes=changes, **horizon)


@pytest.mark.bench
def test_a_million_requests_are_drawn_quickly() -> None:
    """Prints how long a million requests of each kind of traffic take to draw."""
    kinds = (poisson(1000), {"kind": "diurnal", "mean_rps": 1000, "amplitude": 0.9, "period_s": 60}, CLOSED)
    for arrivals in kinds:
        start = time.perf_counter()
        trace = draw(spec(arrivals, SPEECH), requests=1_000_000)
        print(f"{arrivals['kind']}: {time.perf_counter() - start:.3f} s")  # noqa: T201 - a benchmark prints
        assert len(trace) == 1_000_000


def test_spec_bounds_are_checked() -> None:
    """A batch dimension, timeout or priority share that means nothing is refused."""
    closed = ClosedLoopArrivals(kind="closed_loop", outstanding=1)
    sizes = parse(SizesConfig, IMAGES)
    for wrong in (
        {"batch_units": 0},
        {"timeout_ns": -1},
        {"priority_shares": {0: 1.0}},
        {"priority_shares": {1: 0.0}},
    ):
        with pytest.raises(TraceError):
            StreamSpec(closed, sizes, **wrong)
