"""How near a simulation has to come to what is measured: ``validation:`` in a scenario. Values only."""

from __future__ import annotations

from pydantic import PositiveFloat

from preba.strict import StrictModel

__all__ = ["Validation"]


class Validation(StrictModel):
    """Largest error of each figure, in percent of the measured value; ``preba validate`` judges by them.

    The defaults are what the project holds itself to on tables of 20 ms and more.
    """

    throughput_percent: PositiveFloat = 1.0
    batch_percent: PositiveFloat = 2.0
    """Mean batch size."""
    mean_percent: PositiveFloat = 2.0
    """Mean latency."""
    p50_percent: PositiveFloat = 2.0
    p90_percent: PositiveFloat = 3.0
    p95_percent: PositiveFloat = 3.0
    p99_percent: PositiveFloat = 5.0
    utilization_percent: PositiveFloat = 5.0
    """Mean busy share of the slices."""
    distribution_percent: PositiveFloat = 10.0
    """Batches of another size: the distance of the two histograms."""
    stage_percent: PositiveFloat = 3.0
    """Mean of a stage, in percent of the mean latency."""
