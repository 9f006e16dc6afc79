"""When batches close that wait for their slice, and the ways and turnarounds that are found behind queue policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preba.cli.calibrating import calibrate
from preba.cli.closing import closing, with_way
from preba.cli.redrawn import other_luck
from preba.cli.triton_threads import head_waits_us
from preba.cli.ways import Ready, gaps_between_batches
from preba.scenario.resolve import ResolvedScenario, resolve
from runtime.load.run import Played
from sim.run import simulate

OVERHEADS = {
    "frontend_us": 700.0, "turnaround_us": 600.0, "turnaround_request_us": 200.0, "response_us": 900.0,
    "response_request_us": 150.0,
}  # fmt: skip
POLICY = {"default_queue_policy": {"timeout_action": "DELAY", "default_timeout_us": 30_000}}
THREADS = {"batcher_wakeup_us": 500, "batcher_wakeup_varies": True, "batcher_first_permille": 200}


def server(
    toy: Any, rate_rps: float, *, slices: int = 7, overheads: dict[str, Any] | None = None, **batcher: Any
) -> ResolvedScenario:
    """A central Triton server that batches for itself."""
    partition, kind = {1: ("1x7g.40gb", "7g"), 7: ("7x1g.5gb", "1g")}[slices]
    model = toy.model(
        toy.profile({kind: {"1": 20, "8": 34}}, modality="tensor"), {"kind": "poisson", "rate_rps": rate_rps},
        sizes={"kind": "constant", "tensor_kb": 1}, batcher={"kind": "triton", "max_batch_size": 8, **batcher},
    )  # fmt: skip
    told = {"topology": "central", "overheads": {**OVERHEADS, **(overheads or {})}}
    data = toy.scenario([model], partition=partition, requests=15_000, server=told, live={"batching": "triton"})
    return toy.resolve(data)


def behind_a_policy(toy: Any, rate_rps: float, slices: int = 7, **overheads: Any) -> ResolvedScenario:
    """Slices that get batches only when they have returned, with threads that wake up late and overtake."""
    return server(toy, rate_rps, slices=slices, overheads=overheads, quirks=THREADS, **POLICY)


def played(resolved: ResolvedScenario, draw: int = 0) -> Played:
    """A simulation in the place of a live run."""
    told = resolve(other_luck(resolved.scenario, draw), folder=resolved.folder)
    run = simulate(told, engine="compiled")
    return Played(run.result, run.trace, {}, (), ())


def test_turnaround_behind_a_queue_policy_is_without_the_wakeup_of_the_batcher(toy: Any) -> None:
    """Batches are formed for slices that have returned: the gaps contain a wake-up, which is simulated itself."""
    known = behind_a_policy(toy, 80.0, slices=1, turnaround_jitter={"kind": "lognormal", "cv": 0.3})
    run, busy = played(known), played(server(toy, 220.0, slices=1))
    profiles = [known.models[0].execution]
    gaps = gaps_between_batches(known, profiles, [run], Ready(way_ns=2_000_000))
    seen_us = np.median([gap - 200 * size for size, each in gaps.items() for gap in each])
    nothing = {"turnaround_us": 0.0, "turnaround_request_us": 0.0}
    unknown = server(toy, 80.0, slices=1, overheads=nothing, **POLICY)
    calibrated = calibrate(unknown, profiles, run, run, [busy])
    found = calibrated.scenario.server.overheads
    assert seen_us > 800
    assert any("wake-up is in what is seen" in note for note in calibrated.notes)
    for size in (1, 2, 4):
        turnaround_us = found.turnaround_us + size * found.turnaround_request_us
        assert turnaround_us == pytest.approx(600 + size * 200, abs=150), size
    assert found.frontend_us == pytest.approx(700, abs=150)


@pytest.mark.parametrize("wrong_us", [-400.0, 400.0])
def test_way_to_the_batcher_follows_from_when_batches_close(toy: Any, wrong_us: float) -> None:
    """A way that is told wrong is found again, from who joins the batches that wait for slices and who does not."""
    jitter = {
        "frontend_jitter": {"kind": "lognormal", "cv": 0.3},
        "turnaround_jitter": {"kind": "lognormal", "cv": 0.3},
    }
    run = played(behind_a_policy(toy, 900.0, **jitter), draw=9)
    wrong = behind_a_policy(toy, 900.0, **jitter, frontend_us=700.0 + wrong_us)
    found, said = with_way(wrong, run.trace, run.result.records)
    assert found.server.overheads.frontend_us == pytest.approx(700, abs=80)
    assert "close" in said[0]


def test_batches_close_as_long_before_they_start_as_the_way_takes(toy: Any) -> None:
    """Nothing else passes between schedule and start where a slice has returned; without batches it is unknown."""
    known = behind_a_policy(toy, 900.0)
    found = closing(known, played(known).result.records)
    assert found is not None
    assert found.busy_us == pytest.approx(700, rel=0.1)
    assert found.idle_us == pytest.approx(1200, rel=0.2)
    assert 0.5 < found.busy_share < 1.0
    few = behind_a_policy(toy, 20.0)
    run = played(few)
    assert closing(few, run.result.records) is None
    scenario, said = with_way(few, run.trace, run.result.records)
    assert scenario == few.scenario
    assert "too few" in said[0]


@pytest.mark.parametrize("rate_rps", [150.0, 900.0])
def test_ways_of_requests_that_were_overtaken_do_not_count_the_wait_for_a_slice(toy: Any, rate_rps: float) -> None:
    """A request that loses the idle slice to a later one waits for another slice, which is no way; else all is."""
    known = server(toy, rate_rps, overheads={"frontend_jitter": {"kind": "lognormal", "cv": 0.5}})
    waits_us = head_waits_us(known, played(known).result.records, 8)
    assert len(waits_us) > 100
    assert waits_us.mean() == pytest.approx(700, rel=0.05 if rate_rps < 500 else 0.15)
    assert waits_us.std() == pytest.approx(350, rel=0.1 if rate_rps < 500 else 0.4)
