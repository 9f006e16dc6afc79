"""Streamed runs: the same requests, counted instead of kept, whatever the ring, the pieces and the horizon."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from preba.errors import UnsupportedError
from preba.report.stream import summarise_stream
from preba.report.summary import summarise
from preba.scenario.load import load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.statistics.histogram import RELATIVE_ERROR
from sim.compiled import streamed
from sim.compiled.streamed import simulate_streamed
from sim.context import report_context
from sim.run import simulate

SCENARIOS = Path(__file__).resolve().parents[2] / "configs" / "scenarios"
STREAMABLE = sorted({path.stem for path in SCENARIOS.glob("*.yaml")} - {"flower-demo"})  # a closed loop


def both(resolved: ResolvedScenario) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summaries of a streamed and of an ordinary run."""
    counted, kept = simulate_streamed(resolved), simulate(resolved)
    return (
        summarise_stream(counted.run, report_context(resolved, counted, text=False)),
        summarise(kept.result, report_context(resolved, kept, text=False)),
    )


def check_alike(counted: dict[str, Any], kept: dict[str, Any]) -> None:
    """Counts and means are equal, percentiles within the promised error, shares of time nearly."""
    for name in ("requests", "served", "refused", "pending", "measured_requests", "window_s", "duration_s", "outages"):
        assert counted[name] == kept[name], name
    assert counted["warmup"]["requests"] == kept["warmup"]["requests"]
    for part, other in [(counted, kept), *((counted["models"][name], kept["models"][name]) for name in kept["models"])]:
        assert part["throughput_rps"]["value"] == pytest.approx(other["throughput_rps"]["value"], rel=1e-12)
        assert part["latency_ms"]["mean"]["value"] == pytest.approx(other["latency_ms"]["mean"]["value"], rel=1e-12)
        for level in ("p50", "p90", "p95", "p99", "p999"):
            found, exact = part["latency_ms"][level], other["latency_ms"][level]
            assert found["value"] == pytest.approx(exact["value"], rel=RELATIVE_ERROR)
            assert found["samples"] == exact["samples"]
        for stage, figures in part["stages_ms"].items():
            assert figures["mean"] == pytest.approx(other["stages_ms"][stage]["mean"], rel=1e-12), stage
        assert part["batch_size"]["mean_seen_by_request"] == pytest.approx(other["batch_size"]["mean_seen_by_request"])
        assert part["batch_size"]["mean"] == pytest.approx(other["batch_size"]["mean"], rel=0.01)
        if other["goodput"] is not None and "rps" in other["goodput"]:
            assert part["goodput"]["rps"] == pytest.approx(other["goodput"]["rps"], rel=1e-12)
    for kind in ("preprocessing", "preprocessing_taken", "slices"):
        for name, share in kept["utilization"][kind].items():
            assert counted["utilization"][kind][name] == pytest.approx(share, abs=0.01), name
    if kept["power_w"]["total"] is not None:
        assert counted["power_w"]["total"] == pytest.approx(kept["power_w"]["total"], rel=0.01)


