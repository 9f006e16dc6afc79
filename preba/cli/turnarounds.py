"""What slices take from one batch to the next, in a rehearsal and kept busy, and who overtakes whom meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from preba.batching.triton_config import TritonBatcher
from preba.cli.lines import (
    PAIRS_MIN,
    Line,
    line_by_size,
    relative,
    shifted,
    spread_of,
    steady_mean,
    trimmed_mean,
)
from preba.cli.seen import Seen
from preba.cli.triton_threads import IDLE_NS, LATE_NS, Race, lost_wakeups, with_overheads
from preba.cli.ways import ALONE_MIN, Ready, by_size, each_gap, gaps_between_batches, way_to_slice_us
from preba.jitter import JitterConfig
from preba.profile import LatencyProfile
from preba.scenario.draw import draw_luck
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Overheads
from runtime.load.run import Played
from sim.run import DEFAULT_ENGINE, Simulation, simulate

__all__ = ["Gaps", "as_played", "gap_factors", "gaps_of", "unbiased", "widened"]

USUAL_PERCENT = 35.0
"""Of gaps of which up to a third may be lost wake-ups: the median of the others."""
QUICK_PERCENT = (5.0, 20.0)
"""Of gaps that no lost wake-up makes longer: with the usual one they tell how wide they vary."""
SIZES_MIN = 4
"""Batch sizes seen often enough in a rehearsal for a line of its own."""
SELECTION_ROUNDS = 3
LATE_TIMES = 2
"""Gaps vary: one that is but so many times as late as the usual one is late may be none of a lost wake-up."""


@dataclass(frozen=True)
class Gaps:
    """What passes around the executions of a busy slice.

    Attributes
    ----------
    dispatch_us : float
        From the batcher to an idle slice.
    line : Line
        From the end of a batch until its slice can take the next one.
    spread : jitter config or None
    race : Race or None
        Who is first at the ends of batches, where Triton batches.
    """

    dispatch_us: float
    line: Line
    spread: JitterConfig | None
    race: Race | None


def gaps_of(seen: Seen) -> Gaps:
    """The way to a slice, and the line of slices kept busy; where Triton batches, as the rehearsal has it."""
    resolved, profiles = seen.resolved, seen.profiles
    # Triton's own batcher does not say when it hands out a batch: there the way is part of what comes before.
    dispatch_us = 0.0 if seen.native else way_to_slice_us(seen.records, seen.alone)
    kept_busy = {
        size: [gap - dispatch_us for gap in gaps]
        for size, gaps in gaps_between_batches(resolved, profiles, seen.busy).items()
    }
    line = line_by_size(kept_busy, trimmed_mean)
    if seen.triton is None or seen.limit < 2 or seen.triton.prefetching:
        return Gaps(dispatch_us, *turnaround(seen, kept_busy, line, None), None)
    gaps = gaps_between_batches(resolved, profiles, [seen.rehearsed], Ready(way_ns=IDLE_NS))
    usual = shifted(line, gaps, lambda values: float(np.percentile(values, USUAL_PERCENT)))
    bounded = any(policy.max_queue_size for policy in seen.triton.level_policies())
    race = Race(None, "") if bounded else lost_wakeups(resolved, seen.rehearsed.result.records, usual.of)
    if race.permille is None:  # lost wake-ups are in the means
        return Gaps(dispatch_us, *widened(kept_busy, line, gaps, usual), race)
    return Gaps(dispatch_us, *turnaround(seen, kept_busy, line, race), race)


def gap_factors(seen: Seen) -> list[tuple[int, float]]:
    """When slices that batches waited for ended one in the rehearsal, and how much longer than usual they then took."""
    ready = ready_of(seen.triton) if seen.triton is not None else Ready()
    gaps = list(each_gap(seen.resolved, None, seen.rehearsed, ready))
    usual_us = {size: steady_mean(values) for size, values in by_size(gaps).items() if len(values) >= ALONE_MIN}
    return [(gap.ended_ns, gap.us / usual_us[gap.size]) for gap in gaps if usual_us.get(gap.size, 0.0) > 0]


def widened(
    kept_busy: Mapping[int, Sequence[float]], line: Line, gaps: Mapping[int, Sequence[float]], usual: Line
) -> tuple[Line, JitterConfig | None]:
    """The line and the spread of gaps of which some are lost wake-ups, from the quick ones, which are none.

    The shape is that of slices kept busy; under the load it is wider, as far as its quick part is.

    Parameters
    ----------
    kept_busy, gaps : mapping of int to sequence of float
        By size: of slices kept busy, and of the rehearsal.
    line, usual : Line
        Means of the former; through the ``USUAL_PERCENT`` of the latter.
    """
    shape, seen = np.array(relative(kept_busy, line)), np.array(relative(gaps, usual))
    if min(len(shape), len(seen)) < PAIRS_MIN:
        return usual, spread_of(shape)
    shape = shape / np.percentile(shape, USUAL_PERCENT)
    quick, seen_quick = (float(1.0 - np.percentile(each, QUICK_PERCENT).mean()) for each in (shape, seen))
    wider = seen_quick / quick if quick > 0 else 1.0
    factors = np.maximum(1.0 + wider * (shape - 1.0), 0.0)
    mean = min(steady_mean(factors), steady_mean(seen))  # lost wake-ups make gaps longer, never shorter
    return Line(mean * usual.fixed_us, mean * usual.per_request_us, usual.values), spread_of(factors)


def turnaround(
    seen: Seen, kept_busy: Mapping[int, Sequence[float]], line: Line, race: Race | None
) -> tuple[Line, JitterConfig | None]:
    """The line of slices kept busy, and how gaps vary about it; where Triton batches, that of the rehearsal.

    With too few sizes of batches in the rehearsal it is the line of the busy slices, moved to the rehearsal's mean.
    Gaps of lost wake-ups, the longest ones, are left out there: they are modelled themselves.
    """
    batcher = seen.resolved.models[0].config.batcher
    if not seen.native or not isinstance(batcher, TritonBatcher):
        return line, spread_of(relative(kept_busy, line))
    ready = ready_of(batcher)
    found, own = (
        without_lost(gaps_between_batches(seen.resolved, profiles, [seen.rehearsed], ready), race)
        for profiles in (seen.profiles, None)
    )
    moved, varied = (
        line_by_size(each, steady_mean) if tells_line(each) else shifted(line, each, steady_mean)
        for each in (found, own)
    )
    return moved, spread_of(relative(own, varied)) or spread_of(relative(kept_busy, line))


def ready_of(batcher: TritonBatcher) -> Ready:
    """When Triton's batches wait for nothing but an instance; without prefetching there are none before that."""
    sizes = (*batcher.preferred_batch_size, batcher.max_batch_size) if batcher.prefetching else ()
    return Ready(1000 * batcher.max_queue_delay_us, frozenset(sizes), IDLE_NS)


