"""Slices that fail and return in the compiled engine, as ``sim.reference`` defines it. Numba subset."""

from __future__ import annotations

from preba.batching.state import FAILED_SLICE_LOST, NONE
from sim.compiled import door
from sim.compiled.layout import (
    C_EVENTS,
    C_RETRY,
    C_SERVERS,
    C_SLICES,
    K_HOMELESS,
    K_NOW_NS,
    K_OUTAGES,
    World,
)
from sim.compiled.requests import (
    finish,
    leave_server,
    never_executed,
    offer,
    pump,
    release_answers,
    state_at,
)
from sim.model import SLICE_FAILS


def event_now(world: World, slice_index: int) -> bool:
    """Whether a slice fails at this very moment."""
    now_ns = world.clock[K_NOW_NS]
    for event in range(world.config[C_EVENTS]):
        if (
            world.event_at_ns[event] == now_ns
            and world.event_code[event] == SLICE_FAILS
            and world.event_slice[event] == slice_index
        ):
            return True
    return False


def slice_fails(world: World, slice_index: int) -> None:
    """A slice drops out, and with it all that fail at this very moment: nobody is sent from one to the other."""
    if world.slice_up[slice_index] == 0:
        return
    world.clock[K_HOMELESS] = 0
    for server in range(world.config[C_SERVERS]):
        world.server_touched[server] = 0
    for index in range(world.config[C_SLICES]):
        if world.slice_up[index] == 1 and (index == slice_index or event_now(world, index)):
            take_down(world, index)
    sort_homeless(world)
    for place in range(world.clock[K_HOMELESS]):
        offer(world, world.homeless[place])
    for server in range(world.config[C_SERVERS]):
        if world.server_touched[server] == 1:
            release_answers(world, server)
            pump(world, server)


def take_down(world: World, slice_index: int) -> None:
    """Takes one slice out of service; adds whom to send elsewhere to the homeless and marks its servers."""
    now_ns = world.clock[K_NOW_NS]
    world.slice_up[slice_index] = 0
    world.slice_epoch[slice_index] += 1
    world.slice_down_since_ns[slice_index] = now_ns
    world.slice_stream_free_ns[slice_index] = now_ns
    lost = world.slice_first_batch[slice_index]
    world.slice_first_batch[slice_index] = NONE
    world.slice_last_batch[slice_index] = NONE
    for server in range(world.config[C_SERVERS]):
        first = world.server_consumer[server]
        for consumer in range(world.server_consumers[server]):
            if world.consumer_slice[first + consumer] == slice_index:
                door.consumer_lost(state_at(world, server), now_ns, consumer)
    for server in range(world.config[C_SERVERS]):
        if serves(world, server, slice_index):
            world.server_touched[server] = 1
            model = world.server_model[server]
            if world.model_servers[model] > 1:
                world.server_up[server] = 0
                world.model_memory[2 * model + 1] -= 1
                empty_server(world, server)
    while lost != NONE:
        after = world.batch_after[lost]
        lose_batch(world, lost)
        lost = after


def serves(world: World, server: int, slice_index: int) -> bool:
    """Whether one of a server's consumers is on a slice."""
    first = world.server_consumer[server]
    for consumer in range(first, first + world.server_consumers[server]):
        if world.consumer_slice[consumer] == slice_index:
            return True
    return False


def empty_server(world: World, server: int) -> None:
    """Takes back everything a server has not started."""
    state = state_at(world, server)
    request = door.take_waiting(state)
    while request != NONE:
        leave_server(world, request)
        add_homeless(world, request)
        request = door.take_waiting(state)


def add_homeless(world: World, request: int) -> None:
    """Notes a request that needs another server."""
    world.homeless[world.clock[K_HOMELESS]] = request
    world.clock[K_HOMELESS] += 1


