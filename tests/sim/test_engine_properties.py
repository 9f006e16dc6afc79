"""What holds in every run of the reference engine, whatever the scenario: nothing here depends on exact times.

Scenarios are drawn at random (conftest.py): batchers, topologies, balancers, preprocessing, mixed slices, one or two
models, open and closed loops, slices that fail and return, and arrivals that coincide to the nanosecond.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from preba.batchers import FixedBatching, GreedyBatching, NoBatching, PrebaBatching
from preba.batching.triton_config import TritonBatcher
from preba.records import OUTCOMES, Records
from preba.scenario.resolve import ResolvedScenario
from preba.units import NS_PER_MS
from sim.model import build_model
from sim.run import Simulation
from sim.theory import littles_law

STAMPS = (
    "scheduled_ns",
    "issued_ns",
    "preprocess_start_ns",
    "preprocess_end_ns",
    "enqueued_ns",
    "dispatched_ns",
    "execution_start_ns",
    "execution_end_ns",
    "completed_ns",
)
BATCH_COLUMNS = (
    "model_index",
    "server_index",
    "slice_index",
    "dispatched_ns",
    "execution_start_ns",
    "execution_end_ns",
    "slice_preprocess_ns",
    "batch_size",
    "batch_units",
)


def check_outcomes(records: Records) -> None:
    """Every request has one outcome, and the columns that go with it."""
    assert np.array_equal(records.request_id, np.arange(len(records)))
    assert np.all((records.outcome >= 0) & (records.outcome < len(OUTCOMES)))
    served = records.served
    for name in (*STAMPS, "server_index", "slice_index", "batch_id"):
        assert np.all(getattr(records, name)[served] >= 0), name
    unserved = records.select(~served)
    for name in ("dispatched_ns", "execution_start_ns", "execution_end_ns", "slice_index", "batch_id"):
        assert np.all(getattr(unserved, name) == -1), f"{name} of an unserved request"
    pending = records.outcome == OUTCOMES.index("pending")
    assert np.all((records.completed_ns == -1) == pending)
    assert np.all(records.completed_ns[~pending] >= records.scheduled_ns[~pending])
    assert np.all(records.attempts[served] >= 1)
    assert np.all(records.attempts <= 2)


def check_stamps(records: Records) -> None:
    """The stations of a served request's way lie in order of time."""
    served = records.select(records.served)
    for earlier, later in itertools.pairwise(STAMPS):
        assert np.all(getattr(served, earlier) <= getattr(served, later)), f"{earlier} <= {later}"
    assert np.all(served.preprocess_wait_ns >= 0)
    assert np.all(served.preprocess_wait_ns <= served.preprocess_end_ns - served.scheduled_ns)
    assert np.all(served.slice_preprocess_ns <= served.execution_end_ns - served.execution_start_ns)


def largest_batch(resolved: ResolvedScenario, model_index: int, slice_index: int) -> int:
    """What the scenario's own words allow."""
    model = resolved.models[model_index]
    covered = model.profile.batch_max(resolved.slices[slice_index].profile)
    config = model.config.batcher
    if isinstance(config, NoBatching):
        return 1
    if isinstance(config, TritonBatcher):
        return config.max_batch_size
    if isinstance(config, FixedBatching):
        return config.batch_max
    assert isinstance(config, GreedyBatching | PrebaBatching)
    return min(config.batch_max or covered, covered)


def check_batches(records: Records, resolved: ResolvedScenario) -> None:
    """Batches are whole, within their maximum, of one model, and never two at once on a slice."""
    served = records.select(records.served)
    busy: dict[int, list[tuple[int, int]]] = {}
    for batch in np.unique(served.batch_id):
        members = served.select(served.batch_id == batch)
        for name in BATCH_COLUMNS:
            assert len(np.unique(getattr(members, name))) == 1, f"{name} differs within batch {batch}"
        model_index, slice_index = int(members.model_index[0]), int(members.slice_index[0])
        units = resolved.models[model_index].config.batch_units
        assert len(members) == members.batch_size[0]
        assert len(members) * units == members.batch_units[0]
        assert members.batch_units[0] <= largest_batch(resolved, model_index, slice_index)
        assert resolved.slices[slice_index].model_index == model_index
        span = (int(members.execution_start_ns[0]), int(members.execution_end_ns[0]))
        busy.setdefault(slice_index, []).append(span)
    for spans in busy.values():
        spans.sort()
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def check_buckets(records: Records, resolved: ResolvedScenario, simulation: Simulation) -> None:
    """PREBA: no batch over the Batch_max of its longest input, merging within reach, FIFO in a bucket."""
    model = build_model(resolved, simulation.trace)
    for served in resolved.models:
        config = served.config.batcher
        if not isinstance(config, PrebaBatching):
            continue
        mine = records.select((records.model_index == served.index) & records.served)
        buckets = model.bucket[mine.request_id]
        for batch in np.unique(mine.batch_id):
            inside = mine.batch_id == batch
            limit = model.servers[int(mine.server_index[inside][0])].plan.bucket_batch_max
            assert inside.sum() <= limit[buckets[inside].max()]
            assert np.ptp(buckets[inside]) <= 2 * config.merge_reach
        if resolved.scenario.events:
            continue
        for server, bucket in set(zip(mine.server_index.tolist(), buckets.tolist(), strict=True)):
            line = mine.select((mine.server_index == server) & (buckets == bucket))
            by_arrival = np.lexsort((line.dispatched_ns, line.enqueued_ns))
            assert np.all(np.diff(line.dispatched_ns[by_arrival]) >= 0), f"bucket {bucket} is not FIFO"


