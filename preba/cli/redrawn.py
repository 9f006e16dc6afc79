"""A trace that was played, with other luck of the server: what the same requests might have met."""

from __future__ import annotations

from dataclasses import replace

from preba.batching.triton_config import TritonBatcher
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Run, Scenario
from preba.trace import Trace

__all__ = ["other_luck", "redrawn"]

DRAW_SEED = 4_000_003


def other_luck(scenario: Scenario, draw: int) -> Scenario:
    """A scenario with other draws, also of Triton's threads; as it is with draw 0."""
    models = []
    for model in scenario.models:
        batcher = model.batcher
        if isinstance(batcher, TritonBatcher):
            batcher = batcher.with_quirks(batcher_first_seed=batcher.quirks.batcher_first_seed + draw)
        models.append(model.model_copy(update={"batcher": batcher}))
    seed = scenario.seed + (DRAW_SEED + draw if draw else 0)
    return scenario.model_copy(update={"models": tuple(models), "seed": seed})


def redrawn(calibrated: ResolvedScenario, trace: Trace) -> Trace:
    """A trace with what the scenario draws for as many requests, however its own run is measured: all but arrivals."""
    as_long = calibrated.scenario.model_copy(update={"run": Run(requests=len(trace), warmup_requests=0)})
    drawn = draw_scenario_trace(resolve(as_long, folder=calibrated.folder))
    return replace(
        trace, preprocess_factor=drawn.preprocess_factor, execution_factor=drawn.execution_factor,
        overhead_factor=drawn.overhead_factor, balancer_draw=drawn.balancer_draw,
    )  # fmt: skip
