"""What ``preba validate`` does in order: profiles, overheads, the live run, the simulation of the same trace.

Profiles and overheads of what is judged come from runs of their own, never from the one that is compared; what that
one says itself is simulated beside it and judges nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from accel.inputs import InputLimits, read_wav
from preba.cli.calibrating import calibrate
from preba.cli.disturbances import Drift, drift_note, drift_of, drift_warning, stolen_note, stolen_warning
from preba.cli.load import measured_summary
from preba.cli.redrawn import other_luck
from preba.cli.rehearsing import batch_limit, kept_busy, one_at_a_time, rehearsal
from preba.cli.served import served
from preba.cli.simulate import run_and_summarise
from preba.cli.turns import check_sections, counted, in_turns, sections_note
from preba.errors import ScenarioError
from preba.profile import LatencyProfile
from preba.records import Records
from preba.report.context import ReportContext
from preba.report.summary import summarise
from preba.report.validation import Validated, mean_of_runs, validate_runs
from preba.report.window import steady_window
from preba.scenario.draw import draw_luck, draw_scenario_trace
from preba.scenario.live import EmulatedSlices
from preba.scenario.resolve import ResolvedModel, ResolvedScenario, resolve
from preba.trace import Trace
from runtime.cores import bound_to
from runtime.load.run import Played, Target, play
from runtime.placement import other_cores
from runtime.profiling import Plan, measure_model, profile_of
from sim.context import report_context
from sim.run import DEFAULT_ENGINE, Simulation, simulate

__all__ = [
    "Compared", "ValidationPlan", "compare_runs", "fresh_summaries", "hindsight_note", "in_hindsight",
    "live_and_simulated", "measured_slices",
]  # fmt: skip

Say = Callable[[str], None]
WARMUP_SHARE = 0.05
WARMUP_AGAIN = 8
"""Requests before a further section of a run: the server is warm, the connections are new."""


@dataclass(frozen=True)
class ValidationPlan:
    """How much is measured.

    Attributes
    ----------
    repeats : int
        Batches per point of the latency profile.
    idle_requests : int
        Sent one after another to find the overheads.
    busy_batches : int
        Per slice, full ones, to find how soon a slice starts its next.
    fresh : int
        Fresh draws that are simulated too.
    repeated : int
        Simulations of the played trace, each with its own draws of what varies inside the server.
    payloads : Path or None
        The user's own files.
    warmup_requests : int
        Sent before each measured run and not recorded.
    sections : int
        In so many pieces rehearsal and run take turns: what drifts is the same for both.
    """

    repeats: int = 30
    idle_requests: int = 80
    busy_batches: int = 40
    fresh: int = 5
    repeated: int = 5
    payloads: Path | None = None
    warmup_requests: int = 40
    sections: int = 1


@dataclass(frozen=True)
class Compared:
    """A finished comparison.

    Attributes
    ----------
    found : Validated
    measured, simulated : Records
        Without warm-up.
    played : Played
    simulation : Simulation
        The first one of the played trace.
    context : ReportContext
    measured_summary, simulated_summary : dict
    calibrated : ResolvedScenario
    notes : tuple of str
    stolen_percent : tuple of float
        Of this machine's CPU time, what its host took during the rehearsal and during the run; empty if unknown.
    drift : Drift or None
        How much slower software was in the run than in the rehearsal.
    """

    found: Validated
    measured: Records
    simulated: Records
    played: Played
    simulation: Simulation
    context: ReportContext
    measured_summary: dict[str, Any]
    simulated_summary: dict[str, Any]
    calibrated: ResolvedScenario
    notes: tuple[str, ...]
    stolen_percent: tuple[float, ...] = ()
    drift: Drift | None = None


def live_and_simulated(resolved: ResolvedScenario, plan: ValidationPlan, say: Say) -> Compared:
    """Does everything: measures profiles and overheads, runs live, simulates the same trace and fresh draws.

    Parameters
    ----------
    resolved : ResolvedScenario
    plan : ValidationPlan
    say : callable
        Is told what is going on.
    """
    check_sections(resolved, plan.sections)
    resolved = with_warmup(resolved)
    if plan.sections > 1:
        resolved = counted(resolved)
    profiles, busy = measured_slices(resolved, plan, say)
    others = other_cores(resolved)  # the generator leaves pinned preprocessing alone, too
    say("starting the live server")
    with served(resolved) as url, bound_to(others):
        say("measuring overheads, one request at a time")
        idle = play(
            one_at_a_time(resolved, plan.idle_requests), Target(url), payloads=plan.payloads,
            warmup_requests=plan.warmup_requests,
        )  # fmt: skip
        rehearsed, played = rehearsed_and_played(resolved, Target(url), plan, say)
    say("simulating the same trace")
    calibration = calibrate(resolved, profiles, idle, rehearsed, busy)
    calibrated = resolve(calibration.scenario, folder=resolved.folder)
    say("simulating it with what was measured in the run itself")
    hindsight = in_hindsight(resolved, profiles, idle, played, busy)
    stolen = tuple(each.stolen_percent for each in (rehearsed, played) if each.stolen_percent is not None)
    drift = drift_of(rehearsed.result.records, played.result.records)
    notes = [*calibration.notes, *sections_note(plan.sections), *stolen_note(stolen), *drift_note(drift)]
    if hindsight is not None:
        notes.append(hindsight_note(calibrated, hindsight))
    compared = compare_runs(resolved, calibrated, played, plan, notes, hindsight)
    warnings = (*compared.found.warnings, *stolen_warning(stolen), *drift_warning(drift))
    found = replace(compared.found, warnings=warnings)
    return replace(compared, found=found, stolen_percent=stolen, drift=drift)


def rehearsed_and_played(
    resolved: ResolvedScenario, target: Target, plan: ValidationPlan, say: Say
) -> tuple[Played, Played]:
    """Plays the rehearsal and then the run, or sections of both in turns.

    Parameters
    ----------
    resolved : ResolvedScenario
    target : Target
    plan : ValidationPlan
    say : callable
        Is told what is going on.
    """
    scenarios = [rehearsal(resolved), resolved]
    texts = ["rehearsing", f"playing {resolved.scenario.run.requests or 'the'} requests"]
    if plan.sections > 1:
        texts = [f"rehearsing and {texts[1]}, in {plan.sections} turns"]
    calls = itertools.count()

    def player(scenario: ResolvedScenario, trace: Trace) -> Played:
        call = next(calls)
        if call < len(texts):
            say(texts[call])
        warmup_requests = plan.warmup_requests if call < len(scenarios) else WARMUP_AGAIN
        return play(scenario, target, trace=trace, payloads=plan.payloads, warmup_requests=warmup_requests)

    rehearsed, played = in_turns(scenarios, plan.sections, player)
    return rehearsed, played


def in_hindsight(
    resolved: ResolvedScenario,
    profiles: Sequence[LatencyProfile],
    idle: Played,
    played: Played,
    busy: Sequence[Played],
) -> ResolvedScenario | None:
    """The scenario calibrated with the compared run in the place of its rehearsal; ``None`` if nothing was served."""
    if not played.result.records.served.any():
        return None
    return resolve(calibrate(resolved, profiles, idle, played, busy).scenario, folder=resolved.folder)


def hindsight_note(calibrated: ResolvedScenario, hindsight: ResolvedScenario) -> str:
    """Which overheads were others in the run."""
    before, then = (each.scenario.server.overheads for each in (calibrated, hindsight))
    return (
        f"in the run itself: to the batcher {then.ingress_us + then.frontend_us:.0f} us (rehearsal "
        f"{before.ingress_us + before.frontend_us:.0f}); between two batches {then.turnaround_us:.0f} us and "
        f"{then.turnaround_request_us:.0f} us a request ({before.turnaround_us:.0f} and "
        f"{before.turnaround_request_us:.0f}); to the first answer {then.response_us:.0f} us and "
        f"{then.response_request_us:.0f} us a request ({before.response_us:.0f} and {before.response_request_us:.0f})"
    )


def measured_slices(
    resolved: ResolvedScenario, plan: ValidationPlan, say: Say
) -> tuple[list[LatencyProfile], list[Played]]:
    """Measures slices on servers of their own: the profile of each model, and runs that keep them busy.

    Parameters
    ----------
    resolved : ResolvedScenario
    plan : ValidationPlan
    say : callable
        Is told what is going on.

    Returns
    -------
    tuple of list of LatencyProfile and list of Played
        Profiles by model; a run for each of several sizes of batches.
    """
    say("measuring latency profiles through Triton")
    profiles = [measured_profile(resolved, model, plan) for model in resolved.models]
    say("measuring busy slices")
    largest = max(batch_limit(resolved, model) for model in resolved.models)
    with served(kept_busy(resolved, plan.busy_batches, largest)) as url, bound_to(other_cores(resolved)):
        busy = [
            play(kept_busy(resolved, plan.busy_batches, size), Target(url), payloads=plan.payloads, warmup_requests=0)
            for size in busy_sizes(largest)
        ]
    return profiles, busy


def with_warmup(resolved: ResolvedScenario) -> ResolvedScenario:
    """Both runs are cut at the same request: the scenario's warm-up, or a twentieth of it."""
    run = resolved.scenario.run
    if run.warmup_requests is not None or run.warmup_s is not None:
        return resolved
    if run.requests is not None:
        run = run.model_copy(update={"warmup_requests": round(WARMUP_SHARE * run.requests)})
    else:
        run = run.model_copy(update={"warmup_s": WARMUP_SHARE * (run.duration_s or 0.0)})
    return resolve(resolved.scenario.model_copy(update={"run": run}), folder=resolved.folder)


