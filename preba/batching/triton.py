"""Triton's dynamic batcher: what each event does to it. Scanning, payload queues and rate limits have own files.

The server runs one batcher thread per model and one backend thread per consumer. Here they take no time: an event
leaves the batcher *notified*; ``triton_take_batch`` first lets idle consumers take what waits (a thread that
finishes a batch is back at the queue before the batcher wakes up) and then runs the batcher until it sleeps.

Read in triton-inference-server/core at 73aad7c (9 June 2026) and written anew: ``dynamic_batch_scheduler.cc``,
``scheduler_utils.cc``, ``payload.cc``, ``instance_queue.cc``, ``rate_limiter.cc``. Where this differs from the
source: requests cannot be cancelled; threads wake at once, except that the batcher may be told to need some time for it
and to win a share of its races with threads that come back, which it then does not see for a while, unless another one
comes back meanwhile; a batcher that the source lets spin on a request of another shape sleeps until the next event.
"""

from __future__ import annotations

import itertools
import math

from preba.batching.queues import payload_add, payload_open, queue_pop, queue_push, refuse
from preba.batching.state import (
    NEVER,
    NONE,
    REFUSED_QUEUE_FULL,
    REFUSED_TIMEOUT,
    SERVED,
    V_CURRENT,
    V_DUE_NS,
    V_WAITING,
    BatcherState,
)
from preba.batching.triton_layout import (
    P_DELAY_ACTION,
    P_OVERRIDE,
    P_QUEUE_MAX,
    P_TIMEOUT_NS,
    PAYLOAD_CLOSED,
    POLICY_ROW,
    S_BATCHER_FIRST_LATE_NS,
    S_BATCHER_FIRST_PERMILLE,
    S_BATCHER_FIRST_SEED,
    S_DEFAULT_LEVEL,
    S_DYNAMIC,
    S_EQUAL_SHAPE,
    S_LEVELS,
    S_PREFETCH,
    S_RATE_LIMITED,
    S_SWEEP,
    S_WAKE_NS,
    S_WAKE_VARIES,
    TICK_NS,
    V_ASKING,
    V_AWAKE,
    V_BACK_NS,
    V_BLOCKED,
    V_CLOSED,
    V_CURSOR_COUNT,
    V_CURSOR_DELAYED,
    V_CURSOR_LEVEL,
    V_CURSOR_UNITS,
    V_CURSOR_VALID,
    V_DEADLINES,
    V_IDLING,
    V_MISSED,
    V_NEXT_PREFERRED,
    V_NOTIFIED,
    V_QUEUED_UNITS,
    V_RETURNS,
    V_SATURATED,
    V_STALE,
    V_SWEEP_NS,
    V_WAKE_NS,
    V_WAKES,
)
from preba.batching.triton_payloads import (
    payload_dispatch,
    payload_drain,
    payload_enqueue,
    slot_free,
)
from preba.batching.triton_rate import rate_lost, rate_returned
from preba.batching.triton_scan import deadline_forget, expired, list_unlink, scan

_WORD = 0xFFFF_FFFF
_SEED_STEP = 0x9E37_79B9
_MIX_FIRST = 0x7FEB_352D
_MIX_SECOND = 0x3C6E_F372 | 1
EXPONENTIAL_COUNT = 64
EXPONENTIAL_UNIT = 1 << 16
_LEFT = [place / EXPONENTIAL_COUNT for place in range(EXPONENTIAL_COUNT, 0, -1)]
_ABOVE = [left * (1.0 - math.log(left)) for left in _LEFT]
EXPONENTIAL = tuple(
    round(EXPONENTIAL_UNIT * EXPONENTIAL_COUNT * (above - further))
    for above, further in itertools.pairwise([*_ABOVE, 0.0])
)
"""Means of equal shares of an exponential time of mean 1, in units: integers, so that every engine draws the same."""


