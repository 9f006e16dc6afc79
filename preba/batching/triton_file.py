"""Reads a Triton model configuration file and says what it means for batching; checks no policy.

The text format is ``preba.pbtxt``'s; the rules of a Triton batcher are ``triton_config``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preba.errors import FormatError, MissingFileError, UnsupportedError
from preba.pbtxt import parse_config

FIELDS_FROM_FILE = frozenset(
    {
        "backend",
        "default_priority_level",
        "default_queue_policy",
        "dynamic_batching",
        "enforce_equal_shape",
        "instances_per_slice",
        "max_batch_size",
        "max_queue_delay_us",
        "preferred_batch_size",
        "preserve_ordering",
        "priority_levels",
        "priority_queue_policy",
    }
)
"""Fields of ``TritonBatcher`` that a config.pbtxt decides."""


@dataclass(frozen=True)
class EnsembleStep:
    """One model an ensemble calls, with the tensors that go in and come out."""

    model_name: str
    model_version: int
    input_map: tuple[tuple[str, str], ...]
    output_map: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class InstanceGroup:
    """Identical instances of a model.

    Attributes
    ----------
    count : int
        Per device.
    kind : str
        KIND_AUTO, KIND_GPU, KIND_CPU or KIND_MODEL.
    gpus : tuple of int
        Device numbers; empty = all the server sees.
    passive : bool
        Instances that take no requests of their own.
    priority : int
        Rate limiter priority as written; 0 where absent.
    resources : tuple of (name, count, global)
    """

    count: int
    kind: str
    gpus: tuple[int, ...]
    passive: bool
    priority: int
    resources: tuple[tuple[str, int, bool], ...]


@dataclass(frozen=True)
class ModelFile:
    """What a config.pbtxt says, as far as batching is concerned.

    Attributes
    ----------
    path, name, backend, platform : str
    max_batch_size : int
    instance_groups : tuple of InstanceGroup
    dynamic_batching : dict or None
        The stanza as parsed; ``None`` where it is absent.
    sequence_batching : bool
        Whether that stanza is there.
    eager_batching, cuda_graphs : bool
    equal_shape : bool
        Whether only requests of equal shape may share a batch: an input of variable size that may not be ragged, or a
        shape tensor.
    ensemble_steps : tuple of EnsembleStep
    """

    path: str
    name: str
    backend: str
    platform: str
    max_batch_size: int
    instance_groups: tuple[InstanceGroup, ...]
    dynamic_batching: dict[str, Any] | None
    sequence_batching: bool
    eager_batching: bool
    cuda_graphs: bool
    equal_shape: bool
    ensemble_steps: tuple[EnsembleStep, ...]

    @property
    def instance_count(self) -> int:
        """Instances on one device that take requests."""
        active = [group.count for group in self.instance_groups if not group.passive]
        return sum(active) if active else 1

    @property
    def backend_kind(self) -> str:
        """When an instance takes its next batch: blocking, trt, trt-graph or eager."""
        if self.backend != "tensorrt" and self.platform != "tensorrt_plan":
            return "blocking"
        if self.eager_batching:
            return "eager"
        return "trt-graph" if self.cuda_graphs else "trt"


def read_model_file(path: str | Path) -> ModelFile:
    """Reads a config.pbtxt.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    ModelFile

    Raises
    ------
    MissingFileError
        There is no such file.
    FormatError
        Not a model configuration; names file and line.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(f"{path}: no such file (config.pbtxt of a Triton model)") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not text: {error.reason} at byte {error.start}") from None
    config = parse_config(text, where=str(path))
    optimization = config.get("optimization", {})
    return ModelFile(
        path=str(path),
        name=config.get("name", "") or file.resolve().parent.name,
        backend=config.get("backend", ""),
        platform=config.get("platform", ""),
        max_batch_size=_max_batch(config, str(path)),
        instance_groups=tuple(
            _group(group, place, str(path)) for place, group in enumerate(config.get("instance_group", []))
        ),
        dynamic_batching=config.get("dynamic_batching"),
        sequence_batching="sequence_batching" in config,
        eager_batching=optimization.get("eager_batching", False),
        cuda_graphs=optimization.get("cuda", {}).get("graphs", False),
        equal_shape=any(_needs_equal_shape(tensor) for tensor in config.get("input", [])),
        ensemble_steps=tuple(_step(step) for step in config.get("ensemble_scheduling", {}).get("step", [])),
    )