def cut(resolved: ResolvedScenario, **run: Any) -> ResolvedScenario:
    fields = {"requests": None, "duration_s": None, "warmup_requests": None, "warmup_s": None, **run}
    scenario = resolved.scenario.model_copy(update={"run": resolved.scenario.run.model_copy(update=fields)})
    return dataclasses.replace(resolved, scenario=scenario)


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMABLE)
def test_streamed_run_of_a_scenario_file_says_what_an_ordinary_one_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of a thousand requests and rings of four thousand, every scenario file gives the same summary."""
    monkeypatch.setattr(streamed, "CHUNK", 1000)
    monkeypatch.setattr(streamed, "RING", 4096)
    path = SCENARIOS / f"{name}.yaml"
    resolved = resolve(load_scenario(path), folder=path.parent)
    check_alike(*both(cut(resolved, requests=12_000, warmup_requests=1500)))


def image_model(toy: Any, rate_rps: float, **fields: Any) -> dict[str, Any]:
    batcher = {"kind": "triton", "max_batch_size": 6, "max_queue_delay_us": 2000, "preserve_ordering": True}
    arrivals = {"kind": "poisson", "rate_rps": rate_rps}
    return toy.model(toy.profile(toy.image_table), arrivals, **{"batcher": batcher, **fields})


def test_streamed_run_of_a_duration_with_failures_agrees(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of given seconds, one server per slice, slices that fail, answers kept in order, overheads that vary."""
    monkeypatch.setattr(streamed, "CHUNK", 300)
    monkeypatch.setattr(streamed, "RING", 1024)
    events = [{"kind": "slice_fails", "at_s": 1.0, "slice": 2}, {"kind": "slice_returns", "at_s": 2.0, "slice": 2}]
    data = toy.scenario(
        [image_model(toy, 900)],
        partition="7x1g.5gb",
        preprocessing=toy.cpu(4, 1500),
        server={
            "topology": "per_slice",
            "balancer": "least_outstanding",
            "overheads": {
                "frontend_us": 400, "frontend_jitter": {"kind": "exponential"},
                "turnaround_us": 300, "turnaround_jitter": {"kind": "lognormal", "cv": 0.5},
                "response_us": 900, "response_request_us": 100, "response_jitter": {"kind": "gamma", "cv": 1.0},
                "response_next_us": 150, "response_next_jitter": {"kind": "exponential"},
                "slowness": {"window_ms": 30, "factors": [0.5, 1.0, 3.0], "shares": {"turnaround": 0.5}},
            },
        },
        events=events,
    )  # fmt: skip
    check_alike(*both(cut(toy.resolve(data), duration_s=6.0, warmup_s=0.5)))


def test_streamed_run_makes_room_and_says_when_it_is_overloaded(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring that is too small grows; a queue that never ends is an error that says what to do."""
    monkeypatch.setattr(streamed, "CHUNK", 256)
    monkeypatch.setattr(streamed, "RING", 256)
    busy = toy.scenario([image_model(toy, 3000)], partition="7x1g.5gb", requests=6000)
    check_alike(*both(cut(toy.resolve(busy), requests=6000, warmup_requests=100)))
    monkeypatch.setattr(streamed, "MOST_IN_FLIGHT", 1024)
    drowning = toy.scenario([image_model(toy, 9000)], partition="7x1g.5gb", requests=20_000)
    with pytest.raises(UnsupportedError, match="overloaded"):
        simulate_streamed(toy.resolve(drowning))


def test_streamed_run_takes_no_memory_for_its_length(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the requests, the same arrays."""
    sizes = []
    original = streamed._streamed_run

    def measured(memory: Any, resolved: ResolvedScenario) -> Any:
        arrays = [*memory.arrays.values(), *memory.batcher_columns.values(), *memory.stations, memory.rows]
        sizes.append(sum(array.nbytes for array in arrays))
        return original(memory, resolved)

    monkeypatch.setattr(streamed, "CHUNK", 500)
    monkeypatch.setattr(streamed, "RING", 2048)
    monkeypatch.setattr(streamed, "_streamed_run", measured)
    model = image_model(toy, 900, batcher={"kind": "fixed", "batch_max": 6, "timeout_ms": 2.0})
    for requests in (5_000, 50_000):
        run = simulate_streamed(toy.resolve(toy.scenario([model], partition="7x1g.5gb", requests=requests))).run
        assert run.tally[0, 0] == requests
    assert sizes[0] == sizes[1]


def test_streamed_run_names_arrivals_it_cannot_draw_in_pieces(toy: Any) -> None:
    """A closed loop is an error that says so."""
    closed = toy.model(toy.profile(toy.image_table), {"kind": "closed_loop", "outstanding": 3, "think_ms": 1.0})
    with pytest.raises(UnsupportedError, match="closed_loop"):
        simulate_streamed(toy.resolve(toy.scenario([closed], requests=100)))