def measured_profile(resolved: ResolvedScenario, model: ResolvedModel, plan: ValidationPlan) -> LatencyProfile:
    """Measures a model's execution times through Triton, at the batches its batchers may form."""
    limit = batch_limit(resolved, model)
    batches = tuple(
        sorted({size for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if size < limit} | {limit})
    )
    lengths_s: tuple[float, ...] = ()
    if model.profile.modality == "audio":
        shortest_s, longest_s = audio_reach_s(resolved, model, plan)
        lengths_s = tuple(sorted({shortest_s, *np.arange(2.5, longest_s, 2.5).round(3).tolist(), longest_s}))
    measuring = Plan(batches, lengths_s, warmup=3, repeats=plan.repeats, up_to_limit=True)
    points = asyncio.run(measure_model(resolved, model, measuring))
    name = f"{model.config.name}-measured"
    return profile_of(resolved, model, measuring, points, name=name, inside_only=True)


def audio_reach_s(resolved: ResolvedScenario, model: ResolvedModel, plan: ValidationPlan) -> tuple[float, float]:
    """Shortest and longest audio of this run, its rehearsal, the measurements around it and its fresh draws."""
    limit = batch_limit(resolved, model)
    runs = [
        resolved,
        rehearsal(resolved),
        one_at_a_time(resolved, plan.idle_requests),
        *(kept_busy(resolved, plan.busy_batches, size) for size in busy_sizes(limit)),
        *(fresh_draw(resolved, draw) for draw in range(plan.fresh)),
    ]
    traces = [draw_scenario_trace(run) for run in runs]
    every_ns = np.concatenate([trace.audio_ns[trace.model_index == model.index] for trace in traces])
    if plan.payloads is not None:
        files = [read_wav(file.read_bytes(), InputLimits()) for file in sorted(plan.payloads.glob("*.wav"))]
        every_ns = np.append(every_ns, [round(file.length_s * 1e9) for file in files])
    return math.floor(int(every_ns.min()) / 1e8) / 10, math.ceil(int(every_ns.max()) / 1e8) / 10


