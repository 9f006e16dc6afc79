"""What a user writes under ``batcher:``, turned into the integers that ``preba.batching`` runs on.

No policy lives here: only the translation of names and milliseconds into settings, and PREBA's offline step
(Batch_knee and Time_knee from the latency profile).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from preba.batching import brain as builtin_brain
from preba.batching import state as s
from preba.batching.plugin import Plugin, PluginBrain, load_plugin
from preba.batching.triton_config import TritonBatcher
from preba.errors import ScenarioError
from preba.knee import knee
from preba.profile import LatencyProfile
from preba.replay import located
from preba.strict import StrictModel
from preba.units import ns_from_ms, ns_from_s

SliceChoice = Literal["first", "fastest", "longest_idle"]


class NoBatching(StrictModel):
    """Every request runs alone, in order of arrival."""

    kind: Literal["none"]
    queue_max: int = Field(default=0, ge=0, description="waiting requests before refusal; 0 = unbounded")
    slice_choice: SliceChoice = "first"


class FixedBatching(StrictModel):
    """Size or time-out, whichever first: what most servers do.

    ``forms: at_dispatch`` lets the batch grow while every slice is busy; ``when_due`` freezes it as soon as it is
    full or timed out.
    """

    kind: Literal["fixed"]
    batch_max: PositiveInt
    timeout_ms: float = Field(ge=0)
    forms: Literal["at_dispatch", "when_due"] = "at_dispatch"
    queue_max: int = Field(default=0, ge=0)
    slice_choice: SliceChoice = "first"


class GreedyBatching(StrictModel):
    """An idle slice takes all that waits, up to ``batch_max`` (or all the profile covers)."""

    kind: Literal["greedy"]
    batch_max: PositiveInt | None = None
    queue_max: int = Field(default=0, ge=0)
    slice_choice: SliceChoice = "first"


class PrebaBatching(StrictModel):
    """PREBA's dynamic batching (arXiv 2411.19114, section 4.3); see ``preba.batching.bucketed`` for the choices.

    ``batch_max`` and ``time_queue_ms`` come from the knee of the profile unless given. With slices of several
    sizes, Batch_max is the knee of the smallest slice (any slice then meets its Time_knee) and Time_queue is
    1 / sum(1 / Time_knee) over the slices, which is Time_knee / slices when they are equal.
    """

    kind: Literal["preba"]
    batch_max: PositiveInt | None = None
    time_queue_ms: Annotated[float, Field(ge=0)] | None = None
    knee_gain: Annotated[float, Field(gt=0, lt=1)] = 0.25
    bucket_s: PositiveFloat = 2.5
    merge_reach: int = Field(default=1, ge=0, description="how many buckets away merging looks; 0 = never merge")
    merge_order: Literal["shorter_first", "longer_first"] = "shorter_first"
    timer: Literal["oldest_request", "last_emission"] = "oldest_request"
    emit_when_idle: bool = False
    due_batch: Literal["stays_open", "frozen", "frozen_per_slice"] = "stays_open"
    """What becomes of a full or due batch while every slice is busy."""
    queue_max: int = Field(default=0, ge=0)
    slice_choice: SliceChoice = "first"


class PluginBatching(StrictModel):
    """A policy from a Python file of the user's own, see docs/plugins.md."""

    kind: Literal["plugin"]
    file: str
    """Relative paths are looked for beside the scenario first."""
    batch_max: PositiveInt
    queue_count: PositiveInt = 1
    queue_max: int = Field(default=0, ge=0)
    slice_choice: Literal["first", "fastest", "longest_idle"] = "first"
    settings: dict[str, float] = Field(default_factory=dict)
    """The policy's own settings; a setting ``x_ns`` may be given as ``x_us``, ``x_ms`` or ``x_s``."""

    def located(self, folder: Path) -> PluginBatching:
        """The same with the file's path made absolute, relative paths counted from ``folder``."""
        return self.model_copy(update={"file": str(located(self.file, folder))})


BatcherConfig = Annotated[
    NoBatching | FixedBatching | GreedyBatching | PrebaBatching | TritonBatcher | PluginBatching,
    Field(discriminator="kind"),
]


DUE_BATCH_CODES = {
    "stays_open": s.DUE_STAYS_OPEN,
    "frozen": s.DUE_FROZEN,
    "frozen_per_slice": s.DUE_FROZEN_PER_CONSUMER,
}


