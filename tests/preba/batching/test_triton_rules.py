"""Triton's batcher, rule by rule: queue policies, priorities, shapes, merging, faults, rate limits."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from preba.batching import brain
from preba.batching import triton_layout as t
from preba.batching.replay import Played, play
from preba.batching.state import (
    NEVER,
    NONE,
    O_COUNT,
    O_UNITS,
    PENDING,
    REFUSED_QUEUE_FULL,
    REFUSED_TIMEOUT,
    SERVED,
    V_WAITING,
    BatcherState,
)
from preba.batching.triton import batcher_is_first
from preba.batching.triton_config import TritonBatcher
from preba.units import NS_PER_MS, ns_from_ms


def batcher(**fields: Any) -> TritonBatcher:
    # The rules as they are read: no race is lost unless a test is about them.
    common = {"kind": "triton", "max_batch_size": 8, "quirks": {"batcher_first_permille": 0}}
    return TritonBatcher.model_validate_json(json.dumps({**common, **fields}))


def fresh(config: TritonBatcher, capacity: int = 64, *, consumers: int = 1, up: bool = True) -> BatcherState:
    state = config.to_settings().make_state(consumers=consumers, capacity=capacity)
    if up:
        for consumer in range(consumers):
            brain.consumer_up(state, 0, consumer)
        assert taken(state, 0) == []
    return state


def taken(state: BatcherState, now_ms: float) -> list[list[int]]:
    """What leaves now, as lists of requests."""
    batches = []
    while brain.take_batch(state, ns_from_ms(now_ms)) != NONE:
        batches.append(list(state.out_request[: state.out[O_COUNT]]))
    return batches


def offer(state: BatcherState, now_ms: float, *requests: int) -> list[list[int]]:
    """Offers requests one by one, each followed by what leaves."""
    batches = []
    for request in requests:
        assert brain.enqueue(state, ns_from_ms(now_ms), request) == SERVED
        batches += taken(state, now_ms)
    return batches


def finish(state: BatcherState, now_ms: float, consumer: int = 0) -> list[list[int]]:
    brain.consumer_idle(state, ns_from_ms(now_ms), consumer)
    return taken(state, now_ms)


def tick(state: BatcherState, now_ms: float) -> list[list[int]]:
    brain.advance(state, ns_from_ms(now_ms))
    return taken(state, now_ms)


def refused(state: BatcherState) -> list[tuple[int, int]]:
    found = []
    request = brain.take_refused(state)
    while request != NONE:
        found.append((request, state.request_outcome[request]))
        request = brain.take_refused(state)
    return found


def sizes(played: Played) -> list[int]:
    return [batch.units for batch in played.batches]


def test_triton_queues_two_payloads_per_instance_and_then_stops() -> None:
    """With prefetching, at most two payloads per instance wait; the rest stays in the request queue."""
    state = fresh(batcher(max_batch_size=4, preferred_batch_size=[2]), consumers=2)
    assert offer(state, 0, 0, 1) == [[0], [1]]
    assert offer(state, 1, *range(2, 16)) == []
    assert state.scalar[t.V_QUEUE_LENGTH] == 4
    # Three payloads of the preferred size; the fourth fills the queue with one request and grows no more.
    assert state.scalar[V_WAITING] == 14 - 3 * 2 - 1


def test_triton_no_stanza_runs_each_request_alone() -> None:
    """Without a dynamic_batching stanza every request is a batch, first come first served, with no limit."""
    played = play(batcher(dynamic_batching=False).to_settings().make_state(consumers=1, capacity=9), [0] * 9, NS_PER_MS)
    assert [batch.requests for batch in played.batches] == [(request,) for request in range(9)]


def test_triton_reject_refuses_when_the_scan_meets_the_request() -> None:
    """A request older than its timeout is refused by the first scan that reaches it, not at its deadline."""
    state = fresh(batcher(default_queue_policy={"default_timeout_us": 5000}))
    assert offer(state, 0, 0) == [[0]]
    offer(state, 1, 1)
    offer(state, 9, 2)
    assert refused(state) == []
    assert finish(state, 10) == [[2]]
    assert refused(state) == [(1, REFUSED_TIMEOUT)]
    assert state.scalar[t.V_QUEUED_UNITS] == 0


def test_triton_deadline_ends_the_wait_for_more() -> None:
    """A request whose timeout is shorter than the delay is refused when it expires, and not sent at the last moment."""
    state = fresh(batcher(max_queue_delay_us=20_000, default_queue_policy={"default_timeout_us": 5000}))
    assert offer(state, 0, 0) == []
    assert offer(state, 2, 1) == []
    assert brain.due_ns(state) == ns_from_ms(5.001)
    assert tick(state, 5.001) == []
    assert refused(state) == [(0, REFUSED_TIMEOUT)]
    assert brain.due_ns(state) == ns_from_ms(7.001)
    assert tick(state, 7.001) == []
    assert refused(state) == [(1, REFUSED_TIMEOUT)]


def test_triton_higher_priority_joins_the_batch_being_formed() -> None:
    """A request of a higher level that arrives while the batcher waits goes in front of those already scanned."""
    policy = {"default_timeout_us": 50_000}
    config = batcher(max_queue_delay_us=5000, priority_levels=2, default_priority_level=2, default_queue_policy=policy)
    state = fresh(config)
    state.request_priority[1] = 1
    assert offer(state, 0, 0) == []
    assert offer(state, 1, 1) == []
    assert tick(state, 5) == [[1, 0]]


def test_triton_sleeping_batcher_tops_up_on_its_500_ms_tick() -> None:
    """A payload that arrivals do not top up takes them when the batcher's 500 ms sleep ends, however long it slept."""
    state = fresh(batcher(max_queue_delay_us=2000))
    offer(state, 0, 0)
    assert tick(state, 2) == [[0]]
    offer(state, 3, 1)
    assert tick(state, 5) == []
    offer(state, 1300, 2)
    assert brain.due_ns(state) == ns_from_ms(1505)
    tick(state, 1505)
    assert finish(state, 1506) == [[1, 2]]


