"""What happens to one request in the compiled engine: stations, batcher, slice, answer. Numba subset, no policy.

Function by function what ``sim.reference`` defines; only the bookkeeping differs (linked lists in rows of requests
in flight instead of Python lists). Where two events of one cause fall on the same moment and nothing comes between
them, the second happens at once instead of by way of the event list.
"""

from __future__ import annotations

from preba.balancing import choose_server
from preba.batching.state import (
    FAILED_SLICE_LOST,
    NEVER,
    NONE,
    O_COUNT,
    O_FORMED_NS,
    O_UNITS,
    PENDING,
    SERVED,
)
from sim.compiled import door
from sim.compiled.heap import heap_before, heap_push, timer_clear, timer_set
from sim.compiled.layout import (
    C_BALANCER,
    C_CLOSED,
    C_DISPATCH_NS,
    C_FRONTEND_NS,
    C_OVERHEADS_VARY,
    C_RESPONSE_NEXT_NS,
    C_RESPONSE_NS,
    C_RESPONSE_REQUEST_NS,
    C_RETRY,
    C_SHARED,
    C_SHARED_SLOWDOWN,
    C_SPANS,
    C_TIMER_NS,
    C_TURNAROUND_NS,
    C_TURNAROUND_REQUEST_NS,
    K_BATCHES,
    K_FAULT,
    K_FINISHED,
    K_FREE_BATCH,
    K_LATEST_ALARM_NS,
    K_NOW_NS,
    K_PROGRESS_NS,
    K_SPANS,
    Batcher,
    World,
)
from sim.compiled.memory import lowest_bit, part, peek
from sim.compiled.tally import count_arrived, count_executed, count_finished, count_worked
from sim.order import (
    RANK_ARRIVAL,
    RANK_CONSUMER_READY,
    RANK_EXECUTION_END,
    RANK_STATION_LEAVE,
    RANK_UNIT_RELEASE,
    order_key,
)
from sim.service import execution_ns, ready_ns, slice_preprocess_ns, spread_ns

ON_ITS_WAY = -2
"""In the place of a station that a request leaves: it has come to its first one."""


def state_at(world: World, server: int) -> Batcher:
    """The batcher of a server."""
    return door.batcher_at(world.server_state[server])


# -- arrivals --------------------------------------------------------------------------------------------------------


def issue_next(world: World, model: int, not_before_ns: int) -> None:
    """A closed-loop client sends its next request after its think time."""
    place = world.model_closed_next[model]
    if place < world.model_closed_end[model]:
        world.model_closed_next[model] = place + 1
        request = world.closed_request[place]
        at_ns = not_before_ns + world.trace_think_ns[request]
        heap_push(world, at_ns, order_key(RANK_ARRIVAL, request), 0)


def arrive(world: World, request: int) -> None:
    """A request arrives; its row must be free."""
    now_ns = world.clock[K_NOW_NS]
    world.row_owner[request] = request + 1
    world.row_step[request] = 0
    world.row_server[request] = NONE
    if world.config[C_CLOSED] == 1:
        world.scheduled_ns[request] = now_ns
    world.preprocess_start_ns[request] = now_ns
    world.preprocess_end_ns[request] = now_ns
    ingress_ns = world.model_ingress_ns[world.trace_model[request]]
    if ingress_ns > 0 and world.config[C_OVERHEADS_VARY] == 1:
        ingress_ns = spread_ns(ingress_ns, world.trace_frontend_factor[request])
    world.preprocess_wait_ns[request] = ingress_ns
    world.enqueued_ns[request] = NONE
    world.server_index[request] = NONE
    world.outcome[request] = PENDING
    world.attempts[request] = 0
    count_arrived(world, request)
    if ingress_ns > 0:
        heap_push(world, now_ns + ingress_ns, order_key(RANK_STATION_LEAVE, request), ON_ITS_WAY)
    else:
        next_station(world, request)


# -- preprocessing ---------------------------------------------------------------------------------------------------


