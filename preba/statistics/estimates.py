"""Sectioning intervals of percentiles, means and ratios; the package docstring says when they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from preba.errors import ScenarioError, TraceError
from preba.statistics.sample import checked_sample
from preba.statistics.student import student_t_quantile
from preba.units import NS_PER_S

SECTIONS = 20
"""Sections a run is cut into: long ones, yet enough of them for a t interval 7 % wider than a normal one."""

TAIL_EVENTS_PER_SECTION = 3.0
"""Independent values beyond a percentile that each section must hold; measured, see the package docstring."""

VALUES_PER_SECTION = 20.0
"""Independent values that each section must hold for a mean; measured, see the package docstring."""

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A point estimate with its 95 % confidence interval.

    Attributes
    ----------
    value : float or None
        Point estimate from the whole sample; None when there is no sample.
    low, high : float or None
        Ends of the interval, ``low <= value <= high``; None when the run is too short to be cut into
        sections.
    enough : bool
        Whether the run is long enough for the interval to be trusted (see the module's rule).
    samples : int
        Number of values behind the estimate.
    samples_needed : int
        About how many would be enough, at the correlation seen; at most ``samples`` when ``enough``. A run
        far too short underrates its correlation, and so this number.
    """

    value: float | None
    low: float | None
    high: float | None
    enough: bool
    samples: int
    samples_needed: int = 0

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Both ends of the interval, or None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval, or None where there is none."""
        return None if self.low is None or self.high is None else 0.5 * (self.high - self.low)

    def covers(self, truth: float) -> bool:
        """Whether a value lies in the interval; False where there is none."""
        return self.low is not None and self.high is not None and self.low <= truth <= self.high

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit.

        Parameters
        ----------
        factor : float
            Units per unit, > 0; ``1 / NS_PER_MS`` turns nanoseconds into milliseconds.
        """
        if not factor > 0:
            raise ScenarioError(f"factor: must be > 0, got {factor!r}")
        return replace(
            self,
            value=None if self.value is None else self.value * factor,
            low=None if self.low is None else self.low * factor,
            high=None if self.high is None else self.high * factor,
        )


def quantile_estimates(values: npt.ArrayLike, qs: Sequence[float], *, sections: int = SECTIONS) -> tuple[Estimate, ...]:
    """Several percentiles of one sample with 95 % intervals, sorting it once.

    Parameters
    ----------
    values : array_like, shape (n,)
        The sample in arrival order, any unit.
    qs : sequence of float
        Levels, each strictly between 0 and 1.
    sections : int
        Number of consecutive sections, >= 2.

    Returns
    -------
    tuple of Estimate
        One per level, in the unit of ``values``. A percentile is the smallest value that at least a share q
        of the sample does not exceed, hence always an observed one.

    Raises
    ------
    ScenarioError
        A level or the number of sections is out of range.
    TraceError
        ``values`` is not one-dimensional or not finite.

    Notes
    -----
    The up to ``sections - 1`` last values that do not fill a section count for the point estimate only.
    """
    _check_levels(qs)
    _check_sections(sections)
    sample = checked_sample(values)
    n = sample.size
    if n == 0:
        return tuple(Estimate(None, None, None, False, 0, _tail_needed(q, sections)) for q in qs)  # noqa: FBT003 - a field
    pooled = _ranked(sample, [_rank(q, n) for q in qs])
    length = n // sections
    if length < 2:
        return tuple(
            Estimate(float(v), None, None, False, n, _tail_needed(q, sections))  # noqa: FBT003 - a field
            for q, v in zip(qs, pooled, strict=True)
        )
    parts = np.sort(sample[: length * sections].reshape(sections, length), axis=1)
    return tuple(_quantile(parts, q, float(v), n) for q, v in zip(qs, pooled, strict=True))