def test_triton_blocked_batcher_rejects_on_its_500_ms_tick() -> None:
    """While no instance is free, a batcher first sleeps 500 ms and then refuses expired requests every 500 ms."""
    state = fresh(batcher(default_queue_policy={"default_timeout_us": 5000}))
    offer(state, 0, 0)
    offer(state, 20, 1)
    assert brain.due_ns(state) == ns_from_ms(500)
    tick(state, 500)
    assert refused(state) == []
    assert brain.due_ns(state) == ns_from_ms(1000)
    tick(state, 999)
    assert refused(state) == []
    tick(state, 1000)
    assert refused(state) == [(1, REFUSED_TIMEOUT)]
    assert brain.due_ns(state) == NEVER


def test_triton_before_24_03_never_sweeps() -> None:
    """An older server refuses expired requests only when an instance is free."""
    state = fresh(batcher(default_queue_policy={"default_timeout_us": 5000}, server_version="24.02"))
    offer(state, 0, 0)
    offer(state, 20, 1)
    tick(state, 500)
    assert brain.due_ns(state) == NEVER
    finish(state, 2600)
    assert refused(state) == [(1, REFUSED_TIMEOUT)]


def test_triton_before_23_08_prefetches_with_a_queue_policy() -> None:
    """An older server queues payloads ahead although a queue policy is set."""
    fields = {"preferred_batch_size": [4, 8], "default_queue_policy": {"default_timeout_us": 60_000_000}}
    arrivals = [request * NS_PER_MS // 10 for request in range(20)]
    for version, expected in {"23.07": [1, 4, 8, 4, 3], "23.08": [1, 8, 8, 3]}.items():
        config = batcher(server_version=version, **fields)
        state = config.to_settings().make_state(consumers=1, capacity=20)
        assert sizes(play(state, arrivals, 10 * NS_PER_MS)) == expected


def test_triton_delay_moves_expired_requests_behind_live_ones() -> None:
    """Under DELAY an expired request is served after every live one of its level and never expires again."""
    policy = {"timeout_action": "DELAY", "default_timeout_us": 5000}
    state = fresh(batcher(max_batch_size=2, default_queue_policy=policy))
    offer(state, 0, 0)
    offer(state, 1, 1, 2)
    offer(state, 9, 3)
    assert finish(state, 10) == [[3, 1]]
    offer(state, 11, 4)
    assert finish(state, 100) == [[2, 4]]
    assert refused(state) == []


def test_triton_override_only_shortens_the_timeout() -> None:
    """A request's own timeout holds if overrides are allowed and it is shorter than the default."""
    for allowed, own_ms, expired in ((True, 2, True), (True, 60, False), (False, 2, False)):
        policy = {"default_timeout_us": 50_000, "allow_timeout_override": allowed}
        state = fresh(batcher(default_queue_policy=policy))
        state.request_timeout_ns[1] = ns_from_ms(own_ms)
        offer(state, 0, 0)
        offer(state, 1, 1)
        assert finish(state, 10) == ([] if expired else [[1]])
        assert bool(refused(state)) is expired


def test_triton_override_without_a_default_is_no_timeout() -> None:
    """With no default timeout there is nothing a request could shorten."""
    state = fresh(batcher(default_queue_policy={"allow_timeout_override": True}))
    state.request_timeout_ns[1] = 1
    offer(state, 0, 0)
    offer(state, 1, 1)
    assert finish(state, 900) == [[1]]


def test_triton_full_queue_refuses_and_keeps_counting_units() -> None:
    """A bounded queue refuses beyond its limit; the server's unit count keeps what it refused."""
    state = fresh(batcher(default_queue_policy={"max_queue_size": 2}, quirks={"batcher_first_permille": 0}))
    offer(state, 0, 0)
    offer(state, 1, 1, 2)
    assert brain.enqueue(state, ns_from_ms(1), 3) == REFUSED_QUEUE_FULL
    assert state.scalar[t.V_QUEUED_UNITS] == 3
    assert finish(state, 10) == [[1, 2]]
    assert state.scalar[t.V_QUEUED_UNITS] == 1


def test_triton_serves_lower_priority_numbers_first() -> None:
    """Level 1 goes before level 2 and so on; 0 and unknown levels mean the default level."""
    state = fresh(batcher(max_batch_size=2, priority_levels=3, default_priority_level=2))
    for request, level in enumerate([1, 3, 3, 2, 0, 9, 1]):
        state.request_priority[request] = level
    assert offer(state, 0, 0) == [[0]]
    offer(state, 1, *range(1, 7))
    assert [finish(state, at)[0] for at in (10, 20, 30)] == [[6, 3], [4, 5], [1, 2]]


def test_triton_levels_have_their_own_policies() -> None:
    """A level with a policy of its own follows it, the others follow the default."""
    state = fresh(
        batcher(
            priority_levels=2,
            default_priority_level=1,
            default_queue_policy={"max_queue_size": 1},
            priority_queue_policy={"2": {"default_timeout_us": 5000}},
            quirks={"batcher_first_permille": 0},
        )
    )
    for request in (2, 3):
        state.request_priority[request] = 2
    offer(state, 0, 0)
    offer(state, 1, 1, 2, 3)
    assert brain.enqueue(state, ns_from_ms(1), 4) == REFUSED_QUEUE_FULL
    assert finish(state, 10) == [[1]]
    assert refused(state) == [(2, REFUSED_TIMEOUT), (3, REFUSED_TIMEOUT)]


def test_triton_shape_mismatch_closes_a_batch_at_once() -> None:
    """A request of another shape ends the batch before the delay is over."""
    state = fresh(batcher(max_queue_delay_us=50_000, enforce_equal_shape=True))
    state.request_shape[2] = 7
    assert offer(state, 0, 0, 1) == []
    assert offer(state, 1, 2) == [[0, 1]]


def test_triton_shape_mismatch_is_ignored_without_enforcement() -> None:
    """Where shapes need not be equal they do not end a batch."""
    state = fresh(batcher(max_queue_delay_us=50_000))
    state.request_shape[2] = 7
    assert offer(state, 0, 0, 1, 2) == []
    assert tick(state, 50) == [[0, 1, 2]]


def test_triton_equal_shape_makes_every_arrival_top_up_a_waiting_payload() -> None:
    """With equal shapes enforced a timed-out payload in the queue grows with each arrival; without, it does not."""
    for enforced, second in ((True, [1, 2, 3]), (False, [1, 2])):
        state = fresh(batcher(max_queue_delay_us=2000, enforce_equal_shape=enforced))
        offer(state, 0, 0)
        assert tick(state, 2) == [[0]]
        offer(state, 3, 1)
        offer(state, 4, 2)
        tick(state, 5)
        offer(state, 6, 3)
        assert finish(state, 12) == [second]


def busy_with_two_payloads() -> BatcherState:
    """A busy instance; at 1 ms payloads of 5 requests (a preferred size and one more) and of 3 are on their way."""
    state = fresh(batcher(preferred_batch_size=[4], max_queue_delay_us=5000))
    assert offer(state, 0, 0, 1, 2, 3) == [[0, 1, 2, 3]]
    assert offer(state, 1, *range(4, 12)) == []
    return state


def test_triton_overdue_payloads_are_merged_at_dispatch() -> None:
    """A payload that starts takes along the next one if that has waited longer than the delay and fits."""
    state = busy_with_two_payloads()
    tick(state, 6)
    assert state.scalar[t.V_QUEUE_LENGTH] == 2
    assert finish(state, 10) == [[4, 5, 6, 7, 8, 9, 10, 11]]


def test_triton_payload_exactly_as_old_as_the_delay_is_not_merged() -> None:
    """Only a payload older than the delay is merged."""
    state = busy_with_two_payloads()
    tick(state, 6)
    assert finish(state, 6) == [[4, 5, 6, 7, 8]]


@pytest.mark.parametrize(("dispatch_ms", "second"), [(10, [9, 10, 11, 12]), (4, [9, 10, 11, 12, 20])])
def test_triton_payload_that_does_not_fit_is_frozen(dispatch_ms: float, second: list[int]) -> None:
    """A payload that a dispatch wanted to merge but could not takes no more requests; a younger one still does."""
    state = busy_with_two_payloads()
    offer(state, 1, 12)  # a second payload of 4: together they would be 9
    assert finish(state, dispatch_ms) == [[4, 5, 6, 7, 8]]
    offer(state, dispatch_ms + 1, 20, 21, 22, 23)
    assert finish(state, dispatch_ms + 1) == [second]


def test_triton_closed_payloads_are_not_merged() -> None:
    """A payload that ended at a request of another shape stays alone, however long it waits."""
    state = fresh(batcher(max_queue_delay_us=1000, enforce_equal_shape=True))
    for request, shape in enumerate([0, 0, 1, 2]):
        state.request_shape[request] = shape
    offer(state, 0, 0)
    assert tick(state, 1) == [[0]]
    offer(state, 2, 1, 2)
    tick(state, 4)
    assert finish(state, 50) == [[1]]
    assert finish(state, 60) == [[2]]


@pytest.mark.parametrize(("other", "third"), [(False, [5]), (True, [5, 6])])
def test_triton_merges_neither_closed_nor_unequal_payloads(other: bool, third: list[int]) -> None:
    """An overdue payload stays alone at dispatch if its shape differs, or if another shape has closed it."""
    state = fresh(batcher(preferred_batch_size=[2], max_queue_delay_us=1000, enforce_equal_shape=True))
    shapes = [0, 0, 0, 0, 0, 1, 1] if other else [0, 0, 0, 0, 0, 0, 1]
    for request, shape in enumerate(shapes):
        state.request_shape[request] = shape
    assert offer(state, 0, 0, 1) == [[0, 1]]
    offer(state, 1, 2, 3, 4)  # a preferred size and one more
    offer(state, 1, 5, 6)
    assert finish(state, 50) == [[2, 3, 4]]
    assert finish(state, 60) == [third]


def drifting(drift: bool) -> BatcherState:
    """Two idle consumers whose threads are slow: two overdue payloads wait and one consumer takes both."""
    state = fresh(
        batcher(
            preferred_batch_size=[2],
            max_queue_delay_us=1000,
            default_queue_policy={"default_timeout_us": 60_000_000},
            quirks={"counter_drift": drift},
        ),
        consumers=2,
    )
    for request in range(6):
        brain.enqueue(state, 0, request)
    from preba.batching.triton import batcher_run  # the batcher's thread alone, ahead of the consumers'

    batcher_run(state, 0)
    return state


def test_triton_counter_drift_loses_a_consumer_for_ever() -> None:
    """With server bug 8870 each merged payload takes one from the count of waiting consumers; the repair does not."""
    for drift in (True, False):
        state = drifting(drift)
        assert state.scalar[t.V_QUEUE_LENGTH] == 2
        merged = taken(state, 5)
        assert len(merged[0]) == 5
        # One of the two consumers still waits; a drifted count says that nobody does.
        assert state.scalar[t.V_ASKING] == (0 if drift else 2 - len(merged))
        later = offer(state, 6, 10) + tick(state, 7)
        assert (merged[1:] + later == []) is drift


def test_triton_lost_wakeup_idles_until_the_tick_when_the_queue_is_full() -> None:
    """A batcher that misses the end of a batch sleeps until its 500 ms tick if no arrival can wake it."""
    config = batcher(default_queue_policy={"max_queue_size": 2}, quirks={"batcher_first_permille": 1000})
    state = fresh(config)
    offer(state, 0, 0)
    offer(state, 0, 1, 2)
    assert finish(state, 60) == []
    assert brain.enqueue(state, ns_from_ms(61), 3) == REFUSED_QUEUE_FULL
    assert taken(state, 61) == []
    assert brain.due_ns(state) == ns_from_ms(560)
    assert tick(state, 560) == [[1, 2]]


def test_triton_lost_wakeup_keeps_the_phase_of_the_tick() -> None:
    """The tick runs from when the batcher went to sleep, also through a batch longer than its period."""
    policy = {"max_queue_size": 2}
    state = fresh(batcher(default_queue_policy=policy, quirks={"batcher_first_permille": 1000}))
    offer(state, 0, 0)
    offer(state, 0, 1, 2)
    finish(state, 60)
    assert tick(state, 560) == [[1, 2]]
    offer(state, 570, 3, 4)
    tick(state, 1060)  # awake with requests waiting and no slot: from now on it waits for one
    assert finish(state, 1800) == []
    assert brain.due_ns(state) == ns_from_ms(2060)
    assert tick(state, 2060) == [[3, 4]]


def test_triton_lost_wakeup_ends_with_an_admitted_arrival() -> None:
    """Any request that is taken in wakes a batcher that missed its instance."""
    config = batcher(default_queue_policy={"max_queue_size": 4}, quirks={"batcher_first_permille": 1000})
    state = fresh(config)
    offer(state, 0, 0)
    offer(state, 0, 1, 2)
    assert finish(state, 60) == []
    assert offer(state, 61, 3) == [[1, 2, 3]]


def test_triton_overtaken_instance_that_is_back_late_is_not_there_for_arrivals_before() -> None:
    """They are taken in, but only one after it is back wakes the batcher; the tick does in any case."""
    quirks = {"batcher_first_permille": 1000, "batcher_first_late_us": 800}
    state = fresh(batcher(default_queue_policy={"max_queue_size": 8}, quirks=quirks))
    offer(state, 0, 0)
    offer(state, 0, 1)
    assert finish(state, 60) == []
    assert offer(state, 60.79, 2) == []
    assert offer(state, 60.8, 3) == [[1, 2, 3]]
    offer(state, 61, 4)
    assert finish(state, 120) == []
    assert offer(state, 120.5, 5) == []
    assert brain.due_ns(state) == ns_from_ms(620)
    assert tick(state, 620) == [[4, 5]]


def test_triton_overtaken_instance_does_not_keep_another_one_from_its_batch() -> None:
    """One that comes back while the first is still away wakes the batcher as usual."""
    quirks = {"batcher_first_permille": 1000, "batcher_first_late_us": 50_000}
    state = fresh(batcher(default_queue_policy={"max_queue_size": 8}, quirks=quirks), consumers=2)
    offer(state, 0, 0)
    tick(state, 1)
    offer(state, 2, 1)
    tick(state, 3)
    offer(state, 4, 2, 3)
    assert finish(state, 60) == []
    assert offer(state, 70, 4) == []
    assert finish(state, 80, 1) == [[2, 3, 4]]


@pytest.mark.parametrize(("lost_ms", "woken_ms"), [(None, 1060), (700, 1560)])
def test_triton_tick_does_not_see_an_instance_that_is_not_back(lost_ms: float | None, woken_ms: float) -> None:
    """It is left to the next tick; a slice that is lost meanwhile and returns is late from then on."""
    quirks = {"batcher_first_permille": 1000, "batcher_first_late_us": 600_000}
    state = fresh(batcher(default_queue_policy={"max_queue_size": 8}, quirks=quirks))
    offer(state, 0, 0)
    offer(state, 0, 1)
    assert finish(state, 60) == []
    assert tick(state, 560) == []
    if lost_ms is not None:
        brain.consumer_lost(state, ns_from_ms(lost_ms), 0)
        brain.consumer_up(state, ns_from_ms(lost_ms), 0)
        assert taken(state, lost_ms) == []
        assert tick(state, 1060) == []
    assert brain.due_ns(state) == ns_from_ms(woken_ms)
    assert tick(state, woken_ms) == [[1]]


def test_triton_lost_wakeup_shows_what_was_measured_with_a_bounded_queue() -> None:
    """A bounded queue in overload serves the measured 50 of 133 requests/s, with gaps of 440 ms and a p99 over 1 s."""
    rates, tails = [], []
    for seed in range(4):
        draws = np.random.default_rng(seed).exponential(60 / 8 / 1.3, 4000)
        arrivals = [ns_from_ms(at) for at in np.cumsum(draws)]
        config = batcher(default_queue_policy={"max_queue_size": 16}, quirks={"batcher_first_seed": seed})
        state = config.to_settings().make_state(consumers=1, capacity=4000)
        batches = play(state, arrivals, 60 * NS_PER_MS).batches
        span_ns = batches[-1].start_ns - batches[0].start_ns
        rates.append(sum(batch.units for batch in batches) / span_ns * 1e9)
        waits = [b.start_ns + 60 * NS_PER_MS - arrivals[r] for b in batches for r in b.requests]
        tails.append(float(np.percentile(waits, 99)) / NS_PER_MS)
        gaps = {round((b.start_ns - a.start_ns) / NS_PER_MS) - 60 for a, b in itertools.pairwise(batches)}
        assert 440 in gaps
    half_width = 3.182 * np.std(rates, ddof=1) / 2  # 95 %, four runs
    assert abs(np.mean(rates) - 50) < half_width
    assert min(tails) > 1000


def test_triton_races_are_drawn_independently_of_one_another() -> None:
    """The share is kept, and whether one race is won says nothing about the next ten; another seed, another series."""
    series = []
    for seed in (0, 1):
        quirks = {"batcher_first_permille": 150, "batcher_first_seed": seed}
        state = fresh(batcher(quirks=quirks))
        series.append(np.array([batcher_is_first(state) for _ in range(20_000)]))
    for won in series:
        assert abs(won.mean() - 0.15) < 0.01
        for lag in range(1, 11):
            assert abs(won[lag:][won[:-lag] == 1].mean() - 0.15) < 0.03
    assert abs(series[1][series[0] == 1].mean() - 0.15) < 0.03


@pytest.mark.parametrize(("permille", "next_batch"), [(0, [1]), (1000, [1, 2])])
def test_triton_batcher_that_overtakes_the_backend_thread_fills_the_next_batch(
    permille: int, next_batch: list[int]
) -> None:
    """At the end of a batch what came meanwhile joins the payload that waits only if the batcher runs first."""
    state = fresh(batcher(max_queue_delay_us=5000, quirks={"batcher_first_permille": permille}))
    offer(state, 0, 0)
    assert tick(state, 5) == [[0]]
    offer(state, 6, 1)
    assert tick(state, 11) == []
    assert offer(state, 15, 2) == []
    assert finish(state, 25) == [next_batch]


def test_triton_batcher_that_needs_time_to_wake_up_takes_in_what_comes_meanwhile() -> None:
    """Arrivals within the wake-up join, those after it do not, and an expired delay is noticed late too."""
    state = fresh(batcher(quirks={"batcher_wakeup_us": 300}), consumers=3)
    assert offer(state, 0, 0) == []
    assert brain.due_ns(state) == ns_from_ms(0.3)
    assert offer(state, 0.2, 1) == []
    assert tick(state, 0.3) == [[0, 1]]
    assert offer(state, 0.7, 2) == []
    assert tick(state, 1.0) == [[2]]

    state = fresh(batcher(max_queue_delay_us=5000, quirks={"batcher_wakeup_us": 300}))
    offer(state, 0, 0)
    assert tick(state, 0.3) == []
    assert tick(state, 5) == []
    assert offer(state, 5.2, 1) == []
    assert tick(state, 5.3) == [[0, 1]]


def test_triton_wakeups_that_vary_are_exponential_with_their_mean() -> None:
    """A lone request waits for its batcher: mean and standard deviation are the told time, a tenth is below a tenth."""
    quirks = {"batcher_wakeup_us": 300, "batcher_wakeup_varies": True}
    state = fresh(batcher(quirks=quirks), capacity=4000)
    waits_us = []
    for request in range(4000):
        offer(state, 10 * request, request)
        waits_us.append((brain.due_ns(state) - ns_from_ms(10 * request)) / 1000)
        assert tick(state, 10 * request + 5) == [[request]]
        finish(state, 10 * request + 6)
        tick(state, 10 * request + 9)
    assert np.mean(waits_us) == pytest.approx(300, rel=0.05)
    assert np.std(waits_us) == pytest.approx(300, rel=0.05)
    assert np.mean(np.array(waits_us) < 30) == pytest.approx(0.095, abs=0.02)
    assert abs(np.corrcoef(waits_us[1:], waits_us[:-1])[0, 1]) < 0.05


def test_triton_rate_limiter_tops_up_a_deferred_payload() -> None:
    """Under the rate limiter a payload that waits for its instance keeps growing, and no limit of 2N binds."""
    limiter = {"mode": "execution_count"}
    state = fresh(batcher(max_batch_size=4, rate_limiter=limiter), consumers=1)
    assert offer(state, 0, 0) == [[0]]
    assert offer(state, 1, *range(1, 20)) == []
    assert [len(finish(state, at)[0]) for at in (10, 20, 30, 40, 50)] == [4, 4, 4, 4, 3]


def test_triton_rate_limiter_prefers_the_least_used_instance() -> None:
    """The instance with the lowest execution count times priority is given the next payload."""
    groups = [{"count": 1, "priority": 1}, {"count": 1, "priority": 3}]
    config = batcher(instances_per_slice=2, rate_limiter={"mode": "execution_count", "groups": groups})
    state = config.to_settings().make_state(consumers=2, capacity=40)
    played = play(state, [20 * NS_PER_MS * request for request in range(40)], 10 * NS_PER_MS)
    used = [sum(batch.consumer == consumer for batch in played.batches) for consumer in range(2)]
    assert used == [30, 10]


def test_triton_rate_limiter_holds_an_instance_back_for_lack_of_resources() -> None:
    """Two instances that need the whole pool run one after the other; with a pool for both they run together."""
    for pool, together in ((1, 1), (2, 2)):
        groups = [{"count": 2, "resources": [{"name": "memory", "count": 1}]}]
        limiter = {"mode": "execution_count", "groups": groups, "pool": {"memory": pool}}
        config = batcher(max_batch_size=1, instances_per_slice=2, rate_limiter=limiter)
        state = fresh(config, consumers=2)
        assert len(offer(state, 0, 0, 1, 2, 3)) == together


def test_triton_rate_limiter_pools_per_device_unless_global() -> None:
    """A resource is counted per device; a global one across all devices."""
    for shared, together in ((False, 2), (True, 1)):
        groups = [{"count": 1, "resources": [{"name": "memory", "count": 1, "global": shared}]}]
        config = batcher(max_batch_size=1, rate_limiter={"mode": "execution_count", "groups": groups})
        state = fresh(config, consumers=2)  # one instance on each of two devices
        assert len(offer(state, 0, 0, 1, 2, 3)) == together


def test_triton_lost_instance_hands_its_payload_to_another() -> None:
    """A payload bound to an instance that leaves service is executed by another one."""
    limiter = {"mode": "execution_count"}
    state = fresh(batcher(max_batch_size=1, rate_limiter=limiter), consumers=2)
    assert offer(state, 0, 0, 1, 2) == [[0], [1]]
    brain.consumer_lost(state, ns_from_ms(1), 0)
    assert taken(state, 1) == []
    assert finish(state, 10, 1) == [[2]]


def test_triton_without_instances_keeps_requests_for_the_next_one() -> None:
    """With every instance gone requests wait, and the first instance that returns serves them."""
    for fields in ({}, {"default_queue_policy": {"max_queue_size": 16}}, {"max_queue_delay_us": 1000}):
        state = fresh(batcher(quirks={"batcher_first_permille": 0}, **fields))
        brain.consumer_lost(state, 0, 0)
        assert offer(state, 1, 0, 1, 2) == []
        tick(state, 500)
        assert brain.due_ns(state) == NEVER
        brain.consumer_up(state, ns_from_ms(750), 0)
        assert taken(state, 750) == [[0, 1, 2]]


@pytest.mark.parametrize("limited", [False, True])
def test_triton_take_waiting_gives_back_everything_that_has_not_started(limited: bool) -> None:
    """Emptying a server hands back each waiting request once, after which it serves new ones."""
    limiter = {"mode": "execution_count" if limited else "off"}
    state = fresh(batcher(preferred_batch_size=[4], max_queue_delay_us=3000, rate_limiter=limiter))
    assert offer(state, 0, 0, 1, 2, 3) == [[0, 1, 2, 3]]
    offer(state, 1, *range(4, 30))
    back = []
    request = brain.take_waiting(state)
    while request != NONE:
        back.append(request)
        request = brain.take_waiting(state)
    assert sorted(back) == list(range(4, 30))
    assert finish(state, 20) == []
    assert offer(state, 21, 30, 31, 32, 33) == [[30, 31, 32, 33]]


def test_triton_waits_are_floored_to_microseconds() -> None:
    """The batcher sleeps whole microseconds, and sends at once when less than one is left."""
    state = fresh(batcher(max_queue_delay_us=10))
    brain.enqueue(state, 0, 0)
    assert brain.take_batch(state, 0) == NONE
    assert brain.due_ns(state) == 10_000
    brain.advance(state, 9_500)
    assert brain.take_batch(state, 9_500) == NONE
    brain.consumer_lost(state, 9_500, 0)
    brain.consumer_up(state, 9_500, 0)  # any notice makes it look again
    assert brain.take_batch(state, 9_500) == 0
    assert state.out[O_UNITS] == 1
    assert state.request_outcome[0] == PENDING
