"""The batching oracles, against Inoue's figures, other derivations and each other; no engine here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preba.statistics import mean_estimate, quantile_estimates
from sim.theory import greedy, greedy_bounded, greedy_bounds, md1

ALPHA_S, TAU0_S = 0.9e-3, 2.0e-3
MS = 1e3

LOADS = st.floats(0.02, 0.9)
FIXED_SHARES = st.floats(0.01, 15.0)
"""Fixed time of a batch in units of the time per item."""


@pytest.mark.parametrize(
    ("load", "bound_ms", "mean_ms", "p99_ms"),
    [
        (0.1, "3.46633", "3.45392", "6.59348"),
        (0.2, "4.26273", "4.15919", "8.14281"),
        (0.3, "5.36447", "5.00621", "9.97931"),
        (0.5, "7.50000", "7.36909", "15.44978"),
        (0.7, "12.38235", "12.36321", "27.69511"),
        (0.8, "18.50000", "18.49614", "42.84753"),
        (0.9, "36.86842", "36.86820", "88.20985"),
        (0.95, "73.61538", "73.61537", "178.85"),
    ],
)
def test_greedy_gives_the_known_figures(load: float, bound_ms: str, mean_ms: str, p99_ms: str) -> None:
    """Bound, mean and p99 of 0.9 ms * b + 2 ms agree with a separate solution to its printed digits."""
    inputs = {"rate_rps": load / ALPHA_S, "alpha_s": ALPHA_S, "tau0_s": TAU0_S}
    queue = greedy(**inputs)
    for value_s, text in (
        (greedy_bounds(**inputs).phi_s, bound_ms),
        (queue.latency_mean_s, mean_ms),
        (queue.latency_quantile_s(0.99), p99_ms),
    ):
        assert f"{value_s * MS:.{len(text.partition('.')[2])}f}" == text


@pytest.mark.parametrize(
    ("alpha_ms", "tau0_ms", "load", "phi_ms", "simulated_ms", "batch_mean"),
    [
        (0.1438, 1.8874, 0.1, 3.298, 3.145, 1.71),
        (0.1438, 1.8874, 0.3, 4.226, 4.223, 5.62),
        (0.1438, 1.8874, 0.5, 5.902, 5.894, 13.08),
        (0.1438, 1.8874, 0.8, 14.715, 14.626, 52.06),
        (0.5833, 1.4284, 0.1, 2.432, 2.422, 1.05),
        (0.5833, 1.4284, 0.3, 3.798, 3.534, 1.50),
        (0.5833, 1.4284, 0.5, 5.257, 5.177, 2.65),
        (0.5833, 1.4284, 0.8, 12.981, 12.888, 9.73),
    ],
)
def test_greedy_agrees_with_inoues_own_figures(
    alpha_ms: float, tau0_ms: float, load: float, phi_ms: float, simulated_ms: float, batch_mean: float
) -> None:
    """The bound equals Inoue's for his fits of a V100 and a P4; his simulations lie within 1 % of ours."""
    inputs = {"rate_rps": load / alpha_ms * MS, "alpha_s": alpha_ms / MS, "tau0_s": tau0_ms / MS}
    queue = greedy(**inputs)
    assert round(greedy_bounds(**inputs).phi_s * MS, 3) == phi_ms
    # 400,000 jobs, no interval stated: 1 % is about two standard errors of such a run at load 0.8.
    assert queue.latency_mean_s * MS == pytest.approx(simulated_ms, rel=0.01)
    assert queue.batch_mean == pytest.approx(batch_mean, rel=0.01)


@given(load=LOADS, fixed_share=FIXED_SHARES)
@settings(max_examples=40, deadline=None)
def test_greedy_mean_satisfies_inoues_equations(load: float, fixed_share: float) -> None:
    """The chain's moments satisfy (31) and (32), and its mean latency the exact formula (35)."""
    a, t0, rate = 1.0, fixed_share, load
    queue = greedy(rate_rps=rate, alpha_s=a, tau0_s=t0)
    alone = float(queue.batch_law @ np.exp(-rate * (a * np.arange(queue.batch_law.size) + t0)))
    assert queue.batch_mean == pytest.approx((rate * t0 + alone) / (1 - rate * a), rel=1e-9)
    second = ((1 + 2 * rate**2 * a * t0) * queue.batch_mean + (rate * t0) ** 2) / (1 - (rate * a) ** 2)
    assert queue.batch_second_moment == pytest.approx(second, rel=1e-9)
    busy_term = (1 - queue.idle_probability - rate * a) * t0 / rate
    closed = a + t0 + rate * (1 + 2 * rate * a) * (2 * a * t0 + a * a + busy_term) / (2 * (1 - (rate * a) ** 2))
    assert queue.latency_mean_s == pytest.approx(closed, rel=1e-9)


@given(load=LOADS, fixed_share=FIXED_SHARES)
@settings(max_examples=40, deadline=None)
def test_greedy_bound_holds(load: float, fixed_share: float) -> None:
    """The exact mean never exceeds phi, and phi0 is the smaller bound up to 1/(alpha+tau0) per second."""
    inputs = {"rate_rps": load, "alpha_s": 1.0, "tau0_s": fixed_share}
    bounds = greedy_bounds(**inputs)
    assert greedy(**inputs).latency_mean_s <= bounds.phi_s * (1 + 1e-10)
    margin = load * (1.0 + fixed_share) - 1.0
    if abs(margin) > 1e-9:
        assert (bounds.phi0_s <= bounds.phi1_s) == (margin < 0)


