"""What ``preba validate`` measures before the run it compares, in runs of their own, and puts into the scenario."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from accel.measure import line_through
from accel.work import beyond_line_us
from preba.arrival_kinds import ClosedLoopArrivals
from preba.batching.triton_config import TritonBatcher
from preba.cli.lines import (
    PAIRS_MIN,
    Array,
    Line,
    line_by_size,
    relative,
    shifted,
    spread_of,
    steady_mean,
    trimmed_mean,
)
from preba.cli.rehearsing import batch_limit
from preba.cli.triton_threads import (
    IDLE_NS,
    Race,
    Wakeup,
    head_waits_us,
    lost_wakeups,
    overtakings,
    taking,
    told_wakeup,
    wakeup,
    wakeup_by_ones,
    wakeups_by_gaps,
    with_race,
    with_spread,
    with_wakeup,
    without_wakeup,
)
from preba.cli.ways import (
    ALONE_MIN,
    after_preprocessing_us,
    answers_after_batch,
    before_batcher_us,
    between,
    between_items_us,
    execution_ratios,
    gaps_between_batches,
    timer_lateness_us,
    waited_for_worker,
    way_to_slice_us,
    way_under_load,
)
from preba.figures import Figure
from preba.jitter import JitterConfig
from preba.preprocessing import CpuPreprocessing, DaliSlicePreprocessing, NoPreprocessing
from preba.preprocessing_costs import AudioCost, CpuCosts, ImageCost
from preba.profile import LatencyProfile, profile_from_dict
from preba.records import Records
from preba.scenario.live import EmulatedSlices
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Model, Overheads, Scenario
from runtime.load.run import Played
from runtime.placement import is_native, preprocessing_backend, worker_count
from runtime.profiling import this_machine
from sim.run import DEFAULT_ENGINE, Simulation, simulate

__all__ = ["Calibration", "calibrate"]

USUAL_PERCENT = 35.0
"""Of gaps of which up to a third may be lost wake-ups: the median of the others."""
SIZES_MIN = 4
"""Batch sizes seen often enough in a rehearsal for a line of its own."""
SELECTION_ROUNDS = 3
BEND_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Quantiles of inputs' sizes between which their costs are averaged."""


@dataclass(frozen=True)
class Calibration:
    """What was measured before the run: the scenario with it, and in sentences."""

    scenario: Scenario
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """The runs that a calibration reads, with profiles as long as executions take under the load.

    Attributes
    ----------
    resolved : ResolvedScenario
    profiles : tuple of LatencyProfile
    idle, rehearsed : Played
    busy : tuple of Played
    """

    resolved: ResolvedScenario
    profiles: tuple[LatencyProfile, ...]
    idle: Played
    rehearsed: Played
    busy: tuple[Played, ...]

    @cached_property
    def records(self) -> Records:
        """Of the rehearsal, served."""
        return self.rehearsed.result.records.select(self.rehearsed.result.records.served)

    @cached_property
    def alone(self) -> Records:
        """Of requests one at a time, served."""
        return self.idle.result.records.select(self.idle.result.records.served)

    @cached_property
    def native(self) -> bool:
        """Whether Triton batches for itself."""
        return is_native(self.resolved)

    @cached_property
    def closed(self) -> bool:
        """Whether clients wait for their answers."""
        return isinstance(self.resolved.scenario.models[0].arrivals, ClosedLoopArrivals)

    @cached_property
    def limit(self) -> int:
        """Largest batch."""
        return max(batch_limit(self.resolved, model) for model in self.resolved.models)

    @cached_property
    def triton(self) -> TritonBatcher | None:
        """Triton's dynamic batcher, where it is at work."""
        batcher = self.resolved.models[0].config.batcher
        return batcher if self.native and isinstance(batcher, TritonBatcher) and batcher.dynamic_batching else None


@dataclass(frozen=True)
class Prepared:
    """How preprocessing was found to be.

    Attributes
    ----------
    section : CpuPreprocessing or None
        To simulate; ``None``: the scenario's own.
    before_us : float64[k]
        From schedule to batcher without preprocessing, of requests that waited for no worker.
    held_us : float
        What a worker takes from one input to the next, which is part of its cost.
    spread : mapping of str to jitter config or None
        By modality.
    notes : tuple of str
    """

    section: CpuPreprocessing | None
    before_us: Array
    held_us: float
    spread: Mapping[str, JitterConfig | None]
    notes: tuple[str, ...]


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