def next_station(world: World, request: int) -> None:
    """Sends a request to the next station of its route, or past the front end to its batcher."""
    model = world.trace_model[request]
    step = world.row_step[request]
    if step < world.model_route_length[model]:
        world.row_step[request] = step + 1
        station = world.route_station[world.model_route[model] + step]
        world.row_joined_ns[request] = world.clock[K_NOW_NS]
        world.row_link[request] = NONE
        if world.station_head[station] == NONE:
            world.station_head[station] = request
        else:
            world.row_link[world.station_tail[station]] = request
        world.station_tail[station] = request
        serve_station(world, station)
    elif world.config[C_FRONTEND_NS] > 0:
        frontend_ns = world.config[C_FRONTEND_NS]
        if world.config[C_OVERHEADS_VARY] == 1:
            frontend_ns = spread_ns(frontend_ns, world.trace_frontend_factor[request])
        at_ns = world.clock[K_NOW_NS] + frontend_ns
        heap_push(world, at_ns, order_key(RANK_STATION_LEAVE, request), NONE)
    else:
        offer(world, request)


def serve_station(world: World, station: int) -> None:
    """Gives waiting requests, oldest first, to free units, lowest first."""
    while world.station_head[station] != NONE and world.station_free[station] > 0:
        unit = take_unit(world, station)
        first = world.station_head[station]
        count = 1
        last = first
        while count < world.station_batch_max[station] and world.row_link[last] != NONE:
            last = world.row_link[last]
            count += 1
        world.station_head[station] = world.row_link[last]
        world.row_link[last] = NONE
        work(world, station, unit, first)


def take_unit(world: World, station: int) -> int:
    """Takes the lowest free unit of a station that has one; counted over all stations."""
    world.station_free[station] -= 1
    word = world.station_word[station]
    while world.free_units[word] == 0:
        word += 1
    bits = world.free_units[word]
    bit = lowest_bit(bits)
    world.free_units[word] = bits & (bits - 1)
    return int(world.station_first_unit[station] + (word - world.station_word[station]) * 32 + bit)


def free_unit(world: World, station: int, unit: int) -> None:
    """Gives a unit back to its station."""
    place = unit - world.station_first_unit[station]
    world.free_units[world.station_word[station] + (place >> 5)] |= 1 << (place & 31)
    world.station_free[station] += 1


def work(world: World, station: int, unit: int, first: int) -> None:
    """One unit works on one request, or on a batch of them that leaves together."""
    now_ns = world.clock[K_NOW_NS]
    launch_ns = world.station_launch_ns[station]
    if world.row_joined_ns[first] == now_ns:
        launch_ns += world.station_rested_ns[station]
    occupancy = world.station_occupancy[station]
    released_ns = now_ns + launch_ns
    request = first
    while request != NONE:
        released_ns += peek_masked(world, occupancy, request)
        request = world.row_link[request]
    single = world.station_batch_max[station] == 1
    leaves_with_release = NONE
    request = first
    while request != NONE:
        after = world.row_link[request]
        end_ns = released_ns
        if single:
            end_ns = now_ns + launch_ns + peek_masked(world, world.station_latency[station], request)
        joined_ns = world.row_joined_ns[request]
        if world.station_is_hop[station] == 0:
            if world.row_step[request] == 1:
                world.preprocess_start_ns[request] = now_ns
            world.preprocess_wait_ns[request] += now_ns - joined_ns
        if world.config[C_SPANS] == 1:
            span = world.clock[K_SPANS]
            world.clock[K_SPANS] = span + 1
            world.span_station[span] = station
            world.span_unit[span] = unit - world.station_first_unit[station]
            world.span_request[span] = request
            world.span_arrived_ns[span] = joined_ns
            world.span_start_ns[span] = now_ns
            world.span_released_ns[span] = released_ns
            world.span_end_ns[span] = end_ns
        if single and end_ns == released_ns:
            leaves_with_release = request
        else:
            heap_push(world, end_ns, order_key(RANK_STATION_LEAVE, request), station)
        request = after
    heap_push(world, released_ns, order_key(RANK_UNIT_RELEASE, unit), leaves_with_release)
    count_worked(world, station, unit, now_ns, released_ns)


