"""What ``preba validate`` measures before the run it compares, in runs of their own, and puts into the scenario."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from accel.measure import line_through
from preba.arrival_kinds import ClosedLoopArrivals
from preba.batching.triton_config import TritonBatcher
from preba.cli.rehearsing import batch_limit
from preba.cli.triton_threads import (
    IDLE_NS,
    Race,
    Wakeup,
    delay_ns,
    head_waits_us,
    lost_wakeups,
    overtakings,
    wakeup,
    wakeups_by_gaps,
    with_race,
    with_spread,
    with_wakeup,
)
from preba.figures import Figure
from preba.jitter import EmpiricalJitter, JitterConfig
from preba.preprocessing import CpuPreprocessing, DaliSlicePreprocessing, NoPreprocessing
from preba.preprocessing_costs import AudioCost, CpuCosts, ImageCost
from preba.profile import LatencyProfile, profile_from_dict
from preba.records import Records
from preba.scenario.live import EmulatedSlices
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Model, Overheads, Scenario
from preba.serving import plan_servers
from runtime.load.run import Played
from runtime.placement import is_native, preprocessing_backend, worker_count
from runtime.profiling import this_machine
from sim.run import DEFAULT_ENGINE, Simulation, simulate

__all__ = ["Calibration", "calibrate"]

Array = NDArray[np.float64]

GAPS_MIN = 10
STALL = 10.0
"""Values further above the median than so many times the way to the 90th percentile are stalls of the machine."""
GAP_CUT = 0.05
USUAL_PERCENT = 35.0
"""Of gaps of which up to a third may be lost wake-ups: the median of the others."""
ALONE_MIN = 30
SPREAD_MIN = 60
SELECTION_ROUNDS = 3
QUANTILES = 100
PAIRS_MIN = 100
TIMER_NS = 1_000_000
"""A batch that left so much after it was due was kept by something else than its timer."""


@dataclass(frozen=True)
class Calibration:
    """What was measured before the run: the scenario with it, and in sentences."""

    scenario: Scenario
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """A time that grows with the requests of a batch, ``fixed_us + per_request_us * batch``, from so many values."""

    fixed_us: float
    per_request_us: float
    values: int

    def of(self, batch: int) -> int:
        """The time for one batch, in nanoseconds."""
        return round(1e3 * (self.fixed_us + self.per_request_us * batch))


def without_stalls(values: Sequence[float] | Array) -> Array:
    """The values without those that a machine that stood still for a moment adds."""
    found = np.asarray(values, dtype=np.float64)
    middle, high = np.percentile(found, [50, 90])
    kept: Array = found[found <= middle + STALL * (high - middle)]
    return kept


def steady_mean(values: Sequence[float] | Array) -> float:
    """The mean without stalls of the machine."""
    return float(without_stalls(values).mean())


def trimmed_mean(values: Sequence[float] | Array) -> float:
    """The mean without the outer twentieths."""
    return float(trim_mean(values, GAP_CUT))


def line_by_size(found: dict[int, list[float]], mean: Callable[[list[float]], float] = steady_mean) -> Line:
    """A line through the means of each batch size, in microseconds."""
    enough = {size: values for size, values in found.items() if len(values) >= GAPS_MIN}
    if not enough:
        return Line(0.0, 0.0, 0)
    count = sum(len(values) for values in enough.values())
    sizes, means = np.array(list(enough)), np.array([mean(values) for values in enough.values()])
    if len(enough) == 1:
        return Line(max(float(means[0]), 0.0), 0.0, count)
    weights = np.sqrt([len(values) for values in enough.values()])
    slope, fixed = (float(value) for value in np.polyfit(sizes, means, 1, w=weights))
    if slope < 0:
        slope, fixed = 0.0, float(np.average(means, weights=weights**2))
    elif fixed < 0:
        heavy = weights**2
        slope, fixed = float(np.average(means * sizes, weights=heavy) / np.average(sizes**2, weights=heavy)), 0.0
    return Line(max(fixed, 0.0), max(slope, 0.0), count)


def spread_of(factors: Sequence[float] | Array) -> JitterConfig | None:
    """How values vary about what is expected of them: their quantiles, without moments when the machine stood still.

    Parameters
    ----------
    factors : float64[n]
        Each value divided by the expected one.
    """
    found = np.maximum(np.asarray(factors, dtype=np.float64), 0.0)
    if len(found) < SPREAD_MIN:
        return None
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    quantiles = np.quantile(without_stalls(found), levels)
    if quantiles.max() <= 0:
        return None
    return EmpiricalJitter(kind="empirical", factors=tuple(round(float(value), 4) for value in quantiles))


def execution_ratios(resolved: ResolvedScenario, profile: LatencyProfile, model: int, rehearsed: Played) -> Array:
    """How long each batch of a model took, divided by what the profile says of it."""
    records = rehearsed.result.records
    records = records.select(records.served & (records.model_index == model))
    rows = np.unique(records.batch_id, return_index=True)[1]
    took_ns = records.execution_end_ns - records.execution_start_ns
    expected_ns = _expected_ns(resolved, [profile] * len(resolved.models), records)
    ratios: Array = (took_ns / np.maximum(expected_ns, 1))[rows]
    return ratios


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


def gaps_between_batches(
    resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], runs: Sequence[Played], waited_ns: int = 0
) -> dict[int, list[float]]:
    """What slices took from one batch to the next beyond its profile, in microseconds by the size of the first.

    Only where requests had waited for the slice, longer than `waited_ns` at the end of the first batch.
    """
    found: dict[int, list[float]] = {}
    for played in runs:
        records = played.result.records.select(played.result.records.served)
        numbers, rows, place = np.unique(records.batch_id, return_index=True, return_inverse=True)
        oldest_ns = np.full(len(numbers), np.iinfo(np.int64).max)
        np.minimum.at(oldest_ns, place, records.enqueued_ns)
        expected_ns = _expected_ns(resolved, profiles, records)
        for slice_index in np.unique(records.slice_index[rows]):
            mine = np.flatnonzero(records.slice_index[rows] == slice_index)
            mine = mine[np.argsort(records.execution_start_ns[rows[mine]], kind="stable")]
            for first, after in itertools.pairwise(mine[2:-1]):
                row = int(rows[first])
                if oldest_ns[after] + waited_ns > records.execution_end_ns[row]:
                    continue  # the slice had nothing to do
                between_ns = int(records.execution_start_ns[rows[after]] - records.execution_start_ns[row])
                found.setdefault(int(records.batch_size[row]), []).append((between_ns - int(expected_ns[row])) / 1e3)
    return found


def between(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], played: Played) -> list[float]:
    """What slices took from one batch to the next although requests waited, in microseconds."""
    found = gaps_between_batches(resolved, profiles, [played], IDLE_NS)
    return [gap for gaps in found.values() for gap in gaps]


def turnaround(
    resolved: ResolvedScenario,
    profiles: Sequence[LatencyProfile],
    rehearsed: Played,
    busy: dict[int, list[float]],
    race: Race | None,
) -> tuple[Line, JitterConfig | None]:
    """The line of slices kept busy, and how gaps vary about it; where Triton batches, moved to those of the rehearsal.

    Gaps of lost wake-ups, the longest ones, are left out there: they are modelled themselves.
    """
    line = line_by_size(busy, trimmed_mean)
    batcher = resolved.models[0].config.batcher
    if not is_native(resolved) or not isinstance(batcher, TritonBatcher):
        return line, spread_of(relative(busy, line))
    waited_ns = 1000 * batcher.max_queue_delay_us + IDLE_NS
    found = gaps_between_batches(resolved, profiles, [rehearsed], waited_ns)
    if race is not None and race.permille:
        kept = 1.0 - race.permille / 1e3
        found = {size: sorted(gaps)[: math.ceil(kept * len(gaps))] for size, gaps in found.items()}
    moved = shifted(line, found, steady_mean)
    return moved, spread_of(relative(found, moved)) or spread_of(relative(busy, line))


def unhurried(calibrated: ResolvedScenario, profiles: Sequence[LatencyProfile], rehearsed: Played) -> Overheads:
    """Overheads with the turnaround as it is, not as it is seen: a slice that is slow to return is overtaken by others.

    Gaps are seen where a batch waited for that very slice, which the quick ones get more often. A simulation of the
    rehearsal has the same bias and knows the truth: the turnaround is lengthened until what is seen of it is as long.
    """
    overheads = calibrated.scenario.server.overheads
    line = Line(overheads.turnaround_us, overheads.turnaround_request_us, 0)
    batcher = calibrated.models[0].config.batcher
    waited_ns = IDLE_NS + (1000 * batcher.max_queue_delay_us if isinstance(batcher, TritonBatcher) else 0)
    trace = with_spread(calibrated, rehearsed.trace)
    longer, factor = overheads, 1.0
    for _ in range(SELECTION_ROUNDS):
        server = calibrated.scenario.server.model_copy(update={"overheads": longer})
        told = resolve(calibrated.scenario.model_copy(update={"server": server}), folder=calibrated.folder)
        run = as_played(simulate(told, engine=DEFAULT_ENGINE, trace=trace))
        ratios = relative(gaps_between_batches(told, profiles, [run], waited_ns), line)
        if len(ratios) < PAIRS_MIN:
            return overheads
        factor /= float(np.mean(ratios))
        longer = overheads.model_copy(
            update={"turnaround_us": factor * line.fixed_us, "turnaround_request_us": factor * line.per_request_us}
        )
    return longer


def as_played(run: Simulation) -> Played:
    """A simulation in the place of a live run."""
    return Played(run.result, run.trace, {}, (), ())


def relative(found: Mapping[int, Sequence[float]], line: Line) -> list[float]:
    """Values by batch size, each divided by what the line says of it."""
    return [1e3 * value / max(line.of(size), 1) for size, values in found.items() for value in values]


def shifted(
    line: Line, found: Mapping[int, Sequence[float]], mean: Callable[[list[float]], float] = trimmed_mean
) -> Line:
    """The line moved to the mean of other values, if there are enough."""
    values = [gap - line.per_request_us * size for size, gaps in found.items() for gap in gaps]
    if len(values) < PAIRS_MIN:
        return line
    return Line(max(mean(values), 0.0), line.per_request_us, len(values))


def ways_to_slice_us(records: Records) -> Array:
    """From the batcher to the start of the execution, of each batch whose slice had nothing else to do."""
    found = []
    rows = np.unique(records.batch_id, return_index=True)[1]
    for index in np.unique(records.slice_index[rows]):
        own = rows[records.slice_index[rows] == index]
        own = own[np.argsort(records.execution_start_ns[own], kind="stable")]
        before_ns = np.concatenate([[0], records.execution_end_ns[own][:-1] + IDLE_NS])
        idle = before_ns < records.dispatched_ns[own]
        found.append((records.execution_start_ns - records.dispatched_ns)[own[idle]] / 1e3)
    return np.concatenate(found) if found else np.empty(0)


def answers_after_batch(
    resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], runs: Sequence[Played], dispatch_us: float
) -> tuple[Line, JitterConfig | None]:
    """How long after the end of its batch an answer is with the client, and how that varies.

    What the way to the slice differs from its mean is part of it.
    """
    found: dict[int, list[float]] = {}
    native = is_native(resolved)
    for played in runs:
        records = played.result.records.select(played.result.records.served)
        begin_ns = records.execution_start_ns if native else records.dispatched_ns
        after_us = (records.completed_ns - begin_ns - _expected_ns(resolved, profiles, records)) / 1e3 - dispatch_us
        for size in np.unique(records.batch_size):
            found.setdefault(int(size), []).extend(after_us[records.batch_size == size].tolist())
    line = line_by_size(found)
    return line, spread_of(relative(found, line))


def _expected_ns(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], records: Records) -> NDArray[np.int64]:
    """What the profiles say of the batches that requests were in, for each request."""
    rows, place = np.unique(records.batch_id, return_index=True, return_inverse=True)[1:]
    longest_ns = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(longest_ns, place, records.audio_ns)
    expected_ns = np.empty(len(rows), dtype=np.int64)
    for batch, row in enumerate(rows):
        model = resolved.models[int(records.model_index[row])]
        length_ns = int(longest_ns[batch]) if model.profile.modality == "audio" else None
        kind = resolved.slices[int(records.slice_index[row])].profile
        units = max(int(records.batch_units[row]), 1)
        expected_ns[batch] = profiles[model.index].latency_ns(kind, units, length_ns)
    return expected_ns[place]


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
    scenario = resolved.scenario
    ratios = [
        execution_ratios(resolved, profile, model.index, rehearsed)
        for profile, model in zip(profiles, resolved.models, strict=True)
    ]
    factors = [slowdown(each) for each in ratios]
    profiles = [slowed(profile, factor) for profile, factor in zip(profiles, factors, strict=True)]
    alone = idle.result.records.select(idle.result.records.served)
    records = rehearsed.result.records.select(rehearsed.result.records.served)
    facts = {
        "kind": "measured",
        "source": f"preba validate: {len(records)} requests of a rehearsal through the live server",
        "where": this_machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
    }
    notes = [
        f"latency profile {profile.name}: {profile.provenance.source}; {profile.provenance.notes}"
        for profile in profiles
    ]
    notes += [
        f"executions of {profile.name} took {factor:.3f} of its measured times under the load of the rehearsal"
        for profile, factor in zip(profiles, factors, strict=True)
    ]
    changes: dict[str, Any] = {}
    held_us, spread, front = 0.0, dict[str, JitterConfig | None](), before_batcher_us(records)[0]
    backend = preprocessing_backend(resolved)
    worked = bool((records.preprocess_end_ns > records.preprocess_start_ns).any())
    if backend != "none" and not isinstance(scenario.preprocessing, NoPreprocessing) and not worked:
        notes.append("preprocessing inside the slices is not measured apart: the scenario's own costs are simulated")
    if backend != "none" and not isinstance(scenario.preprocessing, NoPreprocessing) and worked:
        held_us = between_items_us(records)
        costs, transfers, rested_us, spread, front = _preprocessing_costs(resolved, records, facts, held_us)
        changes["preprocessing"] = CpuPreprocessing(
            kind="cpu",
            cores=worker_count(resolved),
            usable_fraction=1.0,
            cost=costs,
            transfer_per_100kb_us=transfers.get("image", 0.0),
            transfer_per_audio_s_us=transfers.get("audio", 0.0),
            rested_us=rested_us,
        )
        for modality, section in (("image", costs.image), ("audio", costs.audio)):
            if section is not None:
                slope = section.per_100kb_us if isinstance(section, ImageCost) else section.per_audio_s_us
                unit = "100 kB" if modality == "image" else "second of audio"
                notes.append(
                    f"{modality} preprocessing ({backend}) in the server: {section.fixed_us.value:.0f} us and "
                    f"{slope.value:.0f} us per {unit}; {section.fixed_us.notes}"
                )
        notes.append(
            f"a preprocessing worker with a line takes {held_us:.0f} us from one input to the next: part of its cost, "
            f"not of what comes before the batcher; after a rest it takes {rested_us:.0f} us longer"
        )
    batcher = resolved.models[0].config.batcher
    limit = max(batch_limit(resolved, model) for model in resolved.models)
    native = is_native(resolved)
    triton = batcher if native and isinstance(batcher, TritonBatcher) and batcher.dynamic_batching else None
    # Triton's own batcher does not say when it hands out a batch: there the way is part of what comes before.
    dispatch_us = 0.0 if native else way_to_slice_us(records, alone)
    kept_busy = {
        size: [gap - dispatch_us for gap in gaps]
        for size, gaps in gaps_between_batches(resolved, profiles, busy).items()
    }
    race: Race | None = None
    if triton is not None and limit > 1 and not triton.prefetching:
        seen = gaps_between_batches(resolved, profiles, [rehearsed], IDLE_NS)
        line = line_by_size(kept_busy, trimmed_mean)
        usual = shifted(line, seen, lambda values: float(np.percentile(values, USUAL_PERCENT)))
        race = lost_wakeups(resolved, rehearsed.result.records, usual.of)
    gap, gap_spread = turnaround(resolved, profiles, rehearsed, kept_busy, race)
    if race is not None and race.permille is None:
        gap, gap_spread = usual, spread_of(relative(kept_busy, line))  # lost wake-ups are in the means
    answers, answer_spread = answers_after_batch(resolved, profiles, [rehearsed], dispatch_us)
    if answers.values < PAIRS_MIN:
        answers, answer_spread = answers_after_batch(resolved, profiles, [idle, rehearsed], dispatch_us)
    threads = wakeup(resolved, records) if native else Wakeup(0.0, 0)
    front_spread: JitterConfig | None = None
    if native:
        # In a closed loop requests come in bursts, while the slice that answered still turns round.
        loop = isinstance(scenario.models[0].arrivals, ClosedLoopArrivals)
        front = head_waits_us(resolved, alone if loop else records, limit)
        if len(front) < ALONE_MIN:
            front = head_waits_us(resolved, alone, limit)
        if len(front):
            middle_us = max(steady_mean(front) - threads.us, 1.0)
            front_spread = spread_of((front - threads.us) / middle_us)
            way_us = way_under_load(resolved, idle, rehearsed)
            if way_us is not None:
                front = front + (way_us - float(steady_mean(front)))
    elif len(front) < ALONE_MIN:
        front = before_batcher_us(alone)[0]
    front_us = max(steady_mean(front) - threads.us - held_us, 0.0) if len(front) else 0.0
    if not native and front_us > 0:
        front_spread = spread_of((front - held_us) / front_us)
    ingress_us = 0.0
    if worked:
        ingress_us = max(front_us - max(after_preprocessing_us(records) - held_us, 0.0), 0.0)
    timer_us = 0.0 if native else timer_lateness_us(resolved, records)
    overheads = Overheads(
        ingress_us=ingress_us, frontend_us=front_us - ingress_us, timer_us=timer_us, dispatch_us=dispatch_us,
        turnaround_us=gap.fixed_us, turnaround_request_us=gap.per_request_us,
        response_us=answers.fixed_us, response_request_us=answers.per_request_us,
        frontend_jitter=front_spread, turnaround_jitter=gap_spread, response_jitter=answer_spread,
    )  # fmt: skip
    notes += [
        (
            f"between two batches of a busy slice, beyond the profile: {gap.fixed_us:.0f} us and "
            f"{gap.per_request_us:.0f} us a request ({gap.values} pairs of batches, means by size{_varies(gap_spread)})"
        ),
        (
            f"from the end of a batch to the client: {answers.fixed_us:.0f} us and {answers.per_request_us:.0f} us a "
            f"request of the batch ({answers.values} answers of a rehearsal, means by size{_varies(answer_spread)})"
        ),
        (
            f"from the generator to the batcher, beyond preprocessing: {front_us:.0f} us "
            f"({len(front)} requests that met an idle slice or no line, mean{_varies(front_spread)})"
            + (f"; {ingress_us:.0f} us of them before it" if worked else "")
        ),
    ]
    if not native:
        notes.append(
            f"from the batcher to the start of the execution on an idle slice: {dispatch_us:.0f} us; its timer rings "
            f"{timer_us:.0f} us late"
        )
    changes["server"] = scenario.server.model_copy(update={"overheads": overheads})
    models: list[Model] = []
    for model, profile in zip(scenario.models, profiles, strict=True):
        fields: dict[str, Any] = {"execution_profile": profile, "batcher": with_wakeup(model.batcher, threads)}
        if "preprocessing" in changes and isinstance(scenario.preprocessing, DaliSlicePreprocessing):
            fields["slices"] = tuple(resolved.models[len(models)].slice_indices)  # those of preprocessing stay free
        if model.execution_jitter is None and not isinstance(scenario.live.slices, EmulatedSlices):
            fields["execution_jitter"] = spread_of(ratios[len(models)])  # emulated slices take the time they are told
        if model.preprocess_jitter is None:
            fields["preprocess_jitter"] = spread.get(profile.modality)
        models.append(model.model_copy(update=fields))
    changes["models"] = tuple(models)
    calibrated = scenario.model_copy(update=changes)
    if triton is not None and triton.prefetching and len(resolved.models[0].slice_indices) > 1:
        longer = unhurried(resolve(calibrated, folder=resolved.folder), profiles, rehearsed)
        if longer.turnaround_us > gap.fixed_us:
            notes.append(
                f"slices that are slow to return are overtaken by others: the turnaround is {longer.turnaround_us:.0f} "
                f"us and {longer.turnaround_request_us:.0f} us a request where {gap.fixed_us:.0f} and "
                f"{gap.per_request_us:.0f} us are seen"
            )
            server = scenario.server.model_copy(update={"overheads": longer})
            calibrated = calibrated.model_copy(update={"server": server})
    if triton is not None and limit > 1:
        notes.append(threads.text())
        if triton.prefetching and triton.max_queue_delay_us > 0:
            known = resolve(calibrated, folder=resolved.folder)
            race = overtakings(known, rehearsed.trace, rehearsed.result.records, limit)
        if race is not None and race.permille is None and not triton.prefetching:
            race = wakeups_by_gaps(
                resolve(calibrated, folder=resolved.folder), rehearsed.trace, between(resolved, profiles, rehearsed),
                lambda run: between(resolved, profiles, as_played(run)),
            )  # fmt: skip
        if race is not None:
            notes.append(race.text)
            model = calibrated.models[0]
            model = model.model_copy(update={"batcher": with_race(model.batcher, race)})
            calibrated = calibrated.model_copy(update={"models": (model,)})
    return Calibration(calibrated, tuple(notes))


def _varies(spread: JitterConfig | None) -> str:
    return "" if spread is None else f"; coefficient of variation {spread.factor_cv():.2f}"


def way_under_load(resolved: ResolvedScenario, idle: Played, rehearsed: Played) -> float | None:
    """The ways to the server's queue and from it to the slice under the load, in microseconds, the mean.

    What passes from schedule to execution, without the time that the server's statistics count as waiting in its queue
    but for what a lone request waits there too, beyond the batcher's delay; ``None`` where the server counts nothing.
    Of several servers only the first is asked, so that its slice's requests are what is compared.
    """
    records = rehearsed.result.records.select(rehearsed.result.records.served)
    if resolved.scenario.server.topology == "per_slice":
        records = records.select(records.slice_index == resolved.models[0].slice_indices[0])
    batcher = resolved.models[0].config.batcher
    if rehearsed.queue_us is None or idle.queue_us is None or len(records) == 0:
        return None
    alone_us = idle.queue_us - (delay_ns(batcher) / 1e3 if isinstance(batcher, TritonBatcher) else 0.0)
    way_us = float((records.execution_start_ns - records.scheduled_ns).mean()) / 1e3 - rehearsed.queue_us
    return way_us + max(alone_us, 0.0)


def way_to_slice_us(records: Records, alone: Records) -> float:
    """The mean way from the batcher to an idle slice: under the load, or else of requests one at a time."""
    ways = ways_to_slice_us(records)
    if len(ways) < ALONE_MIN:
        ways = ways_to_slice_us(alone)
    return steady_mean(ways) if len(ways) else 0.0


def after_preprocessing_us(records: Records) -> float:
    """From the end of an input's preprocessing to its batcher, the mean."""
    worked = records.preprocess_end_ns > records.preprocess_start_ns
    return steady_mean((records.enqueued_ns - records.preprocess_end_ns)[worked] / 1e3)


