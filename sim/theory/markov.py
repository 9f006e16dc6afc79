"""Closed forms for Poisson arrivals and exponential service, and the mean wait of M/G/1; nothing numerical.

Sources
-------
A. K. Erlang (1917); L. Kleinrock, *Queueing Systems, vol. 1* (1975), chapters 3 and 5;
H. C. Tijms, *A First Course in Stochastic Models* (2003), chapters 5 and 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from preba.errors import ScenarioError
from sim.theory.numerics import check_positive, check_probability, check_stable, quantile_of


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovQueue:
    """Stationary M/M/c queue, first come first served.

    Attributes
    ----------
    rate_rps : float
        Arrival rate, requests per second.
    service_mean_s : float
        Mean service time, seconds.
    servers : int
        Number of servers.
    load : float
        Utilisation of each server.
    wait_probability : float
        Probability that a request has to wait (Erlang C).
    wait_mean_s, sojourn_mean_s : float
        Mean wait, and mean wait plus service, seconds.
    """

    rate_rps: float
    service_mean_s: float
    servers: int
    load: float
    wait_probability: float
    wait_mean_s: float
    sojourn_mean_s: float

    @property
    def _drain_rps(self) -> float:
        return self.servers / self.service_mean_s - self.rate_rps

    def wait_cdf(self, t_s: float) -> float:
        """Probability that the wait is at most ``t_s`` seconds: ``1 - C exp(-(c mu - lambda) t)``."""
        return 0.0 if t_s < 0 else 1.0 - self.wait_probability * math.exp(-self._drain_rps * t_s)

    def wait_quantile_s(self, q: float) -> float:
        """Quantile of the wait, seconds; 0 while fewer than ``1 - q`` of the requests wait."""
        check_probability(q)
        return max(0.0, math.log(self.wait_probability / (1.0 - q)) / self._drain_rps)

    def sojourn_cdf(self, t_s: float) -> float:
        """Probability that wait plus service takes at most ``t_s`` seconds."""
        if t_s < 0:
            return 0.0
        mu, theta, late = 1.0 / self.service_mean_s, self._drain_rps, self.wait_probability
        x, y = mu * t_s, theta * t_s
        # Late requests spend the sum of two exponentials, of rates mu and theta. Near theta = mu the quotient
        # of differences loses its digits, so expm1 takes it through to the limit mu*t*exp(-mu*t).
        if abs(y - x) > 1.0:
            gap = (math.exp(-x) - math.exp(-y)) / (theta - mu)
        elif theta != mu:
            gap = math.exp(-x) * -math.expm1(x - y) / (theta - mu)
        else:
            gap = math.exp(-x) * t_s
        return -math.expm1(-x) - late * mu * gap

    def sojourn_quantile_s(self, q: float) -> float:
        """Quantile of wait plus service, seconds; closed form for one server, else by bisection."""
        check_probability(q)
        if self.servers == 1:
            return -math.log1p(-q) / self._drain_rps
        return quantile_of(self.sojourn_cdf, q, low=0.0, scale=self.service_mean_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralQueue:
    """Means of the stationary M/G/1 queue.

    Attributes
    ----------
    load : float
        Utilisation; also the probability of waiting.
    wait_mean_s, sojourn_mean_s : float
        Mean wait, and mean wait plus service, seconds.
    """

    load: float
    wait_mean_s: float
    sojourn_mean_s: float


def mm1(*, rate_rps: float, service_mean_s: float) -> MarkovQueue:
    """Exact M/M/1: the sojourn time is exponential with rate ``1/service_mean_s - rate_rps``.

    Raises
    ------
    ScenarioError
        A parameter is not positive, or the load is 1 or more.
    """
    return mmc(rate_rps=rate_rps, service_mean_s=service_mean_s, servers=1)


def mmc(*, rate_rps: float, service_mean_s: float, servers: int) -> MarkovQueue:
    """Exact M/M/c.

    Parameters
    ----------
    rate_rps : float
        Arrival rate, requests per second.
    service_mean_s : float
        Mean of the exponential service time, seconds.
    servers : int
        Number of servers sharing one queue.

    Raises
    ------
    ScenarioError
        A parameter is not positive, or the load is 1 or more.

    Notes
    -----
    Erlang C comes from Erlang B by its recursion ``B(k) = a B(k-1) / (k + a B(k-1))``, which has no
    factorials and loses no digits at any number of servers.
    """
    check_positive("rate_rps", rate_rps)
    check_positive("service_mean_s", service_mean_s)
    if servers < 1:
        raise ScenarioError(f"servers: must be >= 1, got {servers}")
    offered = rate_rps * service_mean_s
    load = offered / servers
    check_stable(load, f"{servers} servers complete {servers / service_mean_s:.6g} requests per second")
    blocking = 1.0
    for k in range(1, servers + 1):
        blocking = offered * blocking / (k + offered * blocking)
    late = blocking / (1.0 - load * (1.0 - blocking))
    wait = late / (servers / service_mean_s - rate_rps)
    return MarkovQueue(
        rate_rps=rate_rps,
        service_mean_s=service_mean_s,
        servers=servers,
        load=load,
        wait_probability=late,
        wait_mean_s=wait,
        sojourn_mean_s=wait + service_mean_s,
    )


def mg1(*, rate_rps: float, service_mean_s: float, service_scv: float) -> GeneralQueue:
    """Pollaczek-Khinchine means of M/G/1.

    Parameters
    ----------
    rate_rps : float
        Arrival rate, requests per second.
    service_mean_s : float
        Mean service time, seconds.
    service_scv : float
        Squared coefficient of variation of the service time: 0 constant, 1 exponential.

    Raises
    ------
    ScenarioError
        A parameter is out of range, or the load is 1 or more.
    """
    check_positive("rate_rps", rate_rps)
    check_positive("service_mean_s", service_mean_s)
    if not (math.isfinite(service_scv) and service_scv >= 0):
        raise ScenarioError(f"service_scv: must be a finite number >= 0, got {service_scv!r}")
    load = rate_rps * service_mean_s
    check_stable(load, f"one server completes {1.0 / service_mean_s:.6g} requests per second")
    wait = load * service_mean_s * (1.0 + service_scv) / (2.0 * (1.0 - load))
    return GeneralQueue(load=load, wait_mean_s=wait, sojourn_mean_s=wait + service_mean_s)
