"""Where a scenario saturates: each stage's capacity in requests per second, before anything is simulated.

Mean-value arithmetic on the drawn trace: no queueing, no randomness. The capacity of the slices is an upper bound
(full batches of inputs of equal length), so a scenario called overloaded really has no steady state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from preba.serving import ServerModel
from preba.units import NS_PER_S
from sim.model import SimModel

NEAR_SATURATION = 0.95
"""From this load on a warning is given. A choice: an M/M/1 queue forgets its past in 1 / (1 - load)**2 services."""


@dataclass(frozen=True)
class StageLoad:
    """Offered load against capacity at one stage.

    Attributes
    ----------
    stage : str
        Readable name of the stage.
    offered_rps : float
        Requests per second that reach it.
    capacity_rps : float
        Requests per second it can serve at most.
    """

    stage: str
    offered_rps: float
    capacity_rps: float

    @property
    def load(self) -> float:
        """Offered over capacity."""
        return self.offered_rps / self.capacity_rps if self.capacity_rps > 0 else float("inf")


def stage_loads(
    model: SimModel, model_names: Sequence[str], duration_ns: int, long_run_rps: Sequence[float | None] = ()
) -> list[StageLoad]:
    """Loads of every stage of an open-loop scenario, the heaviest first.

    Parameters
    ----------
    model : SimModel
    model_names : sequence of str
    duration_ns : int
        Span over which the trace's requests arrive.
    long_run_rps : sequence of (float or None), optional
        Per model: the rate of its arrival process in the long run, where it has one. What a short run happened to
        draw decides neither whether there is a steady state nor where it saturates.

    Returns
    -------
    list of StageLoad
        Without what closed loops drive, which cannot overload itself: their slices, and stations they visit.
    """
    count = len(model.trace)
    if count == 0 or duration_ns <= 0:
        return []
    rates = _offered_rps(model, duration_ns, long_run_rps)
    loads = _station_loads(model, rates) + _slice_loads(model, model_names, rates)
    return sorted(loads, key=lambda stage: -stage.load)


def _offered_rps(model: SimModel, duration_ns: int, long_run_rps: Sequence[float | None]) -> list[float]:
    """Requests per second of each model: of its process if known, else as drawn."""
    drawn = np.bincount(model.trace.model_index, minlength=len(model.model_servers)) * NS_PER_S / duration_ns
    known = [*long_run_rps, *[None] * (len(drawn) - len(long_run_rps))]
    return [float(rate) if given is None else given for rate, given in zip(drawn, known, strict=True)]


def _station_loads(model: SimModel, rates: Sequence[float]) -> list[StageLoad]:
    loads: list[StageLoad] = []
    owner = model.trace.model_index
    for index, station in enumerate(model.preprocessing.stations):
        visiting = np.array([index in route for route in model.preprocessing.routes])[owner]
        visits = int(visiting.sum())
        closed = any(model.outstanding[m] and index in route for m, route in enumerate(model.preprocessing.routes))
        if visits == 0 or closed:
            continue
        work_ns = float(station.occupancy_ns[visiting].mean()) + station.launch_ns / station.batch_max
        loads.append(
            StageLoad(
                stage=f"preprocessing ({station.name})",
                offered_rps=sum(rates[m] for m, route in enumerate(model.preprocessing.routes) if index in route),
                capacity_rps=station.units * NS_PER_S / work_ns if work_ns > 0 else float("inf"),
            )
        )
    return loads


def _slice_loads(model: SimModel, model_names: Sequence[str], rates: Sequence[float]) -> list[StageLoad]:
    loads: list[StageLoad] = []
    for model_index, servers in enumerate(model.model_servers):
        mine = np.flatnonzero(model.trace.model_index == model_index)
        if len(mine) == 0 or model.outstanding[model_index]:
            continue
        mix = _mix(model, model_index, slice(None) if len(mine) == len(model.trace) else mine)
        shares = _busy_neighbour_shares(model, [model.servers[server] for server in servers])
        capacity = sum(_server_capacity_rps(model, model.servers[server], mix, shares) for server in servers)
        loads.append(
            StageLoad(
                stage=f"slices of {model_names[model_index]}",
                offered_rps=rates[model_index],
                capacity_rps=capacity,
            )
        )
    return loads


@dataclass(frozen=True)
class _Mix:
    """The requests of one model by all that decides their cost: which pairs of length and bucket there are.

    Attributes
    ----------
    length, bucket : int64[pairs]
    pair_index : int64[requests]
        Which pair each request has.
    units : int
        Batch units of a request.
    execution_factor : float
        Mean over the requests.
    item_ns : float
        Mean work of preprocessing a request on a slice that does both, else 0.
    best_ns : dict
        Mean cost of a unit found so far, by what it depends on; slices of one kind share it.
    """

    length: NDArray[np.int64]
    bucket: NDArray[np.int64]
    pair_index: NDArray[np.int64]
    units: int
    execution_factor: float
    item_ns: float
    best_ns: dict[tuple[object, ...], float] = field(default_factory=dict)


def _mix(model: SimModel, model_index: int, requests: NDArray[np.intp] | slice) -> _Mix:
    length, bucket = model.length_index[requests], model.bucket[requests]
    width = int(bucket.max()) + 1
    code = length * width + bucket
    present = np.flatnonzero(np.bincount(code))
    place = np.zeros(int(present[-1]) + 1, dtype=np.int64)
    place[present] = np.arange(len(present))
    shared = model.preprocessing.shared
    uses_shared = shared is not None and model.preprocessing.uses_shared[model_index]
    return _Mix(
        length=present // width,
        bucket=present % width,
        pair_index=place[code],
        units=int(model.trace.batch_units[requests][0]),
        execution_factor=float(model.trace.execution_factor[requests].mean()),
        item_ns=float(shared.item_ns[requests].mean()) if shared is not None and uses_shared else 0.0,
    )


def _server_capacity_rps(model: SimModel, server: ServerModel, mix: _Mix, shares: Mapping[int, float]) -> float:
    """Sum over the server's slices of their best rate on this mix of inputs."""
    tables = model.tables[server.model_index]
    bucket_max = np.array(server.plan.bucket_batch_max)
    limits = bucket_max[np.minimum(mix.bucket, len(bucket_max) - 1)]
    total = 0.0
    for slice_index in dict.fromkeys(server.consumer_slice):
        consumer = server.consumer_slice.index(slice_index)
        batch_max = server.consumer_batch_max[consumer]
        kind = model.slice_kind[slice_index]
        cap = np.minimum(limits, batch_max)
        key = (kind, batch_max, server.plan.bucket_batch_max)
        if key not in mix.best_ns:
            mix.best_ns[key] = _best_ns(tables.execution_ns[kind], mix, cap)
        work_ns = mix.best_ns[key] * mix.units * mix.execution_factor
        work_ns *= 1.0 + tables.slowdown_ppm / 1_000_000 * shares[slice_index]
        shared = model.preprocessing.shared
        if shared is not None and model.preprocessing.uses_shared[server.model_index]:
            work_ns *= shared.execution_slowdown
            item_ns = mix.item_ns * float(shared.slice_factor[slice_index])
            work_ns += item_ns + float(shared.launch_ns[slice_index]) / int(cap.max())
        if server.credits == 1:  # with several batches in flight the turn-around overlaps execution
            between_ns = model.dispatch_ns + model.turnaround_ns
            work_ns += between_ns / max(int(cap.max()) // mix.units, 1) + model.turnaround_request_ns
        total += NS_PER_S / work_ns
    return total


def _best_ns(rows_ns: NDArray[np.int64], mix: _Mix, cap: NDArray[np.int64]) -> float:
    """Mean over the requests of what a unit costs in the cheapest batch that an input of its kind may travel in."""
    best = np.full(len(cap), np.inf)
    for batch in range(mix.units, int(cap.max()) + 1, mix.units):
        size = np.minimum(batch, cap)
        best = np.minimum(best, rows_ns[mix.length, size] / size)
    return float(best[mix.pair_index].mean())


def _busy_neighbour_shares(model: SimModel, servers: Sequence[ServerModel]) -> dict[int, float]:
    """Per slice of a model: of the other slices of the GPU, those surely busy when the model saturates: its own."""
    own = {slice_index for server in servers for slice_index in server.consumer_slice}
    total = Counter(model.slice_gpu)
    mine = Counter(model.slice_gpu[slice_index] for slice_index in own)
    shares: dict[int, float] = {}
    for slice_index in own:
        gpu = model.slice_gpu[slice_index]
        shares[slice_index] = (mine[gpu] - 1) / (total[gpu] - 1) if total[gpu] > 1 else 0.0
    return shares


def overload_warnings(loads: Sequence[StageLoad]) -> list[str]:
    """What to tell the user about stages at or beyond their capacity; empty when there is a steady state.

    Parameters
    ----------
    loads : sequence of StageLoad
        As ``stage_loads`` returns them, the heaviest first.

    Returns
    -------
    list of str
    """
    if not loads or loads[0].load < NEAR_SATURATION:
        return []
    worst = loads[0]
    facts = f"{worst.stage}: {worst.offered_rps:,.0f} requests/s offered, {worst.capacity_rps:,.0f}/s capacity"
    if worst.load < 1.0:
        return [f"near saturation ({worst.load:.0%}): the tail depends on how long the run is. Bottleneck is {facts}"]
    others = [s for s in loads[1:] if s.load >= 1.0]
    also = "".join(f"; also {s.stage} ({s.capacity_rps:,.0f}/s)" for s in others)
    text = f"overloaded ({worst.load:.2f} x capacity): no steady state exists, queues and latencies grow with the run. "
    return [text + f"Bottleneck is {facts}{also}"]
