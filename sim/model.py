"""What an engine runs on: the scenario and its trace reduced to integers, tables and indices. No events here.

Both engines read this one structure, so anything that is rounded, looked up or decided before the run is decided
here, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accel.stations import Preprocessing, build_preprocessing
from preba.balancing import BALANCER_CODES
from preba.batching.triton_config import TritonBatcher
from preba.errors import ScenarioError
from preba.scenario.resolve import ResolvedModel, ResolvedScenario
from preba.scenario.schema import SliceFails, SliceReturns
from preba.serving import ServerModel, backend_name, plan_servers
from preba.trace import Trace
from preba.units import ns_from_ms, ns_from_s, ns_from_us
from sim.service import BACKEND_CODES

Int64 = NDArray[np.int64]

LENGTH_GRID_NS = 100_000_000
"""Batches of audio are timed at the length of their longest input, rounded up to 0.1 s."""

SLICE_FAILS = 0
SLICE_RETURNS = 1


@dataclass(frozen=True)
class ModelTables:
    """One model's execution times and how its backend frees the slice.

    Attributes
    ----------
    execution_ns : int64[slice kind, length, batch + 1]
        Profile times; batch 0 is unused.
    slowdown_ppm : int
        Parts per million slower with all other slices of the GPU busy.
    backend : int
        ``sim.service.BACKEND_*``.
    consumed_permille : int
        Share of the execution after which the input counts as consumed, in 1/1000; -1 if ``consumed_ns`` holds.
    consumed_ns : int
        Fixed time after which the input is consumed.
    """

    execution_ns: Int64
    slowdown_ppm: int
    backend: int
    consumed_permille: int
    consumed_ns: int


@dataclass(frozen=True)
class SimModel:
    """A scenario ready to run.

    Attributes
    ----------
    trace : Trace
    preprocessing : Preprocessing
    tables : tuple of ModelTables
        Per model.
    servers : tuple of ServerModel
    model_servers : tuple of tuple of int
        Per model: its servers; more than one are chosen among by the balancer.
    balancer : int
        ``preba.balancing`` code.
    slice_kind, slice_gpu : tuple of int
        Per slice: row of the execution table, and which GPU.
    length_index, bucket : int64[n]
        Per request: row of the length axis, and batching bucket.
    slice_events : tuple of (at_ns, SLICE_FAILS | SLICE_RETURNS, slice)
        In scenario order.
    outstanding : tuple of int
        Per model: requests kept outstanding by a closed loop; 0 = open loop.
    refusal_backoff_ns : tuple of int
    retry : bool
        Whether requests of a lost slice are tried once more.
    ingress_ns : tuple of int
        Per model: from its clients to its first preprocessing unit; 0 without preprocessing.
    frontend_ns, timer_ns, dispatch_ns, turnaround_ns, turnaround_request_ns : int
    response_ns, response_request_ns, response_next_ns : int
        Overheads of the serving software.
    overheads_vary : bool
        They are multiplied by the trace's ``overhead_factor``.
    """

    trace: Trace
    preprocessing: Preprocessing
    tables: tuple[ModelTables, ...]
    servers: tuple[ServerModel, ...]
    model_servers: tuple[tuple[int, ...], ...]
    balancer: int
    slice_kind: tuple[int, ...]
    slice_gpu: tuple[int, ...]
    length_index: Int64
    bucket: Int64
    slice_events: tuple[tuple[int, int, int], ...]
    outstanding: tuple[int, ...]
    refusal_backoff_ns: tuple[int, ...]
    retry: bool
    ingress_ns: tuple[int, ...]
    frontend_ns: int
    timer_ns: int
    dispatch_ns: int
    turnaround_ns: int
    turnaround_request_ns: int
    response_ns: int
    response_request_ns: int
    response_next_ns: int
    overheads_vary: bool


def build_model(resolved: ResolvedScenario, trace: Trace, *, audio_lengths: Sequence[Int64] | None = None) -> SimModel:
    """Reduces a resolved scenario and a trace to what an engine runs on.

    Parameters
    ----------
    resolved : ResolvedScenario
    trace : Trace
    audio_lengths : sequence of int64[k], optional
        Per model, in ns: lengths that stand for all that will come, where the trace is only a run's first piece.

    Raises
    ------
    ScenarioError, ProfileRangeError
        A batcher or an input goes beyond what a profile covers.
    """
    scenario = resolved.scenario
    kinds = tuple(dict.fromkeys(unit.profile for unit in resolved.slices))
    lengths = audio_lengths
    if lengths is None:
        lengths = [trace.audio_ns[trace.model_index == index] for index in range(len(scenario.models))]
    longest_ns = [int(mine.max(initial=0)) for mine in lengths]
    servers: list[ServerModel] = []
    model_servers: list[tuple[int, ...]] = []
    tables: list[ModelTables] = []
    for model in resolved.models:
        first = len(servers)
        servers.extend(plan_servers(resolved, model, longest_ns[model.index]))
        model_servers.append(tuple(range(first, len(servers))))
        batch_max = max(server.plan.batch_max for server in servers[first:])
        _check_units(model, servers[first:])
        tables.append(_tables(resolved, model, kinds, lengths[model.index], batch_max))
    overheads = scenario.server.overheads
    preprocessing = _preprocessing(resolved, trace)
    works = [any(preprocessing.stations[index].kind != "hop" for index in route) for route in preprocessing.routes]
    return SimModel(
        trace=trace,
        preprocessing=preprocessing,
        tables=tuple(tables),
        servers=tuple(servers),
        model_servers=tuple(model_servers),
        balancer=BALANCER_CODES[scenario.server.balancer],
        slice_kind=tuple(kinds.index(unit.profile) for unit in resolved.slices),
        slice_gpu=tuple(unit.gpu_index for unit in resolved.slices),
        length_index=_length_index(resolved, trace),
        bucket=_buckets(trace, servers, model_servers),
        slice_events=_slice_events(resolved),
        outstanding=tuple(count or 0 for count in trace.outstanding),
        refusal_backoff_ns=tuple(trace.refusal_backoff_ns),
        retry=scenario.server.on_slice_loss == "retry",
        ingress_ns=tuple(ns_from_us(overheads.ingress_us) if work else 0 for work in works),
        frontend_ns=ns_from_us(overheads.frontend_us),
        timer_ns=ns_from_us(overheads.timer_us),
        dispatch_ns=ns_from_us(overheads.dispatch_us),
        turnaround_ns=ns_from_us(overheads.turnaround_us),
        turnaround_request_ns=ns_from_us(overheads.turnaround_request_us),
        response_ns=ns_from_us(overheads.response_us),
        response_request_ns=ns_from_us(overheads.response_request_us),
        response_next_ns=ns_from_us(overheads.response_next_us),
        overheads_vary=overheads.jitters() is not None,
    )


@dataclass(frozen=True)
class TracePieces:
    """What of a ``SimModel`` belongs to its requests: for a further piece of a trace.

    Attributes
    ----------
    preprocessing : Preprocessing
    length_index, bucket : int64[n]
    """

    preprocessing: Preprocessing
    length_index: Int64
    bucket: Int64


def build_pieces(resolved: ResolvedScenario, trace: Trace, model: SimModel) -> TracePieces:
    """Reduces a further piece of a trace whose first piece has been made a model of.

    Parameters
    ----------
    resolved : ResolvedScenario
    trace : Trace
    model : SimModel
        Built with ``audio_lengths`` that cover this piece, too.
    """
    return TracePieces(
        preprocessing=_preprocessing(resolved, trace),
        length_index=_length_index(resolved, trace),
        bucket=_buckets(trace, model.servers, model.model_servers),
    )


def _preprocessing(resolved: ResolvedScenario, trace: Trace) -> Preprocessing:
    return build_preprocessing(
        resolved.scenario.preprocessing,
        trace,
        modalities=[model.profile.modality for model in resolved.models],
        slices=resolved.slices,
        folder=resolved.folder,
    )


def _check_units(model: ResolvedModel, servers: Sequence[ServerModel]) -> None:
    """A request must fit the smallest batch that any bucket forms and any slice takes: it is never split."""
    units = model.config.batch_units
    limit = min(min((*server.plan.bucket_batch_max, *server.consumer_batch_max)) for server in servers)
    if units > limit:
        raise ScenarioError(
            f"scenario.models[{model.index}].batch_units: a request of {units} units does not fit every batch it may "
            f"travel in; the smallest limit is {limit}"
        )


def backend_of(model: ResolvedModel) -> int:
    """The backend code of a model."""
    return BACKEND_CODES[backend_name(model)]


def _tables(
    resolved: ResolvedScenario, model: ResolvedModel, kinds: Sequence[str], lengths_ns: Int64, batch_max: int
) -> ModelTables:
    profile = model.execution
    used = {resolved.slices[index].profile for index in model.slice_indices}
    audio = profile.modality == "audio" and len(lengths_ns) > 0
    rows = np.unique(-(-lengths_ns // LENGTH_GRID_NS)) if audio else np.zeros(1, dtype=np.int64)
    longest_ns = int(lengths_ns.max()) if audio else 0
    edges = [min(int(row) * LENGTH_GRID_NS, longest_ns) for row in rows] if audio else None
    tables = np.zeros((len(kinds), int(rows.max()) + 1, batch_max + 1), dtype=np.int64)
    for place, kind in enumerate(kinds):
        if kind in used and (audio or profile.modality != "audio"):  # no request, no length to look up
            _check_covers(model, kind, edges, batch_max)
            tables[place, rows] = profile.table_ns([kind], edges, batch_max, absent_ns=0)[0]
    config = model.config.batcher
    consumed_ns, permille = 0, round(profile.backend.input_consumed_fraction * 1000)
    if isinstance(config, TritonBatcher) and config.input_consumed_ms is not None:
        consumed_ns, permille = ns_from_ms(config.input_consumed_ms), -1
    return ModelTables(
        execution_ns=tables,
        slowdown_ppm=profile.interference.fraction_ppm if profile.interference is not None else 0,
        backend=backend_of(model),
        consumed_permille=permille,
        consumed_ns=consumed_ns,
    )


def _check_covers(model: ResolvedModel, kind: str, edges: Sequence[int] | None, batch_max: int) -> None:
    """An execution profile must know every batch that is planned with the other; what it lacks would take no time."""
    if model.execution is model.profile:
        return
    for edge in edges or (None,):
        needed = min(batch_max, model.profile.batch_max(kind, edge))
        known = model.execution.batch_max(kind, edge)
        if known < needed:
            raise ScenarioError(
                f"scenario.models[{model.index}].execution_profile: {model.execution.name!r} knows batches up to "
                f"{known} on {kind}, batches of {needed} may be formed"
            )


def _length_index(resolved: ResolvedScenario, trace: Trace) -> Int64:
    audio = np.array([model.profile.modality == "audio" for model in resolved.models])
    index = -(-trace.audio_ns // LENGTH_GRID_NS)
    return np.where(audio[trace.model_index], index, 0).astype(np.int64)


def _buckets(trace: Trace, servers: Sequence[ServerModel], model_servers: Sequence[Sequence[int]]) -> Int64:
    bucket = np.zeros(len(trace), dtype=np.int64)
    for model_index, indices in enumerate(model_servers):
        mine = trace.model_index == model_index
        bucket[mine] = servers[indices[0]].plan.bucket_of(trace.audio_ns[mine])
    return bucket


def _slice_events(resolved: ResolvedScenario) -> tuple[tuple[int, int, int], ...]:
    events: list[tuple[int, int, int]] = []
    for position, event in enumerate(resolved.scenario.events):
        if isinstance(event, SliceFails | SliceReturns):
            if event.slice >= len(resolved.slices):
                raise ScenarioError(
                    f"scenario.events[{position}].slice: there is no slice {event.slice}; "
                    f"the partition has slices 0..{len(resolved.slices) - 1}"
                )
            if resolved.slices[event.slice].role == "preprocessing":
                raise ScenarioError(
                    f"scenario.events[{position}].slice: slice {event.slice} preprocesses; only slices that serve a "
                    "model can fail"
                )
            code = SLICE_FAILS if isinstance(event, SliceFails) else SLICE_RETURNS
            events.append((ns_from_s(event.at_s), code, event.slice))
    return tuple(events)
