"""Service-time jitter: random factors with mean exactly 1, one per request, drawn before the run."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from preba.strict import StrictModel

Float64 = NDArray[np.float64]


class NoJitter(StrictModel):
    """Every service takes its nominal time."""

    kind: Literal["none"]

    def factor_cv(self) -> float:
        """Coefficient of variation of the factors."""
        return 0.0

    def draw(self, count: int, rng: np.random.Generator) -> Float64:  # noqa: ARG002 - the shape all kinds share
        """All ones, float64[count]."""
        return np.ones(count)


class LogNormalJitter(StrictModel):
    """Log-normal factors: a longer tail than gamma at equal ``cv``."""

    kind: Literal["lognormal"]
    cv: PositiveFloat

    def factor_cv(self) -> float:
        """Coefficient of variation of the factors."""
        return self.cv

    def draw(self, count: int, rng: np.random.Generator) -> Float64:
        """Factors, float64[count]."""
        variance = math.log1p(self.cv**2)
        return np.exp(rng.standard_normal(count) * math.sqrt(variance) - 0.5 * variance)


class GammaJitter(StrictModel):
    """Gamma factors; ``cv`` = 1/sqrt(k) makes service times Erlang-k."""

    kind: Literal["gamma"]
    cv: PositiveFloat

    def factor_cv(self) -> float:
        """Coefficient of variation of the factors."""
        return self.cv

    def draw(self, count: int, rng: np.random.Generator) -> Float64:
        """Factors, float64[count]."""
        shape = 1.0 / self.cv**2
        return rng.standard_gamma(shape, count) / shape


class ExponentialJitter(StrictModel):
    """Exponential factors: the service times of queueing theory's M."""

    kind: Literal["exponential"]

    def factor_cv(self) -> float:
        """Coefficient of variation of the factors."""
        return 1.0

    def draw(self, count: int, rng: np.random.Generator) -> Float64:
        """Factors, float64[count]."""
        return rng.standard_exponential(count)


class UniformJitter(StrictModel):
    """Factors spread evenly over 1 +- cv * sqrt(3); at ``cv`` = 1/sqrt(3) that reaches 0."""

    kind: Literal["uniform"]
    cv: Annotated[float, Field(gt=0.0, le=1.0 / math.sqrt(3.0))]

    def factor_cv(self) -> float:
        """Coefficient of variation of the factors."""
        return self.cv

    def draw(self, count: int, rng: np.random.Generator) -> Float64:
        """Factors, float64[count]."""
        half = self.cv * math.sqrt(3.0)
        # At the largest cv, rounding could leave a hair below 0.
        return np.maximum(1.0 + half * (2.0 * rng.random(count) - 1.0), 0.0)


class EmpiricalJitter(StrictModel):
    """Measured factors (or times), drawn with replacement after division by their mean."""

    kind: Literal["empirical"]
    factors: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _some_time(self) -> EmpiricalJitter:
        if max(self.factors) == 0:
            raise ValueError("factors: at least one must be > 0")
        return self

    def _normalised(self) -> Float64:
        factors = np.array(self.factors)
        normalised: Float64 = factors / factors.mean()
        return normalised

    def factor_cv(self) -> float:
        """Coefficient of variation of the factors."""
        return float(self._normalised().std())

    def draw(self, count: int, rng: np.random.Generator) -> Float64:
        """Factors, float64[count]."""
        return self._normalised()[rng.integers(0, len(self.factors), size=count)]


JitterConfig = Annotated[
    NoJitter | LogNormalJitter | GammaJitter | ExponentialJitter | UniformJitter | EmpiricalJitter,
    Field(discriminator="kind"),
]


def draw_factors(config: JitterConfig, *, rng: np.random.Generator, count: int) -> Float64:
    """Draws one factor per request; a larger count only adds factors behind those of a smaller one.

    Parameters
    ----------
    config : JitterConfig
    rng : numpy.random.Generator
    count : int

    Returns
    -------
    float64[count]
        Factors >= 0 from a distribution of mean 1.
    """
    return config.draw(count, rng)
