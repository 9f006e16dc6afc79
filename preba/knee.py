"""The knee of a latency profile: PREBA's Batch_knee and Time_knee, by one documented rule.

PREBA (arXiv 2411.19114, section 4.3) sets ``Batch_max := Batch_knee``, the largest batch before
throughput gains become incremental, and ``Time_queue := Time_knee / slices``; it does not say how
the knee is found. **The rule here**: walk the doubling grid 1, 2, 4, ...; the knee is the last batch
reached while every doubling raised throughput by at least ``gain`` (25 %). Time_knee is the p95
execution time at that batch (p95 is the tail the paper plots in its Fig. 6).

Why this rule:

* The paper's knees are powers of two whose ratio between 7g and 1g is exactly 8, while the slices'
  speeds differ by 5-7: only a rule that walks a doubling grid gives that.
* On ``tau(b) = max(L, a*b)`` going from b/2 to b multiplies throughput by
  ``2 * max(L, a*b/2) / max(L, a*b)``, so with 25 % the knee is the one batch of the grid with
  ``0.8 < a*b/L <= 1.6``: where the line leaves the floor.
* It uses ratios of neighbouring points only, so neither the unit, nor the largest batch that was
  measured, nor a plateau's slow creep moves it. Any gain from 16 % to 35 % gives the same knees on
  the launch-bound curves that were measured.

Other rules were tried on the same curves: latency within some per cent of batch 1, the peak of
throughput/latency, the largest distance from the chord on linear and on logarithmic batch axes
(Kneedle), and a share of peak throughput. papers/preba/knee-rules.md, which
``python papers/preba/knee_rules.py`` writes, holds what each gave: this rule alone has the paper's
7g/1g ratio of 8 on all four measured launch-bound models.

No queueing and no batching decision lives here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preba.errors import ProfileError
from preba.jitter_quantile import jitter_quantile
from preba.profile import LatencyProfile

__all__ = ["DEFAULT_GAIN", "TAIL", "Knee", "doubling_grid", "find_knee", "knee", "knees_by_length"]

DEFAULT_GAIN = 0.25
"""Smallest relative rise of throughput per doubling that still counts as worth it."""

TAIL = 0.95
"""The percentile PREBA calls tail latency (caption of its Fig. 6)."""


@dataclass(frozen=True, slots=True)
class Knee:
    """Batch_knee and Time_knee of one slice (and one input length).

    Attributes
    ----------
    batch : int
        Batch_knee.
    latency_ns : int
        Time_knee: p95 execution time of that batch, nanoseconds. Equal to the profile's time unless
        the profile has jitter.
    """

    batch: int
    latency_ns: int


def doubling_grid(batch_max: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to and including the largest power of two within `batch_max`."""
    if batch_max < 1:
        raise ProfileError(f"batch_max: must be >= 1, got {batch_max}")
    return tuple(1 << power for power in range(batch_max.bit_length()))


def find_knee(latency_by_batch: Mapping[int, float], *, gain: float = DEFAULT_GAIN) -> int:
    """Apply the rule to any curve.

    Parameters
    ----------
    latency_by_batch : mapping of int to float
        Execution time of each batch, any unit; must hold batch 1. Only the unbroken doubling grid
        1, 2, 4, ... is used.
    gain : float
        Smallest rise of throughput per doubling, 0 < gain < 1 (1 would ask for a free doubling).

    Returns
    -------
    int
        Batch_knee.

    Raises
    ------
    ProfileError
        For a `gain` outside (0, 1), a curve without batch 1 or a time that is not positive.
    """
    if not 0 < gain < 1:
        raise ProfileError(f"gain: must lie between 0 and 1, got {gain}")
    if 1 not in latency_by_batch:
        raise ProfileError(f"knee: the curve must start at batch 1, got {sorted(latency_by_batch)}")
    if min(latency_by_batch.values()) <= 0:
        raise ProfileError("knee: every execution time must be positive")
    batch = 1
    while 2 * batch in latency_by_batch:
        rise = 2 * latency_by_batch[batch] / latency_by_batch[2 * batch]
        if rise < 1 + gain:
            break
        batch *= 2
    return batch


def knee(
    profile: LatencyProfile,
    slice_key: str,
    length_ns: int | None = None,
    *,
    gain: float = DEFAULT_GAIN,
    batch_limit: int | None = None,
) -> Knee:
    """Find Batch_knee and Time_knee of a profile on one slice.

    Parameters
    ----------
    profile : LatencyProfile
        Execution times.
    slice_key : str
        ``"1g"`` or a full MIG name.
    length_ns : int, optional
        Input length; needed for audio, where a bucket's knee is taken at its upper edge.
    gain : float
        See `find_knee`.
    batch_limit : int, optional
        Never look past this batch (memory, or a server's own maximum).

    Returns
    -------
    Knee
        Time_knee is the profile's time multiplied by the p95 factor of the profile's jitter.

    Raises
    ------
    ProfileRangeError
        For a slice or length outside the profile.
    """
    limit = profile.batch_max(slice_key, length_ns)
    if batch_limit is not None:
        limit = min(limit, batch_limit)
    curve = {batch: profile.latency_ns(slice_key, batch, length_ns) for batch in doubling_grid(limit)}
    batch = find_knee(curve, gain=gain)
    return Knee(batch=batch, latency_ns=round(curve[batch] * jitter_quantile(profile.jitter, TAIL)))


def knees_by_length(
    profile: LatencyProfile,
    slice_key: str,
    length_edges_ns: Sequence[int],
    *,
    gain: float = DEFAULT_GAIN,
    batch_limit: int | None = None,
) -> tuple[Knee, ...]:
    """Find the knee of every length bucket, taken at the bucket's upper edge.

    The upper edge is the longest input a bucket can hold, so no batch formed from the bucket
    exceeds Time_knee.

    Parameters
    ----------
    profile, slice_key, gain, batch_limit
        As for `knee`.
    length_edges_ns : sequence of int
        Upper edges, nanoseconds.

    Returns
    -------
    tuple of Knee
        One per edge.
    """
    return tuple(knee(profile, slice_key, edge_ns, gain=gain, batch_limit=batch_limit) for edge_ns in length_edges_ns)
