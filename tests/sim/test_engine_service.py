"""How long things take and in which order they happen, on scenarios small enough to work out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.errors import ScenarioError
from preba.records import OUTCOMES
from preba.units import NS_PER_MS, NS_PER_US
from sim.order import (
    RANK_ARRIVAL,
    RANK_CONSUMER_READY,
    RANK_EXECUTION_END,
    RANK_SCENARIO,
    RANK_STATION_LEAVE,
    RANK_TIMER,
    RANK_UNIT_RELEASE,
    order_key,
)
from sim.run import ENGINES

TEN_MS = {"full": {"1": 10.0, "8": 10.0}}
GROWING = {"full": {"1": 2.0, "8": 9.0}}


def test_engine_times_a_request_through_every_stage(toy: Any, tmp_path: Any) -> None:
    """Preprocessing, front end, batching, execution, response and turn-around follow each other exactly."""
    model = toy.model(
        toy.profile(GROWING),
        toy.arrivals_at(tmp_path, [0.0, 0.5]),
        batcher={"kind": "fixed", "batch_max": 8, "timeout_ms": 4.0},
    )
    overheads = {
        "ingress_us": 250.0, "frontend_us": 100.0, "dispatch_us": 150.0, "turnaround_us": 300.0, "response_us": 50.0,
    }  # fmt: skip
    data = toy.scenario(
        [model], requests=2, preprocessing=toy.cpu(1, 1800.0, usable=0.9), server={"overheads": overheads}
    )
    records = toy.run(data).result.records
    # 1.8 ms of work take 2 ms of a core that is 90 % usable; the batch leaves 4 ms after its oldest came.
    expected_us = {
        "scheduled_ns": [0, 500],
        "preprocess_start_ns": [250, 2250],
        "preprocess_end_ns": [2250, 4250],
        "preprocess_wait_ns": [250, 1750],
        "enqueued_ns": [2350, 4350],
        "dispatched_ns": [6350, 6350],
        "execution_start_ns": [6500, 6500],
        "execution_end_ns": [9500, 9500],
        "completed_ns": [9550, 9550],
        "batch_size": [2 / NS_PER_US] * 2,
    }
    for name, values in expected_us.items():
        assert getattr(records, name).tolist() == [round(value * NS_PER_US) for value in values], name


def test_slice_takes_the_next_batch_after_its_turnaround(toy: Any, tmp_path: Any) -> None:
    """Between two executions of a busy slice lie the turn-around and the way to the slice and nothing else."""
    model = toy.model(toy.profile(TEN_MS), toy.arrivals_at(tmp_path, [0.0, 1.0, 2.0]))
    for overheads, first_ms in (({"turnaround_us": 300.0}, 0.0), ({"dispatch_us": 200.0, "turnaround_us": 100.0}, 0.2)):
        data = toy.scenario([model], requests=3, server={"overheads": overheads})
        starts = toy.run(data).result.records.execution_start_ns / NS_PER_MS
        assert starts.tolist() == [first_ms, first_ms + 10.3, first_ms + 20.6]


def test_way_to_preprocessing_is_for_requests_that_are_preprocessed(toy: Any, tmp_path: Any) -> None:
    """It varies with the request, before any waiting for a unit; a request without preprocessing has none."""
    times = toy.arrivals_at(tmp_path, [0.0, 5.0, 10.0])
    varies = {"kind": "lognormal", "cv": 0.5}
    server = {"overheads": {"ingress_us": 250.0, "frontend_us": 100.0, "frontend_jitter": varies}}
    model = toy.model(toy.profile(TEN_MS), times)
    run = toy.run(toy.scenario([model], requests=3, preprocessing=toy.cpu(1, 900.0), server=server))
    records, factors = run.result.records, run.trace.overhead_factor[:, 0]
    assert (records.preprocess_start_ns - records.scheduled_ns).tolist() == np.round(250_000 * factors).tolist()
    assert (records.enqueued_ns - records.preprocess_end_ns).tolist() == np.round(100_000 * factors).tolist()
    records = toy.run(toy.scenario([model], requests=3, server=server)).result.records
    assert (records.enqueued_ns - records.scheduled_ns).tolist() == np.round(100_000 * factors).tolist()


def test_overheads_vary_by_the_factors_of_the_trace(toy: Any, tmp_path: Any) -> None:
    """The way has its own request's factor, turnaround and first answer that of the batch's first, the next its own."""
    times = toy.arrivals_at(tmp_path, [0.0, 1.0, 2.0])
    model = toy.model(toy.profile({"full": {"1": 10, "2": 10}}), times, batcher={"kind": "greedy", "batch_max": 2})
    varies = {"kind": "lognormal", "cv": 0.5}
    overheads = {
        "frontend_us": 100.0, "frontend_jitter": varies, "turnaround_us": 300.0, "turnaround_jitter": varies,
        "response_us": 500.0, "response_request_us": 50.0, "response_jitter": varies,
        "response_next_us": 80.0, "response_next_jitter": varies,
    }  # fmt: skip
    run = toy.run(toy.scenario([model], requests=3, server={"overheads": overheads}))
    records, factors = run.result.records, run.trace.overhead_factor
    assert len(np.unique(factors)) == 12
    way, back = np.array([100_000, 100_000, 100_000]), np.array([550_000, 600_000])
    assert (records.enqueued_ns - records.scheduled_ns).tolist() == np.round(way * factors[:, 0]).tolist()
    assert records.batch_id.tolist() == [0, 1, 1]
    back = np.round(back * factors[:2, 2])
    after = records.completed_ns - records.execution_end_ns
    assert after.tolist() == [back[0], back[1] + round(80_000 * factors[1, 3]), back[1]]  # answers in any order
    assert records.execution_start_ns[1] - records.execution_end_ns[0] == round(300_000 * factors[0, 1])
    steady = toy.run(toy.scenario([model], requests=3, server={"overheads": {"frontend_us": 100.0}}))
    assert steady.trace.overhead_factor.strides[0] == 0


def test_turnaround_and_answers_take_longer_for_larger_batches(toy: Any, tmp_path: Any) -> None:
    """A batch of two keeps its slice 0.2 ms longer than one of one; its answers are 0.05 ms later, the last 0.07."""
    times = toy.arrivals_at(tmp_path, [0.0, 1.0, 2.0, 11.0])
    model = toy.model(toy.profile({"full": {"1": 10, "2": 10}}), times, batcher={"kind": "greedy", "batch_max": 2})
    overheads = {
        "turnaround_us": 100.0,
        "turnaround_request_us": 200.0,
        "response_us": 500.0,
        "response_request_us": 50.0,
        "response_next_us": 20.0,
    }
    records = toy.run(toy.scenario([model], requests=4, server={"overheads": overheads})).result.records
    starts = records.execution_start_ns / NS_PER_MS
    assert starts.tolist() == [0.0, 10.3, 10.3, 20.8]
    assert (records.execution_end_ns / NS_PER_MS).tolist() == [10.0, 20.3, 20.3, 30.8]
    assert (records.completed_ns / NS_PER_MS).tolist() == [10.55, 20.9, 20.92, 31.35]


def test_audio_batch_takes_the_time_of_its_longest_input(toy: Any, tmp_path: Any) -> None:
    """Batch time is read at the longest input, rounded up to 0.1 s; a batch is as long as that for everybody."""
    path = tmp_path / "sizes.csv"
    path.write_text("length_s\n5.0\n2.03\n1.0\n")
    sizes = {"kind": "empirical", "file": str(path), "column": "length_s", "unit": "s", "order": "in_order"}
    model = toy.model(
        toy.audio_profile(["full"]),
        toy.arrivals_at(tmp_path, [0.0, 0.0, 0.0]),
        sizes=sizes,
        batcher={"kind": "greedy"},
    )
    records = toy.run(toy.scenario([model], requests=3)).result.records
    # 2 ms + 1 ms per item of 10 s: the first alone at 5 s, then two at 2.1 s (the longest input of the run is 5 s).
    assert (records.execution_end_ns - records.execution_start_ns).tolist() == [2_500_000, 2_500_000, 2_500_000]
    lengthy = toy.audio_profile(["full"])
    lengthy["closed_form"]["floor_ms"] = 0.1
    records = toy.run(toy.scenario([{**model, "profile": lengthy}], requests=3)).result.records
    assert (records.execution_end_ns - records.execution_start_ns).tolist() == [2_500_000, 2_420_000, 2_420_000]


def test_busy_neighbours_slow_a_slice_in_proportion(toy: Any, tmp_path: Any) -> None:
    """With interference f, a batch that starts beside k of the 6 busy neighbours takes 1 + f * k / 6 as long."""
    slow = {"busy_neighbour_fraction": 0.06, "provenance": {"kind": "modelled", "source": "made up for a test"}}
    profile = toy.profile({"1g": {"1": 10.0}}, interference=slow)
    model = toy.model(profile, toy.arrivals_at(tmp_path, [0.0] * 7))
    records = toy.run(toy.scenario([model], requests=7, partition="7x1g.5gb")).result.records
    took = records.execution_end_ns - records.execution_start_ns
    assert took.tolist() == [10_000_000 + 100_000 * busy for busy in range(7)]


@pytest.mark.parametrize(("merge_reach", "expected"), [(0, [2, 2, 2, 1, 2]), (1, [3, 3, 2, 3, 2])])
def test_audio_lengths_fall_into_buckets_of_two_and_a_half_seconds(
    toy: Any, tmp_path: Any, merge_reach: int, expected: list[int]
) -> None:
    """An input of exactly 2.5 s belongs to the longer bucket; only one bucket, or neighbours, share a batch."""
    path = tmp_path / "sizes.csv"
    path.write_text("length_s\n0.4\n2.4999\n7.5\n2.5\n9.9\n")
    model = toy.model(
        toy.audio_profile(["full"]),
        toy.arrivals_at(tmp_path, [0.0, 0.0, 0.0, 0.0, 0.0]),
        sizes={"kind": "empirical", "file": str(path), "column": "length_s", "unit": "s", "order": "in_order"},
        batcher={"kind": "preba", "batch_max": 8, "time_queue_ms": 5.0, "merge_reach": merge_reach},
    )
    records = toy.run(toy.scenario([model], requests=5)).result.records
    assert records.batch_size.tolist() == expected


def test_slice_that_failed_and_returned_forgets_its_old_batch(toy: Any, tmp_path: Any) -> None:
    """The end of a batch that was lost with its slice does not make the slice ask for work after its return."""
    model = toy.model(toy.profile(TEN_MS), toy.arrivals_at(tmp_path, [0.0, 1.0, 2.0]))
    events = [{"kind": "slice_fails", "at_s": 0.003, "slice": 0}, {"kind": "slice_returns", "at_s": 0.005, "slice": 0}]
    records = toy.run(toy.scenario([model], requests=3, events=events)).result.records
    assert (records.execution_start_ns / NS_PER_MS).tolist() == [25.0, 5.0, 15.0]
    assert np.array_equal(records.dispatched_ns, records.execution_start_ns)


@pytest.mark.parametrize("failing", [False, True])
def test_least_outstanding_sends_everyone_to_a_shortest_server(toy: Any, failing: bool) -> None:
    """No other server holds fewer requests when a request is sent, whatever the slices, also after one was lost."""
    table = {"1g": {"1": 9.0}, "2g": {"1": 5.0}, "3g": {"1": 3.0}}
    arrivals = {"kind": "poisson", "rate_rps": 600.0}
    model = toy.model(toy.profile(table), arrivals, execution_jitter={"kind": "exponential"})
    server = {"topology": "per_slice", "balancer": "least_outstanding"}
    names = ("slice_fails", "slice_returns")
    events = [{"kind": name, "at_s": at_s, "slice": 1} for name, at_s in zip(names, (0.3, 0.31), strict=True)]
    data = toy.scenario([model], partition="3g.20gb+2g.10gb+2x1g.5gb", server=server, events=events if failing else [])
    records = toy.run(data).result.records
    calm_ns = records.completed_ns[records.attempts == 2].max(initial=310 * NS_PER_MS) if failing else 0
    sent = np.flatnonzero(records.enqueued_ns > calm_ns)
    assert len(sent) > 500
    for request in sent:
        now = records.enqueued_ns[request]
        before = records.select(np.arange(request))
        inside = np.bincount(before.server_index[before.execution_end_ns > now], minlength=4)
        assert inside[records.server_index[request]] == inside.min()


def test_lost_slice_is_no_busy_neighbour(toy: Any, tmp_path: Any) -> None:
    """What a slice was executing when it was lost slows nobody any more."""
    slow = {"busy_neighbour_fraction": 0.06, "provenance": {"kind": "modelled", "source": "made up for a test"}}
    profile = toy.profile({"1g": {"1": 10.0}}, interference=slow)
    model = toy.model(profile, toy.arrivals_at(tmp_path, [0.0, 2.0]))
    events = [{"kind": "slice_fails", "at_s": 0.001, "slice": 0}]
    data = toy.scenario([model], requests=2, partition="2x1g.5gb", events=events, server={"on_slice_loss": "fail"})
    records = toy.run(data).result.records
    assert records.execution_end_ns[1] - records.execution_start_ns[1] == 10_000_000


def test_slice_of_another_gpu_is_no_neighbour(toy: Any, tmp_path: Any) -> None:
    """Interference stays within a GPU."""
    slow = {"busy_neighbour_fraction": 0.06, "provenance": {"kind": "modelled", "source": "made up for a test"}}
    profile = toy.profile({"full": {"1": 10.0}}, interference=slow)
    model = toy.model(profile, toy.arrivals_at(tmp_path, [0.0] * 2))
    gpus = [{"device": "A100-40GB", "partition": "full", "count": 2}]
    records = toy.run(toy.scenario([model], requests=2, gpus=gpus)).result.records
    assert (records.execution_end_ns - records.execution_start_ns).tolist() == [10_000_000] * 2


def test_shared_preprocessing_is_part_of_the_execution_and_slows_it(toy: Any, tmp_path: Any) -> None:
    """DALI on the model's slice takes one launch and its items first; the execution itself is 10 % slower."""
    model = toy.model(toy.profile({"7g": {"1": 10.0, "8": 10.0}}), toy.arrivals_at(tmp_path, [0.0, 1.0, 1.0]))
    model["batcher"] = {"kind": "greedy"}
    image = {"fixed_us": 700.0, "per_100kb_us": 0.0}
    preprocessing = toy.dali("dali_shared", launch_us=200.0, image=image, interference=0.1, hw_decoder_share=0.0)
    records = toy.run(
        toy.scenario([model], requests=3, partition="1x7g.40gb", preprocessing=preprocessing)
    ).result.records
    # 0.7 ms of one GPC take 0.1 ms on seven.
    assert records.slice_preprocess_ns.tolist() == [300_000, 400_000, 400_000]
    took = records.execution_end_ns - records.execution_start_ns
    assert (took - records.slice_preprocess_ns).tolist() == [11_000_000] * 3


