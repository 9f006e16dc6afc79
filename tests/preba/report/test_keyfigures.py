"""The lean line of figures says what the whole summary says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from preba.report.keyfigures import FIGURES, INTERVALS, key_figures
from preba.report.summary import summarise
from preba.scenario.load import load_scenario
from preba.scenario.resolve import resolve
from sim.context import report_context
from sim.run import simulate

SCENARIOS = Path(__file__).resolve().parents[3] / "configs" / "scenarios"


def same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return bool(one == pytest.approx(other, rel=1e-9, abs=1e-12))


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_key_figures_are_those_of_the_summary(path: Path) -> None:
    """Throughput, latencies with intervals, batches, busy shares, power, cost, objective and counts are the same."""
    resolved = resolve(load_scenario(path), folder=path.parent)
    run = resolved.scenario.run.model_copy(update={"requests": 9000, "duration_s": None})
    resolved = dataclasses.replace(resolved, scenario=resolved.scenario.model_copy(update={"run": run}))
    simulation = simulate(resolved)
    context = report_context(resolved, simulation, text=False)
    line, summary = key_figures(simulation.result, context), summarise(simulation.result, context)
    assert set(FIGURES) <= set(line)
    found = {"throughput_rps": summary["throughput_rps"]}
    found |= {f"latency_{name}_ms": figure for name, figure in summary["latency_ms"].items()}
    assert set(found) == set(INTERVALS)
    for name, figure in found.items():
        low, high = figure["ci95"] or (None, None)
        assert same(line[name], figure["value"]), name
        assert same(line[f"{name}_low"], low), name
        assert same(line[f"{name}_high"], high), name
    assert same(line["batch_mean"], summary["batch_size"]["mean"])
    own = [unit.name for unit in simulation.result.slices if unit.role == "model"]
    if not simulation.result.outages:
        shares = [summary["utilization"]["slices"][name] for name in own]
        assert line["slices_busy"] == pytest.approx(sum(shares) / len(shares), rel=1e-9)
    taken = summary["utilization"]["preprocessing_taken"].values()
    assert same(line["preprocessing_busy"], max(taken, default=None))
    assert same(line["power_w"], summary["power_w"]["total"])
    assert same(line["energy_per_request_j"], summary["energy_per_request_j"])
    cost = summary["cost_efficiency"] or {"requests_per_usd": None, "capex_usd": 0.0, "opex_usd": 0.0}
    assert same(line["requests_per_usd"], cost["requests_per_usd"])
    assert line["steady"] == summary["steady"]
    assert (line["requests"], line["served"]) == (summary["requests"], summary["served"])
    assert (line["refused"], line["pending"]) == (summary["refused"]["total"], summary["pending"])
    goodput = summary["goodput"]
    if goodput is None:
        assert line["slo_met"] is None
    else:
        assert line["goodput_rps"] == pytest.approx(goodput["rps"])
        assert line["slo_met"] == bool(goodput["p99_met"])
