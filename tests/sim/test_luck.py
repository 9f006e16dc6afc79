"""The same requests with other luck: what is drawn anew, and what is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preba.scenario.draw import LUCK, draw_luck, draw_scenario_trace
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.trace_table import DTYPES
from sim.run import simulate
from sim.sweep.point import trace_of

SLOW = {"window_ms": 20, "factors": [0.5, 1.0, 2.5]}


def scenario(toy: Any, *, seed: int = 7, factors: Any = None) -> ResolvedScenario:
    """Two open loops of unequal rates and a closed one, whose overheads vary, together and each by itself."""
    loops: list[dict[str, Any]] = [{"kind": "poisson", "rate_rps": rate} for rate in (90, 40)]
    loops.append({"kind": "closed_loop", "outstanding": 2})
    varies = {"kind": "gamma", "cv": 0.2}
    models = [
        toy.model(toy.profile({"1g": {"1": 10}}), loop, name=f"m{place}", slices=[place], execution_jitter=varies)
        for place, loop in enumerate(loops)
    ]
    slowness = SLOW if factors is None else {**SLOW, "factors": factors}
    overheads = {"response_us": 900, "response_jitter": {"kind": "gamma", "cv": 0.5}, "slowness": slowness}
    return toy.resolve(
        toy.scenario(models, partition="7x1g.5gb", seed=seed, requests=900, server={"overheads": overheads})
    )


def with_seed(resolved: ResolvedScenario, seed: int) -> ResolvedScenario:
    """The same scenario with other draws."""
    return resolve(resolved.scenario.model_copy(update={"seed": seed}), folder=resolved.folder)


def test_own_luck_is_what_was_drawn(toy: Any) -> None:
    """With the trace's own seed nothing changes, whatever models it has."""
    resolved = scenario(toy)
    trace = draw_scenario_trace(resolved)
    assert draw_luck(resolved, trace).equals(trace)


def test_other_luck_leaves_arrivals_and_inputs(toy: Any) -> None:
    """Only factors and the balancer's draws are others, of every model; slow times are those of the trace's times."""
    resolved = scenario(toy)
    trace = draw_scenario_trace(resolved)
    other = draw_luck(with_seed(resolved, 8), trace)
    changed = {name for name in DTYPES if not np.array_equal(getattr(trace, name), getattr(other, name))}
    assert changed <= set(LUCK)
    assert {"execution_factor", "overhead_factor", "balancer_draw"} <= changed
    for model in range(3):
        mine = trace.model_index == model
        assert (trace.execution_factor[mine] != other.execution_factor[mine]).any()
    first = trace.model_index == 0
    windows = trace.scheduled_ns[first] // 20_000_000
    factors = other.overhead_factor[first][:, 0]  # the way does not vary by itself
    assert all(len(set(factors[windows == window])) == 1 for window in np.unique(windows))
    assert len(set(factors)) == 3


def test_points_of_a_sweep_that_differ_in_slow_times_have_traces_of_their_own(toy: Any) -> None:
    """A trace is drawn once for all points that have the same, and no others."""
    one, same, other = scenario(toy), scenario(toy), scenario(toy, factors=[1.0, 4.0])
    assert trace_of(one) is trace_of(same)
    assert not np.array_equal(trace_of(one).overhead_factor, trace_of(other).overhead_factor)


@pytest.mark.parametrize("shares", [{}, {"turnaround": 0.3, "response": 0.0}])
def test_engines_are_equal_in_slow_times(toy: Any, shares: Any) -> None:
    """Every record, with slices that batch and ways, turnarounds and answers that feel it."""
    overheads = {
        "frontend_us": 700, "turnaround_us": 2500, "response_us": 900, "response_next_us": 60,
        "slowness": {**SLOW, "shares": shares},
    }  # fmt: skip
    model = toy.model(
        toy.profile({"1g": {"1": 10, "8": 15}}), {"kind": "poisson", "rate_rps": 1500},
        batcher={"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 3000},
    )  # fmt: skip
    resolved = toy.resolve(toy.scenario([model], partition="7x1g.5gb", server={"overheads": overheads}, requests=3000))
    reference, compiled = (simulate(resolved, engine=name).result.records for name in ("reference", "compiled"))
    assert reference.equals(compiled)
    assert len(np.unique(reference.enqueued_ns - reference.scheduled_ns)) == 3