def check_stations(simulation: Simulation, resolved: ResolvedScenario) -> None:
    """Stations serve first come, first served, one thing per unit at a time, and everybody exactly once."""
    model = build_model(resolved, simulation.trace)
    stations = model.preprocessing
    spans, records = simulation.result.spans, simulation.result.records
    waits = np.zeros(len(records), dtype=np.int64)
    for index, station in enumerate(stations.stations):
        here = np.flatnonzero(spans.station_index == index)
        start, released, arrived = spans.start_ns[here], spans.released_ns[here], spans.arrived_ns[here]
        visitors = np.isin(records.model_index, [m for m, route in enumerate(stations.routes) if index in route])
        visitors &= records.preprocess_start_ns >= 0  # a closed loop that got stuck never sent the rest
        assert np.array_equal(np.sort(spans.request_id[here]), np.flatnonzero(visitors))
        assert np.all(arrived <= start)
        assert np.all(start <= released)
        assert np.all(released <= spans.end_ns[here])
        by_arrival = np.lexsort((start, arrived))
        assert np.all(np.diff(start[by_arrival]) >= 0), f"{station.name} is not first come, first served"
        assert np.all(spans.unit_index[here] < station.units)
        for unit in range(station.units):
            mine = spans.unit_index[here] == unit
            turns = list(zip(start[mine].tolist(), released[mine].tolist(), strict=True))
            at_once = [turns.count(turn) for turn in set(turns) if turn[1] > turn[0]]
            assert max(at_once, default=1) <= station.batch_max, f"{station.name} overfills a unit"
            distinct = sorted(set(turns))
            assert all(first[1] <= second[0] for first, second in itertools.pairwise(distinct))
        if station.kind != "hop":
            np.add.at(waits, spans.request_id[here], start - arrived)
    sent = records.preprocess_start_ns >= 0
    waits[sent] += np.array(model.ingress_ns)[records.model_index[sent]]
    assert np.array_equal(waits, records.preprocess_wait_ns)


def check_order(records: Records, resolved: ResolvedScenario) -> None:
    """Where batches are formed at dispatch and nothing was moved, who came earlier leaves no later."""
    for model in resolved.models:
        config = model.config.batcher
        if isinstance(config, TritonBatcher) and config.preserve_ordering and not config.ordering_regression:
            answered = records.select(np.flatnonzero((records.model_index == model.index) & records.served))
            for server in np.unique(answered.server_index):
                line = answered.select(answered.server_index == server)
                batches = np.unique(line.batch_id, return_inverse=True)[1]
                first, last = (np.zeros(batches.max() + 1, dtype=np.int64) for _ in range(2))
                first[:] = np.iinfo(np.int64).max
                np.minimum.at(first, batches, line.completed_ns)
                np.maximum.at(last, batches, line.completed_ns)
                if not resolved.scenario.events:
                    assert np.all(last[:-1] <= first[1:])
        late = isinstance(config, NoBatching | GreedyBatching) or (
            isinstance(config, FixedBatching) and config.forms == "at_dispatch"
        )
        mine = records.select(np.flatnonzero((records.model_index == model.index) & records.served))
        if not late or resolved.scenario.events:
            continue
        for server in np.unique(mine.server_index):
            line = mine.select(mine.server_index == server)
            by_arrival = np.lexsort((line.dispatched_ns, line.enqueued_ns))
            assert np.all(np.diff(line.dispatched_ns[by_arrival]) >= 0)


