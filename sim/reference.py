"""The SimPy reference engine: the readable definition of the model. Read this file to know what preba simulates.

A request arrives, passes the preprocessing stations of its model (a station is a FIFO queue in front of equal
units), reaches a batcher (chosen by the balancer where there are several), waits there, leaves in a batch for a
slice, is executed and answered. Batching decisions are ``preba.batching``'s, durations come from ``SimModel`` and
``sim.service``, the order of simultaneous events from ``sim.order``; this file only moves requests.

SimPy keeps the clock and the event list. Events are callbacks rather than processes, so that their order is the
written one and not the order in which generators happened to be created.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import simpy

from accel.stations import Station
from preba.balancing import M_ALIVE, choose_server
from preba.batching.state import (
    FAILED_SLICE_LOST,
    NEVER,
    NONE,
    O_COUNT,
    O_FORMED_NS,
    O_UNITS,
    SERVED,
)
from preba.records import Records, StationSpans, column_names, empty_columns
from preba.trace_table import PARTS
from preba.units import NS_PER_S
from sim.model import SLICE_FAILS, SimModel
from sim.order import (
    RANK_ARRIVAL,
    RANK_CONSUMER_READY,
    RANK_EXECUTION_END,
    RANK_SCENARIO,
    RANK_STATION_LEAVE,
    RANK_TIMER,
    RANK_UNIT_RELEASE,
    order_key,
)
from sim.service import execution_ns, ready_ns, slice_preprocess_ns, spread_ns

Progress = Callable[[int, int], None]

IDLE_LIMIT_NS = 3600 * NS_PER_S
"""A run in which nothing but timers happened for an hour of simulated time is over."""

PROGRESS_STEP = 2000
"""Requests between two progress reports."""


class _Occurrence(simpy.Event):
    """Something that happens at a known time, ordered among simultaneous ones by its key."""

    def __init__(self, env: simpy.Environment, at_ns: int, key: int, action: Callable[[], None]) -> None:
        self.env = env
        self.callbacks = [lambda _: action()]
        self._value = None
        self._ok = True
        env.schedule(self, priority=key, delay=at_ns - env.now)  # type: ignore[arg-type]  # any integer sorts


class _StationQueue:
    """A preprocessing station at work: its waiting requests and its free units, counted over all stations."""

    def __init__(self, station: Station, first_unit: int) -> None:
        self.first_unit = first_unit
        self.waiting: deque[int] = deque()
        self.free_units = list(range(station.units))
        self.occupancy_ns: list[int] = station.occupancy_ns.tolist()
        self.latency_ns: list[int] = station.latency_ns.tolist()
        self.launch_ns = station.launch_ns
        self.rested_ns = station.rested_ns
        self.batch_max = station.batch_max
        self.is_hop = station.kind == "hop"


FRONTEND, TURNAROUND, RESPONSE, RESPONSE_NEXT = range(len(PARTS["overhead_factor"]))
"""Parts of the trace's ``overhead_factor``."""


class _Batch:
    """A batch in execution, or waiting for its slice's stream."""

    __slots__ = ("batch_id", "consumer", "epoch", "lost", "requests", "server", "slice_index")

    def __init__(self, batch_id: int, server: int, consumer: int, slice_index: int, requests: list[int]) -> None:
        self.batch_id = batch_id
        self.server = server
        self.consumer = consumer
        self.slice_index = slice_index
        self.requests = requests
        self.epoch = 0
        self.lost = False


