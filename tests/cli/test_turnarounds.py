"""Slices that are slow together: how far is measured, and how often they overtake one another follows from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preba.cli import turnarounds
from preba.cli.triton_threads import IDLE_NS
from preba.cli.turnarounds import as_played, narrowed, slow_together, unbiased
from preba.cli.ways import each_gap
from preba.jitter import EmpiricalJitter, GammaJitter
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.resolve import ResolvedScenario
from runtime.load.run import Played
from sim.run import simulate

TURNAROUND_US = 4000.0
FACTORS = (0.2, 0.4, 0.6, 0.7, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)
TURNAROUND = 1
"""Its column of a trace's overhead factors."""


def scenario(toy: Any, turnaround_us: float = TURNAROUND_US) -> ResolvedScenario:
    """Seven slices behind Triton's batcher that are seldom idle, and whose turnarounds vary much."""
    batcher = {"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 2000}
    model = toy.model(toy.profile({"1g": {"1": 20, "8": 34}}), {"kind": "poisson", "rate_rps": 1150}, batcher=batcher)
    overheads = {"turnaround_us": turnaround_us, "turnaround_jitter": {"kind": "empirical", "factors": FACTORS}}
    return toy.resolve(toy.scenario([model], partition="7x1g.5gb", server={"overheads": overheads}, requests=20_000))


def played(resolved: ResolvedScenario, *, window_ms: float | None) -> Played:
    """A run in which all that leave within a window turn round alike, or each by itself."""
    trace = draw_scenario_trace(resolved)
    if window_ms is not None:
        windows = trace.scheduled_ns // round(1e6 * window_ms)
        drawn = np.random.default_rng(5).permutation(np.resize(FACTORS, int(windows.max()) + 1))
        factors = trace.overhead_factor.copy()
        factors[:, TURNAROUND] = drawn[windows]
        trace = replace(trace, overhead_factor=factors)
    return as_played(simulate(resolved, trace=trace))


def test_slices_are_found_slow_together_if_they_are(toy: Any) -> None:
    """Windows in which all are alike show; slices that vary by themselves, and too few of them, do not."""
    resolved = scenario(toy)
    profiles = [model.profile for model in resolved.models]
    alike, alone = (
        slow_together(list(each_gap(resolved, profiles, played(resolved, window_ms=window_ms), IDLE_NS)))
        for window_ms in (40.0, None)
    )
    assert alike > 0.5
    assert alone < 0.15
    few = played(resolved, window_ms=40.0)
    records = few.result.records.select(np.arange(len(few.result.records)) < 500)
    few = replace(few, result=replace(few.result, records=records))
    assert slow_together(list(each_gap(resolved, profiles, few, IDLE_NS))) == 0.0


def test_turnaround_is_found_although_slices_are_slow_together(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what they have in common it comes nearer to the truth than as if each varied by itself."""
    resolved = scenario(toy)
    profiles = [model.profile for model in resolved.models]
    run = played(resolved, window_ms=40.0)
    found_us = unbiased(resolved, profiles, run).turnaround_us
    monkeypatch.setattr(turnarounds, "slow_together", lambda *_: 0.0)
    alone_us = unbiased(resolved, profiles, run).turnaround_us
    assert abs(found_us - TURNAROUND_US) < 0.5 * abs(alone_us - TURNAROUND_US)


def test_narrowed_spread_keeps_its_mean() -> None:
    """Deviations of a measured spread are smaller, its mean is not; other kinds and none stay as they are."""
    spread = EmpiricalJitter(kind="empirical", factors=FACTORS)
    half = narrowed(spread, 0.5)
    assert isinstance(half, EmpiricalJitter)
    assert half.factor_cv() == pytest.approx(0.5 * spread.factor_cv())
    assert np.mean(half.factors) == pytest.approx(np.mean(FACTORS))
    gamma = GammaJitter(kind="gamma", cv=0.3)
    assert narrowed(gamma, 0.5) is gamma
    assert narrowed(None, 0.5) is None
