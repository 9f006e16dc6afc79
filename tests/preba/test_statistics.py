"""Intervals that cover as often as they say, on correlated data whose truth is known; and the warm-up cut."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from preba.errors import ScenarioError, TraceError
from preba.statistics import (
    Estimate,
    mean_estimate,
    mser5_index,
    quantile_estimate,
    quantile_estimates,
    ratio_estimate,
    student_t_quantile,
    throughput_estimate,
    warmup_cut,
)

LEVELS = (0.5, 0.95, 0.99)
Interval = Callable[[np.ndarray, float], tuple[float, float]]


def _mm1_sojourns(load: float, runs: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Sojourn times of M/M/1 with mean service 1, one run per row, stationary from the first request on."""
    service = rng.exponential(1.0, (runs, n))
    gaps = rng.exponential(1.0 / load, (runs, n - 1))
    first = np.where(rng.random(runs) < load, rng.exponential(1.0 / (1.0 - load), runs), 0.0)
    walk = np.concatenate((np.zeros((runs, 1)), np.cumsum(service[:, :-1] - gaps, axis=1)), axis=1)
    floor = np.minimum.accumulate(walk, axis=1)
    wait = walk - np.minimum(floor, -first[:, None])
    return np.asarray(wait + service)


def _mm1_sojourns_from_empty(load: float, runs: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """The same from an empty start, at any load."""
    service = rng.exponential(1.0, (runs, n))
    gaps = rng.exponential(1.0 / load, (runs, n - 1))
    walk = np.concatenate((np.zeros((runs, 1)), np.cumsum(service[:, :-1] - gaps, axis=1)), axis=1)
    return np.asarray(walk - np.minimum.accumulate(walk, axis=1) + service)


def _mm1_quantile(load: float, q: float) -> float:
    return -math.log1p(-q) / (1.0 - load)


def _ar1(correlation: float, runs: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Stationary normal AR(1), one run per row, standard normal at every moment."""
    noise = rng.standard_normal((n, runs)) * math.sqrt(1.0 - correlation**2)
    out = np.empty((n, runs))
    state = rng.standard_normal(runs)
    for i in range(n):
        out[i] = state
        state = correlation * state + noise[i]
    return np.ascontiguousarray(out.T)


def _accepts(covered: int, runs: int) -> bool:
    """Whether a count of covering intervals fits a true coverage between 92 and 97.5 %, at 1 in 10,000."""
    low = int(stats.binom.ppf(1e-4, runs, 0.92))
    high = int(stats.binom.ppf(1.0 - 1e-4, runs, 0.975))
    return low <= covered <= high


def _ours(values: np.ndarray, q: float) -> tuple[float, float]:
    ci = quantile_estimate(values, q).ci95
    assert ci is not None
    return ci


def _ours_halved(values: np.ndarray, q: float) -> tuple[float, float]:
    low, high = _ours(values, q)
    quarter = 0.25 * (high - low)
    return low + quarter, high - quarter


def _as_if_independent(values: np.ndarray, q: float) -> tuple[float, float]:
    low, high = stats.binom.ppf([0.025, 0.975], values.size, q).astype(int)
    ordered = np.sort(values)
    return float(ordered[low - 1]), float(ordered[high])


def _covered(runs: np.ndarray, q: float, truth: float, interval: Interval) -> int:
    count = 0
    for values in runs:
        low, high = interval(values, q)
        count += low <= truth <= high
    return count


@pytest.fixture(scope="module")
def mm1_half() -> np.ndarray:
    """300 runs of 40,000 requests of M/M/1 at load 0.5."""
    return _mm1_sojourns(0.5, 300, 40_000, np.random.default_rng(1))


@pytest.fixture(scope="module")
def ar1_runs() -> np.ndarray:
    """300 runs of 40,000 values of an AR(1) of correlation 0.9."""
    return _ar1(0.9, 300, 40_000, np.random.default_rng(2))


@pytest.mark.parametrize("q", LEVELS)
def test_quantile_interval_covers_as_stated_on_mm1(mm1_half: np.ndarray, q: float) -> None:
    """Of 300 intervals of M/M/1 about 95 % hold the true percentile, and most say they may be trusted."""
    assert _accepts(_covered(mm1_half, q, _mm1_quantile(0.5, q), _ours), len(mm1_half))
    trusted = sum(quantile_estimate(values, q).enough for values in mm1_half)
    # At p99 40,000 requests are about 50 independent looks of the 60 asked for: some runs decline.
    assert trusted == len(mm1_half) if q < 0.99 else trusted < len(mm1_half)


@pytest.mark.parametrize("q", LEVELS)
def test_quantile_interval_covers_as_stated_on_ar1(ar1_runs: np.ndarray, q: float) -> None:
    """The same on normal data, where neighbours are correlated 0.9."""
    assert _accepts(_covered(ar1_runs, q, float(stats.norm.ppf(q)), _ours), len(ar1_runs))


@pytest.mark.parametrize("broken", [_ours_halved, _as_if_independent])
def test_coverage_check_rejects_broken_intervals(mm1_half: np.ndarray, broken: Interval) -> None:
    """These tests' acceptance rule fails an interval of half the width and one that ignores correlation."""
    for q in LEVELS:
        assert not _accepts(_covered(mm1_half, q, _mm1_quantile(0.5, q), broken), len(mm1_half))


@pytest.mark.parametrize("load", [0.8, 0.9])
def test_quantile_says_when_a_run_is_too_short(load: float) -> None:
    """Where p99's intervals cover far too seldom nearly every run is flagged; the median is not."""
    rng = np.random.default_rng(3)
    runs = _mm1_sojourns(load, 200, 15_000, rng)
    truth = _mm1_quantile(load, 0.99)
    estimates = [quantile_estimate(values, 0.99) for values in runs]
    assert sum(e.covers(truth) for e in estimates) < 0.8 * len(runs)
    assert sum(e.enough for e in estimates) <= 0.01 * len(runs)
    assert all(e.samples_needed > e.samples for e in estimates if not e.enough)
    # The same requests are plenty for the median.
    medians = [quantile_estimate(values, 0.5) for values in runs]
    trusted = [e for e in medians if e.enough]
    assert len(trusted) > 0.6 * len(runs)
    assert _accepts(sum(e.covers(_mm1_quantile(load, 0.5)) for e in trusted), len(trusted))


def test_quantile_trusted_intervals_cover_at_any_length() -> None:
    """Over runs of all lengths, loads and levels those called long enough cover in at least 92 % of cases."""
    rng = np.random.default_rng(4)
    covered = {True: [0, 0], False: [0, 0]}
    for load in (0.5, 0.8, 0.9):
        for n, count in ((1_000, 150), (4_000, 150), (16_000, 100), (64_000, 30)):
            for values in _mm1_sojourns(load, count, n, rng):
                for q, e in zip(LEVELS, quantile_estimates(values, LEVELS), strict=True):
                    covered[e.enough][0] += e.covers(_mm1_quantile(load, q))
                    covered[e.enough][1] += 1
    assert covered[True][1] > 700
    assert covered[True][0] / covered[True][1] >= 0.92
    assert covered[False][0] / covered[False][1] < 0.75


def test_quantile_length_asked_for_leads_to_enough() -> None:
    """Running again for half as long again as asked ends with enough in a few rounds, without overshooting."""
    rng = np.random.default_rng(5)
    for _ in range(5):
        n = 5_000
        for _round in range(6):
            estimate = quantile_estimate(_mm1_sojourns(0.7, 1, n, rng)[0], 0.99)
            if estimate.enough:
                break
            assert estimate.samples_needed > estimate.samples
            n = estimate.samples_needed * 3 // 2
        assert estimate.enough
        assert n < 2_000_000


@pytest.mark.parametrize(("q", "needed"), [(0.5, 120), (0.95, 1_200), (0.99, 6_000), (0.999, 60_000)])
def test_quantile_needs_three_tail_values_per_section(q: float, needed: int) -> None:
    """A perfectly spread sample is enough exactly from 3 * 20 / (1 - q) values on."""
    period = round(1.0 / min(q, 1.0 - q))
    # Every period-th value is beyond the quantile: no clustering at all.
    values = (np.arange(needed) % period == 0).astype(float)
    assert quantile_estimate(values, q).enough
    assert quantile_estimate(values, q).samples_needed == needed
    fewer = quantile_estimate(values[: needed - period], q)
    assert not fewer.enough
    assert fewer.samples_needed > fewer.samples


@given(
    values=st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=200),
    q=st.floats(0.001, 0.999),
)
def test_quantile_is_the_smallest_value_reaching_its_share(values: list[int], q: float) -> None:
    """At least a share q lies at or below the point estimate, and that holds for no smaller value."""
    estimate = quantile_estimate(values, q)
    ordered = np.sort(np.array(values, dtype=float))
    assert estimate.value in ordered
    at_most = np.count_nonzero(ordered <= estimate.value)
    below = np.count_nonzero(ordered < estimate.value)
    assert at_most >= q * ordered.size * (1 - 1e-9)
    assert below < q * ordered.size * (1 + 1e-9)
    assert estimate.samples == len(values)
    assert (estimate.ci95 is None) == (len(values) < 40)


@given(values=st.lists(st.floats(0, 1e6), min_size=40, max_size=120), factor=st.sampled_from([2.0, 0.25]))
def test_quantile_scales_with_its_unit(values: list[float], factor: float) -> None:
    """Converting the values or the estimate to another unit gives the same estimate."""
    direct = quantile_estimate(np.array(values) * factor, 0.9)
    assert quantile_estimate(values, 0.9).scaled(factor) == direct


def test_quantile_of_equal_values_has_no_width() -> None:
    """A constant latency has itself as every percentile, with an interval of width 0 that is trusted."""
    for estimate in quantile_estimates(np.full(6_000, 2.9), LEVELS):
        assert estimate.ci95 == (2.9, 2.9)
        assert estimate.half_width == 0.0
        assert estimate.enough
        assert estimate.covers(2.9)


def test_estimates_of_nothing_or_little_have_no_interval() -> None:
    """Without values there is no estimate, below two per section no interval; neither is enough."""
    for estimate in (quantile_estimate([], 0.5), mean_estimate([])):
        assert estimate.value is None
        assert estimate.ci95 is None
        assert estimate.half_width is None
        assert not estimate.covers(0.0)
        assert estimate.scaled(2.0) == estimate
    assert quantile_estimate([], 0.99) == Estimate(None, None, None, False, 0, 6_000)
    assert quantile_estimate(range(39), 0.5) == Estimate(19.0, None, None, False, 39, 120)
    assert mean_estimate(range(39)) == Estimate(19.0, None, None, False, 39, 400)


@pytest.mark.bench
def test_quantiles_of_a_million_values() -> None:
    """Prints the processor time of the mean and five percentiles of 1,000,000 latencies."""
    values = np.random.default_rng(6).lognormal(2.6, 0.3, 1_000_000)
    spent = []
    for _ in range(3):
        start = time.process_time()
        quantile_estimates(values, (0.5, 0.9, 0.95, 0.99, 0.999))
        mean_estimate(values)
        spent.append(time.process_time() - start)
    print(f"mean and five percentiles of a million values: {min(spent):.3f} s")  # noqa: T201 - a benchmark prints


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 9, 18, 19, 20, 29, 99, 500])
def test_student_quantile_is_exact(dof: int) -> None:
    """The closed form's inverse agrees with SciPy's to 11 digits, on both sides of 0."""
    for p in (0.01, 0.4, 0.5, 0.75, 0.9, 0.975, 0.995, 0.9999):
        assert student_t_quantile(p, dof) == pytest.approx(float(stats.t.ppf(p, dof)), rel=1e-11, abs=1e-14)


