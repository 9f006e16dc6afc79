"""Times at which all of the serving software is slow at once: measured, and met again in their order."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from preba.strict import StrictModel
from preba.units import ns_from_ms

__all__ = ["Slowness"]


class Slowness(StrictModel):
    """How slow software is in one window of time after the other: what neighbours, clocks and temperatures do to it.

    A run begins anywhere in the measured series and goes on at its beginning after its end.
    """

    window_ms: PositiveFloat
    factors: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
    """Of the overheads, by window; divided by their mean."""

    @model_validator(mode="after")
    def _some_time(self) -> Slowness:
        if max(self.factors) == 0:
            raise ValueError("factors: at least one must be > 0")
        if ns_from_ms(self.window_ms) < 1:
            raise ValueError("window_ms: must be at least 0.000001")
        return self

    def at(self, times_ns: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Factors at those times, float64[n]; where the series begins is one draw, however many times there are."""
        factors = np.array(self.factors)
        windows = times_ns // ns_from_ms(self.window_ms) + int(rng.integers(len(factors)))
        found: NDArray[np.float64] = (factors / factors.mean())[windows % len(factors)]
        return found