def triton_enqueue(state: BatcherState, now_ns: int, request: int) -> int:
    """Takes a request in, or returns ``REFUSED_QUEUE_FULL``."""
    state.request_enqueued_ns[request] = now_ns
    state.request_deadline_ns[request] = NEVER
    if state.setting[S_DYNAMIC] == 0:
        payload_enqueue(state, payload_open(state, request))
        return SERVED
    level = level_of(state, request)
    # The server counts the units before it looks at the limit and does not give them back on refusal.
    state.scalar[V_QUEUED_UNITS] += state.request_units[request]
    limit = state.policy[level * POLICY_ROW + P_QUEUE_MAX]
    if limit > 0 and state.queue_count[2 * level] + state.queue_count[2 * level + 1] >= limit:
        return REFUSED_QUEUE_FULL
    timeout_ns = state.policy[level * POLICY_ROW + P_TIMEOUT_NS]
    own_ns = state.request_timeout_ns[request]
    if state.policy[level * POLICY_ROW + P_OVERRIDE] == 1 and own_ns > 0 and own_ns < timeout_ns:
        timeout_ns = own_ns
    if timeout_ns > 0:
        state.request_deadline_ns[request] = now_ns + timeout_ns
        if state.policy[level * POLICY_ROW + P_DELAY_ACTION] == 0:
            state.scalar[V_DEADLINES] += 1
    if state.scalar[V_WAITING] == 0 and state.scalar[V_IDLING] == 1:
        roll(state, V_DUE_NS, now_ns)
    queue_push(state, 2 * level, request)
    cursor_level = state.scalar[V_CURSOR_LEVEL]
    if level < cursor_level or (level == cursor_level and state.scalar[V_CURSOR_DELAYED] == 1):
        state.scalar[V_CURSOR_VALID] = 0
    if slot_seen(state, now_ns) == 1 and (state.setting[S_EQUAL_SHAPE] == 1 or wants_arrival(state) == 1):
        state.scalar[V_NOTIFIED] = 1
    return SERVED


def slot_seen(state: BatcherState, now_ns: int) -> int:
    """1 when a slot is free other than of the one instance that the batcher overtook and that is not back yet."""
    if state.scalar[V_MISSED] == 1 and now_ns < state.scalar[V_BACK_NS] and state.scalar[V_ASKING] <= 1:
        return 0
    return slot_free(state)


def level_of(state: BatcherState, request: int) -> int:
    """Index of the priority level a request queues at; out of range means the default level."""
    levels = state.setting[S_LEVELS]
    if levels == 0:
        return 0
    priority = state.request_priority[request]
    if priority < 1 or priority > levels:
        priority = state.setting[S_DEFAULT_LEVEL]
    return priority - 1


def wants_arrival(state: BatcherState) -> int:
    """1 when an arrival makes a difference to the batcher: it needs a new payload or enough units are queued."""
    if state.scalar[V_SATURATED] == 1 or state.scalar[V_STALE] == 1:
        return 1
    if state.scalar[V_QUEUED_UNITS] >= state.scalar[V_NEXT_PREFERRED]:
        return 1
    return 0


def triton_consumer_idle(state: BatcherState, now_ns: int, consumer: int) -> None:
    """A backend thread has finished (or starts) and asks for its next payload."""
    if state.setting[S_RATE_LIMITED] == 1:
        rate_returned(state, consumer)
    # The end of execution notifies the batcher, and only then does the thread come back for more: a race.
    first = 0
    if state.setting[S_DYNAMIC] == 1 and state.scalar[V_WAITING] > 0:
        first = batcher_is_first(state)
    if first == 1 and state.setting[S_PREFETCH] == 1:
        batcher_run(state, now_ns)  # what has come meanwhile may still join the payload that goes next
    state.consumer_asking[consumer] = 1
    state.scalar[V_ASKING] += 1
    if state.setting[S_DYNAMIC] == 0:
        return
    if first == 1 and state.setting[S_PREFETCH] == 0 and state.scalar[V_ASKING] == 1:
        # Seeing no consumer the batcher goes back to sleep, and nobody wakes it but an arrival or its own tick.
        if state.scalar[V_BLOCKED] == 0:
            block(state, now_ns)
        roll(state, V_SWEEP_NS, now_ns)
        state.scalar[V_MISSED] = 1
        state.scalar[V_BACK_NS] = now_ns + state.setting[S_BATCHER_FIRST_LATE_NS]
        return
    state.scalar[V_NOTIFIED] = 1


def block(state: BatcherState, now_ns: int) -> None:
    """Puts the batcher to sleep until a slot is free."""
    state.scalar[V_BLOCKED] = 1
    state.scalar[V_SWEEP_NS] = now_ns + TICK_NS


