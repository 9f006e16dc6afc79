"""Times at which the serving software, or preprocessing, is slow at once: measured, and met again in their order."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from preba.strict import StrictModel
from preba.trace_table import PARTS
from preba.units import ns_from_ms

__all__ = ["Slowness"]


class Slowness(StrictModel):
    """How slow software is in one window of time after the other: what neighbours, clocks and temperatures do to it.

    A run begins anywhere in the measured series and goes on at its beginning after its end.
    """

    window_ms: PositiveFloat
    factors: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
    """Of the overheads, by window; divided by their mean."""
    preprocessing: tuple[NonNegativeFloat, ...] = ()
    """Of preprocessing times, in the same windows, likewise; none: they are not slow together."""
    shares: dict[Literal["frontend", "turnaround", "response", "response_next"], NonNegativeFloat] = Field(
        default_factory=dict
    )
    """How much of it each part feels, by how much its factor differs from 1; all of it unless it is named."""

    @model_validator(mode="after")
    def _some_time(self) -> Slowness:
        if max(self.factors) == 0:
            raise ValueError("factors: at least one must be > 0")
        if self.preprocessing and max(self.preprocessing) == 0:
            raise ValueError("preprocessing: at least one must be > 0")
        if self.preprocessing and len(self.preprocessing) != len(self.factors):
            raise ValueError(
                f"preprocessing: needs one factor for each of the {len(self.factors)} windows of factors, "
                f"got {len(self.preprocessing)}"
            )
        if ns_from_ms(self.window_ms) < 1:
            raise ValueError("window_ms: must be at least 0.000001")
        return self

    def at(self, times_ns: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Factors at those times, float64[n, 4], a column for each part of a trace's ``overhead_factor``.

        Where the series begins is one draw, however many times there are.
        """
        found = self._series(self.factors, times_ns, rng)
        shares = np.array([self.share(part) for part in PARTS["overhead_factor"]])
        parts: NDArray[np.float64] = np.maximum(1.0 + shares * (found[:, np.newaxis] - 1.0), 0.0)
        return parts

    def preprocessing_at(self, times_ns: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Factors of preprocessing times, float64[n]; with the same generator they begin where those of ``at`` do."""
        return self._series(self.preprocessing or (1.0,), times_ns, rng)

    def _series(
        self, series: tuple[float, ...], times_ns: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        factors = np.array(series)
        windows = times_ns // ns_from_ms(self.window_ms) + int(rng.integers(len(factors)))
        found: NDArray[np.float64] = (factors / factors.mean())[windows % len(factors)]
        return found

    def factor_cv(self) -> float:
        """Coefficient of variation of the factors of overheads."""
        return _cv(self.factors)

    def preprocessing_cv(self) -> float:
        """Coefficient of variation of the factors of preprocessing times, 0 without."""
        return _cv(self.preprocessing) if self.preprocessing else 0.0

    def share(self, part: str) -> float:
        """How much of it a part feels."""
        return next((share for name, share in self.shares.items() if name == part), 1.0)


def _cv(series: tuple[float, ...]) -> float:
    factors = np.array(series)
    return float(factors.std() / factors.mean())
