"""Who is first at the ends of Triton's batches, the batcher or the backend thread, and what it costs the one overtaken.

Where batches wait for instances, requests left behind tell how often the batcher is first. With a queue policy it then
sees no idle instance and sleeps on until an arrival wakes it; one that comes before the thread is back does not, and
that thread was not running. How often slices stand still although a request has come tells how late it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from preba.batching.triton_config import TritonBatcher
from preba.cli.redrawn import other_luck
from preba.cli.triton_threads import (
    CONTRAST,
    DRAWS,
    IDLE_NS,
    LATE_NS,
    SHARES,
    Race,
    monotone_falling,
    per_server,
    with_share_of_races,
)
from preba.records import Records
from preba.scenario.draw import draw_luck
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Scenario
from preba.trace import Trace
from sim.run import DEFAULT_ENGINE, simulate

__all__ = ["Late", "late_return", "left_behind", "overtakings", "returning_late", "stood_still", "told_late"]

ON_THE_WAY_SHARE = 0.5
"""Where so much of the requests left behind are on their way, whoever is first, they do not tell who is: with seven
instances in bursts it was 0.7 to 0.8 (two runs), with one and three instances 0 to 0.3."""
ERRORS = 2.0
"""Standard errors that are taken for chance."""
SOON_NS = 3_000_000
"""Arrivals so soon after an instance is expected back: of those overtaken nearly all were back by then."""
ENDS_MIN = 200
LATE_US = (0, 250, 500, 750, 1000, 1500, 2000)
LATE_CONTRAST = 0.02
OVERTAKEN = "a backend thread that Triton's batcher has overtaken"


def left_behind(resolved: ResolvedScenario, records: Records, limit: int) -> tuple[int, int]:
    """How many batches with room began although a request waited that did not join, and how many batches had room."""
    behind = tries = 0
    for mine, _ in per_server(resolved, records):
        rows = np.unique(mine.batch_id, return_index=True)[1]
        rows = rows[np.argsort(mine.execution_start_ns[rows], kind="stable")]
        start_ns, oldest_ns = mine.execution_start_ns[rows], mine.issued_ns[rows]
        later_ns = np.append(np.minimum.accumulate(oldest_ns[::-1])[::-1][1:], np.iinfo(np.int64).max)
        room = mine.batch_size[rows] < limit
        behind += int((room & (later_ns < start_ns - IDLE_NS)).sum())
        tries += int(room.sum())
    return behind, tries


def overtakings(calibrated: ResolvedScenario, trace: Trace, records: Records, limit: int) -> Race:
    """How often the batcher is first where batches wait for instances, from how many requests are left behind.

    The measured share lies between those of simulations of the same trace with several shares of races. Requests that
    are still on their way are left behind however the races end, in a simulation more of them: there they overtake one
    another. Where most are, they do not tell how the races end.

    Parameters
    ----------
    calibrated : ResolvedScenario
        With everything else that was measured.
    trace : Trace
        Of the rehearsal.
    records : Records
        What was measured of it.
    limit : int
        Largest batch.
    """
    behind_seen, tries = left_behind(calibrated, records, limit)
    seen = behind_seen / max(tries, 1)
    trace = draw_luck(calibrated, trace)
    behind = []
    for permille in SHARES:
        missed, count = left_behind(calibrated, with_share_of_races(calibrated, trace, permille).result.records, limit)
        behind.append(missed / max(count, 1))
    falling = monotone_falling(behind)
    never, always = falling[0], falling[-1]
    if never - always < CONTRAST:
        return Race(None, "Whether Triton's batcher overtakes the backend thread makes no difference here")
    chance = ERRORS * math.sqrt(seen * (1.0 - seen) / max(tries, 1))
    if always > ON_THE_WAY_SHARE * never or seen < always - chance:
        text = (
            f"Whether Triton's batcher overtakes the backend thread does not show here: {100 * seen:.1f} % of batches "
            f"with room left a request behind, {100 * never:.1f} % if it never does, but still {100 * always:.1f} % if "
            "always: most are on their way"
        )
        return Race(None, text)
    permille = round(float(np.interp(-seen, -falling, SHARES)))
    text = (
        f"Triton's batcher overtakes the backend thread at {permille / 10:g} % of batch ends: {100 * seen:.1f} % of "
        f"batches with room left a request behind, {100 * never:.1f} % if it never does, {100 * always:.1f} % if always"
    )
    return Race(permille, text)


@dataclass(frozen=True)
class Late:
    """How much later a thread is back that was overtaken, in microseconds, and a sentence for the report."""

    us: int
    text: str


def told_late(batcher: TritonBatcher) -> Late | None:
    """The time that the scenario itself says."""
    if "batcher_first_late_us" not in batcher.quirks.model_fields_set:
        return None
    us = batcher.quirks.batcher_first_late_us
    return Late(us, f"{OVERTAKEN} is back {us} us later than others, as the scenario says")


def late_return(
    calibrated: ResolvedScenario, trace: Trace, records: Records, *, usual_ns: Callable[[int], int], way_ns: int
) -> Late:
    """Measures how much later than others an instance is back that the batcher has overtaken.

    An arrival after that wakes the batcher, one before does not. So the share of instances that stand still although a
    request comes a little after their usual return is the larger the later overtaken ones are back. The measured share
    lies between those of simulations of the same trace with several such times.

    Parameters
    ----------
    calibrated : ResolvedScenario
        With everything else that was measured.
    trace : Trace
        Of the rehearsal.
    records : Records
        Of the rehearsal.
    usual_ns : callable
        From the end of a batch of so many requests until its instance can take the next one.
    way_ns : int
        From a request's issue to the batcher.

    Returns
    -------
    Late
        0 where too few arrivals tell, where it makes no difference, and where chance may be all of it.
    """
    ends, still = stood_still(calibrated, records, usual_ns, way_ns)
    if ends < ENDS_MIN:
        return Late(0, f"{OVERTAKEN}: too few requests came about when it was due to tell how late it is; not at all")
    shares = np.zeros(len(LATE_US))
    for draw in range(DRAWS):
        scenario = other_luck(calibrated.scenario, draw)
        drawn = draw_luck(resolve(scenario, folder=calibrated.folder), trace)
        for place, us in enumerate(LATE_US):
            known = resolve(returning_late(scenario, us), folder=calibrated.folder)
            run = simulate(known, engine=DEFAULT_ENGINE, trace=drawn).result.records
            count, simulated = stood_still(known, run, usual_ns, way_ns)
            shares[place] += simulated / max(count, 1) / DRAWS
    rising = -monotone_falling(-shares)
    if rising[-1] - rising[0] <= LATE_CONTRAST:
        return Late(0, f"{OVERTAKEN}: how late it is makes no difference here")
    seen = still / ends
    chance = ERRORS * math.sqrt(seen * (1.0 - seen) / ends)
    low, us, high = (round(float(np.interp(share, rising, LATE_US))) for share in (seen - chance, seen, seen + chance))
    said = (
        f"after {100 * seen:.1f} % of {ends} batches the slice stood still although a request came within "
        f"{SOON_NS / 1e6:g} ms after its usual return, {100 * rising[0]:.1f} % if it is back with the others"
    )
    if low == 0:
        return Late(0, f"{OVERTAKEN} is back with the others, as far as chance lets see: {said}")
    most = "at least " if us == LATE_US[-1] else ""
    return Late(us, f"{OVERTAKEN} is back {most}{us} us later than others ({low} to {high}): {said}")


def stood_still(
    resolved: ResolvedScenario, records: Records, usual_ns: Callable[[int], int], way_ns: int
) -> tuple[int, int]:
    """After how many batches a request came soon after the instance's usual return, and how often it stood still.

    Only batches count after which requests wait, no other one ends soon, and no second request comes.
    """
    found = still = 0
    for mine, _ in per_server(resolved, records):
        arrivals = np.sort(mine.issued_ns) + way_ns
        rows = np.unique(mine.batch_id, return_index=True)[1]
        oldest_ns = mine.issued_ns[rows] + way_ns
        start_ns, end_ns = mine.execution_start_ns[rows], mine.execution_end_ns[rows]
        usual = np.array([usual_ns(int(size)) for size in mine.batch_size[rows]], dtype=np.int64)
        ends = np.sort(end_ns)
        for index in np.unique(mine.slice_index[rows]):
            own = np.flatnonzero(mine.slice_index[rows] == index)
            own = own[np.argsort(start_ns[own], kind="stable")]
            batch, after = own[:-1], own[1:]
            back_ns = end_ns[batch] + usual[batch]
            came = np.searchsorted(arrivals, back_ns)
            batch, after, back_ns, came = (each[came < len(arrivals) - 1] for each in (batch, after, back_ns, came))
            came_ns, next_ns = arrivals[came], arrivals[came + 1]
            late_ns = came_ns + LATE_NS
            others = np.searchsorted(ends, late_ns + IDLE_NS) - np.searchsorted(ends, end_ns[batch], side="right")
            kept = (oldest_ns[after] < end_ns[batch]) & (came_ns < back_ns + SOON_NS)
            kept &= (others == 0) & (next_ns > late_ns + IDLE_NS // 2)
            found += int(kept.sum())
            still += int((kept & (start_ns[after] > late_ns)).sum())
    return found, still


def returning_late(scenario: Scenario, us: int) -> Scenario:
    """A scenario whose overtaken threads are back so much later."""
    model = scenario.models[0]
    batcher = model.batcher
    if not isinstance(batcher, TritonBatcher):
        return scenario
    model = model.model_copy(update={"batcher": batcher.with_quirks(batcher_first_late_us=us)})
    return scenario.model_copy(update={"models": (model,)})