def batcher_is_first(state: BatcherState) -> int:
    """1 for the configured share of returns, each drawn by an integer hash of its number and the seed."""
    permille = state.setting[S_BATCHER_FIRST_PERMILLE]
    if permille == 0:
        return 0
    state.scalar[V_RETURNS] += 1
    if hashed(state, state.scalar[V_RETURNS]) % 1000 < permille:
        return 1
    return 0


def wakeup_ns(state: BatcherState) -> int:
    """How long the batcher takes to wake up this time: always as long, or by the hash of the wake-up's number."""
    if state.setting[S_WAKE_VARIES] == 0:
        return state.setting[S_WAKE_NS]
    state.scalar[V_WAKES] += 1
    place = hashed(state, _WORD - state.scalar[V_WAKES]) % EXPONENTIAL_COUNT
    return state.setting[S_WAKE_NS] * EXPONENTIAL[place] // EXPONENTIAL_UNIT


def hashed(state: BatcherState, number: int) -> int:
    """32 bits of a number and the configured seed."""
    mixed = (number + state.setting[S_BATCHER_FIRST_SEED] % (_WORD >> 1) * _SEED_STEP) & _WORD
    for _ in range(3):
        mixed = ((mixed ^ (mixed >> 16)) * _MIX_FIRST) & _WORD
        mixed = ((mixed ^ (mixed >> 15)) * _MIX_SECOND) & _WORD
    return mixed ^ (mixed >> 16)


def triton_consumer_lost(
    state: BatcherState,
    now_ns: int,  # noqa: ARG001 - the door hands the time to every policy
    consumer: int,
) -> None:
    """An instance leaves service; a payload bound to it alone goes back to those without an instance."""
    if state.consumer_asking[consumer] == 1:
        state.consumer_asking[consumer] = 0
        state.scalar[V_ASKING] -= 1
    if state.setting[S_RATE_LIMITED] == 1:
        rate_lost(state, consumer)


def triton_advance(state: BatcherState, now_ns: int) -> None:
    """Lets the batcher's sleep run out if it is due."""
    if state.scalar[V_WAKE_NS] > 0:
        if state.scalar[V_WAKE_NS] <= now_ns:
            state.scalar[V_WAKE_NS] = 0
            state.scalar[V_AWAKE] = 1
        return
    if state.scalar[V_BLOCKED] == 0:
        if state.scalar[V_WAITING] > 0 and state.scalar[V_DUE_NS] <= now_ns:
            state.scalar[V_NOTIFIED] = 1
        return
    if state.scalar[V_SWEEP_NS] > now_ns:
        return
    roll(state, V_SWEEP_NS, now_ns)
    if slot_seen(state, now_ns) == 1:
        state.scalar[V_NOTIFIED] = 1
    elif state.setting[S_SWEEP] == 1:
        sweep(state, now_ns)


def roll(state: BatcherState, due: int, now_ns: int) -> None:
    """Moves a tick of the batcher (``V_DUE_NS`` or ``V_SWEEP_NS``) to its next multiple after now."""
    if state.scalar[due] <= now_ns:
        passed = (now_ns - state.scalar[due]) // TICK_NS + 1
        state.scalar[due] += passed * TICK_NS


