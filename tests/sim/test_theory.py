"""The oracles themselves, against published figures, other derivations and each other; no engine here."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preba.errors import ScenarioError, TraceError
from preba.statistics import mean_estimate, quantile_estimate, quantile_estimates
from sim.theory import (
    anchor_cases,
    greedy,
    greedy_bounded,
    greedy_bounds,
    littles_law,
    md1,
    mdc,
    mg1,
    mm1,
    mmc,
)
from sim.theory.numerics import poisson_pmf

ALPHA_S, TAU0_S = 0.9e-3, 2.0e-3
MS = 1e3

LOADS = st.floats(0.02, 0.9)
FIXED_SHARES = st.floats(0.01, 15.0)
"""Fixed time of a batch in units of the time per item."""


def _significant(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


# --- M/M/c ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "wait_ms"), [(0.5, 0.5), (0.8, 3.2), (0.9, 8.1)])
def test_mm1_wait_of_service_in_proportion_to_load(load: float, wait_ms: float) -> None:
    """At 1,000 requests per second M/M/1 waits rho**2/(1-rho) milliseconds on average."""
    queue = mm1(rate_rps=1000.0, service_mean_s=load / 1000.0)
    assert queue.wait_mean_s * MS == pytest.approx(wait_ms, rel=1e-12)
    assert queue.wait_probability == pytest.approx(load, rel=1e-12)


@pytest.mark.parametrize(("load", "p99_ms"), [(0.8, 18.421), (0.9, 41.447)])
def test_mm1_p99_is_log_100_means(load: float, p99_ms: float) -> None:
    """The sojourn time of M/M/1 is exponential, so its p99 is log(100) times its mean."""
    queue = mm1(rate_rps=1000.0, service_mean_s=load / 1000.0)
    assert round(queue.sojourn_quantile_s(0.99) * MS, 3) == p99_ms
    assert queue.sojourn_quantile_s(0.99) == pytest.approx(math.log(100.0) * queue.sojourn_mean_s, rel=1e-12)


@pytest.mark.parametrize(
    ("servers", "load", "wait_ms", "late", "p99_ms"),
    [
        (7, 0.8, 1.94375, 0.485938, 15.534),
        (16, 0.75, 0.613722, 0.204574, 9.05503),
        (16, 0.9, 5.32209, 0.591343, 36.718),
    ],
)
def test_mmc_gives_the_known_figures(
    servers: int, load: float, wait_ms: float, late: float, p99_ms: float
) -> None:
    """Erlang C reproduces separately computed mean waits, waiting probabilities and p99 waits."""
    queue = mmc(rate_rps=1000.0, service_mean_s=servers * load / 1000.0, servers=servers)
    assert _significant(queue.wait_mean_s * MS) == wait_ms
    assert _significant(queue.wait_probability) == late
    digits = len(str(p99_ms)) - 1
    assert _significant(queue.wait_quantile_s(0.99) * MS, digits) == p99_ms


@given(load=LOADS, servers=st.integers(1, 40))
def test_mmc_erlang_c_equals_its_sum(load: float, servers: int) -> None:
    """The recursion gives Erlang's own sum of a**k/k!."""
    offered = load * servers
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) / (1.0 - load)
    queue = mmc(rate_rps=offered, service_mean_s=1.0, servers=servers)
    assert queue.wait_probability == pytest.approx(last / (sum(terms) + last), rel=1e-10)


@given(load=LOADS, servers=st.integers(1, 20))
@settings(max_examples=25)
def test_mmc_sojourn_law_has_its_mean(load: float, servers: int) -> None:
    """The tail of the sojourn time integrates to wait plus service, also where both rates nearly coincide."""
    queue = mmc(rate_rps=load * servers, service_mean_s=1.0, servers=servers)
    end = 40.0 * (1.0 + 1.0 / (servers * (1.0 - load)))
    nodes, weights = np.polynomial.legendre.leggauss(200)
    tail = [1.0 - queue.sojourn_cdf(0.5 * end * (x + 1.0)) for x in nodes]
    assert 0.5 * end * float(weights @ tail) == pytest.approx(queue.sojourn_mean_s, rel=1e-6)


def test_mmc_sojourn_is_smooth_where_the_rates_meet() -> None:
    """With c mu - lambda = mu the formula divides by zero; the law passes through that point smoothly."""
    around = [mmc(rate_rps=rate, service_mean_s=1.0, servers=2) for rate in (1.0 - 1e-7, 1.0, 1.0 + 1e-7)]
    below, at, above = (queue.sojourn_cdf(2.0) for queue in around)
    assert at == pytest.approx(0.5 * (below + above), abs=1e-12)


