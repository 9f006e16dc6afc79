"""Preprocessing as an engine reads it: stations with integer times per request, and which model visits which.

A station is a FIFO queue in front of equal units. How a config becomes stations is in accel.stations; what
work costs is in accel.work; batching decisions, clocks and events live elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preba.strict import Provenance
from preba.units import NS_PER_S

__all__ = ["Preprocessing", "SlicePreprocessing", "Station", "StationCapacity", "station_capacity_rps"]

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Float64 = NDArray[np.float64]

KINDS = ("cpu", "dpu", "hop", "dali")


@dataclass(frozen=True)
class Station:
    """A first-come first-served queue in front of equal units.

    An idle unit takes ``min(waiting, batch_max)`` requests at once, without waiting for more. It is taken for
    ``launch_ns`` plus their ``occupancy_ns``; requests of a batch leave together when it ends, a single
    request ``launch_ns + latency_ns`` after its start. For requests that did not wait both take ``rested_ns`` longer.

    Attributes
    ----------
    name : str
    kind : str
        ``cpu``, ``dpu``, ``hop`` or ``dali``.
    units : int
        Cores, DPU units, links or slices.
    usable_fraction : float
        Share of a busy unit that really works on preprocessing; ``occupancy_ns`` already allows for it.
    batch_max : int
        1: one request per unit at a time; more: batches.
    launch_ns : int
        Once per batch; 0 for a pool.
    occupancy_ns : int64[n]
        Per request of the trace: how long it takes the unit; 0 for requests that do not visit.
    latency_ns : int64[n]
        Per request: from its start until it leaves; more than the occupancy in a pipelined unit. For batches
        equal to the occupancy.
    slice_indices : tuple of int
        The slices that are its units (DALI on slices of its own), else empty.
    rested_ns : int
        So much longer a unit takes that had nothing to do before.
    """

    name: str
    kind: str
    units: int
    usable_fraction: float
    batch_max: int
    launch_ns: int
    occupancy_ns: Int64
    latency_ns: Int64
    slice_indices: tuple[int, ...] = ()
    rested_ns: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.units < 1 or self.batch_max < 1 or self.launch_ns < 0:
            raise ValueError(f"{self.name}: units and batch_max must be >= 1 and launch_ns >= 0")
        if not 0.0 < self.usable_fraction <= 1.0:
            raise ValueError(f"{self.name}: usable_fraction must be in (0, 1], got {self.usable_fraction}")
        if self.occupancy_ns.shape != self.latency_ns.shape:
            raise ValueError(f"{self.name}: occupancy and latency differ in length")
        if len(self.occupancy_ns) and (
            int(self.occupancy_ns.min()) < 0 or bool(np.any(self.latency_ns < self.occupancy_ns))
        ):
            raise ValueError(f"{self.name}: times must be >= 0 and no latency below its occupancy")
        if self.batch_max > 1 and not np.array_equal(self.occupancy_ns, self.latency_ns):
            raise ValueError(f"{self.name}: a batch station cannot overlap its requests")


@dataclass(frozen=True)
class SlicePreprocessing:
    """Preprocessing in the model's own slices: each batch takes its slice for launch + items, then executes.

    Attributes
    ----------
    launch_ns : int64[slices]
        Once per batch.
    item_ns : int64[n]
        Per request: work on one GPC without JPEG engines; 0 for models that need none.
    slice_factor : float64[slices]
        Time on that slice over ``item_ns``.
    execution_slowdown : float
        Factor >= 1 on the execution itself, because both share the slice.
    """

    launch_ns: Int64
    item_ns: Int64
    slice_factor: Float64
    execution_slowdown: float


@dataclass(frozen=True)
class Preprocessing:
    """Everything that happens to requests before (or with) batching.

    Attributes
    ----------
    stations : tuple of Station
    routes : tuple of tuple of int
        Per model: the stations its requests visit, in order; empty where there is nothing to do.
    shared : SlicePreprocessing or None
        Preprocessing on the model's own slices.
    uses_shared : tuple of bool
        Per model: whether ``shared`` applies to it.
    provenance : tuple of (what, Provenance)
        Every number that went in.
    """

    stations: tuple[Station, ...]
    routes: tuple[tuple[int, ...], ...]
    shared: SlicePreprocessing | None
    uses_shared: tuple[bool, ...]
    provenance: tuple[tuple[str, Provenance], ...] = ()


@dataclass(frozen=True)
class StationCapacity:
    """What a station can do at most.

    Attributes
    ----------
    name : str
    visits_rps : float
        Requests per second that it can pass.
    requests_rps : float
        Requests per second, over all models, at which it saturates; larger than ``visits_rps`` where only
        some of the requests visit it, infinite where none does.
    """

    name: str
    visits_rps: float
    requests_rps: float


def station_capacity_rps(preprocessing: Preprocessing, model_index: Int32 | Int64) -> tuple[StationCapacity, ...]:
    """Analytic capacity of each station for the mean work of a trace: units over mean time taken per request.

    Parameters
    ----------
    preprocessing : Preprocessing
    model_index : int[n]
        Model of each request of the trace that the stations were built for.

    Returns
    -------
    tuple of StationCapacity
        One per station, in order. Batch stations are counted with full batches.
    """
    found: list[StationCapacity] = []
    for index, station in enumerate(preprocessing.stations):
        visits = np.array([index in route for route in preprocessing.routes], dtype=bool)[model_index]
        count = int(visits.sum())
        if count == 0:
            found.append(StationCapacity(station.name, float("inf"), float("inf")))
            continue
        taken_ns = float(station.occupancy_ns[visits].mean()) + station.launch_ns / station.batch_max
        rate = station.units * NS_PER_S / taken_ns if taken_ns > 0 else float("inf")
        found.append(StationCapacity(station.name, rate, rate * len(visits) / count))
    return tuple(found)
