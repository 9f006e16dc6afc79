"""Take-all batching with a largest batch and any table of batch times, solved exactly.

Poisson arrivals, one server. Whenever the server is idle it takes what waits, first come first served, but
never more than ``b_max``. With L the number waiting when a service ends (a first arrival is waited for when L
is 0), the chain is::

    L' = max(L - b_max, 0) + Poisson(lambda * tau(min(max(L, 1), b_max)))

Latency: a request that arrives with a residual v of the running service left, n requests ahead of it in the
queue, waits v, then ``j = n // b_max`` full batches, then its own batch, whose size depends on ``n %
b_max`` and on who else arrives during ``v + j tau(b_max)``. For each (running batch, j, own size) the rate
of such arrivals is a smooth function of v (a sum of products of Poisson probabilities); it is expanded in
Legendre polynomials, whose integral gives the distribution function. Nothing is sampled and nothing is
approximated beyond rounding.

Source
------
The chain is the classical bulk-service one: N. T. J. Bailey, "On queueing processes with bulk
service", *J. R. Stat. Soc. B* 16 (1954) 80-87. The latency distribution is derived here as said above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.polynomial import legendre

from preba.errors import ScenarioError
from sim.theory.numerics import (
    STATES_MAX,
    FloatArray,
    check_positive,
    check_stable,
    decay_root,
    poisson_pmf,
    quantile_of,
    stationary,
)

_NEGLIGIBLE = 1e-15
"""Running batches rarer than this are left out of the latency mixture."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Arrivals while batches of one size are served: their mass by residual time, round and own size."""

    length_s: float
    offset_s: FloatArray
    coefficients: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedGreedyQueue:
    """Stationary take-all batching queue with a largest batch.

    Attributes
    ----------
    rate_rps : float
        Arrival rate, requests per second.
    batch_times_s : tuple of float
        Time of a batch of 1, 2, ... b_max, seconds.
    load : float
        ``rate_rps * tau(b_max) / b_max``.
    batch_mean, batch_second_moment : float
        Moments of the batch size, per batch.
    idle_probability : float
        Fraction of time the server is idle.
    latency_mean_s : float
        Mean time from arrival to the end of the batch, seconds (from the chain by Little's law).
    batch_law : float64 array
        Probability of a batch of n, n = 0 .. b_max (entry 0 is 0; read-only).
    idle_atom : float
        Fraction of requests that find the server idle and take exactly ``tau(1)``.
    """

    rate_rps: float
    batch_times_s: tuple[float, ...]
    load: float
    batch_mean: float
    batch_second_moment: float
    idle_probability: float
    latency_mean_s: float
    idle_atom: float
    batch_law: FloatArray = field(repr=False, compare=False)
    _pieces: tuple[_Piece, ...] = field(repr=False, compare=False)

    def batch_seen_mean(self) -> float:
        """Mean size of the batch a request is served in, ``E[B**2] / E[B]``."""
        return self.batch_second_moment / self.batch_mean

    def latency_cdf(self, t_s: float) -> float:
        """Probability that a request takes at most ``t_s`` seconds from arrival to completion."""
        total = self.idle_atom if t_s >= self.batch_times_s[0] else 0.0
        for piece in self._pieces:
            share = np.clip((t_s - piece.offset_s) / piece.length_s, 0.0, 1.0)
            total += float(np.sum(legendre.legval(2.0 * share - 1.0, piece.coefficients, tensor=False)))
        return min(1.0, max(0.0, total))

    def latency_quantile_s(self, q: float) -> float:
        """Quantile of the latency, seconds."""
        shortest = min(self.batch_times_s)
        return quantile_of(self.latency_cdf, q, low=shortest, scale=shortest)


def greedy_bounded(*, rate_rps: float, batch_times_s: Sequence[float]) -> BoundedGreedyQueue:
    """Exact take-all batching with a largest batch.

    Parameters
    ----------
    rate_rps : float
        Poisson arrival rate, requests per second.
    batch_times_s : sequence of float
        Time of a batch of 1, 2, ... b_max, seconds; its length is the largest batch.

    Raises
    ------
    ScenarioError
        A parameter is not positive, or the load is at or too near 1.
    """
    check_positive("rate_rps", rate_rps)
    if not batch_times_s:
        raise ScenarioError("batch_times_s: must hold at least the time of a batch of 1, got none")
    for i, time_s in enumerate(batch_times_s):
        check_positive(f"batch_times_s[{i}]", time_s)
    taus = np.array([0.0, *batch_times_s], dtype=np.float64)
    largest = taus.size - 1
    load = rate_rps * taus[-1] / largest
    check_stable(load, f"batches of {largest} complete {largest / taus[-1]:.6g} requests per second")
    waiting = _waiting_law(rate_rps, taus)
    law = np.zeros(largest + 1)
    law[1 : largest + 1] = waiting[1 : largest + 1]
    law[1] += waiting[0]
    law[largest] += float(waiting[largest + 1 :].sum())
    sizes = np.arange(largest + 1, dtype=np.float64)
    mean, second = float(law @ sizes), float(law @ sizes**2)
    idle_start = float(waiting[0])
    pieces = tuple(_pieces(rate_rps, taus, waiting, mean))
    law.flags.writeable = False
    return BoundedGreedyQueue(
        rate_rps=rate_rps,
        batch_times_s=tuple(float(t) for t in batch_times_s),
        load=float(load),
        batch_mean=mean,
        batch_second_moment=second,
        # A cycle serves batch_mean requests on average, hence lasts batch_mean / rate_rps.
        idle_probability=idle_start / mean,
        latency_mean_s=_latency_mean_s(rate_rps, taus, waiting, mean),
        idle_atom=idle_start / mean,
        batch_law=law,
        _pieces=pieces,
    )


