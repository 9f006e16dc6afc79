"""What ``preba validate`` does in order: profiles, overheads, the live run, the simulation of the same trace.

Profiles and overheads come from runs of their own, never from the one that is compared.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from accel.measure import line_through
from preba.arrival_kinds import ClosedLoopArrivals
from preba.batchers import GreedyBatching
from preba.batching.triton_config import TritonBatcher
from preba.cli.load import measured_summary
from preba.cli.served import served
from preba.cli.simulate import run_and_summarise
from preba.figures import Figure
from preba.preprocessing import CpuPreprocessing, NoPreprocessing
from preba.preprocessing_costs import AudioCost, CpuCosts, ImageCost
from preba.profile import LatencyProfile
from preba.records import Records
from preba.report.context import ReportContext
from preba.report.summary import summarise
from preba.report.validation import Validated, validate_runs
from preba.report.window import steady_window
from preba.scenario.live import EmulatedSlices
from preba.scenario.resolve import ResolvedModel, ResolvedScenario, resolve
from preba.scenario.schema import Overheads, Run, Scenario
from preba.serving import plan_servers
from preba.trace import Trace
from runtime.load.run import Played, Target, play
from runtime.placement import is_native, longest_audio_ns, preprocessing_backend, worker_count
from runtime.profiling import Plan, measure_model, profile_of, this_machine
from sim.context import report_context
from sim.run import DEFAULT_ENGINE, Simulation, simulate

__all__ = ["Calibration", "Compared", "ValidationPlan", "calibrate", "compare_runs", "live_and_simulated"]

Say = Callable[[str], None]
WARMUP_SHARE = 0.05
GAPS_MIN = 5
IDLE_THINK_MS = 2.0
IDLE_THINK_MAX_MS = 100.0


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
    payloads : Path or None
        The user's own files.
    warmup_requests : int
        Sent before each measured run and not recorded.
    """

    repeats: int = 30
    idle_requests: int = 80
    busy_batches: int = 40
    fresh: int = 5
    payloads: Path | None = None
    warmup_requests: int = 40


@dataclass(frozen=True)
class Calibration:
    """What was measured before the run: the scenario with it, and in sentences."""

    scenario: Scenario
    notes: tuple[str, ...]


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
    context : ReportContext
    measured_summary, simulated_summary : dict
    calibrated : ResolvedScenario
    notes : tuple of str
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


