"""A simulated run beside a measured one: errors with their sign, verdicts, and where the difference lies."""

from __future__ import annotations

import io
import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from preba.records import Records
from preba.report.summary import summarise
from preba.report.validation import Validated, mean_of_runs, per_request, validate_runs
from preba.report.validation_text import TABLE_WIDTH, print_validation, validation_html
from preba.validation import Validation
from sim.context import report_context


@pytest.fixture(scope="module")
def run(toy: Any) -> tuple[Records, dict[str, Any]]:
    """A simulated run's records, without warm-up, and its summary."""
    model = toy.model(
        toy.profile({"1g": {"1": 20, "8": 48}}), {"kind": "poisson", "rate_rps": 500},
        batcher={"kind": "fixed", "batch_max": 8, "timeout_ms": 5},
    )  # fmt: skip
    data = toy.scenario([model], partition="7x1g.5gb", requests=4000)
    data["run"]["warmup_requests"] = 200
    found = toy.run(data)
    summary = summarise(found.result, report_context(toy.resolve(data), found))
    return found.result.records.select(np.arange(200, 4000)), summary


def slower(summary: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same summary with every latency multiplied."""
    found: dict[str, Any] = json.loads(json.dumps(summary))
    for figure in found["latency_ms"].values():
        figure["value"] *= factor
    for stage in found["stages_ms"].values():
        stage["mean"] *= factor
    return found


def rows(found: Validated) -> dict[str, Any]:
    return {row.metric: row for row in found.rows}


def test_a_run_agrees_with_itself(run: tuple[Records, dict[str, Any]]) -> None:
    """Every error is zero, every verdict met, nothing unexplained, each request the same."""
    records, summary = run
    found = validate_runs(summary, summary, limits=Validation(), records=(records, records))
    assert all(row.error_percent == 0 and row.verdict == "met" for row in found.rows)
    assert found.unexplained_ms == 0
    assert found.batch_distance_percent == 0
    assert found.per_request is not None
    assert found.per_request.correlation == pytest.approx(1.0)
    assert found.per_request.mape_percent == 0
    assert found.per_request.same_batch_percent == 100
    assert not found.missed


def test_errors_are_signed_and_judged_by_their_limit(run: tuple[Records, dict[str, Any]]) -> None:
    """4 % slower: positive errors; missed where the limit is 2 or 3 %, met where it is 5 %."""
    _, summary = run
    found = rows(validate_runs(summary, slower(summary, 1.04), limits=Validation()))
    for name, verdict in (("latency mean", "missed"), ("latency p95", "missed"), ("latency p99", "met")):
        assert found[name].error_percent == pytest.approx(4.0)
        if found[name].verdict != "unsure":
            assert found[name].verdict == verdict
    faster = rows(validate_runs(slower(summary, 1.04), summary, limits=Validation()))
    assert faster["latency mean"].error_percent == pytest.approx(100 * (1 / 1.04 - 1))


def test_an_interval_wider_than_the_limit_decides_nothing(run: tuple[Records, dict[str, Any]]) -> None:
    """Within the measured interval, an error beyond the limit is unsure, and a warning says so."""
    _, summary = run
    measured = slower(summary, 1.0)
    value = measured["latency_ms"]["p50"]["value"]
    measured["latency_ms"]["p50"]["ci95"] = [0.9 * value, 1.1 * value]
    found = validate_runs(measured, slower(summary, 1.05), limits=Validation())
    assert rows(found)["latency p50"].verdict == "unsure"
    assert any("latency p50" in text for text in found.warnings)
    assert rows(validate_runs(measured, slower(summary, 1.2), limits=Validation()))["latency p50"].verdict == "missed"


def test_fresh_draws_have_a_mean_and_an_interval(run: tuple[Records, dict[str, Any]]) -> None:
    """Three draws of 0.98, 1.00 and 1.02 times a figure: its mean, and Student's t."""
    _, summary = run
    fresh = [slower(summary, factor) for factor in (0.98, 1.0, 1.02)]
    row = rows(validate_runs(summary, summary, limits=Validation(), fresh=fresh))["latency mean"]
    assert row.fresh == pytest.approx(row.measured)
    assert row.fresh_ci95 is not None
    half = 4.303 * 0.02 * row.measured / 3**0.5
    assert row.fresh_ci95[1] - row.fresh == pytest.approx(half, rel=1e-3)


def test_simulations_of_one_trace_are_averaged(run: tuple[Records, dict[str, Any]]) -> None:
    """Of three at 0.9, 1.0 and 1.2 the mean counts, with an interval of the first one's width; histograms add up."""
    _, summary = run
    found = mean_of_runs([slower(summary, factor) for factor in (0.9, 1.0, 1.2)])
    p50, first = found["latency_ms"]["p50"], slower(summary, 0.9)["latency_ms"]["p50"]
    value = summary["latency_ms"]["p50"]["value"]
    assert p50["value"] == pytest.approx(value * 3.1 / 3)
    assert p50["ci95"][1] - p50["ci95"][0] == pytest.approx(first["ci95"][1] - first["ci95"][0])
    assert sum(p50["ci95"]) / 2 - p50["value"] == pytest.approx(sum(first["ci95"]) / 2 - first["value"])
    assert found["stages_ms"]["total"]["mean"] == pytest.approx(summary["stages_ms"]["total"]["mean"] * 3.1 / 3)
    counts = summary["batch_size"]["histogram"]
    assert found["batch_size"]["histogram"] == {size: 3 * count for size, count in counts.items()}
    row = rows(validate_runs(summary, found, limits=Validation()))["latency mean"]
    assert row.error_percent == pytest.approx(100 * 0.1 / 3)


def test_stage_differences_add_up_to_what_is_unexplained(run: tuple[Records, dict[str, Any]]) -> None:
    """Half a millisecond of response that the simulation lacks is named, and is the whole difference."""
    _, summary = run
    measured = json.loads(json.dumps(summary))
    for stage in ("response", "total"):
        measured["stages_ms"][stage]["mean"] += 0.5
    found = validate_runs(measured, summary, limits=Validation())
    by_name = {row.stage: row for row in found.stages}
    assert by_name["response"].difference_ms == pytest.approx(-0.5)
    assert not by_name["response"].modelled
    assert found.unexplained_ms == pytest.approx(-0.5)
    assert sum(row.difference_ms for row in found.stages) == pytest.approx(found.unexplained_ms)


def test_batches_and_busy_time_have_intervals_of_their_own(run: tuple[Records, dict[str, Any]]) -> None:
    """From the batches one after another: about the figure, narrower in a longer run, and they decide verdicts."""
    records, summary = run
    whole = rows(validate_runs(summary, summary, limits=Validation(), records=(records, records)))
    part = records.select(records.scheduled_ns < np.median(records.scheduled_ns))
    half = rows(validate_runs(summary, summary, limits=Validation(), records=(part, part)))
    for name in ("mean batch", "slices busy"):
        low, high = whole[name].measured_ci95
        assert low < whole[name].measured < high
        assert high - low < 0.2 * whole[name].measured
        assert half[name].measured_ci95[1] - half[name].measured_ci95[0] > high - low
        assert rows(validate_runs(summary, summary, limits=Validation()))[name].measured_ci95 is None


def test_distance_of_batch_sizes_is_judged(run: tuple[Records, dict[str, Any]]) -> None:
    """Every eighth batch of another size: missed at 10 %, met at 20 %, unsure where fresh draws differ as much."""
    _, summary = run
    other = json.loads(json.dumps(summary))
    histogram = other["batch_size"]["histogram"]
    size, count = max(histogram.items(), key=lambda item: item[1])
    moved = sum(histogram.values()) // 8
    histogram[size] = count - moved
    histogram["99"] = moved
    found = rows(validate_runs(summary, other, limits=Validation()))["batch sizes apart"]
    assert found.simulated == pytest.approx(12.5, abs=0.1)
    assert found.verdict == "missed"
    generous = Validation(distribution_percent=20.0)
    assert rows(validate_runs(summary, other, limits=generous))["batch sizes apart"].verdict == "met"
    chance = rows(validate_runs(summary, other, limits=Validation(), fresh=[summary, summary]))["batch sizes apart"]
    assert chance.verdict == "unsure"


def test_stages_are_judged_as_both_runs_know_them(run: tuple[Records, dict[str, Any]]) -> None:
    """Where the server cannot tell batching from waiting their sum is judged; 5 % of the latency too much is missed."""
    records, summary = run
    mean_ms = summary["stages_ms"]["total"]["mean"]
    found = validate_runs(summary, summary, limits=Validation(), records=(records, records)).judged_stages
    assert {row.verdict for row in found} == {"met"}
    assert "batching" in {row.label for row in found}
    assert sum(row.measured_ms for row in found) == pytest.approx(mean_ms)
    execution = next(row for row in found if row.label == "on the slice")
    assert execution.measured_ci95[0] < execution.measured_ms < execution.measured_ci95[1]
    measured = json.loads(json.dumps(summary))
    stages = measured["stages_ms"]
    stages["slice_queue"]["mean"] += stages["batching"]["mean"]
    stages["batching"]["mean"] = 0.0
    both = (records, records)
    lumped = {
        row.label: row for row in validate_runs(measured, summary, limits=Validation(), records=both).judged_stages
    }
    assert lumped["the way to the slice, batching"].verdict == "met"
    assert "batching" not in lumped
    assert validate_runs(measured, summary, limits=Validation()).judged_stages == ()
    for stage in ("execution", "total"):
        stages[stage]["mean"] += 0.05 * mean_ms
    missed = validate_runs(measured, summary, limits=Validation(), records=both)
    assert "on the slice" in {row.label for row in missed.missed if hasattr(row, "label")}


def test_requests_are_paired_by_id(run: tuple[Records, dict[str, Any]]) -> None:
    """Rows in another order, and some missing or refused, do not mix requests up."""
    records, _ = run
    shuffled = records.select(np.random.default_rng(0).permutation(len(records))[:3000])
    late = {"completed_ns": shuffled.completed_ns + 1_000_000}
    moved = Records(**{one.name: late.get(one.name, getattr(shuffled, one.name)) for one in fields(Records)})
    outcome = moved.outcome.copy()
    outcome[:100] = 1
    found = per_request(records, replace(moved, outcome=outcome))
    assert found is not None
    assert found.requests == 2900
    assert found.correlation == pytest.approx(1.0)
    served = shuffled.latency_ns[100:].astype(float)
    assert found.bias_percent == pytest.approx(100 * float((1e6 / served).mean()))
    assert per_request(records, records.select(np.zeros(len(records), dtype=bool))) is None


def test_table_and_page_show_every_figure(run: tuple[Records, dict[str, Any]]) -> None:
    """The missed ones are marked; the page holds plots, notes and the scenario, and needs no other file."""
    records, summary = run
    found = validate_runs(
        summary, slower(summary, 1.3), limits=Validation(), fresh=[summary] * 3, records=(records, records),
        hindsight=slower(summary, 1.02),
    )  # fmt: skip
    shown = io.StringIO()
    print_validation(found, Console(width=TABLE_WIDTH, file=shown), title="title <b>")
    text = shown.getvalue()
    for row in found.rows:
        assert row.metric in text
    assert "+30.0 %" in text
    assert "hindsight" in text
    assert "+2.0 %" in text
    assert "missed" in text
    assert "±0.000" not in text
    assert "…" not in text
    page = validation_html(
        found, title="title <b>", runs=(records, records), notes=["a note"], scenario_text="preba: 1"
    )
    assert "title &lt;b&gt;" in page
    assert page.count("data:image/svg+xml") == 4
    assert ">hindsight</th>" in page
    assert "hindsight" not in validation_html(
        validate_runs(summary, summary, limits=Validation()), title="", runs=None, notes=[]
    )
    assert "a note" in page
    assert "http" not in page.replace("http://www.w3.org", "")
