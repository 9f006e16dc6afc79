"""A streamed run: requests are drawn piece by piece, kept while they are in flight, and counted when they are gone.

Memory does not grow with the run. Columns of requests are rings here; the event loop is the same as ever, and stops
when it needs arrivals that have not been drawn yet.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.batching.state import PENDING
from preba.errors import UnsupportedError
from preba.records import StationFacts
from preba.report.stream import SECTIONS, TALLY_COUNT, StreamedRun
from preba.scenario.draw import long_run_rates, scenario_chunks
from preba.scenario.resolve import ResolvedScenario
from preba.statistics.histogram import BUCKETS
from preba.statistics.warmup import WARMUP_SHARE
from preba.strict import Provenance
from preba.trace import Trace
from preba.trace_table import PARTS
from preba.units import NS_PER_MS, ns_from_s
from sim.capacity import StageLoad, overload_warnings, stage_loads
from sim.compiled import layout as lay
from sim.compiled.engine import EVENTS_PER_CALL, Progress, entry, fail, variant_of
from sim.compiled.layout import K_FINISHED, STATUS_DONE, STATUS_FAULT, STATUS_ROWS_FULL, STATUS_TRACE_NEEDED
from sim.compiled.world import RunMemory, address_of
from sim.model import LENGTH_GRID_NS, SimModel, build_model, build_pieces

Array = NDArray[Any]

CHUNK = 1 << 16
"""Requests drawn at a time."""
RING = 1 << 18
"""Requests that columns are laid out for at first."""
MOST_IN_FLIGHT = 1 << 21
"""Requests in flight beyond which a run is not streamed any further: it is overloaded."""

_TRACE = ("trace_scheduled_ns", "trace_model", "trace_factor", "trace_think_ns", "trace_length", "trace_slice_item_ns")
_BATCHER = ("request_units", "request_bucket", "request_priority", "request_timeout_ns")


@dataclass(frozen=True)
class StreamedSimulation:
    """A finished streamed simulation; compare ``sim.run.Simulation``.

    Attributes
    ----------
    run : StreamedRun
    loads : tuple of StageLoad
    warnings : tuple of str
    provenance : tuple of (what, Provenance)
    wall_s : float
    """

    run: StreamedRun
    loads: tuple[StageLoad, ...]
    warnings: tuple[str, ...]
    provenance: tuple[tuple[str, Provenance], ...]
    wall_s: float


class _StreamMemory(RunMemory):
    """A run in memory whose columns of requests are rings."""

    def __init__(self, model: SimModel, resolved: ResolvedScenario) -> None:
        self.ring = 0
        self.resolved = resolved
        super().__init__(model)
        self.loaded = 0
        self.config = self.arrays["config"]
        self.config[lay.C_SPANS] = 0
        self.draws = np.zeros((0, 2))
        self.overheads = np.zeros((0, len(PARTS["overhead_factor"])))
        self.stations = [np.zeros(0, dtype=np.int64) for _ in model.preprocessing.stations]
        self.latencies = [np.zeros(0, dtype=np.int64) for _ in model.preprocessing.stations]
        self._lay_tallies()
        for name in lay.SPAN_COLUMNS:
            self.arrays[name] = self.arrays[name][:0].copy()
        self._lay_rings(RING)

    def _lay_tallies(self) -> None:
        model = self.model
        models = len(model.tables)
        largest = max(server.plan.batch_max for server in model.servers)
        self.config[lay.C_LARGEST_BATCH] = largest
        slo = [m.slo_p99_ms for m in self.resolved.scenario.models]
        never = np.iinfo(np.int64).max
        self.arrays["model_slo_ns"] = np.array(
            [never if ms is None else int(ms * NS_PER_MS) for ms in slo], dtype=np.int64
        )
        for name, shape in (
            ("tally", (models, TALLY_COUNT)),
            ("section_count", (models, SECTIONS)),
            ("section_latency_ns", (models, SECTIONS)),
            ("histogram", (models, SECTIONS, BUCKETS)),
            ("size_count", (models, largest + 1)),
            ("slice_busy_ns", (len(model.slice_kind),)),
            ("station_busy_ns", (len(model.preprocessing.stations),)),
            ("unit_busy_ns", (self.unit_count,)),
        ):
            self.arrays[name] = np.zeros(int(np.prod(shape)), dtype=np.int64)

    def _lay_rings(self, ring: int) -> None:
        """Makes columns of ``ring`` requests; those loaded so far keep their values."""
        kept = np.arange(max(0, self.loaded - self.ring), self.loaded)
        old, new = kept & max(self.ring - 1, 0), kept & (ring - 1)

        def moved(array: Array) -> Array:
            larger = np.zeros((ring, *array.shape[1:]), dtype=array.dtype)
            larger[new] = array[old] if len(kept) else larger[new]
            return larger

        for name in (*_TRACE, *lay.RECORD_COLUMNS):
            if name != "scheduled_ns":
                self.arrays[name] = moved(self.arrays[name])
        self.arrays["scheduled_ns"] = self.arrays["trace_scheduled_ns"]
        for name in _BATCHER:
            self.batcher_columns[name] = moved(self.batcher_columns[name])
        self.batcher_columns["request_shape"] = self.arrays["trace_length"]
        if self.model.overheads_vary:
            self.overheads = moved(self.overheads)
            self._put_overheads(self.overheads)
        self.draws = moved(self.draws)
        self.arrays["trace_first_draw"] = self.draws.reshape(-1)
        self.arrays["trace_second_draw"] = self.draws.reshape(-1)[1:]
        self.stations = [moved(column) for column in self.stations]
        self.latencies = [moved(column) for column in self.latencies]
        self.arrays["station_occupancy"] = np.array([address_of(c) for c in self.stations], dtype=np.int64)
        self.arrays["station_latency"] = np.array([address_of(c) for c in self.latencies], dtype=np.int64)
        self.ring = ring
        self.trace_columns = ring - 1
        self._write_shape(len(self.rows))
        self.batchers.write_shapes(self.rows, self.trace_columns, self.batcher_columns)

    def load(self, piece: Trace, *, last: bool) -> None:
        """Appends the next requests, which must all have been asked for.

        Raises
        ------
        UnsupportedError
            More requests are in flight than a streamed run keeps.
        """
        oldest = self._oldest()
        while self.loaded + len(piece) - oldest > self.ring:
            if 2 * self.ring > MOST_IN_FLIGHT:
                raise UnsupportedError(
                    f"--stream: more than {self.ring // 2:,} requests are waiting: the scenario is overloaded, and a "
                    "streamed run keeps only what is in flight; lower the rate, bound the queue, or run it unstreamed"
                )
            self._lay_rings(2 * self.ring)
        parts = build_pieces(self.resolved, piece, self.model)
        columns: dict[str, Array] = {
            "trace_scheduled_ns": piece.scheduled_ns,
            "trace_model": piece.model_index,
            "trace_factor": piece.execution_factor,
            "trace_think_ns": piece.think_ns,
            "trace_length": parts.length_index,
        }
        if parts.preprocessing.shared is not None:
            columns["trace_slice_item_ns"] = parts.preprocessing.shared.item_ns
        start = self.loaded & (self.ring - 1)
        room = min(len(piece), self.ring - start)
        targets: list[tuple[Array, Array]] = [(self.arrays[name], column) for name, column in columns.items()]
        targets += [
            (self.batcher_columns["request_units"], piece.batch_units),
            (self.batcher_columns["request_bucket"], parts.bucket),
            (self.batcher_columns["request_priority"], piece.priority),
            (self.batcher_columns["request_timeout_ns"], piece.timeout_ns),
            (self.draws, piece.balancer_draw),
        ]
        if self.model.overheads_vary:
            targets.append((self.overheads, piece.overhead_factor))
        for mine, latency, station in zip(self.stations, self.latencies, parts.preprocessing.stations, strict=True):
            targets += [(mine, station.occupancy_ns), (latency, station.latency_ns)]
        for target, column in targets:
            target[start : start + room] = column[:room]
            target[: len(piece) - room] = column[room:]
        self.loaded += len(piece)
        self.clock[lay.K_OPEN_END] = self.loaded
        self.clock[lay.K_MORE_TO_COME] = int(not last)
        if last:
            self.clock[lay.K_WINDOW_END_NS] = int(piece.scheduled_ns[-1])

    def _oldest(self) -> int:
        """The oldest request that is still in flight; all loaded ones have arrived."""
        first = max(0, self.loaded - self.ring)
        waiting = np.flatnonzero(self.arrays["outcome"][np.arange(first, self.loaded) & (self.ring - 1)] == PENDING)
        return first + int(waiting[0]) if len(waiting) else self.loaded


def _longest(resolved: ResolvedScenario) -> list[Array] | None:
    """Per model the lengths of audio that will come, to 0.1 s; found by drawing everything once beforehand."""
    if all(model.profile.modality != "audio" for model in resolved.models):
        return None
    rows: list[set[int]] = [set() for _ in resolved.models]
    longest = [0] * len(resolved.models)
    for piece in scenario_chunks(resolved, CHUNK):
        for index in range(len(rows)):
            lengths = piece.audio_ns[piece.model_index == index]
            if len(lengths):
                rows[index].update(np.unique(-(-lengths // LENGTH_GRID_NS)).tolist())
                longest[index] = max(longest[index], int(lengths.max()))
    return [
        np.array([min(row * LENGTH_GRID_NS, most) for row in sorted(mine)], dtype=np.int64)
        for mine, most in zip(rows, longest, strict=True)
    ]


def simulate_streamed(resolved: ResolvedScenario, progress: Progress | None = None) -> StreamedSimulation:
    """Runs a scenario without keeping its requests.

    Parameters
    ----------
    resolved : ResolvedScenario
        Open loops; ``run.requests`` may be in the thousands of millions.
    progress : callable, optional
        Called now and then with (requests finished, requests in total; for a duration: as far as they are drawn).

    Returns
    -------
    StreamedSimulation

    Raises
    ------
    UnsupportedError
        Arrivals that cannot be drawn in pieces, or an overload.
    """
    began = time.perf_counter()
    run = resolved.scenario.run
    pieces = scenario_chunks(resolved, CHUNK)
    first = next(pieces)
    model = build_model(resolved, first, audio_lengths=_longest(resolved))
    memory = _StreamMemory(model, resolved)
    _open_window(memory, resolved)
    ahead = _with_last(pieces)
    following = next(ahead, None)
    memory.load(first, last=following is None)
    engine = entry(replace(variant_of(model), streamed=True))
    status = engine(memory.address, 1, EVENTS_PER_CALL)
    while status != STATUS_DONE:
        if status == STATUS_FAULT:
            fail(model, memory)
        if status == STATUS_ROWS_FULL:
            memory.grow(2 * len(memory.rows))
        if status == STATUS_TRACE_NEEDED and following is not None:
            piece, _ = following
            following = next(ahead, None)
            memory.load(piece, last=following is None)
        if progress is not None:
            progress(int(memory.clock[K_FINISHED]), run.requests or memory.loaded)
        status = engine(memory.address, 0, EVENTS_PER_CALL)
    names = [m.config.name for m in resolved.models]
    loads = stage_loads(model, names, int(first.scheduled_ns[-1]), long_run_rates(resolved))
    streamed = _streamed_run(memory, resolved)
    warnings = [*overload_warnings(loads), *resolved.warnings()]
    pending = streamed.requests - int(streamed.tally[:, :4].sum())
    if pending:
        warnings.append(f"{pending} requests were never served: the slices they waited for did not come back")
    wall_s = time.perf_counter() - began
    return StreamedSimulation(streamed, tuple(loads), tuple(warnings), model.preprocessing.provenance, wall_s)


def _with_last(pieces: Iterator[Trace]) -> Iterator[tuple[Trace, bool]]:
    """Pieces, each with whether it is the last."""
    for piece, after in itertools.pairwise(itertools.chain(pieces, (None,))):
        if piece is not None:
            yield piece, after is None


def _open_window(memory: _StreamMemory, resolved: ResolvedScenario) -> None:
    """Sets the warm-up: the scenario's own, else the first 5 % of the run."""
    run, config, clock = resolved.scenario.run, memory.arrays["config"], memory.clock
    duration_ns = None if run.duration_s is None else ns_from_s(run.duration_s)
    clock[lay.K_WINDOW_END_NS] = np.iinfo(np.int64).max
    clock[lay.K_WINDOW_NS] = -1
    warm_ns = None if run.warmup_s is None else ns_from_s(run.warmup_s)
    warm_requests = run.warmup_requests
    if warm_ns is None and warm_requests is None:
        if duration_ns is not None:
            warm_ns = int(WARMUP_SHARE * duration_ns)
        else:
            warm_requests = int(WARMUP_SHARE * (run.requests or 0))
    if warm_ns is not None:
        clock[lay.K_WINDOW_NS] = warm_ns
    config[lay.C_WARM_REQUESTS] = warm_requests or 0
    if duration_ns is not None:
        config[lay.C_SECTION_BY_TIME] = 1
        config[lay.C_SECTION_SPAN] = max(duration_ns - (warm_ns or 0), 1)
    else:
        config[lay.C_SECTION_SPAN] = max((run.requests or 0) - (warm_requests or 0), 1)


