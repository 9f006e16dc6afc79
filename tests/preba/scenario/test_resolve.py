"""What a scenario means once its names are looked up: slices, who serves what, and what needs no file any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from preba.errors import ScenarioError
from preba.scenario.draw import draw_scenario_trace, offered_duration_ns
from preba.scenario.dump import scenario_yaml
from preba.scenario.load import load_scenario
from preba.scenario.resolve import inline, resolve
from preba.scenario.schema import Scenario
from preba.units import NS_PER_S

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "scenarios").glob("*.yaml"))
TABLE = {"1g": {"1": 4, "8": 12}, "2g": {"1": 3, "8": 7}, "3g": {"1": 3, "8": 5}, "full": {"1": 2, "8": 3}}
POISSON = {"kind": "poisson", "rate_rps": 100.0}


def scenario(toy: Any, *slices: Any, **fields: Any) -> dict[str, Any]:
    """One model per assignment of slices."""
    models = [
        toy.model(toy.profile(TABLE), POISSON, name=f"model{index}", slices=wanted)
        for index, wanted in enumerate(slices)
    ]
    return toy.scenario(models, **fields)


def test_slices_are_numbered_through_all_gpus(toy: Any) -> None:
    """Slices count on from GPU to GPU, in order of placement, each knowing its GPU, its size and its name."""
    gpus = [
        {"device": "A100-40GB", "partition": "3g.20gb+2g.10gb+1g.5gb", "count": 2},
        {"device": "A100-80GB", "partition": "full"},
    ]
    resolved = toy.resolve(scenario(toy, "all", gpus=gpus))
    assert [unit.index for unit in resolved.slices] == list(range(7))
    assert [unit.gpu_index for unit in resolved.slices] == [0, 0, 0, 1, 1, 1, 2]
    assert sorted(unit.profile for unit in resolved.slices[:3]) == ["1g.5gb", "2g.10gb", "3g.20gb"]
    assert [unit.gpcs for unit in resolved.slices if unit.profile == "full"] == [7]
    assert resolved.slices[6].name == "gpu2/full"
    assert len({unit.name for unit in resolved.slices}) == 7
    assert [device.name for device in resolved.gpu_devices] == ["A100-40GB", "A100-40GB", "A100-80GB"]


def test_model_without_a_choice_gets_every_slice(toy: Any) -> None:
    """'all' is what it says, less what preprocessing keeps."""
    resolved = toy.resolve(scenario(toy, "all", partition="7x1g.5gb"))
    assert resolved.models[0].slice_indices == tuple(range(7))
    data = scenario(toy, "all", partition="7x1g.5gb", preprocessing=toy.dali("dali_slice", slices={"1g.5gb": 2}))
    resolved = toy.resolve(data)
    assert resolved.models[0].slice_indices == (2, 3, 4, 5, 6)
    assert [unit.role for unit in resolved.slices] == ["preprocessing"] * 2 + ["model"] * 5


def test_models_share_slices_by_count_and_by_index(toy: Any) -> None:
    """Counts take the first free slices of a size; indices take exactly those; the rest is unused."""
    resolved = toy.resolve(scenario(toy, {"1g.5gb": 2}, [6, 2], partition="7x1g.5gb"))
    assert [model.slice_indices for model in resolved.models] == [(0, 1), (2, 6)]
    assert [unit.role for unit in resolved.slices] == ["model"] * 3 + ["unused"] * 3 + ["model"]
    assert [unit.model_index for unit in resolved.slices] == [0, 0, 1, None, None, None, 1]


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_slice_ever_serves_two_models(toy: Any, data: st.DataObject) -> None:
    """However slices are asked for, each has one owner or the scenario is refused."""
    wish = st.one_of(
        st.fixed_dictionaries({"1g.5gb": st.integers(1, 4)}),
        st.lists(st.integers(0, 6), min_size=1, max_size=4),
    )
    wishes = data.draw(st.lists(wish, min_size=2, max_size=3))
    expected: list[tuple[int, ...]] = []
    free = list(range(7))
    for wanted in wishes:
        mine = free[: wanted["1g.5gb"]] if isinstance(wanted, dict) else sorted(set(wanted))
        possible = len(mine) == (wanted["1g.5gb"] if isinstance(wanted, dict) else len(wanted)) and set(mine) <= set(
            free
        )
        if not possible:
            with pytest.raises(ScenarioError, match=rf"models\[{len(expected)}\]\.slices"):
                toy.resolve(scenario(toy, *wishes, partition="7x1g.5gb"))
            return
        expected.append(tuple(mine))
        free = [index for index in free if index not in mine]
    resolved = toy.resolve(scenario(toy, *wishes, partition="7x1g.5gb"))
    assert [model.slice_indices for model in resolved.models] == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_inlined_scenario_needs_no_other_file(path: Path, tmp_path: Path) -> None:
    """Inlining puts profiles, devices, costs and hardware in; doing it again changes nothing; YAML keeps it."""
    once = inline(load_scenario(path), folder=path.parent)
    assert inline(once, folder=tmp_path) == once
    text = scenario_yaml(once)
    again = Scenario.model_validate_json(json.dumps(yaml.safe_load(text)))
    assert again == once
    assert scenario_yaml(again) == text
    names = [once.models[0].profile, once.gpus[0].device, once.hardware.use]
    assert not any(isinstance(value, str) for value in names)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolved_scenario_says_where_its_numbers_come_from(path: Path) -> None:
    """Every profile and device of a scenario is listed with its provenance."""
    resolved = resolve(load_scenario(path), folder=path.parent)
    listed = dict(resolved.provenance())
    for model in resolved.models:
        assert listed[f"latency profile {model.profile.name}"] == model.profile.provenance
    for device in resolved.gpu_devices:
        assert f"device {device.name}" in listed
    assert all(provenance.source for provenance in listed.values())


def test_offered_duration_is_the_run_or_its_last_arrival(toy: Any) -> None:
    """A run by duration lasts that long; a run by requests until the last of them comes."""
    timed = toy.resolve(scenario(toy, "all", run={"duration_s": 2.5}))
    assert offered_duration_ns(timed, draw_scenario_trace(timed)) == 2.5 * NS_PER_S
    counted = toy.resolve(scenario(toy, "all", requests=50))
    trace = draw_scenario_trace(counted)
    assert offered_duration_ns(counted, trace) == trace.scheduled_ns.max()


def test_scenario_jitter_replaces_that_of_the_profile(toy: Any) -> None:
    """A model's own jitter wins over its profile's; without one the profile's holds."""
    data = scenario(toy, "all")
    data["models"][0]["profile"]["jitter"] = {"kind": "uniform", "cv": 0.1}
    factors = draw_scenario_trace(toy.resolve(data)).execution_factor
    assert 0.8 < factors.min() < factors.max() < 1.2
    data["models"][0]["execution_jitter"] = {"kind": "none"}
    assert np.all(draw_scenario_trace(toy.resolve(data)).execution_factor == 1.0)
    data["models"][0]["execution_jitter"] = {"kind": "exponential"}
    assert draw_scenario_trace(toy.resolve(data)).execution_factor.max() > 2.0


