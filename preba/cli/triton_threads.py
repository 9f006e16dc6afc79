"""How the threads of a Triton server behave under a load, seen from outside in a rehearsal of that load.

The batcher thread needs time to wake up: what arrives meanwhile joins the batch. At the end of a batch the backend
thread wakes the batcher and returns for its next batch; if the batcher is the faster one it either adds late arrivals
to the batch that goes next or, with a queue policy, sees no idle instance and sleeps on. Both depend on the machine and
on what else it has to do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.batchers import BatcherConfig
from preba.batching.triton_config import TritonBatcher
from preba.cli.lines import spread_of, without_stalls
from preba.cli.redrawn import other_luck
from preba.jitter import EmpiricalJitter
from preba.records import Records
from preba.report.usage import first_of_batch
from preba.scenario.draw import draw_luck
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Overheads, Scenario
from preba.trace import Trace
from sim.run import DEFAULT_ENGINE, Simulation, simulate

__all__ = [
    "IDLE_NS", "LATE_NS", "Race", "Wakeup", "delay_ns", "head_waits_us", "lost_wakeups",
    "monotone_falling", "per_server", "racing", "taking", "told_wakeup", "wakeup", "wakeup_by_ones", "wakeups_by_gaps",
    "with_overheads", "with_race", "with_share_of_races",
    "with_wakeup", "without_wakeup",
]  # fmt: skip

IDLE_NS = 2_000_000
"""A slice that ended its batch so long ago has nothing left to do for it."""
RETURNED_NS = 12_000_000
"""So long after its last batch an instance is back: turnarounds were seen to take 4 to 7 ms, and vary."""
PAIRS_MIN = 60
WINDOW_NS = 3_000_000
BINS = 12
TRIES_MIN = 50
CLEAR_NS = 2_500_000
LATE_NS = 2_000_000
CONTRAST = 0.05
GAPS_MIN = 25
TICK_US = 500_000.0
"""After which a batcher that sleeps on looks by itself."""
SPREAD_SHARE = 0.75
"""Standard deviation of the ways to an idle instance, as a share of the wake-up, from which that is exponential."""
DRAWS = 5
"""Simulations whose mean is compared: closed loops drift in and out of step with themselves."""
WAKEUPS_US = (0.0, 75.0, 150.0, 225.0, 300.0, 450.0)
SHARES = (0, 100, 200, 300, 400, 500, 600, 800, 1000)


@dataclass(frozen=True)
class Wakeup:
    """From a notification of the batcher to its work.

    Attributes
    ----------
    us : float
        The mean, in microseconds.
    varies : bool
        It is exponential rather than always as long.
    text : str
        A sentence for the report.
    pairs : int
        Pairs of requests that told, or 0.
    """

    us: float
    varies: bool
    text: str
    pairs: int = 0


@dataclass(frozen=True)
class Race:
    """Share of batch ends at which the batcher ran first; ``None`` where that could not be told."""

    permille: int | None
    text: str


def with_wakeup(batcher: BatcherConfig, found: Wakeup) -> BatcherConfig:
    """The batcher with the wake-up that was measured, unless it has been told its own."""
    if not isinstance(batcher, TritonBatcher) or "batcher_wakeup_us" in batcher.quirks.model_fields_set:
        return batcher
    fields = {"batcher_wakeup_us": round(found.us), "batcher_wakeup_varies": found.varies}
    if "batcher_wakeup_varies" in batcher.quirks.model_fields_set:
        del fields["batcher_wakeup_varies"]
    return batcher.with_quirks(**fields)


def told_wakeup(batcher: TritonBatcher | None) -> Wakeup | None:
    """The wake-up that the scenario itself says."""
    if batcher is None or "batcher_wakeup_us" not in batcher.quirks.model_fields_set:
        return None
    us, varies = batcher.quirks.batcher_wakeup_us, batcher.quirks.batcher_wakeup_varies
    return Wakeup(us, varies, f"Triton's batcher thread takes {us} us to wake up, as the scenario says")


def without_wakeup(ways_us: NDArray[np.float64], found: Wakeup) -> NDArray[np.float64]:
    """Ways to an instance, in microseconds, less the mean and the variance of the wake-up that they contain."""
    mean_us, variance = float(ways_us.mean()), float(without_stalls(ways_us).var())
    own = max(1.0 - found.us**2 / variance, 0.0) if found.varies and variance > 0 else 1.0
    less: NDArray[np.float64] = mean_us - found.us + math.sqrt(own) * (ways_us - mean_us)
    return less


def with_race(batcher: BatcherConfig, found: Race) -> BatcherConfig:
    """The batcher with the share of races that was measured, unless it has been told its own."""
    if not isinstance(batcher, TritonBatcher) or found.permille is None:
        return batcher
    if batcher.quirks.batcher_first_permille is not None:
        return batcher
    return batcher.with_quirks(batcher_first_permille=found.permille)


def delay_ns(batcher: TritonBatcher) -> int:
    """How long a lone request waits in Triton's batcher."""
    waits = batcher.dynamic_batching and batcher.max_batch_size > 1 and 1 not in batcher.preferred_batch_size
    return 1000 * batcher.max_queue_delay_us if waits else 0


