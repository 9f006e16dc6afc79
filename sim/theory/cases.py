"""The anchors: queues with exact answers that an engine must reproduce within its own confidence intervals.

A list of questions and answers only: how a case becomes a scenario, and how long it runs, is the test's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from preba.errors import ScenarioError, nearest
from sim.theory.bounded import greedy_bounded
from sim.theory.fixed import FixedQueue, mdc
from sim.theory.greedy import greedy
from sim.theory.markov import MarkovQueue, mmc

LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEVELS = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))

Quantity = Literal[
    "wait_mean_s",
    "wait_probability",
    "wait_p99_s",
    "sojourn_mean_s",
    "sojourn_p50_s",
    "sojourn_p95_s",
    "sojourn_p99_s",
    "batch_mean",
    "batch_seen_mean",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One exact answer.

    Attributes
    ----------
    quantity : str
        What it is: ``wait`` ends when service begins, ``sojourn`` when it ends; ``batch_mean`` is per batch,
        ``batch_seen_mean`` per request.
    value : float
        Seconds for names ending in ``_s``, else a pure number.
    atom : bool
        True for a quantile inside an atom of the law: a simulation then finds the value itself (to its
        clock's resolution) and its interval has no width, so it is to be compared for equality.
    """

    quantity: Quantity
    value: float
    atom: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorCase:
    """One queue with Poisson arrivals, one line, first come first served, and its exact answers.

    Attributes
    ----------
    name : str
        Unique, such as ``md7-0.8``.
    model : str
        The family the load was varied in; what ``anchor_cases(models=...)`` selects by.
    load : float
        Utilisation; for ``greedy`` the arrival rate times the time per item.
    rate_rps : float
        Arrival rate, requests per second.
    servers : int
        Identical servers behind the one line.
    service : {"exponential", "fixed", "linear"}
        Law of the service time; ``linear`` is a batch time ``alpha_s * b + tau0_s``.
    service_mean_s : float or None
        Mean (or fixed) service time, seconds; None for ``linear``.
    alpha_s, tau0_s : float or None
        Time per item and fixed time of a batch, seconds; None unless ``linear``.
    batch_max : int or None
        Largest batch taken when the server falls idle; None for no limit.
    expected : tuple of Expected
        The exact answers.
    """

    name: str
    model: str
    load: float
    rate_rps: float
    servers: int
    service: Literal["exponential", "fixed", "linear"]
    service_mean_s: float | None = None
    alpha_s: float | None = None
    tau0_s: float | None = None
    batch_max: int | None = 1
    expected: tuple[Expected, ...]


def anchor_cases(*, loads: Sequence[float] = LOADS, models: Sequence[str] | None = None) -> tuple[AnchorCase, ...]:
    """The anchors, one per model and load.

    Parameters
    ----------
    loads : sequence of float
        Utilisations, each in (0, 1).
    models : sequence of str or None
        Which of ``mm1, mm7, mm16, md1, md7, md16, greedy, greedy8``; None for all.

    Returns
    -------
    tuple of AnchorCase
        Ordered by model, then load. Service times are whole nanoseconds: 1 ms for one server, 5.6 ms for 7,
        12 ms for 16, and batches of ``0.9 ms * b + 2 ms`` (``greedy8``: at most 8).

    Raises
    ------
    ScenarioError
        An unknown model, or a load outside (0, 1).
    """
    builders = _builders()
    chosen = tuple(builders) if models is None else tuple(models)
    for model in chosen:
        if model not in builders:
            raise ScenarioError(f"models: unknown model {model!r}{nearest(model, builders)}")
    for load in loads:
        if not 0.0 < load < 1.0:
            raise ScenarioError(f"loads: each must lie strictly between 0 and 1, got {load!r}")
    return tuple(builders[model](model, load) for model in chosen for load in loads)


