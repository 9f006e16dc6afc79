"""Promises of ``summarise``: what the one JSON object says of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preba.errors import ScenarioError
from preba.records import Records, RunResult, SliceFacts, StationFacts, empty_columns
from preba.report.context import ReportContext, StageCapacity
from preba.report.measures import PERCENTILES
from preba.report.stages import STAGES
from preba.report.summary import summarise
from preba.strict import Provenance

Run = Callable[..., RunResult]
Context = Callable[..., ReportContext]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def test_summary_is_plain_json_with_stable_keys(make_run: Run, make_context: Context) -> None:
    """A summary survives JSON unchanged, without NaN or NumPy values, and its keys do not depend on the run."""
    summary = summarise(make_run(), make_context())
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert {type(leaf) for leaf in _leaves(summary)} <= {str, int, float, bool, type(None)}
    other = summarise(make_run(40, refuse_every=3), make_context(hardware=None, provenance=()))
    assert list(other) == list(summary)
    for name in ("latency_ms", "stages_ms", "power_w", "utilization", "batch_size"):
        assert list(other[name]) == list(summary[name])


def test_summary_is_the_same_every_time(make_run: Run, make_context: Context) -> None:
    """The same records give byte for byte the same summary."""
    first, second = (json.dumps(summarise(make_run(), make_context())) for _ in range(2))
    assert first == second


def test_stage_means_add_up_to_the_mean_latency(make_run: Run, make_context: Context) -> None:
    """The means of the stages sum to the mean latency, of all requests and of the slowest hundredth."""
    summary = summarise(make_run(slice_preprocess_ms=0.5), make_context())
    stages = summary["stages_ms"]
    assert tuple(stages) == (*STAGES, "total")
    for key in ("mean", "mean_of_slowest"):
        parts = sum(stages[name][key] for name in STAGES)
        assert parts == pytest.approx(stages["total"][key], rel=1e-12)
    assert stages["total"]["mean"] == pytest.approx(summary["latency_ms"]["mean"]["value"], rel=1e-12)
    assert stages["total"]["p99"] == summary["latency_ms"]["p99"]["value"]
    assert stages["slice_preprocess"]["mean"] == 0.5


def test_warmup_requests_count_for_nothing_steady(make_run: Run, make_context: Context) -> None:
    """Changing the latency of requests in the warm-up changes no percentile, and the cut is stated."""
    result = make_run()
    before = summarise(result, make_context(warmup_requests=500))
    slow = np.arange(len(result.records)) < 500
    result.records.completed_ns[slow] += 10**9
    after = summarise(result, make_context(warmup_requests=500))
    assert after["latency_ms"] == before["latency_ms"]
    assert before["warmup"]["requests"] == 500
    assert before["measured_requests"] == 3500
    assert "500 of 4,000" in before["warmup"]["rule"]
    # Without a warm-up the same change does show: the cut is what kept it out.
    uncut = summarise(result, make_context(warmup_requests=0))
    assert uncut["latency_ms"]["p90"]["value"] > 1.5 * before["latency_ms"]["p90"]["value"]


def test_warmup_time_cuts_by_arrival(make_run: Run, make_context: Context) -> None:
    """A warm-up given as a time leaves out exactly the requests scheduled before it."""
    result = make_run()
    summary = summarise(result, make_context(warmup_ns=1_000_000_000))
    assert summary["warmup"]["requests"] == int((result.records.scheduled_ns < 1_000_000_000).sum())
    assert summary["warmup"]["until_s"] == 1.0
    assert summary["window_s"][0] == 1.0


def test_warmup_rule_cuts_its_number_of_requests_among_simultaneous_arrivals(
    make_run: Run, make_context: Context
) -> None:
    """The default rule leaves out a fifth of a short run, even when it ends amid arrivals at one instant."""
    result = make_run(1003)
    result.records.scheduled_ns[:] = result.records.scheduled_ns[0]
    summary = summarise(result, make_context())
    assert summary["warmup"]["requests"] == 200
    assert summary["measured_requests"] == 803
    assert "200 of 1,003" in summary["warmup"]["rule"]


def test_percentiles_are_those_of_the_kept_requests(make_run: Run, make_context: Context) -> None:
    """Each percentile is the smallest latency that its share of the kept requests does not exceed."""
    result = make_run()
    summary = summarise(result, make_context(warmup_requests=100))
    latency = np.sort(result.records.latency_ns[100:])
    for name, level in PERCENTILES.items():
        rank = int(np.ceil(level * len(latency) * (1 - 1e-12))) - 1
        assert summary["latency_ms"][name]["value"] == pytest.approx(latency[rank] / 1e6, rel=1e-12)
    flags = {name: figure["enough"] for name, figure in summary["latency_ms"].items()}
    assert not flags["p999"]
    assert summary["latency_ms"]["p999"]["needed_requests"] >= 60_000


def test_intervals_never_reach_below_zero(make_run: Run, make_context: Context) -> None:
    """No interval of a latency or a rate has a negative end, however wide it is."""
    result = make_run(60, gap_ms=40.0)
    result.records.completed_ns[40] += 10**12
    summary = summarise(result, make_context(warmup_requests=0))
    assert summary["latency_ms"]["mean"]["ci95"][0] == 0.0
    figures = [summary["throughput_rps"], *summary["latency_ms"].values()]
    assert all(figure["ci95"] is None or figure["ci95"][0] >= 0 for figure in figures)


def test_counts_balance(make_run: Run, make_context: Context) -> None:
    """Served, refused and pending requests add up to all requests, and refusals are named and warned of."""
    summary = summarise(make_run(1000, refuse_every=10), make_context())
    assert summary["requests"] == summary["served"] + summary["refused"]["total"] + summary["pending"]
    assert summary["refused"] == {
        "total": 100,
        "by_reason": {"refused_queue_full": 100, "refused_timeout": 0, "failed_slice_lost": 0},
    }
    assert any("100 of 1,000 requests were refused" in text for text in summary["warnings"])


def test_batches_are_counted_once_each(make_run: Run, make_context: Context) -> None:
    """The histogram counts batches, its requests add up, and the request's view weighs batches by size."""
    result = make_run(402, batch=8)
    batch = summarise(result, make_context(warmup_requests=0))["batch_size"]
    assert batch["histogram"] == {"2": 1, "8": 50}
    assert batch["batches"] == 51
    assert batch["mean"] == pytest.approx(402 / 51)
    assert batch["mean_seen_by_request"] == pytest.approx((400 * 8 + 2 * 2) / 402)


