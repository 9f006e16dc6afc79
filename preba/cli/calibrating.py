"""What ``preba validate`` measures before the run it compares, in runs of their own, and puts into the scenario."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from accel.measure import line_through
from preba.arrival_kinds import ClosedLoopArrivals
from preba.batchers import GreedyBatching
from preba.batching.triton_config import TritonBatcher
from preba.cli.races import Race, with_race
from preba.figures import Figure
from preba.preprocessing import CpuPreprocessing, NoPreprocessing
from preba.preprocessing_costs import AudioCost, CpuCosts, ImageCost
from preba.profile import LatencyProfile
from preba.records import Records
from preba.scenario.resolve import ResolvedModel, ResolvedScenario, resolve
from preba.scenario.schema import Overheads, Run, Scenario
from preba.serving import plan_servers
from runtime.load.run import Played
from runtime.placement import is_native, longest_audio_ns, preprocessing_backend, worker_count
from runtime.profiling import this_machine

__all__ = ["Calibration", "batch_limit", "calibrate", "kept_busy", "one_at_a_time", "rehearsal"]

Array = NDArray[np.float64]

GAPS_MIN = 5
CUT = 0.05
IDLE_THINK_MS = 2.0
REHEARSAL_S = 10.0
REHEARSAL_REQUESTS = 20_000
ALONE_MIN = 30
PAIRS_MIN = 100
IDLE_NS = 2_000_000
"""A slice that ended its batch so long ago has nothing left to do for it."""
IDLE_THINK_MAX_MS = 100.0


@dataclass(frozen=True)
class Calibration:
    """What was measured before the run: the scenario with it, and in sentences."""

    scenario: Scenario
    notes: tuple[str, ...]


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


def rehearsal(resolved: ResolvedScenario) -> ResolvedScenario:
    """Some seconds of the scenario itself with other draws, without its events."""
    scenario = resolved.scenario
    run = Run(duration_s=REHEARSAL_S, warmup_requests=0)
    rates = [model.arrivals.mean_rate_rps() for model in scenario.models]
    requests = scenario.run.requests
    if requests is not None:
        if all(rates):
            requests = min(requests, max(round(REHEARSAL_S * sum(float(rate or 0.0) for rate in rates)), ALONE_MIN))
        run = Run(requests=min(requests, REHEARSAL_REQUESTS), warmup_requests=0)
    elif scenario.run.duration_s is not None:
        run = Run(duration_s=min(scenario.run.duration_s, REHEARSAL_S), warmup_requests=0)
    other = scenario.model_copy(update={"run": run, "seed": scenario.seed + 3_000_003, "events": ()})
    return resolve(other, folder=resolved.folder)


@dataclass(frozen=True)
class Line:
    """A time that grows with the requests of a batch, ``fixed_us + per_request_us * batch``, from so many values."""

    fixed_us: float
    per_request_us: float
    values: int
    sizes: int


def line_by_size(found: dict[int, list[float]]) -> Line:
    """A line through the means (the outer twentieths cut) of each batch size, in microseconds, none below zero."""
    enough = {size: values for size, values in found.items() if len(values) >= GAPS_MIN}
    if not enough:
        return Line(0.0, 0.0, 0, 0)
    count = sum(len(values) for values in enough.values())
    sizes, means = np.array(list(enough)), np.array([trim_mean(values, CUT) for values in enough.values()])
    if len(enough) == 1:
        return Line(max(float(means[0]), 0.0), 0.0, count, 1)
    weights = np.sqrt([len(values) for values in enough.values()])
    slope, fixed = (float(value) for value in np.polyfit(sizes, means, 1, w=weights))
    return Line(max(fixed, 0.0), max(slope, 0.0), count, len(enough))


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
        for slice_index in np.unique(records.slice_index[rows]):
            mine = np.flatnonzero(records.slice_index[rows] == slice_index)
            mine = mine[np.argsort(records.execution_start_ns[rows[mine]], kind="stable")]
            for first, after in itertools.pairwise(mine[2:-1]):
                row = int(rows[first])
                if oldest_ns[after] + waited_ns > records.execution_end_ns[row]:
                    continue  # the slice had nothing to do
                took_ns = _expected_ns(resolved, profiles, records, row)
                between_ns = int(records.execution_start_ns[rows[after]] - records.execution_start_ns[row])
                found.setdefault(int(records.batch_size[row]), []).append((between_ns - took_ns) / 1e3)
    return found


def turnaround(
    resolved: ResolvedScenario,
    profiles: Sequence[LatencyProfile],
    rehearsed: Played,
    busy: Sequence[Played],
    race: Race | None,
) -> Line:
    """The line of these gaps: where Triton batches under the load of the rehearsal, else with slices kept busy.

    Gaps of lost wake-ups, the longest ones, are left out; they are modelled themselves.
    """
    batcher = resolved.models[0].config.batcher
    if is_native(resolved) and isinstance(batcher, TritonBatcher):
        waited_ns = 1000 * batcher.max_queue_delay_us + IDLE_NS
        found = gaps_between_batches(resolved, profiles, [rehearsed], waited_ns)
        if race is not None and race.policy:
            kept = 1.0 - race.permille / 1e3
            found = {size: sorted(gaps)[: round(kept * len(gaps))] for size, gaps in found.items()}
        line = line_by_size(found)
        if line.values >= PAIRS_MIN and line.sizes > 1:
            return line
    return line_by_size(gaps_between_batches(resolved, profiles, busy))


def answers_after_batch(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], runs: Sequence[Played]) -> Line:
    """How long after the end of its batch an answer is with the client."""
    found: dict[int, list[float]] = {}
    native = is_native(resolved)
    for played in runs:
        records = played.result.records.select(played.result.records.served)
        for row in range(len(records)):
            end_ns = int(records.execution_end_ns[row])
            if not native:  # the way to the slice is part of it
                end_ns = int(records.dispatched_ns[row]) + _expected_ns(resolved, profiles, records, row)
            found.setdefault(int(records.batch_size[row]), []).append((int(records.completed_ns[row]) - end_ns) / 1e3)
    return line_by_size(found)


def _expected_ns(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], records: Records, row: int) -> int:
    """What the profile says of the batch that a request was in."""
    model = resolved.models[int(records.model_index[row])]
    length_ns = None
    if model.profile.modality == "audio":
        length_ns = int(records.audio_ns[records.batch_id == records.batch_id[row]].max())
    kind = resolved.slices[int(records.slice_index[row])].profile
    return profiles[model.index].latency_ns(kind, max(int(records.batch_units[row]), 1), length_ns)


def calibrate(
    resolved: ResolvedScenario,
    profiles: Sequence[LatencyProfile],
    idle: Played,
    rehearsed: Played,
    busy: Sequence[Played],
    race: Race | None = None,
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
    race : Race, optional
        How often Triton's batcher runs before a thread that comes back from a batch.
    """
    scenario = resolved.scenario
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
    gap = turnaround(resolved, profiles, rehearsed, busy, race)
    answers = answers_after_batch(resolved, profiles, [idle, rehearsed])
    models = []
    for model, profile in zip(scenario.models, profiles, strict=True):
        fields: dict[str, Any] = {"execution_profile": profile}
        if race is not None:
            fields["batcher"] = with_race(model.batcher, race)
        models.append(model.model_copy(update=fields))
    changes["models"] = tuple(models)
    front = _before_triton_us(resolved, records) if is_native(resolved) else _before_batcher_us(records)
    if len(front) < ALONE_MIN:
        front = _before_triton_us(resolved, alone) if is_native(resolved) else _before_batcher_us(alone)
    front_us = max(float(trim_mean(front, CUT)), 0.0) if len(front) else 0.0
    overheads = Overheads(
        frontend_us=front_us, turnaround_us=gap.fixed_us, turnaround_request_us=gap.per_request_us,
        response_us=answers.fixed_us, response_request_us=answers.per_request_us,
    )  # fmt: skip
    notes += [
        (
            f"between two batches of a busy slice, beyond the profile: {gap.fixed_us:.0f} us and "
            f"{gap.per_request_us:.0f} us a request ({gap.values} pairs of batches, means by size)"
        ),
        (
            f"from the end of a batch to the client: {answers.fixed_us:.0f} us and {answers.per_request_us:.0f} us a "
            f"request of the batch ({answers.values} answers of a rehearsal, means by size)"
        ),
        (
            f"from the generator to the batcher, beyond preprocessing: {front_us:.0f} us "
            f"({len(front)} requests that waited for nothing, mean)"
        ),
    ]
    if race is not None:
        notes.append(race.text())
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


