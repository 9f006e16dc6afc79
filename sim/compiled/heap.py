"""The event list of the compiled engine: a binary heap of (time, order key, payload), and one alarm per server.

Order keys are unique among the events of one moment, except where the order does not matter, so the heap needs no
sequence numbers. Alarms have a heap of their own that is changed in place: an alarm set anew leaves nothing behind.
"""

from __future__ import annotations

from preba.batching.state import NEVER, NONE, Ints
from sim.compiled.layout import K_HEAP, K_TIMERS, World

LAST_KEY = 1 << 60
"""Larger than every order key."""


def heap_push(world: World, at_ns: int, key: int, payload: int) -> None:
    """Adds an event."""
    place = world.clock[K_HEAP]
    world.clock[K_HEAP] = place + 1
    heap_rise(world.heap, place, at_ns, key, payload)


def heap_drop(world: World) -> None:
    """Removes the first event of a heap that is not empty.

    The gap goes down to a leaf along the earlier children and the last event rises from there: it nearly always
    belongs near the bottom, so this way hardly a branch is hard to predict.
    """
    heap = world.heap
    count = world.clock[K_HEAP] - 1
    world.clock[K_HEAP] = count
    at_ns = heap[3 * count]
    key = heap[3 * count + 1]
    payload = heap[3 * count + 2]
    heap[3 * count] = NEVER  # so that a right child may always be looked at
    heap[3 * count + 1] = LAST_KEY
    place = 0
    child = 1
    while child < count:
        child += lower(heap[3 * child + 3], heap[3 * child + 4], heap[3 * child], heap[3 * child + 1])
        heap[3 * place] = heap[3 * child]
        heap[3 * place + 1] = heap[3 * child + 1]
        heap[3 * place + 2] = heap[3 * child + 2]
        place = child
        child = 2 * place + 1
    heap_rise(heap, place, at_ns, key, payload)


def heap_rise(heap: Ints, place: int, at_ns: int, key: int, payload: int) -> None:
    """Puts an event into the gap at a place, or as far above as it belongs."""
    while place > 0:
        parent = (place - 1) >> 1
        parent_ns = heap[3 * parent]
        if parent_ns < at_ns or (parent_ns == at_ns and heap[3 * parent + 1] < key):
            break
        heap[3 * place] = parent_ns
        heap[3 * place + 1] = heap[3 * parent + 1]
        heap[3 * place + 2] = heap[3 * parent + 2]
        place = parent
    heap[3 * place] = at_ns
    heap[3 * place + 1] = key
    heap[3 * place + 2] = payload


def lower(at_ns: int, key: int, other_ns: int, other_key: int) -> int:
    """1 if (at_ns, key) comes before the other; without a branch, because nothing could predict it."""
    return int((at_ns < other_ns) | ((at_ns == other_ns) & (key < other_key)))


def heap_before(world: World, at_ns: int, key: int) -> bool:
    """Whether the heap holds an event that comes before (at_ns, key)."""
    if world.clock[K_HEAP] == 0:
        return False
    first_ns = world.heap[0]
    return bool(first_ns < at_ns or (first_ns == at_ns and world.heap[1] < key))


def timer_earlier(world: World, server: int, other: int) -> bool:
    """Whether one server's alarm comes before another's: by time, then by server."""
    mine_ns = world.server_alarm_ns[server]
    other_ns = world.server_alarm_ns[other]
    return bool(mine_ns < other_ns or (mine_ns == other_ns and server < other))


def timer_put(world: World, place: int, server: int) -> None:
    """Writes a server into a place of the timer heap."""
    world.timer_server[place] = server
    world.server_timer_place[server] = place


def timer_up(world: World, place: int) -> None:
    """Moves the server at a place towards the front as far as its alarm demands."""
    server = world.timer_server[place]
    while place > 0:
        parent = (place - 1) >> 1
        other = world.timer_server[parent]
        if timer_earlier(world, other, server):
            break
        timer_put(world, place, other)
        place = parent
    timer_put(world, place, server)


def timer_down(world: World, place: int) -> None:
    """Moves the server at a place towards the back as far as its alarm demands."""
    server = world.timer_server[place]
    count = world.clock[K_TIMERS]
    child = 2 * place + 1
    while child < count:
        if child + 1 < count and timer_earlier(world, world.timer_server[child + 1], world.timer_server[child]):
            child += 1
        other = world.timer_server[child]
        if timer_earlier(world, server, other):
            break
        timer_put(world, place, other)
        place = child
        child = 2 * place + 1
    timer_put(world, place, server)


def timer_set(world: World, server: int, at_ns: int) -> None:
    """Sets a server's alarm, whether it had one or not."""
    world.server_alarm_ns[server] = at_ns
    place = world.server_timer_place[server]
    if place == NONE:
        place = world.clock[K_TIMERS]
        world.clock[K_TIMERS] = place + 1
        timer_put(world, place, server)
        timer_up(world, place)
        return
    if place > 0 and timer_earlier(world, server, world.timer_server[(place - 1) >> 1]):
        timer_up(world, place)
    else:
        timer_down(world, place)


def timer_clear(world: World, server: int) -> None:
    """Takes a server's alarm away, if it has one."""
    place = world.server_timer_place[server]
    if place == NONE:
        return
    count = world.clock[K_TIMERS] - 1
    world.clock[K_TIMERS] = count
    world.server_timer_place[server] = NONE
    if place == count:
        return
    timer_put(world, place, world.timer_server[count])
    if place > 0 and timer_earlier(world, world.timer_server[place], world.timer_server[(place - 1) >> 1]):
        timer_up(world, place)
    else:
        timer_down(world, place)
