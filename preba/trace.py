"""The trace: everything random about a run, drawn before it is played (laws 2 and 4).

Arrival, size, service noise, priority, balancer draws and think time belong to the request. Each quantity of
each model has a stream of its own, so changing one never changes another. The table itself is in
``preba.trace_table``, its Parquet form in ``preba.trace_file`` (all importable from here); nothing is played.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from preba.arrivals import (
    ArrivalsConfig,
    ClosedLoopArrivals,
    Horizon,
    RateChange,
    draw_arrivals,
    draw_available,
)
from preba.errors import TraceError
from preba.jitter import JitterConfig, NoJitter, draw_factors
from preba.sizes import SizesConfig, draw_sizes
from preba.slowness import Slowness
from preba.trace_file import read_trace, write_trace
from preba.trace_table import PARTS, Request, Trace, merge, steady_overheads
from preba.units import ns_from_ms

__all__ = [
    "STREAMS",
    "Horizon",
    "RateChange",
    "Request",
    "StreamSpec",
    "Trace",
    "draw_columns",
    "draw_trace",
    "merge",
    "model_streams",
    "read_trace",
    "stream",
    "write_trace",
]

STREAMS = {
    "arrivals": 0,
    "arrival_states": 1,
    "sizes": 2,
    "preprocess_jitter": 3,
    "execution_jitter": 4,
    "priority": 5,
    "balancer": 6,
    "think": 7,
    "frontend_jitter": 8,
    "turnaround_jitter": 9,
    "response_jitter": 10,
    "response_next_jitter": 11,
    "slowness": 12,
}
"""Stream name to its place in the seed's key; a number is never reused, so old seeds keep their meaning."""


@dataclass(frozen=True)
class StreamSpec:
    """What one model's requests are drawn from.

    Attributes
    ----------
    arrivals : ArrivalsConfig
    sizes : SizesConfig
    execution_jitter, preprocess_jitter : JitterConfig
    overhead_jitters : tuple of JitterConfig, optional
        As many as an ``overhead_factor`` has parts, in their order.
    slowness : Slowness, optional
        Of all these overheads at once, and of preprocessing, where requests are due at known times.
    batch_units : int
        Batch dimension of every request.
    priority_shares : mapping of int to float, optional
        Priority level (>= 1) to its share of the requests, in any common unit; ``None``: no levels (0).
    timeout_ns : int
        Queue timeout sent along with every request; 0 = none.
    """

    arrivals: ArrivalsConfig
    sizes: SizesConfig
    execution_jitter: JitterConfig = field(default_factory=lambda: NoJitter(kind="none"))
    preprocess_jitter: JitterConfig = field(default_factory=lambda: NoJitter(kind="none"))
    overhead_jitters: tuple[JitterConfig, ...] | None = None
    slowness: Slowness | None = None
    batch_units: int = 1
    priority_shares: Mapping[int, float] | None = None
    timeout_ns: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_units < 1 << 31:
            raise TraceError(f"batch_units: must be >= 1, got {self.batch_units}")
        if self.timeout_ns < 0:
            raise TraceError(f"timeout_ns: must be >= 0, got {self.timeout_ns}")
        for level, share in (self.priority_shares or {}).items():
            if not 1 <= level < 1 << 31 or not 0 < share < np.inf:
                raise TraceError(f"priority_shares: level >= 1 and share > 0 needed, got {level}: {share}")


