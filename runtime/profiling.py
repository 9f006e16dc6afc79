"""Latency profiles measured through Triton: one slice kind, length and batch at a time, one batch under way.

What is measured is how long a batch takes the slice as its front end sees it: from sending the batch until its answer
is there. That is what the simulator calls execution; the part spent inside the model is in the notes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from preba.errors import PrebaError, ScenarioError
from preba.profile import LatencyProfile, profile_from_dict
from preba.scenario.live import AnySlices, EmulatedSlices, GpuSlices, MigSlices, SmPartitionSlices
from preba.scenario.resolve import ResolvedModel, ResolvedScenario
from preba.serving import plan_servers
from runtime.nvml import open_nvml
from runtime.placement import input_shape, longest_audio_ns, place_slice
from runtime.processes import Workplace
from runtime.slices import AnySlice
from runtime.triton.install import find_triton
from runtime.triton.models.mark import MARK

PATIENCE_S = 120.0
UNPARTITIONED = {
    "sm-partition": "; shares of one GPU's multiprocessors: memory bandwidth and caches were not partitioned, and "
    "processes on it take turns unless NVIDIA's MPS runs"
}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes
    ----------
    batches : tuple of int
    lengths_s : tuple of float
        Audio lengths; empty for other modalities.
    warmup, repeats : int
        Batches per point: thrown away, and measured.
    up_to_limit : bool
        Slices that take smaller batches are measured up to their own limit, instead of being refused.
    """

    batches: tuple[int, ...]
    lengths_s: tuple[float, ...] = ()
    warmup: int = 5
    repeats: int = 50
    up_to_limit: bool = False


@dataclass(frozen=True)
class Point:
    """One measured point: milliseconds, over ``count`` batches.

    Attributes
    ----------
    slice_profile : str
    length_s : float or None
    batch : int
    median_ms, p10_ms, p90_ms : float
        Until the answer is there.
    inside_ms : float
        Median of the part inside the model.
    count : int
    """

    slice_profile: str
    length_s: float | None
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    inside_ms: float
    count: int


async def measure_model(
    resolved: ResolvedScenario, model: ResolvedModel, plan: Plan, progress: Progress | None = None
) -> list[Point]:
    """Measures one model on one slice of each profile it has.

    Parameters
    ----------
    resolved : ResolvedScenario
        Its ``live.slices`` say what executes.
    model : ResolvedModel
    plan : Plan
    progress : callable, optional
        Called with (points done, points in all).

    Raises
    ------
    ScenarioError
        There is nothing to measure on, or a batch is larger than the slices take.
    ServerError
        A server does not get ready.
    """
    kind = resolved.scenario.live.slices
    if isinstance(kind, EmulatedSlices) and kind.null:
        raise ScenarioError("scenario.live.slices.null: there is nothing to measure in it")
    audio = model.profile.modality == "audio"
    longest_ns = max((round(one * 1e9) for one in plan.lengths_s), default=0) if audio else 0
    if audio and longest_ns == 0:
        raise ScenarioError("--lengths-s: an audio model is measured at lengths; give some")
    first_of = {resolved.slices[index].profile: index for index in reversed(model.slice_indices)}
    servers = plan_servers(resolved, model, longest_ns or longest_audio_ns(resolved)[model.index])
    wanted = max(plan.batches)
    servers = [replace(one, plan=replace(one.plan, batch_max=max(one.plan.batch_max, wanted))) for one in servers]
    points: list[Point] = []
    total = len(first_of) * len(plan.batches) * max(len(plan.lengths_s), 1)
    with Workplace() as workplace:
        for name, index in sorted(first_of.items()):
            limit = model.profile.batch_max(name)
            if min(plan.batches) > limit or (wanted > limit and not plan.up_to_limit):
                raise ScenarioError(f"--batches: {wanted} is more than profile {model.profile.name!r} covers ({limit})")
            mine = sorted({min(batch, limit) for batch in plan.batches})
            one = place_slice(
                resolved, workplace, find_triton(), model, servers, index, longest_ns, None, native=False
            )  # fmt: skip
            try:
                await one.start()
                for length_s in plan.lengths_s or (None,):
                    for batch in mine:
                        emulated = isinstance(kind, EmulatedSlices)
                        points.append(
                            await _measure(one, model, name, length_s, batch, plan, longest_ns, emulated=emulated)
                        )
                        if progress is not None:
                            progress(len(points), total)
            finally:
                await one.stop()
    return points


