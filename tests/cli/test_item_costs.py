"""What preprocessing costs in a live server, and how it varies: found as it was told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preba.cli.calibrating import calibrate
from preba.scenario.resolve import ResolvedScenario
from preba.slowness import Slowness
from runtime.load.run import Played
from sim.run import simulate

TABLE = {"1": 20, "2": 22, "4": 26, "8": 34}


def images(toy: Any, *, overheads: dict[str, Any], jitter_cv: float = 0.0, requests: int = 8000) -> ResolvedScenario:
    """Images that take a core 6 ms, 70 a second."""
    cost = {"kind": "cpu", "name": "toy", "image": {"fixed_us": toy.figure(6000.0), "per_100kb_us": toy.figure(0.0)}}
    model = toy.model(
        toy.profile({"1g": TABLE}), {"kind": "poisson", "rate_rps": 70}, sizes={"kind": "jpeg", "dataset": "imagenet"}
    )
    if jitter_cv:
        model["preprocess_jitter"] = {"kind": "gamma", "cv": jitter_cv}
    preprocessing = {"kind": "cpu", "cores": 1, "usable_fraction": 1.0, "cost": cost}
    return toy.resolve(
        toy.scenario([model], partition="7x1g.5gb", requests=requests, preprocessing=preprocessing,
                     server={"overheads": overheads})
    )  # fmt: skip


def played(resolved: ResolvedScenario) -> Played:
    """A simulated run as if it had been live."""
    run = simulate(resolved, engine="compiled")
    return Played(run.result, run.trace, {}, (), ())


def calibrated(known: ResolvedScenario, run: Played) -> Any:
    """What a rehearsal tells of a scenario that says nothing of how preprocessing varies."""
    models = tuple(model.model_copy(update={"preprocess_jitter": None}) for model in known.scenario.models)
    blank = replace(known, scenario=known.scenario.model_copy(update={"models": models}))
    return calibrate(blank, [known.models[0].execution], run, run, [run]).scenario


def test_a_worker_that_stood_still_takes_nothing_from_the_spread_of_the_way_there(toy: Any) -> None:
    """What varies from one input to the next is in its cost and not once more in the way; but stalls are in no cost."""
    way = {"ingress_us": 1000.0, "frontend_jitter": {"kind": "gamma", "cv": 0.5}}
    known = images(toy, overheads=way)
    run = played(known)
    records = run.result.records
    found = []
    for share in (0.0, 0.04):
        rng = np.random.default_rng(4)
        between_ns = rng.integers(500_000, 700_000, len(records))
        between_ns[rng.random(len(records)) < share] = 5_500_000
        late = replace(records, preprocess_start_ns=records.preprocess_start_ns + between_ns)
        overheads = calibrated(known, replace(run, result=replace(run.result, records=late))).server.overheads
        found.append(overheads.frontend_jitter.factor_cv())
    steady, stalled = found
    assert stalled >= steady > 0.3


@pytest.mark.parametrize("cv", [0.0, 0.2])
def test_times_of_slow_preprocessing_are_told_from_inputs_that_vary(toy: Any, cv: float) -> None:
    """Inputs vary as far as before in all: what windows of time have in common, and the rest by themselves."""
    overheads: dict[str, Any] = {"ingress_us": 500.0, "response_us": 1000.0}
    if cv:
        drawn = np.repeat(np.random.default_rng(2).gamma(1 / cv**2, cv**2, 800), 10)
        series = Slowness(window_ms=20, factors=(1.0,) * len(drawn), preprocessing=tuple(drawn))
        overheads["slowness"] = series.model_dump()
    known = images(toy, overheads=overheads, jitter_cv=0.15)
    run = played(known)
    found = calibrated(known, run)
    slowness, own = found.server.overheads.slowness, found.models[0].preprocess_jitter.factor_cv()
    if not cv:
        assert slowness is None
        assert own == pytest.approx(0.15, rel=0.1)
        return
    assert slowness.factor_cv() == 0.0
    assert slowness.preprocessing_cv() == pytest.approx(cv, rel=0.15)
    assert own == pytest.approx(0.15, rel=0.25)
    told = calibrate(known, [known.models[0].execution], run, run, [run])
    assert told.scenario.server.overheads.slowness is None
    assert told.scenario.models[0].preprocess_jitter == known.models[0].config.preprocess_jitter
    assert "a model has its own preprocess_jitter: times of slow preprocessing are not measured" in told.notes