def stream(seed: int, model_index: int, name: str) -> np.random.Generator:
    """The generator of one quantity of one model; depends on nothing else.

    Parameters
    ----------
    seed : int
        Of the run, >= 0.
    model_index : int
    name : str
        A key of ``STREAMS``.
    """
    key = (model_index, STREAMS[name])
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def draw_trace(
    specs: Sequence[StreamSpec],
    *,
    seed: int,
    horizon: Horizon,
    rate_changes: Sequence[RateChange] = (),
) -> Trace:
    """Draws everything random about a run.

    With a duration, each model's requests are all that arrive within it. With a number of requests, that is
    the number over all models: the first so many of all open-loop arrivals; where some models are closed
    loops, each of the two groups gets the part of the requests that it has of the models, and closed loops
    share theirs in proportion to their clients. A model added behind the others, or a longer horizon,
    changes no request's values: at most it moves where the trace ends.

    Parameters
    ----------
    specs : sequence of StreamSpec
        One per model, in the order of the scenario.
    seed : int
    horizon : Horizon
    rate_changes : sequence of RateChange
        Those without a ``model_index`` act on all open-loop models.

    Returns
    -------
    Trace

    Raises
    ------
    TraceError
        The arrivals cannot fill the horizon, none comes within it, or a rate change meets a closed loop.
    MissingFileError, FormatError
        A file of recorded arrivals or sizes is missing or cannot be read.
    """
    if not specs:
        raise TraceError("trace: needs at least one model")
    times = _scheduled(specs, seed=seed, horizon=horizon, rate_changes=rate_changes)
    if sum(len(scheduled) for scheduled in times) == 0:
        raise TraceError("trace: no request arrives within the run; raise the rate or the duration")
    return merge(
        [
            _draw_model(spec, scheduled, seed=seed, model=(index, len(specs)))
            for index, (spec, scheduled) in enumerate(zip(specs, times, strict=True))
        ]
    )


def _scheduled(
    specs: Sequence[StreamSpec], *, seed: int, horizon: Horizon, rate_changes: Sequence[RateChange]
) -> list[NDArray[np.int64]]:
    """Scheduled times of each model, cut to the horizon."""
    closed = [isinstance(spec.arrivals, ClosedLoopArrivals) for spec in specs]
    for change in rate_changes:
        if change.model_index is not None and not 0 <= change.model_index < len(specs):
            raise TraceError(f"rate change.model_index: must be < {len(specs)}, got {change.model_index}")
        if all(closed) if change.model_index is None else closed[change.model_index]:
            raise TraceError("rate change: a closed loop has no rate to change; use an open-loop kind of arrivals")
    horizons = _horizons(specs, horizon)
    draw = draw_arrivals if len(specs) == 1 else draw_available
    times = [
        draw(
            spec.arrivals,
            rng=stream(seed, index, "arrivals"),
            state_rng=stream(seed, index, "arrival_states"),
            horizon=horizons[index],
            rate_changes=[
                change
                for change in rate_changes
                if change.model_index == index or (change.model_index is None and not closed[index])
            ],
        )
        for index, spec in enumerate(specs)
    ]
    opened = [index for index in range(len(specs)) if not closed[index]]
    requests = horizons[opened[0]].requests if opened else None
    if requests is not None and len(specs) > 1:
        kept = _first(requests, [times[index] for index in opened])
        for index, count in zip(opened, kept, strict=True):
            times[index] = times[index][:count]
    return times


