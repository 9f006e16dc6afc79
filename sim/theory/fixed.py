"""M/D/1 and M/D/c solved exactly: Poisson arrivals, one constant service time, any number of servers.

Two instants one service time D apart: whoever was being served at the first has left by the second, and
nobody who started in between has. With c servers the number in system is therefore a chain, ``X' = max(X -
c, 0) + Poisson(lambda D)``, whose stationary law is also that of the queue at any moment (Crommelin 1932;
Tijms 2003, chapter 9). The wait follows from the law Q of the number waiting by Franx's formula, for
``(k-1) D <= t < k D``::

    P(wait <= t) = sum over j = 0 .. kc-1 of  Poisson(j; lambda (kD - t)) * P(Q <= kc - 1 - j)

Every term is positive, so no digits cancel (Erlang's and Crommelin's own formulas alternate in sign).

Sources
-------
C. D. Crommelin, *P.O. Elec. Eng. J.* 25 (1932); G. J. Franx, "A simple solution for the
M/D/c waiting time distribution", *Operations Research Letters* 29 (2001) 221-229; H. C. Tijms, *A First
Course in Stochastic Models* (2003), chapter 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from preba.errors import ScenarioError
from sim.theory.numerics import (
    FloatArray,
    check_positive,
    check_stable,
    decay_root,
    poisson_pmf,
    quantile_of,
)

_TAIL = 1e-20
"""Probability left beyond the last state kept."""

_POINTS_MAX = 1 << 22
"""Largest transform; reached only at loads above 0.9999."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedQueue:
    """Stationary M/D/c queue, first come first served.

    Attributes
    ----------
    rate_rps : float
        Arrival rate, requests per second.
    service_s : float
        The service time, seconds.
    servers : int
        Number of servers.
    load : float
        Utilisation of each server.
    wait_probability : float
        Probability that a request has to wait.
    wait_mean_s, sojourn_mean_s : float
        Mean wait, and mean wait plus service, seconds.
    number_law : float64 array
        Probability of n requests in the system, n = 0, 1, ... (read-only).
    """

    rate_rps: float
    service_s: float
    servers: int
    load: float
    wait_probability: float
    wait_mean_s: float
    sojourn_mean_s: float
    number_law: FloatArray = field(repr=False, compare=False)

    def wait_cdf(self, t_s: float) -> float:
        """Probability that the wait is at most ``t_s`` seconds."""
        if t_s < 0:
            return 0.0
        k = math.floor(t_s / self.service_s) + 1
        # Rounding may put t a hair beyond the round it was assigned to; the mean must not turn negative.
        mean = max(0.0, self.rate_rps * (k * self.service_s - t_s))
        count = k * self.servers
        waiting = np.cumsum(self.number_law)[self.servers :]
        reach = math.ceil(mean + 12.0 * math.sqrt(mean) + 40.0)
        j = np.arange(min(count, reach))
        at_most = waiting[np.minimum(count - 1 - j, waiting.size - 1)]
        return min(1.0, float(poisson_pmf(mean, j.size) @ at_most))

    def wait_quantile_s(self, q: float) -> float:
        """Quantile of the wait, seconds; 0 while fewer than ``1 - q`` of the requests wait."""
        return quantile_of(self.wait_cdf, q, low=0.0, scale=self.service_s)

    def sojourn_cdf(self, t_s: float) -> float:
        """Probability that wait plus service takes at most ``t_s`` seconds."""
        return self.wait_cdf(t_s - self.service_s)

    def sojourn_quantile_s(self, q: float) -> float:
        """Quantile of wait plus service, seconds."""
        return self.wait_quantile_s(q) + self.service_s


def md1(*, rate_rps: float, service_s: float) -> FixedQueue:
    """Exact M/D/1.

    Raises
    ------
    ScenarioError
        A parameter is not positive, or the load is 1 or more.
    """
    return mdc(rate_rps=rate_rps, service_s=service_s, servers=1)


def mdc(*, rate_rps: float, service_s: float, servers: int) -> FixedQueue:
    """Exact M/D/c.

    Parameters
    ----------
    rate_rps : float
        Arrival rate, requests per second.
    service_s : float
        The constant service time, seconds.
    servers : int
        Number of servers sharing one queue.

    Raises
    ------
    ScenarioError
        A parameter is not positive, or the load is 1 or more.
    """
    check_positive("rate_rps", rate_rps)
    check_positive("service_s", service_s)
    if servers < 1:
        raise ScenarioError(f"servers: must be >= 1, got {servers}")
    load = rate_rps * service_s / servers
    check_stable(load, f"{servers} servers complete {servers / service_s:.6g} requests per second")
    law = _number_law(load * servers, servers)
    law.flags.writeable = False
    waiting = np.arange(law.size - servers, dtype=np.float64)
    wait = float(waiting @ law[servers:]) / rate_rps
    return FixedQueue(
        rate_rps=rate_rps,
        service_s=service_s,
        servers=servers,
        load=load,
        wait_probability=float(law[servers:].sum()),
        wait_mean_s=wait,
        sojourn_mean_s=wait + service_s,
        number_law=law,
    )


def _number_law(offered: float, servers: int) -> FloatArray:
    """Stationary law of ``X' = max(X - c, 0) + Poisson(offered)``.

    The generating function is ``(c-a) (1-z) prod((z-z_k)/(1-z_k)) / (1 - z**c exp(a(1-z)))`` over the c-1
    roots ``z_k`` of ``z**c = exp(a(z-1))`` strictly inside the unit disc (Tijms 2003, chapter 9). It
    is inverted by a fast Fourier transform on a circle between 1 and the dominant pole, where it has no
    zero of the denominator; the error of p_n then falls as radius**-n.
    """
    load = offered / servers
    pole = decay_root(load)
    # The transform, and its rounding error, grow like exp(offered * (radius - 1)): exp(3) is allowed.
    radius = min(math.sqrt(pole), 1.0 + 3.0 / offered)
    needed = servers + 64 + math.ceil(-math.log(_TAIL) / math.log(radius))
    points = 1 << (needed - 1).bit_length()
    if points > _POINTS_MAX:
        raise ScenarioError(f"load: {load:.9g} is too near 1 to be solved")
    z = radius * np.exp(-2j * np.pi * np.arange(points) / points)
    roots = _inner_roots(load, servers)
    numerator = (servers - offered) * (1.0 - z)
    for root in roots:
        numerator *= (z - root) / (1.0 - root)
    transform = numerator / (1.0 - z**servers * np.exp(offered * (1.0 - z)))
    # numpy's forward transform carries the minus sign already used for z, so this is the inverse.
    law = np.real(np.fft.ifft(transform)) * radius ** -np.arange(points, dtype=np.float64)
    law = np.maximum(law, 0.0)
    return np.asarray(law / law.sum(), dtype=np.float64)


def _inner_roots(load: float, servers: int) -> FloatArray:
    """Roots of ``z = w exp(load (z-1))`` for the non-trivial c-th roots of unity w: one each, by Newton."""
    w = np.exp(2j * np.pi * np.arange(1, servers) / servers)
    z = 0.5 * w
    # The map is a contraction of factor load*|z| < 1 on the unit disc: iterate into Newton's basin first.
    for _ in range(60):
        z = w * np.exp(load * (z - 1.0))
    for _ in range(8):
        image = w * np.exp(load * (z - 1.0))
        z = z - (z - image) / (1.0 - load * image)
    return z  # type: ignore[no-any-return]