def lose_batch(world: World, batch: int) -> None:
    """A batch is lost with its slice: its requests are tried once more or fail."""
    world.batch_lost[batch] = 1
    server = world.batch_server[batch]
    if world.server_keeps_order[server] == 1:
        leave_line(world, server, world.batch_head[batch])
    request = world.batch_head[batch]
    while request != NONE:
        after = world.row_link[request]
        never_executed(world, request)
        if world.config[C_RETRY] == 1 and world.attempts[request] < 2:
            leave_server(world, request)
            add_homeless(world, request)
        else:
            finish(world, request, FAILED_SLICE_LOST)
        request = after


def leave_line(world: World, server: int, first: int) -> None:
    """Takes the requests of a lost batch out of their server's line of answers."""
    request = first
    while request != NONE:
        before = NONE
        other = world.server_line_head[server]
        while other != request:
            before = other
            other = world.row_line_next[other]
        if before == NONE:
            world.server_line_head[server] = world.row_line_next[request]
        else:
            world.row_line_next[before] = world.row_line_next[request]
        if world.server_line_tail[server] == request:
            world.server_line_tail[server] = before
        request = world.row_link[request]


def comes_later(world: World, request: int, other: int) -> bool:
    """Whether a request reached its batcher after another: by time, then by number."""
    mine_ns = world.enqueued_ns[request]
    other_ns = world.enqueued_ns[other]
    return bool(mine_ns > other_ns or (mine_ns == other_ns and request > other))


def sort_homeless(world: World) -> None:
    """Sorts the homeless, oldest first (heap sort)."""
    count = world.clock[K_HOMELESS]
    for root in range(count // 2 - 1, -1, -1):
        sink(world, root, count)
    for last in range(count - 1, 0, -1):
        swapped = world.homeless[0]
        world.homeless[0] = world.homeless[last]
        world.homeless[last] = swapped
        sink(world, 0, last)


def sink(world: World, root: int, count: int) -> None:
    """Restores the order of a heap whose root may be wrong; the latest is on top."""
    request = world.homeless[root]
    child = 2 * root + 1
    while child < count:
        if child + 1 < count and comes_later(world, world.homeless[child + 1], world.homeless[child]):
            child += 1
        if comes_later(world, request, world.homeless[child]):
            break
        world.homeless[root] = world.homeless[child]
        root = child
        child = 2 * root + 1
    world.homeless[root] = request


def slice_returns(world: World, slice_index: int) -> None:
    """A slice that dropped out is back, idle; the last to return at this moment lets the parked requests in."""
    if world.slice_up[slice_index] == 1:
        return
    now_ns = world.clock[K_NOW_NS]
    world.slice_up[slice_index] = 1
    outage = world.clock[K_OUTAGES]
    world.clock[K_OUTAGES] = outage + 1
    world.outage_slice[outage] = slice_index
    world.outage_from_ns[outage] = world.slice_down_since_ns[slice_index]
    world.outage_to_ns[outage] = now_ns
    world.slice_down_since_ns[slice_index] = NONE
    world.slice_stream_free_ns[slice_index] = now_ns
    for server in range(world.config[C_SERVERS]):
        first = world.server_consumer[server]
        for consumer in range(world.server_consumers[server]):
            if world.consumer_slice[first + consumer] == slice_index:
                consumer_returns(world, server, consumer)


def consumer_returns(world: World, server: int, consumer: int) -> None:
    """One consumer of a slice that is back starts afresh."""
    model = world.server_model[server]
    if world.server_up[server] == 0:
        world.server_up[server] = 1
        world.model_memory[2 * model + 1] += 1
    world.consumer_credits[world.server_consumer[server] + consumer] = world.server_credits[server]
    door.consumer_up(state_at(world, server), world.clock[K_NOW_NS], consumer)
    pump(world, server)
    if more_return(world):
        return
    request = world.model_parked_head[model]
    world.model_parked_head[model] = NONE
    while request != NONE:
        after = world.row_link[request]
        offer(world, request)
        request = after


def more_return(world: World) -> bool:
    """Whether another slice is still to return at this moment."""
    now_ns = world.clock[K_NOW_NS]
    for event in range(world.config[C_EVENTS]):
        if (
            world.event_at_ns[event] == now_ns
            and world.event_code[event] != SLICE_FAILS
            and world.slice_up[world.event_slice[event]] == 0
        ):
            return True
    return False
