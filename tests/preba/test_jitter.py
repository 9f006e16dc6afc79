"""Promises of service-time jitter."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from preba.jitter import JitterConfig, draw_factors

KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "lognormal", "cv": 0.05},
    {"kind": "lognormal", "cv": 0.8},
    {"kind": "gamma", "cv": 0.5},
    {"kind": "exponential"},
    {"kind": "uniform", "cv": 1 / math.sqrt(3)},
    {"kind": "empirical", "factors": [3, 4, 4, 9]},
)


def parse(data: dict[str, Any]) -> Any:
    return TypeAdapter(JitterConfig).validate_json(json.dumps(data))


def draw(data: dict[str, Any], count: int, seed: int = 7) -> np.ndarray:
    return draw_factors(parse(data), rng=np.random.default_rng(seed), count=count)


@pytest.mark.parametrize("data", KINDS, ids=lambda data: f"{data['kind']}")
def test_factors_have_mean_one_and_the_cv_asked_for(data: dict[str, Any]) -> None:
    """Mean 1 and the configured CV both lie in the 99.9 % intervals of what is drawn."""
    factors = draw(data, 400_000)
    assert factors.min() >= 0.0
    parts = factors.reshape(40, -1)
    t = stats.t.ppf(0.9995, 39) / math.sqrt(40)
    means = parts.mean(axis=1)
    assert abs(means.mean() - 1.0) <= t * means.std(ddof=1)
    cvs = parts.std(axis=1, ddof=1)  # about the true mean 1, so no ratio bias
    assert abs(np.mean(cvs) - parse(data).factor_cv()) <= t * np.std(cvs, ddof=1) + 1e-3 * parse(data).factor_cv()


@pytest.mark.parametrize(
    ("data", "law"),
    [
        (KINDS[1], stats.lognorm(math.sqrt(math.log(1.64)), scale=math.exp(-math.log(1.64) / 2))),
        (KINDS[2], stats.gamma(4.0, scale=0.25)),
        (KINDS[3], stats.expon()),
        (KINDS[4], stats.uniform(0, 2)),
    ],
)
def test_factors_follow_the_named_law(data: dict[str, Any], law: Any) -> None:
    """The factors have the named distribution, not only its moments."""
    assert stats.kstest(draw(data, 50_000), law.cdf).pvalue > 0.001


def test_no_jitter_is_exactly_one() -> None:
    """Without jitter every factor is exactly 1."""
    assert (draw({"kind": "none"}, 10) == 1.0).all()


def test_measured_factors_come_out_over_their_mean() -> None:
    """Measured times become factors by division by their mean; nothing else is ever drawn."""
    assert set(draw(KINDS[5], 1000).tolist()) == {0.6, 0.8, 1.8}


@pytest.mark.parametrize("data", KINDS, ids=lambda data: f"{data['kind']}")
def test_more_factors_only_append(data: dict[str, Any]) -> None:
    """A longer draw begins with the shorter one."""
    assert np.array_equal(draw(data, 1000)[:333], draw(data, 333))


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "lognormal", "cv": 0},
        {"kind": "gamma", "cv": -1},
        {"kind": "uniform", "cv": 0.6},
        {"kind": "empirical", "factors": []},
        {"kind": "empirical", "factors": [0, 0]},
        {"kind": "empirical", "factors": [1, -1]},
        {"kind": "none", "cv": 0.1},
        {"kind": "normal", "cv": 0.1},
    ],
)
def test_senseless_jitter_is_refused(data: dict[str, Any]) -> None:
    """Jitter that could make a service time negative or has no spread to speak of does not load."""
    with pytest.raises(ValidationError):
        parse(data)
