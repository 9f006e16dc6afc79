"""What ``preba validate`` measures in runs of their own and puts into the scenario: overheads, costs, threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preba.cli.closing import with_way
from preba.cli.item_costs import Prepared, preprocessing_of
from preba.cli.lines import PAIRS_MIN, Array, Line, spread_of, steady_mean
from preba.cli.races import late_return, overtakings, returning_late, told_late
from preba.cli.seen import Seen
from preba.cli.slow_times import slow_times, slowness_note, with_preprocessing, with_share, with_slowness
from preba.cli.triton_threads import (
    Wakeup,
    head_waits_us,
    last_waits_us,
    racing,
    taking,
    told_wakeup,
    wakeup,
    wakeup_by_ones,
    wakeups_by_gaps,
    with_overheads,
    with_wakeup,
    without_wakeup,
)
from preba.cli.turnarounds import Gaps, as_played, gap_factors, gaps_of, unbiased
from preba.cli.ways import (
    ALONE_MIN,
    after_preprocessing_us,
    answers_after_batch,
    before_batcher_us,
    between,
    execution_ratios,
    timer_lateness_us,
    way_under_load,
)
from preba.jitter import JitterConfig
from preba.preprocessing import DaliSlicePreprocessing
from preba.profile import LatencyProfile, profile_from_dict
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Model, Overheads, Scenario
from preba.units import ns_from_us
from runtime.load.run import Played
from sim.run import Simulation

__all__ = ["Calibration", "calibrate"]

RETURN_ROUNDS = 2


@dataclass(frozen=True)
class Calibration:
    """What was measured: the scenario with it, and in sentences."""

    scenario: Scenario
    notes: tuple[str, ...]


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
        The scenario with other draws: what the same load makes of overheads and of preprocessing on shared cores. For
        what is known in hindsight, the compared run.
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
    told = any(model.preprocess_jitter is not None for model in resolved.scenario.models)
    slowness = slow_times(seen.records, () if told else prepared.items) if seen.open else None
    if told and prepared.items:
        notes.append("a model has its own preprocess_jitter: times of slow preprocessing are not measured")
    spread, slowness = with_preprocessing(prepared.spread, slowness)
    prepared = replace(prepared, spread=spread)
    if slowness is not None:
        slowness = with_share(slowness, seen.records, "turnaround", gap_factors(seen))
    overheads = with_slowness(overheads, slowness)
    changes: dict[str, Any] = {
        "server": resolved.scenario.server.model_copy(update={"overheads": overheads}),
        "models": models_of(seen, prepared, threads, ratios),
    }
    if prepared.section is not None:
        changes["preprocessing"] = prepared.section
    scenario = resolved.scenario.model_copy(update=changes)
    scenario, more = with_threads(seen, scenario, gaps, threads)
    return Calibration(scenario, (*notes, *prepared.notes, *said, *slowness_note(overheads.slowness), *more))


def slowdown(ratios: Array) -> float:
    """How much longer batches take under the load than one at a time: slices that share cores or memory are slower."""
    return steady_mean(ratios) if len(ratios) >= ALONE_MIN else 1.0


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
        "between two batches of a busy slice: too few were seen, nothing beyond the profile is simulated"
        if gaps.line.values == 0
        else (
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
    """From schedule to execution, where Triton batches: of requests that met an idle instance, or completed a batch."""
    # In a closed loop requests come in bursts, while the slice that answered still turns round.
    met = seen.alone if seen.closed else seen.records
    for found in (head_waits_us(seen.resolved, met, seen.limit), last_waits_us(seen.resolved, met)):
        if len(found) >= ALONE_MIN:
            return found
    return head_waits_us(seen.resolved, seen.alone, seen.limit)


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
        if model.execution_jitter is None:
            fields["execution_jitter"] = spread_of(ratio)
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
    race, rehearsed = gaps.race, seen.rehearsed
    if triton.prefetching and len(seen.resolved.models[0].slice_indices) > 1:
        calibrated, said = with_turnaround(seen, calibrated, gaps, "slices that are slow to return are overtaken")
        notes += said
    if seen.limit < 2:
        return calibrated, notes
    if threads is None:
        threads = wakeup_by_ones(resolve(calibrated, folder=folder), seen.rehearsed.trace, seen.records)
        calibrated = taking(calibrated, threads.us)
    notes.append(threads.text)
    if race is not None and race.permille is not None:
        notes.append(race.text)
        calibrated = racing(calibrated, race)
        calibrated, said = with_returns(seen, calibrated, gaps)
        return calibrated, [*notes, *said]
    if triton.prefetching and triton.max_queue_delay_us > 0:
        known = resolve(calibrated, folder=folder)
        race = overtakings(known, rehearsed.trace, rehearsed.result.records, seen.limit)
    if race is not None and not triton.prefetching:

        def gaps_us(run: Simulation) -> list[float]:
            return between(seen.resolved, seen.profiles, as_played(run))

        seen_us = between(seen.resolved, seen.profiles, rehearsed)
        race = wakeups_by_gaps(resolve(calibrated, folder=folder), rehearsed.trace, seen_us, gaps_us)
    if race is not None:
        notes.append(race.text)
        calibrated = racing(calibrated, race)
    return calibrated, notes


def with_returns(seen: Seen, calibrated: Scenario, gaps: Gaps) -> tuple[Scenario, list[str]]:
    """The scenario with the turnaround, the way to a batcher that waits for instances, and how late overtaken ones are.

    Each depends on the others a little: all are measured again with what was found of them first.
    """
    folder, trace = seen.resolved.folder, seen.rehearsed.trace
    bare, said = calibrated, list[str]()
    told = told_late(seen.triton) if seen.triton is not None else None
    for _ in range(RETURN_ROUNDS):
        calibrated, said = with_turnaround(seen, bare, gaps, "the batcher's wake-up is in what is seen")
        calibrated, more = with_way(resolve(calibrated, folder=folder), trace, seen.records)
        overheads = calibrated.server.overheads
        usual = Line(overheads.turnaround_us, overheads.turnaround_request_us, 0)
        known = resolve(calibrated, folder=folder)
        way_ns = ns_from_us(overheads.frontend_us)
        late = told or late_return(known, trace, seen.records, usual_ns=usual.of, way_ns=way_ns)
        said = [late.text, *said, *more]
        if told is not None or late.us == 0:
            break
        bare, calibrated = returning_late(bare, late.us), returning_late(calibrated, late.us)
    return calibrated, said


def with_turnaround(seen: Seen, calibrated: Scenario, gaps: Gaps, why: str) -> tuple[Scenario, list[str]]:
    """The scenario with the turnaround as it is, and what is said of it."""
    overheads = unbiased(resolve(calibrated, folder=seen.resolved.folder), seen.profiles, seen.rehearsed, gaps.race)
    if overheads == calibrated.server.overheads:
        return calibrated, []
    said = (
        f"{why}: the turnaround is {overheads.turnaround_us:.0f} us and {overheads.turnaround_request_us:.0f} us a "
        f"request where {gaps.line.fixed_us:.0f} and {gaps.line.per_request_us:.0f} us are seen"
    )
    return with_overheads(calibrated, overheads), [said]