def calibrate(
    resolved: ResolvedScenario,
    profiles: Sequence[LatencyProfile],
    idle: Played,
    rehearsed: Played,
    busy: Sequence[Played],
) -> Calibration:
    """Puts what was measured into the scenario: profiles, preprocessing costs, overheads.

    Parameters
    ----------
    resolved : ResolvedScenario
    profiles : sequence of LatencyProfile
        Per model.
    idle : Played
        One request at a time: nothing waits for another.
    rehearsed : Played
        The scenario with other draws: what the same load makes of overheads and of preprocessing on shared cores.
    busy : sequence of Played
        Slices always busy, with batches of several sizes.
    """
    ratios = [
        execution_ratios(resolved, profile, model.index, rehearsed)
        for profile, model in zip(profiles, resolved.models, strict=True)
    ]
    factors = [slowdown(each) for each in ratios]
    profiles = [slowed(profile, factor) for profile, factor in zip(profiles, factors, strict=True)]
    notes = [
        f"latency profile {profile.name}: {profile.provenance.source}; {profile.provenance.notes}"
        for profile in profiles
    ]
    notes += [
        f"executions of {profile.name} took {factor:.3f} of its measured times under the load of the rehearsal"
        for profile, factor in zip(profiles, factors, strict=True)
    ]
    seen = Seen(resolved, tuple(profiles), idle, rehearsed, tuple(busy))
    prepared = preprocessing_of(seen)
    gaps = gaps_of(seen)
    # Clients of a closed loop send when they have their answers, several at once: who joins whom tells nothing there.
    threads = told_wakeup(seen.triton)
    if threads is None and seen.native and not seen.closed:
        threads = wakeup(resolved, seen.records)
    overheads, said = overheads_of(seen, prepared, gaps, threads)
    changes: dict[str, Any] = {
        "server": resolved.scenario.server.model_copy(update={"overheads": overheads}),
        "models": models_of(seen, prepared, threads, ratios),
    }
    if prepared.section is not None:
        changes["preprocessing"] = prepared.section
    scenario = resolved.scenario.model_copy(update=changes)
    scenario, more = with_threads(seen, scenario, gaps, threads)
    return Calibration(scenario, (*notes, *prepared.notes, *said, *more))


def slowdown(ratios: Array) -> float:
    """How much longer batches take under the load than one at a time: slices that share cores or memory are slower."""
    return trimmed_mean(ratios) if len(ratios) >= ALONE_MIN else 1.0


def slowed(profile: LatencyProfile, factor: float) -> LatencyProfile:
    """The profile with every time multiplied."""

    def times(row: Mapping[int, float]) -> dict[int, float]:
        return {batch: round(value * factor, 5) for batch, value in row.items()}

    data = profile.model_dump(mode="json", exclude_defaults=True)
    if profile.table is not None:
        data["table"] = {name: times(row) for name, row in profile.table.items()}
    if profile.table_by_length_s is not None:
        data["table_by_length_s"] = {
            name: {length: times(row) for length, row in rows.items()}
            for name, rows in profile.table_by_length_s.items()
        }
    return profile_from_dict(data, origin="measured profile")


# -- preprocessing ---------------------------------------------------------------------------------------------------