def peek_masked(world: World, address: int, request: int) -> int:
    """A request's value in a column that is known by its address."""
    return int(peek(address, request & door.column_mask(world)))


def release_unit(world: World, unit: int, leaving: int) -> None:
    """A unit is free again; the request that leaves at the same moment goes on unless something comes before it."""
    station = world.unit_station[unit]
    free_unit(world, station, unit)
    serve_station(world, station)
    if leaving != NONE:
        key = order_key(RANK_STATION_LEAVE, leaving)
        if heap_before(world, world.clock[K_NOW_NS], key):
            heap_push(world, world.clock[K_NOW_NS], key, station)
        else:
            leave_station(world, station, leaving)


def leave_station(world: World, station: int, request: int) -> None:
    """A request goes on from a station."""
    if world.station_is_hop[station] == 0:
        world.preprocess_end_ns[request] = world.clock[K_NOW_NS]
    next_station(world, request)


# -- batching --------------------------------------------------------------------------------------------------------


def offer(world: World, request: int) -> None:
    """Brings a request to a batcher: the only one of its model, or the one the balancer chooses."""
    model = world.trace_model[request]
    first = world.model_server[model]
    count = world.model_servers[model]
    place = 0
    if count > 1:
        place = choose_server(
            world.config[C_BALANCER],
            part(world.server_up, first, count),
            part(world.server_load, first, count),
            part(world.model_memory, 2 * model, 2),
            world.trace_first_draw[request],
            world.trace_second_draw[request],
        )
        if place == NONE:
            park(world, model, request)
            return
    server = first + place
    now_ns = world.clock[K_NOW_NS]
    world.clock[K_PROGRESS_NS] = now_ns
    if world.enqueued_ns[request] == NONE:
        world.enqueued_ns[request] = now_ns
    world.row_server[request] = server
    world.server_index[request] = server
    world.server_load[server] += 1
    outcome = door.enqueue(state_at(world, server), now_ns, request)
    if outcome != SERVED:
        finish(world, request, outcome)
    pump(world, server)


def park(world: World, model: int, request: int) -> None:
    """Every server of the model is out of service: wait for one to return, or fail, as the scenario says."""
    if world.config[C_RETRY] == 0:
        finish(world, request, FAILED_SLICE_LOST)
        return
    world.row_link[request] = NONE
    if world.model_parked_head[model] == NONE:
        world.model_parked_head[model] = request
    else:
        world.row_link[world.model_parked_tail[model]] = request
    world.model_parked_tail[model] = request


def pump(world: World, server: int) -> None:
    """Starts every batch that may start, hands back what was refused, and sets the batcher's alarm."""
    state = state_at(world, server)
    now_ns = world.clock[K_NOW_NS]
    consumer = door.take_batch(state, now_ns)
    while consumer != NONE:
        if door.is_plugin(state) and door.impossible(state, consumer):
            world.clock[K_FAULT] = server + 1
            return
        start(world, server, consumer)
        consumer = door.take_batch(state, now_ns)
    request = door.take_refused(state)
    while request != NONE:
        finish(world, request, state.request_outcome[request])
        request = door.take_refused(state)
    due_ns = door.due_ns(state)
    if due_ns != world.server_armed_ns[server]:
        world.server_armed_ns[server] = due_ns
        if due_ns == NEVER:
            timer_clear(world, server)
        else:
            at_ns = max(due_ns + world.config[C_TIMER_NS], now_ns)
            timer_set(world, server, at_ns)
            world.clock[K_LATEST_ALARM_NS] = max(world.clock[K_LATEST_ALARM_NS], at_ns)


# -- execution -------------------------------------------------------------------------------------------------------


