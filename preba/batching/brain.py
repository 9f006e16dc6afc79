"""The door to every batcher: events in, batches and the next due time out, dispatched on the integer policy kind.

A driver (simulator, live server) does this, with its own clock:

1. Before ``enqueue``: write the request's ``request_units``, ``request_bucket``, ``request_priority``,
   ``request_shape`` and ``request_timeout_ns`` slots.
2. Report events: ``enqueue``, ``consumer_idle``, ``consumer_up``, ``consumer_lost``; call ``advance`` when
   ``due_ns`` has come.
3. After each event: call ``take_batch`` until it returns ``NONE``; each time ``state.out`` and
   ``state.out_request`` describe one batch for the returned consumer, which counts as busy from then on. Then call
   ``take_refused`` until it returns ``NONE``. Then sleep until ``due_ns``.

A user's own policy (``KIND_PLUGIN``) has its own door, ``plugin.PluginBrain``, which leaves the common bookkeeping to
the functions here.

Written in the Numba subset. A compiled driver jits these functions as they stand.
"""

from __future__ import annotations

from preba.batching.bucketed import (
    bucket_advance,
    bucket_consumer_finished,
    bucket_consumer_lost,
    bucket_due_ns,
    bucket_enqueue,
    bucket_take_batch,
)
from preba.batching.late import late_due_ns, late_enqueue, late_take_batch
from preba.batching.queues import formed_pop, formed_push, queue_pop
from preba.batching.state import (
    KIND_BUCKET,
    KIND_LATE,
    KIND_TRITON,
    NONE,
    S_KIND,
    V_CONSUMERS_UP,
    V_IDLE,
    V_REFUSED_HEAD,
    V_REFUSED_TAIL,
    BatcherState,
)
from preba.batching.triton import (
    triton_advance,
    triton_consumer_idle,
    triton_consumer_lost,
    triton_due_ns,
    triton_enqueue,
    triton_take_batch,
    triton_take_waiting,
)


def enqueue(state: BatcherState, now_ns: int, request: int) -> int:
    """Offers a request. Returns ``SERVED`` (taken in) or the reason it is refused for."""
    kind = state.setting[S_KIND]
    if kind == KIND_LATE:
        return late_enqueue(state, now_ns, request)
    if kind == KIND_TRITON:
        return triton_enqueue(state, now_ns, request)
    return bucket_enqueue(state, now_ns, request)


def consumer_up(state: BatcherState, now_ns: int, consumer: int) -> None:
    """A consumer enters service, idle. Has no effect on one already in service."""
    if state.consumer_up[consumer] == 1:
        return
    state.consumer_up[consumer] = 1
    state.scalar[V_CONSUMERS_UP] += 1
    consumer_idle(state, now_ns, consumer)


def consumer_idle(state: BatcherState, now_ns: int, consumer: int) -> None:
    """A consumer in service asks for its next batch. Has no effect while it is already idle or out of service."""
    if state.consumer_idle[consumer] == 1 or state.consumer_up[consumer] == 0:
        return
    state.consumer_idle[consumer] = 1
    state.consumer_idle_since_ns[consumer] = now_ns
    state.scalar[V_IDLE] += 1
    kind = state.setting[S_KIND]
    if kind == KIND_TRITON:
        triton_consumer_idle(state, now_ns, consumer)
    elif kind == KIND_BUCKET:
        bucket_consumer_finished(state, consumer)


def consumer_lost(state: BatcherState, now_ns: int, consumer: int) -> None:
    """A consumer leaves service, idle or busy; what it was executing is the driver's to hand back."""
    if state.consumer_up[consumer] == 0:
        return
    state.consumer_up[consumer] = 0
    state.scalar[V_CONSUMERS_UP] -= 1
    if state.consumer_idle[consumer] == 1:
        state.consumer_idle[consumer] = 0
        state.scalar[V_IDLE] -= 1
    kind = state.setting[S_KIND]
    if kind == KIND_TRITON:
        triton_consumer_lost(state, now_ns, consumer)
    elif kind == KIND_BUCKET:
        bucket_consumer_lost(state, consumer)


def advance(state: BatcherState, now_ns: int) -> None:
    """Lets time pass: does what was due at or before ``now_ns``."""
    kind = state.setting[S_KIND]
    if kind == KIND_TRITON:
        triton_advance(state, now_ns)
    elif kind == KIND_BUCKET:
        bucket_advance(state, now_ns)


def take_batch(state: BatcherState, now_ns: int) -> int:
    """Hands out the next batch that may start now; returns its consumer, or ``NONE``."""
    kind = state.setting[S_KIND]
    if kind == KIND_LATE:
        return late_take_batch(state, now_ns)
    if kind == KIND_TRITON:
        return triton_take_batch(state, now_ns)
    return bucket_take_batch(state, now_ns)


def take_refused(state: BatcherState) -> int:
    """Hands back the next request refused after it had been taken in (``request_outcome`` says why), or ``NONE``."""
    request = state.scalar[V_REFUSED_HEAD]
    if request == NONE:
        return NONE
    state.scalar[V_REFUSED_HEAD] = state.request_next[request]
    if state.scalar[V_REFUSED_HEAD] == NONE:
        state.scalar[V_REFUSED_TAIL] = NONE
    state.request_next[request] = NONE
    return request


def due_ns(state: BatcherState) -> int:
    """When ``advance`` must be called next if nothing else happens; ``NEVER`` if there is no such time."""
    kind = state.setting[S_KIND]
    if kind == KIND_LATE:
        return late_due_ns(state)
    if kind == KIND_TRITON:
        return triton_due_ns(state)
    return bucket_due_ns(state)


def take_waiting(state: BatcherState) -> int:
    """Gives back one request that no consumer has started on, or ``NONE``: empties a server that is going away."""
    for line in range(len(state.formed_head)):
        if state.formed_head[line] != NONE:
            payload = formed_pop(state, line)
            rest = state.request_next[payload]
            state.request_next[payload] = NONE
            if rest != NONE:
                state.payload_tail[rest] = state.payload_tail[payload]
                state.payload_count[rest] = state.payload_count[payload] - 1
                state.payload_units[rest] = state.payload_units[payload] - state.request_units[payload]
                state.payload_formed_ns[rest] = state.payload_formed_ns[payload]
                formed_push(state, line, rest)
            return payload
    if state.setting[S_KIND] == KIND_TRITON:
        return triton_take_waiting(state)
    for queue in range(len(state.queue_head)):
        if state.queue_head[queue] != NONE:
            return queue_pop(state, queue)
    return NONE
