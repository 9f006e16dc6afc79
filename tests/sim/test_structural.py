"""The structural fast path: used exactly where it is exact, and then equal to the reference in every field."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from preba.scenario.draw import draw_scenario_trace
from preba.scenario.load import load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from sim.compiled.automatic import run_compiled
from sim.compiled.structural import _compiled as compiled_passes
from sim.compiled.structural import run_structural, structural_obstacle
from sim.compiled.structural_kernel import DONE, NOT_PLAYED, SWAPS
from sim.model import SimModel, build_model
from sim.reference import run_reference

SCENARIOS = Path(__file__).resolve().parents[2] / "configs" / "scenarios"
FAST = ("preba-audio-base", "preba-image-base", "preba-image-ideal")


def model_of(resolved: ResolvedScenario) -> SimModel:
    return build_model(resolved, draw_scenario_trace(resolved))


def differences(model: SimModel) -> list[str]:
    """Names of the fields in which the fast path and the reference differ."""
    expected, found = run_reference(model), run_structural(model)
    assert found is not None
    names = [] if expected[2] == found[2] else ["outages"]
    for one, other in zip(expected[:2], found[:2], strict=True):
        for field in dataclasses.fields(one):
            left, right = getattr(one, field.name), getattr(other, field.name)
            if left.dtype != right.dtype or not np.array_equal(left, right):
                names.append(f"{type(one).__name__}.{field.name}")
    return names


@st.composite
def plain_batchers(draw: st.DrawFn) -> dict[str, Any]:
    """Batchers that form the batch when a slice takes it."""
    choice = draw(st.sampled_from(["first", "fastest", "longest_idle"]))
    kind = draw(st.sampled_from(["none", "greedy", "fixed", "preba"]))
    if kind == "fixed":
        wait = draw(st.sampled_from([0.0, 1.0, 2.0, 7.5]))
        return {"kind": kind, "batch_max": draw(st.integers(1, 6)), "timeout_ms": wait, "slice_choice": choice}
    if kind == "greedy":
        return {"kind": kind, "batch_max": draw(st.integers(1, 6)), "slice_choice": choice}
    if kind == "preba":
        waits = st.sampled_from([None, 0.0, 2.0, 5.0])
        return {"kind": kind, "batch_max": 4, "time_queue_ms": draw(waits), "slice_choice": choice}
    return {"kind": kind, "slice_choice": choice}


@st.composite
def plain_scenarios(draw: st.DrawFn, toy: Any) -> dict[str, Any]:
    """One model behind at most one pool; whole milliseconds everywhere, so that events coincide."""
    partition = draw(st.sampled_from(["full", "7x1g.5gb", "3g.20gb+2g.10gb+2x1g.5gb"]))
    fields: dict[str, Any] = {}
    if draw(st.booleans()):
        provenance = {"kind": "modelled", "source": "made up for a test"}
        fields["interference"] = {"busy_neighbour_fraction": 0.1, "provenance": provenance}
    profile = toy.profile(toy.image_table, **fields)
    batcher = draw(plain_batchers())
    largest = batcher.get("batch_max", 1)
    jitters = st.sampled_from([{"kind": "none"}, {"kind": "gamma", "cv": 0.5}])
    model = toy.model(
        profile,
        {
            "kind": draw(st.sampled_from(["poisson", "deterministic"])),
            "rate_rps": draw(st.sampled_from([50.0, 250.0, 500.0, 1000.0, 2000.0])),
        },
        batcher=batcher,
        batch_units=draw(st.integers(1, min(largest, 3))) if batcher["kind"] in ("fixed", "greedy") else 1,
        execution_jitter=draw(jitters),
        preprocess_jitter=draw(jitters),
    )
    preprocessing = draw(
        st.one_of(
            st.just({"kind": "none"}),
            st.just(toy.dali("dali_shared")),
            st.builds(lambda cores, us: toy.cpu(cores, us), st.sampled_from([1, 2, 3, 40]), st.sampled_from([0, 1000])),
        )
    )
    overheads = {"frontend_us": 1000, "turnaround_us": 1000, "response_us": 50}
    return toy.scenario(
        [model],
        requests=draw(st.integers(1, 150)),
        seed=draw(st.integers(0, 1000)),
        partition=partition,
        preprocessing=preprocessing,
        server={
            "overheads": draw(
                st.sampled_from(
                    [{}, overheads, {"turnaround_request_us": 500, "response_request_us": 300, "response_next_us": 40}]
                )
            )
        },
    )


@given(data=st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_fast_path_equals_the_reference_wherever_it_applies(toy: Any, data: st.DataObject) -> None:
    """Not one field of one record or span differs, however many events fall on one moment."""
    scenario = data.draw(plain_scenarios(toy))
    model = model_of(toy.resolve(scenario))
    obstacle = structural_obstacle(model)
    event(f"obstacle: {obstacle}")
    event(f"batcher {scenario['models'][0]['batcher']['kind']}, preprocessing {scenario['preprocessing']['kind']}")
    assume(obstacle is None)
    assert differences(model) == []


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_fast_path_never_claims_what_it_cannot_do(toy: Any, drawn_scenarios: Any, data: st.DataObject) -> None:
    """Of all kinds of scenarios those it accepts are equal to the reference, too."""
    model = model_of(toy.resolve(data.draw(drawn_scenarios)))
    obstacle = structural_obstacle(model)
    event(f"obstacle: {obstacle}")
    if obstacle is None:
        assert differences(model) == []


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_fast_path_takes_the_scenario_files_it_should(path: Path) -> None:
    """Scenarios of one plain batcher behind at most one CPU pool are played without an event list."""
    resolved = resolve(load_scenario(path), folder=path.parent)
    run = resolved.scenario.run.model_copy(update={"requests": 2000, "duration_s": None})
    model = model_of(dataclasses.replace(resolved, scenario=resolved.scenario.model_copy(update={"run": run})))
    assert (structural_obstacle(model) is None) == (path.stem in FAST), structural_obstacle(model)
    if path.stem in FAST:
        assert differences(model) == []


def case(toy: Any, *, model: dict[str, Any] | None = None, **scenario: Any) -> SimModel:
    """A model without obstacle, but for the fields given."""
    plain = {"batcher": {"kind": "fixed", "batch_max": 4, "timeout_ms": 1}, **(model or {})}
    profile = plain.pop("profile", None) or toy.profile(toy.image_table)
    arrivals = plain.pop("arrivals", None) or {"kind": "poisson", "rate_rps": 300}
    fields = {"partition": "7x1g.5gb", "requests": 60, **scenario}
    return model_of(toy.resolve(toy.scenario([toy.model(profile, arrivals, **plain)], **fields)))


def test_fast_path_names_what_stands_in_its_way(toy: Any) -> None:
    """Each feature that needs an event list is named."""
    assert structural_obstacle(case(toy)) is None
    closed = {"kind": "closed_loop", "outstanding": 3, "think_ms": 1.0}
    fails = [{"kind": "slice_fails", "at_s": 0.01, "slice": 0}]
    bounded = {"kind": "none", "queue_max": 3}
    early = {"profile": toy.profile(toy.image_table, backend={"kind": "trt", "input_consumed_fraction": 0.2})}
    assert structural_obstacle(case(toy, model={"arrivals": closed})) == "a closed loop"
    assert structural_obstacle(case(toy, events=fails)) == "slices that fail"
    assert structural_obstacle(case(toy, server={"topology": "per_slice"})) == "several servers"
    assert structural_obstacle(case(toy, preprocessing=toy.dpu())) == "several preprocessing stations"
    assert structural_obstacle(case(toy, model={"batcher": bounded})) == "a batcher that is not plain"
    assert structural_obstacle(case(toy, model=early)) == "a backend that takes its next batch early"
    frozen = {"kind": "fixed", "batch_max": 4, "timeout_ms": 1, "forms": "when_due"}
    assert structural_obstacle(case(toy, model={"batcher": frozen})) == "a batcher that is not plain"


def test_fast_path_gives_way_to_a_batch_that_takes_no_time(toy: Any) -> None:
    """A service of less than half a nanosecond is left to the event list, and the answer is the reference's."""
    profile = toy.profile({"1g": {"1": 1e-6, "4": 1e-6}})
    model = case(toy, model={"profile": profile, "execution_jitter": {"kind": "gamma", "cv": 3.0}})
    assert structural_obstacle(model) is None
    assert run_structural(model) is None
    expected, found = run_reference(model), run_compiled(model)
    assert np.array_equal(expected[0].completed_ns, found[0].completed_ns)


