"""Numerical tools the exact solutions share: Poisson laws, stationary chains, quantiles; no queueing here."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from preba.errors import ScenarioError

FloatArray = npt.NDArray[np.float64]

STATES_MAX = 6000
"""Largest dense chain solved (about ten seconds); reached only within a per cent of saturation."""


def check_positive(name: str, value: float) -> None:
    """Refuse a parameter that is not a finite positive number.

    Raises
    ------
    ScenarioError
        Naming the parameter and its value.
    """
    if not (math.isfinite(value) and value > 0):
        raise ScenarioError(f"{name}: must be a finite number > 0, got {value!r}")


def check_stable(load: float, what: str) -> None:
    """Refuse a load at or above 1, where no stationary law exists.

    Raises
    ------
    ScenarioError
        With the load and what would lower it.
    """
    if load >= 1.0:
        raise ScenarioError(f"load: must be < 1 for a steady state, got {load:.6g}; {what}")


def check_probability(q: float) -> None:
    """Refuse a quantile level outside the open interval (0, 1).

    Raises
    ------
    ScenarioError
        With the value given.
    """
    if not 0.0 < q < 1.0:
        raise ScenarioError(f"q: must lie strictly between 0 and 1, got {q!r}")


def poisson_pmf(means: npt.ArrayLike, count: int) -> FloatArray:
    """Poisson probabilities of 0 .. count-1 for many means at once.

    Parameters
    ----------
    means : array_like, any shape
        Means, each >= 0.
    count : int
        Number of probabilities per mean.

    Returns
    -------
    float64 array, shape ``means.shape + (count,)``
    """
    k = np.arange(count, dtype=np.float64)
    log_factorial = np.array([math.lgamma(i + 1.0) for i in range(count)])
    mean = np.asarray(means, dtype=np.float64)[..., None]
    # A mean of 0 puts all mass on 0; its logarithm is replaced so that 0 * log(0) never appears.
    positive = mean > 0.0
    log_mean = np.log(np.where(positive, mean, 1.0))
    pmf = np.exp(k * log_mean - mean - log_factorial)
    return np.asarray(np.where(positive, pmf, (k == 0.0).astype(np.float64)), dtype=np.float64)


def stationary(transition: FloatArray) -> FloatArray:
    """Stationary law of an irreducible finite chain.

    Parameters
    ----------
    transition : float64 array, shape (n, n)
        Row-stochastic matrix.

    Returns
    -------
    float64 array, shape (n,)
        Probabilities summing to 1.
    """
    count = transition.shape[0]
    # One balance equation is redundant; adding the normalisation to all of them makes the system regular. The
    # weight 1/count keeps it as well conditioned as the chain itself.
    weight = 1.0 / count
    system = np.eye(count) - transition.T + weight
    law: FloatArray = np.linalg.solve(system, np.full(count, weight))
    law = np.maximum(law, 0.0)
    return np.asarray(law / law.sum(), dtype=np.float64)


def decay_root(load: float) -> float:
    """Root ``z > 1`` of ``log z = load * (z - 1)``: queue lengths fall off as ``z**-n``.

    It is the dominant pole of a queue served in rounds of fixed length, whatever the number served per
    round.

    Parameters
    ----------
    load : float
        Utilisation, 0 < load < 1.
    """
    low, high = 1.0 / load, 2.0 / load
    while math.log(high) > load * (high - 1.0):
        high *= 2.0
    # log z - load*(z-1) peaks at z = 1/load and is strictly decreasing beyond.
    for _ in range(200):
        middle = 0.5 * (low + high)
        if math.log(middle) > load * (middle - 1.0):
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def quantile_of(cdf: Callable[[float], float], q: float, *, low: float, scale: float) -> float:
    """Smallest ``t >= low`` with ``cdf(t) >= q``, by bisection to the last bit.

    Parameters
    ----------
    cdf : callable
        Non-decreasing, tending to 1.
    q : float
        Level, 0 < q < 1.
    low : float
        Lower end of the support; returned when it already carries probability q.
    scale : float
        First step of the search upwards, > 0.

    Returns
    -------
    float
    """
    check_probability(q)
    if cdf(low) >= q:
        return low
    step = scale
    while cdf(low + step) < q:
        step *= 2.0
    high = low + step
    while True:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            return high
        if cdf(middle) >= q:
            high = middle
        else:
            low = middle