def preprocessing_of(seen: Seen) -> Prepared:
    """What preprocessing costs in the server, where it is done in front of the batcher."""
    resolved, records = seen.resolved, seen.records
    before_us, free = before_batcher_us(records)
    backend = preprocessing_backend(resolved)
    if backend == "none" or isinstance(resolved.scenario.preprocessing, NoPreprocessing):
        return Prepared(None, before_us[free], 0.0, {}, ())
    if not (records.preprocess_end_ns > records.preprocess_start_ns).any():
        said = "preprocessing inside the slices is not measured apart: the scenario's own costs are simulated"
        return Prepared(None, before_us[free], 0.0, {}, (said,))
    held_us = between_items_us(records)
    found = {
        modality: cost
        for modality, sizes, unit in (
            ("image", records.jpeg_bytes / 1e5, "jpeg_bytes"),
            ("audio", records.audio_ns / 1e9, "audio_ns"),
        )
        if (cost := item_cost(seen, modality, sizes, getattr(records, unit) > 0, held_us)) is not None
    }
    for cost in found.values():
        before_us = before_us - cost.later_us
    rested_us = 0.0
    if found:
        counts = [int(cost.mine.sum()) for cost in found.values()]
        rested_us = float(np.average([cost.rested_us for cost in found.values()], weights=counts))
    sections = {modality: cost.section for modality, cost in found.items()}
    section = CpuPreprocessing(
        kind="cpu",
        cores=worker_count(resolved),
        usable_fraction=1.0,
        cost=CpuCosts(kind="cpu", name="measured-live", description="Measured by preba validate.", **sections),
        transfer_per_100kb_us=found["image"].transfer_us if "image" in found else 0.0,
        transfer_per_audio_s_us=found["audio"].transfer_us if "audio" in found else 0.0,
        rested_us=rested_us,
    )
    notes = [f"{modality} preprocessing ({backend}) in the server: {cost.text}" for modality, cost in found.items()]
    notes.append(
        f"a preprocessing worker with a line takes {held_us:.0f} us from one input to the next: part of its cost, "
        f"not of what comes before the batcher; after a rest it takes {rested_us:.0f} us longer"
    )
    spread = {modality: cost.spread for modality, cost in found.items()}
    return Prepared(section, before_us[free], held_us, spread, tuple(notes))


@dataclass(frozen=True)
class ItemCost:
    """What inputs of one modality cost a worker.

    Attributes
    ----------
    section : ImageCost or AudioCost
    mine : bool[n]
        Which requests.
    transfer_us : float
        How much later a larger input reaches a worker, per 100 kB or second.
    later_us : float64[n]
        That, per request.
    rested_us : float
        How much longer a worker takes that had nothing to do.
    spread : jitter config or None
    text : str
    """

    section: Any
    mine: Any
    transfer_us: float
    later_us: Array
    rested_us: float
    spread: JitterConfig | None
    text: str


def item_cost(seen: Seen, modality: str, sizes: Array, sized: Any, held_us: float) -> ItemCost | None:  # noqa: ANN401
    """A line through the costs of one modality's inputs, and what they deviate from it; ``None`` without any."""
    records = seen.records
    kinds = [model.index for model in seen.resolved.models if model.profile.modality == modality]
    mine = np.isin(records.model_index, kinds) & sized
    if mine.sum() < 2:
        return None
    took_us = (records.preprocess_end_ns - records.preprocess_start_ns)[mine] / 1e3
    before_us, free = before_batcher_us(records)
    later_us, transfer_us = np.zeros(len(records)), 0.0
    if (mine & free).sum() >= ALONE_MIN:
        transfer_us = max(line_through(sizes[mine & free], before_us[mine & free], relative=False).slope_us, 0.0)
        later_us[mine] = transfer_us * sizes[mine]
    line = line_through(sizes[mine], took_us, relative=False)
    residual_us = took_us - line.fixed_us - line.slope_us * sizes[mine]
    bends = bends_of(sizes[mine], residual_us)
    if bends:
        residual_us = residual_us - beyond_line_us(bends, sizes[mine])
    in_line, rested, rested_us = waited_for_worker(records)[0][mine], free[mine], 0.0
    if min(in_line.sum(), rested.sum()) >= ALONE_MIN:
        rested_us = max(steady_mean(residual_us[rested]) - steady_mean(residual_us[in_line]), 0.0)
    if not bends:
        rested_us = min(rested_us, (line.fixed_us + held_us) / max(float(rested.mean()), 1e-9))
    fixed_us = line.fixed_us - rested_us * float(rested.mean())
    residual_us = residual_us - rested_us * (rested - float(rested.mean()))
    text = f"line through {int(mine.sum())} requests; standard deviation from it {float(residual_us.std()):.0f} us"
    facts = {
        "kind": "measured",
        "source": f"preba validate: {len(records)} requests of a rehearsal through the live server",
        "where": this_machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "notes": text,
    }
    kind: type[ImageCost] | type[AudioCost] = ImageCost if modality == "image" else AudioCost
    slope, unit = ("per_100kb_us", "100 kB") if modality == "image" else ("per_audio_s_us", "second of audio")
    below_us = min(fixed_us + held_us, 0.0)  # of a cost that bends upwards; a fixed part is not negative
    bends = tuple((size, us + below_us) for size, us in bends)
    values = {"fixed_us": fixed_us + held_us - below_us, slope: line.slope_us}
    figures = {name: Figure.model_validate({"value": value, **facts}) for name, value in values.items()}
    section = kind.model_validate({**figures, "bends": bends})
    expected_us = np.maximum(took_us - residual_us + held_us, 1.0)
    said = f"{fixed_us + held_us:.0f} us and {line.slope_us:.0f} us per {unit}; {text}"
    spread = spread_of((took_us + held_us) / expected_us)
    return ItemCost(section, mine, transfer_us, later_us, rested_us, spread, said)