def check_everything(simulation: Simulation, resolved: ResolvedScenario) -> None:
    records = simulation.result.records
    assert len(records) == len(simulation.trace)
    check_outcomes(records)
    check_stamps(records)
    check_batches(records, resolved)
    check_stations(simulation, resolved)
    check_order(records, resolved)
    check_buckets(records, resolved, simulation)
    done = records.select(records.completed_ns >= 0)
    if len(done) and done.completed_ns.max() > 0:
        law = littles_law(
            done.scheduled_ns, done.completed_ns, start_ns=0, end_ns=int(done.completed_ns.max()) + NS_PER_MS
        )
        assert law.number_mean == pytest.approx(law.product + law.edge_mean, rel=1e-9, abs=1e-12)
        assert law.edge_mean == 0


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reference_keeps_its_promises_in_any_scenario(toy: Any, drawn_scenarios: Any, data: st.DataObject) -> None:
    """Every request is served exactly once or recorded as not served, in order, whole and without overlap."""
    scenario = data.draw(drawn_scenarios)
    resolved = toy.resolve(scenario)
    simulation = toy.run(scenario)
    for model in scenario["models"]:
        event(f"batcher {model['batcher']['kind']}")
    for outcome in np.unique(simulation.result.records.outcome):
        event(f"outcome {OUTCOMES[outcome]}")
    event(f"preprocessing {scenario['preprocessing']['kind']}")
    check_everything(simulation, resolved)


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reference_serves_everything_while_all_slices_live(toy: Any, drawn_scenarios: Any, data: st.DataObject) -> None:
    """With unbounded queues, no time-outs and no failures, nothing is refused, lost or forgotten."""
    scenario = data.draw(drawn_scenarios)
    scenario["events"] = []
    for model in scenario["models"]:
        model["batcher"].pop("queue_max", None)
        model["batcher"].pop("default_queue_policy", None)
        model.pop("timeout_ms", None)
    assert toy.run(scenario).result.records.served.all()


@given(
    rate_rps=st.sampled_from([50.0, 300.0, 900.0, 2000.0]),
    kind=st.sampled_from(["poisson", "deterministic"]),
    batcher=st.one_of(
        st.just({"kind": "none"}),
        st.just({"kind": "greedy"}),
        st.builds(
            lambda size, wait, forms: {"kind": "fixed", "batch_max": size, "timeout_ms": wait, "forms": forms},
            st.integers(1, 6),
            st.sampled_from([0.0, 2.0, 9.0]),
            st.sampled_from(["at_dispatch", "when_due"]),
        ),
        st.builds(
            lambda wait, due: {"kind": "preba", "batch_max": 4, "time_queue_ms": wait, "due_batch": due},
            st.sampled_from([0.0, 2.0, 9.0]),
            st.sampled_from(["stays_open", "frozen"]),
        ),
    ),
    slices=st.integers(1, 7),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_batch_never_waits_longer_than_its_delay_while_a_slice_is_idle(
    toy: Any, rate_rps: float, kind: str, batcher: dict[str, Any], slices: int, seed: int
) -> None:
    """From the moment its oldest request has waited the batcher's delay until it starts, every slice is busy."""
    model = toy.model(
        toy.profile(toy.image_table),
        {"kind": kind, "rate_rps": rate_rps},
        batcher=batcher,
        slices=list(range(slices)),
        execution_jitter={"kind": "gamma", "cv": 0.3},
    )
    records = toy.run(toy.scenario([model], requests=150, seed=seed, partition="7x1g.5gb")).result.records
    delay_ns = round(batcher.get("timeout_ms", batcher.get("time_queue_ms", 0.0)) * NS_PER_MS)
    _, first = np.unique(records.batch_id, return_index=True)
    begins, ends = records.execution_start_ns[first], records.execution_end_ns[first]
    for batch, start in zip(records.batch_id[first], begins, strict=True):
        due = records.enqueued_ns[records.batch_id == batch].min() + delay_ns
        for moment in {due, start - 1} if start > due else ():
            assert np.sum((begins <= moment) & (ends > moment)) == slices


def corrupted(records: Records, name: str, change: Mapping[int, int]) -> Records:
    columns = {field: getattr(records, field).copy() for field in records.__dataclass_fields__}
    for row, value in change.items():
        columns[name][row] = value
    return Records(**columns)


def test_property_checks_can_fail(toy: Any) -> None:
    """The checks turn down records in which a stamp, a batch or an outcome has been tampered with."""
    data = toy.scenario(
        [toy.model(toy.profile(toy.image_table), {"kind": "poisson", "rate_rps": 900}, batcher={"kind": "greedy"})]
    )
    resolved, records = toy.resolve(data), toy.run(data).result.records
    check_batches(records, resolved)
    overlapping = corrupted(records, "execution_end_ns", {0: int(records.execution_start_ns[-1])})
    tampered = {
        check_stamps: corrupted(records, "enqueued_ns", {5: int(records.completed_ns[5]) + 1}),
        check_outcomes: corrupted(records, "outcome", {5: OUTCOMES.index("pending")}),
    }
    for check, wrong in tampered.items():
        with pytest.raises(AssertionError):
            check(wrong)
    with pytest.raises(AssertionError):
        check_batches(overlapping, resolved)
    with pytest.raises(AssertionError):
        check_batches(corrupted(records, "batch_id", {5: int(records.batch_id[0])}), resolved)
