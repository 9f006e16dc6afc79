"""A batching policy of one's own: a batch waits for company only while its oldest request can afford it.

Every request should be answered within ``slo_ns``. A batch of n requests takes about ``base_ns + n * item_ns``; the
oldest request can wait until what is left of its time is just enough for a batch with one more request in it. Under
load this forms the largest batches that still keep the promise; without load nothing is delayed for nothing.
"""

from preba.batching.queues import best_idle_consumer, hand_out, payload_add, payload_open, queue_pop, queue_push
from preba.batching.state import (
    NEVER,
    NONE,
    REFUSED_QUEUE_FULL,
    S_BATCH_MAX,
    S_PLUGIN_FIRST,
    S_QUEUE_MAX,
    SERVED,
    V_IDLE,
    V_WAITING,
)

SETTINGS = ("slo_ns", "base_ns", "item_ns")
SLO = S_PLUGIN_FIRST
BASE = S_PLUGIN_FIRST + 1
ITEM = S_PLUGIN_FIRST + 2


def enqueue(state, now_ns, request):
    """Takes a request into the only queue, unless that is full."""
    if state.setting[S_QUEUE_MAX] > 0 and state.scalar[V_WAITING] >= state.setting[S_QUEUE_MAX]:
        return REFUSED_QUEUE_FULL
    state.request_enqueued_ns[request] = now_ns
    queue_push(state, 0, request)
    return SERVED


def leave_ns(state):
    """When the waiting requests must leave for the oldest of them to be answered in time."""
    oldest_ns = state.request_enqueued_ns[state.queue_head[0]]
    next_size = min(state.queue_units[0] + 1, state.setting[S_BATCH_MAX])
    return oldest_ns + state.setting[SLO] - state.setting[BASE] - next_size * state.setting[ITEM]


def take_batch(state, now_ns):
    """Hands out a batch when it is full or its oldest request can wait no longer."""
    if state.scalar[V_WAITING] == 0 or state.scalar[V_IDLE] == 0:
        return NONE
    limit = state.setting[S_BATCH_MAX]
    if state.queue_units[0] < limit and now_ns < leave_ns(state):
        return NONE
    consumer = best_idle_consumer(state)
    payload = payload_open(state, queue_pop(state, 0))
    while state.queue_head[0] != NONE:
        if state.payload_units[payload] + state.request_units[state.queue_head[0]] > limit:
            break
        payload_add(state, payload, queue_pop(state, 0))
    hand_out(state, consumer, payload, now_ns)
    return consumer


def due_ns(state):
    """The next moment at which time alone changes something."""
    if state.scalar[V_WAITING] == 0 or state.scalar[V_IDLE] == 0:
        return NEVER
    return leave_ns(state)
