"""What is said of a machine that was not the same in a rehearsal and in the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preba.cli.disturbances import (
    DRIFT_MAX_PERCENT,
    STOLEN_MAX_PERCENT,
    Drift,
    drift_note,
    drift_of,
    drift_warning,
    restless,
    stolen_note,
    stolen_warning,
)
from preba.records import Records
from sim.run import simulate


def records(toy: Any, *, response_us: float, rate_rps: float = 800.0, requests: int = 3000, seed: int = 0) -> Records:
    """Of a server whose answers leave so long after the ends of batches, which varies."""
    batcher = {"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 5000}
    model = toy.model(
        toy.profile({"1g": {"1": 20, "8": 34}}), {"kind": "poisson", "rate_rps": rate_rps}, batcher=batcher
    )
    overheads = {"response_us": response_us, "response_request_us": 50.0, "response_next_us": 40.0}
    overheads["response_jitter"] = {"kind": "gamma", "cv": 0.5}
    data = toy.scenario([model], partition="7x1g.5gb", server={"overheads": overheads}, requests=requests, seed=seed)
    return simulate(toy.resolve(data)).result.records


def test_what_the_host_took_is_said_only_if_it_took_any() -> None:
    """A machine of its own has no such note, nor one that does not say; much of it asks for another measurement."""
    assert stolen_note(()) == stolen_note((0.0, 0.0)) == ()
    (said,) = stolen_note((0.234, 0.0))
    assert said == "the host took 0.23 % of this machine's CPU time during the rehearsal and 0.00 % during the run"
    assert stolen_warning((0.234, 0.0)) == stolen_warning(()) == ()
    (warned,) = stolen_warning((0.0, 1.23))
    assert "took up to 1.2 % of its CPU time" in warned


@pytest.mark.parametrize("rate_rps", [800.0, 400.0])
def test_drift_is_that_of_the_software_whatever_the_load(toy: Any, rate_rps: float) -> None:
    """Answers a quarter later than in the rehearsal; with other batch sizes and other draws all the same."""
    rehearsed = records(toy, response_us=1000.0)
    same = drift_of(rehearsed, records(toy, response_us=1000.0, rate_rps=rate_rps, seed=2))
    slower = drift_of(rehearsed, records(toy, response_us=1300.0, rate_rps=rate_rps, seed=2))
    assert same is not None
    assert slower is not None
    assert same.half_percent < 6
    assert abs(same.percent) < 1.5 * same.half_percent
    assert abs(slower.percent - 25.0) < 1.5 * slower.half_percent  # 300 of 1000 and some 50 a request
    assert slower.proven_percent > DRIFT_MAX_PERCENT > 1 + same.proven_percent


def test_drift_is_only_as_certain_as_stretches_of_both_runs_are_alike(toy: Any) -> None:
    """A machine that is slow every other second: the interval is wider than with the same times in any order."""
    rehearsed, run = (records(toy, response_us=1000.0, seed=seed) for seed in (0, 2))
    slow_ns = np.where(run.execution_end_ns // 500_000_000 % 2 == 1, 1_000_000, 0)
    mixed_ns = np.where(run.batch_id % 2 == 1, 1_000_000, 0)
    in_turns, mixed = (
        drift_of(rehearsed, replace(run, completed_ns=run.completed_ns + late_ns)) for late_ns in (slow_ns, mixed_ns)
    )
    assert in_turns is not None
    assert mixed is not None
    assert in_turns.half_percent > 1.5 * mixed.half_percent


def test_drift_is_unknown_with_too_few_batches(toy: Any) -> None:
    """Nothing is said rather than something random: a short rehearsal, nothing served, no size in common."""
    run = records(toy, response_us=900.0)
    assert drift_of(records(toy, response_us=900.0, requests=60), run) is None
    assert drift_of(run, run.select(np.zeros(len(run), dtype=np.bool_))) is None
    assert drift_of(run.select(run.batch_size == 1), run.select(run.batch_size > 1)) is None
    assert drift_note(None) == drift_warning(None) == ()


def test_much_drift_asks_for_another_measurement() -> None:
    """In both directions, if it is certain; otherwise it is a note."""
    (said,) = drift_note(Drift(3.21, 2.0))
    assert said == "from the end of a batch to its first answer the run took +3.2 % (±2.0) beyond the rehearsal"
    assert drift_warning(Drift(DRIFT_MAX_PERCENT + 2, 2.0)) == drift_warning(Drift(30.0, 25.0)) == ()
    (slower,), (faster,) = drift_warning(Drift(18.2, 3.0)), drift_warning(Drift(-18.2, 3.0))
    assert "18 % (±3) slower in the run" in slower
    assert "18 % (±3) faster in the run" in faster


def test_the_calmest_is_the_one_with_least_of_what_disturbs_most() -> None:
    """Time that the host took and drift count alike, each by what is too much."""
    assert restless((), None) == 0.0
    assert restless((0.0, STOLEN_MAX_PERCENT), None) == restless((0.0, 0.0), Drift(-DRIFT_MAX_PERCENT, 0.0)) == 1.0
    assert restless((0.1, 0.2), Drift(20.0, 1.0)) > restless((0.9, 0.0), Drift(3.0, 1.0)) > restless((0.4, 0.4), None)