def bends_of(sizes: Array, residual_us: Array) -> tuple[tuple[float, float], ...]:
    """How far costs are from their line, by size; the mean over all is nought. Without enough inputs, a mere line."""
    edges = np.quantile(sizes, BEND_LEVELS)
    group = np.clip(np.searchsorted(edges, sizes, side="right") - 1, 0, len(edges) - 2)
    found = [(float(sizes[group == k].mean()), steady_mean(residual_us[group == k]))
             for k in range(len(edges) - 1) if (group == k).sum() >= ALONE_MIN]  # fmt: skip
    knots = [size for size, _ in found]
    if len(found) < 3 or any(after <= before for before, after in itertools.pairwise(knots)):
        return ()
    beyond_us = np.array([us for _, us in found])
    beyond_us += float((residual_us - np.interp(sizes, knots, beyond_us)).mean())
    return tuple((round(size, 6), round(float(us), 3)) for size, us in zip(knots, beyond_us, strict=True))


# -- slices ----------------------------------------------------------------------------------------------------------


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
    gaps = gaps_between_batches(resolved, profiles, [seen.rehearsed], IDLE_NS)
    usual = shifted(line, gaps, lambda values: float(np.percentile(values, USUAL_PERCENT)))
    bounded = any(policy.max_queue_size for policy in seen.triton.level_policies())
    race = Race(None, "") if bounded else lost_wakeups(resolved, seen.rehearsed.result.records, usual.of)
    if race.permille is None:  # lost wake-ups are in the means
        return Gaps(dispatch_us, usual, spread_of(relative(kept_busy, line)), race)
    return Gaps(dispatch_us, *turnaround(seen, kept_busy, line, race), race)


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
    waited_ns = 1000 * batcher.max_queue_delay_us + IDLE_NS
    found = gaps_between_batches(seen.resolved, seen.profiles, [seen.rehearsed], waited_ns)
    if race is not None and race.permille:
        kept = 1.0 - race.permille / 1e3
        found = {size: sorted(gaps)[: math.ceil(kept * len(gaps))] for size, gaps in found.items()}
    moved = line_by_size(found, steady_mean) if tells_line(found) else shifted(line, found, steady_mean)
    return moved, spread_of(relative(found, moved)) or spread_of(relative(kept_busy, line))


def unhurried(calibrated: ResolvedScenario, profiles: Sequence[LatencyProfile], rehearsed: Played) -> Overheads:
    """Overheads with the turnaround as it is, not as it is seen: a slice that is slow to return is overtaken by others.

    Gaps are seen where a batch waited for that very slice, which the quick ones get more often. A simulation of the
    rehearsal has the same bias and knows the truth: the turnaround is changed until what is seen of it is the same
    line.
    """
    overheads = calibrated.scenario.server.overheads
    line = Line(overheads.turnaround_us, overheads.turnaround_request_us, 0)
    batcher = calibrated.models[0].config.batcher
    waited_ns = IDLE_NS + (1000 * batcher.max_queue_delay_us if isinstance(batcher, TritonBatcher) else 0)
    trace = with_spread(calibrated, rehearsed.trace)
    longer = overheads
    for _ in range(SELECTION_ROUNDS):
        server = calibrated.scenario.server.model_copy(update={"overheads": longer})
        told = resolve(calibrated.scenario.model_copy(update={"server": server}), folder=calibrated.folder)
        run = as_played(simulate(told, engine=DEFAULT_ENGINE, trace=trace))
        gaps = gaps_between_batches(told, profiles, [run], waited_ns)
        ratios = relative(gaps, line)
        if len(ratios) < PAIRS_MIN:
            return overheads
        fixed_us, request_us = longer.turnaround_us, longer.turnaround_request_us
        if tells_line(gaps):
            seen = line_by_size(gaps, steady_mean)
            fixed_us += line.fixed_us - seen.fixed_us
            request_us += line.per_request_us - seen.per_request_us
        else:
            factor = float(np.mean(ratios))
            fixed_us, request_us = fixed_us / factor, request_us / factor
        longer = overheads.model_copy(
            update={"turnaround_us": max(fixed_us, 0.0), "turnaround_request_us": max(request_us, 0.0)}
        )
    return longer