def _max_batch(config: dict[str, Any], where: str) -> int:
    size = config.get("max_batch_size", 0)
    if size < 0:
        raise FormatError(f"{where}: max_batch_size: must be >= 0, got {size}")
    return int(size)


def _needs_equal_shape(tensor: dict[str, Any]) -> bool:
    if tensor.get("is_shape_tensor", False):
        return True
    return -1 in tensor.get("dims", []) and not tensor.get("allow_ragged_batch", False)


def _group(group: dict[str, Any], place: int, where: str) -> InstanceGroup:
    limits = group.get("rate_limiter", {})
    count = group.get("count", 0)
    if count < 0:
        raise FormatError(f"{where}: instance_group[{place}].count: must be >= 0, got {count}")
    return InstanceGroup(
        count=count or 1,  # the server's own default
        kind=group.get("kind", "KIND_AUTO"),
        gpus=tuple(group.get("gpus", [])),
        passive=group.get("passive", False),
        priority=limits.get("priority", 0),
        resources=tuple(
            (item.get("name", ""), item.get("count", 0), item.get("global", False))
            for item in limits.get("resources", [])
        ),
    )


def _step(step: dict[str, Any]) -> EnsembleStep:
    return EnsembleStep(
        model_name=step.get("model_name", ""),
        model_version=step.get("model_version", 0),
        input_map=tuple(step.get("input_map", {}).items()),
        output_map=tuple(step.get("output_map", {}).items()),
    )


def batcher_fields(path: str, directory: str | Path | None = None) -> dict[str, Any]:
    """The fields of a ``TritonBatcher`` that a config.pbtxt decides, as plain data.

    Parameters
    ----------
    path : str
        Relative paths start at ``directory`` (default: the working directory).
    directory : str or Path, optional

    Returns
    -------
    dict
        Every name of ``FIELDS_FROM_FILE`` that the file gives, and ``groups`` for the rate limiter.

    Raises
    ------
    UnsupportedError
        A model whose requests the dynamic batcher never sees: a sequence or an ensemble.
    """
    found = read_model_file(Path(directory) / path if directory is not None else path)
    if found.sequence_batching:
        raise UnsupportedError(f"{found.path}: sequence_batching is not modelled; only dynamic_batching or none")
    if found.ensemble_steps or found.platform == "ensemble":
        steps = ", ".join(step.model_name for step in found.ensemble_steps)
        raise UnsupportedError(f"{found.path}: an ensemble does not batch; use the files of its steps ({steps})")
    for place, group in enumerate(found.instance_groups):
        if len(group.gpus) > 1:
            raise FormatError(
                f"{found.path}: instance_group[{place}].gpus: {list(group.gpus)} names several devices, "
                "but a server on a MIG slice sees one"
            )
    fields: dict[str, Any] = {
        "max_batch_size": found.max_batch_size,
        "dynamic_batching": found.dynamic_batching is not None,
        "instances_per_slice": found.instance_count,
        "backend": found.backend_kind,
        "enforce_equal_shape": found.equal_shape,
        "groups": [_rate_group(group) for group in found.instance_groups if not group.passive],
    }
    stanza = found.dynamic_batching
    if stanza is not None:
        fields |= {
            "preferred_batch_size": stanza.get("preferred_batch_size", []),
            "max_queue_delay_us": stanza.get("max_queue_delay_microseconds", 0),
            "preserve_ordering": stanza.get("preserve_ordering", False),
            "priority_levels": stanza.get("priority_levels", 0),
            "default_priority_level": stanza.get("default_priority_level", 0),
            "default_queue_policy": _policy(stanza.get("default_queue_policy", {})),
            "priority_queue_policy": {
                level: _policy(policy) for level, policy in stanza.get("priority_queue_policy", {}).items()
            },
        }
    return fields


def _policy(policy: dict[str, Any]) -> dict[str, Any]:
    return {
        "timeout_action": policy.get("timeout_action", "REJECT"),
        "default_timeout_us": policy.get("default_timeout_microseconds", 0),
        "allow_timeout_override": policy.get("allow_timeout_override", False),
        "max_queue_size": policy.get("max_queue_size", 0),
    }


def _rate_group(group: InstanceGroup) -> dict[str, Any]:
    return {
        "count": group.count,
        "priority": group.priority,
        "resources": [{"name": name, "count": count, "global": shared} for name, count, shared in group.resources],
    }