def unbiased(
    calibrated: ResolvedScenario, profiles: Sequence[LatencyProfile], rehearsed: Played, race: Race | None = None
) -> Overheads:
    """Overheads with the turnaround as it is, not as it is seen.

    Gaps are seen where a batch waited for that very slice, which the quick ones get more often: a slice that is slow to
    return is overtaken by others. And where the batcher forms a batch only for a slice that has returned, its wake-up
    is in them, which is simulated itself. A simulation of the rehearsal has the same bias and knows the truth: the
    turnaround is changed until what is seen of it is the same, part by part if there are enough sizes of batches.
    Gaps of lost wake-ups, the chance of which is known only so well, are left out of both. Slices that are slow
    together overtake one another less: the simulation has that, too.
    """
    overheads = calibrated.scenario.server.overheads
    batcher = calibrated.models[0].config.batcher
    ready = ready_of(batcher) if isinstance(batcher, TritonBatcher) else Ready(way_ns=IDLE_NS)
    trace = draw_luck(calibrated, rehearsed.trace)
    measured = gaps_between_batches(calibrated, profiles, [rehearsed], ready)
    lost_us = lost_from_us(measured, overheads.turnaround_request_us) if race is not None else math.inf
    measured = below(measured, overheads.turnaround_request_us, lost_us)
    wanted = line_by_size(measured, steady_mean) if tells_line(measured) else None
    found = overheads
    for _ in range(SELECTION_ROUNDS):
        told = resolve(with_overheads(calibrated.scenario, found), folder=calibrated.folder)
        run = as_played(simulate(told, engine=DEFAULT_ENGINE, trace=trace))
        gaps = gaps_between_batches(told, profiles, [run], ready)
        gaps = below(gaps, overheads.turnaround_request_us, lost_us)
        if min(sum(map(len, each.values())) for each in (gaps, measured)) < PAIRS_MIN:
            return overheads
        fixed_us, request_us = found.turnaround_us, found.turnaround_request_us
        if wanted is not None and tells_line(gaps):
            seen = line_by_size(gaps, steady_mean)
            request_us += wanted.per_request_us - seen.per_request_us
            fixed_us += wanted.fixed_us - seen.fixed_us
        else:
            wanted_us, seen_us = (
                steady_mean([us - request_us * size for size, values in each.items() for us in values])
                for each in (measured, gaps)
            )
            fixed_us += wanted_us - seen_us
        found = overheads.model_copy(
            update={"turnaround_us": max(fixed_us, 0.0), "turnaround_request_us": max(request_us, 0.0)}
        )
    return found


def without_lost(gaps: Mapping[int, list[float]], race: Race | None) -> Mapping[int, list[float]]:
    """Gaps by size without the longest ones, as many as there are lost wake-ups."""
    if race is None or not race.permille:
        return gaps
    kept = 1.0 - race.permille / 1e3
    return {size: sorted(each)[: math.ceil(kept * len(each))] for size, each in gaps.items()}


def lost_from_us(gaps: Mapping[int, Sequence[float]], request_us: float) -> float:
    """From which time on, beyond so much a request, a gap may be a lost wake-up."""
    rest = [us - request_us * size for size, values in gaps.items() for us in values]
    return float(np.percentile(rest, USUAL_PERCENT)) + LATE_TIMES * LATE_NS / 1e3 if rest else math.inf


def below(gaps: Mapping[int, list[float]], request_us: float, limit_us: float) -> dict[int, list[float]]:
    """Gaps shorter than a limit, beyond so much a request."""
    return {size: [us for us in values if us - request_us * size < limit_us] for size, values in gaps.items()}


def tells_line(gaps: Mapping[int, Sequence[float]]) -> bool:
    """Whether there are enough batches of enough sizes for a line of their own."""
    return sum(len(each) >= ALONE_MIN for each in gaps.values()) >= SIZES_MIN


def as_played(run: Simulation) -> Played:
    """A simulation in the place of a live run of Triton's batcher, which does not say when it got a request."""
    records = run.result.records
    result = replace(run.result, records=replace(records, enqueued_ns=records.issued_ns))
    return Played(result, run.trace, {}, (), ())
