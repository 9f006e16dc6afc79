"""Times at which all software is slow: windows, where a run begins in them, and what a trace makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from preba.arrival_kinds import ClosedLoopArrivals, PoissonArrivals
from preba.jitter import GammaJitter, NoJitter
from preba.sizes import ConstantSizes
from preba.slowness import Slowness
from preba.trace import Horizon, StreamSpec, Trace, draw_trace
from preba.trace_chunks import draw_chunks

STEADY = (NoJitter(kind="none"),) * 4
VARIES = (GammaJitter(kind="gamma", cv=0.5),) * 4
SERIES = Slowness(window_ms=20, factors=(1.0, 2.0, 3.0, 6.0))
TENSORS = ConstantSizes(kind="constant", tensor_kb=1)


def spec(arrivals: Any = None, *, slowness: Slowness | None = SERIES, jitters: Any = STEADY) -> StreamSpec:
    """Requests at 500 a second whose overheads vary so."""
    arrivals = arrivals or PoissonArrivals(kind="poisson", rate_rps=500)
    return StreamSpec(arrivals=arrivals, sizes=TENSORS, overhead_jitters=jitters, slowness=slowness)


def draw(*specs: StreamSpec, seed: int = 1) -> Trace:
    """A trace of 2000 requests."""
    return draw_trace(list(specs), seed=seed, horizon=Horizon(requests=2000), rate_changes=[])


def test_windows_follow_one_another_and_begin_again() -> None:
    """Factors are divided by their mean; a run begins in any window, and its next one comes 20 ms later."""
    times_ns = np.arange(0, 200, 5, dtype=np.int64) * 1_000_000
    begins = set()
    for seed in range(40):
        parts = SERIES.at(times_ns, np.random.default_rng(seed))
        assert parts.shape == (len(times_ns), 4)
        found = parts[:, 0]
        assert (parts == parts[:, :1]).all()
        first = [1.0 / 3.0, 2.0 / 3.0, 1.0, 2.0].index(pytest.approx(found[0]))
        expected = np.tile(np.repeat(np.roll([1, 2, 3, 6], -first) / 3.0, 4), 3)[: len(times_ns)]
        assert found == pytest.approx(expected)
        begins.add(first)
    assert begins == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {"factors": ()},
        {"factors": (0.0,)},
        {"factors": (-1.0,)},
        {"window_ms": 0},
        {"preprocessing": (0.0,)},
        {"preprocessing": (1.0, 1.0)},
    ],
)
def test_series_without_a_time_or_a_window_are_refused(wrong: dict[str, Any]) -> None:
    """Nothing, nothing but zeros, something below zero, no window, and another number of windows."""
    with pytest.raises(ValidationError):
        Slowness.model_validate({"window_ms": 20, "factors": (1.0,), **wrong})


def test_all_overheads_of_a_request_are_slow_as_it_is_due() -> None:
    """All four parts alike, by the window; how each varies by itself stays the same draw."""
    trace = draw(spec())
    assert (trace.overhead_factor == trace.overhead_factor[:, :1]).all()
    windows = trace.scheduled_ns // 20_000_000
    by_window = [set(trace.overhead_factor[windows == window, 0].round(9)) for window in range(8)]
    assert all(len(found) == 1 for found in by_window)
    assert by_window[:4] == by_window[4:]
    assert len(set.union(*by_window)) == 4
    varied, alone = draw(spec(jitters=VARIES)), draw(spec(jitters=VARIES, slowness=None))
    ratio = varied.overhead_factor / alone.overhead_factor
    assert ratio == pytest.approx(trace.overhead_factor)


def test_a_part_may_feel_less_of_it() -> None:
    """As much nearer to 1; the others all of it."""
    half = SERIES.model_copy(update={"shares": {"turnaround": 0.5, "response": 0.0}})
    whole, felt = draw(spec()).overhead_factor, draw(spec(slowness=half)).overhead_factor
    assert np.array_equal(felt[:, [0, 3]], whole[:, [0, 3]])
    assert felt[:, 1] == pytest.approx(1 + 0.5 * (whole[:, 1] - 1))
    assert (felt[:, 2] == 1.0).all()
    with pytest.raises(ValidationError):
        Slowness.model_validate({"window_ms": 20, "factors": (1.0,), "shares": {"dispatch": 1.0}})


def test_preprocessing_is_slow_in_the_windows_of_the_overheads() -> None:
    """Its own series, beginning where theirs does; how each input varies by itself stays the same draw."""
    both = SERIES.model_copy(update={"preprocessing": (4.0, 1.0, 1.0, 2.0)})
    alone, felt = draw(spec()), draw(spec(slowness=both))
    assert np.array_equal(felt.overhead_factor, alone.overhead_factor)
    assert (alone.preprocess_factor == 1.0).all()
    windows = np.searchsorted([0.5, 0.8, 1.5], felt.overhead_factor[:, 0])
    assert felt.preprocess_factor == pytest.approx(np.array([2.0, 0.5, 0.5, 1.0])[windows])
    varied = replace(spec(slowness=both), preprocess_jitter=VARIES[0])
    own = draw(replace(varied, slowness=None)).preprocess_factor
    assert draw(varied).preprocess_factor == pytest.approx(own * felt.preprocess_factor)
    pieces = draw_chunks([varied], seed=1, requests=2000, duration_ns=None, rate_changes=[], chunk=300)
    assert np.array_equal(np.concatenate([piece.preprocess_factor for piece in pieces]), draw(varied).preprocess_factor)


def test_models_of_one_machine_are_slow_together() -> None:
    """One series for all of them, and another beginning with another seed."""
    trace = draw(spec(), spec())
    windows = trace.scheduled_ns // 20_000_000
    for window in range(8):
        assert len(set(trace.overhead_factor[windows == window, 0].round(9))) == 1
    assert len({draw(spec(), seed=seed).overhead_factor[0, 0] for seed in range(20)}) > 1


def test_pieces_of_a_run_are_as_slow_as_the_whole() -> None:
    """Drawn in pieces or at once."""
    whole = draw(spec(jitters=VARIES))
    pieces = draw_chunks([spec(jitters=VARIES)], seed=1, requests=2000, duration_ns=None, rate_changes=[], chunk=300)
    assert np.array_equal(np.concatenate([piece.overhead_factor for piece in pieces]), whole.overhead_factor)


def test_closed_loops_have_no_times_to_be_slow_at() -> None:
    """When their requests are due is not known before: overheads are as without."""
    loop = ClosedLoopArrivals(kind="closed_loop", outstanding=4)
    both = SERIES.model_copy(update={"preprocessing": (1.0, 2.0, 3.0, 6.0)})
    assert draw(spec(loop, slowness=both)).equals(draw(spec(loop, slowness=None)))