def tells_line(gaps: Mapping[int, Sequence[float]]) -> bool:
    """Whether there are enough batches of enough sizes for a line of their own."""
    return sum(len(each) >= ALONE_MIN for each in gaps.values()) >= SIZES_MIN


def as_played(run: Simulation) -> Played:
    """A simulation in the place of a live run."""
    return Played(run.result, run.trace, {}, (), ())


# -- the scenario's sections -----------------------------------------------------------------------------------------


def overheads_of(seen: Seen, prepared: Prepared, gaps: Gaps, threads: Wakeup | None) -> tuple[Overheads, list[str]]:
    """The overheads section, and what is said of it."""
    answers = answers_after_batch(seen.resolved, seen.profiles, [seen.rehearsed], gaps.dispatch_us)
    if answers.line.values < PAIRS_MIN:
        answers = answers_after_batch(seen.resolved, seen.profiles, [seen.idle, seen.rehearsed], gaps.dispatch_us)
    front = native_ways_us(seen) if seen.native else prepared.before_us
    if not seen.native and len(front) < ALONE_MIN:
        front = before_batcher_us(seen.alone)[0]
    front_us, way_us = 0.0, None
    front_spread: JitterConfig | None = None
    if len(front):
        own = front - prepared.held_us  # this and the wake-up are simulated themselves
        own = own if threads is None else without_wakeup(own, threads)
        mean_us = steady_mean(own)
        if seen.native:
            way_us = way_under_load(
                seen.resolved, seen.idle, seen.rehearsed, threads.us if threads is not None else 0.0
            )
        front_us = max(mean_us if way_us is None else way_us, 0.0)
        front_spread = spread_of(own / max(mean_us, 1.0)) if front_us > 0 else None
    ingress_us = 0.0
    if prepared.section is not None:
        ingress_us = max(front_us - max(after_preprocessing_us(seen.records) - prepared.held_us, 0.0), 0.0)
    overheads = Overheads(
        ingress_us=ingress_us, frontend_us=front_us - ingress_us,
        timer_us=0.0 if seen.native else timer_lateness_us(seen.resolved, seen.records), dispatch_us=gaps.dispatch_us,
        turnaround_us=gaps.line.fixed_us, turnaround_request_us=gaps.line.per_request_us,
        response_us=answers.line.fixed_us, response_request_us=answers.line.per_request_us,
        response_next_us=answers.next_us,
        frontend_jitter=front_spread, turnaround_jitter=gaps.spread,
        response_jitter=answers.spread, response_next_jitter=answers.next_spread,
    )  # fmt: skip
    notes = [
        (
            f"between two batches of a busy slice, beyond the profile: {gaps.line.fixed_us:.0f} us and "
            f"{gaps.line.per_request_us:.0f} us a request ({gaps.line.values} pairs of batches, means by "
            f"size{_varies(gaps.spread)})"
        ),
        (
            f"from the end of a batch to its first answer: {answers.line.fixed_us:.0f} us and "
            f"{answers.line.per_request_us:.0f} us a request of the batch ({answers.line.values} batches of a "
            f"rehearsal, means by size{_varies(answers.spread)}); from each answer to the next {answers.next_us:.0f} us"
        ),
        (
            f"from the generator to the batcher, beyond preprocessing: {front_us:.0f} us "
            f"({len(front)} requests that met an idle slice or no line, mean{_varies(front_spread)})"
            + (f"; {ingress_us:.0f} us of them before it" if prepared.section is not None else "")
        ),
    ]
    if not seen.native:
        notes.append(
            f"from the batcher to the start of the execution on an idle slice: {gaps.dispatch_us:.0f} us; its timer "
            f"rings {overheads.timer_us:.0f} us late"
        )
    return overheads, notes


