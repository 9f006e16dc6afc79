"""The highest rate within an objective: where theory knows it, where a stage saturates first, and what cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from preba.errors import ScenarioError
from sim.slo import find_capacity, parse_objective


def server(toy: Any, rate_rps: float, *, requests: int = 20_000, **fields: Any) -> Any:
    """One slice that serves one request in 2 ms on average."""
    model = toy.model(
        toy.profile({"full": {"1": 2.0, "4": 3.5}}),
        {"kind": "poisson", "rate_rps": rate_rps},
        **{"execution_jitter": {"kind": "exponential"}, **fields},
    )
    return toy.resolve(toy.scenario([model], requests=requests))


@pytest.mark.slow
@pytest.mark.parametrize("start_rps", [3.0, 5000.0])
def test_capacity_of_a_single_server_is_what_theory_says(toy: Any, start_rps: float) -> None:
    """M/M/1: 99 % are answered within t up to the rate 1 / service - ln(100) / t, wherever the search starts."""
    found = find_capacity(server(toy, start_rps, requests=300_000), parse_objective("p99=50"))
    exact_rps = 1000 / 2.0 - math.log(100) / 0.050
    assert found.low_rps <= exact_rps <= found.high_rps
    assert found.rate_rps == pytest.approx(exact_rps, rel=0.02)
    assert found.high_rps - found.low_rps < 0.06 * exact_rps
    assert found.latency_ms <= 50
    assert found.limited_by == "p99"


def test_saturated_stage_limits_a_generous_objective(toy: Any) -> None:
    """An objective that a queue needs long to break is limited by the stage that saturates, just below its capacity."""
    found = find_capacity(server(toy, 100.0, execution_jitter={"kind": "none"}), parse_objective("p99=5000"))
    assert found.limited_by == "slices of toy"
    assert found.rate_rps == pytest.approx(500, rel=0.01)
    assert found.rate_rps < 500


def test_batching_carries_more_within_the_same_objective(toy: Any) -> None:
    """The same slice with batches of four meets the objective at a higher rate."""
    alone = find_capacity(server(toy, 100.0), parse_objective("p95=40"))
    together = find_capacity(server(toy, 100.0, batcher={"kind": "greedy"}), parse_objective("p95=40"))
    assert together.rate_rps > 1.5 * alone.rate_rps


def test_objective_that_no_rate_meets_is_capacity_zero(toy: Any) -> None:
    """Where even an empty server is too slow nothing is carried within the objective."""
    found = find_capacity(server(toy, 100.0, execution_jitter={"kind": "none"}), parse_objective("p50=1"))
    assert (found.rate_rps, found.low_rps, found.high_rps) == (0.0, 0.0, 0.0)


def test_refusals_count_as_misses(toy: Any) -> None:
    """A queue of one refuses what it cannot hold: the objective ends where one in a hundred is refused."""
    bounded = {"kind": "none", "queue_max": 1}
    found = find_capacity(server(toy, 100.0, batcher=bounded), parse_objective("p99=1000"))
    lost = found.figures["refused"] / found.figures["requests"]
    assert 0.005 < lost <= 0.01


@pytest.mark.parametrize("text", ["p98=5", "p99", "p99=fast", "p99=0", "mean=5"])
def test_objective_that_is_none_is_an_error(text: str) -> None:
    """An objective is a percentile and a positive number of milliseconds."""
    with pytest.raises(ScenarioError, match="--slo"):
        parse_objective(text)


def test_closed_loop_has_no_capacity_to_search(toy: Any) -> None:
    """A closed loop sets its own rate: that is said."""
    closed = toy.model(toy.profile({"full": {"1": 2.0}}), {"kind": "closed_loop", "outstanding": 2, "think_ms": 1.0})
    with pytest.raises(ScenarioError, match="closed loop"):
        find_capacity(toy.resolve(toy.scenario([closed], requests=100)), parse_objective("p99=5"))