def quantiles(values: npt.NDArray[np.int64] | npt.NDArray[np.float64], qs: Sequence[float]) -> tuple[float, ...]:
    """Several percentiles of one sample without intervals: the values of :func:`quantile_estimates`, far cheaper.

    Parameters
    ----------
    values : int64[n] or float64[n]
        At least one, all finite, any unit.
    qs : sequence of float
        Levels, each strictly between 0 and 1.

    Raises
    ------
    ScenarioError
        A level is out of range.
    TraceError
        There is no value.
    """
    _check_levels(qs)
    if len(values) == 0:
        raise TraceError("values: must not be empty")
    return tuple(float(value) for value in _ranked(values, [_rank(q, len(values)) for q in qs]))


def quantile_estimate(values: npt.ArrayLike, q: float, *, sections: int = SECTIONS) -> Estimate:
    """One percentile with its 95 % interval; see :func:`quantile_estimates`, which is cheaper for several."""
    return quantile_estimates(values, (q,), sections=sections)[0]


def mean_estimate(values: npt.ArrayLike, *, sections: int = SECTIONS) -> Estimate:
    """Mean of one sample with its 95 % interval by batch means.

    Parameters
    ----------
    values : array_like, shape (n,)
        The sample in arrival order, any unit.
    sections : int
        Number of consecutive sections, >= 2.

    Returns
    -------
    Estimate
        In the unit of ``values``.

    Raises
    ------
    ScenarioError
        The number of sections is out of range.
    TraceError
        ``values`` is not one-dimensional or not finite.
    """
    _check_sections(sections)
    sample = checked_sample(values)
    n = sample.size
    asked = VALUES_PER_SECTION * sections
    if n == 0:
        return Estimate(None, None, None, False, 0, math.ceil(asked))  # noqa: FBT003 - a field
    value = float(sample.mean())
    length = n // sections
    if length < 2:
        return Estimate(value, None, None, False, n, math.ceil(asked))  # noqa: FBT003 - a field
    means = sample[: length * sections].reshape(sections, length).mean(axis=1)
    variance = float(sample.var())
    clustering = length * float(means.var(ddof=1)) / variance if variance > 0 else 1.0
    return _with_interval(value, means, n, looks=n / max(1.0, clustering), asked=asked)