def live_and_simulated(resolved: ResolvedScenario, plan: ValidationPlan, say: Say) -> Compared:
    """Does everything: measures profiles and overheads, runs live, simulates the same trace and fresh draws.

    Parameters
    ----------
    resolved : ResolvedScenario
    plan : ValidationPlan
    say : callable
        Is told what is going on.
    """
    resolved = with_warmup(resolved)
    say("measuring latency profiles through Triton")
    profiles = [measured_profile(resolved, model, plan) for model in resolved.models]
    say("measuring busy slices")
    largest = max(batch_limit(resolved, model) for model in resolved.models)
    sizes = sorted({1, max(largest // 2, 1), largest})
    with served(kept_busy(resolved, plan.busy_batches, largest)) as url:
        busy = [
            play(kept_busy(resolved, plan.busy_batches, size), Target(url), payloads=plan.payloads, warmup_requests=0)
            for size in sizes
        ]
    say("starting the live server")
    with served(resolved) as url:
        say("measuring overheads, one request at a time")
        idle = play(
            one_at_a_time(resolved, plan.idle_requests), Target(url), payloads=plan.payloads,
            warmup_requests=plan.warmup_requests,
        )  # fmt: skip
        calibration = calibrate(resolved, profiles, idle, busy)
        say(f"playing {resolved.scenario.run.requests or 'the'} requests")
        played = play(resolved, Target(url), payloads=plan.payloads, warmup_requests=plan.warmup_requests)
    say("simulating the same trace")
    calibrated = resolve(calibration.scenario, folder=resolved.folder)
    return compare_runs(resolved, calibrated, played, plan, calibration.notes)


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
    longest_ns = longest_audio_ns(resolved)[model.index]
    limit = batch_limit(resolved, model)
    batches = tuple(
        sorted({size for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128) if size < limit} | {limit})
    )
    lengths_s: tuple[float, ...] = ()
    if model.profile.modality == "audio":
        longest_s = longest_ns / 1e9
        lengths_s = tuple(sorted({*np.arange(2.5, longest_s, 2.5).round(3).tolist(), round(longest_s, 3)}))
    measuring = Plan(batches, lengths_s, warmup=3, repeats=plan.repeats)
    points = asyncio.run(measure_model(resolved, model, measuring))
    name = f"{model.config.name}-measured"
    return profile_of(resolved, model, measuring, points, name=name, inside_only=True)


def batch_limit(resolved: ResolvedScenario, model: ResolvedModel) -> int:
    """Largest batch a model's batchers may form."""
    longest_ns = longest_audio_ns(resolved)[model.index]
    wanted = max(server.plan.batch_max for server in plan_servers(resolved, model, longest_ns))
    return min(wanted, *(model.profile.batch_max(resolved.slices[index].profile) for index in model.slice_indices))


def one_at_a_time(resolved: ResolvedScenario, requests: int) -> ResolvedScenario:
    """The scenario with one client per model that waits for each answer, and other draws.

    Between its requests a client waits as long as arrivals are apart in the run: a machine that has slept answers
    later than one that is kept awake.
    """
    scenario = resolved.scenario
    models = []
    for model in scenario.models:
        rate_rps = model.arrivals.mean_rate_rps()
        think_ms = IDLE_THINK_MS if not rate_rps else min(1e3 / float(rate_rps), IDLE_THINK_MAX_MS)
        loop = ClosedLoopArrivals(
            kind="closed_loop", outstanding=1, think_ms=think_ms, think_distribution="exponential"
        )
        models.append(model.model_copy(update={"arrivals": loop}))
    run = Run(requests=requests * len(models), warmup_requests=0)
    other = scenario.model_copy(
        update={"models": tuple(models), "run": run, "seed": scenario.seed + 1_000_003, "events": ()}
    )
    return resolve(other, folder=resolved.folder)


def kept_busy(resolved: ResolvedScenario, batches: int, batch: int) -> ResolvedScenario:
    """The scenario with batchers that never wait and so many clients that slices always have about `batch` waiting."""
    scenario = resolved.scenario
    models, requests = [], 0
    for model in resolved.models:
        limit = batch_limit(resolved, model)
        plain: Any = GreedyBatching(kind="greedy", batch_max=limit)
        if is_native(resolved):
            plain = TritonBatcher(kind="triton", max_batch_size=limit)
        outstanding = min(2 * batch * len(model.slice_indices), scenario.live.requests_max)
        requests += max(batch * len(model.slice_indices) * batches, 2 * outstanding)
        loop = ClosedLoopArrivals(kind="closed_loop", outstanding=outstanding)
        fields = {"batcher": plain, "arrivals": loop, "priority_shares": None, "timeout_ms": 0.0}
        models.append(model.config.model_copy(update=fields))
    run = Run(requests=requests, warmup_requests=0)
    seed = scenario.seed + 2_000_003 + batch
    other = scenario.model_copy(update={"models": tuple(models), "run": run, "seed": seed, "events": ()})
    return resolve(other, folder=resolved.folder)


@dataclass(frozen=True)
class Gap:
    """What a slice takes from one batch to the next beyond its profile: ``fixed_us + per_request_us * batch``."""

    fixed_us: float
    per_request_us: float
    pairs: int


def gap_between_batches(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], busy: Sequence[Played]) -> Gap:
    """Measure it from runs in which slices never wait for requests: a line through the medians of each batch size."""
    found: dict[int, list[float]] = {}
    for played in busy:
        records = played.result.records.select(played.result.records.served)
        rows = np.unique(records.batch_id, return_index=True)[1]
        for slice_index in np.unique(records.slice_index[rows]):
            mine = rows[records.slice_index[rows] == slice_index]
            mine = mine[np.argsort(records.execution_start_ns[mine])]
            for row, after in itertools.pairwise(mine[2:-1]):
                if records.enqueued_ns[after] > records.execution_end_ns[row]:
                    continue  # the slice had nothing to do
                took_ns = _expected_ns(resolved, profiles, records, int(row))
                size = int(records.batch_size[row])
                between_ns = int(records.execution_start_ns[after] - records.execution_start_ns[row])
                found.setdefault(size, []).append((between_ns - took_ns) / 1e3)
    enough = {size: float(np.median(gaps)) for size, gaps in found.items() if len(gaps) >= GAPS_MIN}
    if not enough:
        return Gap(0.0, 0.0, 0)
    pairs = sum(len(found[size]) for size in enough)
    sizes, medians = np.array(list(enough)), np.array(list(enough.values()))
    if len(enough) == 1:
        return Gap(max(float(medians[0]), 0.0), 0.0, pairs)
    weights = np.sqrt([len(found[size]) for size in enough])
    slope, fixed = (float(value) for value in np.polyfit(sizes, medians, 1, w=weights))
    return Gap(max(fixed, 0.0), max(slope, 0.0), pairs)


def _expected_ns(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], records: Records, row: int) -> int:
    """What the profile says of the batch that a request was in."""
    model = resolved.models[int(records.model_index[row])]
    length_ns = None
    if model.profile.modality == "audio":
        length_ns = int(records.audio_ns[records.batch_id == records.batch_id[row]].max())
    kind = resolved.slices[int(records.slice_index[row])].profile
    return profiles[model.index].latency_ns(kind, max(int(records.batch_units[row]), 1), length_ns)