async def _measure(
    one: AnySlice,
    model: ResolvedModel,
    name: str,
    length_s: float | None,
    batch: int,
    plan: Plan,
    longest_ns: int,
    *,
    emulated: bool,
) -> Point:
    request = _request(model, length_s, batch, longest_ns, emulated=emulated)
    outside, inside = [], []
    for turn in range(plan.warmup + plan.repeats):
        began_ns = time.monotonic_ns()
        answer = await one.execute(request, PATIENCE_S)
        ended_ns = time.monotonic_ns()
        if turn >= plan.warmup:
            content = dict(zip((out.name for out in answer.outputs), answer.raw_output_contents, strict=True))
            start_ns, end_ns = np.frombuffer(content["PREBA"], dtype=np.int64)[:2]
            outside.append((ended_ns - began_ns) / 1e6)
            inside.append((end_ns - start_ns) / 1e6)
        await asyncio.sleep(0)
    low, middle, high = np.percentile(outside, [10, 50, 90])
    return Point(
        slice_profile=name,
        length_s=length_s,
        batch=batch,
        median_ms=float(middle),
        p10_ms=float(low),
        p90_ms=float(high),
        inside_ms=float(np.median(inside)),
        count=plan.repeats,
    )


def _request(
    model: ResolvedModel, length_s: float | None, batch: int, longest_ns: int, *, emulated: bool
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model.config.name)
    if emulated:
        tensor = np.tile(np.array([length_s or 0.0, 1.0, 0.0, MARK], dtype=np.float32), (batch, 1))
    else:
        shape = input_shape(model, longest_ns)
        tensor = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    request.inputs.add(name="INPUT", datatype="FP32").shape[:] = tensor.shape
    request.raw_input_contents.append(tensor.tobytes())
    return request


def profile_of(
    resolved: ResolvedScenario,
    model: ResolvedModel,
    plan: Plan,
    points: Sequence[Point],
    *,
    name: str,
    inside_only: bool = False,
) -> LatencyProfile:
    """Puts measured points into a latency profile with its provenance.

    Parameters
    ----------
    resolved : ResolvedScenario
    model : ResolvedModel
    plan : Plan
    points : sequence of Point
    name : str
        Of the profile.
    inside_only : bool
        Hold the time by the slice's own stamps instead of that until the answer.
    """
    table: dict[str, Any] = {}
    for point in points:
        row = table.setdefault(point.slice_profile, {})
        if point.length_s is not None:
            row = row.setdefault(float(point.length_s), {})
        row[point.batch] = round(point.inside_ms if inside_only else point.median_ms, 4)
    spread = max((point.p90_ms - point.p10_ms) / point.median_ms for point in points)
    overhead = float(np.median([point.median_ms - point.inside_ms for point in points]))
    kind = resolved.scenario.live.slices
    where = this_machine()
    if isinstance(kind, GpuSlices | MigSlices | SmPartitionSlices):
        where += f"; {executing_device(kind)}"
    fields = {
        "name": name,
        "model": model.profile.model,
        "modality": model.profile.modality,
        "device": model.profile.device if isinstance(kind, EmulatedSlices) else executing_device(kind),
        "precision": "fp32",
        "framework": f"Triton through {_software(kind)}",
        "provenance": {
            "kind": "measured",
            "source": f"preba profile model: slices of kind {kind.kind}, one batch at a time, "
            + (
                f"medians of {plan.repeats} batches after {plan.warmup} to warm up, by the slice's own stamps"
                if inside_only
                else f"medians of {plan.repeats} batches after {plan.warmup} to warm up, from sending a batch until "
                "its answer"
            ),
            "where": where,
            "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
            "notes": f"widest spread (p90 - p10) / median: {spread:.3f}; outside the model itself: {overhead:.2f} ms a "
            "batch (median over all points)" + UNPARTITIONED.get(kind.kind, ""),
        },
        "table_by_length_s" if plan.lengths_s else "table": table,
    }
    return profile_from_dict(fields, origin="measured profile")


def this_machine() -> str:
    """Where something was measured: processor, cores, system."""
    return f"{processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def executing_device(kind: AnySlices) -> str:
    """What executes: the GPU's name and its driver's release, or the processor's name."""
    if not isinstance(kind, GpuSlices | MigSlices | SmPartitionSlices):
        return processor()
    index = 0 if isinstance(kind, MigSlices) else kind.device
    try:
        with open_nvml() as nvml:
            gpus = nvml.gpus()
            return f"{gpus[min(index, len(gpus) - 1)].name}, driver {nvml.driver_version()}"
    except PrebaError as error:
        return f"a GPU of unknown name ({error})"


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _software(kind: object) -> str:
    packages = ["nvidia-pytriton", "tritonclient", "numpy"]
    if not isinstance(kind, EmulatedSlices):
        packages += ["onnxruntime", "onnxruntime-gpu"]
    return installed_versions(packages)


def installed_versions(packages: Sequence[str]) -> str:
    """Those of the packages that are installed, with their versions."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
