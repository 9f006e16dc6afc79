"""The oracles themselves, against known figures, other derivations and each other; no engine here.

Batching has its own file, test_theory_batching.py.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preba.errors import ScenarioError, TraceError
from preba.statistics import mean_estimate, quantile_estimate
from sim.theory import (
    anchor_cases,
    greedy,
    greedy_bounded,
    littles_law,
    md1,
    mdc,
    mg1,
    mm1,
    mmc,
)
from sim.theory.numerics import poisson_pmf

MS = 1e3

LOADS = st.floats(0.02, 0.9)


def _significant(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


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
def test_mmc_gives_the_known_figures(servers: int, load: float, wait_ms: float, late: float, p99_ms: float) -> None:
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
    """Erlang's alternating sum for M/D/1 with service time 1, in 120 digits to survive its cancellation."""
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
        mean += 0.5 * sum(w * (1.0 - queue.wait_cdf(k + 0.5 * (x + 1.0))) for x, w in zip(nodes, weights, strict=True))
        k += 1
    assert mean == pytest.approx(queue.wait_mean_s, rel=1e-7, abs=1e-9)


def _simulate_mdc_waits(servers: int, load: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Waits of M/D/c with service time 1: requests leave in order, so each c-th one shares a server."""
    arrivals = np.cumsum(rng.exponential(1.0 / (servers * load), n)).reshape(-1, servers)
    slack = np.vstack((np.zeros(servers), np.cumsum(1.0 - np.diff(arrivals, axis=0), axis=0)))
    return (slack - np.minimum.accumulate(slack, axis=0)).ravel()


def test_mdc_is_what_simulations_find() -> None:
    """Of 20 simulations of M/D/7, about 19 find mean, P(wait) and p99 inside their 95 % intervals."""
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mm1(rate_rps=1000.0, service_mean_s=1e-3),
            r"load: must be < 1 .*got 1; 1 servers complete 1000",
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
    """A parameter out of range or a saturated queue is refused by name, value and what is allowed."""
    with pytest.raises(ScenarioError, match=message):
        call()  # type: ignore[operator]


def test_anchors_hold_every_model_at_every_load() -> None:
    """There are eight models at nine loads, with unique names, finite answers and whole-ns services."""
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
    with pytest.raises(ScenarioError, match=r"between 0 and 1, got 1\.0"):
        anchor_cases(loads=(1.0,))


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
