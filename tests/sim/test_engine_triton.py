"""Triton's batcher inside the whole engine: vectors, early backends, ordering, time-outs, priorities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preba.records import OUTCOMES, Records
from preba.units import NS_PER_MS

TEN_MS = {"full": {"1": 10.0, "8": 10.0}}


def batches_of(records: Records) -> list[tuple[float, int, float]]:
    """(formed ms, units, start ms) of every batch, in order of start."""
    served = records.select(records.served)
    _, first = np.unique(served.batch_id, return_index=True)
    rows = [
        (
            float(served.dispatched_ns[k]) / NS_PER_MS,
            int(served.batch_units[k]),
            float(served.execution_start_ns[k]) / NS_PER_MS,
        )
        for k in first
    ]
    return sorted(rows, key=lambda row: row[2])


def every(step_ms: float, count: int) -> list[float]:
    return [round(step_ms * place, 6) for place in range(count)]


def just_before(times_ms: list[float]) -> list[float]:
    """The same arrivals 1 us earlier: the vectors let who comes at the end of a batch join the next one.

    The simulator's written order is the other (completions first), so the tie is broken here.
    """
    return [times_ms[0], *(at - 0.001 for at in times_ms[1:])]


VECTORS: dict[str, tuple[list[float], dict[str, Any], list[tuple[float, int, float]]]] = {
    "A": (every(0.1, 20), {}, [(0, 1, 0), (10, 8, 10), (20, 8, 20), (30, 3, 30)]),
    "T1": (just_before(every(2, 20)), {}, [(0, 1, 0), (10, 5, 10), (20, 5, 20), (30, 5, 30), (40, 4, 40)]),
    "T2": (
        every(2, 20),
        {"backend": "trt", "input_consumed_ms": 1},
        [(0, 1, 0), (2, 1, 10), (11, 4, 20), (21, 5, 30), (31, 5, 40), (41, 4, 50)],
    ),
    "T3": (
        every(0.1, 20),
        {"backend": "trt", "input_consumed_ms": 1},
        [(0, 1, 0), (1, 8, 10), (11, 8, 20), (21, 3, 30)],
    ),
    "T2 with CUDA graphs": (
        just_before(every(2, 20)),
        {"backend": "trt-graph"},
        [(0, 1, 0), (10, 5, 10), (20, 5, 20), (30, 5, 30), (40, 4, 40)],
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_engine_reproduces_triton_vector(toy: Any, tmp_path: Any, name: str) -> None:
    """Through the whole engine Triton's batches form and start when its source says (execution 10 ms, any size)."""
    times, fields, expected = VECTORS[name]
    model = toy.model(
        toy.profile(TEN_MS), toy.arrivals_at(tmp_path, times), batcher={"kind": "triton", "max_batch_size": 8, **fields}
    )
    records = toy.run(toy.scenario([model], requests=len(times))).result.records
    assert batches_of(records) == expected


def test_eager_backend_forms_three_batches_ahead_each_time(toy: Any, tmp_path: Any) -> None:
    """An eager TensorRT instance takes three batches at once and, once idle again, another three."""
    times = [0.0, 0.1, 0.2, 0.3, 100.0, 100.1, 100.2, 100.3]
    batcher = {"kind": "triton", "max_batch_size": 1, "backend": "eager"}
    model = toy.model(toy.profile(TEN_MS), toy.arrivals_at(tmp_path, times), batcher=batcher)
    found = batches_of(toy.run(toy.scenario([model], requests=8)).result.records)
    burst = [(0.0, 1, 0.0), (0.1, 1, 10.0), (0.2, 1, 20.0), (10.0, 1, 30.0)]
    assert found == burst + [(formed + 100, units, start + 100) for formed, units, start in burst]


