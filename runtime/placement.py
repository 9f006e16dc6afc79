"""Which part of a scenario becomes which process: slices, preprocessing workers, execution times. Starts nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from preba.batchers import NoBatching
from preba.batching.triton_config import TritonBatcher
from preba.errors import MissingFileError, ScenarioError, UnsupportedError
from preba.preprocessing import CpuPreprocessing, DaliSharedPreprocessing, DaliSlicePreprocessing, NoPreprocessing
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.live import CpuSlices, EmulatedSlices, GpuSlices, MigSlices, SmPartitionSlices
from preba.scenario.resolve import WHOLE, ResolvedModel, ResolvedScenario
from preba.serving import ServerModel
from runtime.cores import split_cores
from runtime.mig import mig_device_uuids, read_gpus
from runtime.nvml import open_nvml
from runtime.preprocess import MEL_BINS, Turns, WorkerPlan, Workers
from runtime.processes import Workplace
from runtime.slices import AnySlice, NullSlice, SliceServer
from runtime.tensors import TensorPool
from runtime.triton.install import TritonInstall
from runtime.triton.repository import LENGTH_GRID_NS, EmulatedModel, OnnxModel, SliceModel, write_repository
from runtime.triton.server import TritonServer

IMAGE_SHAPE = (3, 224, 224)
FRAME_NS = 10_000_000
SPARE_FRAMES = 10
"""A recording may be a little longer than the scenario's longest."""
ENCODED_MAX_BYTES = 4 << 20
"""Largest file where slices decode: one fits into a slot of the shared memory."""


