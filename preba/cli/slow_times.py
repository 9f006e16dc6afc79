"""Times at which a server's software, or its preprocessing, is slow at once, as a rehearsal shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from preba.cli.disturbances import first_answers_us
from preba.cli.lines import PAIRS_MIN, Array, steady_mean, without_stalls
from preba.cli.ways import ALONE_MIN
from preba.jitter import EmpiricalJitter, JitterConfig
from preba.records import Records
from preba.scenario.schema import Overheads
from preba.slowness import Slowness
from preba.trace_table import PARTS

__all__ = ["narrowed", "slow_times", "slowness_note", "with_preprocessing", "with_share", "with_slowness"]

WINDOW_NS = 20_000_000
"""A few batches end in it: what lasts for less is in how each of them varies by itself."""
COMMON_MIN = 0.01
"""Variance that windows have in common, from which on they count: ten percent of what is usual."""
LEAST = 0.05
Seen: TypeAlias = tuple[int, float]
"""When something was seen, and how long it took relative to what is usual."""


def slow_times(records: Records, items: Sequence[Seen] = ()) -> Slowness | None:
    """How slow the software, and preprocessing, were in one window of time after the other.

    Measured where every batch shows it: from its end to its first answer, relative to the mean of its size; and by what
    each input took to preprocess, relative to others of its size.

    Parameters
    ----------
    records : Records
        Of a rehearsal, served.
    items : sequence of (ns, factor)
        When inputs were due, which is when a trace draws it, and how long they took relative to what is usual.

    Returns
    -------
    Slowness or None
        ``None`` where neither batches that end together nor inputs that are due together are slow together, and
        without any answers, which say where windows begin.
    """
    ended_ns, factors = relative_answers(records)
    if len(factors) == 0:
        return None
    windows = int((ended_ns.max() - ended_ns.min()) // WINDOW_NS) + 1
    overheads = in_windows((ended_ns - ended_ns.min()) // WINDOW_NS, factors, windows)
    preprocessing = None
    if items:
        at_ns, took = np.array([at for at, _ in items]), np.array([factor for _, factor in items])
        kept = took <= without_stalls(took).max()
        window = ((at_ns[kept] - ended_ns.min()) // WINDOW_NS).clip(0, windows - 1)
        preprocessing = in_windows(window, took[kept] / took[kept].mean(), windows)
    if overheads is None and preprocessing is None:
        return None
    return Slowness(window_ms=WINDOW_NS / 1e6, factors=overheads or (1.0,) * windows, preprocessing=preprocessing or ())


def in_windows(window: NDArray[np.int64], factors: Array, windows: int) -> tuple[float, ...] | None:
    """A factor for each window; ``None`` where what shares one is not slow together, or is too little.

    Of what a window's batches deviate together, part is chance; it is the smaller the more they are. So their mean is
    drawn towards 1 as far as leaves the variance of windows at the covariance of batches that share one. Windows
    without any have what lies between their neighbours.
    """
    if len(factors) < PAIRS_MIN:
        return None
    count, total = np.bincount(window), np.bincount(window, weights=factors - 1.0)
    squares = np.bincount(window, weights=(factors - 1.0) ** 2)
    pairs = float((count * (count - 1)).sum())
    common = float((total**2 - squares).sum()) / pairs if pairs >= PAIRS_MIN else 0.0
    if common < COMMON_MIN:
        return None
    known = np.flatnonzero(count)
    chance = max(float(squares.sum()) / len(factors) - common, 0.0) / count[known]
    seen = 1.0 + total[known] / count[known] * np.sqrt(common / (common + chance))
    series = np.interp(np.arange(windows), known, seen)
    mean = float(np.average(series[known], weights=count[known]))
    return tuple(round(float(factor), 4) for factor in np.maximum(series / mean, LEAST))


def relative_answers(records: Records) -> tuple[np.ndarray, Array]:
    """When batches ended, and how long after that their first answers came, relative to the mean of their kind."""
    ended_ns: list[int] = []
    factors: list[float] = []
    for found in first_answers_us(records).values():
        usual_us = steady_mean([us for _, us in found]) if len(found) >= ALONE_MIN else 0.0
        if usual_us <= 0:
            continue
        ended_ns += [at_ns for at_ns, _ in found]
        factors += [us / usual_us for _, us in found]
    if not factors:
        return np.empty(0, dtype=np.int64), np.empty(0)
    every = np.array(factors)
    kept = every <= without_stalls(every).max()
    return np.array(ended_ns)[kept], every[kept]


def with_share(slowness: Slowness | None, records: Records, part: str, found: Sequence[Seen]) -> Slowness | None:
    """The series with how much of it a part feels, as moments and factors of that part say; all of it if they are few.

    The slope of its factors over those of the windows that they are in, relative to what it takes in a usual one.

    Parameters
    ----------
    slowness : Slowness or None
    records : Records
        That the series is from.
    part : str
        Of the overheads.
    found : sequence of (ns, factor)
        When it was seen, and how long it took relative to what is usual.
    """
    if slowness is None or len(found) < PAIRS_MIN:
        return slowness
    ended_ns, _ = relative_answers(records)
    at_ns, factors = np.array([at for at, _ in found]), np.array([factor for _, factor in found])
    kept = factors <= without_stalls(factors).max()
    window = ((at_ns[kept] - ended_ns.min()) // WINDOW_NS).clip(0, len(slowness.factors) - 1)
    slow = np.array(slowness.factors)[window]
    if slow.var() <= 0:
        return slowness
    slope, offset = (float(value) for value in np.polyfit(slow, factors[kept], 1))
    # When nothing is slow: parts may have been seen at slow times more than at others.
    usual = offset + slope
    share = min(max(slope / usual, 0.0), 1.0) if usual > 0 else 1.0
    return slowness.model_copy(update={"shares": {**slowness.shares, part: round(share, 3)}})


def with_slowness(overheads: Overheads, slowness: Slowness | None) -> Overheads:
    """Overheads that vary as far as before, part of it all together; one that varies less feels less of it."""
    if slowness is None:
        return overheads
    spread = slowness.factor_cv()
    changes: dict[str, object] = {}
    shares: dict[str, float] = {part: slowness.share(part) for part in slowness.shares}
    for part in PARTS["overhead_factor"]:
        jitter = getattr(overheads, f"{part}_jitter")
        own = 0.0 if jitter is None else jitter.factor_cv()
        share = min(slowness.share(part), own / spread) if spread > 0 else 0.0
        if share < slowness.share(part):
            shares[part] = math.floor(1e3 * share) / 1e3
        changes[f"{part}_jitter"] = narrowed(jitter, own_share(own, share * spread))
    felt = Slowness.model_validate({**slowness.model_dump(), "shares": shares})
    return overheads.model_copy(update={**changes, "slowness": felt})


def with_preprocessing(
    spreads: Mapping[str, JitterConfig | None], slowness: Slowness | None
) -> tuple[dict[str, JitterConfig | None], Slowness | None]:
    """Spreads of preprocessing by modality without what it has in common, which is no more than the least of them."""
    if slowness is None or not slowness.preprocessing:
        return dict(spreads), slowness
    common = slowness.preprocessing_cv()
    felt = min([1.0, *(jitter.factor_cv() / common for jitter in spreads.values() if jitter is not None)])
    factors = np.array(slowness.preprocessing)
    series = 1.0 + felt * (factors / factors.mean() - 1.0)
    left = {
        kind: jitter if jitter is None else narrowed(jitter, own_share(jitter.factor_cv(), felt * common))
        for kind, jitter in spreads.items()
    }
    return left, slowness.model_copy(update={"preprocessing": tuple(series.tolist())})


def own_share(own: float, common: float) -> float:
    """How much narrower a spread is without its common part, so that both together vary as before."""
    return math.sqrt(max(own**2 - common**2, 0.0) / (own**2 * (1.0 + common**2))) if own > 0 else 1.0


def narrowed(jitter: JitterConfig | None, share: float) -> JitterConfig | None:
    """A measured spread with deviations from its mean that are so much smaller."""
    if not isinstance(jitter, EmpiricalJitter):
        return jitter
    factors = np.array(jitter.factors)
    mean = float(factors.mean())
    return EmpiricalJitter(kind="empirical", factors=tuple((mean + share * (factors - mean)).tolist()))


def slowness_note(slowness: Slowness | None) -> tuple[str, ...]:
    """In words."""
    if slowness is None:
        return ()
    notes: list[str] = []
    windows = f"standard deviation of windows of {slowness.window_ms:g} ms"
    if slowness.factor_cv() > 0:
        notes.append(
            f"all software is slow together at times: by {100 * slowness.factor_cv():.0f} % ({windows}, as the first "
            f"answers of their batches show); the turnaround feels {slowness.share('turnaround'):.2f} of it"
        )
    if slowness.preprocessing:
        notes.append(
            f"preprocessing is slow for a while at times: by {100 * slowness.preprocessing_cv():.0f} % ({windows}, as "
            "inputs of one size show)"
        )
    return tuple(notes)
