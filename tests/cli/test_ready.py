"""Batches that wait for nothing but a slice: what passes between two of them, and the way of who completes one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preba.cli.triton_threads import IDLE_NS, head_waits_us, last_waits_us
from preba.cli.turnarounds import as_played, ready_of
from preba.cli.ways import Ready, gaps_between_batches
from preba.scenario.resolve import ResolvedScenario
from sim.run import simulate

FRONT_US, FRONT_CV, TURNAROUND_US = 1500.0, 0.2, 3000.0
DELAY_NS = 20_000_000


def scenario(
    toy: Any, *, rate_rps: float = 800.0, units: int = 1, turnaround_us: float = TURNAROUND_US, **batcher: Any
) -> ResolvedScenario:
    """Seven instances of Triton's that prefer batches of four or eight and wait long for them."""
    policy = {"kind": "triton", "max_batch_size": 8, "preferred_batch_size": [4, 8], "max_queue_delay_us": 20_000}
    model = toy.model(
        toy.profile({"1g": {"1": 20, "8": 34}}),
        {"kind": "poisson", "rate_rps": rate_rps},
        batcher=policy | batcher,
        batch_units=units,
    )
    overheads = {
        "frontend_us": FRONT_US, "frontend_jitter": {"kind": "gamma", "cv": FRONT_CV}, "turnaround_us": turnaround_us,
    }  # fmt: skip
    return toy.resolve(toy.scenario([model], partition="7x1g.5gb", server={"overheads": overheads}, requests=20_000))


def test_ready_is_who_has_waited_or_is_complete() -> None:
    """So long after the oldest request, or with the newest if the size is one of those; both with the way."""
    oldest, newest = np.array([0, 0, 0]), np.array([3, 9, 3])
    size = np.array([4, 4, 3], dtype=np.int32)
    assert Ready().at_ns(oldest, newest, size).tolist() == [0, 0, 0]
    assert Ready(5, frozenset({4}), 2).at_ns(oldest, newest, size).tolist() == [5, 7, 7]


def test_complete_batches_tell_the_turnaround(toy: Any) -> None:
    """With a long delay hardly a batch waits it out and then for a slice as well: those that are complete do."""
    resolved = scenario(toy, rate_rps=1000.0)
    batcher = resolved.models[0].config.batcher
    profiles = [model.profile for model in resolved.models]
    run = as_played(simulate(resolved))
    waited, complete = (
        gaps_between_batches(resolved, profiles, [run], ready)
        for ready in (Ready(DELAY_NS, way_ns=IDLE_NS), ready_of(batcher))
    )
    assert ready_of(batcher) == Ready(DELAY_NS, frozenset({4, 8}), IDLE_NS)
    assert len(complete[4]) > max(10 * len(waited.get(4, ())), 100)
    assert np.mean(complete[4]) == pytest.approx(TURNAROUND_US, rel=0.1)


def test_complete_is_counted_in_units(toy: Any) -> None:
    """Requests of two units: two of them are a preferred batch of four units, four of them one of eight."""
    resolved = scenario(toy, rate_rps=500.0, units=2)
    run = as_played(simulate(resolved))
    profiles = [model.profile for model in resolved.models]
    gaps = gaps_between_batches(resolved, profiles, [run], ready_of(resolved.models[0].config.batcher))
    assert len(gaps[2]) > 100
    assert np.mean(gaps[2]) == pytest.approx(TURNAROUND_US, rel=0.1)
    assert len(last_waits_us(resolved, run.result.records)) > 500


def test_without_prefetching_no_batch_is_complete_before_a_slice_is_back(toy: Any) -> None:
    """A bounded queue turns it off: a batch is formed when an instance asks for one."""
    batcher = scenario(toy, default_queue_policy={"max_queue_size": 64}).models[0].config.batcher
    assert ready_of(batcher) == Ready(DELAY_NS, frozenset(), IDLE_NS)


@pytest.mark.parametrize("turnaround_us", [TURNAROUND_US, 8000.0])
def test_who_completes_a_batch_tells_the_way_under_the_load(toy: Any, turnaround_us: float) -> None:
    """Hardly a request is first in a batch that waits out its delay; many complete one that meets an idle slice."""
    resolved = scenario(toy, rate_rps=600.0, turnaround_us=turnaround_us)
    records = simulate(resolved).result.records
    ways_us = last_waits_us(resolved, records)
    assert len(ways_us) > 10 * len(head_waits_us(resolved, records, 8))
    assert len(ways_us) > 1000
    # The last to be sent is not always the last to arrive, so that some ways are seen shorter than they are.
    assert ways_us.mean() == pytest.approx(FRONT_US, rel=0.05)
    assert ways_us.std() / ways_us.mean() == pytest.approx(FRONT_CV, rel=0.25)
