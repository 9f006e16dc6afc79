"""What a user writes under ``batcher: {kind: triton}``: checked as the server checks it, then turned into integers.

The names are those of config.pbtxt (durations end in ``_us`` as they do there in effect). Nothing here batches.
Source of rules and refusals: triton-inference-server/core at 73aad7c (June 2026), ``model_config_utils.cc``
(normalisation and validation) and ``scheduler_utils.cc`` (when prefetching is off).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationInfo, model_validator

from preba.batching import state as s
from preba.batching import triton_layout as t
from preba.batching.triton_file import FIELDS_FROM_FILE, batcher_fields
from preba.batching.triton_versions import LATEST, OLDEST, TritonRelease, triton_release
from preba.errors import ScenarioError
from preba.strict import Provenance, StrictModel
from preba.units import NS_PER_US

LEVELS_MAX = 4096
"""Priority levels kept as separate queues; the server's own limit is 2**64 - 1."""

BATCHER_FIRST_PERMILLE = 310
"""Share of batch ends, in 1/1000, at which the batcher thread runs before the backend thread has come back.

With a queue policy or priorities the batcher then sees no idle instance and sleeps on: a lost wake-up. Without, it may
still add to the batch that goes next. How often it happens depends on the machine; ``preba validate`` measures it.
Fitted to one measurement: Triton 2.51.0, python backend on 2 CPU cores, one instance, max_batch 8, max_queue_size 16,
batches of 60 ms, Poisson arrivals at 1.3 times the capacity: 50 requests/s were served where 133 were possible, with
idle gaps of 440 ms and a p99 of 1,060 ms. With this share the model serves 50/s, with gaps of 440 ms and a p99 of
1,050 ms. Counted directly on such a machine it was 240 to 320 (docs/validate.md).
"""


BATCHER_FIRST_PROVENANCE = Provenance(
    kind="measured",
    source="share fitted to one measurement of a real server, see BATCHER_FIRST_PERMILLE",
    where="Triton 2.51.0, python backend, 2 CPU cores",
    notes="one instance, max_batch 8, max_queue_size 16, batches of 60 ms; other backends and times are not measured",
)


class QueuePolicy(StrictModel):
    """What happens to a request that waits too long or finds its queue full (``ModelQueuePolicy``)."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_us: NonNegativeInt = 0
    allow_timeout_override: bool = False
    max_queue_size: NonNegativeInt = 0


class RateResource(StrictModel):
    """A resource an instance must hold while it executes (``ModelRateLimiter.Resource``)."""

    model_config = ConfigDict(validate_by_alias=True, validate_by_name=True, serialize_by_alias=True)

    name: str = Field(min_length=1)
    shared: bool = Field(default=False, alias="global", description="one pool for all devices")
    count: NonNegativeInt = 0


class RateGroup(StrictModel):
    """Instances of one group and what each needs."""

    count: PositiveInt = 1
    priority: NonNegativeInt = Field(default=1, description="weight of the execution count; 0 counts as 1")
    resources: tuple[RateResource, ...] = ()


class RateLimiting(StrictModel):
    """Server option ``--rate-limit`` with ``--rate-limit-resource`` and the model's rate limiter groups."""

    mode: Literal["off", "execution_count"] = "off"
    pool: dict[str, PositiveInt] | None = Field(
        default=None,
        description="resources per device (or in all, if global); default: the largest single need",
    )
    groups: tuple[RateGroup, ...] = Field(default=(), description="default: one group without needs")


class TritonQuirks(StrictModel):
    """How the server's threads behave, and its known faults; ``None`` follows ``server_version``."""

    counter_drift: bool | None = Field(
        default=None,
        description="server issue 8870: merged payloads leave the count of waiting consumers too low",
    )
    ordering_regression: bool | None = Field(
        default=None, description="core change 449: preserve_ordering orders by completion instead of arrival"
    )
    batcher_first_permille: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="batch ends at which the batcher runs before the backend thread is back; None: as measured with a "
        "queue policy or priorities (each is a lost wake-up), 0 without",
    )
    batcher_first_late_us: NonNegativeInt = Field(
        default=0,
        description="with a queue policy or priorities: how much later than others a backend thread is back that the "
        "batcher overtook; an arrival before that does not wake the batcher; preba validate measures it",
    )
    batcher_first_seed: NonNegativeInt = Field(default=0, description="of the races' draws and of those of wake-ups")
    batcher_wakeup_us: NonNegativeInt = Field(
        default=0,
        description="from a notification of the batcher thread to its work: what arrives meanwhile joins the batch; "
        "preba validate measures it",
    )
    batcher_wakeup_varies: bool = Field(
        default=False, description="the wake-up is exponential with that mean, instead of always as long"
    )


