"""Take-all batching with batch time ``alpha*b + tau0`` and no largest batch: Inoue's model, solved exactly.

One server; whenever it is idle it takes everything that waits, and a request that finds it idle is served
alone. Batch sizes form the chain ``B' = max(1, Poisson(lambda (alpha B + tau0)))``. Given the length H of
the service during which it arrived, a request's residual wait is uniform on (0, H) and independent of the
size n of the batch it joins, so the latency law is the mixture of ``U H + tau(n)`` weighted by requests,
plus an atom at ``tau(1)`` for those who found the server idle.

Source
------
Y. Inoue, "Queueing analysis of GPU-based inference servers with dynamic batching: a
closed-form characterization", *Performance Evaluation* 147 (2021); arXiv:1912.06322. Equation numbers are
the preprint's. The latency distribution is not in the paper; it follows from its chain as said above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from preba.errors import ScenarioError
from sim.theory.numerics import (
    STATES_MAX,
    FloatArray,
    check_positive,
    check_stable,
    poisson_pmf,
    quantile_of,
    stationary,
)

_NEGLIGIBLE = 1e-18
"""States with less probability than this are left out of the latency mixture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyBounds:
    """Inoue's closed upper bounds of the mean latency.

    Attributes
    ----------
    phi0_s : float
        Exact if every batch held one request (41), seconds.
    phi1_s : float
        Exact if the server never idled (42), seconds.
    """

    phi0_s: float
    phi1_s: float

    @property
    def phi_s(self) -> float:
        """The smaller of the two (43), seconds."""
        return min(self.phi0_s, self.phi1_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyQueue:
    """Stationary take-all batching queue.

    Attributes
    ----------
    rate_rps, alpha_s, tau0_s : float
        Arrival rate, time per item and fixed time of a batch.
    load : float
        ``rate_rps * alpha_s``.
    batch_mean, batch_second_moment : float
        Moments of the batch size, per batch.
    idle_probability : float
        Fraction of time the server is idle.
    latency_mean_s : float
        Mean time from arrival to the end of the batch, seconds.
    batch_law : float64 array
        Probability of a batch of n, n = 0, 1, ... (entry 0 is 0; read-only).
    """

    rate_rps: float
    alpha_s: float
    tau0_s: float
    load: float
    batch_mean: float
    batch_second_moment: float
    idle_probability: float
    latency_mean_s: float
    batch_law: FloatArray = field(repr=False, compare=False)
    _weights: FloatArray = field(repr=False, compare=False)

    @property
    def idle_atom(self) -> float:
        """Fraction of requests that find the server idle and take exactly ``alpha_s + tau0_s``."""
        return 1.0 - float(self._weights.sum())

    def batch_seen_mean(self) -> float:
        """Mean size of the batch a request is served in, ``E[B**2] / E[B]``."""
        return self.batch_second_moment / self.batch_mean

    def latency_cdf(self, t_s: float) -> float:
        """Probability that a request takes at most ``t_s`` seconds from arrival to completion."""
        sizes = np.arange(self.batch_law.size, dtype=np.float64)
        taus = self.alpha_s * sizes + self.tau0_s
        if t_s < taus[1]:
            return 0.0
        rows = np.flatnonzero(self.batch_law > _NEGLIGIBLE)
        spare = t_s - taus[None, :]
        share = np.clip(spare / taus[rows, None], 0.0, 1.0)
        return self.idle_atom + float(np.sum(self._weights[rows] * share))

    def latency_quantile_s(self, q: float) -> float:
        """Quantile of the latency, seconds."""
        return quantile_of(self.latency_cdf, q, low=self.alpha_s + self.tau0_s, scale=self.tau0_s + self.alpha_s)


def _check(rate_rps: float, alpha_s: float, tau0_s: float) -> float:
    check_positive("rate_rps", rate_rps)
    check_positive("alpha_s", alpha_s)
    if not (math.isfinite(tau0_s) and tau0_s >= 0):
        raise ScenarioError(f"tau0_s: must be a finite number >= 0, got {tau0_s!r}")
    load = rate_rps * alpha_s
    check_stable(load, f"ever larger batches complete at most {1.0 / alpha_s:.6g} requests per second")
    return load


def greedy_bounds(*, rate_rps: float, alpha_s: float, tau0_s: float) -> GreedyBounds:
    """Closed upper bounds of the mean latency under take-all batching.

    Parameters
    ----------
    rate_rps : float
        Poisson arrival rate, requests per second.
    alpha_s, tau0_s : float
        Time per item and fixed time of a batch, seconds.

    Raises
    ------
    ScenarioError
        A parameter is out of range, or the load is 1 or more.

    Notes
    -----
    **Source**: Inoue, equations (41) to (43).
    """
    x = _check(rate_rps, alpha_s, tau0_s)
    y = rate_rps * tau0_s
    phi0 = (alpha_s + tau0_s) / (2.0 * (1.0 - x)) * (1.0 + 2.0 * y + (1.0 - y) / (1.0 + x))
    phi1 = 1.5 * tau0_s / (1.0 - x) + 0.5 * alpha_s * (x + 2.0) / (1.0 - x * x)
    return GreedyBounds(phi0_s=phi0, phi1_s=phi1)


def greedy(*, rate_rps: float, alpha_s: float, tau0_s: float) -> GreedyQueue:
    """Exact take-all batching, batches of any size.

    Parameters
    ----------
    rate_rps : float
        Poisson arrival rate, requests per second.
    alpha_s, tau0_s : float
        Time per item and fixed time of a batch, seconds.

    Raises
    ------
    ScenarioError
        A parameter is out of range, or the load is at or too near 1.
    """
    load = _check(rate_rps, alpha_s, tau0_s)
    count = _first_size(load, rate_rps * tau0_s)
    while True:
        if count > STATES_MAX:
            raise ScenarioError(f"load: {load:.6g} is too near 1 to be solved with {STATES_MAX} batch sizes")
        sizes = np.arange(count, dtype=np.float64)
        taus = alpha_s * sizes + tau0_s
        arrivals = poisson_pmf(rate_rps * taus, count)
        law = _batch_law(arrivals)
        # What the cut-off folds into the last state must be too rare to move any result.
        if law[-1] < 1e-13:
            break
        count *= 2
    mean = float(law @ sizes)
    second = float(law @ sizes**2)
    idle_start = float(law @ arrivals[:, 0])
    cycle_s = float(law @ taus) + idle_start / rate_rps
    weights = law[:, None] * arrivals * sizes[None, :] / mean
    # A request meets a service in proportion to the requests that arrive in it: length-biased, hence H**2.
    latency = float(np.sum(weights * (0.5 * taus[:, None] + taus[None, :]))) + idle_start / mean * taus[1]
    law.flags.writeable = False
    weights.flags.writeable = False
    return GreedyQueue(
        rate_rps=rate_rps,
        alpha_s=alpha_s,
        tau0_s=tau0_s,
        load=load,
        batch_mean=mean,
        batch_second_moment=second,
        idle_probability=idle_start / rate_rps / cycle_s,
        latency_mean_s=latency,
        batch_law=law,
        _weights=weights,
    )


def _first_size(load: float, arrivals_fixed: float) -> int:
    """Number of batch sizes to start with: the mean and ten deviations of (31) and (32) at their largest."""
    mean = (arrivals_fixed + 1.0) / (1.0 - load)
    second = (mean * (1.0 + 2.0 * load * arrivals_fixed) + arrivals_fixed**2) / (1.0 - load * load)
    return 32 + math.ceil(mean + 10.0 * math.sqrt(max(second - (arrivals_fixed / (1.0 - load)) ** 2, mean)))


def _batch_law(arrivals: FloatArray) -> FloatArray:
    """Stationary law of the batch size; row b of ``arrivals`` is the law of arrivals during a batch of b."""
    transition = arrivals[1:, 1:].copy()
    transition[:, 0] += arrivals[1:, 0]
    transition[:, -1] += np.maximum(0.0, 1.0 - transition.sum(axis=1))
    return np.concatenate(([0.0], stationary(transition)))
