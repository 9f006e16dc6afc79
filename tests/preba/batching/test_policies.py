"""Promises of the late and bucketed batchers, driven by hand and by random events."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preba.batching import brain
from preba.batching import state as s
from preba.batching.state import BatcherState, make_state

MS = 1_000_000


def new_state(
    kind: int,
    *,
    batch_max: Sequence[int] = (4,),
    delay_ms: float = 0.0,
    consumers: int = 1,
    capacity: int = 200,
    settings_: dict[int, int] | None = None,
    consumer_batch_max: Sequence[int] | None = None,
) -> BatcherState:
    setting = [0] * s.SETTING_COUNT
    setting[s.S_KIND] = kind
    setting[s.S_BATCH_MAX] = max(batch_max)
    setting[s.S_DELAY_NS] = int(delay_ms * MS)
    setting[s.S_DUE_BATCH] = s.DUE_FROZEN
    for index, value in (settings_ or {}).items():
        setting[index] = value
    return make_state(
        setting=setting,
        preferred=(),
        bucket_batch_max=batch_max,
        bucket_delay_ns=[int(delay_ms * MS)] * len(batch_max),
        consumer_rank=range(consumers),
        consumer_batch_max=consumer_batch_max or [max(batch_max)] * consumers,
        queue_count=len(batch_max),
        capacity=capacity,
        out_capacity=max(batch_max),
    )


def take(state: BatcherState, now_ns: int) -> list[tuple[int, list[int]]]:
    """All batches that may start now, as (consumer, requests)."""
    batches = []
    while True:
        consumer = brain.take_batch(state, now_ns)
        if consumer == s.NONE:
            return batches
        batches.append((consumer, [state.out_request[k] for k in range(state.out[s.O_COUNT])]))


def up(state: BatcherState) -> None:
    for consumer in range(len(state.consumer_up)):
        brain.consumer_up(state, 0, consumer)


def offer(state: BatcherState, now_ns: int, request: int, bucket: int = 0) -> int:
    state.request_bucket[request] = bucket
    return brain.enqueue(state, now_ns, request)


def test_fixed_waits_for_size_or_timeout() -> None:
    """With an idle slice a batch leaves when full, or when its oldest request has waited the time-out."""
    state = new_state(s.KIND_LATE, batch_max=(3,), delay_ms=5)
    up(state)
    offer(state, 0, 0)
    offer(state, 1 * MS, 1)
    assert take(state, 1 * MS) == []
    assert brain.due_ns(state) == 5 * MS
    assert take(state, 5 * MS) == [(0, [0, 1])]
    brain.consumer_idle(state, 6 * MS, 0)
    for request in (2, 3, 4):
        offer(state, 7 * MS, request)
    assert take(state, 7 * MS) == [(0, [2, 3, 4])]


def test_late_batch_grows_while_every_slice_is_busy() -> None:
    """Requests that arrive while all slices are busy join the batch that is waiting."""
    state = new_state(s.KIND_LATE, batch_max=(8,), delay_ms=1)
    up(state)
    offer(state, 0, 0)
    assert take(state, MS) == [(0, [0])]
    for request in range(1, 6):
        offer(state, (1 + request) * MS, request)
    assert brain.due_ns(state) == s.NEVER
    brain.consumer_idle(state, 10 * MS, 0)
    assert take(state, 10 * MS) == [(0, [1, 2, 3, 4, 5])]


def test_late_batch_respects_the_limit_of_the_slice_that_takes_it() -> None:
    """On mixed slice sizes each slice gets at most its own largest batch."""
    state = new_state(s.KIND_LATE, batch_max=(8,), consumers=2, consumer_batch_max=[2, 8])
    for request in range(7):
        offer(state, 0, request)
    up(state)
    assert take(state, 0) == [(0, [0, 1]), (1, [2, 3, 4, 5, 6])]


def test_longest_idle_choice_takes_turns() -> None:
    """The slice idle for longest is served first when so configured."""
    state = new_state(s.KIND_LATE, batch_max=(1,), consumers=2, settings_={s.S_CONSUMER_CHOICE: s.CHOICE_LONGEST_IDLE})
    up(state)
    offer(state, 1, 0)
    assert take(state, 1) == [(0, [0])]
    brain.consumer_idle(state, 2, 0)
    offer(state, 3, 1)
    assert take(state, 3) == [(1, [1])]


def test_full_queue_refuses() -> None:
    """A bounded queue refuses the request that does not fit and keeps the others."""
    state = new_state(s.KIND_LATE, settings_={s.S_QUEUE_MAX: 2})
    assert [offer(state, 0, request) for request in range(3)] == [s.SERVED, s.SERVED, s.REFUSED_QUEUE_FULL]
    up(state)
    assert take(state, 0) == [(0, [0, 1])]


def test_preba_full_bucket_leaves_at_once_and_waits_frozen() -> None:
    """A bucket that reaches its Batch_max becomes a batch although no slice is idle; nobody joins it later."""
    state = new_state(s.KIND_BUCKET, batch_max=(2,), delay_ms=10)
    offer(state, 0, 0)
    offer(state, 1 * MS, 1)
    offer(state, 2 * MS, 2)
    up(state)
    assert take(state, 3 * MS) == [(0, [0, 1])]
    assert state.out[s.O_FORMED_NS] == 1 * MS
    assert brain.due_ns(state) == 12 * MS


def test_preba_merges_from_adjacent_buckets_within_the_longest_inputs_limit() -> None:
    """A bucket whose timer runs out tops up from its neighbours, never past Batch_max of the longest input."""
    state = new_state(s.KIND_BUCKET, batch_max=(8, 4, 2), delay_ms=5, settings_={s.S_MERGE_REACH: 1})
    up(state)
    offer(state, 0, 0, bucket=1)
    for request in (1, 2, 3, 4):
        offer(state, 1 * MS, request, bucket=0)
    offer(state, 1 * MS, 5, bucket=2)
    brain.advance(state, 5 * MS)
    # Bucket 1 allows 4: itself and three shorter ones; the longer one would lower the limit to 2.
    assert take(state, 5 * MS) == [(0, [0, 1, 2, 3])]
    brain.consumer_idle(state, 6 * MS, 0)
    brain.advance(state, 6 * MS)
    assert take(state, 6 * MS) == [(0, [4])]


def test_preba_longer_neighbour_lowers_the_limit() -> None:
    """When a longer input joins, the whole batch obeys the longer input's Batch_max."""
    order = {s.S_MERGE_REACH: 1, s.S_MERGE_ORDER: s.MERGE_LONGER_FIRST}
    state = new_state(s.KIND_BUCKET, batch_max=(8, 4, 2), delay_ms=5, settings_=order)
    up(state)
    offer(state, 0, 0, bucket=1)
    offer(state, 1 * MS, 1, bucket=2)
    for request in (2, 3):
        offer(state, 1 * MS, request, bucket=0)
    brain.advance(state, 5 * MS)
    assert take(state, 5 * MS) == [(0, [0, 1])]