# --- M/D/c ---------------------------------------------------------------------------------------------------


@given(load=st.floats(0.02, 0.99))
def test_md1_mean_wait_is_pollaczek_khinchine(load: float) -> None:
    """The chain for one server gives the closed mean of M/D/1."""
    queue = md1(rate_rps=load / 1e-3, service_s=1e-3)
    closed = mg1(rate_rps=load / 1e-3, service_mean_s=1e-3, service_scv=0.0)
    assert queue.wait_mean_s == pytest.approx(closed.wait_mean_s, rel=1e-11)
    assert queue.wait_probability == pytest.approx(load, rel=1e-12)


@given(load=LOADS)
def test_mg1_with_exponential_service_is_mm1(load: float) -> None:
    """Pollaczek-Khinchine with a squared coefficient of variation of 1 is M/M/1."""
    general = mg1(rate_rps=load, service_mean_s=1.0, service_scv=1.0)
    assert general.wait_mean_s == pytest.approx(mm1(rate_rps=load, service_mean_s=1.0).wait_mean_s, rel=1e-12)


def _erlang_md1_cdf(load: float, t: float) -> float:
    """Erlang's alternating sum for M/D/1 with service time 1, in 120 digits so that cancellation is harmless."""
    with localcontext() as context:
        context.prec = 120
        rate, time = Decimal(load), Decimal(t)
        total = Decimal(0)
        for k in range(math.floor(t) + 1):
            x = rate * (k - time)
            total += (x**k if k else Decimal(1)) / math.factorial(k) * (-x).exp()
        return float((1 - rate) * total)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.999, 1.0, 2.5, 7.75, 21.9, 40.0])
def test_md1_wait_law_is_erlangs(load: float, t: float) -> None:
    """The stable formula agrees with Erlang's exact alternating sum of 1909."""
    assert md1(rate_rps=load, service_s=1.0).wait_cdf(t) == pytest.approx(_erlang_md1_cdf(load, t), abs=2e-13)


@pytest.mark.parametrize(("servers", "load", "wait_ms"), [(7, 0.8, 1.02682), (16, 0.9, 2.77153)])
def test_mdc_gives_the_known_mean_waits(servers: int, load: float, wait_ms: float) -> None:
    """The chain reproduces separately computed mean waits at 1,000 requests per second."""
    queue = mdc(rate_rps=1000.0, service_s=servers * load / 1000.0, servers=servers)
    assert _significant(queue.wait_mean_s * MS) == wait_ms


@given(load=st.floats(0.05, 0.95), servers=st.integers(1, 24))
@settings(max_examples=30, deadline=None)
def test_mdc_law_is_stationary(load: float, servers: int) -> None:
    """The law found by transform satisfies the chain's balance equations, state by state."""
    law = mdc(rate_rps=load * servers, service_s=1.0, servers=servers).number_law
    left = np.concatenate(([law[: servers + 1].sum()], law[servers + 1 :]))
    arrivals = poisson_pmf(load * servers, law.size)
    size = law.size - servers
    following = np.convolve(left, arrivals)[:size]
    np.testing.assert_allclose(law[:size], following, atol=2e-14, rtol=0)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)


@given(load=st.floats(0.05, 0.95), servers=st.integers(1, 24))
@settings(max_examples=25, deadline=None)
def test_mdc_wait_law_has_its_mean_and_atom(load: float, servers: int) -> None:
    """The wait's distribution starts at P(no wait), and its tail integrates to the mean from Little's law."""
    queue = mdc(rate_rps=load * servers, service_s=1.0, servers=servers)
    assert queue.wait_cdf(0.0) == pytest.approx(1.0 - queue.wait_probability, abs=1e-12)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    mean, k = 0.0, 0
    while queue.wait_cdf(float(k)) < 1.0 - 1e-12:
        # The law is smooth between multiples of the service time only.
        mean += 0.5 * sum(
            w * (1.0 - queue.wait_cdf(k + 0.5 * (x + 1.0))) for x, w in zip(nodes, weights, strict=True)
        )
        k += 1
    assert mean == pytest.approx(queue.wait_mean_s, rel=1e-7, abs=1e-9)