def test_mean_interval_covers_as_stated(mm1_half: np.ndarray, ar1_runs: np.ndarray) -> None:
    """Batch means hold the true mean in about 95 % of runs, of M/M/1 and of an AR(1), and are trusted."""
    for runs, truth in ((mm1_half, 2.0), (ar1_runs, 0.0)):
        estimates = [mean_estimate(values) for values in runs]
        assert _accepts(sum(e.covers(truth) for e in estimates), len(runs))
        assert all(e.enough for e in estimates)


def test_mean_says_when_a_run_is_too_short() -> None:
    """3,000 requests of M/M/1 at load 0.9 give intervals that often miss, and every one is flagged."""
    estimates = [mean_estimate(v) for v in _mm1_sojourns(0.9, 200, 3_000, np.random.default_rng(7))]
    assert sum(e.covers(10.0) for e in estimates) < 160
    assert not any(e.enough for e in estimates)


def test_throughput_interval_covers_as_stated() -> None:
    """For Poisson completions, and for clustered ones, about 95 % of the intervals hold the true rate."""
    rng = np.random.default_rng(8)
    window_ns = 10_000_000_000
    for cluster in (1, 8):
        covered = 0
        for _ in range(300):
            times = rng.integers(0, window_ns, rng.poisson(16_000 / cluster))
            # Each point completes a whole batch at once.
            estimate = throughput_estimate(np.repeat(times, cluster), start_ns=0, end_ns=window_ns)
            covered += estimate.covers(1_600.0)
            assert estimate.enough
        assert _accepts(covered, 300)


