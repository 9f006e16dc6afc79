"""The event loop of the compiled engine. Numba subset: the next event from three sources, in the written order."""

from __future__ import annotations

from preba.batching.state import NEVER
from preba.units import NS_PER_S
from sim.compiled import door
from sim.compiled.failures import slice_fails, slice_returns
from sim.compiled.heap import LAST_KEY, heap_drop, heap_push, timer_clear
from sim.compiled.layout import (
    C_EVENTS,
    C_OPEN_IDENTITY,
    C_SERVERS,
    K_FAULT,
    K_HEAP,
    K_MORE_TO_COME,
    K_NEXT_OPEN,
    K_NOW_NS,
    K_OPEN_END,
    K_PROGRESS_NS,
    K_TIMERS,
    STATUS_DONE,
    STATUS_FAULT,
    STATUS_PAUSED,
    STATUS_ROWS_FULL,
    STATUS_TRACE_NEEDED,
    World,
)
from sim.compiled.requests import (
    ON_ITS_WAY,
    arrive,
    consumer_ready,
    end,
    issue_next,
    leave_station,
    next_station,
    offer,
    pump,
    release_unit,
    state_at,
)
from sim.model import SLICE_FAILS
from sim.order import (
    ID_BITS,
    RANK_ARRIVAL,
    RANK_CONSUMER_READY,
    RANK_EXECUTION_END,
    RANK_SCENARIO,
    RANK_STATION_LEAVE,
    RANK_TIMER,
    RANK_UNIT_RELEASE,
    order_key,
)

IDLE_LIMIT_NS = 3600 * NS_PER_S
_ID_MASK = (1 << ID_BITS) - 1


def begin(world: World) -> None:
    """Everything before the first event: consumers enter service, the scenario's events and closed loops are set."""
    for server in range(world.config[C_SERVERS]):
        for consumer in range(world.server_consumers[server]):
            door.consumer_up(state_at(world, server), 0, consumer)
    for event in range(world.config[C_EVENTS]):
        heap_push(world, world.event_at_ns[event], order_key(RANK_SCENARIO, event), 0)
    for model in range(len(world.model_outstanding)):
        for _ in range(world.model_outstanding[model]):
            issue_next(world, model, 0)


def open_request(world: World, place: int) -> int:
    """The request that arrives ``place``-th among those of open loops."""
    if world.config[C_OPEN_IDENTITY] == 1:
        return place
    return int(world.open_request[place])


def play(world: World, limit: int) -> int:
    """Plays up to ``limit`` events and says why it stopped."""
    clock = world.clock
    for _ in range(limit):
        at_ns = NEVER
        key = LAST_KEY
        request = -1
        if clock[K_HEAP] > 0:
            at_ns = world.heap[0]
            key = world.heap[1]
        if clock[K_TIMERS] > 0:
            server = world.timer_server[0]
            alarm_ns = world.server_alarm_ns[server]
            if alarm_ns < at_ns or (alarm_ns == at_ns and order_key(RANK_TIMER, server) < key):
                at_ns = alarm_ns
                key = order_key(RANK_TIMER, server)
        if clock[K_NEXT_OPEN] < clock[K_OPEN_END]:
            candidate = open_request(world, clock[K_NEXT_OPEN])
            arrival_ns = world.trace_scheduled_ns[candidate]
            if arrival_ns < at_ns or (arrival_ns == at_ns and order_key(RANK_ARRIVAL, candidate) < key):
                at_ns = arrival_ns
                key = order_key(RANK_ARRIVAL, candidate)
                request = candidate
        elif clock[K_MORE_TO_COME] == 1:
            return STATUS_TRACE_NEEDED
        if key == LAST_KEY or clock[K_FAULT] != 0:
            return STATUS_DONE if clock[K_FAULT] == 0 else STATUS_FAULT
        rank = key >> ID_BITS
        identity = key & _ID_MASK
        if rank == RANK_ARRIVAL:
            if world.row_owner[identity] != 0:
                return STATUS_ROWS_FULL
            clock[K_NOW_NS] = at_ns
            if request >= 0:
                clock[K_NEXT_OPEN] += 1
            else:
                heap_drop(world)
            arrive(world, identity)
        elif rank == RANK_TIMER:
            clock[K_NOW_NS] = at_ns
            ring(world, identity)
        else:
            clock[K_NOW_NS] = at_ns
            payload = world.heap[2]
            heap_drop(world)
            happen(world, rank, identity, payload)
    return STATUS_PAUSED


def happen(world: World, rank: int, identity: int, payload: int) -> None:
    """One event from the heap that is no arrival."""
    if rank == RANK_UNIT_RELEASE:
        release_unit(world, identity, payload)
    elif rank == RANK_EXECUTION_END:
        end(world, payload)
    elif rank == RANK_STATION_LEAVE:
        if payload >= 0:
            leave_station(world, payload, identity)
        elif payload == ON_ITS_WAY:
            next_station(world, identity)
        else:
            offer(world, identity)
    elif rank == RANK_CONSUMER_READY:
        consumer_ready(world, payload)
    elif world.event_code[identity] == SLICE_FAILS:
        slice_fails(world, world.event_slice[identity])
    else:
        slice_returns(world, world.event_slice[identity])


def ring(world: World, server: int) -> None:
    """The batcher's alarm rings; a run in which nothing but alarms happened for an hour is over."""
    clock = world.clock
    timer_clear(world, server)
    world.server_armed_ns[server] = NEVER
    last_is_next = clock[K_NEXT_OPEN] + 1 >= clock[K_OPEN_END] and clock[K_MORE_TO_COME] == 0
    if last_is_next and clock[K_NOW_NS] - clock[K_PROGRESS_NS] > IDLE_LIMIT_NS:
        return
    door.advance(state_at(world, server), clock[K_NOW_NS])
    pump(world, server)
