"""A played run beside its simulations, without a server: a simulation stands in for what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preba.cli.validating import ValidationPlan, compare_runs, replayed
from preba.scenario.resolve import ResolvedScenario
from runtime.load.run import Played
from sim.run import simulate


def scenario(toy: Any, **run: Any) -> ResolvedScenario:
    """Triton with races at the ends of batches, and overheads that vary."""
    batcher = {"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 5000}
    batcher["quirks"] = {"batcher_first_permille": 300}
    model = toy.model(toy.profile({"1g": {"1": 20, "8": 34}}), {"kind": "poisson", "rate_rps": 800}, batcher=batcher)
    overheads = {"frontend_us": 900.0, "frontend_jitter": {"kind": "gamma", "cv": 0.5}}
    data = toy.scenario([model], partition="7x1g.5gb", server={"overheads": overheads})
    return toy.resolve({**data, "run": {"warmup_requests": 0, **run}})


def as_played(resolved: ResolvedScenario) -> Played:
    """A simulation in the place of a live run."""
    run = simulate(resolved)
    return Played(run.result, run.trace, {}, (), ())


@pytest.mark.parametrize("run", [{"requests": 4000}, {"duration_s": 5.0}])
def test_the_same_trace_is_simulated_with_other_draws_of_the_server(toy: Any, run: dict[str, Any]) -> None:
    """The first repeats the played run, others have its arrivals and their own races; a duration is no obstacle."""
    resolved = scenario(toy, **run)
    played = as_played(resolved)
    records = played.result.records
    same, other = (replayed(resolved, played, draw).result.records for draw in (0, 1))
    assert np.array_equal(same.completed_ns, records.completed_ns)
    assert np.array_equal(other.scheduled_ns, records.scheduled_ns)
    assert not np.array_equal(other.batch_id, records.batch_id)
    assert not np.array_equal(other.enqueued_ns - other.scheduled_ns, records.enqueued_ns - records.scheduled_ns)


def test_figures_are_means_of_several_simulations(toy: Any) -> None:
    """A run compared with its own model: errors within what draws of the server make, batch by batch not the same."""
    resolved = scenario(toy, requests=4000)
    compared = compare_runs(resolved, resolved, as_played(resolved), ValidationPlan(fresh=0, repeated=4), ())
    first = compared.simulated_summary["latency_ms"]["mean"]["value"]
    row = next(row for row in compared.found.rows if row.metric == "latency mean")
    assert row.measured == pytest.approx(first)
    assert row.simulated != pytest.approx(first, rel=1e-9)
    assert abs(row.error_percent) < 3


def test_hindsight_tells_the_model_from_a_machine_that_changed(toy: Any) -> None:
    """What was measured before is 2 ms too slow: that error is judged, the one in hindsight stands beside it."""
    resolved = scenario(toy, requests=4000)
    overheads = resolved.scenario.server.overheads.model_copy(update={"frontend_us": 2900.0})
    server = resolved.scenario.server.model_copy(update={"overheads": overheads})
    before = toy.resolve(resolved.scenario.model_copy(update={"server": server}).model_dump(mode="json"))
    played, plan = as_played(resolved), ValidationPlan(fresh=0, repeated=2)
    rows = {row.metric: row for row in compare_runs(resolved, before, played, plan, (), resolved).found.rows}
    assert rows["latency mean"].error_percent > 3
    assert rows["latency mean"].verdict == "missed"
    assert abs(rows["latency mean"].hindsight_error_percent) < 1
    assert rows["batch sizes apart"].hindsight_error_percent is None
    alone = compare_runs(resolved, before, played, plan, ()).found
    assert all(row.hindsight_error_percent is None for row in alone.rows)
