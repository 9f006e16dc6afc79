"""The structural fast path: where requests pass one FIFO station and one plain batcher no event list is needed.

``structural_obstacle`` says whether a model is of that kind; ``run_structural`` plays it, record for record equal to
the engines that keep an event list. The recursion itself is in ``structural_kernel``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from accel.station import Station
from preba.batching import state as s
from preba.records import Records, StationSpans
from preba.serving import ServerModel
from sim.compiled import structural_kernel as kernel
from sim.compiled.engine import callables, fingerprint
from sim.compiled.jit import functions_of
from sim.compiled.world import Outages
from sim.model import SimModel
from sim.service import BACKEND_BLOCKING, BACKEND_TRT_GRAPH

Array = NDArray[Any]

MOST_CONSUMERS = 64
"""With more the search for an idle one costs more than an event list."""
_TIME_BITS = 62


@dataclass(frozen=True)
class _Batching:
    """What a plain batcher comes down to."""

    limit: int  # units
    delay_ns: int


def structural_obstacle(model: SimModel) -> str | None:
    """Why a model needs an event list, in a few words; ``None`` where it needs none.

    Parameters
    ----------
    model : SimModel
    """
    if len(model.tables) > 1:
        return "several models"
    if len(model.servers) > 1:
        return "several servers"
    if model.outstanding[0] > 0:
        return "a closed loop"
    if model.slice_events:
        return "slices that fail"
    if model.overheads_vary:
        return "overheads that vary"
    if model.ingress_ns[0] + model.timer_ns + model.dispatch_ns > 0:
        return "ways to preprocessing or to the slice, or timers, that take time"
    obstacle = _station_obstacle(model)
    if obstacle is not None:
        return obstacle
    server = model.servers[0]
    if server.plan.keeps_order:
        return "answers kept in order"
    if model.tables[0].backend not in (BACKEND_BLOCKING, BACKEND_TRT_GRAPH):
        return "a backend that takes its next batch early"
    if server.credits != 1 or len(set(server.consumer_slice)) < len(server.consumer_slice):
        return "several instances on a slice"
    if len(server.consumer_slice) > MOST_CONSUMERS:
        return f"more than {MOST_CONSUMERS} slices"
    if len(model.trace) == 0 or np.ptp(model.trace.batch_units) > 0:
        return "requests of different batch dimensions"
    if _batching(server) is None:
        return "a batcher that is not plain"
    return None


def _station_obstacle(model: SimModel) -> str | None:
    route = model.preprocessing.routes[0]
    if len(route) > 1:
        return "several preprocessing stations"
    if route:
        station = model.preprocessing.stations[route[0]]
        if station.batch_max > 1:
            return "preprocessing in batches"
        if station.rested_ns > 0:
            return "preprocessing that is slower after a rest"
        if station.latency_ns is not station.occupancy_ns and not np.array_equal(
            station.latency_ns, station.occupancy_ns
        ):
            return "pipelined preprocessing"
        work_ns = int(model.trace.scheduled_ns[-1]) + int(station.occupancy_ns.sum())
        work_ns += station.launch_ns * len(model.trace)
        if work_ns.bit_length() + _shift(station.units) > _TIME_BITS:
            return "a run too long for its number of preprocessing units"
    return None


def _batching(server: ServerModel) -> _Batching | None:
    """Limit and delay of a batcher that waits for a full or due batch and forms it at dispatch."""
    setting = server.plan.setting
    if setting[s.S_QUEUE_MAX] > 0:
        return None
    if setting[s.S_KIND] == s.KIND_LATE:
        limits = {min(setting[s.S_BATCH_MAX], most) for most in server.consumer_batch_max}
        if len(limits) == 1:
            return _Batching(limits.pop(), setting[s.S_DELAY_NS])
        return None
    plain = (
        setting[s.S_KIND] == s.KIND_BUCKET
        and len(server.plan.bucket_batch_max) == 1
        and setting[s.S_DUE_BATCH] == s.DUE_STAYS_OPEN
        and setting[s.S_EMIT_WHEN_IDLE] == 0
        and setting[s.S_TIMER] == s.TIMER_OLDEST_REQUEST
    )
    if not plain:
        return None
    return _Batching(server.plan.bucket_batch_max[0], server.plan.bucket_delay_ns[0])


def _shift(units: int) -> int:
    return max((units - 1).bit_length(), 1)


@functools.cache
def _compiled() -> tuple[Callable[..., int], Callable[..., None], Callable[..., int]]:
    """The passes as machine code; sources they depend on are in the key of the cache on disk."""
    callables()
    for function in functions_of(kernel):
        numba.extending.register_jitable(function)
    key = fingerprint()

    def quickly(*arguments: Any) -> int:  # noqa: ANN401 - Numba types them
        if len(key) == 0:
            return -1
        return int(kernel.pass_quickly(*arguments))

    def station(*arguments: Any) -> None:  # noqa: ANN401 - Numba types them
        if len(key) > 0:
            kernel.pass_station(*arguments)

    def batches(*arguments: Any) -> int:  # noqa: ANN401 - Numba types them
        if len(key) == 0:
            return -1
        return int(kernel.form_batches(*arguments))

    jit = numba.njit(cache=True, nogil=True, error_model="numpy")
    return jit(quickly), jit(station), jit(batches)


def run_structural(model: SimModel) -> tuple[Records, StationSpans, Outages] | None:
    """Plays a model without obstacle.

    Parameters
    ----------
    model : SimModel
        ``structural_obstacle`` is ``None`` for it.

    Returns
    -------
    tuple or None
        Records, station spans and (no) outages, as every engine gives them; ``None`` if it turned out on the way that
        an event list is needed after all (a batch that took no time).
    """
    trace = model.trace
    count = len(trace)
    request_id = np.arange(count, dtype=np.int64)
    start_ns = end_ns = trace.scheduled_ns
    wait_ns = np.zeros(count, dtype=np.int64)
    came_ns, came = trace.scheduled_ns, request_id
    none32, none64 = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
    spans = StationSpans(none32, none32, none64, none64, none64, none64, none64)
    enqueued_ns = end_ns
    if model.preprocessing.routes[0]:
        index = model.preprocessing.routes[0][0]
        station = model.preprocessing.stations[index]
        work_ns, finished_ns = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        unit_index = np.empty(count, dtype=np.int32)
        came_ns, came = np.empty(count + 1, dtype=np.int64), np.zeros(count + 1, dtype=np.int32)
        _pass_station(trace.scheduled_ns, station, (work_ns, finished_ns, wait_ns, unit_index, came_ns, came))
        came_ns, came = came_ns[:count], came[:count]
        spans = StationSpans(
            station_index=np.full(count, index, dtype=np.int32),
            unit_index=unit_index,
            request_id=request_id,
            arrived_ns=trace.scheduled_ns,
            start_ns=work_ns,
            released_ns=finished_ns,
            end_ns=finished_ns,
        )
        enqueued_ns = finished_ns
        if station.kind == "hop":
            wait_ns = np.zeros(count, dtype=np.int64)
        else:
            start_ns, end_ns = work_ns, finished_ns
    if model.frontend_ns > 0:
        came_ns = came_ns + model.frontend_ns
        enqueued_ns = enqueued_ns + model.frontend_ns
    batches = _form(model, came_ns, came)
    if batches is None:
        return None
    records = Records(
        request_id=request_id,
        model_index=trace.model_index,
        scheduled_ns=trace.scheduled_ns,
        issued_ns=trace.scheduled_ns,
        preprocess_start_ns=start_ns,
        preprocess_end_ns=end_ns,
        preprocess_wait_ns=wait_ns,
        enqueued_ns=enqueued_ns,
        server_index=np.zeros(count, dtype=np.int32),
        jpeg_bytes=trace.jpeg_bytes,
        audio_ns=trace.audio_ns,
        outcome=np.zeros(count, dtype=np.int32),
        attempts=np.ones(count, dtype=np.int32),
        **batches,
    )
    return records, spans, ()


def _pass_station(scheduled_ns: Array, station: Station, columns: tuple[Array, ...]) -> None:
    """Runs the first pass, the quick way where it can be."""
    units, shift = station.units, _shift(station.units)
    given = (scheduled_ns, station.occupancy_ns, station.launch_ns, units, shift)
    status = kernel.NOT_PLAYED
    if units <= kernel.QUICK_UNITS:
        tree = np.zeros((2, 2 << shift), dtype=np.int64)
        status = _compiled()[0](*given, tree, np.zeros(kernel.SWAPS, dtype=np.int64), *columns)
    if status != kernel.DONE:
        _compiled()[1](*given, np.zeros((3, units + 1), dtype=np.int64), *columns)


def _form(model: SimModel, came_ns: Array, came: Array) -> dict[str, Array] | None:
    """Runs the second pass; returns the columns it makes, or ``None`` where it gave up."""
    trace, server, tables = model.trace, model.servers[0], model.tables[0]
    batching = _batching(server)
    if batching is None:
        return None
    count, units = len(trace), int(trace.batch_units[0])
    shared = model.preprocessing.shared if model.preprocessing.uses_shared[0] else None
    setting = np.zeros(kernel.B_COUNT, dtype=np.int64)
    setting[kernel.B_FULL] = -(-batching.limit // units)
    setting[kernel.B_TAKE] = batching.limit // units
    setting[kernel.B_UNITS] = units
    setting[kernel.B_DELAY_NS] = batching.delay_ns
    setting[kernel.B_BY_AGE] = int(server.plan.setting[s.S_CONSUMER_CHOICE] == s.CHOICE_LONGEST_IDLE)
    setting[kernel.B_TURNAROUND_NS] = model.turnaround_ns
    setting[kernel.B_TURNAROUND_REQUEST_NS] = model.turnaround_request_ns
    setting[kernel.B_RESPONSE_NS] = model.response_ns
    setting[kernel.B_RESPONSE_REQUEST_NS] = model.response_request_ns
    setting[kernel.B_RESPONSE_NEXT_NS] = model.response_next_ns
    setting[kernel.B_SLOWDOWN_PPM] = tables.slowdown_ppm
    setting[kernel.B_SHARED] = int(shared is not None)
    setting[kernel.B_LENGTHS] = int(tables.execution_ns.shape[1] > 1)
    consumers = np.array([server.consumer_rank, server.consumer_slice, [0] * len(server.consumer_rank)], dtype=np.int64)
    slices, gpu_slice = _slices(model)
    reals = np.ones((2, len(model.slice_kind)))
    if shared is not None:
        slices[4] = shared.launch_ns
        reals[0] = shared.slice_factor
        reals[1, 0] = shared.execution_slowdown
    int64 = {name: np.empty(count, dtype=np.int64) for name in ("execution_start_ns", "execution_end_ns", "batch_id")}
    int32 = {name: np.empty(count, dtype=np.int32) for name in ("slice_index", "batch_size")}
    nothing = np.zeros(1, dtype=np.int64)
    answers_later = model.response_ns + model.response_request_ns + model.response_next_ns > 0
    completed_ns = np.empty(count, dtype=np.int64) if answers_later else nothing
    preprocess_ns = np.zeros(count, dtype=np.int64)
    status = _compiled()[2](
        came_ns, came, setting, consumers, slices, reals, gpu_slice, tables.execution_ns,
        np.array(model.slice_kind, dtype=np.int64), trace.execution_factor, model.length_index,
        shared.item_ns if shared is not None else nothing,
        int64["execution_start_ns"], int64["execution_end_ns"], completed_ns, preprocess_ns,
        int32["slice_index"], int64["batch_id"], int32["batch_size"],
    )  # fmt: skip
    if status == kernel.ZERO_SERVICE:
        return None
    return {
        **int64,
        **int32,
        "dispatched_ns": int64["execution_start_ns"],
        "slice_preprocess_ns": preprocess_ns,
        "completed_ns": completed_ns if answers_later else int64["execution_end_ns"],
        "batch_units": int32["batch_size"] if units == 1 else int32["batch_size"] * np.int32(units),
    }


def _slices(model: SimModel) -> tuple[Array, Array]:
    """Rows GPU, first and count of the GPU's slices (by GPU), stream free time, launch time; and the GPUs' slices."""
    gpus = sorted(set(model.slice_gpu))
    members = [[i for i, gpu in enumerate(model.slice_gpu) if gpu == mine] for mine in gpus]
    slices = np.zeros((5, len(model.slice_gpu)), dtype=np.int64)
    slices[0] = [gpus.index(gpu) for gpu in model.slice_gpu]
    counts = np.array([len(group) for group in members], dtype=np.int64)
    slices[1, : len(gpus)] = np.cumsum(counts) - counts
    slices[2, : len(gpus)] = counts
    return slices, np.array([index for group in members for index in group], dtype=np.int64)
