"""The scenario file, version 1: strict value classes and nothing else.

An unknown key, a wrong type or a missing field is an error (``load`` turns it into one readable line).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from preba.arrivals import ArrivalsConfig
from preba.batchers import BatcherConfig, NoBatching
from preba.hardware import HardwareConfig
from preba.jitter import JitterConfig, NoJitter
from preba.mig.catalogue import Device
from preba.preprocessing import NoPreprocessing, PreprocessingConfig
from preba.profile import LatencyProfile
from preba.scenario.live import Live
from preba.sizes import SizesConfig
from preba.slowness import Slowness
from preba.strict import StrictModel
from preba.trace_table import PARTS
from preba.validation import Validation

SCHEMA_VERSION = 1


class Run(StrictModel):
    """How long to run; exactly one of ``requests`` and ``duration_s``."""

    requests: PositiveInt | None = None
    duration_s: PositiveFloat | None = None
    warmup_requests: NonNegativeInt | None = None
    warmup_s: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Run:
        if (self.requests is None) == (self.duration_s is None):
            raise ValueError("give exactly one of requests and duration_s")
        if self.warmup_requests is not None and self.warmup_s is not None:
            raise ValueError("give at most one of warmup_requests and warmup_s")
        return self


class Gpu(StrictModel):
    """One or more equal GPUs and how each is partitioned.

    ``device`` names a file in configs/devices (or is one, or the device itself).
    ``partition`` is ``"full"`` (MIG off), ``"7x1g.5gb"``, ``{profile: count}`` or a list of explicit placements such as
    ``["3g.20gb@4", "2g.10gb@0"]``.
    """

    device: str | Device
    partition: str | dict[str, PositiveInt] | tuple[str, ...]
    count: PositiveInt = 1


class Overheads(StrictModel):
    """Measured or assumed costs of the serving software itself; all zero unless given."""

    ingress_us: NonNegativeFloat = 0.0
    """From the client to the first preprocessing unit, per request; of no effect on requests without preprocessing."""
    frontend_us: NonNegativeFloat = 0.0
    """From the end of preprocessing (or arrival) to the batcher, per request."""
    timer_us: NonNegativeFloat = 0.0
    """How late a batcher's timer rings: a batch that is due leaves then, or with an arrival that comes before."""
    dispatch_us: NonNegativeFloat = 0.0
    """From the batcher to the start of the execution, per batch; its slice is taken meanwhile."""
    turnaround_us: NonNegativeFloat = 0.0
    """From the end of one execution until its slice can take the next batch."""
    turnaround_request_us: NonNegativeFloat = 0.0
    """So much more for each request of that execution: handing out its answers one by one."""
    response_request_us: NonNegativeFloat = 0.0
    """The answers of a batch are this much later for each request in it, beyond ``response_us``."""
    response_next_us: NonNegativeFloat = 0.0
    """The answers of a batch come one after another, so far apart: in the order of its requests, or, where overheads
    vary and the batcher need not keep the order, beginning with each of them in turn."""
    response_us: NonNegativeFloat = 0.0
    """From the end of execution to a client having the first answer of the batch."""
    frontend_jitter: JitterConfig | None = None
    """How ``ingress_us`` and ``frontend_us`` vary from request to request."""
    turnaround_jitter: JitterConfig | None = None
    """How the turnaround varies from batch to batch."""
    response_jitter: JitterConfig | None = None
    """How the first answer of a batch, and all with it, vary from batch to batch."""
    response_next_jitter: JitterConfig | None = None
    """How ``response_next_us`` varies from answer to answer."""
    slowness: Slowness | None = None
    """How slow the software is at times, beyond how each part varies by itself: the ways there (``ingress_us``,
    ``frontend_us``), turnaround and answers of a request are longer as it is when the request is due, and so is its
    preprocessing, by a series of its own. Requests of closed loops, of which that is not known before, feel nothing."""

    def jitters(self) -> tuple[JitterConfig, ...] | None:
        """Those of the parts of a trace's ``overhead_factor``, in their order; ``None`` where nothing varies."""
        found = tuple(getattr(self, f"{part}_jitter") or NoJitter(kind="none") for part in PARTS["overhead_factor"])
        steady = self.slowness is None and all(one.kind == "none" for one in found)
        return None if steady else found


