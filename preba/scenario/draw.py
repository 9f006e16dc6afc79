"""Drawing a scenario's trace: which streams each model has and how long they run. Nothing is played here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from preba.arrivals import Horizon, RateChange
from preba.jitter import NoJitter
from preba.scenario.resolve import ResolvedModel, ResolvedScenario
from preba.scenario.schema import RateChanges
from preba.trace import StreamSpec, Trace, draw_columns, draw_trace, model_streams
from preba.trace_chunks import draw_chunks
from preba.units import ns_from_ms, ns_from_s

LUCK = ("preprocess_factor", "execution_factor", "overhead_factor", "balancer_draw")
"""Columns of a trace in which the same requests differ from one draw to another."""


def draw_scenario_trace(resolved: ResolvedScenario) -> Trace:
    """Draws everything random about a scenario from its seed.

    Parameters
    ----------
    resolved : ResolvedScenario

    Returns
    -------
    Trace
        Any engine, and a live load generator, can play it.

    Raises
    ------
    TraceError, MissingFileError, FormatError
        See ``preba.trace.draw_trace``.
    """
    scenario = resolved.scenario
    changes = _rate_changes(resolved)
    run = scenario.run
    if run.requests is not None:
        horizon = Horizon(requests=run.requests)
    else:
        horizon = Horizon(duration_ns=ns_from_s(run.duration_s or 0.0))
    return draw_trace(
        [_stream_spec(resolved, model) for model in resolved.models],
        seed=scenario.seed,
        horizon=horizon,
        rate_changes=changes,
    )


def draw_luck(resolved: ResolvedScenario, trace: Trace) -> Trace:
    """A trace with all that a scenario draws for the same requests, at the same times: all but arrivals and inputs.

    Parameters
    ----------
    resolved : ResolvedScenario
    trace : Trace
        Of a scenario with the same models.
    """
    found = {name: getattr(trace, name).copy() for name in LUCK}
    for model in resolved.models:
        mine = np.flatnonzero(trace.model_index == model.index)
        drawn = draw_columns(
            _stream_spec(resolved, model), trace.scheduled_ns[mine],
            rngs=model_streams(resolved.scenario.seed, model.index), seed=resolved.scenario.seed,
            model=(model.index, len(resolved.models)),
        )  # fmt: skip
        for name, values in found.items():
            values[mine] = getattr(drawn, name)
    return replace(trace, **found)


def scenario_chunks(resolved: ResolvedScenario, chunk: int) -> Iterator[Trace]:
    """Draws the same requests as ``draw_scenario_trace``, in pieces of at most ``chunk``.

    Raises
    ------
    UnsupportedError, TraceError
        See ``preba.trace_chunks.draw_chunks``.
    """
    run = resolved.scenario.run
    return draw_chunks(
        [_stream_spec(resolved, model) for model in resolved.models],
        seed=resolved.scenario.seed,
        requests=run.requests,
        duration_ns=None if run.duration_s is None else ns_from_s(run.duration_s),
        rate_changes=_rate_changes(resolved),
        chunk=chunk,
    )


def _rate_changes(resolved: ResolvedScenario) -> list[RateChange]:
    names = [model.name for model in resolved.scenario.models]
    return [
        RateChange(
            at_ns=ns_from_s(event.at_s),
            factor=event.factor,
            model_index=None if event.model is None else names.index(event.model),
        )
        for event in resolved.scenario.events
        if isinstance(event, RateChanges)
    ]


def _stream_spec(resolved: ResolvedScenario, model: ResolvedModel) -> StreamSpec:
    config = model.config
    return StreamSpec(
        arrivals=config.arrivals,
        sizes=config.sizes,
        execution_jitter=config.execution_jitter or model.profile.jitter,
        preprocess_jitter=config.preprocess_jitter or NoJitter(kind="none"),
        overhead_jitters=resolved.scenario.server.overheads.jitters(),
        slowness=resolved.scenario.server.overheads.slowness,
        batch_units=config.batch_units,
        priority_shares=config.priority_shares,
        timeout_ns=ns_from_ms(config.timeout_ms),
    )


def offered_duration_ns(resolved: ResolvedScenario, trace: Trace) -> int:
    """Span over which a trace's requests arrive: the scenario's duration, or until its last request."""
    if resolved.scenario.run.duration_s is not None:
        return ns_from_s(resolved.scenario.run.duration_s)
    return int(trace.scheduled_ns.max()) if len(trace) else 0


def long_run_rates(resolved: ResolvedScenario) -> list[float | None]:
    """Per model: requests per second of its arrival process; None for a closed loop or where the rate is changed."""
    changed = [event.model for event in resolved.scenario.events if isinstance(event, RateChanges)]
    return [
        None if None in changed or model.config.name in changed else model.config.arrivals.mean_rate_rps()
        for model in resolved.models
    ]
