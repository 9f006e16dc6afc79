"""The reference engine against exact queueing theory at loads 0.1 to 0.9, for stations, slices and batching.

Every run is long enough to tell a service time that is 3 % off (the last test shows it) and short enough for the
whole file to take about a minute and a half. A thousand 95 % intervals miss some fifty times by right, so what is asserted is (1) that
nothing lies far outside (a level that no correct engine reaches once in a thousand runs of this file) and (2) that
the share of intervals that cover is what it should be.
"""

from __future__ import annotations

import functools
import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sim.theory import AnchorCase, Expected, anchor_cases

from preba.records import Records
from preba.statistics import Estimate, mean_estimate, quantile_estimate

LENGTHS = {0.1: 8_000, 0.2: 8_000, 0.3: 8_000, 0.4: 8_000, 0.5: 8_000, 0.6: 12_000, 0.7: 12_000, 0.8: 24_000, 0.9: 60_000}
"""Requests by load: the correlation of waits grows like 1 / (1 - load)**2."""

PLACES = {
    "mm1": ("cpu", "slices"),
    "mm7": ("cpu", "slices"),
    "mm16": ("slices",),
    "md1": ("cpu", "slices"),
    "md7": ("cpu", "slices"),
    "md16": ("cpu",),
    "greedy": ("slices",),
    "greedy8": ("slices",),
}
RUNS = [(model, place) for model, places in PLACES.items() for place in places]
WARM_UP = 0.1
LEVEL = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

FAR = 3.5
"""Half widths of a 95 % interval: 3.5 of them are 7.3 standard errors at 19 degrees of freedom (6e-7)."""
COVERAGE = 0.93
"""What sectioning intervals of runs that are long enough cover, measured: 93.8 to 94.9 % (preba.statistics)."""
"""The share of correct intervals below which less than one correct engine in ten thousand falls."""


@dataclass(frozen=True)
class Finding:
    """One exact answer and the simulation's estimate of it."""

    case: AnchorCase
    expected: Expected
    estimate: Estimate

    @property
    def half_widths_off(self) -> float:
        """Distance from the truth in half widths of the 95 % interval."""
        assert self.estimate.value is not None
        half = self.estimate.half_width
        off = abs(self.estimate.value - self.expected.value)
        return off / half if half else (0.0 if off == 0 else math.inf)


def scenario_of(toy: Any, case: AnchorCase, place: str, *, requests: int, seed: int, slower: float = 1.0) -> Any:
    """The scenario that is this queue, its servers being CPU cores or slices (one whole GPU each)."""
    batcher: dict[str, Any] = {"kind": "none"}
    preprocessing: dict[str, Any] = {"kind": "none"}
    jitter = {"kind": "exponential"} if case.service == "exponential" else {"kind": "none"}
    if case.service == "linear":
        assert case.alpha_s is not None and case.tau0_s is not None
        largest = case.batch_max or 600
        times = {str(b): 1e3 * slower * (case.alpha_s * b + case.tau0_s) for b in (1, largest)}
        batcher = {"kind": "greedy", "batch_max": case.batch_max}
    else:
        assert case.service_mean_s is not None
        times = {"1": 1e3 * slower * case.service_mean_s}
        if place == "cpu":
            preprocessing = toy.cpu(case.servers, 1e6 * slower * case.service_mean_s)
            times = {"1": 1e-6}
    model = toy.model(
        toy.profile({"full": times}),
        {"kind": "poisson", "rate_rps": case.rate_rps},
        batcher=batcher,
        execution_jitter={"kind": "none"} if place == "cpu" else jitter,
        preprocess_jitter=jitter,
    )
    gpus = [{"device": "A100-40GB", "partition": "full", "count": 1 if place == "cpu" else case.servers}]
    return toy.scenario([model], requests=requests, seed=seed, gpus=gpus, preprocessing=preprocessing)


def spans_of(records: Records, place: str) -> tuple[Any, Any, Any]:
    """When each request arrived at the queue, was taken up and left."""
    if place == "cpu":
        return records.scheduled_ns, records.preprocess_start_ns, records.preprocess_end_ns
    return records.scheduled_ns, records.execution_start_ns, records.execution_end_ns


def estimate_of(expected: Expected, records: Records, place: str) -> Estimate:
    arrived, started, left = spans_of(records.select(np.arange(int(WARM_UP * len(records)), len(records))), place)
    kind, _, what = expected.quantity.removesuffix("_s").partition("_")
    if kind == "batch":
        kept = records.select(np.arange(int(WARM_UP * len(records)), len(records)))
        if what == "seen_mean":
            return mean_estimate(kept.batch_size)
        _, first = np.unique(kept.batch_id, return_index=True)
        return mean_estimate(kept.batch_size[first])
    times_s = (started if kind == "wait" else left) - arrived
    if what == "probability":
        return mean_estimate(times_s > 0)
    return (mean_estimate(times_s) if what == "mean" else quantile_estimate(times_s, LEVEL[what])).scaled(1e-9)


def run_case(toy: Any, case: AnchorCase, place: str, *, slower: float = 1.0) -> list[Finding]:
    seed = 1000 * list(PLACES).index(case.model) + 100 * (place == "cpu") + round(10 * case.load)
    data = scenario_of(toy, case, place, requests=LENGTHS[case.load], seed=seed, slower=slower)
    records = toy.run(data).result.records
    return [Finding(case, expected, estimate_of(expected, records, place)) for expected in case.expected]


@functools.cache
def findings_of(toy: Any, model: str, place: str, slower: float = 1.0) -> tuple[Finding, ...]:
    """All quantities of one queue at all nine loads; run once, used by several tests."""
    cases = anchor_cases(models=[model])
    return tuple(finding for case in cases for finding in run_case(toy, case, place, slower=slower))


def missed(findings: list[Finding]) -> list[str]:
    """What a correct engine would not show: atoms that are not met to the nanosecond, estimates far outside."""
    found = []
    for finding in findings:
        value = finding.estimate.value
        assert value is not None
        if finding.expected.atom:
            wrong = round(value * 1e9) != round(finding.expected.value * 1e9)
        else:
            wrong = finding.half_widths_off > FAR
        if wrong:
            exact = finding.expected.value
            found.append(f"{finding.case.name} {finding.expected.quantity}: {value:.6g}, exactly {exact:.6g}")
    return found


def covered(findings: list[Finding]) -> tuple[int, int]:
    """How many 95 % intervals hold the truth, of those whose run was long enough to trust them."""
    trusted = [f for f in findings if f.estimate.enough and not f.expected.atom]
    return sum(f.estimate.covers(f.expected.value) for f in trusted), len(trusted)


def least_covered(count: int, probability: float) -> int:
    """The number of successes that a binomial variable stays below once in ten thousand times."""
    total = 0.0
    for successes in range(count + 1):
        total += math.comb(count, successes) * probability**successes * (1 - probability) ** (count - successes)
        if total > 1e-4:
            return successes
    return count


@pytest.mark.slow
@pytest.mark.parametrize(("model", "place"), RUNS)
def test_reference_meets_theory_at_every_load(toy: Any, model: str, place: str) -> None:
    """Means, waiting probability and percentiles of the queue lie where theory puts them, at loads 0.1 to 0.9."""
    assert missed(list(findings_of(toy, model, place))) == []