class Server(StrictModel):
    """How batchers and slices are wired.

    ``central``: one batcher per model in front of all its slices (PREBA). ``per_slice``: one server with its own
    batcher per slice, and a balancer in front (NVIDIA's flower demo).
    """

    topology: Literal["central", "per_slice"] = "central"
    balancer: Literal["round_robin", "random", "least_outstanding", "power_of_two"] = "round_robin"
    on_slice_loss: Literal["retry", "fail"] = "retry"
    """What becomes of the requests a lost slice was executing: tried once more elsewhere, or failed."""
    overheads: Overheads = Overheads()


class Model(StrictModel):
    """One served model with its own traffic."""

    name: str = Field(min_length=1)
    profile: str | LatencyProfile
    """Name of a file in configs/profiles, a path, or the profile itself."""
    execution_profile: str | LatencyProfile | None = None
    """What executions really take, where that is not the profile the batchers were planned with (measured times)."""
    arrivals: ArrivalsConfig
    sizes: SizesConfig
    batcher: BatcherConfig = NoBatching(kind="none")
    slices: Literal["all"] | dict[str, PositiveInt] | tuple[NonNegativeInt, ...] = "all"
    """Which slices serve it: all, so many of a profile, or indices. No slice serves two models."""
    slo_p99_ms: PositiveFloat | None = None
    execution_jitter: JitterConfig | None = None
    """Overrides the profile's own jitter."""
    preprocess_jitter: JitterConfig | None = None
    batch_units: PositiveInt = 1
    """Batch dimension of each request."""
    timeout_ms: NonNegativeFloat = 0.0
    """A per-request timeout sent along with each request (Triton with allow_timeout_override); 0 = none."""
    priority_shares: dict[PositiveInt, PositiveFloat] | None = None
    """Priority level to share of the requests (Triton priority levels)."""


class SliceFails(StrictModel):
    """A slice drops out, losing what it executes."""

    kind: Literal["slice_fails"]
    at_s: NonNegativeFloat
    slice: NonNegativeInt


class SliceReturns(StrictModel):
    """A slice that dropped out is back, idle."""

    kind: Literal["slice_returns"]
    at_s: NonNegativeFloat
    slice: NonNegativeInt


class RateChanges(StrictModel):
    """From this moment on arrivals come ``factor`` times as fast as configured, for one model or all."""

    kind: Literal["rate_changes"]
    at_s: NonNegativeFloat
    factor: NonNegativeFloat
    model: str | None = None


Event = Annotated[SliceFails | SliceReturns | RateChanges, Field(discriminator="kind")]


class Scenario(StrictModel):
    """A complete what-if: traffic, models, preprocessing, batching, geometry, hardware."""

    preba: Literal[1]
    """Version of this file format."""
    name: str = Field(min_length=1)
    description: str = ""
    seed: NonNegativeInt = 1
    run: Run
    gpus: Annotated[tuple[Gpu, ...], Field(min_length=1)]
    server: Server = Server()
    preprocessing: PreprocessingConfig = NoPreprocessing(kind="none")
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    events: tuple[Event, ...] = ()
    hardware: HardwareConfig = HardwareConfig()
    live: Live = Live()
    """For ``preba serve``; the simulator does not read it."""
    validation: Validation = Validation()
    """For ``preba validate``: how near a simulation has to come to a live run."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Scenario:
        if self.run.duration_s is not None and any(model.arrivals.kind == "closed_loop" for model in self.models):
            raise ValueError("run.duration_s: says not how many requests a closed loop makes; give run.requests")
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: two models are named {twice[0]!r}")
        for index, event in enumerate(self.events):
            if isinstance(event, RateChanges) and event.model is not None and event.model not in names:
                raise ValueError(f"events[{index}].model: no model named {event.model!r}; known: {', '.join(names)}")
        return self