def between_items_us(records: Records) -> float:
    """What a preprocessing worker takes from one input to the next while others wait for it."""
    waited, ended_ns = waited_for_worker(records)
    gaps = (records.preprocess_start_ns - ended_ns)[waited] / 1e3
    return steady_mean(gaps) if len(gaps) >= ALONE_MIN else 0.0


def waited_for_worker(records: Records) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which requests were there for a while when their worker ended its input before, and when that was."""
    worked = records.preprocess_end_ns > records.preprocess_start_ns
    ends = np.sort(records.preprocess_end_ns[worked])
    if len(ends) == 0:
        return worked, records.preprocess_end_ns
    before = np.searchsorted(ends, records.preprocess_start_ns, side="right") - 1
    ended_ns = ends[np.maximum(before, 0)]
    return worked & (before >= 0) & (records.issued_ns < ended_ns - IDLE_NS), ended_ns


def timer_lateness_us(resolved: ResolvedScenario, records: Records) -> float:
    """How long after its delay the oldest request of a batch left that nothing else kept; the mean."""
    found: list[Array] = []
    for model in resolved.models:
        mine = records.select(records.model_index == model.index)
        plan = plan_servers(resolved, model, int(mine.audio_ns.max(initial=0)))[0].plan
        order = np.lexsort((mine.enqueued_ns, mine.batch_id))
        oldest = mine.select(order[np.unique(mine.batch_id[order], return_index=True)[1]])
        delay_ns = np.array(plan.bucket_delay_ns, dtype=np.int64)[plan.bucket_of(oldest.audio_ns)]
        late_ns = oldest.dispatched_ns - oldest.enqueued_ns - delay_ns
        found.append(late_ns[(late_ns >= 0) & (late_ns < TIMER_NS) & (delay_ns > 0)] / 1e3)
    late_us = np.concatenate(found)
    return steady_mean(late_us) if len(late_us) >= ALONE_MIN else 0.0


def _preprocessing_costs(
    resolved: ResolvedScenario, records: Records, facts: dict[str, str], held_us: float
) -> tuple[CpuCosts, dict[str, float], float, dict[str, JitterConfig | None], Array]:
    """What inputs cost, how much later larger ones reach a worker, what a rest costs, how costs vary, and the way.

    The first are lines by their size and slopes by modality. A worker is also held from one input to the next.
    """
    waited = waited_for_worker(records)[0]
    rested: list[tuple[int, float]] = []
    took_us = (records.preprocess_end_ns - records.preprocess_start_ns) / 1e3
    sections: dict[str, Any] = {}
    transfers: dict[str, float] = {}
    spread: dict[str, JitterConfig | None] = {}
    before_us, free = before_batcher_us(records)
    way_us = np.zeros(len(records))
    for modality, sizes, unit, names, kind in (
        ("image", records.jpeg_bytes / 1e5, "jpeg_bytes", ("fixed_us", "per_100kb_us"), ImageCost),
        ("audio", records.audio_ns / 1e9, "audio_ns", ("fixed_us", "per_audio_s_us"), AudioCost),
    ):
        mine = np.isin(
            records.model_index, [model.index for model in resolved.models if model.profile.modality == modality]
        ) & (getattr(records, unit) > 0)
        if mine.sum() < 2:
            continue
        line = line_through(sizes[mine], took_us[mine], relative=False)
        way_us[mine] = 0.0
        if (mine & free).sum() >= ALONE_MIN:
            way_us[mine] = max(line_through(sizes[mine & free], before_us[mine & free], relative=False).slope_us, 0.0)
        per_unit_us = float(way_us[mine][0])
        way_us[mine] *= sizes[mine]
        residual = took_us[mine] - line.fixed_us - line.slope_us * sizes[mine]
        fixed_us, rest_us = line.fixed_us, 0.0
        if min((waited & mine).sum(), (free & mine).sum()) >= ALONE_MIN:
            in_line_us, alone_us = steady_mean(residual[waited[mine]]), steady_mean(residual[free[mine]])
            rest_us = max(alone_us - in_line_us, 0.0)
            fixed_us -= rest_us * float(free[mine].mean())
            residual -= np.where(free[mine], rest_us, 0.0) - rest_us * float(free[mine].mean())
        rested.append((int(mine.sum()), rest_us))
        text = f"line through {int(mine.sum())} requests; standard deviation from it {float(residual.std()):.0f} us"
        expected_us = np.maximum(took_us[mine] - residual + held_us, 1.0)
        spread[modality] = spread_of((took_us[mine] + held_us) / expected_us)
        transfers[modality] = per_unit_us
        values = zip(names, (fixed_us + held_us, line.slope_us), strict=True)
        sections[modality] = kind(
            **{name: Figure.model_validate({"value": value, "notes": text, **facts}) for name, value in values}
        )
    return (
        CpuCosts(kind="cpu", name="measured-live", description="Measured by preba validate.", **sections),
        transfers,
        float(np.average([us for _, us in rested], weights=[count for count, _ in rested])) if rested else 0.0,
        spread,
        (before_us - way_us)[free],
    )


def before_batcher_us(records: Records) -> tuple[Array, NDArray[np.bool_]]:
    """What passes from schedule to batcher beyond preprocessing, and for which requests no worker was waited for."""
    work_ns = records.preprocess_end_ns - records.preprocess_start_ns
    before_us: Array = (records.enqueued_ns - records.scheduled_ns - work_ns) / 1e3
    order = np.argsort(records.issued_ns, kind="stable")
    ended_ns = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(records.preprocess_end_ns[order])[:-1]])
    free = np.empty(len(records), dtype=np.bool_)
    free[order] = ended_ns < records.issued_ns[order]
    return before_us, free | (work_ns == 0)