def busy_sizes(limit: int) -> list[int]:
    """Batches at which slices are kept busy."""
    return sorted({1, max(limit // 2, 1), limit})


def fresh_draw(resolved: ResolvedScenario, draw: int) -> ResolvedScenario:
    """The same process with another seed."""
    other = resolved.scenario.model_copy(update={"seed": resolved.scenario.seed + 1 + draw})
    return resolve(other, folder=resolved.folder)


def fresh_summaries(resolved: ResolvedScenario, draws: int) -> list[dict[str, Any]]:
    """Summaries of simulations of so many fresh draws."""
    return [
        run_and_summarise(fresh_draw(resolved, draw), engine=DEFAULT_ENGINE, text=False)[2] for draw in range(draws)
    ]


def replayed(calibrated: ResolvedScenario, played: Played, draw: int) -> Simulation:
    """A simulation of what was played, with draws of its own of how things vary inside the server."""
    records = played.result.records
    told = resolve(other_luck(calibrated.scenario, draw), folder=calibrated.folder)
    # The files that were sent may have other sizes than the traced ones; how preprocessing spreads is measured.
    sent = replace(draw_luck(told, played.trace), jpeg_bytes=records.jpeg_bytes, audio_ns=records.audio_ns)
    return simulate(told, engine=DEFAULT_ENGINE, trace=sent)


def replayed_summary(calibrated: ResolvedScenario, played: Played, draw: int) -> dict[str, Any]:
    """The figures of such a simulation."""
    simulation = replayed(calibrated, played, draw)
    return summarise(simulation.result, report_context(calibrated, simulation))


def compare_runs(
    resolved: ResolvedScenario,
    calibrated: ResolvedScenario,
    played: Played,
    plan: ValidationPlan,
    notes: Sequence[str],
    hindsight: ResolvedScenario | None = None,
) -> Compared:
    """Simulates what was played, and fresh draws, and puts both beside each other.

    Parameters
    ----------
    resolved : ResolvedScenario
    calibrated : ResolvedScenario
        With what was measured before.
    played : Played
    plan : ValidationPlan
    notes : sequence of str
    hindsight : ResolvedScenario, optional
        With what was measured in the run itself: its errors stand beside the others and judge nothing.
    """
    _, here = measured_summary(resolved, played)
    simulation = replayed(calibrated, played, 0)
    context = report_context(calibrated, simulation)
    there = summarise(simulation.result, context)
    every = [there, *(replayed_summary(calibrated, played, draw) for draw in range(1, plan.repeated))]
    own = None
    if hindsight is not None:
        own = mean_of_runs([replayed_summary(hindsight, played, draw) for draw in range(plan.repeated)])
    fresh = fresh_summaries(calibrated, plan.fresh)
    pair = []
    for result in (played.result, simulation.result):
        window = steady_window(result, context)
        pair.append(result.records.select(window.kept & result.records.served))
    for records_kept, what in zip(pair, ("the live server", "the simulation"), strict=True):
        if len(records_kept) == 0:
            raise ScenarioError(f"nothing to compare: {what} served no request after the warm-up")
    found = validate_runs(
        here, mean_of_runs(every), limits=resolved.scenario.validation, fresh=fresh, records=(pair[0], pair[1]),
        hindsight=own,
    )  # fmt: skip
    kind = resolved.scenario.live.slices
    said = list(notes)
    if isinstance(kind, EmulatedSlices):
        said.append("slices are emulated: real Triton servers that sleep their latency profile")
    return Compared(
        found, pair[0], pair[1], played, simulation, context, here, there, calibrated, tuple(said),
    )  # fmt: skip
