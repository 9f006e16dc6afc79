"""Model repositories for slices: config.pbtxt, the model's file and what it reads. Writes files, starts nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from preba.batching.triton_config import QueuePolicy, TritonBatcher

MODELS = Path(__file__).parent / "models"
LENGTH_GRID_NS = 100_000_000
"""Audio is timed at its length rounded up to 0.1 s, as in the simulator."""
ROW_FLOATS = 4
"""Elements of one input row of an emulated slice: length in s, factor, 0, mark."""


@dataclass(frozen=True)
class EmulatedModel:
    """What an emulated slice needs to know.

    Attributes
    ----------
    times_ns : list of list of int
        By length (in steps of 0.1 s; one row where times do not depend on it) and batch.
    by_length : bool
    slice_index : int
    instances : int
        Several share the slice: they execute one after another.
    one_server : bool
        The server stands for all slices, an instance each.
    """

    times_ns: list[list[int]]
    by_length: bool
    slice_index: int
    instances: int = 1
    one_server: bool = False

    def write(self, folder: Path) -> None:
        """Writes model.py and its table."""
        shutil.copy2(MODELS / "emulated.py", folder / "model.py")
        table = {
            "times_ns": self.times_ns,
            "grid_s": LENGTH_GRID_NS / 1e9 if self.by_length else 0,
            "slice_index": self.slice_index,
            "instances": self.instances,
            "one_server": self.one_server,
        }
        (folder / "table.json").write_text(json.dumps(table), encoding="utf-8")

    def tensors(self, config: Any) -> None:  # noqa: ANN401 - a protobuf message without types
        """Adds the inputs to a configuration."""
        config.input.add(name="INPUT", data_type=pb.TYPE_FP32, dims=[ROW_FLOATS])


@dataclass(frozen=True)
class OnnxModel:
    """What a slice that runs an ONNX model needs to know.

    Attributes
    ----------
    onnx : Path
    shape : tuple of int
        Of one input, without the batch.
    threads : int
    cores : tuple of int
        CPU cores it is bound to; empty: any.
    providers : tuple of str
        ONNX Runtime's execution providers, best first.
    pool : Path or None
        Shared memory of tensors that requests name by row.
    slot_floats : int
        Elements of one row of the pool.
    slice_index : int
    share : tuple of int, optional
        (parts, first, count): which of how many equal parts of the GPU's multiprocessors.
    """

    onnx: Path
    shape: tuple[int, ...]
    threads: int
    cores: tuple[int, ...]
    providers: tuple[str, ...]
    pool: Path | None
    slot_floats: int
    slice_index: int
    share: tuple[int, int, int] | None = None
    preprocess: Mapping[str, Any] | None = None
    """Arguments of ``accel.executors.build_preprocessor``: the slice's own process decodes, the pool holds files."""

    def write(self, folder: Path) -> None:
        """Writes model.py and its facts."""
        shutil.copy2(MODELS / "onnx.py", folder / "model.py")
        facts = {
            "onnx": str(self.onnx),
            "shape": list(self.shape),
            "threads": self.threads,
            "cores": list(self.cores),
            "providers": list(self.providers),
            "pool": str(self.pool) if self.pool is not None else "",
            "slot_floats": self.slot_floats,
            "slice_index": self.slice_index,
            "preprocess": self.preprocess and dict(self.preprocess),
            "share": None if self.share is None else dict(zip(("parts", "first", "count"), self.share, strict=True)),
        }
        if self.share is not None:
            shutil.copy2(MODELS / "green.py", folder / "green.py")
        (folder / "slice.json").write_text(json.dumps(facts), encoding="utf-8")

    def tensors(self, config: Any) -> None:  # noqa: ANN401 - a protobuf message without types
        """Adds the inputs to a configuration."""
        config.input.add(name="INPUT", data_type=pb.TYPE_FP32, dims=list(self.shape), optional=True)
        config.input.add(name="SLOTS", data_type=pb.TYPE_INT32, dims=[1], optional=True)
        if self.preprocess is not None:
            config.output.add(name="STATUS", data_type=pb.TYPE_INT64, dims=[2])


SliceModel = EmulatedModel | OnnxModel


def write_repository(
    folder: Path,
    name: str,
    model: SliceModel,
    *,
    batch_max: int,
    instances: int = 1,
    batcher: TritonBatcher | None = None,
) -> Path:
    """Writes a model repository with one model.

    Parameters
    ----------
    folder : Path
        Created.
    name : str
        Of the model.
    model : SliceModel
    batch_max : int
        Largest batch it takes.
    instances : int
        How many of it run at once.
    batcher : TritonBatcher, optional
        Batch in Triton, so; without it every request is executed as it comes.

    Returns
    -------
    Path
        The repository.
    """
    repository = folder / "models"
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    model.write(version)
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=batch_max)
    model.tensors(config)
    config.output.add(name="OUTPUT", data_type=pb.TYPE_FP32, dims=[-1])
    config.output.add(name="PREBA", data_type=pb.TYPE_INT64, dims=[5])
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=instances)
    if batcher is not None:
        _batching(config, batcher)
    text = text_format.MessageToString(config)
    (repository / name / "config.pbtxt").write_text(text, encoding="utf-8")
    return repository


def _batching(config: Any, batcher: TritonBatcher) -> None:  # noqa: ANN401 - a protobuf message without types
    config.max_batch_size = batcher.max_batch_size
    if not batcher.dynamic_batching:
        return
    dynamic = config.dynamic_batching
    dynamic.preferred_batch_size.extend(batcher.preferred_batch_size)
    dynamic.max_queue_delay_microseconds = batcher.max_queue_delay_us
    dynamic.preserve_ordering = batcher.preserve_ordering
    dynamic.priority_levels = batcher.priority_levels
    dynamic.default_priority_level = batcher.default_priority_level
    _policy(dynamic.default_queue_policy, batcher.default_queue_policy)
    for level, policy in batcher.priority_queue_policy.items():
        _policy(dynamic.priority_queue_policy[level], policy)
    if batcher.rate_limiter.mode != "off":
        _rates(config, batcher.rate_limiter.groups)


def _policy(message: Any, policy: QueuePolicy) -> None:  # noqa: ANN401 - a protobuf message without types
    message.timeout_action = pb.ModelQueuePolicy.TimeoutAction.Value(policy.timeout_action)
    message.default_timeout_microseconds = policy.default_timeout_us
    message.allow_timeout_override = policy.allow_timeout_override
    message.max_queue_size = policy.max_queue_size


def _rates(config: Any, groups: Sequence[Any]) -> None:  # noqa: ANN401 - a protobuf message without types
    if not groups:
        return
    del config.instance_group[:]
    for group in groups:
        added = config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=group.count)
        added.rate_limiter.priority = group.priority
        for resource in group.resources:
            added.rate_limiter.resources.add(name=resource.name, count=resource.count)
            setattr(added.rate_limiter.resources[-1], "global", resource.shared)