def sweep(state: BatcherState, now_ns: int) -> None:
    """Rejects every expired request of the levels that reject; their units stay counted, as in the server."""
    for level in range(len(state.queue_head) // 2):
        if state.policy[level * POLICY_ROW + P_DELAY_ACTION] == 1:
            continue
        before = NONE
        request = state.queue_head[2 * level]
        while request != NONE:
            after = state.request_next[request]
            if expired(state, now_ns, request) == 1:
                list_unlink(state, 2 * level, before)
                deadline_forget(state, level, request)
                refuse(state, request, REFUSED_TIMEOUT)
                state.scalar[V_CURSOR_VALID] = 0
            else:
                before = request
            request = after


def triton_due_ns(state: BatcherState) -> int:
    """When the batcher's sleep runs out, if that can change anything."""
    if state.scalar[V_WAKE_NS] > 0:
        return state.scalar[V_WAKE_NS]
    if state.scalar[V_BLOCKED] == 0:
        if state.scalar[V_WAITING] == 0:
            return NEVER
        return state.scalar[V_DUE_NS]
    if state.scalar[V_MISSED] == 1:
        return state.scalar[V_SWEEP_NS]
    if state.scalar[V_DEADLINES] > 0 and state.setting[S_SWEEP] == 1:
        return state.scalar[V_SWEEP_NS]
    return NEVER


def triton_take_batch(state: BatcherState, now_ns: int) -> int:
    """Hands out the next payload an idle consumer may start; returns the consumer or ``NONE``."""
    while True:
        consumer = payload_dispatch(state, now_ns)
        if consumer != NONE:
            return consumer
        if state.scalar[V_NOTIFIED] == 0 and state.scalar[V_AWAKE] == 0:
            return NONE
        state.scalar[V_NOTIFIED] = 0
        if state.scalar[V_AWAKE] == 0 and state.setting[S_WAKE_NS] > 0:
            if state.scalar[V_WAKE_NS] == 0:
                state.scalar[V_WAKE_NS] = now_ns + wakeup_ns(state)
            return NONE
        state.scalar[V_AWAKE] = 0
        batcher_run(state, now_ns)


def batcher_run(state: BatcherState, now_ns: int) -> None:
    """Runs the batcher thread from a wake-up until it sleeps again."""
    if state.scalar[V_BLOCKED] == 1:
        if slot_seen(state, now_ns) == 0:
            return
        state.scalar[V_BLOCKED] = 0
        state.scalar[V_MISSED] = 0
    while True:
        if state.scalar[V_SATURATED] == 1 or state.scalar[V_STALE] == 1:
            payload_new(state)
        state.scalar[V_DUE_NS] = NEVER
        state.scalar[V_IDLING] = 0
        if state.scalar[V_WAITING] == 0:
            state.scalar[V_IDLING] = 1
            state.scalar[V_DUE_NS] = now_ns + TICK_NS
            return
        if slot_free(state) == 0:
            block(state, now_ns)
            return
        wait_ns = scan(state, now_ns)
        if wait_ns > 0:
            state.scalar[V_DUE_NS] = now_ns + wait_ns
            return
        if state.scalar[V_CURSOR_COUNT] > 0:
            extract(state)
        elif state.scalar[V_SATURATED] == 0 and state.scalar[V_WAITING] > 0:
            # The next request has another shape than a payload that waits: nothing to do until that one is taken.
            return


def payload_new(state: BatcherState) -> None:
    """Starts over with an empty current payload."""
    state.scalar[V_CURRENT] = NONE
    state.scalar[V_STALE] = 0
    state.scalar[V_SATURATED] = 0
    state.scalar[V_CLOSED] = 0
    state.scalar[V_NEXT_PREFERRED] = 0


def extract(state: BatcherState) -> None:
    """Moves the scanned prefix into the current payload, opening and queueing it if it was empty."""
    count = state.scalar[V_CURSOR_COUNT]
    opened = 0
    for queue in range(len(state.queue_head)):
        while count > 0 and state.queue_head[queue] != NONE:
            request = queue_pop(state, queue)
            if queue % 2 == 0:
                deadline_forget(state, queue // 2, request)
            if state.scalar[V_CURRENT] == NONE:
                state.scalar[V_CURRENT] = payload_open(state, request)
                if state.scalar[V_CLOSED] == 1:
                    state.payload_flag[request] = PAYLOAD_CLOSED
                opened = 1
            else:
                payload_add(state, state.scalar[V_CURRENT], request)
            count -= 1
    state.scalar[V_QUEUED_UNITS] -= state.scalar[V_CURSOR_UNITS]
    state.scalar[V_CURSOR_UNITS] = 0
    state.scalar[V_CURSOR_COUNT] = 0
    state.scalar[V_CURSOR_VALID] = 0
    if opened == 1:
        payload_enqueue(state, state.scalar[V_CURRENT])


def triton_take_waiting(state: BatcherState) -> int:
    """Gives back one request that no consumer has started on, or ``NONE``, and forgets the current payload."""
    payload_drain(state)
    payload_new(state)
    state.scalar[V_CURSOR_VALID] = 0
    state.scalar[V_NOTIFIED] = 1
    for queue in range(len(state.queue_head)):
        if state.queue_head[queue] != NONE:
            request = queue_pop(state, queue)
            if queue % 2 == 0:
                deadline_forget(state, queue // 2, request)
            state.scalar[V_QUEUED_UNITS] -= state.request_units[request]
            return request
    return NONE