@dataclass(frozen=True)
class TritonSettings:
    """The arguments of ``preba.batching.state.make_state`` that a Triton configuration decides.

    Attributes
    ----------
    setting : tuple of int
        Indexed by ``S_*`` of ``state`` and ``triton_layout``.
    preferred : tuple of int
        Preferred batch sizes, ascending, in batch units.
    policy : tuple of int
        Queue policies and rate limits, laid out as ``triton_layout`` says.
    queue_count : int
        Two per priority level: live and delayed requests.
    resources : tuple of str
        Names of the rate limiter's resources, in the order of the policy table.
    """

    setting: tuple[int, ...]
    preferred: tuple[int, ...]
    policy: tuple[int, ...]
    queue_count: int
    resources: tuple[str, ...]

    def make_state(self, *, consumers: int, capacity: int, as_arrays: bool = False) -> s.BatcherState:
        """Makes an empty batcher of equal consumers with ``capacity`` request slots; see ``state.make_state``."""
        batch_max = self.setting[s.S_BATCH_MAX]
        return s.make_state(
            setting=self.setting,
            preferred=self.preferred,
            policy=self.policy,
            bucket_batch_max=(batch_max,),
            bucket_delay_ns=(0,),
            consumer_rank=range(consumers),
            consumer_batch_max=(batch_max,) * consumers,
            queue_count=self.queue_count,
            capacity=capacity,
            out_capacity=batch_max,
            as_arrays=as_arrays,
        )