def _builders() -> dict[str, Callable[[str, float], AnchorCase]]:
    def queue(
        service: Literal["exponential", "fixed"], servers: int, mean_s: float
    ) -> Callable[[str, float], AnchorCase]:
        return lambda model, load: _queue_case(model, load, service=service, servers=servers, mean_s=mean_s)

    return {
        "mm1": queue("exponential", 1, 1.0e-3),
        "mm7": queue("exponential", 7, 5.6e-3),
        "mm16": queue("exponential", 16, 12.0e-3),
        "md1": queue("fixed", 1, 1.0e-3),
        "md7": queue("fixed", 7, 5.6e-3),
        "md16": queue("fixed", 16, 12.0e-3),
        "greedy": lambda model, load: _batch_case(model, load, batch_max=None),
        "greedy8": lambda model, load: _batch_case(model, load, batch_max=8),
    }


def _queue_case(
    model: str, load: float, *, service: Literal["exponential", "fixed"], servers: int, mean_s: float
) -> AnchorCase:
    rate = load * servers / mean_s
    exact: MarkovQueue | FixedQueue
    if service == "exponential":
        exact = mmc(rate_rps=rate, service_mean_s=mean_s, servers=servers)
    else:
        exact = mdc(rate_rps=rate, service_s=mean_s, servers=servers)
    expected = [
        Expected(quantity="wait_mean_s", value=exact.wait_mean_s),
        Expected(quantity="wait_probability", value=exact.wait_probability),
        Expected(quantity="sojourn_mean_s", value=exact.sojourn_mean_s),
    ]
    at_once = 1.0 - exact.wait_probability
    if _clear_of(at_once, 0.99):
        expected.append(Expected(quantity="wait_p99_s", value=exact.wait_quantile_s(0.99), atom=at_once > 0.99))
    for name, q in LEVELS:
        # Only a fixed service time turns "no wait" into an atom of the sojourn time.
        atom = service == "fixed" and at_once > q
        if service == "exponential" or _clear_of(at_once, q):
            quantity: Quantity = f"sojourn_{name}_s"  # type: ignore[assignment]
            expected.append(Expected(quantity=quantity, value=exact.sojourn_quantile_s(q), atom=atom))
    return AnchorCase(
        name=f"{model}-{load:g}",
        model=model,
        load=load,
        rate_rps=rate,
        servers=servers,
        service=service,
        service_mean_s=mean_s,
        expected=tuple(expected),
    )


def _batch_case(model: str, load: float, *, batch_max: int | None) -> AnchorCase:
    alpha_s, tau0_s = 0.9e-3, 2.0e-3
    if batch_max is None:
        rate = load / alpha_s
        exact = greedy(rate_rps=rate, alpha_s=alpha_s, tau0_s=tau0_s)
        mean, seen, latency = exact.batch_mean, exact.batch_seen_mean(), exact.latency_mean_s
        quantile, idle = exact.latency_quantile_s, exact.idle_atom
    else:
        times = [alpha_s * b + tau0_s for b in range(1, batch_max + 1)]
        rate = load * batch_max / times[-1]
        bounded = greedy_bounded(rate_rps=rate, batch_times_s=times)
        mean, seen, latency = bounded.batch_mean, bounded.batch_seen_mean(), bounded.latency_mean_s
        quantile, idle = bounded.latency_quantile_s, bounded.idle_atom
    expected = [
        Expected(quantity="sojourn_mean_s", value=latency),
        Expected(quantity="batch_mean", value=mean),
        Expected(quantity="batch_seen_mean", value=seen),
    ]
    for name, q in LEVELS:
        if _clear_of(idle, q):
            quantity: Quantity = f"sojourn_{name}_s"  # type: ignore[assignment]
            expected.append(Expected(quantity=quantity, value=quantile(q), atom=idle > q))
    return AnchorCase(
        name=f"{model}-{load:g}",
        model=model,
        load=load,
        rate_rps=rate,
        servers=1,
        service="linear",
        alpha_s=alpha_s,
        tau0_s=tau0_s,
        batch_max=batch_max,
        expected=tuple(expected),
    )


def _clear_of(atom: float, q: float) -> bool:
    """Whether a level is far enough from an atom's edge for a finite run to fall on the right side."""
    return abs(atom - q) > 0.2 * min(q, 1.0 - q)