def start(world: World, server: int, consumer: int) -> None:
    """A consumer takes the batch that the batcher has just handed out; it runs when the slice's stream is free."""
    state = state_at(world, server)
    now_ns = world.clock[K_NOW_NS]
    world.clock[K_PROGRESS_NS] = now_ns
    count = state.out[O_COUNT]
    units = state.out[O_UNITS]
    formed_ns = state.out[O_FORMED_NS]
    model = world.server_model[server]
    global_consumer = world.server_consumer[server] + consumer
    slice_index = world.consumer_slice[global_consumer]
    start_ns = max(now_ns + world.config[C_DISPATCH_NS], world.slice_stream_free_ns[slice_index])
    factor = world.trace_factor[state.out_request[0]]
    preprocess_ns = 0
    if world.config[C_SHARED] == 1 and world.model_uses_shared[model] == 1:
        items_ns = 0
        for k in range(count):
            items_ns += world.trace_slice_item_ns[state.out_request[k]]
        preprocess_ns = slice_preprocess_ns(
            world.slice_launch_ns[slice_index], items_ns, world.slice_factor[slice_index]
        )
        factor *= world.config_f8[C_SHARED_SLOWDOWN]
    table_ns = batch_table_ns(world, state, model, slice_index, count, units)
    busy, neighbours = busy_neighbours(world, model, slice_index, start_ns)
    execute_ns = execution_ns(table_ns, factor, world.model_slowdown_ppm[model], busy, neighbours)
    end_ns = start_ns + preprocess_ns + execute_ns
    world.slice_stream_free_ns[slice_index] = end_ns
    batch = batch_open(world, server, global_consumer, slice_index, state.out_request[0])
    batch_id = world.batch_id_of[batch]
    for k in range(count):
        request = state.out_request[k]
        world.row_link[request] = state.out_request[k + 1] if k + 1 < count else NONE
        world.dispatched_ns[request] = formed_ns
        world.execution_start_ns[request] = start_ns
        world.execution_end_ns[request] = end_ns
        if world.config[C_SHARED] == 1:
            world.slice_preprocess_ns[request] = preprocess_ns
        world.slice_index[request] = slice_index
        world.batch_id[request] = batch_id
        world.batch_size[request] = count
        world.batch_units[request] = units
        world.attempts[request] += 1
    plan_answers(world, batch, state, count)
    if world.server_keeps_order[server] == 1:
        line_up(world, server, state.out_request[0])
    plan_events(world, batch, start_ns, end_ns, consumer, count)


def plan_answers(world: World, batch: int, state: Batcher, count: int) -> None:
    """Decides how long after the end of their batch its requests have their answers: one after another."""
    begin = 0
    response_ns = world.config[C_RESPONSE_NS] + count * world.config[C_RESPONSE_REQUEST_NS]
    next_ns = world.config[C_RESPONSE_NEXT_NS]
    varies = world.config[C_OVERHEADS_VARY] == 1
    if varies:
        response_ns = spread_ns(response_ns, world.trace_response_factor[state.out_request[0]])
        if world.server_keeps_order[world.batch_server[batch]] == 0:
            begin = world.batch_id_of[batch] % count
    for k in range(count):
        request = state.out_request[(begin + k) % count]
        if k > 0:
            response_ns += spread_ns(next_ns, world.trace_response_next_factor[request]) if varies else next_ns
        world.row_response_ns[request] = response_ns


def batch_table_ns(world: World, state: Batcher, model: int, slice_index: int, count: int, units: int) -> int:
    """The profile's time for the batch just handed out, on that slice, at its longest request."""
    length = 0
    lengths = world.model_lengths[model]
    if lengths > 1:
        for k in range(count):
            length = max(length, world.trace_length[state.out_request[k]])
    row = world.slice_kind[slice_index] * lengths + length
    return int(peek(world.model_table[model], row * world.model_batches[model] + units))


