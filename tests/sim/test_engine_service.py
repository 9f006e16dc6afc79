"""How long things take and in which order they happen, on scenarios small enough to work out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.errors import ScenarioError
from preba.records import OUTCOMES, Records
from preba.statistics import mean_estimate, throughput_estimate
from preba.units import NS_PER_MS, NS_PER_S, NS_PER_US
from sim.order import (
    RANK_ARRIVAL,
    RANK_CONSUMER_READY,
    RANK_EXECUTION_END,
    RANK_SCENARIO,
    RANK_STATION_LEAVE,
    RANK_TIMER,
    RANK_UNIT_RELEASE,
    order_key,
)
from sim.run import ENGINES

TEN_MS = {"full": {"1": 10.0, "8": 10.0}}
GROWING = {"full": {"1": 2.0, "8": 9.0}}


def intervals(tmp_path: Any, times_ms: list[float]) -> dict[str, Any]:
    """Arrivals at exactly these times, and one much later that the run is too short for."""
    path = tmp_path / "times.csv"
    path.write_text(
        "time_ns\n" + "\n".join(str(round(at * NS_PER_MS)) for at in [*times_ms, times_ms[-1] + 1000]) + "\n"
    )
    return {"kind": "replay", "file": str(path), "format": "csv", "column": "time_ns", "unit": "ns"}


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
        toy.profile(TEN_MS), intervals(tmp_path, times), batcher={"kind": "triton", "max_batch_size": 8, **fields}
    )
    records = toy.run(toy.scenario([model], requests=len(times))).result.records
    assert batches_of(records) == expected


def test_engine_times_a_request_through_every_stage(toy: Any, tmp_path: Any) -> None:
    """Preprocessing, front end, batching, execution, response and turn-around follow each other exactly."""
    model = toy.model(
        toy.profile(GROWING),
        intervals(tmp_path, [0.0, 0.5]),
        batcher={"kind": "fixed", "batch_max": 8, "timeout_ms": 4.0},
    )
    overheads = {"frontend_us": 100.0, "turnaround_us": 300.0, "response_us": 50.0}
    data = toy.scenario(
        [model], requests=2, preprocessing=toy.cpu(1, 1800.0, usable=0.9), server={"overheads": overheads}
    )
    records = toy.run(data).result.records
    # 1.8 ms of work take 2 ms of a core that is 90 % usable; the batch leaves 4 ms after its oldest came.
    expected_us = {
        "scheduled_ns": [0, 500],
        "preprocess_start_ns": [0, 2000],
        "preprocess_end_ns": [2000, 4000],
        "preprocess_wait_ns": [0, 1500],
        "enqueued_ns": [2100, 4100],
        "dispatched_ns": [6100, 6100],
        "execution_start_ns": [6100, 6100],
        "execution_end_ns": [9100, 9100],
        "completed_ns": [9150, 9150],
        "batch_size": [2 / NS_PER_US] * 2,
    }
    for name, values in expected_us.items():
        assert getattr(records, name).tolist() == [round(value * NS_PER_US) for value in values], name


def test_slice_takes_the_next_batch_after_its_turnaround(toy: Any, tmp_path: Any) -> None:
    """Between two executions of a busy slice lies the turn-around and nothing else."""
    model = toy.model(toy.profile(TEN_MS), intervals(tmp_path, [0.0, 1.0, 2.0]))
    data = toy.scenario([model], requests=3, server={"overheads": {"turnaround_us": 300.0}})
    starts = toy.run(data).result.records.execution_start_ns / NS_PER_MS
    assert starts.tolist() == [0.0, 10.3, 20.6]


def test_audio_batch_takes_the_time_of_its_longest_input(toy: Any, tmp_path: Any) -> None:
    """Batch time is read at the longest input, rounded up to 0.1 s; a batch is as long as that for everybody."""
    path = tmp_path / "sizes.csv"
    path.write_text("length_s\n5.0\n2.03\n1.0\n")
    sizes = {"kind": "empirical", "file": str(path), "column": "length_s", "unit": "s", "order": "in_order"}
    model = toy.model(
        toy.audio_profile(["full"]),
        intervals(tmp_path, [0.0, 0.0, 0.0]),
        sizes=sizes,
        batcher={"kind": "greedy"},
    )
    records = toy.run(toy.scenario([model], requests=3)).result.records
    # 2 ms + 1 ms per item of 10 s: the first alone at 5 s, then two at 2.1 s (the longest input of the run is 5 s).
    assert (records.execution_end_ns - records.execution_start_ns).tolist() == [2_500_000, 2_500_000, 2_500_000]
    lengthy = toy.audio_profile(["full"])
    lengthy["closed_form"]["floor_ms"] = 0.1
    records = toy.run(toy.scenario([{**model, "profile": lengthy}], requests=3)).result.records
    assert (records.execution_end_ns - records.execution_start_ns).tolist() == [2_500_000, 2_420_000, 2_420_000]


def test_busy_neighbours_slow_a_slice_in_proportion(toy: Any, tmp_path: Any) -> None:
    """With interference f, a batch that starts beside k of the 6 busy neighbours takes 1 + f * k / 6 as long."""
    slow = {"busy_neighbour_fraction": 0.06, "provenance": {"kind": "modelled", "source": "made up for a test"}}
    profile = toy.profile({"1g": {"1": 10.0}}, interference=slow)
    model = toy.model(profile, intervals(tmp_path, [0.0] * 7))
    records = toy.run(toy.scenario([model], requests=7, partition="7x1g.5gb")).result.records
    took = records.execution_end_ns - records.execution_start_ns
    assert took.tolist() == [10_000_000 + 100_000 * busy for busy in range(7)]


def test_slice_of_another_gpu_is_no_neighbour(toy: Any, tmp_path: Any) -> None:
    """Interference stays within a GPU."""
    slow = {"busy_neighbour_fraction": 0.06, "provenance": {"kind": "modelled", "source": "made up for a test"}}
    profile = toy.profile({"full": {"1": 10.0}}, interference=slow)
    model = toy.model(profile, intervals(tmp_path, [0.0] * 2))
    gpus = [{"device": "A100-40GB", "partition": "full", "count": 2}]
    records = toy.run(toy.scenario([model], requests=2, gpus=gpus)).result.records
    assert (records.execution_end_ns - records.execution_start_ns).tolist() == [10_000_000] * 2


def test_shared_preprocessing_is_part_of_the_execution_and_slows_it(toy: Any, tmp_path: Any) -> None:
    """DALI on the model's slice takes one launch and its items first; the execution itself is 10 % slower."""
    model = toy.model(toy.profile({"7g": {"1": 10.0, "8": 10.0}}), intervals(tmp_path, [0.0, 1.0, 1.0]))
    model["batcher"] = {"kind": "greedy"}
    image = {"fixed_us": 700.0, "per_100kb_us": 0.0}
    preprocessing = toy.dali("dali_shared", launch_us=200.0, image=image, interference=0.1, hw_decoder_share=0.0)
    records = toy.run(
        toy.scenario([model], requests=3, partition="1x7g.40gb", preprocessing=preprocessing)
    ).result.records
    # 0.7 ms of one GPC take 0.1 ms on seven.
    assert records.slice_preprocess_ns.tolist() == [300_000, 400_000, 400_000]
    took = records.execution_end_ns - records.execution_start_ns
    assert (took - records.slice_preprocess_ns).tolist() == [11_000_000] * 3


