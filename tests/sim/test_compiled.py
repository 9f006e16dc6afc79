"""Law 6: the compiled engine is the reference engine, in every field of every record, span and outage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from preba.scenario.draw import draw_scenario_trace
from preba.scenario.load import load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from sim.compiled.engine import run_general
from sim.model import SimModel, build_model
from sim.reference import run_reference

SCENARIOS = Path(__file__).resolve().parents[2] / "configs" / "scenarios"
REQUESTS = 10_000


def model_of(resolved: ResolvedScenario) -> SimModel:
    return build_model(resolved, draw_scenario_trace(resolved))


def differences(model: SimModel, run: Any = run_general) -> list[str]:
    """Names of the fields in which an engine and the reference differ."""
    expected, found = run_reference(model), run(model)
    names = []
    for one, other in zip(expected[:2], found[:2], strict=True):
        for field in dataclasses.fields(one):
            left, right = getattr(one, field.name), getattr(other, field.name)
            if left.dtype != right.dtype or not np.array_equal(left, right):
                names.append(f"{type(one).__name__}.{field.name}")
    if expected[2] != found[2]:
        names.append("outages")
    return names


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_compiled_engine_equals_the_reference_on_every_scenario_file(path: Path) -> None:
    """Ten thousand requests of each scenario in configs/ have the same records in every field."""
    first = resolve(load_scenario(path), folder=path.parent)
    run = first.scenario.run.model_copy(update={"requests": REQUESTS, "duration_s": None})
    assert (
        differences(model_of(dataclasses.replace(first, scenario=first.scenario.model_copy(update={"run": run})))) == []
    )


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_compiled_engine_equals_the_reference_in_any_scenario(
    toy: Any, drawn_scenarios: Any, data: st.DataObject
) -> None:
    """Whatever the scenario, ties on purpose included, not one field of one record differs."""
    scenario = data.draw(drawn_scenarios)
    for model in scenario["models"]:
        event(f"batcher {model['batcher']['kind']}")
    event(f"topology {scenario['server']['topology']}")
    event(f"events {len(scenario['events'])}")
    assert differences(model_of(toy.resolve(scenario))) == []


@pytest.mark.parametrize("kind", ["fixed", "preba", "triton"])
def test_compiled_engine_makes_room_for_any_number_of_waiting_requests(toy: Any, kind: str) -> None:
    """An overload, in which thousands of requests wait, is played like anything else."""
    batcher = {
        "fixed": {"kind": "fixed", "batch_max": 4, "timeout_ms": 1.0},
        "preba": {"kind": "preba"},
        "triton": {"kind": "triton", "max_batch_size": 4, "max_queue_delay_us": 500},
    }[kind]
    model = toy.model(toy.profile({"full": {"1": 4, "4": 9}}), {"kind": "poisson", "rate_rps": 3000}, batcher=batcher)
    assert differences(model_of(toy.resolve(toy.scenario([model], requests=6000)))) == []


def test_comparison_of_engines_can_fail(toy: Any) -> None:
    """A single value that is off by one, or a column of another type, is found."""
    model = model_of(
        toy.resolve(
            toy.scenario([toy.model(toy.profile({"full": {"1": 4}}), {"kind": "poisson", "rate_rps": 9})], requests=50)
        )
    )

    def tampered(model: SimModel) -> Any:
        records, spans, outages = run_general(model)
        later = records.completed_ns.copy()
        later[17] += 1
        changes = {"completed_ns": later, "attempts": records.attempts.astype(np.int64)}
        return dataclasses.replace(records, **changes), spans, outages

    assert differences(model, tampered) == ["Records.completed_ns", "Records.attempts"]
