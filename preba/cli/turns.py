"""A rehearsal and the run it is for, in turns: a machine that drifts is the same one for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from preba.arrival_kinds import ClosedLoopArrivals
from preba.batching.state import PENDING
from preba.errors import ScenarioError
from preba.records import Records, column_names
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Run
from preba.trace import Trace
from runtime.load.generator import lag_figures
from runtime.load.run import Played, failure_warnings, lag_warnings, live_result

__all__ = ["check_sections", "counted", "in_turns", "joined", "sections_note", "sections_of"]

PAUSE_NS = 200_000_000
"""Between the last answer of a section and the next one: queues are empty by then, simulated too below capacity."""
MOMENTS = (
    "scheduled_ns", "issued_ns", "preprocess_start_ns", "preprocess_end_ns", "enqueued_ns", "dispatched_ns",
    "execution_start_ns", "execution_end_ns", "completed_ns",
)  # fmt: skip
"""Record columns that are times since the start of a run; -1 where something never happened."""
Player = Callable[[ResolvedScenario, Trace], Played]
"""Plays a trace of a scenario."""


@dataclass(frozen=True)
class Section:
    """Part of a trace, as a trace that begins at 0, and when it began in the whole."""

    trace: Trace
    begin_ns: int


def check_sections(resolved: ResolvedScenario, sections: int) -> None:
    """Refuses scenarios that cannot be played in sections.

    Raises
    ------
    ScenarioError
        A closed loop has no times to cut at; events have times of the whole run.
    """
    if sections == 1:
        return
    for model in resolved.models:
        if isinstance(model.config.arrivals, ClosedLoopArrivals):
            where = f"scenario.models[{model.index}].arrivals"
            raise ScenarioError(f"{where}: --sections takes open loops; a closed loop has no times to cut it at")
    if resolved.scenario.events:
        raise ScenarioError("scenario.events: with events --sections has to be 1, for they have times of the whole run")


def sections_note(sections: int) -> tuple[str, ...]:
    """What comparing in sections changes."""
    if sections == 1:
        return ()
    pause = f"{PAUSE_NS / 1e9:g} s after the last answer of each"
    said = (
        f"rehearsal and run took turns, in {sections} sections with pauses of {pause}: by so much throughput and "
        "utilisation are below those of fresh draws, which have none"
    )
    return (said,)


def counted(resolved: ResolvedScenario) -> ResolvedScenario:
    """The scenario with as many requests as its trace has, where it says for how long: sections take longer."""
    run = resolved.scenario.run
    if run.duration_s is None:
        return resolved
    trace = draw_scenario_trace(resolved)
    warmup = run.warmup_requests
    if run.warmup_s is not None:
        warmup = int(np.searchsorted(trace.scheduled_ns, round(run.warmup_s * 1e9)))
    counted_run = Run(requests=len(trace), warmup_requests=warmup)
    return resolve(resolved.scenario.model_copy(update={"run": counted_run}), folder=resolved.folder)


def sections_of(trace: Trace, count: int) -> list[Section]:
    """A trace cut into sections of equal length in time; those without a request are left out."""
    edges = np.linspace(0, int(trace.scheduled_ns.max(initial=0)) + 1, count + 1).astype(np.int64)
    rows = np.searchsorted(trace.scheduled_ns, edges)
    found = []
    for first, last, begin_ns in zip(rows[:-1].tolist(), rows[1:].tolist(), edges[:-1].tolist(), strict=True):
        if last > first:
            part = trace.rows(first, last)
            found.append(Section(replace(part, scheduled_ns=part.scheduled_ns - begin_ns), begin_ns))
    return found


def in_turns(scenarios: Sequence[ResolvedScenario], sections: int, player: Player) -> list[Played]:
    """Plays several scenarios, a section of each in turn.

    Parameters
    ----------
    scenarios : sequence of ResolvedScenario
    sections : int
        1: each of them in one piece, one after the other.
    player : callable
        Plays one section.

    Returns
    -------
    list of Played
        Per scenario, its sections put together, with pauses between them.
    """
    traces = [draw_scenario_trace(each) for each in scenarios]
    if sections == 1:
        return [player(each, trace) for each, trace in zip(scenarios, traces, strict=True)]
    cut = [sections_of(trace, sections) for trace in traces]
    found: list[list[Played]] = [[] for _ in scenarios]
    for turn in range(sections):
        for resolved, parts, done in zip(scenarios, cut, found, strict=True):
            if turn < len(parts):
                done.append(player(resolved, parts[turn].trace))
                if (done[-1].result.records.outcome == PENDING).any():
                    raise KeyboardInterrupt  # that section was interrupted: no others then
    return [
        joined(resolved, trace, list(zip(parts, done, strict=True)))
        for resolved, trace, parts, done in zip(scenarios, traces, cut, found, strict=True)
    ]


def joined(resolved: ResolvedScenario, trace: Trace, pieces: Sequence[tuple[Section, Played]]) -> Played:
    """Sections put together to one run, each ``PAUSE_NS`` after the last answer of the one before."""
    offsets, end_ns, behind_ns = [], 0, 0
    for place, (section, played) in enumerate(pieces):
        if place:
            behind_ns = max(behind_ns + PAUSE_NS, end_ns + PAUSE_NS - section.begin_ns)
        offsets.append(section.begin_ns + behind_ns)
        end_ns = offsets[-1] + int(played.result.records.completed_ns.max(initial=0))
    records = joined_records([played.result.records for _, played in pieces], offsets)
    lag = lag_figures({name: getattr(records, name) for name in ("issued_ns", "scheduled_ns", "attempts")})
    errors: Counter[tuple[str, str]] = Counter()
    for _, played in pieces:
        for code, text, count in played.errors:
            errors[code, text] += count
    failed = tuple((code, text, count) for (code, text), count in errors.most_common())
    return Played(
        result=live_result(resolved, records),
        trace=replace(trace, scheduled_ns=records.scheduled_ns),
        lag=lag,
        warnings=(
            *lag_warnings(records, lag),
            *dict.fromkeys(text for _, played in pieces for text in others(played)),
            *failure_warnings(failed),
        ),
        errors=failed,
        queue_us=mean_of([(played.queue_us, int(played.result.records.served.sum())) for _, played in pieces]),
        stolen_percent=mean_of([(played.stolen_percent, played.result.end_ns) for _, played in pieces]),
    )


def others(played: Played) -> list[str]:
    """Warnings of a section about something else than lag and failures, which are said of the whole run."""
    anew = (*lag_warnings(played.result.records, played.lag), *failure_warnings(played.errors))
    return [text for text in played.warnings if text not in anew]


def joined_records(pieces: Sequence[Records], offsets_ns: Sequence[int]) -> Records:
    """Records of sections as those of one run; requests and batches are counted on."""
    columns: dict[str, Any] = {name: [] for name in column_names()}
    requests = batches = 0
    for records, offset_ns in zip(pieces, offsets_ns, strict=True):
        for name, values in columns.items():
            column = getattr(records, name)
            if name in MOMENTS:
                column = np.where(column >= 0, column + offset_ns, column)
            elif name == "request_id":
                column = column + requests
            elif name == "batch_id":
                column = np.where(column >= 0, column + batches, column)
            values.append(column)
        requests += len(records)
        batches += int(records.batch_id.max(initial=-1)) + 1
    return Records(**{name: np.concatenate(values) for name, values in columns.items()})


def mean_of(values: Sequence[tuple[float | None, int]]) -> float | None:
    """The mean of values with weights; ``None`` where one is not known."""
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _, weight in known)
    if len(known) < len(values) or total == 0:
        return None
    return sum(value * weight for value, weight in known) / total