def test_request_of_more_units_than_the_largest_batch_is_refused_up_front(toy: Any) -> None:
    """A request that no batch can hold is a mistake in the scenario, said before anything runs."""
    model = toy.model(toy.profile(TEN_MS), {"kind": "poisson", "rate_rps": 10}, batch_units=2)
    with pytest.raises(ScenarioError, match=r"^scenario\.models\[0\]\.batch_units: .*2 units .* limit is 1"):
        toy.run(toy.scenario([model]))


def test_queue_limit_refuses_who_comes_while_it_is_full(toy: Any, tmp_path: Any) -> None:
    """With queue_max 2 the third waiting request is turned away at once and costs nobody anything."""
    model = toy.model(toy.profile(TEN_MS), toy.arrivals_at(tmp_path, [0.0, 1.0, 2.0, 3.0, 12.0]))
    model["batcher"] = {"kind": "none", "queue_max": 2}
    records = toy.run(toy.scenario([model], requests=5)).result.records
    assert [OUTCOMES[code] for code in records.outcome] == ["served"] * 3 + ["refused_queue_full", "served"]
    assert records.completed_ns[3] == 3 * NS_PER_MS
    assert (records.execution_start_ns[records.served] / NS_PER_MS).tolist() == [0, 10, 20, 30]