def test_priorities_and_timeouts_reach_the_requests(toy: Any) -> None:
    """Shares of priority levels and per-request time-outs are drawn into the trace."""
    data = scenario(toy, "all", requests=4000)
    batcher = {"kind": "triton", "max_batch_size": 1, "priority_levels": 3, "default_priority_level": 1}
    data["models"][0] |= {"priority_shares": {"1": 1, "3": 3}, "timeout_ms": 2.5, "batcher": batcher}
    trace = draw_scenario_trace(toy.resolve(data))
    assert set(trace.priority.tolist()) == {1, 3}
    assert np.mean(trace.priority == 3) == pytest.approx(0.75, abs=0.03)
    assert set(trace.timeout_ns.tolist()) == {2_500_000}


@pytest.mark.parametrize("field", [{"timeout_ms": 2.5}, {"priority_shares": {"1": 1}}])
def test_fields_that_no_batcher_reads_are_refused(toy: Any, field: dict[str, Any]) -> None:
    """Time-outs and priorities beside a batcher that ignores them are an error, not silence."""
    data = scenario(toy, "all")
    data["models"][0] |= {**field, "batcher": {"kind": "none"}}
    with pytest.raises(ScenarioError, match=rf"models\[0\]\.{next(iter(field))}: batcher 'none' does not read it"):
        toy.resolve(data)


def test_profile_must_cover_the_slices_it_is_used_on(toy: Any) -> None:
    """A profile without times for a slice is refused with the slices it has."""
    data = scenario(toy, "all", partition="4g.20gb+3g.20gb")
    with pytest.raises(
        ScenarioError, match=r"models\[0\]\.profile: .* no times for slice 4g\.20gb \(it has 1g, 2g, 3g, full\)"
    ):
        toy.resolve(data)


def test_rate_change_must_name_a_model(toy: Any) -> None:
    """A rate change of an unknown model is refused when the scenario is read."""
    event = {"kind": "rate_changes", "at_s": 1.0, "factor": 2.0, "model": "modell"}
    with pytest.raises(ValueError, match=r"events\[0\]\.model: no model named 'modell'; known: model0"):
        toy.resolve(scenario(toy, "all", events=[event]))
