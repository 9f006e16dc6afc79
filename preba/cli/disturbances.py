"""What a machine did to a rehearsal and a run beside serving: time its host took, and how fast its software was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from preba.cli.lines import PAIRS_MIN, steady_mean, without_stalls
from preba.cli.ways import ALONE_MIN
from preba.records import Records

__all__ = [
    "DRIFT_MAX_PERCENT", "STOLEN_MAX_PERCENT", "Drift", "drift_note", "drift_of", "drift_warning", "most_stolen",
    "restless", "stolen_note", "stolen_warning",
]  # fmt: skip

STOLEN_MIN_PERCENT = 0.005
STOLEN_MAX_PERCENT = 0.5
"""Of two cores, from which on figures of a rehearsal and of a run were seen to be several percent apart."""
DRIFT_MAX_PERCENT = 10.0
"""Where software is a tenth or more of latencies: from which on its drift alone is an error of one or two percent."""
SECTIONS = 20
CONFIDENT = 1.96
Kind: TypeAlias = tuple[int, int]
"""Model and size of a batch."""


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


@dataclass(frozen=True)
class Drift:
    """How much slower software was in the run, in percent of the rehearsal, and half the 95 % interval of that."""

    percent: float
    half_percent: float

    @property
    def proven_percent(self) -> float:
        """So much at least, in either direction."""
        return max(abs(self.percent) - self.half_percent, 0.0)


def drift_of(rehearsed: Records, run: Records) -> Drift | None:
    """How much slower software was in the run: from the ends of batches to their first answers, at equal sizes.

    Both are measured, so that it tells of the machine and nothing of the simulation. What the machine's neighbours,
    its clock and its temperature do to the server's threads is the same for all that passes around executions. The
    interval is that of means over sections of both runs: what lasts longer than a section is in it.

    Parameters
    ----------
    rehearsed, run : Records

    Returns
    -------
    Drift or None
        ``None`` with too few batches.
    """
    then_us, now_us = (first_answers_us(records) for records in (rehearsed, run))
    alike = [kind for kind in then_us if min(len(then_us[kind]), len(now_us.get(kind, ()))) >= ALONE_MIN]
    usual_us = {kind: steady_mean([us for _, us in then_us[kind]]) for kind in alike}
    if min(sum(len(each[kind]) for kind in alike) for each in (then_us, now_us)) < PAIRS_MIN:
        return None
    means, errors = zip(*(in_sections(each, usual_us) for each in (then_us, now_us)), strict=True)
    ratio = means[1] / means[0]
    half = CONFIDENT * ratio * math.hypot(errors[0] / means[0], errors[1] / means[1])
    return Drift(100.0 * (ratio - 1.0), 100.0 * half)


def in_sections(
    found: Mapping[Kind, Sequence[tuple[int, float]]], usual_us: Mapping[Kind, float]
) -> tuple[float, float]:
    """The mean of times relative to the usual ones of their kind, and its standard error from sections in time."""
    every = sorted((at_ns, us / usual_us[kind]) for kind in usual_us for at_ns, us in found[kind])
    steady = without_stalls([factor for _, factor in every])
    sections = [each.mean() for each in np.array_split(steady, SECTIONS)]
    return float(steady.mean()), float(np.std(sections, ddof=1)) / math.sqrt(SECTIONS)


def first_answers_us(records: Records) -> dict[Kind, list[tuple[int, float]]]:
    """By model and size of batches: when they ended, and how long after that their first answers came."""
    records = records.select(records.served)
    _, rows, place = np.unique(records.batch_id, return_index=True, return_inverse=True)
    first_ns = np.full(len(rows), np.iinfo(np.int64).max)
    np.minimum.at(first_ns, place, records.completed_ns)
    found: dict[Kind, list[tuple[int, float]]] = {}
    for row, answered_ns in zip(rows.tolist(), first_ns.tolist(), strict=True):
        ended_ns = int(records.execution_end_ns[row])
        kind = (int(records.model_index[row]), int(records.batch_size[row]))
        found.setdefault(kind, []).append((ended_ns, (answered_ns - ended_ns) / 1e3))
    return found


def drift_note(drift: Drift | None) -> tuple[str, ...]:
    """In words."""
    if drift is None:
        return ()
    said = f"{drift.percent:+.1f} % (±{drift.half_percent:.1f})"
    return (f"from the end of a batch to its first answer the run took {said} beyond the rehearsal",)


def drift_warning(drift: Drift | None) -> tuple[str, ...]:
    """What to do where that was much."""
    if drift is None or drift.proven_percent <= DRIFT_MAX_PERCENT:
        return ()
    how = f"{abs(drift.percent):.0f} % (±{drift.half_percent:.0f}) {'slower' if drift.percent > 0 else 'faster'}"
    effect = "which the simulation cannot know: measure again, or longer"
    return (f"this machine's software was {how} in the run than in the rehearsal, {effect}",)


def restless(stolen: Sequence[float], drift: Drift | None) -> float:
    """How far rehearsal and run met different machines: the larger of both, as a share of what is too much."""
    proven_percent = 0.0 if drift is None else drift.proven_percent
    return max(most_stolen(stolen) / STOLEN_MAX_PERCENT, proven_percent / DRIFT_MAX_PERCENT)