def _simulate_mdc_waits(servers: int, load: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Waits of M/D/c with service time 1: requests leave in order, so each c-th one shares a server."""
    arrivals = np.cumsum(rng.exponential(1.0 / (servers * load), n)).reshape(-1, servers)
    slack = np.vstack((np.zeros(servers), np.cumsum(1.0 - np.diff(arrivals, axis=0), axis=0)))
    return (slack - np.minimum.accumulate(slack, axis=0)).ravel()


def test_mdc_is_what_simulations_find() -> None:
    """Of 20 simulations of M/D/7, about 19 find mean wait, P(wait) and p99 wait inside their 95 % intervals."""
    exact = mdc(rate_rps=7 * 0.8, service_s=1.0, servers=7)
    rng = np.random.default_rng(7)
    covered = np.zeros(3, dtype=np.int64)
    for _ in range(20):
        waits = _simulate_mdc_waits(7, 0.8, 280_000, rng)[7_000:]
        covered += [
            mean_estimate(waits).covers(exact.wait_mean_s),
            mean_estimate(waits > 1e-9).covers(exact.wait_probability),
            quantile_estimate(waits, 0.99).covers(exact.wait_quantile_s(0.99)),
        ]
    # At a true coverage of 93 % fewer than 15 of 20 have probability 0.2 %.
    assert covered.min() >= 15, covered


# --- Greedy batching, unbounded (Inoue) ----------------------------------------------------------------------


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
    """The bound equals Inoue's for his fits of a V100 and a P4; his simulations lie within 1 % of the exact."""
    inputs = {"rate_rps": load / alpha_ms * MS, "alpha_s": alpha_ms / MS, "tau0_s": tau0_ms / MS}
    queue = greedy(**inputs)
    assert round(greedy_bounds(**inputs).phi_s * MS, 3) == phi_ms
    # 400,000 jobs, no interval stated: 1 % is about two standard errors of such a run at load 0.8.
    assert queue.latency_mean_s * MS == pytest.approx(simulated_ms, rel=0.01)
    assert queue.batch_mean == pytest.approx(batch_mean, rel=0.01)


@given(load=LOADS, fixed_share=FIXED_SHARES)
@settings(max_examples=40, deadline=None)
def test_greedy_mean_satisfies_inoues_equations(load: float, fixed_share: float) -> None:
    """The chain's moments satisfy (31) and (32), and its mean latency the exact formula (35) given idleness."""
    a, t0, rate = 1.0, fixed_share, load
    queue = greedy(rate_rps=rate, alpha_s=a, tau0_s=t0)
    alone = float(queue.batch_law @ np.exp(-rate * (a * np.arange(queue.batch_law.size) + t0)))
    assert queue.batch_mean == pytest.approx((rate * t0 + alone) / (1 - rate * a), rel=1e-9)
    second = ((1 + 2 * rate**2 * a * t0) * queue.batch_mean + (rate * t0) ** 2) / (1 - (rate * a) ** 2)
    assert queue.batch_second_moment == pytest.approx(second, rel=1e-9)
    busy_term = (1 - queue.idle_probability - rate * a) * t0 / rate
    closed = (
        a + t0 + rate * (1 + 2 * rate * a) * (2 * a * t0 + a * a + busy_term) / (2 * (1 - (rate * a) ** 2))
    )
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


# --- Greedy batching with a largest batch --------------------------------------------------------------------


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


# --- Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mm1(rate_rps=1000.0, service_mean_s=1e-3),
            "load: must be < 1 .*got 1; 1 servers complete 1000",
        ),
        (lambda: mmc(rate_rps=-1.0, service_mean_s=1e-3, servers=2), "rate_rps: .* > 0, got -1.0"),
        (lambda: mmc(rate_rps=1.0, service_mean_s=math.nan, servers=2), "service_mean_s: .*got nan"),
        (lambda: mmc(rate_rps=1.0, service_mean_s=1e-3, servers=0), "servers: must be >= 1, got 0"),
        (lambda: mdc(rate_rps=8.0, service_s=1.0, servers=7), "load: must be < 1"),
        (lambda: mdc(rate_rps=0.999999999, service_s=1.0, servers=1), "too near 1"),
        (lambda: mg1(rate_rps=0.5, service_mean_s=1.0, service_scv=-1.0), "service_scv: .*got -1.0"),
        (lambda: greedy(rate_rps=2.0, alpha_s=0.5, tau0_s=1.0), "at most 2 requests per second"),
        (lambda: greedy(rate_rps=1.0, alpha_s=0.5, tau0_s=-1.0), "tau0_s: .*got -1.0"),
        (lambda: greedy(rate_rps=0.9999, alpha_s=1.0, tau0_s=1.0), "too near 1"),
        (lambda: greedy_bounded(rate_rps=1.0, batch_times_s=[]), "batch_times_s: .*got none"),
        (lambda: greedy_bounded(rate_rps=1.0, batch_times_s=[1.0, 0.0]), r"batch_times_s\[1\]: .*got 0.0"),
        (lambda: greedy_bounded(rate_rps=5.0, batch_times_s=[0.3, 0.5]), "batches of 2 complete 4 requests"),
        (lambda: mm1(rate_rps=1.0, service_mean_s=0.5).wait_quantile_s(1.0), "q: .*got 1.0"),
    ],
)
def test_theory_refuses_what_has_no_answer(call: object, message: str) -> None:
    """A parameter out of range or a saturated queue is refused with its name, its value and what is allowed."""
    with pytest.raises(ScenarioError, match=message):
        call()  # type: ignore[operator]


