"""The compiled general engine: plays a ``SimModel`` exactly as the reference does, as machine code.

``run_general`` lays the model out in memory (``world``), plays events (``loop``) a few hundred thousand at a time so
that progress can be shown and the run interrupted, and reads the results back. The batchers are compiled as they
stand (law 1): this file only tells Numba that it may.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numba

from preba import balancing
from preba.batching import (
    brain,
    bucketed,
    late,
    queues,
    state,
    triton,
    triton_layout,
    triton_payloads,
    triton_rate,
    triton_scan,
)
from preba.batching.state import KIND_TRITON, S_KIND
from preba.records import Records, StationSpans
from sim import model as sim_model
from sim import order, service
from sim.compiled import door, failures, heap, jit, layout, loop, memory, requests
from sim.compiled.jit import Callables, functions_of
from sim.compiled.layout import K_FINISHED, STATUS_DONE, STATUS_ROWS_FULL
from sim.compiled.world import Outages, RunMemory
from sim.model import SimModel

Progress = Callable[[int, int], None]

COMPILED: tuple[ModuleType, ...] = (
    order, service, balancing,
    queues, late, bucketed, triton_rate, triton_scan, triton_payloads, triton, brain,
    heap, door, requests, failures, loop,
)  # fmt: skip
"""Modules whose plain functions are compiled as they stand."""

TRITON: tuple[ModuleType, ...] = (triton_rate, triton_scan, triton_payloads, triton)
"""Those of them that only Triton's batcher needs."""

READ: tuple[ModuleType, ...] = (*COMPILED, state, triton_layout, jit, layout, memory, sim_model)
"""Modules whose text decides what is compiled; a change in any of them makes compiled code on disk stale."""

EVENTS_PER_CALL = 1 << 19
"""Events played between two progress reports."""


@functools.cache
def fingerprint() -> str:
    """Digest of every source that compiled code depends on; part of the key of Numba's on-disk cache."""
    digest = hashlib.sha256()
    for module in READ:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Variant:
    """What a run needs of the engine; the rest is not compiled, which is what makes a first run quick.

    Attributes
    ----------
    triton : bool
        Some batcher is Triton's.
    failures : bool
        Slices fail or return.
    """

    triton: bool
    failures: bool


def variant_of(model: SimModel) -> Variant:
    """The smallest variant that can run a model."""
    return Variant(
        triton=any(server.plan.setting[S_KIND] == KIND_TRITON for server in model.servers),
        failures=len(model.slice_events) > 0,
    )


@functools.cache
def callables() -> Callables:
    """Every function that compiled code may call, made callable once."""
    found = Callables({"Batcher": layout.BATCHER})
    for module in COMPILED:
        for function in functions_of(module):
            found.add(function)
    return found


@functools.cache
def entry(variant: Variant) -> Callable[[int, int, int], int]:
    """The compiled entry point: (address of a world, 1 on the first call, event limit) to a ``STATUS_*``.

    Numba's cache on disk notices a change in this file only; the key, a closure variable, stands for the others.
    """
    left_out = set() if variant.triton else {f for m in TRITON for f in functions_of(m)}
    if not variant.failures:
        left_out |= {failures.slice_fails, failures.slice_returns}
    callables().left_out = frozenset(left_out)
    key = f"{variant} {fingerprint()}"

    def run(address: int, first: int, limit: int) -> int:
        if len(key) == 0:
            return -1
        world = door.world_at(address)
        if first == 1:
            loop.begin(world)
        return loop.play(world, limit)

    compiled: Callable[[int, int, int], int] = numba.njit("int64(int64, int64, int64)", cache=True, nogil=True)(run)
    return compiled


def run_general(model: SimModel, progress: Progress | None = None) -> tuple[Records, StationSpans, Outages]:
    """Runs the compiled general engine.

    Parameters
    ----------
    model : SimModel
    progress : callable, optional
        Called now and then with (requests finished, requests in total).

    Returns
    -------
    tuple
        Records, station spans, and outages as (slice, from_ns, to_ns): equal to the reference engine's.
    """
    run_memory = RunMemory(model)
    run = entry(variant_of(model))
    total = len(model.trace)
    status = run(run_memory.address, 1, EVENTS_PER_CALL)
    while status != STATUS_DONE:
        if status == STATUS_ROWS_FULL:
            run_memory.grow(2 * len(run_memory.rows))
        if progress is not None:
            progress(int(run_memory.clock[K_FINISHED]), total)
        status = run(run_memory.address, 0, EVENTS_PER_CALL)
    return run_memory.records(), run_memory.spans(), run_memory.outages()