@pytest.mark.parametrize(("reach", "expected"), [(0, [0]), (1, [0]), (2, [0, 1])])
def test_preba_merge_reach_is_counted_in_buckets(reach: int, expected: list[int]) -> None:
    """Merging looks exactly as many buckets away as configured."""
    state = new_state(s.KIND_BUCKET, batch_max=(4, 4, 4), delay_ms=5, settings_={s.S_MERGE_REACH: reach})
    up(state)
    offer(state, 0, 0, bucket=2)
    offer(state, MS, 1, bucket=0)
    brain.advance(state, 5 * MS)
    assert take(state, 5 * MS) == [(0, expected)]


def test_preba_single_bucket_reduces_to_size_or_timeout() -> None:
    """With one bucket and no merging the policy is Batch_max plus time-out, whatever the slices do."""
    state = new_state(s.KIND_BUCKET, batch_max=(4,), delay_ms=3)
    for request in range(3):
        offer(state, request * MS, request)
    assert brain.due_ns(state) == 3 * MS
    brain.advance(state, 3 * MS)
    up(state)
    assert take(state, 9 * MS) == [(0, [0, 1, 2])]
    assert state.out[s.O_FORMED_NS] == 3 * MS


def test_preba_emit_when_idle_does_not_wait() -> None:
    """With early emission an idle slice gets the oldest bucket at once."""
    state = new_state(s.KIND_BUCKET, batch_max=(4, 4), delay_ms=50, settings_={s.S_EMIT_WHEN_IDLE: 1})
    up(state)
    offer(state, 1 * MS, 0, bucket=1)
    assert take(state, 1 * MS) == [(0, [0])]


def test_preba_open_batch_goes_on_filling_while_every_slice_is_busy() -> None:
    """A due batch that stays open takes in what arrives until a slice takes it, the oldest request's queue first."""
    state = new_state(
        s.KIND_BUCKET, batch_max=(4, 4), delay_ms=5, settings_={s.S_DUE_BATCH: s.DUE_STAYS_OPEN, s.S_MERGE_REACH: 1}
    )
    for at_ms, request, bucket in ((0, 0, 1), (1, 1, 0), (8, 2, 1), (9, 3, 1)):
        offer(state, at_ms * MS, request, bucket)
    assert brain.due_ns(state) == s.NEVER  # no slice could take it
    up(state)
    assert take(state, 10 * MS) == [(0, [0, 2, 3, 1])]
    assert state.out[s.O_FORMED_NS] == 10 * MS


