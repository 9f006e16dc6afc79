"""Rehearsal and run in turns: how traces are cut, in which order pieces are played, and how they become one run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preba.batching.state import PENDING
from preba.cli.turns import PAUSE_NS, check_sections, counted, in_turns, joined, sections_note, sections_of
from preba.errors import ScenarioError
from preba.records import Records, column_names
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.resolve import ResolvedScenario
from preba.trace import Trace
from runtime.load.run import Played, failure_warnings, lag_warnings
from sim.run import simulate

POISSON = {"kind": "poisson", "rate_rps": 400.0}


def scenario(toy: Any, arrivals: Any = None, **fields: Any) -> ResolvedScenario:
    """One slice that batches."""
    batcher = {"kind": "triton", "max_batch_size": 8}
    model = toy.model(toy.profile({"full": {"1": 10, "8": 12}}), arrivals or POISSON, batcher=batcher)
    return toy.resolve(toy.scenario([model], **({"requests": 1000} | fields)))


def player(order: list[tuple[ResolvedScenario, Trace]]) -> Any:
    """Simulates what is to be played and notes it."""

    def play(resolved: ResolvedScenario, trace: Trace) -> Played:
        order.append((resolved, trace))
        result = simulate(resolved, trace=trace).result
        turn = len(order)
        errors = (("UNAVAILABLE", "gone", turn),)
        said = (*(("odd",) if turn == 2 else ()), *failure_warnings(errors))
        return Played(result, trace, {"p50_ms": 0.0, "p99_ms": 0.0}, said, errors, 10.0 * turn, 0.5)

    return play


def test_sections_have_every_request_once_and_begin_at_zero(toy: Any) -> None:
    """Equal lengths of time; none is empty; put back where they began they are the trace."""
    trace = draw_scenario_trace(scenario(toy))
    parts = sections_of(trace, 7)
    assert len(parts) == 7
    assert np.diff([part.begin_ns for part in parts]) == pytest.approx(trace.scheduled_ns[-1] / 7, rel=1e-6)
    back = np.concatenate([part.trace.scheduled_ns + part.begin_ns for part in parts])
    assert np.array_equal(back, trace.scheduled_ns)
    few = trace.rows(0, 3)
    assert [len(part.trace) for part in sections_of(few, 1000)] == [1, 1, 1]


def test_two_scenarios_take_turns(toy: Any) -> None:
    """A section of the one, a section of the other; in one piece each is played once, the first one first."""
    first, second = scenario(toy), scenario(toy, requests=600)
    order: list[tuple[ResolvedScenario, Trace]] = []
    found = in_turns([first, second], 3, player(order))
    assert [each is first for each, _ in order] == [True, False] * 3
    assert [len(each.result.records) for each in found] == [1000, 600]
    order.clear()
    whole = in_turns([first, second], 1, player(order))
    assert [len(trace) for _, trace in order] == [1000, 600]
    assert whole[0].result.records.equals(simulate(first).result.records)


def test_pieces_become_one_run_with_pauses(toy: Any) -> None:
    """Requests and batches count on, nothing overlaps, no time within a section changes."""
    resolved = scenario(toy)
    order: list[tuple[ResolvedScenario, Trace]] = []
    (run,) = in_turns([resolved], 4, player(order))
    records = run.result.records
    assert np.array_equal(records.request_id, np.arange(1000))
    assert np.array_equal(run.trace.scheduled_ns, records.scheduled_ns)
    ends = np.cumsum([len(trace) for _, trace in order])
    batches: set[int] = set()
    for last, trace, place in zip(ends, (trace for _, trace in order), range(4), strict=True):
        piece = records.select(np.arange(last - len(trace), last))
        alone = simulate(resolved, trace=trace).result.records
        assert np.array_equal(piece.latency_ns, alone.latency_ns)
        waited_ns = piece.execution_start_ns - piece.scheduled_ns
        assert np.array_equal(waited_ns, alone.execution_start_ns - trace.scheduled_ns)
        mine = set(piece.batch_id.tolist())
        assert not mine & batches
        batches |= mine
        if place < 3:
            assert records.scheduled_ns[last] >= piece.completed_ns.max() + PAUSE_NS
    # A simulation of the whole meets empty queues after each pause, too.
    again = simulate(resolved, trace=run.trace).result.records
    assert np.array_equal(again.latency_ns, records.latency_ns)


def test_what_sections_say_is_said_once(toy: Any) -> None:
    """Errors are added, warnings kept, lag judged anew; means weighted by requests and by time."""
    resolved = scenario(toy)
    (run,) = in_turns([resolved], 3, player([]))
    assert run.errors == (("UNAVAILABLE", "gone", 1 + 2 + 3),)
    assert run.warnings == ("odd", "6 requests failed: UNAVAILABLE gone")
    assert run.queue_us == pytest.approx(20.0, rel=0.1)
    assert run.stolen_percent == pytest.approx(0.5)
    trace = draw_scenario_trace(resolved)
    pieces = []
    for part in sections_of(trace, 2):
        result = simulate(resolved, trace=part.trace).result
        late = replace(result.records, issued_ns=result.records.scheduled_ns + 9_000_000)
        lag = {"p50_ms": 9.0, "p99_ms": 9.0, "max_ms": 9.0}
        said = (*lag_warnings(late, lag), "odd")
        pieces.append((part, Played(replace(result, records=late), part.trace, lag, said, (), None, None)))
    run = joined(resolved, trace, pieces)
    assert run.lag["p99_ms"] == 9.0
    assert [text[:13] for text in run.warnings] == ["the generator", "odd"]
    assert run.queue_us is None
    assert run.stolen_percent is None


def test_what_never_happened_stays_so(toy: Any) -> None:
    """A refused request has no batch and no execution in a later section either."""
    resolved = scenario(toy)
    trace = draw_scenario_trace(resolved)
    pieces = []
    for part in sections_of(trace, 2):
        result = simulate(resolved, trace=part.trace).result
        columns = {name: getattr(result.records, name).copy() for name in column_names()}
        for name in ("batch_id", "execution_start_ns", "slice_index"):
            columns[name][-1] = -1
        lag = {"p50_ms": 0.0, "p99_ms": 0.0}
        pieces.append((part, Played(replace(result, records=Records(**columns)), part.trace, lag, (), ())))
    records = joined(resolved, trace, pieces).result.records
    for name in ("batch_id", "execution_start_ns", "slice_index"):
        assert (getattr(records, name) == -1).sum() == 2, name


def test_an_interrupted_section_is_the_last_one(toy: Any) -> None:
    """Whoever interrupts wants no more of them."""
    order: list[tuple[ResolvedScenario, Trace]] = []
    play = player(order)

    def interrupted(resolved: ResolvedScenario, trace: Trace) -> Played:
        found = play(resolved, trace)
        outcome = found.result.records.outcome.copy()
        outcome[-1] = PENDING
        return replace(found, result=replace(found.result, records=replace(found.result.records, outcome=outcome)))

    with pytest.raises(KeyboardInterrupt):
        in_turns([scenario(toy)], 5, interrupted)
    assert len(order) == 1


def test_closed_loops_and_events_are_played_in_one_piece(toy: Any) -> None:
    """Neither can be cut; one section is no cut."""
    closed = scenario(toy, {"kind": "closed_loop", "outstanding": 4})
    check_sections(closed, 1)
    with pytest.raises(ScenarioError, match=r"models\[0\].arrivals: --sections takes open loops"):
        check_sections(closed, 2)
    failing = scenario(toy, events=[{"kind": "slice_fails", "at_s": 0.5, "slice": 0}])
    check_sections(failing, 1)
    with pytest.raises(ScenarioError, match="events"):
        check_sections(failing, 2)
    check_sections(scenario(toy), 2)


def test_runs_by_time_become_runs_by_count(toy: Any) -> None:
    """Sections take longer than the time that was asked for; as many requests are played, as many are warm-up."""
    by_time = scenario(toy, run={"duration_s": 2.0, "warmup_s": 0.5})
    trace = draw_scenario_trace(by_time)
    run = counted(by_time).scenario.run
    assert run.duration_s is None
    assert run.requests == len(trace)
    assert run.warmup_requests == int((trace.scheduled_ns < 500_000_000).sum())
    by_count = scenario(toy)
    assert counted(by_count) is by_count
    assert sections_note(1) == ()
    assert "in 4 sections" in sections_note(4)[0]
