"""Batchers that wait for a full bucket or a due request, whatever the slices do: ``preba`` and ``fixed`` (when due).

PREBA's dynamic batching (arXiv 2411.19114, section 4.3): one queue per length bucket; a queue that reaches its
bucket's Batch_max leaves as a batch; a queue whose timer runs out leaves as it is, topped up from adjacent buckets
as long as the batch stays within the Batch_max of the longest input in it. With one bucket and no merging this is
"size or time-out, whichever first".

What the paper leaves open, and how it is decided here:

* What becomes of a full or due batch while every slice is busy. ``DUE_STAYS_OPEN``: it is formed only when a slice
  takes it, the queue with the oldest request first, so it goes on filling. ``DUE_FROZEN``: it is formed at once and
  waits in one line for the next idle slice; ``DUE_FROZEN_PER_CONSUMER``: in the line of the slice with the fewest
  unfinished batches. With many buckets frozen batches are tiny, and a server well below its capacity collapses.
* The timer belongs to the oldest request of each queue (``TIMER_OLDEST_REQUEST``); ``TIMER_LAST_EMISSION`` restarts
  it at each emission of that queue instead.
* Merging visits distance 1, 2, .. up to ``S_MERGE_REACH``; at each distance the shorter neighbour first (it costs
  padding but never lowers Batch_max), or the longer one first.
* An idle consumer does not pull a batch early unless ``S_EMIT_WHEN_IDLE`` is set.
* Requests queue in the order in which preprocessing finishes.
"""

from __future__ import annotations

from preba.batching.queues import (
    best_idle_consumer,
    formed_pop,
    formed_push,
    hand_out,
    payload_add,
    payload_open,
    queue_pop,
    queue_push,
)
from preba.batching.state import (
    DUE_FROZEN_PER_CONSUMER,
    DUE_STAYS_OPEN,
    MERGE_SHORTER_FIRST,
    NEVER,
    NONE,
    REFUSED_QUEUE_FULL,
    S_DUE_BATCH,
    S_EMIT_WHEN_IDLE,
    S_MERGE_ORDER,
    S_MERGE_REACH,
    S_QUEUE_MAX,
    S_TIMER,
    SERVED,
    TIMER_LAST_EMISSION,
    V_FORMED,
    V_IDLE,
    V_WAITING,
    BatcherState,
)


def bucket_enqueue(state: BatcherState, now_ns: int, request: int) -> int:
    """Takes a request into its bucket's queue, or returns ``REFUSED_QUEUE_FULL``; a full bucket may freeze at once."""
    if state.setting[S_QUEUE_MAX] > 0 and state.scalar[V_WAITING] >= state.setting[S_QUEUE_MAX]:
        return REFUSED_QUEUE_FULL
    state.request_enqueued_ns[request] = now_ns
    bucket = state.request_bucket[request]
    queue_push(state, bucket, request)
    if state.setting[S_DUE_BATCH] != DUE_STAYS_OPEN and state.queue_units[bucket] >= state.bucket_batch_max[bucket]:
        bucket_line_up(state, bucket_emit(state, now_ns, bucket, 0))
    return SERVED


def bucket_advance(state: BatcherState, now_ns: int) -> None:
    """Freezes every queue whose timer has run out, the one that ran out first first."""
    if state.setting[S_DUE_BATCH] == DUE_STAYS_OPEN:
        return
    while True:
        bucket = bucket_next_due(state)
        if bucket == NONE or bucket_deadline_ns(state, bucket) > now_ns:
            break
        bucket_line_up(state, bucket_emit(state, now_ns, bucket, state.setting[S_MERGE_REACH]))
    if state.setting[S_EMIT_WHEN_IDLE] == 1:
        while state.scalar[V_IDLE] > state.scalar[V_FORMED] and state.scalar[V_WAITING] > 0:
            bucket_line_up(state, bucket_emit(state, now_ns, bucket_oldest(state), state.setting[S_MERGE_REACH]))


def bucket_deadline_ns(state: BatcherState, bucket: int) -> int:
    """When a queue that is not empty must leave."""
    start_ns = state.request_enqueued_ns[state.queue_head[bucket]]
    if state.setting[S_TIMER] == TIMER_LAST_EMISSION and state.bucket_emitted_ns[bucket] < start_ns:
        # The queue's own clock ticks every delay since its last emission; the first tick after the
        # oldest request arrived is its deadline.
        delay_ns = state.bucket_delay_ns[bucket]
        if delay_ns > 0:
            waited_ns = start_ns - state.bucket_emitted_ns[bucket]
            start_ns -= waited_ns % delay_ns
    return start_ns + state.bucket_delay_ns[bucket]


def bucket_next_due(state: BatcherState) -> int:
    """The queue whose timer runs out first (lowest bucket on a tie), or ``NONE``."""
    best = NONE
    best_ns = 0
    for bucket in range(len(state.bucket_batch_max)):
        if state.queue_head[bucket] != NONE:
            deadline_ns = bucket_deadline_ns(state, bucket)
            if best == NONE or deadline_ns < best_ns:
                best = bucket
                best_ns = deadline_ns
    return best


def bucket_oldest(state: BatcherState) -> int:
    """The queue that holds the oldest request (lowest bucket on a tie), or ``NONE``."""
    best = NONE
    best_ns = 0
    for bucket in range(len(state.bucket_batch_max)):
        head = state.queue_head[bucket]
        if head != NONE and (best == NONE or state.request_enqueued_ns[head] < best_ns):
            best = bucket
            best_ns = state.request_enqueued_ns[head]
    return best


