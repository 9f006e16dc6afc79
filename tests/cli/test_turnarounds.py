"""Slices that are slow together overtake one another less: the turnaround is found all the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from preba.cli.triton_threads import with_overheads
from preba.cli.turnarounds import as_played, unbiased
from preba.scenario.resolve import ResolvedScenario, resolve
from sim.run import simulate

TURNAROUND_US = 4000.0


def scenario(toy: Any) -> ResolvedScenario:
    """Seven slices behind Triton's batcher that are seldom idle, and all of which are slow at times."""
    batcher = {"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 2000}
    model = toy.model(toy.profile({"1g": {"1": 20, "8": 34}}), {"kind": "poisson", "rate_rps": 1150}, batcher=batcher)
    drawn = np.random.default_rng(5).choice((0.2, 0.4, 0.6, 0.7, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0), 1000)
    overheads = {
        "turnaround_us": TURNAROUND_US, "turnaround_jitter": {"kind": "gamma", "cv": 0.1},
        "slowness": {"window_ms": 40, "factors": drawn.tolist()},
    }  # fmt: skip
    return toy.resolve(toy.scenario([model], partition="7x1g.5gb", server={"overheads": overheads}, requests=60_000))


def test_turnaround_is_found_although_slices_are_slow_together(toy: Any) -> None:
    """With what they have in common it comes nearer to the truth than as if each varied by itself."""
    truth = scenario(toy)
    profiles = [model.profile for model in truth.models]
    played = resolve(truth.scenario.model_copy(update={"seed": 99}), folder=truth.folder)
    run = as_played(simulate(played))
    overheads = truth.scenario.server.overheads.model_copy(update={"turnaround_us": 2500.0})
    resolved = resolve(with_overheads(truth.scenario, overheads), folder=truth.folder)
    wide = {"kind": "empirical", "factors": overheads.slowness.factors}
    each = overheads.model_validate({**overheads.model_dump(), "slowness": None, "turnaround_jitter": wide})
    alone = resolve(with_overheads(resolved.scenario, each), folder=resolved.folder)
    found_us, alone_us = (unbiased(known, profiles, run).turnaround_us for known in (resolved, alone))
    assert abs(found_us - TURNAROUND_US) < 0.5 * abs(alone_us - TURNAROUND_US)
    assert abs(found_us - TURNAROUND_US) < 0.1 * TURNAROUND_US