@dataclass(frozen=True)
class BatcherPlan:
    """A batcher ready to be instantiated: the arguments of ``make_state`` that do not depend on the driver.

    Attributes
    ----------
    setting, preferred : tuple of int
    bucket_batch_max, bucket_delay_ns : tuple of int
        Per length bucket.
    bucket_width_ns : int
        Width of a length bucket; 0 where there is only one.
    queue_count : int
    batch_max : int
        Largest batch this batcher can form, in units.
    policy : tuple of int
        Triton's table of queue policies and rate limits; the default is that of a single plain queue.
    keeps_order : bool
        Whether answers leave in the order in which their requests were taken up (Triton's preserve_ordering).
    plugin : Plugin or None
        The user's policy, where it is one.
    """

    setting: tuple[int, ...]
    preferred: tuple[int, ...]
    bucket_batch_max: tuple[int, ...]
    bucket_delay_ns: tuple[int, ...]
    bucket_width_ns: int
    queue_count: int
    batch_max: int
    policy: tuple[int, ...] = (0, 0, 0, 0)
    keeps_order: bool = False
    plugin: Plugin | None = None

    def bucket_of(self, length_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The length bucket of inputs, int64[n]: [0, width) is bucket 0, a length of exactly the width is in 1."""
        if self.bucket_width_ns == 0:
            return np.zeros_like(length_ns)
        return np.minimum(length_ns // self.bucket_width_ns, len(self.bucket_batch_max) - 1)

    @property
    def brain(self) -> Any:  # noqa: ANN401 - a module or an object with the same functions
        """What decides: ``preba.batching.brain``, or the door to a plug-in."""
        return builtin_brain if self.plugin is None else PluginBrain(self.plugin)


def _settings(kind: int, values: dict[int, int]) -> tuple[int, ...]:
    setting = [0] * s.SETTING_COUNT
    setting[s.S_KIND] = kind
    for index, value in values.items():
        setting[index] = value
    return tuple(setting)


def _choice(name: str) -> int:
    return s.CHOICE_LONGEST_IDLE if name == "longest_idle" else s.CHOICE_RANK


def plan_batcher(
    config: NoBatching | FixedBatching | GreedyBatching | PrebaBatching | TritonBatcher | PluginBatching,
    profile: LatencyProfile,
    slice_profiles: Sequence[str],
    *,
    length_max_ns: int,
    where: str,
) -> BatcherPlan:
    """Turns a batcher's configuration into settings, for one batcher in front of the given slices.

    Parameters
    ----------
    config : a batcher configuration
    profile : LatencyProfile
        Of the model it serves; bounds the batch and gives PREBA its knees.
    slice_profiles : sequence of str
        MIG profile names of the slices behind this batcher, one per slice.
    length_max_ns : int
        Longest audio input of the trace (0 for images), so that there is a bucket for it.
    where : str
        Field path for errors.

    Returns
    -------
    BatcherPlan

    Raises
    ------
    ScenarioError
        The batcher asks for a larger batch than the profile was measured for.
    """
    kinds = sorted(set(slice_profiles))
    if isinstance(config, TritonBatcher):
        return _plan_triton(config, profile, kinds, where)
    if isinstance(config, PrebaBatching):
        return _plan_preba(config, profile, slice_profiles, length_max_ns, where)
    if isinstance(config, PluginBatching):
        return _plan_plugin(config, profile, kinds, where)
    if isinstance(config, NoBatching):
        batch_max, delay_ns, late = 1, 0, True
    elif isinstance(config, GreedyBatching):
        batch_max, delay_ns, late = config.batch_max or max(profile.batch_max(k) for k in kinds), 0, True
    else:
        batch_max, delay_ns, late = config.batch_max, ns_from_ms(config.timeout_ms), config.forms == "at_dispatch"
    # A batch formed when a slice takes it obeys that slice's own limit; one formed before must suit them all.
    _check_batch(batch_max, profile, kinds, where, every_slice=not late)
    common = {s.S_BATCH_MAX: batch_max, s.S_DELAY_NS: delay_ns, s.S_QUEUE_MAX: config.queue_max}
    common[s.S_CONSUMER_CHOICE] = _choice(config.slice_choice)
    common[s.S_DUE_BATCH] = s.DUE_FROZEN
    return BatcherPlan(
        setting=_settings(s.KIND_LATE if late else s.KIND_BUCKET, common),
        preferred=(),
        bucket_batch_max=(batch_max,),
        bucket_delay_ns=(delay_ns,),
        bucket_width_ns=0,
        queue_count=1,
        batch_max=batch_max,
    )


def _check_batch(
    batch_max: int, profile: LatencyProfile, kinds: Sequence[str], where: str, *, every_slice: bool
) -> None:
    decisive = (min if every_slice else max)(kinds, key=profile.batch_max)
    limit = profile.batch_max(decisive)
    if batch_max > limit:
        raise ScenarioError(
            f"{where}: a batch of {batch_max} is larger than profile {profile.name!r} covers on {decisive} "
            f"(at most {limit})"
        )


def _plan_triton(config: TritonBatcher, profile: LatencyProfile, kinds: Sequence[str], where: str) -> BatcherPlan:
    settings = config.to_settings()
    _check_batch(config.batch_max, profile, kinds, f"{where}.max_batch_size", every_slice=True)
    return BatcherPlan(
        setting=tuple(settings.setting),
        preferred=tuple(settings.preferred),
        bucket_batch_max=(config.batch_max,),
        bucket_delay_ns=(0,),
        bucket_width_ns=0,
        queue_count=settings.queue_count,
        batch_max=config.batch_max,
        policy=settings.policy,
        keeps_order=config.preserve_ordering and not config.ordering_regression,
    )


def _plan_plugin(config: PluginBatching, profile: LatencyProfile, kinds: Sequence[str], where: str) -> BatcherPlan:
    plugin = load_plugin(Path(config.file))
    _check_batch(config.batch_max, profile, kinds, f"{where}.batch_max", every_slice=True)
    values = {
        s.S_BATCH_MAX: config.batch_max,
        s.S_QUEUE_MAX: config.queue_max,
        s.S_CONSUMER_CHOICE: _choice(config.slice_choice),
    }
    for place, value in enumerate(plugin.setting_values(config.settings, where)):
        values[s.S_PLUGIN_FIRST + place] = value
    return BatcherPlan(
        setting=_settings(s.KIND_PLUGIN, values),
        preferred=(),
        bucket_batch_max=(config.batch_max,),
        bucket_delay_ns=(0,),
        bucket_width_ns=0,
        queue_count=config.queue_count,
        batch_max=config.batch_max,
        plugin=plugin,
    )


def _plan_preba(
    config: PrebaBatching,
    profile: LatencyProfile,
    slice_profiles: Sequence[str],
    length_max_ns: int,
    where: str,
) -> BatcherPlan:
    audio = profile.modality == "audio"
    width_ns = ns_from_s(config.bucket_s) if audio else 0
    buckets = 1 + length_max_ns // width_ns if audio else 1
    unused = audio and length_max_ns == 0  # a model without a single request has no length to look up
    batch_max: list[int] = []
    delay_ns: list[int] = []
    for bucket in range(buckets):
        # Every input of a bucket is at most its upper edge long; the longest input there is bounds the last.
        edge_ns = min((bucket + 1) * width_ns, max(length_max_ns, 1)) if audio else None
        limit, time_knee_ns = (1, 0) if unused else preba_knees(profile, slice_profiles, edge_ns, config.knee_gain)
        batch_max.append(config.batch_max or limit)
        delay_ns.append(time_knee_ns if config.time_queue_ms is None else ns_from_ms(config.time_queue_ms))
    if config.batch_max is not None:
        kinds = sorted(set(slice_profiles))
        _check_batch(config.batch_max, profile, kinds, f"{where}.batch_max", every_slice=True)
    values = {
        s.S_BATCH_MAX: max(batch_max),
        s.S_QUEUE_MAX: config.queue_max,
        s.S_CONSUMER_CHOICE: _choice(config.slice_choice),
        s.S_MERGE_REACH: config.merge_reach,
        s.S_MERGE_ORDER: s.MERGE_SHORTER_FIRST if config.merge_order == "shorter_first" else s.MERGE_LONGER_FIRST,
        s.S_TIMER: s.TIMER_OLDEST_REQUEST if config.timer == "oldest_request" else s.TIMER_LAST_EMISSION,
        s.S_EMIT_WHEN_IDLE: int(config.emit_when_idle),
        s.S_DUE_BATCH: DUE_BATCH_CODES[config.due_batch],
    }
    return BatcherPlan(
        setting=_settings(s.KIND_BUCKET, values),
        preferred=(),
        bucket_batch_max=tuple(batch_max),
        bucket_delay_ns=tuple(delay_ns),
        bucket_width_ns=width_ns,
        queue_count=buckets,
        batch_max=max(batch_max),
    )


def preba_knees(
    profile: LatencyProfile, slice_profiles: Sequence[str], length_ns: int | None, gain: float
) -> tuple[int, int]:
    """PREBA's offline step for one length bucket.

    Parameters
    ----------
    profile : LatencyProfile
    slice_profiles : sequence of str
        One MIG profile name per slice behind the batcher.
    length_ns : int or None
        Longest audio input of the bucket; ``None`` for other modalities.
    gain : float
        Threshold of the knee rule, see ``preba.knee``.

    Returns
    -------
    tuple of int
        (Batch_max in requests: the knee of the slice with the smallest one; Time_queue in ns:
        1 / sum over slices of 1 / Time_knee, which is Time_knee / slices for equal slices).
    """
    knees = {kind: knee(profile, kind, length_ns, gain=gain) for kind in set(slice_profiles)}
    batch_max = min(found.batch for found in knees.values())
    rate = sum(1.0 / knees[kind].latency_ns for kind in slice_profiles)
    return batch_max, round(1.0 / rate)
