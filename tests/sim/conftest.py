"""Scenarios drawn at random for the engines' properties and their equality; no assertions live here.

Batchers, topologies, balancers, preprocessing, mixed slices, one or two models, open and closed loops, slices that
fail and return, and arrivals that coincide to the nanosecond.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

PARTITIONS: dict[str, tuple[Any, list[str]]] = {
    "full": ("full", ["full"]),
    "seven": ("7x1g.5gb", ["1g.5gb"] * 7),
    "mixed": ("3g.20gb+2g.10gb+2x1g.5gb", ["3g.20gb", "2g.10gb", "1g.5gb", "1g.5gb"]),
    "two": ("2g.10gb+3g.20gb", ["2g.10gb", "3g.20gb"]),
}
SIZES = ("1g", "2g", "3g", "full")
BATCH_MAX = 6


@st.composite
def batchers(draw: st.DrawFn) -> dict[str, Any]:
    """Any batcher."""
    kind = draw(st.sampled_from(["none", "fixed", "greedy", "preba", "triton"]))
    if kind == "triton":
        return draw(tritons())
    config: dict[str, Any] = {"kind": kind, "queue_max": draw(st.sampled_from([0, 0, 3]))}
    config["slice_choice"] = draw(st.sampled_from(["first", "fastest", "longest_idle"]))
    if kind == "fixed":
        config["batch_max"] = draw(st.integers(1, BATCH_MAX))
        config["timeout_ms"] = draw(st.sampled_from([0.0, 1.0, 7.0]))
        config["forms"] = draw(st.sampled_from(["at_dispatch", "when_due"]))
    elif kind == "greedy":
        config["batch_max"] = draw(st.sampled_from([None, 1, 4]))
    elif kind == "preba":
        config["batch_max"] = draw(st.sampled_from([None, 3]))
        config["time_queue_ms"] = draw(st.sampled_from([None, 0.0, 5.0]))
        config["merge_reach"] = draw(st.integers(0, 2))
        config["merge_order"] = draw(st.sampled_from(["shorter_first", "longer_first"]))
        config["timer"] = draw(st.sampled_from(["oldest_request", "last_emission"]))
        config["emit_when_idle"] = draw(st.booleans())
        config["due_batch"] = draw(st.sampled_from(["stays_open", "frozen", "frozen_per_slice"]))
    return config


@st.composite
def tritons(draw: st.DrawFn) -> dict[str, Any]:
    """A Triton batcher in one of its regimes."""
    config: dict[str, Any] = {"kind": "triton", "max_batch_size": draw(st.integers(1, BATCH_MAX))}
    largest = config["max_batch_size"]
    config["backend"] = draw(st.sampled_from(["blocking", "trt", "trt-graph", "eager"]))
    if config["backend"] in ("trt", "eager"):
        config["input_consumed_ms"] = 1.0
    config["instances_per_slice"] = draw(st.integers(1, 2))
    if draw(st.booleans()):
        config["preferred_batch_size"] = sorted(draw(st.sets(st.integers(1, largest), max_size=2)))
    config["max_queue_delay_us"] = draw(st.sampled_from([0, 2000, 30000]))
    regime = draw(st.sampled_from(["prefetch", "policy", "levels", "rate"]))
    if regime == "prefetch":
        config["preserve_ordering"] = draw(st.booleans())
        config["quirks"] = {
            "ordering_regression": draw(st.sampled_from([None, False])),
            "batcher_first_permille": draw(st.sampled_from([None, 300])),
            "batcher_wakeup_us": draw(st.sampled_from([0, 0, 600])),
            "batcher_wakeup_varies": draw(st.booleans()),
        }
    elif regime == "policy":
        action = draw(st.sampled_from(["REJECT", "DELAY"]))
        policy = {"timeout_action": action, "default_timeout_us": draw(st.sampled_from([0, 5000]))}
        policy["allow_timeout_override"] = draw(st.booleans())
        config["default_queue_policy"] = {**policy, "max_queue_size": draw(st.sampled_from([0, 4]))}
        config["quirks"] = {"batcher_first_late_us": draw(st.sampled_from([0, 900]))}
    elif regime == "levels":
        config["priority_levels"] = 2
        config["default_priority_level"] = 2
    elif config["backend"] == "blocking":
        config["rate_limiter"] = {"mode": "execution_count"}
    return config


@st.composite
def arrivals(draw: st.DrawFn) -> dict[str, Any]:
    """Arrivals; those at fixed intervals coincide with each other, with services of whole ms and with events."""
    kind = draw(st.sampled_from(["poisson", "deterministic", "closed_loop"]))
    if kind == "closed_loop":
        think = draw(st.sampled_from([0.0, 4.0]))
        return {"kind": kind, "outstanding": draw(st.integers(1, 12)), "think_ms": think}
    return {"kind": kind, "rate_rps": draw(st.sampled_from([50.0, 250.0, 1000.0, 2000.0]))}


@st.composite
def models(draw: st.DrawFn, toy: Any, name: str, modality: str) -> dict[str, Any]:
    """A model without its slices."""
    jitter = draw(st.sampled_from([{"kind": "none"}, {"kind": "gamma", "cv": 0.5}]))
    backend = draw(st.sampled_from([{}, {"kind": "trt", "input_consumed_fraction": 0.25}, {"kind": "eager"}]))
    fields: dict[str, Any] = {"jitter": jitter, "backend": backend}
    if draw(st.booleans()):
        fields["interference"] = {"busy_neighbour_fraction": 0.1, "provenance": toy.figure(0) | {"value": None}}
        del fields["interference"]["provenance"]["value"]
    if modality == "audio":
        profile = toy.audio_profile(SIZES, batch_max=BATCH_MAX, **fields)
        sizes = draw(
            st.sampled_from([{"kind": "uniform", "low_s": 1, "high_s": 12}, {"kind": "constant", "audio_s": 2.5}])
        )
    else:
        profile = toy.profile(toy.image_table, **fields)
        sizes = {"kind": "lognormal", "mean_kb": 100, "sigma": 0.5}
    config: dict[str, Any] = {"name": name, "sizes": sizes, "batcher": draw(batchers())}
    if config["batcher"].get("default_queue_policy", {}).get("allow_timeout_override"):
        config["timeout_ms"] = draw(st.sampled_from([0.0, 2.0, 6.0]))
    if config["batcher"].get("priority_levels"):
        config["priority_shares"] = {"1": 1, "2": 3}
    largest = config["batcher"].get("max_batch_size") or config["batcher"].get("batch_max") or 1
    if largest >= 2 and config["batcher"]["kind"] in ("fixed", "triton"):
        config["batch_units"] = draw(st.integers(1, 2))
    return toy.model(profile, draw(arrivals()), preprocess_jitter={"kind": "gamma", "cv": 0.3}, **config)


@st.composite
def scenarios(draw: st.DrawFn, toy: Any) -> dict[str, Any]:
    """A whole scenario as plain data."""
    spec, slices = PARTITIONS[draw(st.sampled_from(sorted(PARTITIONS)))]
    gpu_count = draw(st.integers(1, 2))
    slices = slices * gpu_count
    free = list(range(len(slices)))
    modalities = draw(st.lists(st.sampled_from(["image", "audio"]), min_size=1, max_size=2))
    kind = draw(st.sampled_from(["none", "cpu", "dpu", "dali_slice", "dali_shared"]))
    if kind == "dali_slice" and (len(set(modalities)) > 1 or len(free) < 2):
        kind = "cpu"
    modalities = modalities[: len(free) - (kind == "dali_slice")]
    preprocessing: dict[str, Any] = {"kind": "none"}
    if kind == "cpu":
        preprocessing = toy.cpu(draw(st.integers(1, 3)), 1500, per_audio_s_us=300, usable=0.9)
        preprocessing["rested_us"] = draw(st.sampled_from([0, 250]))
    elif kind == "dpu":
        design = draw(st.sampled_from(["two_types", "one_type"])) if "audio" in modalities else None
        preprocessing = toy.dpu(**({"audio": {"design": design}} if design else {}))
    elif kind == "dali_slice":
        preprocessing = toy.dali(kind, slices=[free.pop()], batch_max=draw(st.sampled_from([1, 4])))
    elif kind == "dali_shared":
        preprocessing = toy.dali(kind)
    served = [draw(models(toy, f"model{index}", modality)) for index, modality in enumerate(modalities)]
    owner = [index % len(served) for index in free] if len(served) > 1 else [0] * len(free)
    owner = draw(st.permutations(owner))
    for index, model in enumerate(served):
        model["slices"] = [place for place, mine in zip(free, owner, strict=True) if mine == index]
    failing = st.sampled_from([0, 2, 10, 40, 100]).map(lambda ms: ms / 1000)
    events: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 3))):
        happening = draw(st.sampled_from(["slice_fails", "slice_returns"]))
        events.append({"kind": happening, "at_s": draw(failing), "slice": draw(st.sampled_from(free))})
    if any(model["arrivals"]["kind"] != "closed_loop" for model in served) and draw(st.booleans()):
        events.append({"kind": "rate_changes", "at_s": draw(failing), "factor": draw(st.sampled_from([0.5, 3.0]))})
    overheads = draw(
        st.sampled_from(
            [
                {},
                {"frontend_us": 100, "turnaround_us": 300, "response_us": 50},
                {"ingress_us": 130, "frontend_us": 100, "timer_us": 80, "dispatch_us": 90, "turnaround_us": 210},
                {"turnaround_us": 20, "turnaround_request_us": 170, "response_request_us": 130},
                {
                    "frontend_us": 100,
                    "frontend_jitter": {"kind": "exponential"},
                    "turnaround_us": 300,
                    "turnaround_jitter": {"kind": "lognormal", "cv": 0.5},
                    "response_us": 50,
                    "response_request_us": 130,
                    "response_jitter": {"kind": "gamma", "cv": 2.0},
                },
                {"response_us": 400, "response_next_us": 130, "response_next_jitter": {"kind": "exponential"}},
                {"response_request_us": 40, "response_next_us": 70},
                {
                    "frontend_us": 100,
                    "turnaround_us": 300,
                    "response_us": 50,
                    "slowness": {"window_ms": 5, "factors": [0.2, 1.0, 3.0], "shares": {"response": 0.5}},
                },
            ]
        )
    )
    server = {
        "topology": draw(st.sampled_from(["central", "per_slice"])),
        "balancer": draw(st.sampled_from(["round_robin", "random", "least_outstanding", "power_of_two"])),
        "on_slice_loss": draw(st.sampled_from(["retry", "fail"])),
        "overheads": overheads,
    }
    return toy.scenario(
        served,
        requests=draw(st.integers(30, 120)),
        seed=draw(st.integers(0, 1000)),
        gpus=[{"device": "A100-40GB", "partition": spec, "count": gpu_count}],
        preprocessing=preprocessing,
        server=server,
        events=events,
    )


@pytest.fixture(scope="session")
def drawn_scenarios(toy: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draws whole scenarios as plain data."""
    return scenarios(toy)