@given(
    first=st.tuples(st.integers(0, 6), st.integers(0, 2**48 - 1)),
    second=st.tuples(st.integers(0, 6), st.integers(0, 2**48 - 1)),
)
def test_simultaneous_events_sort_by_rank_then_id(first: tuple[int, int], second: tuple[int, int]) -> None:
    """The key of an event sorts as the pair of its rank and its id does."""
    assert (order_key(*first) < order_key(*second)) == (first < second)


def test_simultaneous_events_have_the_documented_order() -> None:
    """Completions come before what the scenario does, that before arrivals, and those before timers."""
    ranks = [
        RANK_EXECUTION_END,
        RANK_CONSUMER_READY,
        RANK_SCENARIO,
        RANK_UNIT_RELEASE,
        RANK_STATION_LEAVE,
        RANK_ARRIVAL,
        RANK_TIMER,
    ]
    assert ranks == sorted(set(ranks))


def test_arrival_at_the_moment_a_slice_falls_idle_finds_it_idle(toy: Any, tmp_path: Any) -> None:
    """A completion comes before an arrival of the same instant."""
    model = toy.model(toy.profile(TEN_MS), toy.arrivals_at(tmp_path, [0.0, 10.0, 20.0]))
    records = toy.run(toy.scenario([model], requests=3)).result.records
    assert np.array_equal(records.execution_start_ns, records.scheduled_ns)


