"""The compiled general engine: plays a ``SimModel`` exactly as the reference does, as machine code.

``run_general`` lays the model out in memory (``world``), plays events (``loop``) a few hundred thousand at a time so
that progress can be shown and the run interrupted, and reads the results back. The batchers are compiled as they
stand (law 1): this file only tells Numba that it may.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
from numba.extending import register_jitable

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
from preba.batching.plugin import Plugin
from preba.batching.state import KIND_BUCKET, KIND_LATE, KIND_TRITON, S_KIND
from preba.batching.triton_layout import S_RATE_LIMITED
from preba.errors import FormatError
from preba.records import Records, StationSpans
from preba.report import stream
from preba.statistics import histogram
from sim import model as sim_model
from sim import order, service
from sim.compiled import door, failures, heap, jit, layout, loop, memory, requests, structural_kernel, tally
from sim.compiled.jit import Callables, functions_of
from sim.compiled.layout import K_FAULT, K_FINISHED, STATUS_DONE, STATUS_FAULT, STATUS_ROWS_FULL
from sim.compiled.world import Outages, RunMemory, plugins_of
from sim.model import SimModel

Progress = Callable[[int, int], None]

COMPILED: tuple[ModuleType, ...] = (
    order, service, balancing,
    queues, late, bucketed, triton_rate, triton_scan, triton_payloads, triton, brain,
    heap, door, tally, requests, failures, loop,
)  # fmt: skip
"""Modules whose plain functions are compiled as they stand."""

POLICIES: Mapping[int, tuple[ModuleType, ...]] = {
    KIND_LATE: (late,),
    KIND_BUCKET: (bucketed,),
    KIND_TRITON: (triton_rate, triton_scan, triton_payloads, triton),
}
"""Those of them that only one kind of batcher needs."""

READ: tuple[ModuleType, ...] = (
    *COMPILED,
    structural_kernel,
    histogram,
    stream,
    state,
    triton_layout,
    jit,
    layout,
    memory,
    sim_model,
)
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
    kinds : tuple of int
        Kinds of batchers, ``preba.batching.state.KIND_*``, ascending.
    rate_limited : bool
        Some Triton batcher has a rate limiter.
    failures : bool
        Slices fail or return.
    plugins : tuple of Plugin
        Users' own policies.
    streamed : bool
        Requests are counted when they are done.
    """

    kinds: tuple[int, ...]
    rate_limited: bool
    failures: bool
    plugins: tuple[Plugin, ...] = ()
    streamed: bool = False


def variant_of(model: SimModel) -> Variant:
    """The smallest variant that can run a model."""
    return Variant(
        kinds=tuple(sorted({server.plan.setting[S_KIND] for server in model.servers})),
        rate_limited=any(
            server.plan.setting[S_KIND] == KIND_TRITON and server.plan.setting[S_RATE_LIMITED] == 1
            for server in model.servers
        ),
        failures=len(model.slice_events) > 0,
        plugins=plugins_of(model.servers),
    )


@functools.cache
def callables() -> Callables:
    """Every function that compiled code may call, made callable once."""
    found = Callables({"Batcher": layout.BATCHER})
    for module in COMPILED:
        for function in functions_of(module):
            found.add(function)
    found.add(histogram.bucket_of)
    return found


@functools.cache
def entry(variant: Variant) -> Callable[[int, int, int], int]:
    """The compiled entry point: (address of a world, 1 on the first call, event limit) to a ``STATUS_*``.

    Numba's cache on disk notices a change in this file only; the key, a closure variable, stands for the others.
    """
    unused = [module for kind, modules in POLICIES.items() if kind not in variant.kinds for module in modules]
    if not variant.rate_limited and not variant.failures:  # a server that is emptied looks there, too
        unused.append(triton_rate)
    if variant.plugins:
        unused = []  # a policy of one's own may call any other's functions
    left_out = {function for module in unused for function in functions_of(module)}
    if not variant.failures:
        left_out |= {failures.slice_fails, failures.slice_returns}
    if not variant.streamed:
        left_out |= set(functions_of(tally))
    if not variant.plugins:
        left_out |= {*door.PLUGIN_HOOKS.values(), door.is_plugin, door.impossible}
    callables().left_out = frozenset(left_out)
    callables().chosen = _hooks(variant.plugins)
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


def _hooks(plugins: Sequence[Plugin]) -> dict[Callable[..., Any], list[Callable[..., Any] | None]]:
    """What stands for each hook of each plug-in; their other functions become callable, too."""
    for plugin in plugins:
        for function in vars(plugin.module).values():
            if inspect.isfunction(function) and function.__module__ == plugin.module.__name__:
                register_jitable(function)
    return {hook: [plugin.functions.get(name) for plugin in plugins] for name, hook in door.PLUGIN_HOOKS.items()}


def fail(model: SimModel, run_memory: RunMemory) -> None:
    """Raises what a plug-in that handed out an impossible batch deserves."""
    server = int(run_memory.clock[K_FAULT]) - 1
    plugin = model.servers[server].plan.plugin
    raise FormatError(
        f"{plugin.path if plugin is not None else server}: take_batch handed out an impossible batch; "
        "--engine reference says more"
    )


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
        if status == STATUS_FAULT:
            fail(model, run_memory)
        if status == STATUS_ROWS_FULL:
            run_memory.grow(2 * len(run_memory.rows))
        if progress is not None:
            progress(int(run_memory.clock[K_FINISHED]), total)
        status = run(run_memory.address, 0, EVENTS_PER_CALL)
    return run_memory.records(), run_memory.spans(), run_memory.outages()