def test_eager_backend_starts_afresh_after_its_slice_was_lost(toy: Any, tmp_path: Any) -> None:
    """When a slice returns its instance may form three batches ahead again, whatever was lost with it."""
    batcher = {"kind": "triton", "max_batch_size": 1, "backend": "eager"}
    model = toy.model(
        toy.profile(TEN_MS), toy.arrivals_at(tmp_path, [0.0, 1.0, 2.0, 100.0, 100.1, 100.2]), batcher=batcher
    )
    events = [{"kind": "slice_fails", "at_s": 0.005, "slice": 0}, {"kind": "slice_returns", "at_s": 0.05, "slice": 0}]
    data = toy.scenario([model], requests=6, events=events, server={"on_slice_loss": "fail"})
    found = batches_of(toy.run(data).result.records)
    assert found == [(100.0, 1, 100.0), (100.1, 1, 110.0), (100.2, 1, 120.0)]


@pytest.mark.parametrize(("on_loss", "outcomes"), [("fail", [3, 0]), ("retry", [0, 0])])
def test_ordered_answers_wait_for_no_lost_request(toy: Any, tmp_path: Any, on_loss: str, outcomes: list[int]) -> None:
    """With preserve_ordering an answer is held back by an earlier request until that is answered, or lost."""
    table = {"3g": {"1": 20.0}, "2g": {"1": 5.0}}
    batcher = {"kind": "triton", "max_batch_size": 1, "preserve_ordering": True, "slice_choice": "first"}
    batcher["quirks"] = {"ordering_regression": False}
    model = toy.model(toy.profile(table), toy.arrivals_at(tmp_path, [0.0, 1.0]), batcher=batcher)
    placed = ["3g.20gb@0", "2g.10gb@4"]
    data = toy.scenario([model], requests=2, partition=placed, server={"on_slice_loss": on_loss})
    held = toy.run(data).result.records
    assert held.slice_index.tolist() == [0, 1]
    assert held.completed_ns.tolist() == [20 * NS_PER_MS] * 2
    records = toy.run({**data, "events": [{"kind": "slice_fails", "at_s": 0.008, "slice": 0}]}).result.records
    assert records.outcome.tolist() == outcomes
    assert records.completed_ns.tolist() == [8 * NS_PER_MS if on_loss == "fail" else 13 * NS_PER_MS, 8 * NS_PER_MS]


def test_requests_bring_their_own_timeout(toy: Any, tmp_path: Any) -> None:
    """With allow_timeout_override a request that waits longer than it said is refused; without, it waits on."""
    policy = {"default_timeout_us": 60_000_000, "allow_timeout_override": True}
    batcher = {"kind": "triton", "max_batch_size": 1, "default_queue_policy": policy}
    batcher["quirks"] = {"batcher_first_permille": 0}
    model = toy.model(toy.profile(TEN_MS), toy.arrivals_at(tmp_path, [0.0, 1.0, 8.0]), batcher=batcher, timeout_ms=3.0)
    records = toy.run(toy.scenario([model], requests=3)).result.records
    assert [OUTCOMES[code] for code in records.outcome] == ["served", "refused_timeout", "served"]
    policy["allow_timeout_override"] = False
    assert toy.run(toy.scenario([model], requests=3)).result.records.served.all()


def test_requests_of_higher_priority_overtake(toy: Any) -> None:
    """Priority 1 waits less than priority 2, and nobody of priority 2 leaves while one of 1 waits."""
    batcher = {"kind": "triton", "max_batch_size": 1, "priority_levels": 2, "default_priority_level": 2}
    model = toy.model(toy.profile(TEN_MS), {"kind": "poisson", "rate_rps": 90.0}, batcher=batcher)
    model["priority_shares"] = {"1": 1, "2": 3}
    simulation = toy.run(toy.scenario([model]))
    records, urgent = simulation.result.records, simulation.trace.priority == 1
    for request in np.flatnonzero(~urgent):
        start = records.dispatched_ns[request]
        assert not np.any(urgent & (records.enqueued_ns < start) & (records.dispatched_ns > start))
    assert records.latency_ns[urgent].mean() < 0.5 * records.latency_ns[~urgent].mean()
