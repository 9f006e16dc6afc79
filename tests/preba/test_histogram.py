"""The bit histogram: every number in its bucket, every percentile within the promised error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.errors import ScenarioError, TraceError
from preba.statistics import mean_estimate, quantile_estimates
from preba.statistics.histogram import (
    BUCKETS,
    RELATIVE_ERROR,
    bucket_of,
    bucket_value,
    histogram_mean,
    histogram_quantiles,
)


@given(value=st.integers(0, (1 << 52) - 1))
def test_bucket_is_within_the_promised_error_of_all_its_values(value: int) -> None:
    """The middle of a number's bucket is at most 1/2048 from it; small numbers are exact."""
    bucket = bucket_of(value)
    assert 0 <= bucket < BUCKETS
    assert abs(bucket_value(bucket) - value) <= RELATIVE_ERROR * value
    if value < 2048:
        assert bucket_value(bucket) == value


@given(value=st.integers(0, (1 << 52) - 2))
def test_buckets_are_in_order_without_gaps(value: int) -> None:
    """The next number is in the same bucket or in the next one."""
    assert bucket_of(value + 1) - bucket_of(value) in (0, 1)


def test_what_is_larger_than_all_buckets_is_counted_in_the_last() -> None:
    """Nothing is lost and nothing is written beyond the end."""
    assert bucket_of(1 << 60) == BUCKETS - 1
    assert bucket_of((1 << 52) - 1) == BUCKETS - 1


@given(
    seed=st.integers(0, 99),
    count=st.integers(40, 5000),
    scale=st.sampled_from([3.0, 1e4, 2e7, 1e10]),
)
def test_percentiles_agree_with_those_of_the_values(seed: int, count: int, scale: float) -> None:
    """Percentiles and the mean of what was counted are those of the values, within the promised error."""
    values = np.random.default_rng(seed).exponential(scale, count).astype(np.int64)
    parts = np.array_split(values, 20)
    sections = np.array([np.bincount([bucket_of(int(v)) for v in part], minlength=BUCKETS) for part in parts])
    levels = (0.5, 0.9, 0.99)
    for found, exact in zip(histogram_quantiles(sections, levels), quantile_estimates(values, levels), strict=True):
        assert found.samples == count
        assert found.value == pytest.approx(exact.value, rel=RELATIVE_ERROR, abs=0)
        assert found.low is not None
        assert found.low <= found.value <= found.high
    mean = histogram_mean(np.array([part.sum() for part in parts]), np.array([len(part) for part in parts]))
    assert mean.value == pytest.approx(mean_estimate(values).value, rel=1e-12)


def test_histogram_without_values_says_so() -> None:
    """No value, no percentile; levels and sections that make no sense are errors."""
    empty = np.zeros((20, BUCKETS), dtype=np.int64)
    assert histogram_quantiles(empty, (0.5,))[0].value is None
    assert histogram_mean(np.zeros(20, dtype=np.int64), np.zeros(20, dtype=np.int64)).value is None
    with pytest.raises(ScenarioError, match="strictly between"):
        histogram_quantiles(empty, (1.0,))
    with pytest.raises(TraceError, match="at least 2"):
        histogram_quantiles(empty[:1], (0.5,))
