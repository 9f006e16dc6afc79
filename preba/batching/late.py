"""Batchers that form the batch at the moment a consumer takes it: ``none``, ``greedy`` and ``fixed``.

One rule covers the three. With an idle consumer c and at least one request waiting, a batch leaves when the
waiting units reach min(batch_max, c's own maximum) or the oldest request has waited ``delay_ns``. ``none`` is
batch_max 1; ``greedy`` is delay 0 (take all that waits, Inoue 2020, arXiv 1912.06322); ``fixed`` is both limits.
While every consumer is busy the waiting batch keeps growing. Queue 0 is the only queue.
"""

from __future__ import annotations

from preba.batching.queues import best_idle_consumer, hand_out, payload_add, payload_open, queue_pop, queue_push
from preba.batching.state import (
    NEVER,
    NONE,
    REFUSED_QUEUE_FULL,
    S_BATCH_MAX,
    S_DELAY_NS,
    S_QUEUE_MAX,
    SERVED,
    V_IDLE,
    V_LEAST_LIMIT,
    V_WAITING,
    BatcherState,
)


def late_enqueue(state: BatcherState, now_ns: int, request: int) -> int:
    """Takes a request in, or returns ``REFUSED_QUEUE_FULL``."""
    if state.setting[S_QUEUE_MAX] > 0 and state.scalar[V_WAITING] >= state.setting[S_QUEUE_MAX]:
        return REFUSED_QUEUE_FULL
    state.request_enqueued_ns[request] = now_ns
    queue_push(state, 0, request)
    return SERVED


def late_limit(state: BatcherState, consumer: int) -> int:
    """Largest batch, in units, that this consumer is given."""
    limit = state.setting[S_BATCH_MAX]
    if state.consumer_batch_max[consumer] < limit:
        limit = state.consumer_batch_max[consumer]
    return limit


def late_take_batch(state: BatcherState, now_ns: int) -> int:
    """Forms and hands out the next batch if one may leave now; returns its consumer or ``NONE``."""
    if state.scalar[V_WAITING] == 0 or state.scalar[V_IDLE] == 0:
        return NONE
    due = now_ns - state.request_enqueued_ns[state.queue_head[0]] >= state.setting[S_DELAY_NS]
    if not due and state.queue_units[0] < state.scalar[V_LEAST_LIMIT]:
        return NONE  # too few for any consumer: the search for the best one can be saved
    consumer = best_idle_consumer(state)
    limit = late_limit(state, consumer)
    if not due and state.queue_units[0] < limit:
        return NONE
    payload = payload_open(state, queue_pop(state, 0))
    while state.queue_head[0] != NONE:
        units = state.request_units[state.queue_head[0]]
        if state.payload_units[payload] + units > limit:
            break
        payload_add(state, payload, queue_pop(state, 0))
    hand_out(state, consumer, payload, now_ns)
    return consumer


def late_due_ns(state: BatcherState) -> int:
    """When the oldest waiting request must leave, if a consumer is idle to take it."""
    if state.scalar[V_WAITING] == 0 or state.scalar[V_IDLE] == 0:
        return NEVER
    return state.request_enqueued_ns[state.queue_head[0]] + state.setting[S_DELAY_NS]