def calibrate(
    resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], idle: Played, busy: Sequence[Played]
) -> Calibration:
    """Puts what was measured into the scenario: profiles, preprocessing costs, overheads.

    Parameters
    ----------
    resolved : ResolvedScenario
    profiles : sequence of LatencyProfile
        Per model.
    idle : Played
        One request at a time: nothing waits for another, so what is neither work nor a batcher's delay is overhead.
    busy : sequence of Played
        Slices always busy, with batches of several sizes.
    """
    scenario = resolved.scenario
    records = idle.result.records.select(idle.result.records.served)
    facts = {
        "kind": "measured",
        "source": f"preba validate: {len(records)} requests one at a time through the live server",
        "where": this_machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
    }
    notes = [
        f"latency profile {profile.name}: {profile.provenance.source}; {profile.provenance.notes}"
        for profile in profiles
    ]
    changes: dict[str, Any] = {}
    backend = preprocessing_backend(resolved)
    if backend != "none" and not isinstance(scenario.preprocessing, NoPreprocessing):
        costs = _preprocessing_costs(resolved, records, facts)
        changes["preprocessing"] = CpuPreprocessing(
            kind="cpu", cores=worker_count(resolved), usable_fraction=1.0, cost=costs
        )
        for modality, section in (("image", costs.image), ("audio", costs.audio)):
            if section is not None:
                slope = section.per_100kb_us if isinstance(section, ImageCost) else section.per_audio_s_us
                unit = "100 kB" if modality == "image" else "second of audio"
                notes.append(
                    f"{modality} preprocessing ({backend}) in the server: {section.fixed_us.value:.0f} us and "
                    f"{slope.value:.0f} us per {unit}; {section.fixed_us.notes}"
                )
    gap = gap_between_batches(resolved, profiles, busy)
    models = tuple(
        model.model_copy(update={"execution_profile": profile})
        for model, profile in zip(scenario.models, profiles, strict=True)
    )
    changes["models"] = models
    if is_native(resolved):
        front_us, response_us = _overheads_around_triton(resolved, scenario.model_copy(update=changes), records)
    else:
        front_us, response_us = _overheads(resolved, profiles, records)
    overheads = Overheads(
        frontend_us=front_us, turnaround_us=gap.fixed_us, turnaround_request_us=gap.per_request_us,
        response_us=response_us,
    )  # fmt: skip
    notes.append(
        f"between two batches of a busy slice, beyond the profile: {gap.fixed_us:.0f} us and "
        f"{gap.per_request_us:.0f} us a request ({gap.pairs} pairs of batches, medians by size)"
    )
    notes.append(
        f"overheads: {front_us:.0f} us from the generator to the batcher beyond preprocessing, {response_us:.0f} us "
        f"from the batch's answer to the client's ({len(records)} requests one at a time, medians)"
    )
    server = scenario.server.model_copy(update={"overheads": overheads})
    changes["server"] = server
    return Calibration(scenario.model_copy(update=changes), tuple(notes))


