"""Linked lists of requests and payloads inside a ``BatcherState``; no policy, only bookkeeping.

Written in the Numba subset: plain functions, positional arguments, integers and indexing.
"""

from __future__ import annotations

from preba.batching.state import (
    CHOICE_LONGEST_IDLE,
    NONE,
    O_CONSUMER,
    O_COUNT,
    O_FORMED_NS,
    O_UNITS,
    S_CONSUMER_CHOICE,
    V_FORMED,
    V_IDLE,
    V_REFUSED_HEAD,
    V_REFUSED_TAIL,
    V_WAITING,
    V_WAITING_UNITS,
    BatcherState,
)


def queue_push(state: BatcherState, queue: int, request: int) -> None:
    """Appends a request to a waiting queue."""
    state.request_next[request] = NONE
    if state.queue_head[queue] == NONE:
        state.queue_head[queue] = request
    else:
        state.request_next[state.queue_tail[queue]] = request
    state.queue_tail[queue] = request
    state.queue_count[queue] += 1
    state.queue_units[queue] += state.request_units[request]
    state.scalar[V_WAITING] += 1
    state.scalar[V_WAITING_UNITS] += state.request_units[request]


def queue_pop(state: BatcherState, queue: int) -> int:
    """Removes and returns the oldest request of a waiting queue that is not empty."""
    request = state.queue_head[queue]
    state.queue_head[queue] = state.request_next[request]
    if state.queue_head[queue] == NONE:
        state.queue_tail[queue] = NONE
    state.request_next[request] = NONE
    state.queue_count[queue] -= 1
    state.queue_units[queue] -= state.request_units[request]
    state.scalar[V_WAITING] -= 1
    state.scalar[V_WAITING_UNITS] -= state.request_units[request]
    return request


def payload_open(state: BatcherState, request: int) -> int:
    """Starts a payload with its first request and returns its name, which is that request's slot."""
    state.request_next[request] = NONE
    state.payload_tail[request] = request
    state.payload_count[request] = 1
    state.payload_units[request] = state.request_units[request]
    state.payload_oldest_ns[request] = state.request_enqueued_ns[request]
    state.payload_flag[request] = 0
    state.payload_next[request] = NONE
    return request


def payload_add(state: BatcherState, payload: int, request: int) -> None:
    """Appends a request to a payload."""
    state.request_next[request] = NONE
    state.request_next[state.payload_tail[payload]] = request
    state.payload_tail[payload] = request
    state.payload_count[payload] += 1
    state.payload_units[payload] += state.request_units[request]
    if state.request_enqueued_ns[request] < state.payload_oldest_ns[payload]:
        state.payload_oldest_ns[payload] = state.request_enqueued_ns[request]


def payload_merge(state: BatcherState, payload: int, other: int) -> None:
    """Appends all requests of another payload to this one; the other stops being a payload."""
    state.request_next[state.payload_tail[payload]] = other
    state.payload_tail[payload] = state.payload_tail[other]
    state.payload_count[payload] += state.payload_count[other]
    state.payload_units[payload] += state.payload_units[other]
    if state.payload_oldest_ns[other] < state.payload_oldest_ns[payload]:
        state.payload_oldest_ns[payload] = state.payload_oldest_ns[other]


def formed_push(state: BatcherState, line: int, payload: int) -> None:
    """Appends a payload to a line of formed batches (0: any consumer, 1 + c: consumer c)."""
    state.payload_next[payload] = NONE
    if state.formed_head[line] == NONE:
        state.formed_head[line] = payload
    else:
        state.payload_next[state.formed_tail[line]] = payload
    state.formed_tail[line] = payload
    state.scalar[V_FORMED] += 1


def formed_pop(state: BatcherState, line: int) -> int:
    """Removes and returns the oldest payload of a line that is not empty."""
    payload = state.formed_head[line]
    state.formed_head[line] = state.payload_next[payload]
    if state.formed_head[line] == NONE:
        state.formed_tail[line] = NONE
    state.payload_next[payload] = NONE
    state.scalar[V_FORMED] -= 1
    return payload


def refuse(state: BatcherState, request: int, outcome: int) -> None:
    """Puts a request on the list of those to be handed back with this outcome."""
    state.request_outcome[request] = outcome
    state.request_next[request] = NONE
    if state.scalar[V_REFUSED_HEAD] == NONE:
        state.scalar[V_REFUSED_HEAD] = request
    else:
        state.request_next[state.scalar[V_REFUSED_TAIL]] = request
    state.scalar[V_REFUSED_TAIL] = request


def best_idle_consumer(state: BatcherState) -> int:
    """Finds the idle consumer to serve next by the configured choice, or ``NONE``."""
    if state.scalar[V_IDLE] == 0:
        return NONE
    by_age = state.setting[S_CONSUMER_CHOICE] == CHOICE_LONGEST_IDLE
    best = NONE
    best_key = 0
    for consumer in range(len(state.consumer_idle)):
        if state.consumer_idle[consumer] == 1:
            if by_age:
                key = state.consumer_idle_since_ns[consumer]
            else:
                key = state.consumer_rank[consumer]
            if best == NONE or key < best_key:
                best = consumer
                best_key = key
    return best


def consumer_take(state: BatcherState, consumer: int) -> None:
    """Marks an idle consumer as busy."""
    state.consumer_idle[consumer] = 0
    state.scalar[V_IDLE] -= 1


def hand_out(state: BatcherState, consumer: int, payload: int, formed_ns: int) -> None:
    """Writes a payload into the state's output fields and marks its consumer as busy."""
    count = 0
    request = payload
    while request != NONE:
        state.out_request[count] = request
        count += 1
        request = state.request_next[request]
    state.out[O_CONSUMER] = consumer
    state.out[O_COUNT] = count
    state.out[O_UNITS] = state.payload_units[payload]
    state.out[O_FORMED_NS] = formed_ns
    consumer_take(state, consumer)
