"""How late a backend thread is back that Triton's batcher has overtaken: it was not running, and may not run yet.

With a queue policy the batcher then sees no idle instance and sleeps on until an arrival wakes it. An arrival before
the thread is back does not either. Both show from outside, see ``late_return``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from preba.batching.triton_config import TritonBatcher
from preba.cli.redrawn import other_luck
from preba.cli.triton_threads import DRAWS, IDLE_NS, LATE_NS
from preba.records import Records
from preba.scenario.draw import draw_luck
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Scenario
from preba.trace import Trace
from sim.run import DEFAULT_ENGINE, simulate

__all__ = ["Late", "late_return", "returning_late"]

SOON_NS = 3_000_000
"""Arrivals so soon after an instance is expected back: later ones find every instance there."""
ENDS_MIN = 200
LATE_US = (0, 250, 500, 750, 1000, 1500, 2000)


@dataclass(frozen=True)
class Late:
    """How much later a thread is back that was overtaken, in microseconds, and a sentence for the report."""

    us: int
    text: str


def late_return(
    calibrated: ResolvedScenario, trace: Trace, records: Records, usual_ns: Callable[[int], int], way_ns: int
) -> Late | None:
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
    Late or None
        ``None`` where too few arrivals tell.
    """
    batcher = calibrated.models[0].config.batcher
    ends, seen = stood_still(records, usual_ns, way_ns)
    if not isinstance(batcher, TritonBatcher) or batcher.batcher_first_permille() == 0 or ends < ENDS_MIN:
        return None
    shares = np.zeros(len(LATE_US))
    for place, us in enumerate(LATE_US):
        for draw in range(DRAWS):
            told = other_luck(returning_late(calibrated.scenario, us), draw)
            known = resolve(told, folder=calibrated.folder)
            run = simulate(known, engine=DEFAULT_ENGINE, trace=draw_luck(known, trace)).result.records
            simulated, still = stood_still(run, usual_ns, way_ns)
            shares[place] += still / max(simulated, 1) / DRAWS
    us = round(float(np.interp(seen / ends, np.maximum.accumulate(shares), LATE_US)))
    text = (
        f"a backend thread that Triton's batcher has overtaken is back {us} us later than others: of {ends} slices "
        f"{100 * seen / ends:.1f} % stood still although a request came within {SOON_NS / 1e6:g} ms after their usual "
        f"return, {100 * shares[0]:.1f} % if it is back with the others"
    )
    return Late(us, text)


def stood_still(records: Records, usual_ns: Callable[[int], int], way_ns: int) -> tuple[int, int]:
    """After how many batches a request came soon after the instance's usual return, and how often it stood still.

    Only batches count after which requests wait, no other one ends soon, and no second request comes.
    """
    records = records.select(records.served)
    arrivals = np.sort(records.issued_ns) + way_ns
    rows, place = np.unique(records.batch_id, return_index=True, return_inverse=True)[1:]
    oldest_ns = np.full(len(rows), np.iinfo(np.int64).max)
    np.minimum.at(oldest_ns, place, records.issued_ns)
    start_ns, end_ns = records.execution_start_ns[rows], records.execution_end_ns[rows]
    ends = np.sort(end_ns)
    found = still = 0
    for index in np.unique(records.slice_index[rows]):
        own = np.flatnonzero(records.slice_index[rows] == index)
        own = own[np.argsort(start_ns[own], kind="stable")]
        batch, after = own[:-1], own[1:]
        back_ns = end_ns[batch] + np.array([usual_ns(int(size)) for size in records.batch_size[rows[batch]]])
        came = np.searchsorted(arrivals, back_ns)
        batch, after, back_ns, came = (each[came < len(arrivals) - 1] for each in (batch, after, back_ns, came))
        came_ns, next_ns = arrivals[came], arrivals[came + 1]
        late_ns = came_ns + LATE_NS
        others = np.searchsorted(ends, late_ns + IDLE_NS) - np.searchsorted(ends, end_ns[batch], side="right")
        kept = (oldest_ns[after] < end_ns[batch] - IDLE_NS) & (came_ns < back_ns + SOON_NS)
        kept &= (others == 0) & (next_ns > late_ns + IDLE_NS // 2)
        found += int(kept.sum())
        still += int((kept & (start_ns[after] > late_ns)).sum())
    return found, still


def returning_late(scenario: Scenario, us: int) -> Scenario:
    """A scenario whose overtaken threads are back so much later, unless its batcher has been told its own."""
    model = scenario.models[0]
    batcher = model.batcher
    if not isinstance(batcher, TritonBatcher) or "batcher_first_late_us" in batcher.quirks.model_fields_set:
        return scenario
    model = model.model_copy(update={"batcher": batcher.with_quirks(batcher_first_late_us=us)})
    return scenario.model_copy(update={"models": (model,)})
