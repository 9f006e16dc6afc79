"""How Triton's batcher decides how much of the waiting requests goes into the current payload, or how long to wait.

The cursor marks how far a scan came; it survives between scans only while a deadline lies ahead of it. Queue
``2 * level`` holds a level's live requests, ``2 * level + 1`` those that have expired under the DELAY action.
"""

from __future__ import annotations

from preba.batching.queues import queue_push, refuse
from preba.batching.state import (
    NEVER,
    NONE,
    REFUSED_TIMEOUT,
    S_BATCH_MAX,
    S_DELAY_NS,
    V_CURRENT,
    V_WAITING,
    V_WAITING_UNITS,
    BatcherState,
)
from preba.batching.triton_layout import (
    P_DELAY_ACTION,
    PAYLOAD_CLOSED,
    POLICY_ROW,
    S_EQUAL_SHAPE,
    V_CLOSED,
    V_CURSOR_COUNT,
    V_CURSOR_DEADLINE_NS,
    V_CURSOR_DELAYED,
    V_CURSOR_LAST,
    V_CURSOR_LEVEL,
    V_CURSOR_OLDEST_NS,
    V_CURSOR_SHAPE,
    V_CURSOR_UNITS,
    V_CURSOR_VALID,
    V_DEADLINES,
    V_NEXT_PREFERRED,
    V_QUEUED_UNITS,
    V_SATURATED,
)

_US = 1000  # the batcher sleeps whole microseconds


def expired(state: BatcherState, now_ns: int, request: int) -> int:
    """1 when a request's deadline has passed."""
    if now_ns > state.request_deadline_ns[request]:
        return 1
    return 0


def deadline_forget(state: BatcherState, level: int, request: int) -> None:
    """Keeps the count of waiting requests that a sweep could reject."""
    if state.request_deadline_ns[request] != NEVER and state.policy[level * POLICY_ROW + P_DELAY_ACTION] == 0:
        state.scalar[V_DEADLINES] -= 1


def list_unlink(state: BatcherState, queue: int, before: int) -> int:
    """Removes and returns the request after ``before`` (``NONE``: the first) of a waiting queue."""
    if before == NONE:
        request = state.queue_head[queue]
        state.queue_head[queue] = state.request_next[request]
    else:
        request = state.request_next[before]
        state.request_next[before] = state.request_next[request]
    if state.queue_tail[queue] == request:
        state.queue_tail[queue] = before
    state.request_next[request] = NONE
    state.queue_count[queue] -= 1
    state.queue_units[queue] -= state.request_units[request]
    state.scalar[V_WAITING] -= 1
    state.scalar[V_WAITING_UNITS] -= state.request_units[request]
    return request


def cursor_reset(state: BatcherState) -> None:
    """Puts the cursor in front of all waiting requests."""
    state.scalar[V_CURSOR_VALID] = 1
    state.scalar[V_CURSOR_LEVEL] = 0
    state.scalar[V_CURSOR_DELAYED] = 0
    state.scalar[V_CURSOR_LAST] = NONE
    state.scalar[V_CURSOR_COUNT] = 0
    state.scalar[V_CURSOR_UNITS] = 0
    state.scalar[V_CURSOR_OLDEST_NS] = NEVER
    state.scalar[V_CURSOR_DEADLINE_NS] = NEVER


def live_next(state: BatcherState) -> int:
    """The live request at the cursor, or ``NONE``."""
    if state.scalar[V_CURSOR_DELAYED] == 1:
        return NONE
    if state.scalar[V_CURSOR_LAST] == NONE:
        return state.queue_head[2 * state.scalar[V_CURSOR_LEVEL]]
    return state.request_next[state.scalar[V_CURSOR_LAST]]


def delayed_next(state: BatcherState) -> int:
    """The delayed request at the cursor, or ``NONE``."""
    if state.scalar[V_CURSOR_DELAYED] == 0 or state.scalar[V_CURSOR_LAST] == NONE:
        return state.queue_head[2 * state.scalar[V_CURSOR_LEVEL] + 1]
    return state.request_next[state.scalar[V_CURSOR_LAST]]


def cursor_settle(state: BatcherState, now_ns: int) -> int:
    """Applies the queue policies at the cursor and moves it to the next request; returns that or ``NONE``."""
    while state.scalar[V_CURSOR_COUNT] < state.scalar[V_WAITING]:
        level = state.scalar[V_CURSOR_LEVEL]
        request = live_next(state)
        while request != NONE and expired(state, now_ns, request) == 1:
            before = state.scalar[V_CURSOR_LAST]
            list_unlink(state, 2 * level, before)
            if state.policy[level * POLICY_ROW + P_DELAY_ACTION] == 1:
                state.request_deadline_ns[request] = NEVER
                queue_push(state, 2 * level + 1, request)
            else:
                deadline_forget(state, level, request)
                state.scalar[V_QUEUED_UNITS] -= state.request_units[request]
                refuse(state, request, REFUSED_TIMEOUT)
            request = live_next(state)
        if request != NONE:
            return request
        request = delayed_next(state)
        if request != NONE:
            return request
        if level + 1 >= len(state.queue_head) // 2:
            return NONE
        if state.scalar[V_CURSOR_COUNT] < state.scalar[V_WAITING]:
            state.scalar[V_CURSOR_LEVEL] = level + 1
            state.scalar[V_CURSOR_DELAYED] = 0
            state.scalar[V_CURSOR_LAST] = NONE
    return NONE