def native_ways_us(seen: Seen) -> Array:
    """From schedule to execution, where Triton batches: of requests that met an idle instance."""
    # In a closed loop requests come in bursts, while the slice that answered still turns round.
    front = head_waits_us(seen.resolved, seen.alone if seen.closed else seen.records, seen.limit)
    return front if len(front) >= ALONE_MIN else head_waits_us(seen.resolved, seen.alone, seen.limit)


def _varies(spread: JitterConfig | None) -> str:
    return "" if spread is None else f"; coefficient of variation {spread.factor_cv():.2f}"


def models_of(seen: Seen, prepared: Prepared, threads: Wakeup | None, ratios: Sequence[Array]) -> tuple[Model, ...]:
    """The models with measured profiles, and with the spreads that they do not have of their own."""
    scenario = seen.resolved.scenario
    found: list[Model] = []
    for model, profile, ratio in zip(scenario.models, seen.profiles, ratios, strict=True):
        fields: dict[str, Any] = {"execution_profile": profile}
        if threads is not None:
            fields["batcher"] = with_wakeup(model.batcher, threads)
        if prepared.section is not None and isinstance(scenario.preprocessing, DaliSlicePreprocessing):
            indices = seen.resolved.models[len(found)].slice_indices
            fields["slices"] = tuple(indices)  # those of preprocessing stay free
        if model.execution_jitter is None and not isinstance(scenario.live.slices, EmulatedSlices):
            fields["execution_jitter"] = spread_of(ratio)  # emulated slices take the time they are told
        if model.preprocess_jitter is None:
            fields["preprocess_jitter"] = prepared.spread.get(profile.modality)
        found.append(model.model_copy(update=fields))
    return tuple(found)


def with_threads(seen: Seen, calibrated: Scenario, gaps: Gaps, threads: Wakeup | None) -> tuple[Scenario, list[str]]:
    """The scenario with Triton's threads as they were found to behave, and what is said of them."""
    triton, notes = seen.triton, list[str]()
    if triton is None:
        return calibrated, notes
    folder = seen.resolved.folder
    if triton.prefetching and len(seen.resolved.models[0].slice_indices) > 1:
        longer = unhurried(resolve(calibrated, folder=folder), seen.profiles, seen.rehearsed)
        if longer != calibrated.server.overheads:
            notes.append(
                f"slices that are slow to return are overtaken by others: the turnaround is {longer.turnaround_us:.0f} "
                f"us and {longer.turnaround_request_us:.0f} us a request where {gaps.line.fixed_us:.0f} and "
                f"{gaps.line.per_request_us:.0f} us are seen"
            )
            server = calibrated.server.model_copy(update={"overheads": longer})
            calibrated = calibrated.model_copy(update={"server": server})
    if seen.limit < 2:
        return calibrated, notes
    if threads is None:
        threads = wakeup_by_ones(resolve(calibrated, folder=folder), seen.rehearsed.trace, seen.records)
        calibrated = taking(calibrated, threads.us)
    notes.append(threads.text)
    race, rehearsed = gaps.race, seen.rehearsed
    if triton.prefetching and triton.max_queue_delay_us > 0:
        known = resolve(calibrated, folder=folder)
        race = overtakings(known, rehearsed.trace, rehearsed.result.records, seen.limit)
    if race is not None and race.permille is None and not triton.prefetching:

        def gaps_us(run: Simulation) -> list[float]:
            return between(seen.resolved, seen.profiles, as_played(run))

        seen_us = between(seen.resolved, seen.profiles, rehearsed)
        race = wakeups_by_gaps(resolve(calibrated, folder=folder), rehearsed.trace, seen_us, gaps_us)
    if race is not None:
        notes.append(race.text)
        model = calibrated.models[0]
        model = model.model_copy(update={"batcher": with_race(model.batcher, race)})
        calibrated = calibrated.model_copy(update={"models": (model,)})
    return calibrated, notes