class ReferenceEngine:
    """One run of a ``SimModel``.

    Parameters
    ----------
    model : SimModel
    progress : callable, optional
        Called now and then with (requests finished, requests in total).
    """

    def __init__(self, model: SimModel, progress: Progress | None = None) -> None:
        self.model = model
        self.progress = progress
        self.env = simpy.Environment(initial_time=0)
        trace = model.trace
        self.total = len(trace)
        self.finished = 0
        self.last_progress_ns = 0
        self.columns: dict[str, Any] = {name: column.tolist() for name, column in empty_columns(self.total).items()}
        self.columns["model_index"] = trace.model_index.tolist()
        self.columns["jpeg_bytes"] = trace.jpeg_bytes.tolist()
        self.columns["audio_ns"] = trace.audio_ns.tolist()
        self.model_of: list[int] = self.columns["model_index"]
        self.route_step = [0] * self.total
        self.joined_ns = [0] * self.total
        self._read_trace()
        self._open_servers()
        self.stations: list[_StationQueue] = []
        units = 0
        for station in model.preprocessing.stations:
            self.stations.append(_StationQueue(station, units))
            units += station.units
        self.spans: list[tuple[int, int, int, int, int, int, int]] = []
        slices = len(model.slice_kind)
        self.stream_free_ns = [0] * slices
        self.slice_up = [True] * slices
        self.slice_epoch = [0] * slices
        self.in_flight: list[list[_Batch]] = [[] for _ in range(slices)]
        self.outages: list[tuple[int, int, int]] = []
        self.down_since_ns = [NONE] * slices
        self.gpu_slices: dict[int, list[int]] = {}
        for index, gpu in enumerate(model.slice_gpu):
            self.gpu_slices.setdefault(gpu, []).append(index)
        self.batch_count = 0
        self.response_ns = [0] * self.total

    # -- before the first event ------------------------------------------------------------------------------

    def _read_trace(self) -> None:
        trace = self.model.trace
        self.execution_factor: list[float] = trace.execution_factor.tolist()
        self.overhead_factor: list[list[float]] = []
        if self.model.overheads_vary:
            self.overhead_factor = trace.overhead_factor.tolist()
        self.balancer_draw: list[list[float]] = trace.balancer_draw.tolist()
        self.think_ns: list[int] = trace.think_ns.tolist()
        self.batch_units: list[int] = trace.batch_units.tolist()
        self.priority: list[int] = trace.priority.tolist()
        self.timeout_ns: list[int] = trace.timeout_ns.tolist()
        self.bucket: list[int] = self.model.bucket.tolist()
        self.length_index: list[int] = self.model.length_index.tolist()
        self.tables: list[list[list[list[int]]]] = [t.execution_ns.tolist() for t in self.model.tables]
        shared = self.model.preprocessing.shared
        self.slice_item_ns: list[int] = shared.item_ns.tolist() if shared is not None else []

    def _open_servers(self) -> None:
        model = self.model
        self.states = [server.new_state(self.total) for server in model.servers]
        self.brains = [server.plan.brain for server in model.servers]
        self.server_of = [NONE] * self.total
        self.answer_line = [deque[int]() for _ in model.servers]
        self.answered: set[int] = set()
        self.answered_ns = [0] * len(model.servers)
        self.parked: list[list[int]] = [[] for _ in model.model_servers]
        self.armed_ns = [NEVER] * len(model.servers)
        self.credits = [[server.credits] * len(server.consumer_slice) for server in model.servers]
        self.balancer_up = [[1] * len(servers) for servers in model.model_servers]
        self.balancer_load = [[0] * len(servers) for servers in model.model_servers]
        self.balancer_memory = [[NONE, len(servers)] for servers in model.model_servers]
        self.position = {
            server: (m, place) for m, group in enumerate(model.model_servers) for place, server in enumerate(group)
        }
        self.consumer_base: list[int] = []
        count = 0
        for server in model.servers:
            self.consumer_base.append(count)
            count += len(server.consumer_slice)

    @property
    def now_ns(self) -> int:
        """The clock; integral because every time scheduled is."""
        return cast("int", self.env.now)

    def _at(self, at_ns: int, rank: int, identity: int, action: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Schedules ``action(*arguments)``."""
        _Occurrence(self.env, at_ns, order_key(rank, identity), partial(action, *arguments))

    def run(self) -> tuple[Records, StationSpans]:
        """Plays the whole trace and returns what happened to every request.

        Returns
        -------
        tuple of Records and StationSpans
        """
        for server, state in enumerate(self.states):
            for consumer in range(len(self.model.servers[server].consumer_slice)):
                self.brains[server].consumer_up(state, 0, consumer)
        for position, (at_ns, code, slice_index) in enumerate(self.model.slice_events):
            action = self._slice_fails if code == SLICE_FAILS else self._slice_returns
            self._at(at_ns, RANK_SCENARIO, position, action, slice_index)
        self._start_arrivals()
        self.env.run()
        for slice_index, since_ns in enumerate(self.down_since_ns):
            if since_ns != NONE:
                self.outages.append((slice_index, since_ns, max(self.now_ns, since_ns)))
        return self._records(), self._spans()

    # -- arrivals --------------------------------------------------------------------------------------------

    def _start_arrivals(self) -> None:
        trace = self.model.trace
        closed = self.model.outstanding
        self.open_ids = [i for i in range(self.total) if closed[self.model_of[i]] == 0]
        self.open_times: list[int] = trace.scheduled_ns.tolist()
        self.closed_ids = [deque[int]() for _ in closed]
        for i in range(self.total):
            if closed[self.model_of[i]] > 0:
                self.closed_ids[self.model_of[i]].append(i)
        self.next_open = 0
        self._schedule_next_open()
        for model_index, outstanding in enumerate(closed):
            for _ in range(outstanding):
                self._issue_next(model_index, 0)

    def _schedule_next_open(self) -> None:
        if self.next_open < len(self.open_ids):
            request = self.open_ids[self.next_open]
            self.next_open += 1
            self._at(self.open_times[request], RANK_ARRIVAL, request, self._arrive_open, request)

    def _arrive_open(self, request: int) -> None:
        self._schedule_next_open()
        self._arrive(request)

    def _issue_next(self, model_index: int, not_before_ns: int) -> None:
        """A closed-loop client sends its next request after its think time."""
        if self.closed_ids[model_index]:
            request = self.closed_ids[model_index].popleft()
            at_ns = not_before_ns + self.think_ns[request]
            self._at(at_ns, RANK_ARRIVAL, request, self._arrive, request)

    def _arrive(self, request: int) -> None:
        now = self.now_ns
        columns = self.columns
        columns["scheduled_ns"][request] = now
        columns["issued_ns"][request] = now
        columns["preprocess_start_ns"][request] = now
        columns["preprocess_end_ns"][request] = now
        ingress_ns = self._spread(self.model.ingress_ns[self.model_of[request]], request, FRONTEND)
        columns["preprocess_wait_ns"][request] = ingress_ns
        if ingress_ns > 0:
            self._at(now + ingress_ns, RANK_STATION_LEAVE, request, self._next_station, request)
        else:
            self._next_station(request)

    # -- preprocessing ---------------------------------------------------------------------------------------

    def _next_station(self, request: int) -> None:
        """Sends a request to the next station of its route, or past the front end to its batcher."""
        route = self.model.preprocessing.routes[self.model_of[request]]
        step = self.route_step[request]
        if step < len(route):
            self.route_step[request] = step + 1
            station_index = route[step]
            self.joined_ns[request] = self.now_ns
            self.stations[station_index].waiting.append(request)
            self._serve_station(station_index)
        elif self.model.frontend_ns > 0:
            at_ns = self.now_ns + self._spread(self.model.frontend_ns, request, FRONTEND)
            self._at(at_ns, RANK_STATION_LEAVE, request, self._offer, request)
        else:
            self._offer(request)

    def _spread(self, nominal_ns: int, request: int, part: int) -> int:
        """An overhead of one request, or of the batch it comes first in."""
        if not self.model.overheads_vary:
            return nominal_ns
        return spread_ns(nominal_ns, self.overhead_factor[request][part])

    def _serve_station(self, station_index: int) -> None:
        """Gives waiting requests, oldest first, to free units, lowest first."""
        station = self.stations[station_index]
        while station.waiting and station.free_units:
            unit = heapq.heappop(station.free_units)
            taken = [station.waiting.popleft() for _ in range(min(len(station.waiting), station.batch_max))]
            self._work(station_index, unit, taken)

    def _work(self, station_index: int, unit: int, requests: list[int]) -> None:
        """One unit works on one request, or on a batch of them that leaves together."""
        station = self.stations[station_index]
        now = self.now_ns
        launch_ns = station.launch_ns
        if self.joined_ns[requests[0]] == now:
            launch_ns += station.rested_ns
        occupied_ns = launch_ns + sum(station.occupancy_ns[request] for request in requests)
        released_ns = now + occupied_ns
        for request in requests:
            end_ns = released_ns
            if station.batch_max == 1:
                end_ns = now + launch_ns + station.latency_ns[request]
            joined_ns = self.joined_ns[request]
            if not station.is_hop:
                if self.route_step[request] == 1:
                    self.columns["preprocess_start_ns"][request] = now
                self.columns["preprocess_wait_ns"][request] += now - joined_ns
            self.spans.append((station_index, unit, request, joined_ns, now, released_ns, end_ns))
            self._at(end_ns, RANK_STATION_LEAVE, request, self._leave_station, station_index, request)
        self._at(released_ns, RANK_UNIT_RELEASE, station.first_unit + unit, self._release_unit, station_index, unit)

    def _release_unit(self, station_index: int, unit: int) -> None:
        heapq.heappush(self.stations[station_index].free_units, unit)
        self._serve_station(station_index)

    def _leave_station(self, station_index: int, request: int) -> None:
        if not self.stations[station_index].is_hop:
            self.columns["preprocess_end_ns"][request] = self.now_ns
        self._next_station(request)

    # -- batching --------------------------------------------------------------------------------------------

    def _offer(self, request: int) -> None:
        """Brings a request to a batcher: the only one of its model, or the one the balancer chooses."""
        model_index = self.model_of[request]
        group = self.model.model_servers[model_index]
        place = 0
        if len(group) > 1:
            draw = self.balancer_draw[request]
            place = choose_server(
                self.model.balancer,
                self.balancer_up[model_index],
                self.balancer_load[model_index],
                self.balancer_memory[model_index],
                draw[0],
                draw[1],
            )
            if place == NONE:
                self._park(request)
                return
        server = group[place]
        now = self.now_ns
        self.last_progress_ns = now
        if self.columns["enqueued_ns"][request] == NONE:
            self.columns["enqueued_ns"][request] = now
        self.server_of[request] = server
        self.columns["server_index"][request] = server
        self.balancer_load[model_index][place] += 1
        state = self.states[server]
        state.request_units[request] = self.batch_units[request]
        state.request_bucket[request] = self.bucket[request]
        state.request_priority[request] = self.priority[request]
        state.request_shape[request] = self.length_index[request]
        state.request_timeout_ns[request] = self.timeout_ns[request]
        outcome = self.brains[server].enqueue(state, now, request)
        if outcome != SERVED:
            self._finish(request, outcome)
        self._pump(server)

    def _park(self, request: int) -> None:
        """Every server of the model is out of service: wait for one to return, or fail, as the scenario says."""
        if self.model.retry:
            self.parked[self.model_of[request]].append(request)
        else:
            self._finish(request, FAILED_SLICE_LOST)

    def _pump(self, server: int) -> None:
        """Starts every batch that may start, hands back what was refused, and sets the batcher's alarm."""
        state, brain = self.states[server], self.brains[server]
        now = self.now_ns
        while True:
            consumer = brain.take_batch(state, now)
            if consumer == NONE:
                break
            requests = [state.out_request[k] for k in range(state.out[O_COUNT])]
            self._start(server, consumer, requests, state.out[O_UNITS], state.out[O_FORMED_NS])
        while True:
            request = brain.take_refused(state)
            if request == NONE:
                break
            self._finish(request, state.request_outcome[request])
        due_ns = brain.due_ns(state)
        if due_ns != self.armed_ns[server]:
            self.armed_ns[server] = due_ns
            if due_ns != NEVER:
                at_ns = max(due_ns + self.model.timer_ns, now)
                self._at(at_ns, RANK_TIMER, server, self._timer, server, due_ns)

    def _timer(self, server: int, due_ns: int) -> None:
        """The batcher's alarm rings, unless it has been set to another time since."""
        if self.armed_ns[server] != due_ns:
            return
        self.armed_ns[server] = NEVER
        if self.next_open >= len(self.open_ids) and self.now_ns - self.last_progress_ns > IDLE_LIMIT_NS:
            return
        self.brains[server].advance(self.states[server], self.now_ns)
        self._pump(server)

    # -- execution -------------------------------------------------------------------------------------------

    def _start(self, server: int, consumer: int, requests: list[int], units: int, formed_ns: int) -> None:
        """A consumer takes a batch; it runs when the slice's stream is free."""
        model = self.model
        now = self.now_ns
        self.last_progress_ns = now
        slice_index = model.servers[server].consumer_slice[consumer]
        start_ns = max(now + model.dispatch_ns, self.stream_free_ns[slice_index])
        preprocess_ns, execute_ns = self._duration(server, slice_index, requests, units, start_ns)
        end_ns = start_ns + preprocess_ns + execute_ns
        self.stream_free_ns[slice_index] = end_ns
        batch = _Batch(self.batch_count, server, consumer, slice_index, requests)
        batch.epoch = self.slice_epoch[slice_index]
        self.batch_count += 1
        self.in_flight[slice_index].append(batch)
        if model.servers[server].plan.keeps_order:
            self.answer_line[server].extend(requests)
        columns = self.columns
        for request in requests:
            columns["dispatched_ns"][request] = formed_ns
            columns["execution_start_ns"][request] = start_ns
            columns["execution_end_ns"][request] = end_ns
            columns["slice_preprocess_ns"][request] = preprocess_ns
            columns["slice_index"][request] = slice_index
            columns["batch_id"][request] = batch.batch_id
            columns["batch_size"][request] = len(requests)
            columns["batch_units"][request] = units
            columns["attempts"][request] += 1
        self._plan_answers(server, batch.batch_id, requests)
        self._at(end_ns, RANK_EXECUTION_END, batch.batch_id, self._end, batch)
        self._plan_next(batch, start_ns, end_ns)

    def _duration(
        self, server: int, slice_index: int, requests: list[int], units: int, start_ns: int
    ) -> tuple[int, int]:
        """Time on the slice: preprocessing there, if any, and the execution itself."""
        model = self.model
        model_index = model.servers[server].model_index
        length = max(self.length_index[request] for request in requests)
        table_ns = self.tables[model_index][model.slice_kind[slice_index]][length][units]
        slowdown = model.tables[model_index].slowdown_ppm
        neighbours = self.gpu_slices[model.slice_gpu[slice_index]]
        busy = 0
        if slowdown > 0:
            busy = sum(1 for n in neighbours if n != slice_index and self.stream_free_ns[n] > start_ns)
        factor = self.execution_factor[requests[0]]
        shared = model.preprocessing.shared
        if shared is None or not model.preprocessing.uses_shared[model_index]:
            return 0, execution_ns(table_ns, factor, slowdown, busy, len(neighbours) - 1)
        items_ns = sum(self.slice_item_ns[request] for request in requests)
        preprocess_ns = slice_preprocess_ns(
            int(shared.launch_ns[slice_index]), items_ns, float(shared.slice_factor[slice_index])
        )
        factor *= shared.execution_slowdown
        return preprocess_ns, execution_ns(table_ns, factor, slowdown, busy, len(neighbours) - 1)

    def _plan_answers(self, server: int, batch_id: int, requests: list[int]) -> None:
        """Decides how long after the end of their batch its requests have their answers.

        They come one after another: in the order of the batch, or, where software varies and need not keep the order,
        beginning with each of them in turn.
        """
        model = self.model
        count = len(requests)
        response_ns = model.response_ns + count * model.response_request_ns
        response_ns = self._spread(response_ns, requests[0], RESPONSE)
        begin = 0
        if model.overheads_vary and not model.servers[server].plan.keeps_order:
            begin = batch_id % count
        for place in range(begin, begin + count):
            request = requests[place % count]
            if place > begin:
                response_ns += self._spread(model.response_next_ns, request, RESPONSE_NEXT)
            self.response_ns[request] = response_ns

    def _plan_next(self, batch: _Batch, start_ns: int, end_ns: int) -> None:
        """Decides when the thread that started this batch asks for the next one."""
        server, consumer = batch.server, batch.consumer
        tables = self.model.tables[self.model.servers[server].model_index]
        consumed_ns = tables.consumed_ns
        if tables.consumed_permille >= 0:
            consumed_ns = (end_ns - start_ns) * tables.consumed_permille // 1000
        turnaround_ns = self.model.turnaround_ns + len(batch.requests) * self.model.turnaround_request_ns
        at_ns = ready_ns(tables.backend, start_ns, end_ns, consumed_ns)
        at_ns += self._spread(turnaround_ns, batch.requests[0], TURNAROUND)
        identity = self.consumer_base[server] + consumer
        self.credits[server][consumer] -= 1
        if self.credits[server][consumer] > 0:
            self.brains[server].consumer_idle(self.states[server], self.now_ns, consumer)
        self._at(at_ns, RANK_CONSUMER_READY, identity, self._consumer_ready, batch)

    def _consumer_ready(self, batch: _Batch) -> None:
        if batch.epoch != self.slice_epoch[batch.slice_index]:
            return  # the slice has been lost since, and starts afresh when it returns
        server, consumer = batch.server, batch.consumer
        self.credits[server][consumer] += 1
        self.brains[server].consumer_idle(self.states[server], self.now_ns, consumer)
        self._pump(server)

    def _end(self, batch: _Batch) -> None:
        if batch.lost:
            return
        self.in_flight[batch.slice_index].remove(batch)
        if not self.model.servers[batch.server].plan.keeps_order:
            for request in batch.requests:
                self._finish(request, SERVED)
            return
        self.answered.update(batch.requests)
        self._release_answers(batch.server)

    def _release_answers(self, server: int) -> None:
        """Sends the answers that no earlier request of an order-keeping server holds back."""
        line = self.answer_line[server]
        while line and line[0] in self.answered:
            request = line.popleft()
            self.answered.discard(request)
            self._finish(request, SERVED)

    def _finish(self, request: int, outcome: int) -> None:
        """A request has its answer, or its refusal."""
        now = self.now_ns
        self.last_progress_ns = now
        model_index = self.model_of[request]
        server = self.server_of[request]
        self._leave_server(request)
        self.columns["outcome"][request] = outcome
        done_ns = now
        if outcome == SERVED:
            done_ns += self.response_ns[request]
            if self.model.servers[server].plan.keeps_order:
                done_ns = max(done_ns, self.answered_ns[server])
                self.answered_ns[server] = done_ns
        self.columns["completed_ns"][request] = done_ns
        self.finished += 1
        if self.progress is not None and self.finished % PROGRESS_STEP == 0:
            self.progress(self.finished, self.total)
        if self.model.outstanding[model_index] > 0:
            pause_ns = 0 if outcome == SERVED else self.model.refusal_backoff_ns[model_index]
            self._issue_next(model_index, done_ns + pause_ns)

    def _leave_server(self, request: int) -> None:
        server = self.server_of[request]
        if server != NONE:
            model_index, place = self.position[server]
            self.balancer_load[model_index][place] -= 1
            self.server_of[request] = NONE

    # -- slices that fail and return -------------------------------------------------------------------------

    def _servers_on(self, slice_index: int) -> list[tuple[int, int]]:
        return [
            (server, consumer)
            for server, spec in enumerate(self.model.servers)
            for consumer, its_slice in enumerate(spec.consumer_slice)
            if its_slice == slice_index
        ]

    def _slice_fails(self, slice_index: int) -> None:
        """A slice drops out, and with it all that fail at this very moment: nobody is sent from one to the other."""
        now = self.now_ns
        events = self.model.slice_events
        failing = {index for at_ns, code, index in events if at_ns == now and code == SLICE_FAILS}
        going = sorted(index for index in failing | {slice_index} if self.slice_up[index])
        if not self.slice_up[slice_index]:
            return
        homeless: list[int] = []
        touched: set[int] = set()
        for index in going:
            homeless += self._take_down(index, touched)
        for request in sorted(homeless, key=lambda r: (self.columns["enqueued_ns"][r], r)):
            self._offer(request)
        for server in sorted(touched):
            self._release_answers(server)
            self._pump(server)

    def _take_down(self, slice_index: int, touched: set[int]) -> list[int]:
        """Takes one slice out of service; returns whom to send elsewhere and notes its servers in ``touched``."""
        now = self.now_ns
        self.slice_up[slice_index] = False
        self.slice_epoch[slice_index] += 1
        self.down_since_ns[slice_index] = now
        lost = self.in_flight[slice_index]
        self.in_flight[slice_index] = []
        self.stream_free_ns[slice_index] = now
        homeless: list[int] = []
        mine = self._servers_on(slice_index)
        for server, consumer in mine:
            self.brains[server].consumer_lost(self.states[server], now, consumer)
        for server in sorted({server for server, _ in mine}):
            touched.add(server)
            model_index, place = self.position[server]
            if len(self.model.model_servers[model_index]) > 1:
                self.balancer_up[model_index][place] = 0
                self.balancer_memory[model_index][M_ALIVE] = sum(self.balancer_up[model_index])
                homeless += self._empty(server)
        for batch in lost:
            batch.lost = True
            if self.model.servers[batch.server].plan.keeps_order:
                gone = set(batch.requests)
                line = self.answer_line[batch.server]
                self.answer_line[batch.server] = deque(r for r in line if r not in gone)
            for request in batch.requests:
                self._reset(request)
                if self.model.retry and self.columns["attempts"][request] < 2:
                    self._leave_server(request)
                    homeless.append(request)
                else:
                    self._finish(request, FAILED_SLICE_LOST)
        return homeless

    def _empty(self, server: int) -> list[int]:
        """Takes back everything a server has not started."""
        waiting: list[int] = []
        while True:
            request = self.brains[server].take_waiting(self.states[server])
            if request == NONE:
                return waiting
            self._leave_server(request)
            waiting.append(request)

    def _reset(self, request: int) -> None:
        for name in ("dispatched_ns", "execution_start_ns", "execution_end_ns", "slice_index", "batch_id"):
            self.columns[name][request] = NONE
        for name in ("batch_size", "batch_units", "slice_preprocess_ns"):
            self.columns[name][request] = 0

    def _slice_returns(self, slice_index: int) -> None:
        if self.slice_up[slice_index]:
            return
        now = self.now_ns
        self.slice_up[slice_index] = True
        self.outages.append((slice_index, self.down_since_ns[slice_index], now))
        self.down_since_ns[slice_index] = NONE
        self.stream_free_ns[slice_index] = now
        events = self.model.slice_events
        for server, consumer in self._servers_on(slice_index):
            model_index, place = self.position[server]
            self.balancer_up[model_index][place] = 1
            self.balancer_memory[model_index][M_ALIVE] = sum(self.balancer_up[model_index])
            self.credits[server][consumer] = self.model.servers[server].credits
            self.brains[server].consumer_up(self.states[server], now, consumer)
            self._pump(server)
            if any(at_ns == now and code != SLICE_FAILS and not self.slice_up[i] for at_ns, code, i in events):
                continue  # more slices return at this moment: the last of them lets the parked requests in
            parked, self.parked[model_index] = self.parked[model_index], []
            for request in parked:
                self._offer(request)

    # -- after the last event --------------------------------------------------------------------------------

    def _records(self) -> Records:
        template = empty_columns(0)
        return Records(**{name: np.array(self.columns[name], dtype=template[name].dtype) for name in column_names()})

    def _spans(self) -> StationSpans:
        table = np.array(self.spans, dtype=np.int64).reshape(-1, 7)
        return StationSpans(
            station_index=table[:, 0].astype(np.int32),
            unit_index=table[:, 1].astype(np.int32),
            request_id=table[:, 2],
            arrived_ns=table[:, 3],
            start_ns=table[:, 4],
            released_ns=table[:, 5],
            end_ns=table[:, 6],
        )


def run_reference(
    model: SimModel, progress: Progress | None = None
) -> tuple[Records, StationSpans, tuple[tuple[int, int, int], ...]]:
    """Runs the reference engine.

    Parameters
    ----------
    model : SimModel
    progress : callable, optional
        Called now and then with (requests finished, requests in total).

    Returns
    -------
    tuple
        Records, station spans, and outages as (slice, from_ns, to_ns).
    """
    engine = ReferenceEngine(model, progress)
    records, spans = engine.run()
    return records, spans, tuple(sorted(engine.outages))
