"""The interval of an error between two runs of one trace: what it ignores, what it sees, how often it holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from preba.records import Records
from preba.report.paired import error_half_widths_percent
from preba.statistics import mean_estimate


@pytest.fixture
def records(toy: object) -> Records:
    """6,000 requests on seven slices."""
    model = toy.model(  # type: ignore[attr-defined]
        toy.profile({"1g": {"1": 20, "8": 34}}),  # type: ignore[attr-defined]
        {"kind": "poisson", "rate_rps": 700}, batcher={"kind": "greedy", "batch_max": 8},
    )  # fmt: skip
    data = toy.scenario([model], partition="7x1g.5gb", requests=6000)  # type: ignore[attr-defined]
    found: Records = toy.run(data).result.records  # type: ignore[attr-defined]
    return found


def slower(records: Records, factors: np.ndarray) -> Records:
    """Each latency multiplied."""
    latency_ns = np.round(records.latency_ns * factors).astype(np.int64)
    return replace(records, completed_ns=records.scheduled_ns + latency_ns)


METRICS = ("throughput", "latency mean", "latency p50", "latency p90", "latency p95", "latency p99", "mean batch")


@pytest.mark.parametrize("metric", METRICS)
def test_equal_runs_have_no_interval_however_they_vary(records: Records, metric: str) -> None:
    """What the arrivals happened to be is in both."""
    assert error_half_widths_percent(records, records)[metric] == 0


def test_a_steady_difference_is_certain_and_a_changing_one_is_not(records: Records) -> None:
    """All requests 3 % slower: nothing to doubt. Half of the run 6 % slower: an error of 3 %, give or take."""
    steady = error_half_widths_percent(records, slower(records, np.full(len(records), 1.03)))["latency mean"]
    assert steady == pytest.approx(0, abs=1e-3)
    half = np.where(np.arange(len(records)) < len(records) // 2, 1.06, 1.0)
    assert error_half_widths_percent(records, slower(records, half))["latency mean"] > 1.0


def test_interval_holds_the_error_as_often_as_it_says(records: Records) -> None:
    """Noise of 5 % from request to request: about as wide as its standard error, and right in most of 200 draws."""
    rng = np.random.default_rng(4)
    right, widths = 0, []
    for _ in range(200):
        noisy = slower(records, np.exp(rng.normal(0.0, 0.05, len(records)) - 0.05**2 / 2))
        error = 100 * (noisy.latency_ns.mean() / records.latency_ns.mean() - 1)
        half = error_half_widths_percent(records, noisy)["latency mean"]
        widths.append(half)
        right += abs(error) <= half
    assert 0.9 <= right / 200 <= 0.99
    own = mean_estimate(records.latency_ns).half_width
    assert own is not None
    assert np.mean(widths) < 0.3 * 100 * own / records.latency_ns.mean()


def test_too_few_requests_and_other_figures_have_none(records: Records) -> None:
    """Below 400 requests, and where nothing is defined."""
    few = records.select(np.arange(300))
    assert error_half_widths_percent(few, few) == {}
    assert "batch sizes apart" not in error_half_widths_percent(records, records)
