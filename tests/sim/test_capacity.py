"""Capacity before the run against throughput in it, and what the user is told about overload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preba.errors import ScenarioError
from preba.scenario.load import load_scenario
from preba.scenario.resolve import resolve
from sim.capacity import NEAR_SATURATION, StageLoad, overload_warnings
from sim.run import simulate
from sim.saturation import saturated_rps

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "scenarios").glob("*.yaml"))
TABLE = {
    "1g": {"1": 4.0, "8": 12.0},
    "2g": {"1": 3.0, "8": 7.0},
    "3g": {"1": 3.0, "8": 5.0},
    "7g": {"1": 2.0, "8": 3.0},
}
INTERFERENCE = {"busy_neighbour_fraction": 0.05, "provenance": {"kind": "modelled", "source": "made up for a test"}}

PER_SLICE = {"topology": "per_slice", "balancer": "least_outstanding"}

Change = Callable[[Any, dict[str, Any]], None]


def base(toy: Any, rate_rps: float = 500.0) -> dict[str, Any]:
    """Seven slices that can serve 7 / 1.5 ms = 4,667 requests/s in full batches."""
    model = toy.model(
        toy.profile(TABLE), {"kind": "poisson", "rate_rps": rate_rps}, batcher={"kind": "greedy", "batch_max": 8}
    )
    return toy.scenario([model], requests=2000, partition="7x1g.5gb")


def _model(**fields: Any) -> Change:
    return lambda _, data: data["models"][0].update(fields)


def _field(**fields: Any) -> Change:
    return lambda _, data: data.update(fields)


def _triton(_: Any, data: dict[str, Any]) -> None:
    data["models"][0]["batcher"] = {"kind": "triton", "max_batch_size": 8, "preferred_batch_size": [8]}


def _mixed(_: Any, data: dict[str, Any]) -> None:
    data["gpus"][0]["partition"] = "3g.20gb+2g.10gb+2x1g.5gb"


def _interference(_: Any, data: dict[str, Any]) -> None:
    data["models"][0]["profile"]["interference"] = INTERFERENCE


def _cpu(toy: Any, data: dict[str, Any]) -> None:
    data["preprocessing"] = toy.cpu(6, 3000.0, usable=0.9)


def _dpu(toy: Any, data: dict[str, Any]) -> None:
    data["preprocessing"] = toy.dpu(image={"units": 2})


def _dali_slice(toy: Any, data: dict[str, Any]) -> None:
    image = {"fixed_us": 1000.0, "per_100kb_us": 0.0}
    data["preprocessing"] = toy.dali("dali_slice", slices=[6], batch_max=8, launch_us=500.0, image=image)


def _dali_shared(toy: Any, data: dict[str, Any]) -> None:
    image = {"fixed_us": 1000.0, "per_100kb_us": 0.0}
    data["preprocessing"] = toy.dali("dali_shared", launch_us=500.0, image=image)


CASES: dict[str, tuple[Change, float, str]] = {
    "greedy": (_model(), 7 / 1.5e-3, "slices of toy"),
    "none": (_model(batcher={"kind": "none"}), 7 / 4e-3, "slices of toy"),
    "fixed": (_model(batcher={"kind": "fixed", "batch_max": 4, "timeout_ms": 50.0}), 0, "slices of toy"),
    "preba": (_model(batcher={"kind": "preba", "batch_max": 8, "time_queue_ms": 50.0}), 7 / 1.5e-3, "slices of toy"),
    "triton": (_triton, 7 / 1.5e-3, "slices of toy"),
    "jitter": (_model(execution_jitter={"kind": "gamma", "cv": 0.5}), 7 / 1.5e-3, "slices of toy"),
    "two units each": (_model(batch_units=2), 7 / 3e-3, "slices of toy"),
    "per slice": (
        _field(server={"topology": "per_slice", "balancer": "least_outstanding"}),
        7 / 1.5e-3,
        "slices of toy",
    ),
    "turnaround": (_field(server={"overheads": {"turnaround_us": 1200.0}}), 7 / 1.65e-3, "slices of toy"),
    "way to the slice": (_field(server={"overheads": {"dispatch_us": 1200.0}}), 7 / 1.65e-3, "slices of toy"),
    "turnaround of each request": (
        _field(server={"overheads": {"turnaround_request_us": 100.0}}),
        7 / 1.6e-3,
        "slices of toy",
    ),
    "mixed slices": (_mixed, (2 / 12 + 1 / 7 + 1 / 5) * 8e3, "slices of toy"),
    "interference": (_interference, 7 / 1.575e-3, "slices of toy"),
    "cpu": (_cpu, 6 * 0.9 / 3e-3, "preprocessing (cpu)"),
    "dpu": (_dpu, 0, "preprocessing (dpu image)"),
    "dali slice": (_dali_slice, 8 / 8.5e-3, "preprocessing (dali)"),
    "dali shared": (_dali_shared, 7 * 8 / (12e-3 * 1.1 + 8.5e-3), "slices of toy"),
}


@pytest.mark.parametrize("name", CASES)
def test_capacity_is_what_a_saturated_run_delivers(toy: Any, name: str) -> None:
    """Offered more than it can carry, a server delivers its analytic capacity within 3 %, at the stage named."""
    change, by_hand_rps, stage = CASES[name]
    data = base(toy)
    change(toy, data)
    resolved = toy.resolve(data)
    worst = simulate(resolved).loads[0]
    assert worst.stage == stage
    if by_hand_rps:
        assert worst.capacity_rps == pytest.approx(by_hand_rps, rel=0.02 if name == "jitter" else 1e-6)
    assert saturated_rps(resolved) == pytest.approx(worst.capacity_rps, rel=0.03)


def test_capacity_of_audio_bounds_what_mixed_lengths_deliver(toy: Any) -> None:
    """For inputs of mixed lengths the capacity is an upper bound, and length buckets come close to it."""
    model = toy.model(
        toy.audio_profile(["1g"]),
        {"kind": "poisson", "rate_rps": 500.0},
        sizes={"kind": "uniform", "low_s": 1, "high_s": 25},
        batcher={"kind": "preba", "batch_max": 8, "time_queue_ms": 50.0},
    )
    resolved = toy.resolve(toy.scenario([model], requests=2000, partition="7x1g.5gb"))
    capacity = simulate(resolved).loads[0].capacity_rps
    assert 0.85 * capacity < saturated_rps(resolved) <= capacity


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_capacity_bounds_every_shipped_scenario(path: Path) -> None:
    """No scenario in configs delivers more than the capacity stated for it."""
    resolved = resolve(load_scenario(path, ["run={requests: 1000}"]), folder=path.parent)
    if not simulate(resolved).loads or len(resolved.models) > 1:
        with pytest.raises(ScenarioError):
            saturated_rps(resolved)
        return
    probe = simulate(resolved).loads[0]
    assert saturated_rps(resolved, requests=4000) <= 1.03 * probe.capacity_rps


def test_overload_names_the_cpu_pool_and_its_capacity(toy: Any) -> None:
    """Beyond the CPU pool's capacity the warning says so, with the pool's name and rate."""
    data = base(toy, rate_rps=2500.0)
    _cpu(toy, data)
    (warning,) = toy.run(data).warnings
    assert "no steady state exists" in warning
    assert "Bottleneck is preprocessing (cpu): " in warning
    assert "1,800/s capacity" in warning
    assert "\n" not in warning


def test_overload_names_the_slices_and_their_capacity(toy: Any) -> None:
    """Beyond the slices' capacity the warning names the model they serve."""
    (warning,) = toy.run(base(toy, rate_rps=6000.0)).warnings
    assert "no steady state exists" in warning
    assert "Bottleneck is slices of toy: " in warning
    assert "4,667/s capacity" in warning


