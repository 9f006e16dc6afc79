"""Promises of the shipped scenarios: each one runs, and the flower demo behaves as its closed form says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preba.report.summary import summarise
from preba.scenario.load import load_scenario
from preba.scenario.resolve import resolve
from preba.units import NS_PER_S
from sim.context import report_context
from sim.run import Simulation, simulate

SCENARIOS = Path(__file__).resolve().parents[2] / "configs" / "scenarios"


def run(name: str, *overrides: str) -> Simulation:
    path = SCENARIOS / f"{name}.yaml"
    return simulate(resolve(load_scenario(path, overrides), folder=path.parent))


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_scenario_has_a_steady_state(path: Path) -> None:
    """Each scenario in configs/ runs, serves every request, is not overloaded and gives a JSON summary."""
    resolved = resolve(load_scenario(path, ["run={requests: 6000}", "events=[]"]), folder=path.parent)
    simulation = simulate(resolved)
    summary = summarise(simulation.result, report_context(resolved, simulation))
    json.dumps(summary, allow_nan=False)
    assert summary["served"] == 6000
    assert not any("overloaded" in warning for warning in summary["warnings"])
    assert all(source["kind"] in ("measured", "published", "modelled") for source in summary["provenance"])


@pytest.mark.parametrize("slices", range(1, 8))
@pytest.mark.parametrize("outstanding", [1, 10, 100])
def test_flower_demo_carries_what_its_slices_can(slices: int, outstanding: int) -> None:
    """With batch 1 behind round robin, throughput is min(clients, slices) over the execution time."""
    simulation = run(
        "flower-demo",
        "run={requests: 1500}",
        f"models[0].slices={list(range(slices))}",
        f"models[0].arrivals.outstanding={outstanding}",
    )
    records = simulation.result.records
    execution_ns = int(records.execution_end_ns[0] - records.execution_start_ns[0])
    expected_rps = min(slices, outstanding) * NS_PER_S / execution_ns
    assert len(records) * NS_PER_S / simulation.result.end_ns == pytest.approx(expected_rps, rel=0.01)
    # Every client waits for its own turn: Little's law fixes the mean latency.
    busy = records.select(records.request_id >= 2 * outstanding)
    assert busy.latency_ns.mean() == pytest.approx(outstanding * NS_PER_S / expected_rps, rel=0.02)
