"""Lays a ``SimModel`` out in memory for the compiled engine, and reads the results back. Python, outside the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.batching.plugin import Plugin
from preba.batching.state import NEVER, NONE, PENDING, S_PLUGIN_NUMBER
from preba.records import Records, StationSpans, empty_columns
from preba.serving import ServerModel
from preba.trace_table import PARTS, steady_overheads
from sim.compiled import layout as lay
from sim.compiled.memory import ROW_WORDS, SHAPE_FIELDS, WORD, Column, Fixed, Own, Row
from sim.model import SimModel

Array = NDArray[Any]
Outages = tuple[tuple[int, int, int], ...]

FIRST_ROWS = 64
"""Requests in flight that memory is laid out for at first; doubled when they are more."""
_DTYPES = {"i8": np.int64, "i4": np.int32, "f8": np.float64}
_UNITS_PER_WORD = 32


def address_of(array: Array) -> int:
    """Where an array's data lies."""
    return int(array.__array_interface__["data"][0])


class RunMemory:
    """A run in memory: every array that compiled code reaches, kept alive, and the block that names them.

    Parameters
    ----------
    model : SimModel
    rows : int
        Requests in flight to make room for; a power of two.
    """

    def __init__(self, model: SimModel, rows: int = FIRST_ROWS) -> None:
        self.model = model
        self.arrays: dict[str, Array] = {}
        self.kept: list[Array] = []
        self.trace_columns = (1 << 62) - 1  # masks: every request has a place of its own
        count = len(model.trace)
        self._lay_trace(count)
        self._lay_models()
        self._lay_stations(count)
        self._lay_servers()
        self._lay_slices()
        self._lay_records(count)
        self._lay_scalars()
        self.rows: Array = np.zeros((0, ROW_WORDS), dtype=np.int64)
        self.shape = np.zeros(SHAPE_FIELDS + 2 * len(lay.WORLD.order), dtype=np.int64)
        self.block = np.zeros(1, dtype=np.int64)
        self.grow(rows)

    # -- laying out ------------------------------------------------------------------------------------------

    def _put(self, name: str, values: Array | Sequence[int] | Sequence[float]) -> None:
        self.arrays[name] = np.ascontiguousarray(values, dtype=_DTYPES[lay.element(name)])

    def _full(self, name: str, count: int, value: int = 0) -> None:
        self._put(name, np.full(count, value, dtype=np.int64))

    def _lay_trace(self, count: int) -> None:
        trace, model = self.model.trace, self.model
        self._put("trace_scheduled_ns", trace.scheduled_ns)
        self._put("trace_model", trace.model_index)
        self._put("trace_factor", trace.execution_factor)
        varies = model.overheads_vary and count > 0
        factors = np.ascontiguousarray(trace.overhead_factor if varies else steady_overheads(1))
        self.kept.append(factors)
        self._put_overheads(factors)
        draws = np.ascontiguousarray(trace.balancer_draw, dtype=np.float64)
        if len(draws) == 0:
            draws = np.zeros((1, 2))
        self.kept.append(draws)
        self.arrays["trace_first_draw"] = draws.reshape(-1)
        self.arrays["trace_second_draw"] = draws.reshape(-1)[1:]
        self._put("trace_think_ns", trace.think_ns)
        self._put("trace_length", model.length_index)
        shared = model.preprocessing.shared
        self._put("trace_slice_item_ns", shared.item_ns if shared is not None else [0])
        self.batcher_columns: dict[str, Array] = {
            "request_units": np.ascontiguousarray(trace.batch_units, dtype=np.int32),
            "request_bucket": np.ascontiguousarray(model.bucket, dtype=np.int64),
            "request_priority": np.ascontiguousarray(trace.priority, dtype=np.int32),
            "request_shape": self.arrays["trace_length"],
            "request_timeout_ns": np.ascontiguousarray(trace.timeout_ns, dtype=np.int64),
        }
        closed = np.array([outstanding > 0 for outstanding in model.outstanding], dtype=bool)
        self.any_closed = bool(closed.any())
        self.open_count = count
        self._put("open_request", [])
        closed_ids: list[Array] = []
        if self.any_closed:
            is_closed = closed[trace.model_index]
            self._put("open_request", np.flatnonzero(~is_closed))
            self.open_count = len(self.arrays["open_request"])
            closed_ids = [
                np.flatnonzero(trace.model_index == m) if closed[m] else np.zeros(0, dtype=np.int64)
                for m in range(len(closed))
            ]
        ends = np.cumsum([len(ids) for ids in closed_ids]) if closed_ids else np.zeros(len(closed), dtype=np.int64)
        starts = np.concatenate(([0], ends[:-1]))
        self._put("closed_request", np.concatenate(closed_ids) if closed_ids else [])
        self._put("model_closed_next", starts)
        self._put("model_closed_end", ends)

    def _put_overheads(self, factors: Array) -> None:
        """Columns side by side, of an array that somebody keeps."""
        for part, name in enumerate(PARTS["overhead_factor"]):
            self.arrays[f"trace_{name}_factor"] = factors.reshape(-1)[part:]

    def _lay_models(self) -> None:
        model = self.model
        count = len(model.tables)
        routes = model.preprocessing.routes
        self._put("model_route_length", [len(route) for route in routes])
        self._put("model_ingress_ns", list(self.model.ingress_ns))
        self._put("model_route", np.concatenate(([0], np.cumsum([len(route) for route in routes])))[:-1])
        self._put("route_station", [station for route in routes for station in route])
        self._put("model_server", [group[0] for group in model.model_servers])
        self._put("model_servers", [len(group) for group in model.model_servers])
        self._put("model_outstanding", model.outstanding)
        self._put("model_backoff_ns", model.refusal_backoff_ns)
        self._put("model_slowdown_ppm", [tables.slowdown_ppm for tables in model.tables])
        self._put("model_backend", [tables.backend for tables in model.tables])
        self._put("model_consumed_permille", [tables.consumed_permille for tables in model.tables])
        self._put("model_consumed_ns", [tables.consumed_ns for tables in model.tables])
        tables = [np.ascontiguousarray(t.execution_ns, dtype=np.int64) for t in model.tables]
        self.kept += tables
        self._put("model_table", [address_of(table) for table in tables])
        self._put("model_lengths", [table.shape[1] for table in tables])
        self._put("model_batches", [table.shape[2] for table in tables])
        self._put("model_uses_shared", [int(used) for used in model.preprocessing.uses_shared] or [0] * count)
        self._full("model_parked_head", count, NONE)
        self._full("model_parked_tail", count, NONE)
        memory = np.array([(NONE, len(group)) for group in model.model_servers], dtype=np.int64)
        self._put("model_memory", memory.reshape(-1))

    def _lay_stations(self, count: int) -> None:  # noqa: ARG002 - streaming lays rings
        stations = self.model.preprocessing.stations
        units = [station.units for station in stations]
        first = np.concatenate(([0], np.cumsum(units))).astype(np.int64)
        self._put("station_is_hop", [int(station.kind == "hop") for station in stations])
        self._put("station_first_unit", first[:-1])
        self._put("station_launch_ns", [station.launch_ns for station in stations])
        self._put("station_rested_ns", [station.rested_ns for station in stations])
        self._put("station_batch_max", [station.batch_max for station in stations])
        occupancy = [np.ascontiguousarray(station.occupancy_ns, dtype=np.int64) for station in stations]
        latency = [np.ascontiguousarray(station.latency_ns, dtype=np.int64) for station in stations]
        self.kept += occupancy + latency
        self._put("station_occupancy", [address_of(column) for column in occupancy])
        self._put("station_latency", [address_of(column) for column in latency])
        words = [-(-n // _UNITS_PER_WORD) for n in units]
        self._put("station_word", np.concatenate(([0], np.cumsum(words)))[:-1])
        self._put("station_words", words)
        self._put("station_free", units)
        self._full("station_head", len(stations), NONE)
        self._full("station_tail", len(stations), NONE)
        self._put("free_units", [_unit_mask(n - _UNITS_PER_WORD * word) for n in units for word in range(-(-n // 32))])
        self._put("unit_station", np.repeat(np.arange(len(stations)), units))
        self.unit_count = int(first[-1])

    def _lay_servers(self) -> None:
        servers = self.model.servers
        consumers = [len(server.consumer_slice) for server in servers]
        base = np.concatenate(([0], np.cumsum(consumers)))[:-1]
        place = np.zeros(len(servers), dtype=np.int64)
        for group in self.model.model_servers:
            place[list(group)] = np.arange(len(group))
        self._put("server_model", [server.model_index for server in servers])
        self._put("server_place", place)
        self._put("server_consumer", base)
        self._put("server_consumers", consumers)
        self._put("server_credits", [server.credits for server in servers])
        self._put("server_keeps_order", [int(server.plan.keeps_order) for server in servers])
        self._full("server_line_head", len(servers), NONE)
        self._full("server_line_tail", len(servers), NONE)
        self._full("server_answered_ns", len(servers))
        self._full("server_armed_ns", len(servers), NEVER)
        self._full("server_alarm_ns", len(servers), NEVER)
        self._full("server_timer_place", len(servers), NONE)
        self._full("server_up", len(servers), 1)
        self._full("server_load", len(servers))
        self._full("server_touched", len(servers))
        self._full("timer_server", len(servers))
        self._put("consumer_slice", [index for server in servers for index in server.consumer_slice])
        self._put("consumer_server", np.repeat(np.arange(len(servers)), consumers))
        self._put("consumer_credits", np.repeat([server.credits for server in servers], consumers))
        self.batchers = Batchers(servers)
        self._put("server_state", self.batchers.addresses)

    def _lay_slices(self) -> None:
        model = self.model
        count = len(model.slice_kind)
        shared = model.preprocessing.shared
        self._put("slice_kind", model.slice_kind)
        self._put("slice_launch_ns", shared.launch_ns if shared is not None else [0] * count)
        self._put("slice_factor", shared.slice_factor if shared is not None else [1.0] * count)
        for name, value in (("stream_free_ns", 0), ("up", 1), ("epoch", 0), ("first_batch", NONE)):
            self._full(f"slice_{name}", count, value)
        self._full("slice_last_batch", count, NONE)
        self._full("slice_down_since_ns", count, NONE)
        place = {gpu: index for index, gpu in enumerate(sorted(set(model.slice_gpu)))}
        members: list[list[int]] = [[] for _ in place]
        for index, gpu in enumerate(model.slice_gpu):
            members[place[gpu]].append(index)
        self._put("slice_gpu", [place[gpu] for gpu in model.slice_gpu])
        self._put("gpu_count", [len(group) for group in members])
        self._put("gpu_first", np.concatenate(([0], np.cumsum([len(group) for group in members])))[:-1])
        self._put("gpu_slice", [index for group in members for index in group])
        events = model.slice_events
        self._put("event_at_ns", [at_ns for at_ns, _, _ in events])
        self._put("event_code", [code for _, code, _ in events])
        self._put("event_slice", [index for _, _, index in events])
        for name in ("outage_slice", "outage_from_ns", "outage_to_ns"):
            self._full(name, len(events) + 1)

    def _lay_records(self, count: int) -> None:
        trace = self.model.trace
        for name, place in lay.RECORD_COLUMNS.items():
            self.arrays[name] = np.empty(count, dtype=_DTYPES[place.element])
        if not self.any_closed:
            self.arrays["scheduled_ns"] = self.arrays["trace_scheduled_ns"]
        else:
            blank = empty_columns(count)  # a closed loop that gets stuck never sends the rest
            for name in lay.RECORD_COLUMNS:
                self.arrays[name] = blank[name]
        if self.model.preprocessing.shared is None:
            self.arrays["slice_preprocess_ns"] = np.zeros(count, dtype=np.int64)
        routes = np.array([len(route) for route in self.model.preprocessing.routes], dtype=np.int64)
        visits = int(routes[trace.model_index].sum()) if routes.any() else 0
        for name, place in lay.SPAN_COLUMNS.items():
            self.arrays[name] = np.empty(visits, dtype=_DTYPES[place.element])

    def _lay_scalars(self) -> None:
        model = self.model
        config = np.zeros(lay.CONFIG_COUNT, dtype=np.int64)
        config[lay.C_FRONTEND_NS] = model.frontend_ns
        config[lay.C_TIMER_NS] = model.timer_ns
        config[lay.C_DISPATCH_NS] = model.dispatch_ns
        config[lay.C_TURNAROUND_NS] = model.turnaround_ns
        config[lay.C_TURNAROUND_REQUEST_NS] = model.turnaround_request_ns
        config[lay.C_RESPONSE_NS] = model.response_ns
        config[lay.C_RESPONSE_REQUEST_NS] = model.response_request_ns
        config[lay.C_RESPONSE_NEXT_NS] = model.response_next_ns
        config[lay.C_OVERHEADS_VARY] = int(model.overheads_vary)
        config[lay.C_BALANCER] = model.balancer
        config[lay.C_RETRY] = int(model.retry)
        config[lay.C_OPEN_IDENTITY] = int(not self.any_closed)
        config[lay.C_SHARED] = int(model.preprocessing.shared is not None)
        config[lay.C_EVENTS] = len(model.slice_events)
        config[lay.C_SLICES] = len(model.slice_kind)
        config[lay.C_SERVERS] = len(model.servers)
        config[lay.C_CLOSED] = int(self.any_closed)
        config[lay.C_SPANS] = 1
        self.arrays["config"] = config
        reals = np.ones(lay.CONFIG_COUNT)
        if model.preprocessing.shared is not None:
            reals[lay.C_SHARED_SLOWDOWN] = model.preprocessing.shared.execution_slowdown
        self.arrays["config_f8"] = reals
        clock = np.zeros(lay.CLOCK_COUNT, dtype=np.int64)
        clock[lay.K_OPEN_END] = self.open_count
        self.arrays["clock"] = clock
        # A thread asks for its next batch once its last one has started, and by then those before have ended: at most
        # one batch more than it has credits; a lost one keeps its place until its events have passed.
        self.batch_places = sum((s.credits + 1) * len(s.consumer_slice) for s in model.servers)
        self.batch_places *= 1 + len(model.slice_events)
        for name in lay.WORLD.order:
            if name.startswith("batch_") and name not in self.arrays:
                self._full(name, self.batch_places)
        self.arrays["batch_after"][:] = np.arange(1, self.batch_places + 1)
        self.arrays["heap"] = np.zeros(0, dtype=np.int64)
        for name in lay.WORLD.order:
            self.arrays.setdefault(name, np.zeros(0, dtype=np.int64))  # what only a streamed run has

    # -- requests in flight ----------------------------------------------------------------------------------

    def grow(self, rows: int) -> None:
        """Makes room for ``rows`` requests in flight, a power of two; those in flight keep their state."""
        old = self.rows
        self.rows = np.zeros((rows, ROW_WORDS), dtype=np.int64)
        taken = old[old[:, lay.OWNER_WORD] != 0]
        self.rows[(taken[:, lay.OWNER_WORD] - 1) & (rows - 1)] = taken
        homeless = np.zeros(rows, dtype=np.int64)
        self.arrays["homeless"] = homeless
        outstanding = sum(self.model.outstanding)
        events = rows + outstanding + self.unit_count + 2 * self.batch_places + len(self.model.slice_events)
        heap = np.zeros(lay.HEAP_WORDS * (events + 1), dtype=np.int64)
        heap[: len(self.arrays["heap"])] = self.arrays["heap"]
        self.arrays["heap"] = heap
        self._write_shape(rows)
        self.batchers.write_shapes(self.rows, self.trace_columns, self.batcher_columns)

    def _write_shape(self, rows: int) -> None:
        self.shape[0] = rows - 1
        self.shape[1] = self.trace_columns
        row_address = address_of(self.rows)
        for place, (name, kind) in enumerate(lay.WORLD.places.items()):
            entry = SHAPE_FIELDS + 2 * place
            if isinstance(kind, Row):
                self.shape[entry], self.shape[entry + 1] = row_address, rows
            else:
                array = self.arrays[name]
                self.shape[entry], self.shape[entry + 1] = address_of(array), len(array)
        self.block[0] = address_of(self.shape)

    @property
    def address(self) -> int:
        """What compiled code is given."""
        return address_of(self.block)

    @property
    def clock(self) -> Array:
        """The mutable scalars, ``K_*``."""
        return self.arrays["clock"]

    # -- results ---------------------------------------------------------------------------------------------

    def records(self) -> Records:
        """What happened to every request; requests that wait still have no execution."""
        arrays, trace = self.arrays, self.model.trace
        waiting = np.flatnonzero(arrays["outcome"] == PENDING) if self.clock[lay.K_FINISHED] < len(trace) else None
        if waiting is not None and len(waiting):
            blank = empty_columns(1)
            for name in (
                "dispatched_ns", "execution_start_ns", "execution_end_ns", "slice_index", "batch_id", "batch_size",
                "batch_units", "slice_preprocess_ns", "completed_ns",
            ):  # fmt: skip
                arrays[name][waiting] = blank[name][0]
        return Records(
            request_id=np.arange(len(trace), dtype=np.int64),
            model_index=trace.model_index,
            issued_ns=arrays["scheduled_ns"],
            jpeg_bytes=trace.jpeg_bytes,
            audio_ns=trace.audio_ns,
            **{name: arrays[name] for name in lay.RECORD_COLUMNS},
        )

    def spans(self) -> StationSpans:
        """Every visit to a station, in the order in which work started."""
        count = int(self.clock[lay.K_SPANS])
        return StationSpans(
            station_index=self.arrays["span_station"][:count],
            unit_index=self.arrays["span_unit"][:count],
            request_id=self.arrays["span_request"][:count],
            arrived_ns=self.arrays["span_arrived_ns"][:count],
            start_ns=self.arrays["span_start_ns"][:count],
            released_ns=self.arrays["span_released_ns"][:count],
            end_ns=self.arrays["span_end_ns"][:count],
        )

    def outages(self) -> Outages:
        """(slice, from_ns, to_ns), sorted; an outage that never ended lasts as long as the run."""
        arrays = self.arrays
        count = int(self.clock[lay.K_OUTAGES])
        found = [
            (int(arrays["outage_slice"][k]), int(arrays["outage_from_ns"][k]), int(arrays["outage_to_ns"][k]))
            for k in range(count)
        ]
        last_ns = max(int(self.clock[lay.K_NOW_NS]), int(self.clock[lay.K_LATEST_ALARM_NS]))
        for index, since_ns in enumerate(arrays["slice_down_since_ns"].tolist()):
            if since_ns != NONE:
                found.append((index, since_ns, max(last_ns, since_ns)))
        return tuple(sorted(found))


def _unit_mask(units: int) -> int:
    return (1 << min(units, _UNITS_PER_WORD)) - 1


def plugins_of(servers: Sequence[ServerModel]) -> tuple[Plugin, ...]:
    """The different plug-ins of a run, in the order that gives them their numbers."""
    return tuple(dict.fromkeys(server.plan.plugin for server in servers if server.plan.plugin is not None))


class Batchers:
    """The batchers of all servers in one array of blocks; equal ones share a shape.

    Parameters
    ----------
    servers : sequence of ServerModel
    """

    def __init__(self, servers: Sequence[ServerModel]) -> None:
        self.kinds: dict[object, _Shape] = {}
        self.plugins = plugins_of(servers)
        shapes = [self._shape_of(server) for server in servers]
        words = max(len(shape.template) for shape in shapes)
        self.blocks = np.zeros((len(servers), words), dtype=np.int64)
        for index, shape in enumerate(shapes):
            self.blocks[index, : len(shape.template)] = shape.template
            self.blocks[index, 0] = address_of(shape.words)
        self.addresses = address_of(self.blocks) + np.arange(len(servers), dtype=np.int64) * words * WORD

    def _shape_of(self, server: ServerModel) -> _Shape:
        key = (server.plan, server.consumer_rank, server.consumer_batch_max)
        if key not in self.kinds:
            number = self.plugins.index(server.plan.plugin) if server.plan.plugin is not None else 0
            self.kinds[key] = _Shape(server, number)
        return self.kinds[key]

    def write_shapes(self, rows: Array, column_mask: int, columns: dict[str, Array]) -> None:
        """Tells every shape where the requests' rows and columns are."""
        for shape in self.kinds.values():
            shape.write(rows, column_mask, columns)


class _Shape:
    """Where the fields of one kind of batcher lie, and what is in them at first."""

    def __init__(self, server: ServerModel, plugin_number: int) -> None:
        state = server.new_state(0)
        if server.plan.plugin is not None:
            state.setting[S_PLUGIN_NUMBER] = plugin_number
        self.words = np.zeros(SHAPE_FIELDS + 2 * len(lay.BATCHER.order), dtype=np.int64)
        self.columns: dict[str, Array] = {}
        own: list[int] = []
        first: list[int] = [0] * lay.BATCHER_OWN
        for place, (name, kind) in enumerate(lay.BATCHER.places.items()):
            entry = SHAPE_FIELDS + 2 * place
            values = list(getattr(state, name))
            if isinstance(kind, Fixed):
                first[kind.word : kind.word + kind.length] = values
            elif isinstance(kind, Own):
                self.words[entry] = (lay.BATCHER_OWN + len(own)) * WORD
                self.words[entry + 1] = len(values)
                own += values
            elif isinstance(kind, Column) and not kind.masked:
                self.columns[name] = np.array(values, dtype=np.int64)
                self.words[entry] = address_of(self.columns[name])
                self.words[entry + 1] = len(values)
        self.template = np.array(first + own, dtype=np.int64)

    def write(self, rows: Array, column_mask: int, columns: dict[str, Array]) -> None:
        """Fills in where the requests are."""
        self.words[0] = len(rows) - 1
        self.words[1] = column_mask
        for place, (name, kind) in enumerate(lay.BATCHER.places.items()):
            entry = SHAPE_FIELDS + 2 * place
            if isinstance(kind, Row):
                self.words[entry], self.words[entry + 1] = address_of(rows), len(rows)
            elif isinstance(kind, Column) and kind.masked:
                self.words[entry], self.words[entry + 1] = address_of(columns[name]), len(columns[name])
