"""Closed loops: clients that wait for their answer, think, and ask again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from preba.statistics import mean_estimate, throughput_estimate
from preba.units import NS_PER_MS, NS_PER_S

TEN_MS = {"full": {"1": 10.0, "8": 10.0}}


@pytest.mark.parametrize(("clients", "think_ms"), [(1, 0.0), (5, 0.0), (5, 40.0), (30, 100.0)])
def test_closed_loop_obeys_the_response_time_law(toy: Any, clients: int, think_ms: float) -> None:
    """Throughput of N clients with think time Z and response time R is N / (R + Z)."""
    model = toy.model(
        toy.profile(TEN_MS),
        {"kind": "closed_loop", "outstanding": clients, "think_ms": think_ms, "think_distribution": "exponential"},
        execution_jitter={"kind": "exponential"},
    )
    gpus = [{"device": "A100-40GB", "partition": "full", "count": 2}]
    records = toy.run(toy.scenario([model], requests=20_000, gpus=gpus)).result.records
    start, end = (int(np.quantile(records.completed_ns, share)) for share in (0.05, 0.95))
    rate = throughput_estimate(records.completed_ns, start_ns=start, end_ns=end)
    inside = (records.scheduled_ns >= start) & (records.scheduled_ns < end)
    response_s = mean_estimate(records.latency_ns[inside]).scaled(1 / NS_PER_S)
    assert response_s.low is not None
    assert response_s.high is not None
    assert rate.low is not None
    assert rate.high is not None
    low, high = (clients / (edge + think_ms / 1000) for edge in (response_s.high, response_s.low))
    assert rate.low <= high
    assert rate.high >= low
    assert response_s.value == pytest.approx(max(0.01, clients * 0.005 - think_ms / 1000), rel=0.5)


def test_closed_loop_keeps_its_clients_busy(toy: Any) -> None:
    """Without thinking exactly N requests are inside at any time, until the trace runs out."""
    model = toy.model(toy.profile(TEN_MS), {"kind": "closed_loop", "outstanding": 4})
    records = toy.run(toy.scenario([model], requests=100)).result.records
    for request in range(96):
        inside = (records.scheduled_ns <= records.scheduled_ns[request]) & (
            records.completed_ns > records.scheduled_ns[request]
        )
        assert inside.sum() == 4


def test_closed_loop_client_thinks_from_its_answer_on(toy: Any) -> None:
    """The next request comes one think time after the answer has reached the client."""
    clients = {"kind": "closed_loop", "outstanding": 1, "think_ms": 1.0}
    model = toy.model(toy.profile(TEN_MS), clients)
    data = toy.scenario([model], requests=5, server={"overheads": {"response_us": 50.0}})
    records = toy.run(data).result.records
    assert np.array_equal(records.scheduled_ns[1:], records.completed_ns[:-1] + NS_PER_MS)
    assert np.all(records.latency_ns == 10_050_000)


def test_closed_loop_client_backs_off_after_a_refusal(toy: Any) -> None:
    """A refused client waits before it asks again, so refusals cannot follow each other without end."""
    model = toy.model(
        toy.profile(TEN_MS),
        {"kind": "closed_loop", "outstanding": 5, "refusal_backoff_ms": 3.0},
        batcher={"kind": "none"},
    )
    model["batcher"]["queue_max"] = 1
    records = toy.run(toy.scenario([model], requests=200)).result.records
    refused = records.select(~records.served)
    assert len(refused) > 20
    times, counts = np.unique(refused.completed_ns, return_counts=True)
    assert counts.max() <= 5
    assert np.all(np.isin(np.diff(times) % NS_PER_MS, [0]))
    assert len(records.scheduled_ns[records.scheduled_ns == 0]) == 5