def per_server(resolved: ResolvedScenario, records: Records) -> Iterator[tuple[Records, int]]:
    """The served requests of each Triton server in order of arrival, and how many instances it has."""
    records = records.select(records.served)
    if resolved.scenario.server.topology == "central":
        order = np.argsort(records.scheduled_ns, kind="stable")
        yield records.select(order), len(resolved.models[0].slice_indices)
        return
    for index in np.unique(records.slice_index):
        mine = np.flatnonzero(records.slice_index == index)
        yield records.select(mine[np.argsort(records.scheduled_ns[mine], kind="stable")]), 1


def meets_idle(records: Records, instances: int) -> NDArray[np.bool_]:
    """Which requests came when an instance had been idle for a while and none waited for one; in order of arrival."""
    begun = np.maximum.accumulate(records.execution_start_ns)
    before = np.concatenate([[np.iinfo(np.int64).min], begun[:-1]])
    idle: NDArray[np.bool_] = (busy_instances(records, IDLE_NS) < instances) & (before < records.issued_ns)
    return idle


def busy_instances(records: Records, rest_ns: int) -> NDArray[np.intp]:
    """How many instances each of these requests met that executed a batch or had ended one less than that ago."""
    rows = np.unique(records.batch_id, return_index=True)[1]
    starts, ends = np.sort(records.execution_start_ns[rows]), np.sort(records.execution_end_ns[rows])
    return np.searchsorted(starts, records.issued_ns) - np.searchsorted(ends, records.issued_ns - rest_ns)


def idle_heads(records: Records, instances: int, early: Sequence[int]) -> NDArray[np.bool_]:
    """Which of these requests began a batch of another than the `early` sizes, which end a delay before its time."""
    first = np.zeros(len(records), dtype=np.bool_)
    first[np.unique(records.batch_id, return_index=True)[1]] = True
    kept: NDArray[np.bool_] = meets_idle(records, instances) & first & ~np.isin(records.batch_size, early)
    return kept


def head_waits_us(resolved: ResolvedScenario, records: Records, limit: int) -> NDArray[np.float64]:
    """From schedule to execution, beyond the batcher's delay, of requests that met an idle instance.

    A request that a later one overtook on its way may find the instance taken. If it then waited for another one it
    counts until the execution of the one that overtook it, whose way was the shorter one.
    """
    batcher = resolved.models[0].config.batcher
    wait_ns = delay_ns(batcher) if isinstance(batcher, TritonBatcher) else 0
    early = [*batcher.preferred_batch_size, limit] if isinstance(batcher, TritonBatcher) and wait_ns > 0 else []
    found = []
    for mine, instances in per_server(resolved, records):
        kept = idle_heads(mine, instances, early)
        starts_ns, own_ns = np.sort(mine.execution_start_ns), mine.execution_start_ns[kept]
        next_ns = starts_ns[np.searchsorted(starts_ns, mine.issued_ns[kept], side="right").clip(max=len(mine) - 1)]
        waited = returned_ns(mine, kept) > next_ns
        found.append(np.where(waited, np.minimum(next_ns, own_ns), own_ns) - mine.scheduled_ns[kept] - wait_ns)
    return np.concatenate(found) / 1e3 if found else np.empty(0)