def test_utilization_is_busy_time_over_available_time(make_run: Run, make_context: Context) -> None:
    """An outage shortens the time that a slice is available, and a core's usable share scales what is shown."""
    plain = summarise(make_run(), make_context())["utilization"]
    records = make_run().records
    idle = RunResult(**{**make_run().__dict__, "outages": ((0, 0, make_run().end_ns // 2),), "records": records})
    shortened = summarise(idle, make_context())["utilization"]
    assert shortened["slices"]["gpu0/1g.5gb@0"] > 1.5 * plain["slices"]["gpu0/1g.5gb@0"]
    assert shortened["slices"]["gpu0/1g.5gb@1"] == plain["slices"]["gpu0/1g.5gb@1"]
    assert plain["preprocessing"]["cpu"] == pytest.approx(0.9 * plain["preprocessing_taken"]["cpu"])
    # Work of 1 to 3 ms arriving once a millisecond keeps about two of four cores busy.
    assert 0.45 < plain["preprocessing_taken"]["cpu"] < 0.55


def test_throughput_comes_from_the_window_before_the_queues_drain(make_run: Run, make_context: Context) -> None:
    """In an overload the rate is what the server manages while requests still arrive, not the arrivals' own."""
    result = make_run(4000, slices=1, batch=4, gap_ms=0.5)
    summary = summarise(result, make_context())
    # One slice takes 4 ms for a batch of four.
    assert summary["throughput_rps"]["value"] == pytest.approx(4 / 4e-3, rel=0.01)
    assert summary["offered_rps"] > 1.8 * summary["throughput_rps"]["value"]
    assert any("drifts" in text for text in summary["warnings"])
    told = summarise(result, make_context(warnings=("overloaded (2.25 x capacity)",)))
    assert told["warnings"] == ["overloaded (2.25 x capacity)"]


def test_goodput_counts_only_answers_in_time(make_run: Run, make_context: Context) -> None:
    """With an objective at the median half of the requests are in time, and the missed p99 is a warning."""
    result = make_run()
    median = summarise(result, make_context())["latency_ms"]["p50"]["value"]
    summary = summarise(result, make_context(slo_p99_ms=(median,)))
    goodput = summary["goodput"]
    assert goodput["share_within_slo"] == pytest.approx(0.5, abs=0.001)
    assert goodput["rps"] == pytest.approx(0.5 * summary["throughput_rps"]["value"], rel=0.02)
    assert goodput["p99_met"] is False
    assert any("p99 objective" in text for text in summary["warnings"])
    assert summarise(result, make_context(slo_p99_ms=(10_000.0,)))["goodput"]["p99_met"] is True


def test_objective_is_certain_only_beyond_the_interval(make_run: Run, make_context: Context) -> None:
    """A short run decides on an objective far above its p99 or below its median, and on none close to its p99."""
    result = make_run(2000)
    figures = summarise(result, make_context())["latency_ms"]
    assert not figures["p99"]["enough"]
    p50, p99 = figures["p50"]["value"], figures["p99"]["value"]
    verdicts = {}
    for slo_ms in (0.9 * p50, 0.99 * p99, 1.01 * p99, 10 * p99):
        goodput = summarise(result, make_context(slo_p99_ms=(slo_ms,)))["goodput"]
        verdicts[slo_ms] = (goodput["p99_met"], goodput["certain"])
    assert list(verdicts.values()) == [(False, True), (False, False), (True, False), (True, True)]


def test_overload_is_not_steady(make_run: Run, make_context: Context) -> None:
    """A stage at or beyond its capacity means that there is no steady state, whatever the latencies do."""
    assert summarise(make_run(), make_context())["steady"] is True
    full = make_context(capacities=(StageCapacity("slices", 100.0, 100.0),))
    assert summarise(make_run(), full)["steady"] is False
    assert summarise(make_run(4000, slices=1, gap_ms=0.5), make_context())["steady"] is False


def test_models_are_broken_down(make_run: Run, make_context: Context) -> None:
    """With several models each has its own figures, and their requests add up to the run's."""
    summary = summarise(make_run(models=("a", "b")), make_context(slo_p99_ms=(50.0, None)))
    assert list(summary["models"]) == ["a", "b"]
    assert sum(model["requests"] for model in summary["models"].values()) == summary["requests"]
    rates = sum(model["throughput_rps"]["value"] for model in summary["models"].values())
    assert rates == pytest.approx(summary["throughput_rps"]["value"], rel=1e-9)
    assert summary["models"]["b"]["goodput"] is None
    assert list(summary["goodput"]["models"]) == ["a"]
    assert summarise(make_run(), make_context())["models"] == {}


def test_objectives_must_match_the_models(make_run: Run, make_context: Context) -> None:
    """Objectives for another number of models are an error that says how many there must be."""
    with pytest.raises(ScenarioError, match="must have 1 entries, got 2"):
        summarise(make_run(50), make_context(slo_p99_ms=(1.0, 2.0)))


def test_nothing_served_is_a_summary_with_a_warning(make_run: Run, make_context: Context) -> None:
    """A run without a single answer has no latency, no batch, no energy per request, and says so."""
    summary = summarise(make_run(30, refuse_every=1), make_context())
    assert summary["served"] == 0
    assert all(figure["value"] is None for figure in summary["latency_ms"].values())
    assert summary["stages_ms"]["total"] == {"mean": None, "p99": None, "mean_of_slowest": None}
    assert summary["batch_size"]["mean"] is None
    assert summary["energy_per_request_j"] is None
    assert summary["cost_efficiency"]["requests_per_usd"] is None
    assert any("no request was served" in text for text in summary["warnings"])
    json.dumps(summary, allow_nan=False)


def test_an_empty_run_is_a_summary_too(make_run: Run, make_context: Context) -> None:
    """Even a run without requests can be summarised."""
    result = make_run(20)
    empty = replace(result, records=Records(**empty_columns(0)), end_ns=0, spans=make_run(0).spans)
    summary = summarise(empty, make_context())
    assert summary["requests"] == 0
    json.dumps(summary, allow_nan=False)


def test_power_and_cost_follow_the_hardware(make_run: Run, make_context: Context) -> None:
    """Parts add up to the total, joules are watts over throughput, and an accelerator costs and draws."""
    result = make_run()
    summary = summarise(result, make_context())
    power = summary["power_w"]
    assert power["total"] == pytest.approx(power["cpu"] + power["gpu"] + power["accelerator"])
    rate = summary["throughput_rps"]["value"]
    assert summary["energy_per_request_j"] == pytest.approx(power["total"] / rate)
    assert power["accelerator"] == 0
    with_card = summarise(result, make_context(accelerator_count=1))
    assert with_card["power_w"]["accelerator"] > 0
    assert with_card["cost_efficiency"]["capex_usd"] > summary["cost_efficiency"]["capex_usd"]
    assert with_card["cost_efficiency"]["requests_per_usd"] < summary["cost_efficiency"]["requests_per_usd"]
    bare = summarise(result, make_context(hardware=None))
    assert bare["power_w"]["total"] is None
    assert bare["cost_efficiency"] is None


def test_a_slice_given_to_dali_is_busy_when_its_station_is(make_run: Run, make_context: Context) -> None:
    """The slice that preprocesses shows its station's busy share although it executes no batch."""
    result = make_run(cores=4)
    result = replace(
        result,
        stations=(StationFacts("dali", "dali", 4, 1.0),),
        slices=(
            *result.slices,
            *(SliceFacts(f"d{k}", 0, "1g.5gb", 1, None, "preprocessing") for k in range(4)),
        ),
    )
    usage = summarise(result, make_context())["utilization"]
    mean = sum(usage["slices"][f"d{k}"] for k in range(4)) / 4
    assert mean == pytest.approx(usage["preprocessing"]["dali"], rel=1e-9)
    assert mean > 0.3


def test_provenance_lists_every_input_once(make_run: Run, make_context: Context) -> None:
    """Inputs and hardware numbers are listed once each with kind and source; the modelled ones by name too."""
    summary = summarise(make_run(200), make_context())
    what = [entry["what"] for entry in summary["provenance"]]
    assert len(what) == len(set(what))
    assert {"profile a", "profile b"} <= set(what)
    assert any("electricity" in name for name in what)
    assert not any("accelerator" in name for name in what)
    modelled = {entry["what"] for entry in summary["provenance"] if entry["kind"] == "modelled"}
    assert modelled == set(summary["modelled_inputs"])
    assert "profile b" in modelled
    assert "profile a" not in modelled


def test_capacity_without_a_limit_is_null(make_run: Run, make_context: Context) -> None:
    """A stage that nothing limits has no capacity figure and no load above nought."""
    context = make_context(capacities=(StageCapacity("hop", 10.0, float("inf")),))
    (stage,) = summarise(make_run(200), context)["capacity"]
    assert stage == {"stage": "hop", "offered_rps": 10.0, "capacity_rps": None, "load": 0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenario_name": ""},
        {"warmup_requests": 1, "warmup_ns": 1},
        {"warmup_ns": -1},
        {"slo_p99_ms": (0.0,)},
        {"gpcs_per_gpu": 0},
    ],
)
def test_context_refuses_what_makes_no_sense(make_context: Context, wrong: dict[str, Any]) -> None:
    """An impossible context fails when it is made, not when it is printed."""
    with pytest.raises(ValueError):
        make_context(**wrong)


def test_provenance_details_are_kept(make_run: Run, make_context: Context) -> None:
    """Where and when something was measured reaches the summary; what is unknown leaves no key."""
    origin = Provenance(kind="measured", source="our own bench", where="H200", date="2026-11-20")
    summary = summarise(make_run(50), make_context(provenance=(("x", origin),), hardware=None))
    assert summary["provenance"] == [
        {"what": "x", "kind": "measured", "source": "our own bench", "where": "H200", "date": "2026-11-20"}
    ]