def ratio_estimate(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Estimate:
    """Ratio of two totals with its 95 % interval, each given section by section.

    Parameters
    ----------
    numerator, denominator : array_like, shape (sections,)
        Totals of each section, such as joules and requests; the denominators' sum must be > 0.

    Returns
    -------
    Estimate
        ``sum(numerator) / sum(denominator)``; ``samples`` counts sections, ten are enough.

    Raises
    ------
    TraceError
        The shapes differ, fewer than two sections, or the denominators do not add up to more than 0.

    Notes
    -----
    **Source**: the classical ratio estimator, Asmussen and Glynn (2007), chapter III.
    """
    top, bottom = checked_sample(numerator), checked_sample(denominator)
    if top.shape != bottom.shape or top.size < 2:
        raise TraceError(
            f"numerator, denominator: must have one length of at least 2, got {top.size} and {bottom.size}"
        )
    total = float(bottom.sum())
    if not total > 0:
        raise TraceError(f"denominator: must add up to more than 0, got {total!r}")
    count = top.size
    value = float(top.sum()) / total
    # The residuals are centred on 0 by construction, so their plain mean square is the variance estimate.
    spread = float(np.sum((top - value * bottom) ** 2)) / (count - 1)
    half = student_t_quantile(0.5 + 0.5 * CONFIDENCE, count - 1) * math.sqrt(spread * count) / total
    return Estimate(value, value - half, value + half, count >= 10, count, 10)


def throughput_estimate(
    completion_ns: npt.ArrayLike, *, start_ns: int, end_ns: int, sections: int = SECTIONS
) -> Estimate:
    """Completions per second in a window, with a 95 % interval.

    Parameters
    ----------
    completion_ns : array_like of int, shape (n,)
        Completion times in any order, nanoseconds; those outside ``[start_ns, end_ns)`` do not count.
    start_ns, end_ns : int
        The window, nanoseconds.
    sections : int
        Number of equally long sections of the window, >= 2.

    Returns
    -------
    Estimate
        Requests per second; ``samples`` counts completions.

    Raises
    ------
    ScenarioError
        The window is empty or the number of sections is out of range.
    """
    _check_sections(sections)
    if end_ns - start_ns < sections:
        raise ScenarioError(f"start_ns, end_ns: must span at least {sections} ns, got [{start_ns}, {end_ns})")
    times = np.asarray(completion_ns, dtype=np.int64)
    times = times[(times >= start_ns) & (times < end_ns)]
    edges_ns = np.array([start_ns + (end_ns - start_ns) * i // sections for i in range(sections + 1)])
    # Section by comparison with exact integer edges: a floating-point histogram may misplace one at an edge.
    counts = np.bincount(np.searchsorted(edges_ns, times, side="right") - 1, minlength=sections)
    ratio = ratio_estimate(counts, np.diff(edges_ns)).scaled(NS_PER_S)
    # The count over the window as it stands, free of the rounding of per-nanosecond rates.
    rate_rps = times.size * NS_PER_S / (end_ns - start_ns)
    mean = times.size / sections
    clustering = max(1.0, float(counts.var(ddof=1)) / mean) if mean else 1.0
    asked = VALUES_PER_SECTION * sections
    needed = math.ceil(max(asked, asked * clustering))
    return replace(ratio, value=rate_rps, enough=times.size >= needed, samples=int(times.size), samples_needed=needed)


def _check_levels(qs: Sequence[float]) -> None:
    for q in qs:
        if not 0.0 < q < 1.0:
            raise ScenarioError(f"q: must lie strictly between 0 and 1, got {q!r}")


def _ranked(
    values: npt.NDArray[np.int64] | npt.NDArray[np.float64], ranks: Sequence[int]
) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    """The values of these ranks, in the order of ``ranks``."""
    ordered = values.copy()
    done = 0
    for rank in sorted(set(ranks)):
        # Each search is confined to what the one before left above it: five ranks in the tail cost less than two.
        ordered[done:].partition(rank - done)
        done = rank + 1
    return ordered[list(ranks)]


def _check_sections(sections: int) -> None:
    if sections < 2:
        raise ScenarioError(f"sections: must be >= 2, got {sections!r}")


def _rank(q: float, n: int) -> int:
    """0-based rank of the q-quantile: ``ceil(q n) - 1``, with q*n cleared of its rounding error first."""
    return max(0, math.ceil(q * n * (1.0 - 1e-12)) - 1)


def _tail_needed(q: float, sections: int) -> int:
    return math.ceil(TAIL_EVENTS_PER_SECTION * sections / min(q, 1.0 - q) * (1.0 - 1e-12))


def _quantile(parts: npt.NDArray[np.float64], q: float, value: float, n: int) -> Estimate:
    """The estimate of one level from the sorted sections and the pooled quantile."""
    sections, length = parts.shape
    if q >= 0.5:
        beyond = np.array([length - np.searchsorted(part, value, side="right") for part in parts])
    else:
        beyond = np.array([np.searchsorted(part, value, side="left") for part in parts])
    share = float(beyond.mean()) / length
    trials = length * share * (1.0 - share)
    clustering = max(1.0, float(beyond.var(ddof=1)) / trials) if trials > 0 else 1.0
    looks = n * min(q, 1.0 - q) / clustering
    return _with_interval(value, parts[:, _rank(q, length)], n, looks=looks, asked=TAIL_EVENTS_PER_SECTION * sections)


def _with_interval(
    value: float, section_values: npt.NDArray[np.float64], n: int, *, looks: float, asked: float
) -> Estimate:
    """Sectioning: the spread of the sections about the whole run's value, as a t interval around it."""
    count = section_values.size
    spread = float(np.sum((section_values - value) ** 2)) / (count - 1)
    half = student_t_quantile(0.5 + 0.5 * CONFIDENCE, count - 1) * math.sqrt(spread / count)
    # A hair below the threshold is rounding, not a shorter run.
    enough = looks >= asked * (1.0 - 1e-12)
    needed = math.ceil(n * asked / looks * (1.0 - 1e-12))
    return Estimate(value, value - half, value + half, enough, n, needed)