def busy_neighbours(world: World, model: int, slice_index: int, start_ns: int) -> tuple[int, int]:
    """How many other slices of the same GPU are busy (counted only if it matters), and how many there are."""
    gpu = world.slice_gpu[slice_index]
    first = world.gpu_first[gpu]
    count = world.gpu_count[gpu]
    busy = 0
    if world.model_slowdown_ppm[model] > 0:
        for place in range(first, first + count):
            other = world.gpu_slice[place]
            if other != slice_index and world.slice_stream_free_ns[other] > start_ns:
                busy += 1
    return busy, count - 1


def batch_open(world: World, server: int, global_consumer: int, slice_index: int, head: int) -> int:
    """Takes a place for a batch, appends it to its slice's list and numbers it."""
    batch = world.clock[K_FREE_BATCH]
    world.clock[K_FREE_BATCH] = world.batch_after[batch]
    world.batch_id_of[batch] = world.clock[K_BATCHES]
    world.clock[K_BATCHES] += 1
    world.batch_server[batch] = server
    world.batch_consumer[batch] = global_consumer
    world.batch_slice[batch] = slice_index
    world.batch_head[batch] = head
    world.batch_epoch[batch] = world.slice_epoch[slice_index]
    world.batch_lost[batch] = 0
    last = world.slice_last_batch[slice_index]
    world.batch_before[batch] = last
    world.batch_after[batch] = NONE
    if last == NONE:
        world.slice_first_batch[slice_index] = batch
    else:
        world.batch_after[last] = batch
    world.slice_last_batch[slice_index] = batch
    return int(batch)


def batch_unlink(world: World, batch: int) -> None:
    """Takes a batch off its slice's list."""
    slice_index = world.batch_slice[batch]
    before = world.batch_before[batch]
    after = world.batch_after[batch]
    if before == NONE:
        world.slice_first_batch[slice_index] = after
    else:
        world.batch_after[before] = after
    if after == NONE:
        world.slice_last_batch[slice_index] = before
    else:
        world.batch_before[after] = before


def batch_release(world: World, batch: int) -> None:
    """One event less refers to a batch; after the last its place is free."""
    world.batch_events[batch] -= 1
    if world.batch_events[batch] == 0:
        world.batch_after[batch] = world.clock[K_FREE_BATCH]
        world.clock[K_FREE_BATCH] = batch


def plan_events(world: World, batch: int, start_ns: int, end_ns: int, consumer: int, count: int) -> None:
    """Schedules the end of a batch and the moment when the thread that started it asks for the next one."""
    server = world.batch_server[batch]
    model = world.server_model[server]
    consumed_ns = world.model_consumed_ns[model]
    if world.model_consumed_permille[model] >= 0:
        consumed_ns = (end_ns - start_ns) * world.model_consumed_permille[model] // 1000
    turnaround_ns = world.config[C_TURNAROUND_NS] + count * world.config[C_TURNAROUND_REQUEST_NS]
    if world.config[C_OVERHEADS_VARY] == 1:
        turnaround_ns = spread_ns(turnaround_ns, world.trace_turnaround_factor[state_at(world, server).out_request[0]])
    at_ns = ready_ns(world.model_backend[model], start_ns, end_ns, consumed_ns) + turnaround_ns
    global_consumer = world.batch_consumer[batch]
    world.consumer_credits[global_consumer] -= 1
    if world.consumer_credits[global_consumer] > 0:
        door.consumer_idle(state_at(world, server), world.clock[K_NOW_NS], consumer)
    heap_push(world, end_ns, order_key(RANK_EXECUTION_END, world.batch_id_of[batch]), batch)
    world.batch_events[batch] = 2
    world.batch_ready_with_end[batch] = 1
    if at_ns != end_ns:
        world.batch_ready_with_end[batch] = 0
        heap_push(world, at_ns, order_key(RANK_CONSUMER_READY, global_consumer), batch)