def test_request_of_more_units_than_the_largest_batch_is_refused_up_front(toy: Any) -> None:
    """A request that no batch can hold is a mistake in the scenario, said before anything runs."""
    model = toy.model(toy.profile(TEN_MS), {"kind": "poisson", "rate_rps": 10}, batch_units=2)
    with pytest.raises(ScenarioError, match=r"^scenario\.models\[0\]\.batch_units: .*2.*at most 1"):
        toy.run(toy.scenario([model]))


def test_queue_limit_refuses_who_comes_while_it_is_full(toy: Any, tmp_path: Any) -> None:
    """With queue_max 2 the third waiting request is turned away at once and costs nobody anything."""
    model = toy.model(toy.profile(TEN_MS), intervals(tmp_path, [0.0, 1.0, 2.0, 3.0, 12.0]))
    model["batcher"] = {"kind": "none", "queue_max": 2}
    records = toy.run(toy.scenario([model], requests=5)).result.records
    assert [OUTCOMES[code] for code in records.outcome] == ["served"] * 3 + ["refused_queue_full", "served"]
    assert records.completed_ns[3] == 3 * NS_PER_MS
    assert (records.execution_start_ns[records.served] / NS_PER_MS).tolist() == [0, 10, 20, 30]


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


@given(
    first=st.tuples(st.integers(0, 6), st.integers(0, 2**48 - 1)),
    second=st.tuples(st.integers(0, 6), st.integers(0, 2**48 - 1)),
)
def test_simultaneous_events_sort_by_rank_then_id(first: tuple[int, int], second: tuple[int, int]) -> None:
    """The key of an event sorts as the pair of its rank and its id does."""
    assert (order_key(*first) < order_key(*second)) == (first < second)


def test_simultaneous_events_have_the_documented_order() -> None:
    """Completions come before what the scenario does, that before arrivals, and those before timers."""
    ranks = [
        RANK_EXECUTION_END,
        RANK_CONSUMER_READY,
        RANK_SCENARIO,
        RANK_UNIT_RELEASE,
        RANK_STATION_LEAVE,
        RANK_ARRIVAL,
        RANK_TIMER,
    ]
    assert ranks == sorted(set(ranks))


def test_arrival_at_the_moment_a_slice_falls_idle_finds_it_idle(toy: Any, tmp_path: Any) -> None:
    """A completion comes before an arrival of the same instant."""
    model = toy.model(toy.profile(TEN_MS), intervals(tmp_path, [0.0, 10.0, 20.0]))
    records = toy.run(toy.scenario([model], requests=3)).result.records
    assert np.array_equal(records.execution_start_ns, records.scheduled_ns)


def test_arrival_at_the_moment_a_batch_is_due_still_joins_it(toy: Any, tmp_path: Any) -> None:
    """An arrival comes before a timer of the same instant."""
    model = toy.model(toy.profile(TEN_MS), intervals(tmp_path, [0.0, 5.0]))
    model["batcher"] = {"kind": "fixed", "batch_max": 8, "timeout_ms": 5.0}
    records = toy.run(toy.scenario([model], requests=2)).result.records
    assert records.batch_size.tolist() == [2, 2]


def test_unknown_engine_is_an_error_that_names_the_known(toy: Any) -> None:
    """A misspelt engine gives one line that suggests the right name."""
    model = toy.model(toy.profile(TEN_MS), {"kind": "poisson", "rate_rps": 10})
    with pytest.raises(NotImplementedError, match=r"^--engine: 'referense' .*did you mean 'reference'"):
        toy.run(toy.scenario([model]), engine="referense")
    assert "reference" in ENGINES
