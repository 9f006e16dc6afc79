"""Promises of the arrival processes, held against theory with confidence intervals."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from scipy.integrate import trapezoid
from scipy.linalg import expm

from preba.arrivals import ArrivalsConfig, Horizon, RateChange, draw_arrivals
from preba.errors import TraceError
from preba.rates import ChangedRate, ConstantRate, SinusoidalRate, StatePath

NS = 1_000_000_000

POISSON = {"kind": "poisson", "rate_rps": 800.0}
GAMMA = {"kind": "gamma", "rate_rps": 800.0, "cv": 2.5}
DETERMINISTIC = {"kind": "deterministic", "rate_rps": 800.0}
ONOFF = {"kind": "onoff", "rate_on_rps": 2400.0, "mean_on_s": 0.05, "mean_off_s": 0.1}
MMPP = {
    "kind": "mmpp",
    "states": [
        {"rate_rps": 200, "mean_dwell_s": 0.1},
        {"rate_rps": 3000, "mean_dwell_s": 0.02},
        {"rate_rps": 900, "mean_dwell_s": 0.05},
    ],
}
MMPP_UNIFORM = {**MMPP, "next_state": "uniform"}
DIURNAL = {"kind": "diurnal", "mean_rps": 800.0, "amplitude": 0.7, "period_s": 2.0, "phase_s": 0.3}
OPEN = (POISSON, GAMMA, DETERMINISTIC, ONOFF, MMPP, MMPP_UNIFORM, DIURNAL)


def parse(data: dict[str, Any]) -> Any:
    return TypeAdapter(ArrivalsConfig).validate_json(json.dumps(data))


def draw(data: dict[str, Any], seed: int = 1, changes: tuple[RateChange, ...] = (), **horizon: int) -> Any:
    return draw_arrivals(
        parse(data),
        rng=np.random.default_rng([seed, 0]),
        state_rng=np.random.default_rng([seed, 1]),
        horizon=Horizon(**horizon),
        rate_changes=changes,
    )


def sectioned(values: np.ndarray, statistic: Any, sections: int = 25) -> tuple[float, float]:
    """Mean of a statistic over sections, and the half width of its 99.9 % interval."""
    results = np.array([statistic(part) for part in np.array_split(values, sections)])
    half = stats.t.ppf(0.9995, sections - 1) * results.std(ddof=1) / math.sqrt(sections)
    return float(results.mean()), float(half)


def cv_of(gaps: np.ndarray) -> float:
    return float(gaps.std(ddof=1) / gaps.mean())


@pytest.mark.parametrize("data", OPEN, ids=lambda data: data["kind"])
def test_arrivals_come_at_the_mean_rate(data: dict[str, Any]) -> None:
    """Every open-loop process yields the long-run rate its configuration promises."""
    config = parse(data)
    # Whole periods, so that the diurnal swing cancels within each section.
    times = draw(data, duration_ns=400 * NS)
    counts = np.histogram(times, bins=200, range=(0, 400 * NS))[0] / 2.0
    mean, half = sectioned(counts, np.mean)
    assert abs(mean - config.mean_rate_rps()) <= half + 1.0 / 400


@pytest.mark.parametrize("cv", [0.3, 0.7, 1.0, 1.6, 3.0])
def test_gamma_gaps_have_the_gamma_distribution(cv: float) -> None:
    """Gamma gaps follow the gamma law of their rate and CV, tail and all."""
    gaps = np.diff(draw({**GAMMA, "cv": cv}, requests=60_000), prepend=0) * (800.0 / NS)
    law = stats.gamma(cv**-2, scale=cv**2)
    # A burst's gaps fall below a nanosecond and round; the law is checked above 1/1000 of the mean and at it.
    above = gaps[gaps > 1e-3]
    assert stats.binomtest(len(above), len(gaps), law.sf(1e-3)).pvalue > 0.001
    assert stats.kstest(above, lambda x: 1.0 - law.sf(x) / law.sf(1e-3)).pvalue > 0.001
    mean, half = sectioned(gaps, cv_of)
    assert abs(mean - cv) <= half + 0.01 * cv  # the CV of a finite section is biased by about 1 / its length


def test_poisson_gaps_are_exponential_with_cv_one() -> None:
    """Poisson gaps are exponential to the far tail: mean 1/rate, CV 1, longest gap as long as it should be."""
    gaps = np.diff(draw(POISSON, requests=400_000), prepend=0) * (800.0 / NS)
    assert abs(gaps.mean() - 1.0) <= stats.norm.ppf(0.9995) / math.sqrt(len(gaps))
    mean, half = sectioned(gaps, cv_of)
    assert abs(mean - 1.0) <= half
    assert stats.kstest(gaps, "expon").pvalue > 0.001
    # The longest of n is Gumbel about ln n.
    low, high = stats.gumbel_r.ppf([0.0005, 0.9995]) + math.log(len(gaps))
    assert low < gaps.max() < high


def test_the_check_on_poisson_gaps_catches_cut_tails() -> None:
    """The very same interval refuses exponential gaps cut at three times their mean: the check can fail."""
    gaps = np.minimum(np.random.default_rng(5).standard_exponential(400_000), 3.0)
    mean, half = sectioned(gaps, cv_of)
    assert abs(mean - 1.0) > half
    assert abs(gaps.mean() - 1.0) > stats.norm.ppf(0.9995) / math.sqrt(len(gaps))


def test_deterministic_gaps_are_equal() -> None:
    """Constant gaps never drift: request k comes at (k+1)/rate to the nanosecond."""
    times = draw({"kind": "deterministic", "rate_rps": 700}, requests=100_000)
    exact = [((k + 1) * NS * 2 + 700) // 1400 for k in range(100_000)]
    assert np.abs(times - np.array(exact)).max() <= 1


@pytest.mark.parametrize("data", [ONOFF, MMPP, MMPP_UNIFORM], ids=["onoff", "cyclic", "uniform"])
def test_modulated_gaps_have_the_theoretical_cv(data: dict[str, Any]) -> None:
    """The gaps of a modulated process vary as the theory of its phase-type gaps says."""
    gaps = np.diff(draw(data, requests=1_000_000)).astype(float)
    mean, half = sectioned(gaps, cv_of)
    assert abs(mean - parse(data).gap_cv()) <= half


def windowed_dispersion(data: dict[str, Any], window_s: float) -> float:
    """Variance over mean of the arrivals in a window of an equilibrium MMPP, from its matrix exponential."""
    states = data["states"]
    count = len(states)
    dwell = np.array([state["mean_dwell_s"] for state in states])
    rate = np.array([float(state["rate_rps"]) for state in states])
    if data.get("next_state") == "uniform":
        jump = (1 - np.eye(count)) / (count - 1)
    else:
        jump = np.eye(count)[[(i + 1) % count for i in range(count)]]
    generator = (jump - np.eye(count)) / dwell[:, None]
    share = dwell / dwell.sum()
    # Trapezoid over the covariance of the rate at two moments: nothing of the closed form is used.
    lag = np.linspace(0.0, min(window_s, 2.0), 2001)  # tens of dwells: nothing is left of the covariance then
    covariance = np.array([(share * rate) @ expm(generator * u) @ rate for u in lag]) - (share @ rate) ** 2
    return float(1 + 2 * trapezoid((window_s - lag) * covariance, lag) / (window_s * (share @ rate)))


@pytest.mark.parametrize("data", [MMPP, MMPP_UNIFORM], ids=["cyclic", "uniform"])
def test_modulated_counts_have_the_theoretical_dispersion(data: dict[str, Any]) -> None:
    """Variance over mean of the counts in a window meets theory, and long windows meet the closed form."""
    window_s = 0.5
    windows = 20_000
    counts = np.histogram(
        draw(data, duration_ns=int(windows * window_s * NS)), bins=windows, range=(0, windows * window_s * NS)
    )[0]
    mean, half = sectioned(counts, lambda part: part.var(ddof=1) / part.mean())
    assert abs(mean - windowed_dispersion(data, window_s)) <= half
    closed_form = parse(data).index_of_dispersion()
    assert windowed_dispersion(data, 400.0) == pytest.approx(closed_form, rel=0.01)


def test_two_state_dispersion_is_the_published_formula() -> None:
    """The general closed form gives Heffes and Lucantoni's (1986) for two states."""
    on, off, leave_on, leave_off = 2400.0, 0.0, 1 / 0.05, 1 / 0.1
    difference = (on - off) ** 2 * leave_on * leave_off
    expected = 1 + 2 * difference / ((leave_on + leave_off) ** 2 * (on * leave_off + off * leave_on))
    assert parse(ONOFF).index_of_dispersion() == pytest.approx(expected, rel=1e-12)