def bucket_fill(state: BatcherState, payload: int, bucket: int, limit: int) -> None:
    """Moves requests of one queue into a payload, oldest first, up to ``limit`` units."""
    while state.queue_head[bucket] != NONE:
        if state.payload_units[payload] + state.request_units[state.queue_head[bucket]] > limit:
            break
        payload_add(state, payload, queue_pop(state, bucket))


def bucket_emit(state: BatcherState, now_ns: int, bucket: int, reach: int) -> int:
    """Forms one batch from a queue that is not empty, merging from neighbours within ``reach``; returns it."""
    limit = state.bucket_batch_max[bucket]
    payload = payload_open(state, queue_pop(state, bucket))
    bucket_fill(state, payload, bucket, limit)
    for distance in range(1, reach + 1):
        for side in range(2):
            if (side == 0) == (state.setting[S_MERGE_ORDER] == MERGE_SHORTER_FIRST):
                neighbour = bucket - distance
            else:
                neighbour = bucket + distance
            if neighbour < 0 or neighbour >= len(state.bucket_batch_max):
                continue
            if state.queue_head[neighbour] == NONE:
                continue
            # A longer neighbour lowers the limit for the whole batch, but only once one of its requests is in.
            merged_limit = limit
            if state.bucket_batch_max[neighbour] < limit:
                merged_limit = state.bucket_batch_max[neighbour]
            before = state.payload_count[payload]
            bucket_fill(state, payload, neighbour, merged_limit)
            if state.payload_count[payload] > before:
                limit = merged_limit
    state.payload_formed_ns[payload] = now_ns
    state.bucket_emitted_ns[bucket] = now_ns
    return payload


def bucket_line_up(state: BatcherState, payload: int) -> None:
    """Puts a frozen batch in line for any consumer, or for the one with the fewest unfinished batches."""
    line = 0
    if state.setting[S_DUE_BATCH] == DUE_FROZEN_PER_CONSUMER:
        consumer = bucket_least_loaded(state)
        if consumer != NONE:
            line = 1 + consumer
            state.consumer_load[consumer] += 1
    formed_push(state, line, payload)


def bucket_least_loaded(state: BatcherState) -> int:
    """The consumer in service with the fewest unfinished batches (lowest rank on a tie), or ``NONE``."""
    best = NONE
    for consumer in range(len(state.consumer_up)):
        if state.consumer_up[consumer] == 0:
            continue
        if (
            best == NONE
            or state.consumer_load[consumer] < state.consumer_load[best]
            or (
                state.consumer_load[consumer] == state.consumer_load[best]
                and state.consumer_rank[consumer] < state.consumer_rank[best]
            )
        ):
            best = consumer
    return best


def bucket_ready(state: BatcherState, now_ns: int) -> int:
    """Of the queues that are full or due, the one with the oldest request (lowest bucket on a tie), or ``NONE``."""
    best = NONE
    best_ns = 0
    for bucket in range(len(state.bucket_batch_max)):
        head = state.queue_head[bucket]
        if head == NONE:
            continue
        ready = (
            state.setting[S_EMIT_WHEN_IDLE] == 1
            or state.queue_units[bucket] >= state.bucket_batch_max[bucket]
            or bucket_deadline_ns(state, bucket) <= now_ns
        )
        if ready and (best == NONE or state.request_enqueued_ns[head] < best_ns):
            best = bucket
            best_ns = state.request_enqueued_ns[head]
    return best


def bucket_take_batch(state: BatcherState, now_ns: int) -> int:
    """Hands out the next batch that an idle consumer may take; returns the consumer or ``NONE``."""
    if state.scalar[V_IDLE] == 0:
        return NONE
    if state.setting[S_DUE_BATCH] == DUE_STAYS_OPEN:
        bucket = bucket_ready(state, now_ns)
        if bucket == NONE:
            return NONE
        payload = bucket_emit(state, now_ns, bucket, state.setting[S_MERGE_REACH])
        consumer = best_idle_consumer(state)
        hand_out(state, consumer, payload, now_ns)
        return consumer
    if state.setting[S_EMIT_WHEN_IDLE] == 1:
        bucket_advance(state, now_ns)
    if state.scalar[V_FORMED] == 0:
        return NONE
    if state.setting[S_DUE_BATCH] == DUE_FROZEN_PER_CONSUMER:
        for consumer in range(len(state.consumer_idle)):
            if state.consumer_idle[consumer] == 1 and state.formed_head[1 + consumer] != NONE:
                payload = formed_pop(state, 1 + consumer)
                hand_out(state, consumer, payload, state.payload_formed_ns[payload])
                return consumer
    if state.formed_head[0] == NONE:
        return NONE
    consumer = best_idle_consumer(state)
    payload = formed_pop(state, 0)
    hand_out(state, consumer, payload, state.payload_formed_ns[payload])
    return consumer


def bucket_consumer_finished(state: BatcherState, consumer: int) -> None:
    """Notes that a consumer has finished a batch that was assigned to it when formed."""
    if state.setting[S_DUE_BATCH] == DUE_FROZEN_PER_CONSUMER and state.consumer_load[consumer] > 0:
        state.consumer_load[consumer] -= 1


def bucket_consumer_lost(state: BatcherState, consumer: int) -> None:
    """Moves the batches that waited for a lost consumer to the line that any consumer serves."""
    state.consumer_load[consumer] = 0
    while state.formed_head[1 + consumer] != NONE:
        formed_push(state, 0, formed_pop(state, 1 + consumer))


def bucket_due_ns(state: BatcherState) -> int:
    """When the next queue's timer runs out; an open batch needs an idle consumer besides."""
    if state.setting[S_DUE_BATCH] == DUE_STAYS_OPEN and state.scalar[V_IDLE] == 0:
        return NEVER
    bucket = bucket_next_due(state)
    if bucket == NONE:
        return NEVER
    return bucket_deadline_ns(state, bucket)