# --- Anchors -------------------------------------------------------------------------------------------------


def test_anchors_hold_every_model_at_every_load() -> None:
    """There are eight models at nine loads with unique names, positive finite answers and whole-ns services."""
    cases = anchor_cases()
    assert len({case.name for case in cases}) == len(cases) == 72
    for case in cases:
        quantities = [e.quantity for e in case.expected]
        assert len(set(quantities)) == len(quantities)
        assert "sojourn_mean_s" in quantities
        for e in case.expected:
            assert math.isfinite(e.value)
            assert e.value >= 0
        for time_s in (case.service_mean_s, case.alpha_s, case.tau0_s):
            assert time_s is None or time_s * 1e9 == pytest.approx(round(time_s * 1e9), abs=1e-3)


def test_anchors_mark_quantiles_inside_atoms() -> None:
    """Where most requests do not wait, the median is the bare service time and marked as an atom."""
    by_name = {case.name: case for case in anchor_cases(loads=(0.1, 0.8), models=("md1", "greedy", "mm16"))}
    for name, value in (("md1-0.1", 1.0e-3), ("greedy-0.1", 2.9e-3)):
        median = next(e for e in by_name[name].expected if e.quantity == "sojourn_p50_s")
        assert median.atom
        assert median.value == pytest.approx(value, rel=1e-12)
    assert not any(e.atom for name in ("md1-0.8", "greedy-0.8") for e in by_name[name].expected)
    wait = next(e for e in by_name["mm16-0.1"].expected if e.quantity == "wait_p99_s")
    assert wait.atom
    assert wait.value == 0.0


def test_anchors_refuse_unknown_models_and_loads() -> None:
    """A misspelt model gets a suggestion, a load of 1 its limits."""
    with pytest.raises(ScenarioError, match="did you mean 'greedy'"):
        anchor_cases(models=("gredy",))
    with pytest.raises(ScenarioError, match="between 0 and 1, got 1.0"):
        anchor_cases(loads=(1.0,))


# --- Little's law --------------------------------------------------------------------------------------------

STAYS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 300)), max_size=30)


@given(stays=STAYS, start=st.integers(0, 900), length=st.integers(1, 900))
def test_little_balances_with_its_edges(stays: list[tuple[int, int]], start: int, length: int) -> None:
    """L integrated over any window equals lambda * W plus the stated contribution of the window's edges."""
    arrival = np.array([a for a, _ in stays], dtype=np.int64)
    departure = np.array([a + s for a, s in stays], dtype=np.int64)
    law = littles_law(arrival, departure, start_ns=start, end_ns=start + length)
    assert law.number_mean == pytest.approx(law.product + law.edge_mean, abs=1e-9)
    brute = sum(int(np.count_nonzero((arrival <= t) & (departure > t))) for t in range(start, start + length))
    assert law.number_mean == pytest.approx(brute / length, abs=1e-9)


@given(stays=STAYS)
def test_little_has_no_edges_around_a_whole_run(stays: list[tuple[int, int]]) -> None:
    """Over a window that begins and ends empty L is exactly lambda * W."""
    arrival = [a for a, _ in stays]
    departure = [a + s for a, s in stays]
    law = littles_law(arrival, departure, start_ns=0, end_ns=2000)
    assert law.edge_mean == 0.0
    assert law.number_mean == pytest.approx(law.product, abs=1e-9)


def test_little_refuses_impossible_records() -> None:
    """A departure before its arrival, unequal lengths and an empty window are refused."""
    with pytest.raises(TraceError, match=r"departure_ns\[1\]: must be >= its arrival 5, got 4"):
        littles_law([0, 5], [1, 4], start_ns=0, end_ns=10)
    with pytest.raises(TraceError, match="one shape"):
        littles_law([0, 5], [1], start_ns=0, end_ns=10)
    with pytest.raises(ScenarioError, match="positive length"):
        littles_law([0], [1], start_ns=10, end_ns=10)
