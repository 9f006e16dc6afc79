"""How long before its start a batch takes no more requests, and the way to the batcher that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preba.batching.triton_config import TritonBatcher
from preba.cli.lines import Array, steady_mean
from preba.cli.redrawn import other_luck
from preba.cli.rehearsing import batch_limit
from preba.cli.triton_threads import IDLE_NS, delay_ns, head_waits_us, per_server, with_overheads
from preba.cli.ways import ALONE_MIN
from preba.records import Records
from preba.scenario.draw import draw_luck
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Scenario
from preba.trace import Trace
from sim.run import DEFAULT_ENGINE, simulate

__all__ = ["Closing", "closing", "with_way"]

WINDOW_NS = 5_000_000
"""No batch closes so long before it starts."""
BIN_NS = 250_000
REQUESTS_MIN = 200
OPEN_SHARE = 0.5
"""Where so many requests miss a batch that came as long before it as is looked at, it is not known when it closes."""
ROUNDS = 3
DRAWS = 3


@dataclass(frozen=True)
class Closing:
    """What requests pass on their way into a batch, from schedule to the start of its execution.

    Attributes
    ----------
    idle_us : float or None
        Of requests that meet an idle slice, beyond the batcher's delay: the mean; ``None`` where there are too few.
    busy_us : float
        Before its start a batch that waited for its slice closes: the mean.
    busy_share : float
        Of the requests, beside each of those that meet an idle slice, in batches that waited for theirs.
    """

    idle_us: float | None
    busy_us: float
    busy_share: float

    def beyond(self, other: Closing) -> float:
        """How much longer than another one, in microseconds, with the shares of this one."""
        busy_us = self.busy_us - other.busy_us
        if self.idle_us is None or other.idle_us is None:
            return busy_us
        return (1.0 - self.busy_share) * (self.idle_us - other.idle_us) + self.busy_share * busy_us


def closing(resolved: ResolvedScenario, records: Records) -> Closing | None:
    """Measures it in a run whose batcher forms batches only for slices that are there; ``None`` if seen too seldom.

    The chance that a request which comes so long before the start of a batch with room does not join it, integrated
    over that time, is the mean time before its start at which a batch closes.
    """
    limit = batch_limit(resolved, resolved.models[0])
    batcher = resolved.models[0].config.batcher
    waited_ns = IDLE_NS + (delay_ns(batcher) if isinstance(batcher, TritonBatcher) else 0)
    full = [limit, *(batcher.preferred_batch_size if isinstance(batcher, TritonBatcher) else ())]
    before_ns: list[Array] = []
    missed: list[Array] = []
    waiting = 0
    for mine, _ in per_server(resolved, records):
        numbers, rows, place = np.unique(mine.batch_id, return_index=True, return_inverse=True)
        oldest_ns = np.full(len(numbers), np.iinfo(np.int64).max)
        np.minimum.at(oldest_ns, place, mine.scheduled_ns)
        start_ns, end_ns, size = mine.execution_start_ns[rows], mine.execution_end_ns[rows], mine.batch_size[rows]
        for index in np.unique(mine.slice_index[rows]):
            own = np.flatnonzero(mine.slice_index[rows] == index)
            own = own[np.argsort(start_ns[own], kind="stable")]
            after = own[1:][oldest_ns[own[1:]] + waited_ns <= end_ns[own[:-1]]]
            waiting += int(size[after].sum())
            for batch in after[~np.isin(size[after], full)]:
                low, high = np.searchsorted(mine.scheduled_ns, (start_ns[batch] - WINDOW_NS, start_ns[batch]))
                left = mine.execution_start_ns[low:high] >= start_ns[batch]  # the others began before
                before_ns.append((start_ns[batch] - mine.scheduled_ns[low:high])[left].astype(np.float64))
                missed.append((place[low:high] != batch)[left].astype(np.float64))
    if sum(map(len, missed)) < REQUESTS_MIN:
        return None
    bins = np.minimum(np.concatenate(before_ns) / BIN_NS, WINDOW_NS // BIN_NS - 1).astype(np.int64)
    count = np.bincount(bins, minlength=WINDOW_NS // BIN_NS)
    there = np.flatnonzero(count)
    share = np.bincount(bins, weights=np.concatenate(missed), minlength=len(count))[there] / count[there]
    if share[-1] > OPEN_SHARE:
        return None
    busy_us = float(np.interp(np.arange(len(count)), there, share).sum()) * BIN_NS / 1e3
    waits_us = head_waits_us(resolved, records, limit)
    if len(waits_us) < ALONE_MIN:
        return Closing(None, busy_us, 1.0)
    return Closing(steady_mean(waits_us), busy_us, waiting / (waiting + len(waits_us)))


def with_way(calibrated: ResolvedScenario, trace: Trace, records: Records) -> tuple[Scenario, list[str]]:
    """The scenario with the way to the batcher of requests that make it into a batch or do not, and what is said of it.

    Triton's statistics say how long requests wait in its queue, but not when their batch closes, which is some time
    before a slice that has just returned starts it. A simulation of the rehearsal says what it closes there: the way is
    changed until both are the same.

    Parameters
    ----------
    calibrated : ResolvedScenario
        With everything else that was measured.
    trace : Trace
        Of the rehearsal.
    records : Records
        Of the rehearsal, served.
    """
    scenario, measured = calibrated.scenario, closing(calibrated, records)
    too_few = ["too few requests came soon before batches that waited for their slice to see when those close"]
    if measured is None:
        return scenario, too_few
    before_us = scenario.server.overheads.frontend_us
    # What is drawn does not depend on the way, which changes below.
    lucks = (resolve(other_luck(scenario, draw), folder=calibrated.folder) for draw in range(DRAWS))
    traces = [draw_luck(luck, trace) for luck in lucks]
    for _ in range(ROUNDS):
        longer_us = []
        for draw, drawn in enumerate(traces):
            told = resolve(other_luck(scenario, draw), folder=calibrated.folder)
            run = simulate(told, engine=DEFAULT_ENGINE, trace=drawn).result.records
            found = closing(told, run.select(run.served))
            if found is not None:
                longer_us.append(measured.beyond(found))
        if not longer_us:
            return calibrated.scenario, too_few
        overheads = scenario.server.overheads
        overheads = overheads.model_copy(
            update={"frontend_us": max(overheads.frontend_us + float(np.mean(longer_us)), 0.0)}
        )
        scenario = with_overheads(scenario, overheads)
    said = (
        f"batches that wait for their slice close {measured.busy_us:.0f} us before they start: the way to the batcher "
        f"is {scenario.server.overheads.frontend_us:.0f} us rather than {before_us:.0f} us"
    )
    return scenario, [said]