@given(load=LOADS, fixed_share=FIXED_SHARES)
@settings(max_examples=20, deadline=None)
def test_greedy_latency_law_has_its_mean_and_atom(load: float, fixed_share: float) -> None:
    """The latency law jumps by the idle probability at tau(1), and its tail integrates to the mean."""
    queue = greedy(rate_rps=load, alpha_s=1.0, tau0_s=fixed_share)
    first = 1.0 + fixed_share
    # Poisson arrivals see time averages: as many find the server idle as it is idle.
    assert queue.idle_atom == pytest.approx(queue.idle_probability, abs=1e-11)
    assert queue.latency_cdf(first * (1 - 1e-12)) == 0.0
    end = queue.latency_quantile_s(1 - 1e-9)
    grid = np.linspace(first, end, 1501)
    tail = np.array([1.0 - queue.latency_cdf(float(t)) for t in grid])
    # The law is piecewise linear, so the trapezium rule errs only in the steps that hold a kink.
    mean = first + float(np.sum(0.5 * (tail[1:] + tail[:-1]) * np.diff(grid)))
    assert mean == pytest.approx(queue.latency_mean_s, rel=5e-4)


@pytest.mark.parametrize(("load", "largest"), [(0.1, 40), (0.3, 40), (0.5, 60)])
def test_bounded_without_effect_equals_unbounded(load: float, largest: int) -> None:
    """A largest batch that is never reached changes nothing, though the two solutions share no formula."""
    rate = load / ALPHA_S
    free = greedy(rate_rps=rate, alpha_s=ALPHA_S, tau0_s=TAU0_S)
    times = [ALPHA_S * b + TAU0_S for b in range(1, largest + 1)]
    bounded = greedy_bounded(rate_rps=rate, batch_times_s=times)
    assert bounded.latency_mean_s == pytest.approx(free.latency_mean_s, rel=1e-11)
    assert bounded.idle_probability == pytest.approx(free.idle_probability, rel=1e-11)
    for q in (0.5, 0.95, 0.99):
        assert bounded.latency_quantile_s(q) == pytest.approx(free.latency_quantile_s(q), rel=1e-11)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_bounded_by_one_is_md1(load: float) -> None:
    """Batches of one are M/D/1: same mean, same quantiles."""
    batches = greedy_bounded(rate_rps=load * 1e3, batch_times_s=[1e-3])
    queue = md1(rate_rps=load * 1e3, service_s=1e-3)
    assert batches.latency_mean_s == pytest.approx(queue.sojourn_mean_s, rel=1e-10)
    for q in (0.5, 0.95, 0.99, 0.999):
        assert batches.latency_quantile_s(q) == pytest.approx(queue.sojourn_quantile_s(q), rel=1e-10)


@given(
    times=st.lists(st.floats(0.2, 3.0), min_size=1, max_size=5),
    load=st.floats(0.05, 0.85),
)
@settings(max_examples=12, deadline=None)
def test_bounded_latency_law_has_its_mean(times: list[float], load: float) -> None:
    """For any table of batch times the latency's tail integrates to the mean found through Little's law."""
    queue = greedy_bounded(rate_rps=load * len(times) / times[-1], batch_times_s=times)
    end = queue.latency_quantile_s(1 - 1e-9)
    grid = np.linspace(0.0, end, 801)
    tail = np.array([1.0 - queue.latency_cdf(float(t)) for t in grid])
    mean = float(np.sum(0.5 * (tail[1:] + tail[:-1]) * np.diff(grid)))
    # The atom at tau(1) is a jump, smeared by the rule over one step.
    step = end / 800
    assert mean == pytest.approx(queue.latency_mean_s, rel=2e-3, abs=0.51 * step * queue.idle_atom)
    assert queue.latency_cdf(1e3 * end) == pytest.approx(1.0, abs=1e-9)


def _simulate_batches(rate: float, times: list[float], n: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Latencies, in arrival order, and batch sizes of take-all batching, by the recursion over batches."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, n)).tolist()
    done, sizes = np.empty(n), []
    free, head = 0.0, 0
    while head < n:
        start = max(free, arrivals[head])
        size = 1
        while size < len(times) and head + size < n and arrivals[head + size] <= start:
            size += 1
        free = start + times[size - 1]
        done[head : head + size] = free
        sizes.append(size)
        head += size
    return done - np.array(arrivals), sizes


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_bounded_is_what_simulations_find(load: float) -> None:
    """Nearly all of 12 simulations with batches of at most 8 cover mean, E[B], p50, p95 and p99."""
    times = [ALPHA_S * b + TAU0_S for b in range(1, 9)]
    rate = load * 8 / times[-1]
    exact = greedy_bounded(rate_rps=rate, batch_times_s=times)
    levels = (0.5, 0.95, 0.99)
    truth = [exact.latency_quantile_s(q) for q in levels]
    covered = np.zeros(5, dtype=np.int64)
    for seed in range(12):
        latency, sizes = _simulate_batches(rate, times, 60_000, seed)
        latency = latency[2_000:]
        estimates = quantile_estimates(latency, levels)
        covered += [e.covers(t) for e, t in zip(estimates, truth, strict=True)] + [
            mean_estimate(latency).covers(exact.latency_mean_s),
            mean_estimate(sizes).covers(exact.batch_mean),
        ]
    # At a true coverage of 93 % fewer than 8 of 12 have probability 0.1 %.
    assert covered.min() >= 8, covered
