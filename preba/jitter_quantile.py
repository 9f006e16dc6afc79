"""Quantiles of the jitter kinds, for p95 execution times; drawing jitter is `preba.jitter`'s business."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from preba.jitter import (
    EmpiricalJitter,
    ExponentialJitter,
    GammaJitter,
    JitterConfig,
    LogNormalJitter,
    NoJitter,
    UniformJitter,
)

__all__ = ["jitter_quantile"]

_NEARLY_NORMAL_SHAPE = 1e4
"""From this gamma shape (cv <= 1 %) Wilson and Hilferty's cube-root approximation is right to 1e-6."""


def jitter_quantile(jitter: JitterConfig, probability: float) -> float:
    """Return the factor that a jittered time exceeds with probability ``1 - probability``.

    Parameters
    ----------
    jitter : JitterConfig
        Distribution of a factor with mean 1.
    probability : float
        Strictly between 0 and 1.

    Returns
    -------
    float
        Exact for every kind (bisection to 1e-12 for gamma of ordinary spread).

    Raises
    ------
    ValueError
        For a probability outside (0, 1).
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability: must lie between 0 and 1, got {probability}")
    match jitter:
        case NoJitter():
            return 1.0
        case LogNormalJitter(cv=cv):
            sigma = math.sqrt(math.log1p(cv * cv))
            return math.exp(sigma * NormalDist().inv_cdf(probability) - 0.5 * sigma * sigma)
        case ExponentialJitter():
            return -math.log1p(-probability)
        case UniformJitter(cv=cv):
            return max(0.0, 1.0 + cv * math.sqrt(3.0) * (2.0 * probability - 1.0))
        case GammaJitter(cv=cv):
            return _gamma_quantile(1.0 / (cv * cv), probability)
        case EmpiricalJitter(factors=factors):
            values = np.sort(np.array(factors))
            rank = math.ceil(probability * values.size) - 1
            return float(values[rank] / values.mean())


def _gamma_quantile(shape: float, probability: float) -> float:
    """Quantile of a gamma variable of mean 1: invert the regularised incomplete gamma function."""
    if shape > _NEARLY_NORMAL_SHAPE:
        spread = 1.0 / (9.0 * shape)
        return (1.0 - spread + NormalDist().inv_cdf(probability) * math.sqrt(spread)) ** 3
    low, high = 0.0, 1.0
    while _gamma_below(shape, high * shape) < probability:
        low, high = high, 2.0 * high
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if _gamma_below(shape, middle * shape) < probability:
            low = middle
        else:
            high = middle
    return high


def _gamma_below(shape: float, value: float) -> float:
    """P(Gamma(shape) <= value), by the power series of the lower incomplete gamma function.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 6.5.29.
    """
    if value <= 0:
        return 0.0
    term = total = 1.0
    step = shape
    while term > total * 1e-16:
        step += 1.0
        term *= value / step
        total += term
    logarithm = shape * math.log(value) - value - math.lgamma(shape + 1.0) + math.log(total)
    return min(1.0, math.exp(logarithm))