def test_arrival_at_the_moment_a_batch_is_due_still_joins_it(toy: Any, tmp_path: Any) -> None:
    """An arrival comes before a timer of the same instant."""
    model = toy.model(toy.profile(TEN_MS), toy.arrivals_at(tmp_path, [0.0, 5.0]))
    model["batcher"] = {"kind": "fixed", "batch_max": 8, "timeout_ms": 5.0}
    records = toy.run(toy.scenario([model], requests=2)).result.records
    assert records.batch_size.tolist() == [2, 2]


def test_unknown_engine_is_an_error_that_names_the_known(toy: Any) -> None:
    """A misspelt engine gives one line that suggests the right name."""
    model = toy.model(toy.profile(TEN_MS), {"kind": "poisson", "rate_rps": 10})
    with pytest.raises(NotImplementedError, match=r"^--engine: 'referense' .*did you mean 'reference'"):
        toy.run(toy.scenario([model]), engine="referense")
    assert "reference" in ENGINES


def test_execution_profile_must_cover_the_batches_that_are_planned(toy: Any) -> None:
    """A batch that the other profile does not know would take no time: it is refused, by name and size."""
    model = toy.model(
        toy.profile({"full": {"1": 10, "8": 20}}), {"kind": "poisson", "rate_rps": 100},
        batcher={"kind": "greedy", "batch_max": 8}, execution_profile=toy.profile({"full": {"1": 10, "4": 14}}),
    )  # fmt: skip
    with pytest.raises(ScenarioError, match=r"execution_profile: 'toy' knows batches up to 4 .* batches of 8"):
        toy.run(toy.scenario([model], requests=10))