class TritonBatcher(StrictModel):
    """Triton's dynamic batcher, one per server.

    ``dynamic_batching: false`` is a model without that stanza: no batching at all. ``config_pbtxt`` reads every
    field a model configuration file has from that file; those fields may then not be given here as well. After
    reading, the fields hold what the file said and ``read_from`` names it.
    """

    kind: Literal["triton"]
    config_pbtxt: str | None = None
    read_from: str | None = Field(default=None, description="information only: the file the fields came from")
    max_batch_size: NonNegativeInt = 0
    dynamic_batching: bool = True
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_us: NonNegativeInt = 0
    preserve_ordering: bool = False
    priority_levels: NonNegativeInt = 0
    default_priority_level: NonNegativeInt = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: dict[Annotated[int, Field(strict=False)], QueuePolicy] = Field(default_factory=dict)
    enforce_equal_shape: bool = False
    instances_per_slice: PositiveInt = 1
    rate_limiter: RateLimiting = RateLimiting()
    backend: Literal["blocking", "trt", "trt-graph", "eager"] = "blocking"
    input_consumed_ms: float | None = Field(default=None, ge=0)
    slice_choice: Literal["first", "longest_idle"] = "longest_idle"
    quirks: TritonQuirks = TritonQuirks()
    server_version: str = Field(default="2.51", description=f"{OLDEST} .. {LATEST}, YY.MM, or source-2026-06")

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, data: object, info: ValidationInfo) -> object:
        # A validator that runs first sees plain lists where the fields below are tuples.
        data = _tuples(data)
        if not isinstance(data, dict) or data.get("config_pbtxt") is None:
            return data
        given = sorted(FIELDS_FROM_FILE & set(data))
        if given:
            raise ScenarioError(f"{given[0]}: comes from config_pbtxt ({data['config_pbtxt']}); remove one of the two")
        directory = (info.context or {}).get("directory")
        fields = dict(data)
        fields["read_from"] = fields.pop("config_pbtxt")
        if not isinstance(fields["read_from"], str):
            raise ScenarioError(f"config_pbtxt: must be a path, got {fields['read_from']!r}")
        found = batcher_fields(fields["read_from"], directory)
        groups = found.pop("groups")
        limiter = fields.get("rate_limiter", {})
        if isinstance(limiter, dict):
            # The mode is an option of the server, the needs of each instance are the model's.
            if "groups" in limiter:
                raise ScenarioError(f"rate_limiter.groups: comes from config_pbtxt ({fields['read_from']})")
            fields["rate_limiter"] = {**limiter, "groups": groups}
        return _tuples({**fields, **found})

    @model_validator(mode="after")
    def _check(self) -> Self:
        triton_release(self.server_version)
        if not self.dynamic_batching:
            for name in DYNAMIC_FIELDS:
                if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].get_default(
                    call_default_factory=True
                ):
                    raise ScenarioError(f"{name}: needs dynamic_batching, which is false")
        for place, size in enumerate(self.preferred_batch_size):
            if not 1 <= size <= self.max_batch_size:
                raise ScenarioError(
                    f"preferred_batch_size[{place}]: must be in 1 .. max_batch_size ({self.max_batch_size}), got {size}"
                )
        self._check_levels()
        self._check_ordering()
        self._check_rate_limiter()
        return self

    def _check_levels(self) -> None:
        if self.priority_levels == 0:
            return
        if self.priority_levels > LEVELS_MAX:
            raise ScenarioError(f"priority_levels: at most {LEVELS_MAX} are modelled, got {self.priority_levels}")
        if not 1 <= self.default_priority_level <= self.priority_levels:
            raise ScenarioError(
                f"default_priority_level: must be in 1 .. priority_levels ({self.priority_levels}), "
                f"got {self.default_priority_level}"
            )
        for level in self.priority_queue_policy:
            if not 1 <= level <= self.priority_levels:
                raise ScenarioError(
                    f"priority_queue_policy.{level}: must be in 1 .. priority_levels ({self.priority_levels})"
                )

    def _check_ordering(self) -> None:
        if not self.preserve_ordering:
            return
        if self.priority_levels > 1:
            raise ScenarioError(f"preserve_ordering: allows one priority level, got {self.priority_levels}")
        named = {f"priority_queue_policy.{level}": policy for level, policy in self.priority_queue_policy.items()}
        for name, policy in {"default_queue_policy": self.default_queue_policy, **named}.items():
            if policy.default_timeout_us != 0 and policy.timeout_action == "DELAY":
                raise ScenarioError(f"{name}.timeout_action: must be REJECT with preserve_ordering, got DELAY")

    def _check_rate_limiter(self) -> None:
        limiter = self.rate_limiter
        if limiter.groups and sum(group.count for group in limiter.groups) != self.instances_per_slice:
            raise ScenarioError(
                "rate_limiter.groups: their counts must add up to instances_per_slice "
                f"({self.instances_per_slice}), got {sum(group.count for group in limiter.groups)}"
            )
        if limiter.mode == "off":
            return
        if self.backend != "blocking" and self.instances_per_slice > 1:
            raise ScenarioError(
                f"rate_limiter: several instances behind one backend thread are not modelled (backend {self.backend}, "
                f"instances_per_slice {self.instances_per_slice}); use backend blocking or one instance"
            )
        kinds: dict[str, bool] = {}
        for group in limiter.groups:
            for resource in group.resources:
                if kinds.setdefault(resource.name, resource.shared) != resource.shared:
                    raise ScenarioError(
                        f"rate_limiter.groups: resource {resource.name!r} is both global and per device"
                    )
                available = resource.count if limiter.pool is None else limiter.pool.get(resource.name, 0)
                if resource.count > available:
                    raise ScenarioError(
                        f"rate_limiter.pool.{resource.name}: {available} would prevent an instance from ever running, "
                        f"which needs {resource.count}"
                    )

    @property
    def batch_max(self) -> int:
        """Largest batch the server forms, in units (a model without batching takes 1)."""
        return max(1, self.max_batch_size)

    @property
    def release(self) -> TritonRelease:
        """What the chosen server version does and does not do."""
        return triton_release(self.server_version)

    @property
    def ordering_regression(self) -> bool:
        """Whether preserve_ordering is broken in this server (it then orders responses by completion)."""
        wanted = self.quirks.ordering_regression
        return self.release.ordering_regression if wanted is None else wanted

    @property
    def prefetching(self) -> bool:
        """Whether formed batches may wait while every instance is busy."""
        policy = self.default_queue_policy
        blank = policy.default_timeout_us == 0 and not policy.allow_timeout_override and policy.max_queue_size == 0
        return (self.priority_levels == 0 and blank) or not self.release.prefetch_off_with_policy

    def level_policies(self) -> tuple[QueuePolicy, ...]:
        """The queue policy of each priority level, level 1 first; a single one without levels."""
        if self.priority_levels == 0:
            return (self.default_queue_policy,)
        levels = range(1, self.priority_levels + 1)
        return tuple(self.priority_queue_policy.get(level, self.default_queue_policy) for level in levels)

    def with_quirks(self, **fields: int | None) -> TritonBatcher:
        """The same batcher with some quirks told; the others stay as they are."""
        return self.model_copy(update={"quirks": self.quirks.model_copy(update=fields)})

    def to_settings(self) -> TritonSettings:
        """Turns the configuration into the integers that ``preba.batching`` runs on.

        Returns
        -------
        TritonSettings
        """
        policies = self.level_policies()
        resources, limits = self._rate_table()
        preferred = tuple(sorted(set(self.preferred_batch_size))) or (
            (self.max_batch_size,) * (self.max_batch_size > 0)
        )
        setting = [0] * s.SETTING_COUNT
        for index, value in {
            s.S_KIND: s.KIND_TRITON,
            s.S_BATCH_MAX: self.batch_max,
            s.S_DELAY_NS: self.max_queue_delay_us * NS_PER_US,
            s.S_CONSUMER_CHOICE: s.CHOICE_LONGEST_IDLE if self.slice_choice == "longest_idle" else s.CHOICE_RANK,
            s.S_RESOURCES: len(resources),
            t.S_DYNAMIC: int(self.dynamic_batching),
            t.S_PREFETCH: int(self.prefetching),
            t.S_LEVELS: self.priority_levels,
            t.S_DEFAULT_LEVEL: self.default_priority_level,
            t.S_EQUAL_SHAPE: int(self.enforce_equal_shape and self.dynamic_batching),
            t.S_RATE_LIMITED: int(self.rate_limiter.mode != "off"),
            t.S_COUNTER_DRIFT: int(self._counter_drift()),
            t.S_BATCHER_FIRST_PERMILLE: self.batcher_first_permille(),
            t.S_BATCHER_FIRST_LATE_NS: self.quirks.batcher_first_late_us * NS_PER_US,
            t.S_BATCHER_FIRST_SEED: self.quirks.batcher_first_seed % (1 << 31),
            t.S_WAKE_NS: self.quirks.batcher_wakeup_us * NS_PER_US,
            t.S_WAKE_VARIES: int(self.quirks.batcher_wakeup_varies),
            t.S_SWEEP: int(self.release.prompt_reject),
            t.S_INSTANCES: self.instances_per_slice if self.backend == "blocking" else 1,
            t.S_INSTANCES_PER_CONSUMER: 1 if self.backend == "blocking" else self.instances_per_slice,
        }.items():
            setting[index] = value
        table = [
            value
            for policy in policies
            for value in (
                int(policy.timeout_action == "DELAY"),
                policy.default_timeout_us * NS_PER_US,
                int(policy.allow_timeout_override),
                policy.max_queue_size,
            )
        ]
        return TritonSettings(
            setting=tuple(setting),
            preferred=preferred,
            policy=(*table, *limits),
            queue_count=2 * len(policies),
            resources=resources,
        )

    def batcher_first_permille(self) -> int:
        """Races the batcher wins, in 1/1000: as told, else as measured where they are lost wake-ups, else none."""
        if self.quirks.batcher_first_permille is not None:
            return self.quirks.batcher_first_permille
        return BATCHER_FIRST_PERMILLE if self.release.lost_wakeup and not self.prefetching else 0

    @property
    def loses_wakeups(self) -> bool:
        """Whether a batcher that waits for an instance may miss its return."""
        return not self.prefetching and self.batcher_first_permille() > 0

    def _counter_drift(self) -> bool:
        wanted = self.quirks.counter_drift
        return self.release.counter_drift if wanted is None else wanted

    def _rate_table(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        limiter = self.rate_limiter
        if limiter.mode == "off":
            return (), ()
        groups = limiter.groups or (RateGroup(count=self.instances_per_slice),)
        largest: dict[str, int] = {}
        shared: dict[str, bool] = {}
        for group in groups:
            for resource in group.resources:
                largest[resource.name] = max(largest.get(resource.name, 0), resource.count)
                shared[resource.name] = resource.shared
        names = tuple(sorted(largest))
        pool = limiter.pool if limiter.pool is not None else largest
        table = [value for name in names for value in (pool.get(name, 0), int(shared[name]))]
        for group in groups:
            needs = {resource.name: resource.count for resource in group.resources}
            table += ([max(1, group.priority)] + [needs.get(name, 0) for name in names]) * group.count
        return names, tuple(table)


DYNAMIC_FIELDS = (
    "preferred_batch_size",
    "max_queue_delay_us",
    "preserve_ordering",
    "priority_levels",
    "default_priority_level",
    "default_queue_policy",
    "priority_queue_policy",
)
"""Fields of the dynamic_batching stanza, senseless without it."""


def _tuples(data: object) -> object:
    if isinstance(data, dict):
        return {key: _tuples(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return tuple(_tuples(value) for value in data)
    return data