def test_preba_last_emission_timer_restarts_at_each_emission() -> None:
    """The queue's own clock ticks every delay after its last emission."""
    state = new_state(s.KIND_BUCKET, batch_max=(2,), delay_ms=10, settings_={s.S_TIMER: s.TIMER_LAST_EMISSION})
    offer(state, 3 * MS, 0)
    offer(state, 4 * MS, 1)  # full: emitted at 4 ms
    offer(state, 9 * MS, 2)
    assert brain.due_ns(state) == 14 * MS


def test_per_slice_lines_follow_the_fewest_unfinished_batches() -> None:
    """With a line per slice a formed batch joins the slice with the fewest unfinished batches."""
    state = new_state(
        s.KIND_BUCKET,
        batch_max=(1,),
        consumers=2,
        settings_={s.S_DUE_BATCH: s.DUE_FROZEN_PER_CONSUMER},
    )
    up(state)
    for request in range(3):
        offer(state, 0, request)
    assert take(state, 0) == [(0, [0]), (1, [1])]
    brain.consumer_idle(state, 5 * MS, 1)
    assert take(state, 5 * MS) == []  # the third batch waits for slice 0, to which it was assigned
    brain.consumer_lost(state, 6 * MS, 0)
    assert take(state, 6 * MS) == [(1, [2])]


def test_take_waiting_gives_back_formed_and_queued_requests_once() -> None:
    """Emptying a batcher yields every request not started, each exactly once."""
    state = new_state(s.KIND_BUCKET, batch_max=(3, 3), delay_ms=5)
    for request in range(8):
        offer(state, 0, request, bucket=request % 2)
    found = []
    while (request := brain.take_waiting(state)) != s.NONE:
        found.append(request)
    assert sorted(found) == list(range(8))
    assert brain.due_ns(state) == s.NEVER


@st.composite
def event_lists(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """(what, milliseconds since the previous event, bucket or consumer)."""
    return draw(
        st.lists(
            st.tuples(st.sampled_from(["arrive", "arrive", "finish", "wait"]), st.integers(0, 4), st.integers(0, 2)),
            min_size=1,
            max_size=80,
        )
    )


@settings(max_examples=150, deadline=None)
@given(
    events=event_lists(),
    kind=st.sampled_from([s.KIND_LATE, s.KIND_BUCKET]),
    delay_ms=st.integers(0, 6),
    reach=st.integers(0, 2),
    emit=st.integers(0, 1),
    due_batch=st.integers(0, 2),
    limits=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_every_request_is_served_once_in_order_within_limits(
    events: list[tuple[str, int, int]],
    kind: int,
    delay_ms: int,
    reach: int,
    emit: int,
    due_batch: int,
    limits: list[int],
) -> None:
    """Whatever happens: each request leaves exactly once, FIFO within its bucket, in a batch within its limit."""
    if kind == s.KIND_LATE:
        limits = limits[:1]
    state = new_state(
        kind,
        batch_max=limits,
        delay_ms=delay_ms,
        consumers=3,
        settings_={s.S_MERGE_REACH: reach, s.S_EMIT_WHEN_IDLE: emit, s.S_DUE_BATCH: due_batch},
    )
    up(state)
    now_ns, offered = 0, 0
    busy: set[int] = set()
    started: list[list[int]] = []
    bucket_of: list[int] = []
    entered_ns: list[int] = []

    def settle() -> None:
        brain.advance(state, now_ns)
        for consumer, batch in take(state, now_ns):
            assert consumer not in busy
            busy.add(consumer)
            started.append(batch)
        if len(busy) < 3 and due_batch != s.DUE_FROZEN_PER_CONSUMER:
            waiting_ns = [entered_ns[r] for r in range(offered) if not any(r in batch for batch in started)]
            assert all(now_ns - entered < delay_ms * MS for entered in waiting_ns)

    for what, gap_ms, number in events:
        target_ns = now_ns + gap_ms * MS
        while brain.due_ns(state) <= target_ns:
            now_ns = max(now_ns, brain.due_ns(state))
            settle()
        now_ns = target_ns
        if what == "arrive":
            bucket_of.append(number % len(limits))
            entered_ns.append(now_ns)
            offer(state, now_ns, offered, bucket_of[-1])
            offered += 1
        elif what == "finish" and number in busy:
            busy.discard(number)
            brain.consumer_idle(state, now_ns, number)
        settle()
    for _ in range(1000):
        if sum(map(len, started)) == offered:
            break
        due_ns = brain.due_ns(state)
        now_ns = max(now_ns, due_ns) if due_ns != s.NEVER else now_ns + MS
        for consumer in sorted(busy):
            brain.consumer_idle(state, now_ns, consumer)
        busy.clear()
        settle()
    assert sorted(request for batch in started for request in batch) == list(range(offered))
    for batch in started:
        assert len(batch) <= min(limits[bucket_of[request]] for request in batch)
    for bucket in range(len(limits)):
        order = [r for batch in started for r in batch if bucket_of[r] == bucket]
        if kind == s.KIND_LATE or due_batch != s.DUE_FROZEN_PER_CONSUMER:
            assert order == sorted(order)
