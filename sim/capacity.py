"""Where a scenario saturates: each stage's capacity in requests per second, before anything is simulated.

Mean-value arithmetic on the drawn trace: no queueing, no randomness. The capacity of the slices is an upper bound
(full batches of inputs of equal length), so a scenario called overloaded really has no steady state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preba.units import NS_PER_S
from sim.model import ServerModel, SimModel

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
        capacity = sum(_server_capacity_rps(model, model.servers[server], mine) for server in servers)
        loads.append(
            StageLoad(
                stage=f"slices of {model_names[model_index]}",
                offered_rps=rates[model_index],
                capacity_rps=capacity,
            )
        )
    return loads


def _server_capacity_rps(model: SimModel, server: ServerModel, requests: np.ndarray) -> float:
    """Sum over the server's slices of their best rate on this mix of inputs."""
    tables = model.tables[server.model_index]
    lengths = model.length_index[requests]
    bucket_max = np.array(server.plan.bucket_batch_max)
    limits = bucket_max[np.minimum(model.bucket[requests], len(bucket_max) - 1)]
    units = int(model.trace.batch_units[requests[0]])
    total = 0.0
    for slice_index in dict.fromkeys(server.consumer_slice):
        consumer = server.consumer_slice.index(slice_index)
        rows = tables.execution_ns[model.slice_kind[slice_index]]
        factor = float(model.trace.execution_factor[requests].mean())
        cap = np.minimum(limits, server.consumer_batch_max[consumer])
        best = np.full(len(requests), np.inf)
        for batch in range(units, int(cap.max()) + 1, units):
            # The cheapest batch size an input of this length may travel in.
            cost = rows[lengths, np.minimum(batch, cap)] / np.minimum(batch, cap)
            best = np.minimum(best, cost)
        work_ns = float(best.mean()) * units * factor
        work_ns *= 1.0 + tables.slowdown_ppm / 1_000_000 * _busy_neighbour_share(model, server, slice_index)
        shared = model.preprocessing.shared
        if shared is not None and model.preprocessing.uses_shared[server.model_index]:
            work_ns *= shared.execution_slowdown
        work_ns += _shared_work_ns(model, server.model_index, slice_index, requests, int(cap.max()))
        if server.credits == 1:  # with several batches in flight the turn-around overlaps execution
            work_ns += model.turnaround_ns / max(int(cap.max()) // units, 1)
        total += NS_PER_S / work_ns
    return total


def _busy_neighbour_share(model: SimModel, server: ServerModel, slice_index: int) -> float:
    """Of the other slices of the GPU, those that are surely busy when this model saturates: its own."""
    gpu = model.slice_gpu[slice_index]
    own = {s for other in model.servers if other.model_index == server.model_index for s in other.consumer_slice}
    others = [s for s, its_gpu in enumerate(model.slice_gpu) if its_gpu == gpu and s != slice_index]
    return sum(1 for s in others if s in own) / len(others) if others else 0.0


def _shared_work_ns(model: SimModel, model_index: int, slice_index: int, requests: np.ndarray, batch: int) -> float:
    shared = model.preprocessing.shared
    if shared is None or not model.preprocessing.uses_shared[model_index]:
        return 0.0
    item_ns = float(shared.item_ns[requests].mean()) * float(shared.slice_factor[slice_index])
    return item_ns + float(shared.launch_ns[slice_index]) / batch


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