def _waiting_law(rate_rps: float, taus: FloatArray) -> FloatArray:
    """Stationary law of the number waiting when a service ends."""
    largest = taus.size - 1
    reach = rate_rps * float(taus.max())
    # log z = load (z-1) is the pole per place in the batch: the queue falls off as z**-n.
    tail = 41.5 / math.log(decay_root(rate_rps * float(taus[-1]) / largest))
    count = largest + 64 + math.ceil(reach + 12.0 * math.sqrt(reach) + tail)
    if count > STATES_MAX:
        raise ScenarioError(f"batch_times_s: load too near 1 to be solved with {STATES_MAX} queue lengths")
    waiting = np.arange(count)
    sizes = np.clip(waiting, 1, largest)
    left = np.maximum(waiting - largest, 0)
    arrivals = poisson_pmf(rate_rps * taus, count)
    transition = np.zeros((count, count))
    for i in range(count):
        transition[i, left[i] :] = arrivals[sizes[i], : count - left[i]]
    transition[:, -1] += np.maximum(0.0, 1.0 - transition.sum(axis=1))
    return stationary(transition)


def _latency_mean_s(rate_rps: float, taus: FloatArray, waiting: FloatArray, batch_mean: float) -> float:
    """Mean latency: the queue integrated over a cycle (Little), plus the mean time of the batch one is in."""
    largest = taus.size - 1
    n = np.arange(waiting.size)
    sizes = np.clip(n, 1, largest)
    left = np.maximum(n - largest, 0)
    durations = taus[sizes]
    queue_s = float(waiting @ (left * durations + 0.5 * rate_rps * durations**2))
    service_s = float(waiting @ (sizes * durations))
    return (queue_s + service_s) / batch_mean


def _pieces(rate_rps: float, taus: FloatArray, waiting: FloatArray, batch_mean: float) -> list[_Piece]:
    largest = taus.size - 1
    pieces = []
    for running in range(1, largest + 1):
        if running < largest:
            # A batch below the largest leaves nobody behind.
            behind = np.array([waiting[running] + (waiting[0] if running == 1 else 0.0)])
        else:
            behind = waiting[largest:].copy()
            behind[0] += waiting[0] if largest == 1 else 0.0
        if behind.sum() > _NEGLIGIBLE:
            pieces.append(_piece(rate_rps, taus, running, behind / batch_mean))
    return pieces


def _piece(rate_rps: float, taus: FloatArray, running: int, behind: FloatArray) -> _Piece:
    """Latency mixture of the requests that arrive while a batch of ``running`` is served.

    Parameters
    ----------
    behind : float64 array
        For m = 0, 1, ...: batches of this size per request that left m requests waiting.
    """
    largest = taus.size - 1
    length, full = float(taus[running]), float(taus[largest])
    expected = rate_rps * length
    # A Poisson probability of mean m varies on a scale of sqrt(m): m + 40 nodes resolve it to rounding.
    nodes, node_weights = legendre.leggauss(40 + math.ceil(expected))
    residual = 0.5 * length * (nodes + 1.0)
    reach = math.ceil(expected + 12.0 * math.sqrt(expected) + 40.0)
    arrived = poisson_pmf(rate_rps * (length - residual), reach)
    rounds = -(-(behind.size + reach) // largest)
    ahead = np.zeros((nodes.size, rounds * largest))
    for k in range(reach):
        ahead[:, k : k + behind.size] += arrived[:, k, None] * behind[None, :]
    in_round = ahead.reshape(nodes.size, rounds, largest)
    delay = residual[:, None] + full * np.arange(rounds)[None, :]
    joining = poisson_pmf(rate_rps * delay, largest)
    rate = np.zeros((nodes.size, rounds, largest))
    for first in range(largest):
        rate[:, :, first:] += in_round[:, :, first, None] * joining[:, :, : largest - first]
    # The largest batch is also reached by everyone joining beyond it.
    rate[:, :, -1] = in_round.sum(axis=2) - rate[:, :, :-1].sum(axis=2)
    density = rate * rate_rps * length / 2.0
    basis = legendre.legvander(nodes, nodes.size - 1)
    scale = np.arange(nodes.size) + 0.5
    coefficients = np.einsum("vk,v,k,vrs->krs", basis, node_weights, scale, density, optimize=True)
    return _Piece(
        length_s=length,
        offset_s=full * np.arange(rounds)[:, None] + taus[None, 1:],
        coefficients=np.asarray(legendre.legint(coefficients, lbnd=-1.0), dtype=np.float64),
    )
