"""What becomes of requests when slices fail and return, and when the rate changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preba.errors import ScenarioError
from preba.records import OUTCOMES, Records, column_names
from preba.units import NS_PER_MS, NS_PER_S

FAILED = OUTCOMES.index("failed_slice_lost")
PENDING = OUTCOMES.index("pending")
TABLE = {"1g": {"1": 10.0, "8": 24.0}}


def steady(toy: Any, rate_rps: float = 500.0, **fields: Any) -> dict[str, Any]:
    """Seven slices, 10 ms each, a request every 2 ms."""
    model = toy.model(toy.profile(TABLE), {"kind": "deterministic", "rate_rps": rate_rps})
    common = {"partition": "7x1g.5gb", "run": {"duration_s": 1.0}}
    return toy.scenario([model], **{**common, **fields})


def fails(at_s: float, index: int = 0) -> dict[str, Any]:
    return {"kind": "slice_fails", "at_s": at_s, "slice": index}


def returns(at_s: float, index: int = 0) -> dict[str, Any]:
    return {"kind": "slice_returns", "at_s": at_s, "slice": index}


def equal_rows(first: Records, second: Records, keep: Any) -> bool:
    return first.select(keep).equals(second.select(keep))


@pytest.mark.parametrize("topology", ["central", "per_slice"])
def test_slice_loss_repeats_what_it_was_executing_once(toy: Any, topology: str) -> None:
    """The request on the lost slice is served elsewhere, at its second attempt; nobody is lost."""
    records = toy.run(steady(toy, events=[fails(0.5001)], server={"topology": topology})).result.records
    assert records.served.all()
    assert np.bincount(records.attempts).tolist() == [0, len(records) - 1, 1]
    (again,) = np.flatnonzero(records.attempts == 2)
    assert records.slice_index[again] != 0
    assert records.execution_start_ns[again] >= 500_100_000
    assert records.scheduled_ns[again] < 500_100_000


@pytest.mark.parametrize("topology", ["central", "per_slice"])
def test_slice_loss_may_fail_what_it_was_executing(toy: Any, topology: str) -> None:
    """With on_slice_loss: fail the request is failed at that instant and holds no slice and no batch."""
    server = {"topology": topology, "on_slice_loss": "fail"}
    records = toy.run(steady(toy, events=[fails(0.5001)], server=server)).result.records
    (lost,) = np.flatnonzero(records.outcome == FAILED)
    assert records.completed_ns[lost] == 500_100_000
    assert records.slice_index[lost] == records.batch_id[lost] == -1
    assert records.batch_size[lost] == 0
    assert np.sum(records.served) == len(records) - 1


def test_slice_loss_of_a_second_slice_fails_the_request(toy: Any) -> None:
    """A request whose slices are lost twice is failed, not tried for ever."""
    data = steady(toy, partition="2x1g.5gb", rate_rps=20.0, events=[fails(0.051, 0), fails(0.057, 1), returns(0.06, 1)])
    records = toy.run(data).result.records
    assert records.outcome[0] == FAILED
    assert records.attempts[0] == 2
    assert records.completed_ns[0] == 57 * NS_PER_MS
    assert records.served[1:].all()


def test_slice_loss_leaves_other_slices_alone(toy: Any) -> None:
    """Behind round robin, what other slices did up to the failure is what they did without it."""
    quiet = toy.run(steady(toy, server={"topology": "per_slice"})).result.records
    hit = toy.run(steady(toy, events=[fails(0.5001)], server={"topology": "per_slice"})).result.records
    before = (quiet.completed_ns < 500_100_000) & (quiet.batch_id >= 0)
    assert before.sum() > 200
    assert equal_rows(quiet, hit, before)
    running = (quiet.scheduled_ns < 500_100_000) & ~before & (quiet.slice_index != 0)
    for name in column_names():
        assert np.array_equal(getattr(quiet, name)[running], getattr(hit, name)[running]), name


def test_slice_out_of_service_executes_nothing(toy: Any) -> None:
    """Between failure and return no execution touches the slice; afterwards it works again."""
    for topology in ("central", "per_slice"):
        events = [fails(0.3), returns(0.6)]
        result = toy.run(steady(toy, rate_rps=600.0, events=events, server={"topology": topology})).result
        records = result.records
        mine = records.select(records.slice_index == 0)
        assert not np.any((mine.execution_end_ns > 300 * NS_PER_MS) & (mine.execution_start_ns < 600 * NS_PER_MS))
        assert np.any(mine.execution_start_ns >= 600 * NS_PER_MS)
        assert result.outages == ((0, 300 * NS_PER_MS, 600 * NS_PER_MS),)


def test_slice_that_never_returns_is_out_until_the_end(toy: Any) -> None:
    """An outage without a return lasts to the last event of the run."""
    result = toy.run(steady(toy, events=[fails(0.3), fails(0.4)])).result
    ((slice_index, since_ns, until_ns),) = result.outages
    assert (slice_index, since_ns) == (0, 300 * NS_PER_MS)
    assert until_ns >= result.end_ns


def test_requests_that_wait_for_a_slice_that_never_returns_stay_pending(toy: Any) -> None:
    """A central batcher keeps what no slice is left for; the run ends, says so, and measures to the last answer."""
    data = steady(toy, partition="1g.5gb", rate_rps=50.0, events=[fails(0.505)])
    simulation = toy.run(data)
    records = simulation.result.records
    assert np.array_equal(records.outcome == PENDING, records.scheduled_ns > 490 * NS_PER_MS)
    assert any("never served" in warning for warning in simulation.warnings)
    assert simulation.result.end_ns == records.completed_ns.max()


def test_run_in_which_nothing_is_served_ends_at_zero(toy: Any) -> None:
    """With the only slice lost before the first request there is no completion, and no negative time either."""
    data = steady(toy, partition="1g.5gb", rate_rps=50.0, events=[fails(0.0)])
    result = toy.run(data).result
    assert np.all(result.records.outcome == PENDING)
    assert result.end_ns >= 0


@pytest.mark.parametrize("on_slice_loss", ["retry", "fail"])
def test_balancer_without_servers_keeps_or_fails_requests_until_one_returns(toy: Any, on_slice_loss: str) -> None:
    """With every server out of service requests wait at the balancer, or fail, as the scenario says."""
    events = [fails(0.2, 0), fails(0.2, 1), returns(0.5, 1)]
    server = {"topology": "per_slice", "on_slice_loss": on_slice_loss}
    data = steady(toy, partition="2x1g.5gb", rate_rps=100.0, events=events, server=server)
    records = toy.run(data).result.records
    down = (records.scheduled_ns >= 200 * NS_PER_MS) & (records.scheduled_ns < 500 * NS_PER_MS)
    if on_slice_loss == "fail":
        assert np.all(records.outcome[down] == FAILED)
    else:
        assert records.served.all()
        assert records.execution_start_ns[down].min() == 500 * NS_PER_MS
        assert np.all(np.diff(records.execution_start_ns[down]) > 0)  # first come, first served
    assert records.served[records.scheduled_ns > 500 * NS_PER_MS].all()
    assert set(records.slice_index[records.scheduled_ns > 500 * NS_PER_MS].tolist()) == {1}


@pytest.mark.parametrize("topology", ["central", "per_slice"])
def test_slices_that_fail_together_send_nobody_to_each_other(toy: Any, topology: str) -> None:
    """A reset of the whole GPU costs each request it executed one attempt, not two, and all are served later."""
    events = [fails(0.3005, i) for i in range(3)] + [returns(0.6, i) for i in range(3)]
    data = steady(toy, partition="3x1g.5gb", rate_rps=250.0, events=events, server={"topology": topology})
    simulation = toy.run(data)
    records = simulation.result.records
    assert records.served.all()
    again = records.attempts == 2
    assert 1 <= again.sum() <= 3
    assert records.execution_start_ns[again].min() >= 600 * NS_PER_MS
    assert simulation.result.outages == tuple((i, 300_500_000, 600 * NS_PER_MS) for i in range(3))


def test_waiting_requests_move_from_a_lost_server_to_the_others(toy: Any) -> None:
    """What waits for a lost slice alone is served by the others, at its first attempt, keeping its arrival."""
    data = steady(
        toy, partition="3x1g.5gb", rate_rps=600.0, events=[fails(0.5005, 1)], server={"topology": "per_slice"}
    )
    records = toy.run(data).result.records
    assert records.served.all()
    moved = (records.scheduled_ns < 500_500_000) & (records.execution_start_ns > 500_500_000)
    assert moved.sum() > 50
    assert set(records.slice_index[moved].tolist()) == {0, 2}
    assert np.sum(records.attempts[moved] == 2) == 1
    assert np.array_equal(records.enqueued_ns, records.scheduled_ns)


def test_slice_events_on_preprocessing_slices_are_refused(toy: Any) -> None:
    """A slice given to DALI serves no model, so its failure is not modelled and not silently ignored."""
    data = steady(toy, preprocessing=toy.dali("dali_slice", slices=[6]), events=[fails(0.1, 6)])
    with pytest.raises(ScenarioError, match=r"^scenario.events\[0\].slice: slice 6 "):
        toy.run(data)


def test_slice_events_name_a_slice_that_is_there(toy: Any) -> None:
    """A slice index beyond the partition is an error that says which there are."""
    with pytest.raises(ScenarioError, match=r"^scenario.events\[0\].slice: there is no slice 7; .*0\.\.6$"):
        toy.run(steady(toy, events=[fails(0.1, 7)]))


def test_rate_change_doubles_the_arrivals_from_its_moment_on(toy: Any) -> None:
    """From the change on twice as many requests come; those before it are untouched."""
    change = {"kind": "rate_changes", "at_s": 0.5, "factor": 2.0}
    plain, doubled = (toy.run(steady(toy, events=events)).result.records for events in ([], [change]))
    half = NS_PER_S // 2
    early = plain.scheduled_ns < half
    assert np.array_equal(plain.scheduled_ns[early], doubled.scheduled_ns[doubled.scheduled_ns < half])
    late = np.sum(plain.scheduled_ns >= half)
    assert abs(np.sum(doubled.scheduled_ns >= half) - 2 * late) <= 1


def test_rate_change_of_one_model_leaves_the_other_alone(toy: Any) -> None:
    """A rate change that names a model changes only that model's arrivals."""
    data = steady(toy)
    second = {**data["models"][0], "name": "other", "slices": [3, 4]}
    data["models"] = [{**data["models"][0], "slices": [0, 1, 2]}, second]
    plain = toy.run(data).result.records
    change = {"kind": "rate_changes", "at_s": 0.5, "factor": 2.0, "model": "other"}
    changed = toy.run({**data, "events": [change]}).result.records
    counts = [np.bincount(records.model_index) for records in (plain, changed)]
    assert counts[0][0] == counts[1][0]
    assert abs(counts[1][1] - 1.5 * counts[0][1]) <= 1