def consumer_ready(world: World, batch: int) -> None:
    """The thread that started a batch asks for the next one, unless its slice has been lost since."""
    server = world.batch_server[batch]
    global_consumer = world.batch_consumer[batch]
    stale = world.batch_epoch[batch] != world.slice_epoch[world.batch_slice[batch]]
    batch_release(world, batch)
    if stale:
        return
    world.consumer_credits[global_consumer] += 1
    consumer = global_consumer - world.server_consumer[server]
    door.consumer_idle(state_at(world, server), world.clock[K_NOW_NS], consumer)
    pump(world, server)


def end(world: World, batch: int) -> None:
    """A batch leaves its slice."""
    if world.batch_lost[batch] == 0:
        batch_unlink(world, batch)
        server = world.batch_server[batch]
        request = world.batch_head[batch]
        count_executed(world, world.batch_slice[batch], world.execution_start_ns[request], world.clock[K_NOW_NS])
        if world.server_keeps_order[server] == 0:
            while request != NONE:
                after = world.row_link[request]
                finish(world, request, SERVED)
                request = after
        else:
            while request != NONE:
                world.row_answered[request] = 1
                request = world.row_link[request]
            release_answers(world, server)
    if world.batch_ready_with_end[batch] == 1:
        key = order_key(RANK_CONSUMER_READY, world.batch_consumer[batch])
        world.batch_events[batch] -= 1  # there is another to come, so its place stays taken
        if heap_before(world, world.clock[K_NOW_NS], key):
            heap_push(world, world.clock[K_NOW_NS], key, batch)
        else:
            consumer_ready(world, batch)
    else:
        batch_release(world, batch)


# -- answers ---------------------------------------------------------------------------------------------------------


def line_up(world: World, server: int, first: int) -> None:
    """Appends the requests of a batch that starts to their server's line of answers."""
    request = first
    while request != NONE:
        world.row_answered[request] = 0
        world.row_line_next[request] = NONE
        if world.server_line_head[server] == NONE:
            world.server_line_head[server] = request
        else:
            world.row_line_next[world.server_line_tail[server]] = request
        world.server_line_tail[server] = request
        request = world.row_link[request]


def release_answers(world: World, server: int) -> None:
    """Sends the answers that no earlier request of an order-keeping server holds back."""
    while True:
        request = world.server_line_head[server]
        if request == NONE or world.row_answered[request] == 0:
            return
        world.server_line_head[server] = world.row_line_next[request]
        world.row_answered[request] = 0
        finish(world, request, SERVED)


def finish(world: World, request: int, outcome: int) -> None:
    """A request has its answer, or its refusal."""
    now_ns = world.clock[K_NOW_NS]
    world.clock[K_PROGRESS_NS] = now_ns
    server = world.row_server[request]
    leave_server(world, request)
    world.outcome[request] = outcome
    done_ns = now_ns
    if outcome == SERVED:
        done_ns += world.row_response_ns[request]
        if world.server_keeps_order[server] == 1:
            done_ns = max(done_ns, world.server_answered_ns[server])
            world.server_answered_ns[server] = done_ns
    else:
        never_executed(world, request)
    world.completed_ns[request] = done_ns
    world.clock[K_FINISHED] += 1
    world.row_owner[request] = 0
    count_finished(world, request)
    if world.config[C_CLOSED] == 1:
        model = world.trace_model[request]
        if world.model_outstanding[model] > 0:
            pause_ns = 0
            if outcome != SERVED:
                pause_ns = world.model_backoff_ns[model]
            issue_next(world, model, done_ns + pause_ns)


def never_executed(world: World, request: int) -> None:
    """Writes the columns of an execution that a request did not have."""
    world.dispatched_ns[request] = NONE
    world.execution_start_ns[request] = NONE
    world.execution_end_ns[request] = NONE
    world.slice_index[request] = NONE
    world.batch_id[request] = NONE
    world.batch_size[request] = 0
    world.batch_units[request] = 0
    if world.config[C_SHARED] == 1:
        world.slice_preprocess_ns[request] = 0


def leave_server(world: World, request: int) -> None:
    """A request is no longer inside a server."""
    server = world.row_server[request]
    if server != NONE:
        world.server_load[server] -= 1
        world.row_server[request] = NONE