def _before_batcher_us(records: Records) -> Array:
    """What passes from the generator to the batcher where no preprocessing is waited for."""
    work_ns = records.preprocess_end_ns - records.preprocess_start_ns
    found = (records.enqueued_ns - records.issued_ns - work_ns) / 1e3
    order = np.argsort(records.issued_ns, kind="stable")
    before_ns = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(records.enqueued_ns[order])[:-1]])
    free = np.empty(len(records), dtype=np.bool_)
    free[order] = before_ns < records.issued_ns[order]
    wanted: Array = found[free | (work_ns == 0)]
    return wanted


def _before_triton_us(resolved: ResolvedScenario, records: Records) -> Array:
    """What passes from the generator to the start of execution, beyond the batcher's delay.

    Triton's batcher cannot be seen from outside, so only requests count that a slice executed alone after it had had
    nothing to do.
    """
    batcher = resolved.models[0].config.batcher
    delay_us = 0.0
    if isinstance(batcher, TritonBatcher) and batcher.dynamic_batching and 1 not in batcher.preferred_batch_size:
        delay_us = float(batcher.max_queue_delay_us) if batcher.max_batch_size > 1 else 0.0
    found = []
    for slice_index in np.unique(records.slice_index):
        mine = np.flatnonzero(records.slice_index == slice_index)
        mine = mine[np.argsort(records.execution_start_ns[mine], kind="stable")]
        for before, row in itertools.pairwise(mine):
            idle_ns = records.issued_ns[row] - records.execution_end_ns[before]
            if records.batch_size[row] == 1 and idle_ns > IDLE_NS:
                found.append(float(records.execution_start_ns[row] - records.issued_ns[row]) / 1e3 - delay_us)
    return np.array(found)
