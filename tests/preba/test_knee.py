"""The knee rule against the paper, published curves and its own algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from preba.errors import ProfileError, ProfileRangeError
from preba.jitter import (
    EmpiricalJitter,
    ExponentialJitter,
    GammaJitter,
    JitterConfig,
    LogNormalJitter,
    NoJitter,
    UniformJitter,
)
from preba.jitter_quantile import jitter_quantile
from preba.knee import doubling_grid, find_knee, knee, knees_by_length
from preba.profile import load_profile, profile_from_dict
from preba.units import ns_from_ms, ns_from_s

curves = st.lists(st.floats(0.1, 1e3), min_size=1, max_size=10).map(
    lambda times: {1 << power: time for power, time in enumerate(times)}
)


@pytest.mark.parametrize(
    ("name", "knees"),
    [
        # PREBA, Fig. 6: MobileNet, SqueezeNet, Swin on 1g.5gb and 7g.40gb.
        ("preba-mobilenet-v3-small", {"1g.5gb": 16, "7g.40gb": 128}),
        ("preba-squeezenet1.1", {"1g.5gb": 4, "7g.40gb": 32}),
        ("preba-swin", {"1g.5gb": 2, "7g.40gb": 16}),
        # Where the published measurements leave their launch floor.
        ("parvagpu-mobilenetv2", {"1g": 4, "2g": 8, "3g": 16, "4g": 16, "7g": 32}),
        ("migprofiler-bert-base", {"1g": 8, "7g": 64}),
    ],
)
def test_knee_matches_paper_and_measurements(name: str, knees: dict[str, int]) -> None:
    """The rule gives the knees PREBA states and those the measured curves show."""
    profile = load_profile(name)
    assert {key: knee(profile, key).batch for key in knees} == knees


@pytest.mark.parametrize("model", ["citrinet", "conformer-small", "conformer-default"])
def test_audio_time_knee_stays_while_batch_knee_falls(model: str) -> None:
    """Over 5, 15, 25 s Time_knee stays within 15 % of 35 ms (a doubling grid's grain); Batch_knee falls."""
    profile = load_profile(f"preba-{model}")
    found = knees_by_length(profile, "1g.5gb", [ns_from_s(length) for length in (5, 15, 25)])
    batches = [each.batch for each in found]
    assert batches == sorted(set(batches), reverse=True)
    assert all(abs(each.latency_ns / ns_from_ms(35) - 1) < 0.15 for each in found)


@given(curves, st.floats(0.01, 0.99))
def test_every_doubling_up_to_the_knee_pays_and_the_next_does_not(curve: dict[int, float], gain: float) -> None:
    """The knee is reached by doublings that each gain enough, and stops at the first that does not."""
    found = find_knee(curve, gain=gain)
    rates = {batch: batch / time for batch, time in curve.items()}
    rises = {batch: rates[2 * batch] / rates[batch] - 1 for batch in curve if 2 * batch in curve}
    assert all(rise >= gain - 1e-12 for batch, rise in rises.items() if batch < found)
    assert found not in rises or rises[found] < gain + 1e-12


@given(curves, st.floats(0.001, 1000))
def test_knee_does_not_depend_on_the_unit(curve: dict[int, float], factor: float) -> None:
    """Scaling every time by a power of two (exact in floating point) leaves the knee where it is."""
    exact = 2.0 ** round(factor).bit_length()
    assert find_knee({batch: time * exact for batch, time in curve.items()}) == find_knee(curve)


@given(floor=st.floats(1, 100), share=st.floats(0.005, 0.8))
def test_knee_of_the_closed_form_is_where_the_line_leaves_the_floor(floor: float, share: float) -> None:
    """On max(L, a*b) the knee is the batch of the grid with 0.8 < a*b/L <= 1.6 (1 when a >= 0.8 L)."""
    slope = share * floor
    found = find_knee({batch: max(floor, slope * batch) for batch in doubling_grid(1024)})
    assert 0.8 * (1 - 1e-9) < slope * found / floor <= 1.6 * (1 + 1e-9)


def test_time_knee_is_the_p95_under_jitter() -> None:
    """With jitter Time_knee is the time at the knee multiplied by the jitter's p95 factor."""
    data = load_profile("preba-swin").model_dump(mode="json", exclude_defaults=True)
    calm = profile_from_dict(data)
    shaky = profile_from_dict(data | {"jitter": {"kind": "lognormal", "cv": 0.1}})
    assert knee(shaky, "1g").batch == knee(calm, "1g").batch
    factor = jitter_quantile(shaky.jitter, 0.95)
    assert factor > 1.1
    assert abs(knee(shaky, "1g").latency_ns - knee(calm, "1g").latency_ns * factor) <= 1
    assert knee(calm, "1g").latency_ns == calm.latency_ns("1g", 2)


def test_knee_stays_within_the_batch_limit() -> None:
    """A limit that is no power of two stops the walk at the power of two below it."""
    profile = load_profile("preba-mobilenet-v3-small")
    assert knee(profile, "1g", batch_limit=15).batch == 8
    assert doubling_grid(15) == (1, 2, 4, 8)
    assert doubling_grid(16) == (1, 2, 4, 8, 16)


def test_senseless_questions_are_refused() -> None:
    """A gain outside (0, 1), a curve without batch 1, a zero time or an unknown slice is an error."""
    for gain in (0.0, 1.0, -0.1):
        with pytest.raises(ProfileError, match="gain: must lie between 0 and 1"):
            find_knee({1: 1.0}, gain=gain)
    with pytest.raises(ProfileError, match="start at batch 1"):
        find_knee({2: 1.0})
    with pytest.raises(ProfileError, match="positive"):
        find_knee({1: 1.0, 2: 0.0})
    with pytest.raises(ProfileError, match="batch_max: must be >= 1"):
        doubling_grid(0)
    with pytest.raises(ProfileRangeError, match="7g"):
        knee(load_profile("mlperf-v0.7-resnet50"), "7g")


@given(st.floats(0.005, 2.0), st.floats(0.001, 0.999))
def test_jitter_quantiles_match_scipy(cv: float, probability: float) -> None:
    """Quantiles of lognormal, gamma, exponential and uniform factors are those of an independent library."""
    sigma = np.sqrt(np.log1p(cv**2))
    lognormal = scipy.stats.lognorm(sigma, scale=np.exp(-(sigma**2) / 2)).ppf(probability)
    gamma = scipy.stats.gamma(1 / cv**2, scale=cv**2).ppf(probability)
    exponential = scipy.stats.expon().ppf(probability)
    flat = min(cv, 0.57)
    uniform = scipy.stats.uniform(1 - flat * 3**0.5, 2 * flat * 3**0.5).ppf(probability)
    cases: list[tuple[JitterConfig, float]] = [
        (LogNormalJitter(kind="lognormal", cv=cv), lognormal),
        (GammaJitter(kind="gamma", cv=cv), gamma),
        (ExponentialJitter(kind="exponential"), exponential),
        (UniformJitter(kind="uniform", cv=flat), uniform),
    ]
    for jitter, expected in cases:
        assert jitter_quantile(jitter, probability) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_jitter_quantiles_of_data_and_of_nothing() -> None:
    """Empirical jitter gives the inverse of its distribution function, no jitter gives 1."""
    jitter = EmpiricalJitter(kind="empirical", factors=(4.0, 1.0, 3.0, 2.0))
    assert [jitter_quantile(jitter, p) for p in (0.2, 0.25, 0.5, 0.51, 0.95)] == [0.4, 0.4, 0.8, 1.2, 1.6]
    assert jitter_quantile(NoJitter(kind="none"), 0.95) == 1.0
    with pytest.raises(ValueError, match="probability"):
        jitter_quantile(jitter, 1.0)