def both_passes(scheduled_ns: Any, occupancy_ns: Any, units: int) -> tuple[int, list[Any], list[Any]]:
    """The quick pass's status, and what either pass writes."""
    quickly, plainly, _ = compiled_passes()
    count, shift = len(scheduled_ns), max((units - 1).bit_length(), 1)
    given = (scheduled_ns, occupancy_ns, 0, units, shift)
    written = []
    for _ in range(2):
        columns = [np.empty(count, dtype=np.int64) for _ in range(3)] + [np.empty(count, dtype=np.int32)]
        written.append([*columns, np.empty(count + 1, dtype=np.int64), np.zeros(count + 1, dtype=np.int32)])
    tree, room = np.zeros((2, 2 << shift), dtype=np.int64), np.zeros(SWAPS, dtype=np.int64)
    status = quickly(*given, tree, room, *written[0])
    plainly(*given, np.zeros((3, units + 1), dtype=np.int64), *written[1])
    return status, *([column[:count] for column in columns] for columns in written)


@given(seed=st.integers(0, 2**32 - 1), units=st.sampled_from([1, 2, 3, 7, 16, 40, 63, 64]), gap=st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_quick_pass_equals_the_plain_one_when_many_leave_at_once(seed: int, units: int, gap: int) -> None:
    """Arrivals and works of a few nanoseconds coincide all the time; every column of the two passes is equal."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 400))
    scheduled_ns = np.cumsum(rng.integers(0, gap + 1, count)).astype(np.int64)
    occupancy_ns = rng.integers(1, 2 + rng.integers(0, 3 * units), count).astype(np.int64)
    status, quick, plain = both_passes(scheduled_ns, occupancy_ns, units)
    assert status == DONE
    assert all(np.array_equal(one, other) for one, other in zip(quick, plain, strict=True))


def test_quick_pass_says_when_it_cannot_tell() -> None:
    """More groups leave together than it has room to remember, or work takes no time: the plain pass must play."""
    everybody_at_once = np.zeros(6 * SWAPS, dtype=np.int64)
    assert both_passes(everybody_at_once, np.full(6 * SWAPS, 5, dtype=np.int64), 3)[0] == NOT_PLAYED
    assert both_passes(everybody_at_once[:9], np.zeros(9, dtype=np.int64), 3)[0] == NOT_PLAYED