def cursor_pass(state: BatcherState, request: int) -> None:
    """Includes the request at the cursor in the scanned prefix."""
    if live_next(state) != request:
        state.scalar[V_CURSOR_DELAYED] = 1
    state.scalar[V_CURSOR_LAST] = request
    state.scalar[V_CURSOR_COUNT] += 1
    state.scalar[V_CURSOR_UNITS] += state.request_units[request]
    if state.request_enqueued_ns[request] < state.scalar[V_CURSOR_OLDEST_NS]:
        state.scalar[V_CURSOR_OLDEST_NS] = state.request_enqueued_ns[request]
    if state.request_deadline_ns[request] < state.scalar[V_CURSOR_DEADLINE_NS]:
        state.scalar[V_CURSOR_DEADLINE_NS] = state.request_deadline_ns[request]


def is_preferred(state: BatcherState, units: int) -> int:
    """1 when a batch of this many units is of a preferred size."""
    for place in range(len(state.preferred)):
        if state.preferred[place] == units:
            return 1
    return 0


def largest_preferred(state: BatcherState) -> int:
    """The largest preferred size, 0 where there is none."""
    if len(state.preferred) == 0:
        return 0
    return state.preferred[len(state.preferred) - 1]


def scan(state: BatcherState, now_ns: int) -> int:
    """Decides over the waiting requests; returns how long to wait in ns, or 0 with the prefix to send at the cursor.

    The prefix is the first ``V_CURSOR_COUNT`` requests in the order of dispatch and may be empty.
    """
    valid = state.scalar[V_CURSOR_VALID] == 1 and state.scalar[V_CURSOR_DEADLINE_NS] != NEVER
    if not valid or now_ns >= state.scalar[V_CURSOR_DEADLINE_NS]:
        cursor_reset(state)
    base = 0
    if state.scalar[V_CURRENT] != NONE:
        base = state.payload_units[state.scalar[V_CURRENT]]
    mark_count = 0
    mark_units = 0
    closed = 0
    request = cursor_settle(state, now_ns)
    while request != NONE:
        units = base + state.scalar[V_CURSOR_UNITS]
        if base == 0 and state.scalar[V_CURSOR_COUNT] == 0:
            state.scalar[V_CURSOR_SHAPE] = state.request_shape[request]
        else:
            grown = units + state.request_units[request]
            if grown > largest_preferred(state) and mark_units == 0:
                # Past every preferred size without having met one: whatever is sent now is all it gets.
                mark_count = state.scalar[V_CURSOR_COUNT]
                mark_units = state.scalar[V_CURSOR_UNITS]
                state.scalar[V_SATURATED] = 1
            if grown > state.setting[S_BATCH_MAX]:
                closed = 1
                break
            if state.setting[S_EQUAL_SHAPE] == 1 and state.request_shape[request] != batch_shape(state):
                close_current(state)
                closed = 1
                break
        cursor_pass(state, request)
        request = cursor_settle(state, now_ns)
        if is_preferred(state, base + state.scalar[V_CURSOR_UNITS]) == 1:
            mark_count = state.scalar[V_CURSOR_COUNT]
            mark_units = state.scalar[V_CURSOR_UNITS]
    return verdict(state, now_ns, base, mark_count, mark_units, closed)


def batch_shape(state: BatcherState) -> int:
    """Shape of the first request of the batch being formed."""
    if state.scalar[V_CURRENT] != NONE:
        return state.request_shape[state.scalar[V_CURRENT]]
    return state.scalar[V_CURSOR_SHAPE]


def close_current(state: BatcherState) -> None:
    """Notes that the current payload ends at a request of another shape."""
    if state.scalar[V_CURRENT] != NONE:
        state.payload_flag[state.scalar[V_CURRENT]] = PAYLOAD_CLOSED
    else:
        state.scalar[V_CLOSED] = 1


def verdict(state: BatcherState, now_ns: int, base: int, mark_count: int, mark_units: int, closed: int) -> int:
    """The second half of ``scan``: send the marked prefix, send all, or wait (ns)."""
    delay_ns = state.setting[S_DELAY_NS]
    count = state.scalar[V_CURSOR_COUNT]
    units = base + state.scalar[V_CURSOR_UNITS]
    age_ns = 0
    if count > 0:
        age_ns = now_ns - state.scalar[V_CURSOR_OLDEST_NS]
    over = delay_ns != 0 and age_ns >= delay_ns
    if mark_units != 0 and not over:
        if delay_ns == 0:
            state.scalar[V_SATURATED] = 1
        state.scalar[V_CURSOR_COUNT] = mark_count
        state.scalar[V_CURSOR_UNITS] = mark_units
        return 0
    if count == 0:
        return 0
    if closed == 1 or units >= largest_preferred(state):
        state.scalar[V_SATURATED] = 1
        return 0
    if over or delay_ns == 0:
        return 0
    state.scalar[V_NEXT_PREFERRED] = next_preferred(state, units) - base
    if state.scalar[V_SATURATED] == 0 and base != 0 and is_preferred(state, base) == 0:
        # A payload that waits below a preferred size takes what there is instead of leaving it behind.
        return 0
    wait_ns = delay_ns - age_ns
    deadline_ns = state.scalar[V_CURSOR_DEADLINE_NS]
    if deadline_ns != NEVER:
        left_ns = _US
        if now_ns <= deadline_ns:
            left_ns = deadline_ns - now_ns
        if left_ns <= wait_ns and left_ns >= _US:
            # A thread wakes after its sleep, never before: by then the deadline it slept for has passed.
            return left_ns // _US * _US + _US
        if left_ns < wait_ns:
            wait_ns = left_ns
    return wait_ns // _US * _US


def next_preferred(state: BatcherState, units: int) -> int:
    """The smallest preferred size above ``units``; ``scan`` asks only while there is one."""
    for place in range(len(state.preferred)):
        if state.preferred[place] > units:
            return state.preferred[place]
    return units