def last_waits_us(resolved: ResolvedScenario, records: Records) -> NDArray[np.float64]:
    """From schedule to execution of requests that completed a batch, where an instance had been idle for a while.

    With the last request of a preferred or a full batch the batcher waits no longer, however long its delay is.
    """
    batcher = resolved.models[0].config.batcher
    if not isinstance(batcher, TritonBatcher):
        return np.empty(0)
    complete = [*batcher.preferred_batch_size, batcher.max_batch_size]
    found = []
    for mine, instances in per_server(resolved, records):
        last = np.zeros(len(mine), dtype=np.bool_)
        last[len(mine) - 1 - np.unique(mine.batch_id[::-1], return_index=True)[1]] = True
        idle = busy_instances(mine, RETURNED_NS) < instances
        kept = last & idle & np.isin(mine.batch_units, complete)
        found.append((mine.execution_start_ns - mine.scheduled_ns)[kept])
    return np.concatenate(found) / 1e3 if found else np.empty(0)


def returned_ns(records: Records, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """When the slices of these requests' batches had ended the batch before; long ago for a first one."""
    found = np.full(len(records), np.iinfo(np.int64).min)
    for index in np.unique(records.slice_index):
        mine = np.flatnonzero(records.slice_index == index)
        ends_ns = np.unique(records.execution_end_ns[mine])
        place = np.searchsorted(ends_ns, records.execution_start_ns[mine], side="right")
        found[mine] = np.where(place > 0, ends_ns[np.maximum(place - 1, 0)], found[mine])
    return found[kept]


def wakeup(resolved: ResolvedScenario, records: Records) -> Wakeup:
    """Measures the batcher thread's wake-up.

    A request that meets an idle instance wakes the batcher, at once or at the end of the delay. The chance that the
    first request after that still joins its batch, integrated over how much later it comes, is the mean time it takes.
    """
    batcher = resolved.models[0].config.batcher
    if not isinstance(batcher, TritonBatcher) or not batcher.dynamic_batching or batcher.max_batch_size < 2:
        text = "Triton's batcher thread: nothing joins anything, so that its wake-up makes no difference"
        return Wakeup(0.0, varies=False, text=text)
    from_ns = delay_ns(batcher)
    early = [*batcher.preferred_batch_size, batcher.max_batch_size] if from_ns > 0 else []
    after: list[NDArray[np.int64]] = []
    joined: list[NDArray[np.bool_]] = []
    for mine, instances in per_server(resolved, records):
        heads = np.flatnonzero(idle_heads(mine, instances, early))
        at_ns = np.maximum.accumulate(mine.issued_ns)
        due_ns = mine.issued_ns[heads] + from_ns
        first = np.maximum(np.searchsorted(at_ns, due_ns, side="right"), heads + 1)
        heads, due_ns, first = (found[first < len(mine)] for found in (heads, due_ns, first))
        after.append(mine.issued_ns[first] - due_ns)
        joined.append(mine.batch_id[first] == mine.batch_id[heads])
    late_ns, same = np.concatenate(after), np.concatenate(joined)
    inside = (late_ns >= 0) & (late_ns < WINDOW_NS)
    if inside.sum() < PAIRS_MIN:
        text = "Triton's batcher thread: too few requests met an idle slice to see how long it takes to wake up"
        return Wakeup(0.0, varies=False, text=text, pairs=int(inside.sum()))
    place = late_ns[inside] * BINS // WINDOW_NS
    count = np.bincount(place, minlength=BINS)
    share = np.bincount(place, weights=same[inside], minlength=BINS) / np.maximum(count, 1)
    us = float(share[count > 0].sum()) * WINDOW_NS / BINS / 1e3
    # Each way to an idle instance contains a wake-up: with less spread than that it cannot be exponential.
    varies = float(without_stalls(head_waits_us(resolved, records, batcher.max_batch_size)).std()) > SPREAD_SHARE * us
    text = (
        f"Triton's batcher thread takes {us:.0f} us to wake up{', exponentially' if varies else ''} "
        f"({int(inside.sum())} requests that came within 3 ms after it was notified or a delay was over, with an idle "
        "slice: how many of them joined the batch)"
    )
    return Wakeup(us, varies, text, int(inside.sum()))


def wakeup_by_ones(calibrated: ResolvedScenario, trace: Trace, records: Records) -> Wakeup:
    """The batcher thread's wake-up in a closed loop, from how many batches of one there are.

    The answers of a batch bring their clients' next requests a little apart from one another. The first of them that
    meets an idle instance goes alone unless the batcher takes so long that others join it. The measured share lies
    between those of simulations of the rehearsal with several wake-ups.

    Parameters
    ----------
    calibrated : ResolvedScenario
        With everything else that was measured, and a way to the batcher that contains the wake-up.
    trace : Trace
        Of the rehearsal.
    records : Records
        Of the rehearsal, served.
    """
    shares = np.zeros((DRAWS, len(WAKEUPS_US)))
    for draw in range(DRAWS):
        scenario = other_luck(calibrated.scenario, draw)
        drawn = draw_luck(resolve(scenario, folder=calibrated.folder), trace)
        for place, us in enumerate(WAKEUPS_US):
            told = resolve(taking(scenario, us), folder=calibrated.folder)
            played = simulate(told, engine=DEFAULT_ENGINE, trace=drawn).result.records
            shares[draw, place] = share_of_ones(played.select(played.served))
    fallen, seen = monotone_falling(shares.mean(axis=0)), share_of_ones(records)
    if fallen[0] - fallen[-1] <= CONTRAST:
        text = "Triton's batcher thread: how long it takes to wake up makes no difference here"
        return Wakeup(0.0, varies=False, text=text)
    us = float(np.interp(seen, fallen[::-1], WAKEUPS_US[::-1]))
    text = (
        f"Triton's batcher thread takes {'at least ' if us == WAKEUPS_US[-1] else ''}{us:.0f} us to wake up, "
        f"exponentially: {100 * seen:.1f} % of the batches have one request, "
        f"{100 * fallen[0]:.1f} % if it takes no time, {100 * fallen[-1]:.1f} % if {WAKEUPS_US[-1]:.0f} us"
    )
    return Wakeup(us, varies=True, text=text)


def taking(scenario: Scenario, us: float) -> Scenario:
    """A scenario of one model whose batcher takes so long to wake up; its way to the batcher is shorter by that."""
    overheads, model = scenario.server.overheads, scenario.models[0]
    if not isinstance(model.batcher, TritonBatcher):
        return scenario
    us = min(us, overheads.frontend_us)  # it is a part of that
    batcher = with_wakeup(model.batcher, Wakeup(us, varies=True, text=""))
    changes: dict[str, Any] = {"frontend_us": overheads.frontend_us - us}
    jitter = overheads.frontend_jitter
    if isinstance(jitter, EmpiricalJitter) and changes["frontend_us"] > 0:
        ways_us = overheads.frontend_us * np.array(jitter.factors) / np.mean(jitter.factors)
        varies = isinstance(batcher, TritonBatcher) and batcher.quirks.batcher_wakeup_varies
        own_us = without_wakeup(ways_us, Wakeup(us, varies, text=""))
        changes["frontend_jitter"] = spread_of(own_us / changes["frontend_us"])
    model = model.model_copy(update={"batcher": batcher})
    changed = with_overheads(scenario, overheads.model_copy(update=changes))
    return changed.model_copy(update={"models": (model,)})


def with_overheads(scenario: Scenario, overheads: Overheads) -> Scenario:
    """A scenario with other overheads."""
    return scenario.model_copy(update={"server": scenario.server.model_copy(update={"overheads": overheads})})


def racing(scenario: Scenario, race: Race) -> Scenario:
    """A scenario in which Triton's batcher is first at another share of batch ends."""
    model = scenario.models[0]
    model = model.model_copy(update={"batcher": with_race(model.batcher, race)})
    return scenario.model_copy(update={"models": (model,)})


def share_of_ones(records: Records) -> float:
    """Batches of one request among all."""
    return float((records.batch_size[first_of_batch(records)] == 1).mean())


def lost_wakeups(resolved: ResolvedScenario, records: Records, usual_ns: Callable[[int], int]) -> Race:
    """Counts batch ends after which the batcher slept on although requests waited.

    Parameters
    ----------
    resolved : ResolvedScenario
    records : Records
        Of a run with a queue policy.
    usual_ns : callable
        What passes from the end of a batch of so many requests to the next start.

    Returns
    -------
    Race
        Only ends count with neither a request nor another end soon after, which would have woken the batcher. Where
        there are too few of them the share is unknown. A refused request wakes nobody, but without the lost wake-up it
        might have been let in: ends with one do not count either.
    """
    lost = tries = 0
    arrivals = np.sort(records.issued_ns[records.issued_ns >= 0])
    for mine, _ in per_server(resolved, records):
        rows = np.unique(mine.batch_id, return_index=True)[1]
        oldest_ns = mine.issued_ns[rows]
        start_ns, end_ns = mine.execution_start_ns[rows], mine.execution_end_ns[rows]
        ends = np.sort(end_ns)
        for index in np.unique(mine.slice_index[rows]):
            own = np.flatnonzero(mine.slice_index[rows] == index)
            own = own[np.argsort(start_ns[own], kind="stable")]
            for batch, after in itertools.pairwise(own):
                ended_ns = int(end_ns[batch])
                expected_ns = ended_ns + usual_ns(int(mine.batch_size[rows[batch]]))
                if oldest_ns[after] > ended_ns - IDLE_NS:
                    continue
                quiet_ns = expected_ns + CLEAR_NS
                came = np.searchsorted(arrivals, quiet_ns) - np.searchsorted(arrivals, ended_ns - IDLE_NS // 4)
                returned = np.searchsorted(ends, quiet_ns) - np.searchsorted(ends, ended_ns + 1)
                if came or returned:
                    continue
                tries += 1
                lost += int(start_ns[after] > expected_ns + LATE_NS)
    if tries < TRIES_MIN:
        return Race(None, "Triton's lost wake-ups: too few batch ends without an arrival soon after them to count any")
    text = f"Triton's batcher overtook the backend thread at {lost} of {tries} batch ends and slept on: a lost wake-up"
    return Race(round(1000 * lost / tries), text)


def wakeups_by_gaps(
    calibrated: ResolvedScenario,
    trace: Trace,
    seen_us: Sequence[float],
    gaps_us: Callable[[Simulation], Sequence[float]],
) -> Race:
    """How often the batcher sleeps on, from how long slices are left alone although requests wait.

    With a full queue nobody is let in who would wake it, so that batch ends without an arrival soon after them tell
    nothing there. The measured mean lies between those of simulations of the same trace with several shares.

    Parameters
    ----------
    calibrated : ResolvedScenario
        With everything else that was measured, and the turnaround without lost wake-ups.
    trace : Trace
        Of the rehearsal.
    seen_us : sequence of float
        Measured gaps.
    gaps_us : callable
        The same of a simulation.

    Returns
    -------
    Race
        The share is unknown where there are too few gaps, and 0 where they are the same whatever the share.
    """
    trace = draw_luck(calibrated, trace)
    found = [gaps_us(with_share_of_races(calibrated, trace, permille)) for permille in SHARES]
    if min(len(gaps) for gaps in (seen_us, *found)) < GAPS_MIN:
        return Race(
            None,
            "Triton's lost wake-ups: too few requests waited for a slice to tell how often they happen; the usual "
            "share is assumed",
        )
    seen, *means = (float(np.minimum(gaps, TICK_US).mean()) for gaps in (seen_us, *found))
    rising = [place for place, mean in enumerate(means) if mean > max(means[:place], default=-1.0)]
    if means[rising[-1]] - means[0] <= CONTRAST * means[0]:
        return Race(0, "Triton's lost wake-ups make no difference here: something always wakes the batcher at once")
    permille = round(float(np.interp(seen, [means[place] for place in rising], [SHARES[place] for place in rising])))
    text = (
        f"Triton's batcher overtakes the backend thread at {permille / 10:g} % of batch ends and sleeps on: slices "
        f"that requests wait for are left alone for {seen:.0f} us, {means[0]:.0f} us if it never does"
    )
    return Race(permille, text)


def monotone_falling(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Noisy values of what falls, made to fall: between the lowest so far and the highest to come."""
    found = np.asarray(values, dtype=np.float64)
    fallen: NDArray[np.float64] = (np.minimum.accumulate(found) + np.maximum.accumulate(found[::-1])[::-1]) / 2
    return fallen


def with_share_of_races(calibrated: ResolvedScenario, trace: Trace, permille: int) -> Simulation:
    """Simulates a trace with another share of races."""
    scenario = racing(calibrated.scenario, Race(permille, ""))
    return simulate(resolve(scenario, folder=calibrated.folder), engine=DEFAULT_ENGINE, trace=trace)
