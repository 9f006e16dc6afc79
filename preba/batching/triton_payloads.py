"""Triton's payload queue: when a slot is free, queueing a payload, and what a consumer is handed (with merging).

Line 0 of the formed payloads is for any instance; lines ``1 + c`` are those a rate limiter has given to consumer c.
"""

from __future__ import annotations

from preba.batching.queues import (
    best_idle_consumer,
    formed_pop,
    formed_push,
    hand_out,
    payload_merge,
    queue_push,
)
from preba.batching.state import (
    NONE,
    S_BATCH_MAX,
    S_DELAY_NS,
    V_CONSUMERS_UP,
    V_CURRENT,
    V_FORMED,
    V_IDLE,
    BatcherState,
)
from preba.batching.triton_layout import (
    PAYLOAD_CLOSED,
    S_COUNTER_DRIFT,
    S_EQUAL_SHAPE,
    S_INSTANCES_PER_CONSUMER,
    S_PREFETCH,
    S_RATE_LIMITED,
    STAGE_AVAILABLE,
    STAGE_STAGED,
    V_ASKING,
    V_NOTIFIED,
    V_QUEUE_LENGTH,
    V_QUEUED_UNITS,
    V_STALE,
)
from preba.batching.triton_rate import deferred_pop, deferred_push, stage_available


def slot_free(state: BatcherState) -> int:
    """1 when the batcher may form another payload.

    With prefetching up to two payloads per instance may wait; without it there must be a consumer that waits.
    """
    if state.setting[S_PREFETCH] == 1:
        instances = state.scalar[V_CONSUMERS_UP] * state.setting[S_INSTANCES_PER_CONSUMER]
        if state.scalar[V_QUEUE_LENGTH] < 2 * instances:
            return 1
        return 0
    if state.scalar[V_ASKING] > 0:
        return 1
    return 0


def payload_enqueue(state: BatcherState, payload: int) -> None:
    """Queues a payload for any instance, or for the rate limiter to find one."""
    state.scalar[V_ASKING] -= 1
    if state.setting[S_RATE_LIMITED] == 1:
        deferred_push(state, payload)
        stage_available(state)
    else:
        formed_push(state, 0, payload)
        state.scalar[V_QUEUE_LENGTH] += 1


def payload_dispatch(state: BatcherState, now_ns: int) -> int:
    """Hands a waiting payload to an idle consumer; returns that or ``NONE``. The batcher is notified of it."""
    if state.scalar[V_IDLE] == 0 or state.scalar[V_FORMED] == 0:
        return NONE
    line = 0
    consumer = NONE
    if state.formed_head[0] != NONE:
        consumer = best_idle_consumer(state)
    elif state.setting[S_RATE_LIMITED] == 1:
        for candidate in range(len(state.consumer_idle)):
            if state.consumer_idle[candidate] == 1 and state.formed_head[1 + candidate] != NONE:
                consumer = candidate
                line = 1 + candidate
                break
    if consumer == NONE:
        return NONE
    payload = line_pop(state, line)
    payload_execute(state, payload)
    merge_waiting(state, now_ns, line, payload)
    state.consumer_asking[consumer] = 0
    state.scalar[V_NOTIFIED] = 1
    hand_out(state, consumer, payload, now_ns)
    return consumer


def line_pop(state: BatcherState, line: int) -> int:
    """Takes the oldest payload off a line that is not empty."""
    if line == 0:
        state.scalar[V_QUEUE_LENGTH] -= 1
    return formed_pop(state, line)


def payload_execute(state: BatcherState, payload: int) -> None:
    """From now on the payload cannot be topped up."""
    if state.scalar[V_CURRENT] == payload:
        state.scalar[V_CURRENT] = NONE
        state.scalar[V_STALE] = 1


def merge_waiting(state: BatcherState, now_ns: int, line: int, payload: int) -> None:
    """Adds payloads that have waited longer than the delay and still fit to one that is about to start."""
    if state.setting[S_DELAY_NS] == 0 or state.setting[S_BATCH_MAX] <= 1 or is_closed(state, payload) == 1:
        return
    while state.formed_head[line] != NONE:
        front = state.formed_head[line]
        waited_ns = now_ns - state.payload_oldest_ns[front]
        if is_closed(state, front) == 1 or waited_ns <= state.setting[S_DELAY_NS]:
            return
        # The server marks the payload as executing before it looks whether it fits, so it stays as it is from here.
        payload_execute(state, front)
        if state.payload_units[payload] + state.payload_units[front] > state.setting[S_BATCH_MAX]:
            return
        if state.setting[S_EQUAL_SHAPE] == 1 and state.request_shape[front] != state.request_shape[payload]:
            return
        line_pop(state, line)
        payload_merge(state, payload, front)
        if state.setting[S_COUNTER_DRIFT] == 0:
            # Server bug 8870: a merged payload was counted off the waiting consumers when it was queued, but no
            # consumer asks for it. The repair gives the count back.
            state.scalar[V_ASKING] += 1


def is_closed(state: BatcherState, payload: int) -> int:
    """1 when the payload was ended by a request of another shape."""
    if state.payload_flag[payload] == PAYLOAD_CLOSED:
        return 1
    return 0


def payload_drain(state: BatcherState) -> None:
    """Puts the requests of all payloads that have not started back into the first waiting queue."""
    for consumer in range(len(state.consumer_staged)):
        if state.consumer_staged[consumer] != NONE:
            deferred_push(state, state.consumer_staged[consumer])
            state.consumer_staged[consumer] = NONE
            state.scalar[V_FORMED] -= 1
        if state.consumer_stage[consumer] == STAGE_STAGED:
            state.consumer_stage[consumer] = STAGE_AVAILABLE
    payload = deferred_pop(state)
    while payload != NONE:
        request = payload
        while request != NONE:
            after = state.request_next[request]
            queue_push(state, 1, request)
            state.scalar[V_QUEUED_UNITS] += state.request_units[request]
            request = after
        payload = deferred_pop(state)
    state.scalar[V_QUEUE_LENGTH] = 0
    state.scalar[V_ASKING] = 0
    for consumer in range(len(state.consumer_asking)):
        state.scalar[V_ASKING] += state.consumer_asking[consumer]
