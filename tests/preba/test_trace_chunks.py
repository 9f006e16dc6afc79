"""A trace drawn in pieces is the trace drawn at once, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from preba.arrivals import ArrivalsConfig, Horizon, RateChange
from preba.errors import TraceError, UnsupportedError
from preba.jitter import JitterConfig
from preba.sizes import SizesConfig
from preba.trace import StreamSpec, draw_trace, merge
from preba.trace_chunks import draw_chunks

ARRIVALS: list[dict[str, Any]] = [
    {"kind": "poisson", "rate_rps": 900.0},
    {"kind": "gamma", "rate_rps": 500.0, "cv": 2.0},
    {"kind": "deterministic", "rate_rps": 250.0},
    {"kind": "onoff", "rate_on_rps": 2000.0, "mean_on_s": 0.1, "mean_off_s": 0.2},
    {"kind": "diurnal", "mean_rps": 700.0, "amplitude": 0.9, "period_s": 2.0},
]
SIZES: list[dict[str, Any]] = [
    {"kind": "lognormal", "mean_kb": 100.0, "sigma": 0.5},
    {"kind": "uniform", "low_s": 1.0, "high_s": 9.0},
    {"kind": "librispeech", "subset": "test-clean"},
    {"kind": "constant", "jpeg_kb": 50.0},
]
JITTERS: list[dict[str, Any]] = [
    {"kind": "none"},
    {"kind": "gamma", "cv": 0.5},
    {"kind": "lognormal", "cv": 0.3},
    {"kind": "exponential"},
    {"kind": "uniform", "cv": 0.2},
    {"kind": "empirical", "factors": [1.0, 2.0, 4.0]},
]


def parsed(kind: Any, data: dict[str, Any]) -> Any:
    return TypeAdapter(kind).validate_json(json.dumps(data))


@st.composite
def specs(draw: st.DrawFn) -> StreamSpec:
    """One model's streams."""
    return StreamSpec(
        arrivals=parsed(ArrivalsConfig, draw(st.sampled_from(ARRIVALS))),
        sizes=parsed(SizesConfig, draw(st.sampled_from(SIZES))),
        execution_jitter=parsed(JitterConfig, draw(st.sampled_from(JITTERS))),
        preprocess_jitter=parsed(JitterConfig, draw(st.sampled_from(JITTERS))),
        overhead_jitters=draw(
            st.sampled_from([None, tuple(parsed(JitterConfig, JITTERS[place]) for place in (0, 1, -1, 1))])
        ),
        priority_shares=draw(st.sampled_from([None, {1: 1.0, 2: 3.0}])),
    )


@given(
    models=st.lists(specs(), min_size=1, max_size=3),
    seed=st.integers(0, 50),
    requests=st.sampled_from([1, 700, 1500]),
    by_duration=st.booleans(),
    chunk=st.sampled_from([1, 64, 500, 4000]),
    factor=st.sampled_from([None, 0.3, 2.5]),
)
@settings(max_examples=120, deadline=None)
def test_pieces_put_together_are_the_whole(
    models: list[StreamSpec], seed: int, requests: int, by_duration: bool, chunk: int, factor: float | None
) -> None:
    """Whatever the kinds, the horizon and the size of the pieces, every column of every request is the same."""
    changes = [] if factor is None else [RateChange(at_ns=200_000_000, factor=factor)]
    duration_ns = 800_000_000 if by_duration else None
    horizon = Horizon(duration_ns=duration_ns) if by_duration else Horizon(requests=requests)
    limits = {"requests": None if by_duration else requests, "duration_ns": duration_ns}
    try:
        whole = draw_trace(models, seed=seed, horizon=horizon, rate_changes=changes)
    except TraceError:
        return  # nothing arrives within so short a duration
    pieces = list(draw_chunks(models, seed=seed, rate_changes=changes, chunk=chunk, **limits))
    assert all(0 < len(piece) <= chunk for piece in pieces)
    assert sum(map(len, pieces)) == len(whole)
    assert merge(pieces).equals(whole)


def first(pieces: Iterator[Any]) -> Any:
    return next(pieces)


def test_arrivals_that_cannot_be_streamed_are_named() -> None:
    """A closed loop's times depend on the answers: that is said, with the way out."""
    closed = parsed(ArrivalsConfig, {"kind": "closed_loop", "outstanding": 3, "think_ms": 1.0})
    spec = StreamSpec(arrivals=closed, sizes=parsed(SizesConfig, SIZES[0]))
    with pytest.raises(UnsupportedError, match="closed_loop"):
        first(draw_chunks([spec], seed=1, requests=10, duration_ns=None))


def test_rate_that_goes_to_zero_ends_the_pieces() -> None:
    """A rate that never comes back ends a run of given duration, and is an error for a number of requests."""
    spec = StreamSpec(arrivals=parsed(ArrivalsConfig, ARRIVALS[0]), sizes=parsed(SizesConfig, SIZES[0]))
    stop = [RateChange(at_ns=100_000_000, factor=0.0)]
    pieces = list(draw_chunks([spec], seed=1, requests=None, duration_ns=10**12, rate_changes=stop, chunk=50))
    assert 50 < sum(map(len, pieces)) < 150
    with pytest.raises(TraceError, match="only"):
        list(draw_chunks([spec], seed=1, requests=10_000, duration_ns=None, rate_changes=stop, chunk=50))