def test_modulated_process_starts_in_equilibrium() -> None:
    """The very first window already has the long-run mean rate: no warm-up hides in the traffic."""
    counts = np.array([len(draw(MMPP, seed=seed, duration_ns=NS // 100)) for seed in range(3000)])
    half = stats.norm.ppf(0.9995) * counts.std(ddof=1) / math.sqrt(len(counts))
    assert abs(counts.mean() - parse(MMPP).mean_rate_rps() / 100) <= half


@pytest.mark.parametrize("amplitude", [0.0, 0.5, 1.0])
def test_diurnal_arrivals_follow_the_sine(amplitude: float) -> None:
    """Undoing the expected count turns diurnal arrivals back into a unit Poisson process."""
    times = draw({**DIURNAL, "amplitude": amplitude}, requests=60_000) / NS
    angle, start = np.pi * (times + 0.3), np.pi * 0.3
    expected = 800.0 * (times - amplitude / np.pi * (np.cos(angle) - np.cos(start)))
    assert stats.kstest(np.diff(expected, prepend=0), "expon").pvalue > 0.001
    phase = np.histogram(times % 2.0, bins=20, range=(0, 2.0))[0]
    edges = np.linspace(0, 2.0, 21)
    weight = np.diff(edges - amplitude / np.pi * np.cos(np.pi * (edges + 0.3)))
    assert stats.chisquare(phase, weight / weight.sum() * phase.sum()).pvalue > 0.001


CHANGES = (RateChange(2 * NS, 3.0), RateChange(4 * NS, 0.0), RateChange(5 * NS, 0.5))


@pytest.mark.parametrize("data", [POISSON, GAMMA, DETERMINISTIC], ids=lambda data: data["kind"])
def test_rate_changes_only_bend_the_clock(data: dict[str, Any]) -> None:
    """Under rate changes the same points come, on a clock that runs ``factor`` times as fast."""
    bent = draw(data, changes=CHANGES, requests=8000).astype(float)
    clock = np.interp(bent, [0, 2 * NS, 4 * NS, 5 * NS, 100 * NS], [0, 2 * NS, 8 * NS, 8 * NS, 55.5 * NS])
    assert np.abs(clock - draw(data, requests=8000)).max() <= 2.0


@pytest.mark.parametrize("data", OPEN, ids=lambda data: data["kind"])
def test_rate_changes_compose_with_every_kind(data: dict[str, Any]) -> None:
    """Each stretch has ``factor`` times the expected arrivals, and an outage none, whatever the process."""
    counts = []
    for seed in range(80):
        times = draw(data, seed=seed, changes=CHANGES, duration_ns=9 * NS)
        counts.append(np.histogram(times, bins=np.array([0, 2, 4, 5, 7, 9]) * NS)[0])
    table = np.array(counts)
    rate = parse(data).mean_rate_rps()
    expected = np.array([2, 6, 0, 1, 1]) * rate  # the diurnal period is 2 s, so stretches are whole swings
    if data["kind"] == "diurnal":
        angle = np.pi * np.array([5.3, 7.3, 9.3])
        expected[3:] = 0.5 * rate * (2.0 - 0.7 / np.pi * np.diff(np.cos(angle)))
    half = stats.t.ppf(0.9995, 79) * table.std(axis=0, ddof=1) / math.sqrt(len(table)) + 1.0
    assert (np.abs(table.mean(axis=0) - expected) <= half).all()
    assert (table[:, 2] == 0).all()


def test_rate_change_at_start_and_twice_at_once_the_later_counts() -> None:
    """A factor from time 0 rules from the start; of two at one moment the later in the list counts."""
    changes = (RateChange(0, 7.0), RateChange(0, 2.0))
    assert np.abs(draw(POISSON, changes=changes, requests=999) * 2 - draw(POISSON, requests=999)).max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    data=st.sampled_from(OPEN),
    seed=st.integers(0, 2**40),
    few=st.integers(1, 400),
    more=st.integers(0, 4000),
    changed=st.booleans(),
)
def test_longer_horizon_only_appends(data: dict[str, Any], seed: int, few: int, more: int, changed: bool) -> None:
    """A longer trace begins with the shorter one; times ascend; a duration cuts where a count would not."""
    changes = CHANGES if changed else ()
    short = draw(data, seed=seed, changes=changes, requests=few)
    long = draw(data, seed=seed, changes=changes, requests=few + more)
    assert short.dtype == np.int64
    assert np.array_equal(long[:few], short)
    assert (np.diff(long) >= 0).all()
    assert long[0] >= 0
    # Up to the last of the short trace, others may share its nanosecond.
    until = max(int(short[-1]), 1)
    assert np.array_equal(draw(data, seed=seed, changes=changes, duration_ns=until), long[long < until])


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    amplitude=st.one_of(st.just(1.0), st.floats(0.0, 1.0)),
    phase=st.floats(0.0, 3.0),
    factor=st.floats(0.01, 50.0),
)
def test_time_warps_invert_their_mass(seed: int, amplitude: float, phase: float, factor: float) -> None:
    """The mass expected by the moment at which a mass is reached is that mass, for every rate."""
    rng = np.random.default_rng(seed)
    path = StatePath(np.array([2e-6, 0.0, 1e-7]), np.array([1e6, 3e6, 5e5]), cyclic=False, rng=rng)
    sine = SinusoidalRate(mean_per_ns=1e-6, amplitude=amplitude, period_ns=1e9, phase_ns=phase * 1e9)
    for rate in (ConstantRate(1e-6), sine, path):
        warp = ChangedRate(rate, [RateChange(10**8, factor), RateChange(10**9, 0.0), RateChange(2 * 10**9, 1.0)])
        mass = np.sort(rng.random(50)) * 3000.0
        times = warp.times_at(mass)
        assert (np.diff(times) >= 0).all()
        back = np.array([warp.mass_at(float(time)) for time in times])
        assert np.abs(back - mass).max() < 1e-6


def test_closed_loop_has_no_times_but_think_times() -> None:
    """A closed loop draws zeros for times, and think times of the mean and distribution asked for."""
    data = {"kind": "closed_loop", "outstanding": 4, "think_ms": 2, "think_distribution": "exponential"}
    assert not draw(data, requests=50).any()
    think = parse(data).draw_think_ns(100_000, np.random.default_rng(3))
    assert stats.kstest(think / 2e6, "expon").pvalue > 0.001
    constant = parse({**data, "think_distribution": "constant"})
    assert (constant.draw_think_ns(9, np.random.default_rng(3)) == 2_000_000).all()


@pytest.mark.parametrize(
    ("data", "changes", "horizon", "message"),
    [
        ({"kind": "closed_loop", "outstanding": 2}, (), {"duration_ns": NS}, "give run.requests"),
        ({"kind": "closed_loop", "outstanding": 2}, (RateChange(5, 2.0),), {"requests": 9}, "closed_loop"),
        (POISSON, (RateChange(NS, 0.0),), {"requests": 100_000}, "never taken back"),
        (MMPP, (RateChange(NS, 0.0),), {"requests": 100_000}, "never taken back"),
        (POISSON, (), {"duration_ns": 10**9 * NS}, "at most"),
        ({**POISSON, "rate_rps": 1e-9}, (), {"requests": 100}, "64-bit nanoseconds"),
    ],
)
def test_impossible_horizons_say_why(
    data: dict[str, Any], changes: tuple[RateChange, ...], horizon: dict[str, int], message: str
) -> None:
    """What cannot be drawn is one error with the way out, not a hang and not a short trace."""
    with pytest.raises(TraceError, match=message):
        draw(data, changes=changes, **horizon)


@pytest.mark.parametrize(
    "data",
    [
        {**POISSON, "rate_rps": -1},
        {**POISSON, "rate_rps": 0},
        {**POISSON, "rate_rps": "800"},
        {**GAMMA, "cv": 0},
        {**DIURNAL, "amplitude": 1.1},
        {"kind": "mmpp", "states": [{"rate_rps": 1, "mean_dwell_s": 1}]},
        {"kind": "mmpp", "states": [{"rate_rps": 0, "mean_dwell_s": 1}] * 2},
        {"kind": "closed_loop", "outstanding": 0},
        {"kind": "closed_loop", "outstanding": 1, "refusal_backoff_ms": 0},
        {**POISSON, "rate": 5},
        {"kind": "poison", "rate_rps": 5},
    ],
)
def test_senseless_arrivals_are_refused(data: dict[str, Any]) -> None:
    """A rate, CV, dwell or client count that means nothing does not load."""
    with pytest.raises(ValidationError):
        parse(data)


@pytest.mark.parametrize("horizon", [{}, {"requests": 1, "duration_ns": 1}, {"requests": 0}, {"duration_ns": -1}])
def test_horizon_is_one_positive_extent(horizon: dict[str, int]) -> None:
    """A horizon is a positive number of requests or a positive duration, never both or neither."""
    with pytest.raises(TraceError):
        Horizon(**horizon)