def _streamed_run(memory: _StreamMemory, resolved: ResolvedScenario) -> StreamedRun:
    arrays, model, clock = memory.arrays, memory.model, memory.clock
    models = len(model.tables)
    window_ns = max(int(clock[lay.K_WINDOW_NS]), 0)
    busy_ns = arrays["slice_busy_ns"].copy()
    for index, station in enumerate(model.preprocessing.stations):
        first = int(arrays["station_first_unit"][index])
        for unit, slice_index in enumerate(station.slice_indices):
            busy_ns[slice_index] += arrays["unit_busy_ns"][first + unit]
    return StreamedRun(
        engine="compiled, streamed",
        models=tuple(m.config.name for m in resolved.models),
        stations=tuple(StationFacts(s.name, s.kind, s.units, s.usable_fraction) for s in model.preprocessing.stations),
        slices=tuple(unit.facts() for unit in resolved.slices),
        requests=memory.loaded,
        tally=arrays["tally"].reshape(models, -1),
        section_count=arrays["section_count"].reshape(models, -1),
        section_latency_ns=arrays["section_latency_ns"].reshape(models, -1),
        histogram=arrays["histogram"].reshape(models, SECTIONS, BUCKETS),
        size_count=arrays["size_count"].reshape(models, -1),
        slice_busy_ns=busy_ns,
        station_busy_ns=arrays["station_busy_ns"],
        window_ns=(window_ns, max(int(clock[lay.K_WINDOW_END_NS]), window_ns + 1)),
        warm_requests=int(arrays["config"][lay.C_WARM_REQUESTS]),
        end_ns=int(clock[lay.K_LAST_ANSWER_NS]),
        outages=memory.outages(),
    )