def place_preprocessing(
    resolved: ResolvedScenario, workplace: Workplace, model: ResolvedModel, longest_ns: int, turns: Turns
) -> tuple[TensorPool | None, Workers | None]:
    """The workers that preprocess a model's inputs and the shared memory they write to, or neither.

    Raises
    ------
    ServerError
        There is too little shared memory.
    """
    backend = preprocessing_backend(resolved)
    if backend == "none" or model.profile.modality == "tensor":
        return None, None
    live = resolved.scenario.live
    config = resolved.scenario.preprocessing
    if preprocesses_in_slices(resolved):
        name = f"{workplace.prefix}files{model.index}"
        return TensorPool.named(name, live.requests_max, ENCODED_MAX_BYTES // 4 + 2), None
    floats = int(np.prod(input_shape(model, longest_ns)))
    pool = TensorPool.named(f"{workplace.prefix}tensors{model.index}", live.requests_max, floats)
    share = live.preprocessing.hw_decoder_share
    if share is None and isinstance(config, DaliSlicePreprocessing | DaliSharedPreprocessing):
        share = config.hw_decoder_share
    plan = WorkerPlan(
        modality=model.profile.modality,
        backend=backend,
        workers=worker_count(resolved),
        pool=pool.path,
        slot_floats=floats,
        hw_decoder_share=0.65 if share is None else share,
        visible_device=_preprocessing_device(resolved) if backend == "dali_gpu" else None,
        cores=split_cores(worker_count(resolved))[0] if live.preprocessing.pin else (),
    )
    return pool, Workers(plan, turns, workplace.tell)


def _preprocessing_device(resolved: ResolvedScenario) -> str | None:
    """The MIG slice that is kept for DALI, or the GPU the slices are on; ``None``: whatever CUDA finds first."""
    kind = resolved.scenario.live.slices
    if isinstance(kind, MigSlices):
        reserved = [unit.index for unit in resolved.slices if unit.role == "preprocessing"]
        return _mig_uuids(resolved, kind)[reserved[0]] if reserved else None
    return str(kind.device) if isinstance(kind, GpuSlices | SmPartitionSlices) else None


def preprocesses_in_slices(resolved: ResolvedScenario) -> bool:
    """Whether a slice's own process decodes what it executes: DALI that shares the model's slices.

    Raises
    ------
    UnsupportedError
        The slices only sleep.
    """
    place = resolved.scenario.live.preprocessing.place
    if preprocessing_backend(resolved) == "none" or place == "workers":
        return False
    if place == "auto" and not isinstance(resolved.scenario.preprocessing, DaliSharedPreprocessing):
        return False
    if isinstance(resolved.scenario.live.slices, EmulatedSlices):
        raise UnsupportedError(
            "scenario.live.preprocessing.place: emulated slices cannot preprocess; take slices that compute, or "
            "--set live.preprocessing.place=workers"
        )
    return True


def input_shape(model: ResolvedModel, longest_ns: int) -> tuple[int, ...]:
    """Shape of one input of a model, without the batch."""
    if model.profile.modality != "audio":
        return IMAGE_SHAPE
    return MEL_BINS, longest_ns // FRAME_NS + SPARE_FRAMES


def place_slice(
    resolved: ResolvedScenario,
    workplace: Workplace,
    install: TritonInstall,
    model: ResolvedModel,
    servers: Sequence[ServerModel],
    index: int,
    longest_ns: int,
    pool: TensorPool | None,
    *,
    native: bool,
    instances_of_all: int = 0,
) -> AnySlice:
    """The slice and the server that will execute on it; with ``instances_of_all``, on all slices."""
    unit = resolved.slices[index]
    kind = resolved.scenario.live.slices
    if isinstance(kind, EmulatedSlices) and kind.null:
        return NullSlice(index, f"{index} ({unit.name})")
    batch_max = min(max(server.plan.batch_max for server in servers), model.profile.batch_max(unit.profile))
    name = f"slice{index}"
    batcher = model.config.batcher if native and isinstance(model.config.batcher, TritonBatcher) else None
    instances = batcher.instances_per_slice if batcher is not None else 1
    slice_model, environment = _slice_model(resolved, model, index, batch_max, longest_ns, pool)
    if isinstance(slice_model, EmulatedModel):
        slice_model = replace(slice_model, instances=instances, one_server=instances_of_all > 0)
        instances = instances_of_all or instances
    repository = write_repository(
        workplace.folder / name, model.config.name, slice_model, batch_max=batch_max, instances=instances,
        batcher=batcher,
    )  # fmt: skip
    options = () if batcher is None or batcher.rate_limiter.mode == "off" else ("--rate-limit=execution_count",)
    triton = TritonServer(
        workplace, install, name, repository, [model.config.name], environment=environment, options=options,
        keeps_ports=native,
    )  # fmt: skip
    return SliceServer(index, f"{index} ({unit.name})", triton, resolved.scenario.live.ready_timeout_s)


def _slice_model(
    resolved: ResolvedScenario,
    model: ResolvedModel,
    index: int,
    batch_max: int,
    longest_ns: int,
    pool: TensorPool | None,
) -> tuple[SliceModel, Mapping[str, str]]:
    kind = resolved.scenario.live.slices
    if isinstance(kind, EmulatedSlices):
        table = slice_table(resolved, model, index, batch_max, longest_ns)
        return EmulatedModel(table, model.profile.modality == "audio", index), {}
    onnx = Path(kind.onnx) if Path(kind.onnx).is_absolute() else resolved.folder / kind.onnx
    if not onnx.exists():
        raise MissingFileError(f"scenario.live.slices.onnx: {onnx}: no such file")
    computes = OnnxModel(
        onnx=onnx.resolve(),
        shape=input_shape(model, longest_ns),
        threads=1,
        cores=(),
        providers=("CUDAExecutionProvider",),
        pool=pool.path if pool is not None else None,
        slot_floats=pool.slot_floats if pool is not None else 0,
        slice_index=index,
        preprocess=_slice_preprocessing(resolved, model, batch_max) if pool is not None else None,
    )
    unit = resolved.slices[index]
    if isinstance(kind, CpuSlices):
        cores: tuple[int, ...] = ()
        if kind.pin:
            have = other_cores(resolved) or sorted(os.sched_getaffinity(0))
            cores = tuple(have[(index * kind.threads + place) % len(have)] for place in range(kind.threads))
        return replace(computes, threads=kind.threads, cores=cores, providers=("CPUExecutionProvider",)), {}
    if isinstance(kind, MigSlices):
        return computes, {"CUDA_VISIBLE_DEVICES": _mig_uuids(resolved, kind)[index]}
    environment = {"CUDA_VISIBLE_DEVICES": str(kind.device + unit.gpu_index)}
    if isinstance(kind, GpuSlices):
        if unit.profile != WHOLE:
            raise ScenarioError(
                f"scenario.live.slices.kind: gpu: serves whole GPUs (partition: full); slice {index} is {unit.name}"
            )
        return computes, environment
    parts = resolved.gpu_devices[unit.gpu_index].compute_slices
    before = sum(one.gpcs for one in resolved.slices[:index] if one.gpu_index == unit.gpu_index)
    return replace(computes, share=(parts, before, unit.gpcs)), environment


def _mig_uuids(resolved: ResolvedScenario, kind: MigSlices) -> tuple[str, ...]:
    """Per slice its MIG device: the scenario's own list, or what the driver has."""
    slices = resolved.slices
    if not kind.uuids:
        with open_nvml() as nvml:
            return mig_device_uuids(read_gpus(nvml), [(each.gpu_index, each.profile) for each in slices])
    if len(kind.uuids) < len(slices):
        missing = slices[len(kind.uuids)]
        raise ScenarioError(
            f"scenario.live.slices.uuids: names {len(kind.uuids)} MIG devices, slice {len(kind.uuids)} "
            f"({missing.name}) needs one too; `preba mig show` lists them"
        )
    return kind.uuids


def _slice_preprocessing(resolved: ResolvedScenario, model: ResolvedModel, batch_max: int) -> dict[str, Any] | None:
    """Arguments for the preprocessor in a slice's process, if there is one."""
    if not preprocesses_in_slices(resolved):
        return None
    config = resolved.scenario.preprocessing
    share = resolved.scenario.live.preprocessing.hw_decoder_share
    if share is None:
        share = config.hw_decoder_share if isinstance(config, DaliSharedPreprocessing) else 0.65
    return {
        "modality": model.profile.modality,
        "backend": preprocessing_backend(resolved),
        "batch_max": batch_max,
        "hw_decoder_share": share,
    }


def is_native(resolved: ResolvedScenario) -> bool:
    """Whether every slice's Triton server batches for itself, behind Envoy: NVIDIA's flower demo.

    So it is where a balancer stands in front of one server per slice, nothing is preprocessed here and Triton has the
    policy. Everything else is the front end's.
    """
    scenario = resolved.scenario
    asked = scenario.live.batching
    possible = (
        len(resolved.models) == 1
        and isinstance(resolved.models[0].config.batcher, TritonBatcher | NoBatching)
        and preprocessing_backend(resolved) == "none"
    )
    if asked != "triton":
        return asked == "auto" and possible and scenario.server.topology == "per_slice"
    if not possible:
        raise UnsupportedError(
            "scenario.live.batching: triton: needs one model with Triton's batcher (or none) and nothing to preprocess"
        )
    if scenario.server.topology == "central":
        profiles = {resolved.slices[index].profile for index in resolved.models[0].slice_indices}
        emulated = isinstance(scenario.live.slices, EmulatedSlices) and not scenario.live.slices.null
        batcher = resolved.models[0].config.batcher
        several = isinstance(batcher, TritonBatcher) and batcher.instances_per_slice > 1
        if len(profiles) > 1 or not emulated or several:
            raise UnsupportedError(
                "scenario.live.batching: triton: one server for all slices needs emulated slices of one profile, with "
                "one instance each; server.topology: per_slice gives each slice a server"
            )
    return True


def preprocessing_backend(resolved: ResolvedScenario) -> str:
    """Which back end preprocesses: the one ``live.preprocessing`` names, or what ``preprocessing.kind`` comes to.

    Raises
    ------
    UnsupportedError
        The scenario's preprocessor is not a part this machine can have.
    """
    named = resolved.scenario.live.preprocessing.backend
    if named != "auto":
        return named
    config = resolved.scenario.preprocessing
    if isinstance(config, NoPreprocessing):
        return "none"
    if isinstance(config, CpuPreprocessing):
        return "cpu"
    if isinstance(config, DaliSlicePreprocessing | DaliSharedPreprocessing):
        return "dali_gpu"
    raise UnsupportedError(
        f"scenario.preprocessing.kind: {config.kind}: a live server has no such card; say what stands in for it, for "
        "example --set live.preprocessing.backend=cpu"
    )


def worker_count(resolved: ResolvedScenario) -> int:
    """How many processes preprocess."""
    live = resolved.scenario.live.preprocessing
    if live.workers is not None:
        return live.workers
    here = len(os.sched_getaffinity(0))
    config = resolved.scenario.preprocessing
    return min(config.cores, here) if isinstance(config, CpuPreprocessing) else here


def other_cores(resolved: ResolvedScenario) -> tuple[int, ...]:
    """Where everything but pinned preprocessing workers runs; empty: anywhere."""
    works = preprocessing_backend(resolved) != "none" and not preprocesses_in_slices(resolved)
    pinned = resolved.scenario.live.preprocessing.pin and works
    return split_cores(worker_count(resolved))[1] if pinned else ()


def longest_audio_ns(resolved: ResolvedScenario) -> list[int]:
    """Per model, the longest audio input of the scenario's own traffic; 0 for other modalities."""
    if all(model.profile.modality != "audio" for model in resolved.models):
        return [0] * len(resolved.models)
    trace = draw_scenario_trace(resolved)
    return [int(trace.audio_ns[trace.model_index == model.index].max(initial=0)) for model in resolved.models]


def slice_table(
    resolved: ResolvedScenario, model: ResolvedModel, index: int, batch_max: int, longest_ns: int
) -> list[list[int]]:
    """Execution times of one slice, by length (0.1 s steps) and batch."""
    edges = None
    if model.profile.modality == "audio":
        steps = -(-longest_ns // LENGTH_GRID_NS)
        edges = [min(max(step, 1) * LENGTH_GRID_NS, longest_ns) for step in range(steps + 1)]
    table = model.profile.table_ns([resolved.slices[index].profile], edges, batch_max, absent_ns=0)[0]
    return [[int(value) for value in row] for row in table]


def slowest_table(
    resolved: ResolvedScenario, model: ResolvedModel, servers: Sequence[ServerModel], longest_ns: int
) -> list[list[int]]:
    """The largest of the slices' times, entry by entry."""
    batch_max = max(server.plan.batch_max for server in servers)
    tables = [slice_table(resolved, model, index, batch_max, longest_ns) for index in model.slice_indices]
    return [[max(values) for values in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]