def test_throughput_counts_the_window_exactly() -> None:
    """Completions at the window's start count, at its end they do not, and too few are flagged."""
    estimate = throughput_estimate([0, 10, 999_999_999, 1_000_000_000], start_ns=0, end_ns=1_000_000_000)
    assert estimate.value == 3.0
    assert estimate.samples == 3
    assert not estimate.enough
    assert estimate.samples_needed >= 400
    empty = throughput_estimate([], start_ns=0, end_ns=1_000)
    assert empty.value == 0.0
    assert not empty.enough


def test_ratio_is_of_totals_and_covers() -> None:
    """A ratio of section totals is not the mean of ratios, and its interval covers about 95 % of the time."""
    assert ratio_estimate([1.0, 3.0], [1.0, 1.0]).value == 2.0
    assert ratio_estimate([1.0, 0.0], [1.0, 3.0]).value == 0.25
    rng = np.random.default_rng(9)
    requests = rng.poisson(1_000, (400, 20))
    joules = 0.5 * requests + rng.normal(0.0, 20.0, requests.shape)
    covered = sum(ratio_estimate(j, r).covers(0.5) for j, r in zip(joules, requests, strict=True))
    assert _accepts(covered, 400)


def _mser_by_definition(values: np.ndarray) -> int:
    count = values.size // 5
    means = values[: 5 * count].reshape(count, 5).mean(axis=1)
    errors = [np.var(means[d:]) / (count - d) for d in range(count // 2 + 1)]
    return 5 * int(np.argmin(errors))


def test_mser_is_its_definition() -> None:
    """The running sums find the same cut as the definition, on steady, drifting and trended runs."""
    rng = np.random.default_rng(10)
    for n in (50, 333, 2_000):
        steady = rng.exponential(1.0, n)
        for values in (steady, steady + 50 * np.exp(-np.arange(n) / 40), steady + np.arange(n) + 1e9):
            assert mser5_index(values) == _mser_by_definition(values)
    assert mser5_index(steady[:49]) is None


def test_mser_finds_a_start_that_is_far_off() -> None:
    """Where the run starts far from its steady state MSER-5 cuts where that ends."""
    values = np.random.default_rng(11).normal(10.0, 1.0, 20_000)
    values[:700] += 30.0
    assert mser5_index(values) in range(695, 800)


@pytest.mark.parametrize(("n", "index"), [(0, 0), (10, 2), (3_000, 600), (8_000, 1_000), (100_000, 5_000)])
def test_warmup_rule_depends_on_length_only(n: int, index: int) -> None:
    """The default cut is 1,000 requests or 5 %, never over 20 %, whatever the latencies."""
    arrival_ns = np.arange(n) * 1_000_000
    for latency in (np.zeros(n), np.random.default_rng(12).exponential(1.0, n)):
        cut = warmup_cut(arrival_ns, latency)
        assert cut.index == index
        assert cut.time_ns == index * 1_000_000
        assert f"{index:,} of {n:,} requests" in cut.text
        assert "the default rule" in cut.text


def test_warmup_requested_is_kept_and_commented() -> None:
    """A cut the scenario sets is used as it stands; MSER-5 only says that it asks for more."""
    values = np.random.default_rng(13).normal(10.0, 1.0, 20_000)
    values[:700] += 30.0
    arrival_ns = np.arange(20_000) * 1_000_000
    cut = warmup_cut(arrival_ns, values, requested_ns=50_000_000)
    assert (cut.index, cut.time_ns, cut.steady) == (50, 50_000_000, True)
    assert "set by the scenario" in cut.text
    assert f"asks for {cut.mser_index:,}, so the cut" in cut.text
    everything = warmup_cut(arrival_ns, values, requested_ns=10**12)
    assert everything.index == 20_000


def test_warmup_removes_the_bias_of_an_empty_start() -> None:
    """M/M/1 at load 0.8 started empty is 5 % low over its first 1,000 requests, and unbiased after the cut."""
    runs = _mm1_sojourns_from_empty(0.8, 1_000, 8_000, np.random.default_rng(14))
    cut = warmup_cut(np.arange(8_000), runs[0]).index
    kept = runs[:, cut:].mean(axis=1)
    assert abs(kept.mean() - 5.0) < 4.0 * kept.std() / math.sqrt(len(kept))
    start = runs[:, :200].mean(axis=1)
    assert start.mean() < 5.0 - 4.0 * start.std() / math.sqrt(len(start))


def test_warmup_calls_an_overloaded_run_unsteady() -> None:
    """A queue that grows through the whole run is called unsteady; one at load 0.9 hardly ever is."""
    rng = np.random.default_rng(15)
    arrival_ns = np.arange(20_000)
    overloaded = [warmup_cut(arrival_ns, v) for v in _mm1_sojourns_from_empty(1.05, 50, 20_000, rng)]
    assert sum(not cut.steady for cut in overloaded) >= 48
    assert all(("no steady state" in cut.text) != cut.steady for cut in overloaded)
    steady = [warmup_cut(arrival_ns, v).steady for v in _mm1_sojourns(0.9, 100, 20_000, rng)]
    assert sum(steady) >= 96


def test_warmup_of_level_and_straight_runs_is_judged_without_noise() -> None:
    """A constant latency is steady, a latency on a straight line is not."""
    arrival_ns = np.arange(2_000)
    assert warmup_cut(arrival_ns, np.full(2_000, 0.1)).steady
    assert not warmup_cut(arrival_ns, 5.0 + 0.1 * arrival_ns).steady


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: quantile_estimate([1.0], 1.0),
            ScenarioError,
            "q: must lie strictly between 0 and 1, got 1.0",
        ),
        (lambda: quantile_estimate([1.0], 0.5, sections=1), ScenarioError, "sections: must be >= 2, got 1"),
        (lambda: quantile_estimate([[1.0]], 0.5), TraceError, "one dimension, got 2"),
        (lambda: mean_estimate([1.0, math.nan]), TraceError, "finite"),
        (lambda: mean_estimate([1.0], sections=0), ScenarioError, "sections"),
        (lambda: ratio_estimate([1.0], [1.0]), TraceError, "at least 2, got 1 and 1"),
        (lambda: ratio_estimate([1.0, 1.0], [0.0, 0.0]), TraceError, "denominator: .*got 0.0"),
        (lambda: throughput_estimate([1], start_ns=5, end_ns=5), ScenarioError, "span at least 20 ns"),
        (lambda: warmup_cut([2, 1], [1.0, 1.0]), TraceError, "arrival_ns: must not decrease"),
        (lambda: warmup_cut([1, 2], [1.0]), TraceError, "one length, got 2 and 1"),
        (lambda: student_t_quantile(0.5, 0), ScenarioError, "p, dof"),
        (lambda: mean_estimate(range(50)).scaled(0.0), ScenarioError, "factor: must be > 0, got 0.0"),
    ],
)
def test_statistics_refuse_senseless_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    """What cannot be estimated is refused with the parameter's name, its value and what is allowed."""
    with pytest.raises(error, match=message):
        call()