def _preprocessing_costs(resolved: ResolvedScenario, records: Records, facts: dict[str, str]) -> CpuCosts:
    took_us = (records.preprocess_end_ns - records.preprocess_start_ns) / 1e3
    sections: dict[str, Any] = {}
    for modality, sizes, unit, names, kind in (
        ("image", records.jpeg_bytes / 1e5, "jpeg_bytes", ("fixed_us", "per_100kb_us"), ImageCost),
        ("audio", records.audio_ns / 1e9, "audio_ns", ("fixed_us", "per_audio_s_us"), AudioCost),
    ):
        mine = np.isin(
            records.model_index, [model.index for model in resolved.models if model.profile.modality == modality]
        ) & (getattr(records, unit) > 0)
        if mine.sum() < 2:
            continue
        line = line_through(sizes[mine], took_us[mine])
        residual = took_us[mine] - line.fixed_us - line.slope_us * sizes[mine]
        text = f"line through {int(mine.sum())} requests; standard deviation from it {float(residual.std()):.0f} us"
        values = zip(names, (line.fixed_us, line.slope_us), strict=True)
        sections[modality] = kind(
            **{name: Figure.model_validate({"value": value, "notes": text, **facts}) for name, value in values}
        )
    return CpuCosts(kind="cpu", name="measured-live", description="Measured by preba validate.", **sections)


def _overheads(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], records: Records) -> tuple[float, float]:
    """Microseconds before the batcher and after the batch, beyond what profile and costs say."""
    before_ns = records.enqueued_ns - records.issued_ns - (records.preprocess_end_ns - records.preprocess_start_ns)
    inside_ns = np.zeros(len(records), dtype=np.int64)
    for row in range(len(records)):
        model = resolved.models[int(records.model_index[row])]
        profile = profiles[model.index]
        length_ns = int(records.audio_ns[row]) if profile.modality == "audio" else None
        kind = resolved.slices[int(records.slice_index[row])].profile
        inside_ns[row] = profile.latency_ns(kind, max(int(records.batch_size[row]), 1), length_ns)
    after_ns = records.completed_ns - records.dispatched_ns - inside_ns
    return max(float(np.median(before_ns)), 0.0) / 1e3, max(float(np.median(after_ns)), 0.0) / 1e3


def _overheads_around_triton(resolved: ResolvedScenario, without: Scenario, idle: Records) -> tuple[float, float]:
    """Microseconds before and after Triton's batcher and instance, which cannot be seen from outside.

    Their sum is what the idle run took longer than its simulation without overheads; after the batch's end comes what
    passed from the slice's own stamp to the client, the rest before it.
    """
    probe = one_at_a_time(resolve(without, folder=resolved.folder), len(idle))
    expected = simulate(probe, engine=DEFAULT_ENGINE).result.records
    total_us = float(np.median(idle.latency_ns) - np.median(expected.latency_ns[expected.served])) / 1e3
    after_us = float(np.median(idle.completed_ns - idle.execution_end_ns)) / 1e3
    response_us = min(max(after_us, 0.0), max(total_us, 0.0))
    return max(total_us, 0.0) - response_us, response_us


def compare_runs(
    resolved: ResolvedScenario,
    calibrated: ResolvedScenario,
    played: Played,
    plan: ValidationPlan,
    notes: Sequence[str],
) -> Compared:
    """Simulates what was played, and fresh draws, and puts both beside each other."""
    _, here = measured_summary(resolved, played)
    records = played.result.records
    # The files that were sent may have other sizes than the traced ones.
    sent: Trace = replace(played.trace, jpeg_bytes=records.jpeg_bytes, audio_ns=records.audio_ns)
    simulation = simulate(calibrated, engine=DEFAULT_ENGINE, trace=sent)
    context = report_context(calibrated, simulation)
    there = summarise(simulation.result, context)
    fresh = []
    for draw in range(plan.fresh):
        other = calibrated.scenario.model_copy(update={"seed": calibrated.scenario.seed + 1 + draw})
        fresh.append(run_and_summarise(resolve(other, folder=calibrated.folder), engine=DEFAULT_ENGINE, text=False)[2])
    pair = []
    for result in (played.result, simulation.result):
        window = steady_window(result, context)
        pair.append(result.records.select(window.kept & result.records.served))
    found = validate_runs(here, there, limits=resolved.scenario.validation, fresh=fresh, records=(pair[0], pair[1]))
    kind = resolved.scenario.live.slices
    said = list(notes)
    if isinstance(kind, EmulatedSlices):
        said.append("slices are emulated: real Triton servers that sleep their latency profile")
    return Compared(
        found, pair[0], pair[1], played, simulation, context, here, there, calibrated, tuple(said),
    )  # fmt: skip