def test_overload_names_every_stage_that_is_overloaded(toy: Any) -> None:
    """The heaviest stage is the bottleneck; others beyond capacity are listed behind it."""
    data = base(toy, rate_rps=8000.0)
    _cpu(toy, data)
    (warning,) = toy.run(data).warnings
    assert "Bottleneck is preprocessing (cpu)" in warning
    assert warning.endswith("also slices of toy (4,667/s)")


def test_overload_of_one_model_of_two_is_found(toy: Any) -> None:
    """Each model's slices are compared with that model's own traffic."""
    data = base(toy, rate_rps=2000.0)
    calm = {
        **data["models"][0],
        "name": "calm",
        "slices": [1, 2, 3, 4, 5, 6],
        "arrivals": {"kind": "poisson", "rate_rps": 500},
    }
    data["models"] = [{**data["models"][0], "slices": [0]}, calm]
    (warning,) = toy.run(data).warnings
    assert "Bottleneck is slices of toy: " in warning
    assert "calm" not in warning


def test_near_saturation_is_said_to_be_so(toy: Any) -> None:
    """From 95 % on the user is told that the tail depends on the length of the run."""
    (warning,) = toy.run(base(toy, rate_rps=4667 * 0.97)).warnings
    assert warning.startswith("near saturation (9")
    assert toy.run(base(toy, rate_rps=4667 * 0.8)).warnings == ()


def test_closed_loop_is_never_called_overloaded(toy: Any) -> None:
    """A closed loop slows itself down, so it has no offered rate to compare."""
    data = base(toy)
    data["models"][0]["arrivals"] = {"kind": "closed_loop", "outstanding": 500}
    simulation = toy.run(data)
    assert simulation.loads == ()
    assert simulation.warnings == ()


def test_overload_is_found_beside_a_closed_loop(toy: Any) -> None:
    """A closed loop on other slices hides nobody's overload; stations that it visits are left out."""
    data = base(toy, rate_rps=2000.0)
    busy = {**data["models"][0], "slices": [0]}
    loop = {**busy, "name": "loop", "slices": [1, 2], "arrivals": {"kind": "closed_loop", "outstanding": 4}}
    simulation = toy.run({**data, "models": [busy, loop], "preprocessing": toy.cpu(2, 100.0)})
    assert [stage.stage for stage in simulation.loads] == ["slices of toy"]
    assert "Bottleneck is slices of toy: " in simulation.warnings[0]


def test_stage_without_capacity_has_infinite_load() -> None:
    """A stage that can serve nothing is infinitely loaded, not a division by zero."""
    assert StageLoad("x", 1.0, 0.0).load == float("inf")
    assert overload_warnings([StageLoad("x", NEAR_SATURATION * 0.99, 1.0)]) == []
    assert overload_warnings([]) == []


def test_burst_of_a_stable_process_is_not_called_overload(toy: Any) -> None:
    """What a short run of an on/off process happens to draw does not make it unstable."""
    arrivals = {"kind": "onoff", "rate_on_rps": 160.0, "mean_on_s": 5.0, "mean_off_s": 5.0}
    data = toy.scenario([toy.model(toy.profile({"full": {"1": 10.0}}), arrivals)], requests=200)
    for seed in range(8):
        simulation = toy.run({**data, "seed": seed})
        assert not any("no steady state" in warning for warning in simulation.warnings)
        assert simulation.loads[0].offered_rps == pytest.approx(80.0)
