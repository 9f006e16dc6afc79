"""Scenarios with other luck of the server: what the same requests might have met."""

from __future__ import annotations

from preba.batching.triton_config import TritonBatcher
from preba.scenario.schema import Scenario

__all__ = ["other_luck"]

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
