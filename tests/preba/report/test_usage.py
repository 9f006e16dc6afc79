"""Promises of preba.report.usage, stages and series: exact integrals and stages that add up."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.records import RunResult
from preba.report.series import BINS_MAX, POINTS_MAX, latency_curve, time_series
from preba.report.stages import STAGE_LABELS, STAGES, stage_ns
from preba.report.usage import Intervals, disjoint, distinct_names, integral_ns, queue_intervals, slice_busy

Run = Callable[..., RunResult]

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=25)


def _intervals(pairs: list[tuple[int, int]]) -> Intervals:
    table = np.array([(a, a + length) for a, length in pairs], dtype=np.int64).reshape(-1, 2)
    return Intervals(table[:, 0], table[:, 1])


def _open_at(intervals: Intervals, moment: int) -> int:
    return int(((intervals.from_ns <= moment) & (moment < intervals.to_ns)).sum())


@given(spans, st.integers(0, 20), st.integers(1, 15), st.integers(1, 6))
def test_integral_counts_every_nanosecond(pairs: list[tuple[int, int]], first: int, width: int, bins: int) -> None:
    """The integral over a bin is the number of open intervals, summed over the bin's nanoseconds."""
    intervals = _intervals(pairs)
    edges = np.array([first + width * k for k in range(bins + 1)], dtype=np.int64)
    counted = [sum(_open_at(intervals, t) for t in range(a, b)) for a, b in itertools.pairwise(edges.tolist())]
    np.testing.assert_allclose(integral_ns(intervals, edges), counted, atol=1e-9)


@given(spans)
def test_disjoint_covers_the_same_time_once(pairs: list[tuple[int, int]]) -> None:
    """Disjoint intervals are open exactly where at least one of the given ones is, and never twice."""
    intervals = _intervals(pairs)
    once = disjoint(intervals)
    for moment in range(100):
        assert _open_at(once, moment) == min(1, _open_at(intervals, moment))


def test_stages_add_up_to_the_latency_exactly(make_run: Run) -> None:
    """Every served request's stages sum to its latency, to the nanosecond."""
    result = make_run(500, refuse_every=9, slice_preprocess_ms=0.25)
    served = result.records.select(result.records.served)
    parts = stage_ns(served)
    assert tuple(parts) == STAGES
    assert set(STAGE_LABELS) == {*STAGES, "total"}
    np.testing.assert_array_equal(sum(parts.values()), served.latency_ns)
    assert all(int(times.min()) >= 0 for times in parts.values())


def test_stages_of_a_refused_request_are_an_error(make_run: Run) -> None:
    """A request without an answer has no stages, and asking for them fails."""
    with pytest.raises(ValueError, match="served requests only"):
        stage_ns(make_run(20, refuse_every=5).records)


def test_slices_are_busy_for_the_sum_of_their_batches(make_run: Run) -> None:
    """Over the whole run a slice is busy for exactly the time of its batches, each counted once."""
    result = make_run(400, batch=4)
    records = result.records
    edges = np.array([0, result.end_ns + 1], dtype=np.int64)
    for index in range(len(result.slices)):
        rows = np.flatnonzero(records.slice_index == index)
        _, first = np.unique(records.batch_id[rows], return_index=True)
        batches = rows[first]
        expected = int((records.execution_end_ns - records.execution_start_ns)[batches].sum())
        assert slice_busy(result, edges)[index, 0] == pytest.approx(expected, rel=1e-12)


def test_queue_time_obeys_littles_law(make_run: Run) -> None:
    """Over the whole run the mean queue length times its duration is the sum of the waiting times."""
    result = make_run(600, cores=2, slices=1)
    records = result.records
    edges = np.array([0, result.end_ns], dtype=np.int64)
    stays = queue_intervals(result)
    waits = {
        "preprocessing": records.preprocess_wait_ns,
        "batcher": records.dispatched_ns - records.enqueued_ns,
        "formed": records.execution_start_ns - records.dispatched_ns,
    }
    for name, expected in waits.items():
        assert expected.sum() > 0
        assert integral_ns(stays[name], edges)[0] == pytest.approx(float(expected.sum()), rel=1e-12)


def test_queues_of_refused_requests_end_with_the_refusal(make_run: Run) -> None:
    """A request refused in the batcher waits there until its refusal and nowhere after."""
    result = make_run(20, refuse_every=5)
    records = result.records
    refused = np.flatnonzero(~records.served)
    records.completed_ns[refused] += 777
    stays = queue_intervals(result)
    lengths = (stays["batcher"].to_ns - stays["batcher"].from_ns).tolist()
    assert lengths.count(777) == len(refused)


def test_time_series_integrate_to_the_totals(make_run: Run) -> None:
    """The bins of a time series add up to the run's own totals, and there are never more than a page shows."""
    result = make_run(20_000, cores=3)
    series = time_series(result)
    widths = np.diff(series.edges_s)
    assert len(widths) == BINS_MAX
    waited_s = float(result.records.preprocess_wait_ns.sum()) / 1e9
    assert float(series.queues["preprocessing"] @ widths) == pytest.approx(waited_s, rel=1e-9)
    assert set(series.slices) == {unit.name for unit in result.slices}
    assert all(float(np.max(share)) <= 1.0 for share in series.slices.values())


def test_time_series_of_a_slice_out_of_service_has_a_gap(make_run: Run) -> None:
    """Where a slice is out of service it is neither busy nor idle."""
    result = make_run(5000, outages=((1, 1_000_000_000, 3_000_000_000),))
    series = time_series(result)
    middle = 0.5 * (series.edges_s[1:] + series.edges_s[:-1])
    well_inside = (middle > 1.2) & (middle < 2.8)
    assert np.all(np.isnan(series.slices["gpu0/1g.5gb@1"][well_inside]))
    assert not np.any(np.isnan(series.slices["gpu0/1g.5gb@0"]))


@given(st.integers(1, 5000), st.integers(0, 2**32))
def test_latency_curve_keeps_the_ends_and_stays_short(count: int, seed: int) -> None:
    """A thinned curve holds the smallest and the largest latency, rises, and has a point at its true height."""
    latency = np.random.default_rng(seed).integers(0, 10**9, count)
    ms, share = latency_curve(latency)
    assert len(ms) <= POINTS_MAX
    assert ms[0] == latency.min() / 1e6
    assert ms[-1] == latency.max() / 1e6
    assert share[-1] == 1.0
    assert np.all(np.diff(ms) >= 0)
    assert np.all(np.diff(share) > 0)
    place = len(ms) // 2
    assert share[place] <= float((latency / 1e6 <= ms[place]).mean())


def test_distinct_names_never_repeat() -> None:
    """Equal names get a counter, so that none hides another."""
    assert distinct_names(["cpu", "hop", "cpu"]) == ["cpu", "hop", "cpu #2"]