def _horizons(specs: Sequence[StreamSpec], horizon: Horizon) -> list[Horizon]:
    """For a closed loop its share of the requests; for an open-loop model what all of those have together."""
    if horizon.requests is None:
        return [horizon] * len(specs)
    clients = [spec.arrivals.outstanding if isinstance(spec.arrivals, ClosedLoopArrivals) else 0 for spec in specs]
    budget = horizon.requests * sum(1 for count in clients if count) // len(specs)
    # Cumulative rounding: the parts add up to the budget exactly.
    ends = [budget * sum(clients[: index + 1]) // max(sum(clients), 1) for index in range(len(clients))]
    parts = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    for count, part in zip(clients, parts, strict=True):
        if count and part < 1:
            raise TraceError(f"requests: {horizon.requests} leave a closed loop without any; ask for more")
    rest = horizon.requests - budget
    return [Horizon(requests=part if count else rest) for count, part in zip(clients, parts, strict=True)]


def _first(requests: int, times: list[NDArray[np.int64]]) -> list[int]:
    """How many of each model's times are among the first ``requests`` of all, ties by model."""
    merged = np.concatenate(times)
    if len(merged) < requests:
        raise TraceError(
            f"arrivals: {requests} requests asked, only {len(merged)} come: recordings end "
            "(set loop: true) or rates stay at 0; ask for fewer"
        )
    model = np.repeat(np.arange(len(times)), [len(scheduled) for scheduled in times])
    order = np.argsort(merged, kind="stable")[:requests]
    return [int(count) for count in np.bincount(model[order], minlength=len(times))]


def _draw_model(spec: StreamSpec, scheduled: NDArray[np.int64], *, seed: int, model: tuple[int, int]) -> Trace:
    """All columns of one model's requests; ``model`` is its index and the number of models."""
    return draw_columns(spec, scheduled, rngs=model_streams(seed, model[0]), seed=seed, model=model)


def model_streams(seed: int, model_index: int) -> dict[str, np.random.Generator]:
    """The generators of all quantities of one model, by name of the stream."""
    return {name: stream(seed, model_index, name) for name in STREAMS}


def draw_columns(
    spec: StreamSpec,
    scheduled: NDArray[np.int64],
    *,
    rngs: Mapping[str, np.random.Generator],
    seed: int,
    model: tuple[int, int],
) -> Trace:
    """The next requests of one model, with everything about them but their times drawn from its streams.

    Parameters
    ----------
    spec : StreamSpec
    scheduled : int64[n]
    rngs : mapping of str to numpy.random.Generator
        By name of the stream; they move on by n requests.
    seed : int
    model : tuple of int
        Its index and the number of models.
    """
    index, model_count = model
    count = len(scheduled)
    sizes = draw_sizes(spec.sizes, rng=rngs["sizes"], count=count)
    nothing = np.zeros(count, dtype=np.int64)
    outstanding: list[int | None] = [None] * model_count
    backoff = [0] * model_count
    think = nothing
    if isinstance(spec.arrivals, ClosedLoopArrivals):
        outstanding[index] = spec.arrivals.outstanding
        backoff[index] = ns_from_ms(spec.arrivals.refusal_backoff_ms)
        think = spec.arrivals.draw_think_ns(count, rngs["think"])
    return Trace(
        scheduled_ns=scheduled,
        model_index=np.full(count, index, dtype=np.int32),
        jpeg_bytes=sizes if spec.sizes.modality == "image" else nothing,
        audio_ns=sizes if spec.sizes.modality == "audio" else nothing,
        tensor_bytes=sizes if spec.sizes.modality == "tensor" else nothing,
        batch_units=np.full(count, spec.batch_units, dtype=np.int32),
        priority=_draw_priority(spec, count, rngs["priority"]),
        timeout_ns=np.full(count, spec.timeout_ns, dtype=np.int64),
        preprocess_factor=_draw_preprocessing(spec, scheduled, rngs["preprocess_jitter"], seed),
        execution_factor=draw_factors(spec.execution_jitter, rng=rngs["execution_jitter"], count=count),
        overhead_factor=_draw_overheads(spec, scheduled, rngs, seed),
        balancer_draw=rngs["balancer"].random((count, 2)),
        think_ns=think,
        outstanding=tuple(outstanding),
        refusal_backoff_ns=tuple(backoff),
        seed=seed,
    )


def _draw_preprocessing(
    spec: StreamSpec, scheduled: NDArray[np.int64], rng: np.random.Generator, seed: int
) -> NDArray[np.float64]:
    factors = draw_factors(spec.preprocess_jitter, rng=rng, count=len(scheduled))
    if spec.slowness is None or not spec.slowness.preprocessing or isinstance(spec.arrivals, ClosedLoopArrivals):
        return factors
    # The windows of the overheads: what is slow there is slow here.
    return factors * spec.slowness.preprocessing_at(scheduled, stream(seed, 0, "slowness"))


def _draw_overheads(
    spec: StreamSpec, scheduled: NDArray[np.int64], rngs: Mapping[str, np.random.Generator], seed: int
) -> NDArray[np.float64]:
    count = len(scheduled)
    if spec.overhead_jitters is None:
        return steady_overheads(count)
    factors = np.column_stack(
        [
            draw_factors(jitter, rng=rngs[f"{part}_jitter"], count=count)
            for part, jitter in zip(PARTS["overhead_factor"], spec.overhead_jitters, strict=True)
        ]
    )
    if spec.slowness is None or isinstance(spec.arrivals, ClosedLoopArrivals):
        return factors
    # One machine serves all models: where its series begins is one draw for all of them, and for all pieces of a run.
    return factors * spec.slowness.at(scheduled, stream(seed, 0, "slowness"))


def _draw_priority(spec: StreamSpec, count: int, rng: np.random.Generator) -> NDArray[np.int32]:
    if not spec.priority_shares:
        return np.zeros(count, dtype=np.int32)
    levels = sorted(spec.priority_shares)
    ends = np.cumsum([spec.priority_shares[level] for level in levels])
    chosen = np.searchsorted(ends / ends[-1], rng.random(count), side="right")
    return np.array(levels, dtype=np.int32)[chosen]
