"""What a machine did to a rehearsal and a run beside serving: time its host took, and how fast its software was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preba.cli.lines import PAIRS_MIN, Array, steady_mean
from preba.cli.ways import ALONE_MIN
from preba.records import Records

__all__ = [
    "DRIFT_MAX_PERCENT", "STOLEN_MAX_PERCENT", "drift_note", "drift_percent", "drift_warning", "most_stolen",
    "restless", "stolen_note", "stolen_warning",
]  # fmt: skip

STOLEN_MIN_PERCENT = 0.005
STOLEN_MAX_PERCENT = 0.5
"""Of two cores, from which on figures of a rehearsal and of a run were seen to be several percent apart."""
DRIFT_MAX_PERCENT = 10.0
"""Where software is a tenth or more of latencies: from which on its drift alone is an error of one or two percent."""


def stolen_note(percent: tuple[float, ...]) -> tuple[str, ...]:
    """How much of this machine's CPU time its host took during rehearsal and run, where it says so and took any."""
    if len(percent) < 2 or max(percent) < STOLEN_MIN_PERCENT:
        return ()
    took = "the host took {:.2f} % of this machine's CPU time during the rehearsal and {:.2f} % during the run"
    return (took.format(*percent),)


def most_stolen(percent: Sequence[float]) -> float:
    """In the worse of both runs; 0 where nothing is known."""
    return max(percent, default=0.0)


def stolen_warning(percent: tuple[float, ...]) -> tuple[str, ...]:
    """What to do where that was much."""
    most = most_stolen(percent)
    if most <= STOLEN_MAX_PERCENT:
        return ()
    effect = "enough to make rehearsal and run differ by several percent: measure again when it is calmer"
    return (f"the host of this virtual machine took up to {most:.1f} % of its CPU time, {effect}",)


def drift_percent(rehearsed: Records, run: Records) -> float | None:
    """How much slower software was in the run: from the ends of batches to their first answers, at equal sizes.

    Both are measured, so that it tells of the machine and nothing of the simulation. What the machine's neighbours,
    its clock and its temperature do to the server's threads is the same for all that passes around executions.

    Parameters
    ----------
    rehearsed, run : Records

    Returns
    -------
    float or None
        Negative: faster. ``None`` with too few batches.
    """
    before, after = (first_answers_us(records) for records in (rehearsed, run))
    sizes = [size for size in before if size in after and min(len(before[size]), len(after[size])) >= ALONE_MIN]
    counts = np.array([min(len(before[size]), len(after[size])) for size in sizes], dtype=np.float64)
    if counts.sum() < PAIRS_MIN:
        return None
    then, now = (float(counts @ [steady_mean(each[size]) for size in sizes]) for each in (before, after))
    return 100.0 * (now / then - 1.0) if then > 0 else None


def first_answers_us(records: Records) -> dict[int, Array]:
    """From the ends of batches to their first answers, by size."""
    records = records.select(records.served)
    _, rows, place = np.unique(records.batch_id, return_index=True, return_inverse=True)
    first_ns = np.full(len(rows), np.iinfo(np.int64).max)
    np.minimum.at(first_ns, place, records.completed_ns)
    after_us = (first_ns - records.execution_end_ns[rows]) / 1e3
    sizes = records.batch_size[rows]
    return {int(size): after_us[sizes == size] for size in np.unique(sizes)}


def drift_note(percent: float | None) -> tuple[str, ...]:
    """In words."""
    if percent is None:
        return ()
    return (f"from the end of a batch to its first answer the run took {percent:+.1f} % beyond the rehearsal",)


def drift_warning(percent: float | None) -> tuple[str, ...]:
    """What to do where that was much."""
    if percent is None or abs(percent) <= DRIFT_MAX_PERCENT:
        return ()
    how = f"{abs(percent):.0f} % {'slower' if percent > 0 else 'faster'}"
    effect = "which the simulation cannot know: measure again, or longer"
    return (f"this machine's software was {how} in the run than in the rehearsal, {effect}",)


def restless(stolen: Sequence[float], drift: float | None) -> float:
    """How far rehearsal and run met different machines: the larger of both, as a share of what is too much."""
    return max(most_stolen(stolen) / STOLEN_MAX_PERCENT, abs(drift or 0.0) / DRIFT_MAX_PERCENT)