def test_core_that_rested_takes_longer(toy: Any, tmp_path: Any) -> None:
    """Only for an input that finds it idle, not for one that has waited for it."""
    model = toy.model(toy.profile(TEN_MS), toy.arrivals_at(tmp_path, [0.0, 0.5, 5.0]))
    preprocessing = {**toy.cpu(1, 1000.0), "rested_us": 200.0}
    records = toy.run(toy.scenario([model], requests=3, preprocessing=preprocessing)).result.records
    assert (records.preprocess_end_ns / NS_PER_MS).tolist() == [1.2, 2.2, 6.2]


def test_late_timer_lets_others_join(toy: Any, tmp_path: Any) -> None:
    """A batch that is due leaves with an arrival before the timer rings, or else when it does."""
    times = toy.arrivals_at(tmp_path, [0.0, 4.1, 30.0, 34.3])
    model = toy.model(toy.profile(GROWING), times, batcher={"kind": "fixed", "batch_max": 8, "timeout_ms": 4.0})
    data = toy.scenario([model], requests=4, server={"overheads": {"timer_us": 200.0}})
    records = toy.run(data).result.records
    assert records.batch_size.tolist() == [2, 2, 1, 1]
    assert (records.execution_start_ns / NS_PER_MS).tolist() == [4.1, 4.1, 34.2, 38.5]
