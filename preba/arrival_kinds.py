"""What a scenario may say about when requests come: one strict class per kind of arrival process.

Each knows its own theory (mean rate, variability), which the tests hold the drawn times against. The drawing
is in ``preba.arrivals``, the reading of recorded arrivals in ``preba.replay``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from preba.replay import Recording, ReplayFormat, TimeUnit, located, read_arrivals
from preba.strict import StrictModel
from preba.units import NS_PER_S, ns_from_ms

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


class PoissonArrivals(StrictModel):
    """Independent exponential gaps."""

    kind: Literal["poisson"]
    rate_rps: PositiveFloat

    def mean_rate_rps(self) -> float:
        """Requests per second in the long run."""
        return self.rate_rps

    def gap_cv(self) -> float:
        """Coefficient of variation of the gaps."""
        return 1.0

    def index_of_dispersion(self) -> float:
        """Variance over mean of the number of arrivals in a long window."""
        return 1.0


class GammaArrivals(StrictModel):
    """Independent gamma gaps: smoother than Poisson below ``cv`` 1, burstier above."""

    kind: Literal["gamma"]
    rate_rps: PositiveFloat
    cv: PositiveFloat
    """Coefficient of variation of the gaps; the gamma's shape is 1 / cv**2."""

    def mean_rate_rps(self) -> float:
        """Requests per second in the long run."""
        return self.rate_rps

    def gap_cv(self) -> float:
        """Coefficient of variation of the gaps."""
        return self.cv

    def index_of_dispersion(self) -> float:
        """Variance over mean of the number of arrivals in a long window: cv**2, as for all renewals."""
        return self.cv**2


class DeterministicArrivals(StrictModel):
    """Equal gaps; the first request comes one gap after the start."""

    kind: Literal["deterministic"]
    rate_rps: PositiveFloat

    def mean_rate_rps(self) -> float:
        """Requests per second."""
        return self.rate_rps

    def gap_cv(self) -> float:
        """Coefficient of variation of the gaps."""
        return 0.0

    def index_of_dispersion(self) -> float:
        """Variance over mean of the number of arrivals in a long window."""
        return 0.0


class MmppState(StrictModel):
    """One state of a Markov-modulated Poisson process."""

    rate_rps: NonNegativeFloat
    mean_dwell_s: PositiveFloat


class MmppArrivals(StrictModel):
    """A Poisson process whose rate jumps between states after exponential dwells (Markov-modulated).

    It starts in equilibrium, so there is no warm-up in the traffic itself.

    **Source** of the moments: Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP)
    cookbook", Performance Evaluation 18 (1993), 149-171.
    """

    kind: Literal["mmpp"]
    states: Annotated[tuple[MmppState, ...], Field(min_length=2)]
    next_state: Literal["cyclic", "uniform"] = "cyclic"
    """``cyclic``: the next in the list; ``uniform``: any other, all equally likely."""

    @model_validator(mode="after")
    def _some_traffic(self) -> MmppArrivals:
        if all(state.rate_rps == 0 for state in self.states):
            raise ValueError("states: at least one needs a rate_rps > 0")
        return self

    def mean_rate_rps(self) -> float:
        """Requests per second in the long run."""
        shares, rates, _ = self._chain()
        return float(shares @ rates)

    def gap_cv(self) -> float:
        """Coefficient of variation of the gaps, as a randomly chosen request sees them."""
        shares, rates, generator = self._chain()
        mean = float(shares @ rates)
        silent = np.diag(rates) - generator
        ones = np.ones(len(rates))
        after_arrival = shares * rates / mean
        second_moment = 2.0 * float(after_arrival @ np.linalg.solve(silent, np.linalg.solve(silent, ones)))
        return math.sqrt(max(second_moment * mean**2 - 1.0, 0.0))

    def index_of_dispersion(self) -> float:
        """Variance over mean of the number of arrivals in a long window."""
        shares, rates, generator = self._chain()
        ones = np.ones((len(rates), 1))
        deviation = np.linalg.inv(ones @ shares[None, :] - generator) - ones @ shares[None, :]
        mean = float(shares @ rates)
        return 1.0 + 2.0 * float((shares * rates) @ deviation @ rates) / mean

    def _chain(self) -> tuple[Float64, Float64, Float64]:
        """Share of time per state, rates (per s) and generator matrix (per s)."""
        dwells = np.array([state.mean_dwell_s for state in self.states])
        rates = np.array([state.rate_rps for state in self.states])
        count = len(dwells)
        if self.next_state == "cyclic":
            jump = np.roll(np.eye(count), 1, axis=1)
        else:
            jump = (np.ones((count, count)) - np.eye(count)) / (count - 1)
        generator = (jump - np.eye(count)) / dwells[:, None]
        return dwells / dwells.sum(), rates, generator


class OnOffArrivals(StrictModel):
    """Bursts of Poisson arrivals with silences between, both of exponential length."""

    kind: Literal["onoff"]
    rate_on_rps: PositiveFloat
    mean_on_s: PositiveFloat
    mean_off_s: PositiveFloat

    def as_mmpp(self) -> MmppArrivals:
        """The same process written as two states."""
        on = MmppState(rate_rps=self.rate_on_rps, mean_dwell_s=self.mean_on_s)
        return MmppArrivals(kind="mmpp", states=(on, MmppState(rate_rps=0.0, mean_dwell_s=self.mean_off_s)))

    def mean_rate_rps(self) -> float:
        """Requests per second in the long run."""
        return self.as_mmpp().mean_rate_rps()

    def gap_cv(self) -> float:
        """Coefficient of variation of the gaps."""
        return self.as_mmpp().gap_cv()

    def index_of_dispersion(self) -> float:
        """Variance over mean of the number of arrivals in a long window."""
        return self.as_mmpp().index_of_dispersion()


class DiurnalArrivals(StrictModel):
    """A Poisson process with a sine for a rate: mean * (1 + amplitude * sin(2 pi (t + phase) / period))."""

    kind: Literal["diurnal"]
    mean_rps: PositiveFloat
    amplitude: Annotated[float, Field(ge=0.0, le=1.0)]
    period_s: PositiveFloat
    phase_s: NonNegativeFloat = 0.0

    def mean_rate_rps(self) -> float:
        """Requests per second over whole periods."""
        return self.mean_rps

    def gap_cv(self) -> None:
        """Undefined: the gaps at night and at noon are not of one distribution."""

    def index_of_dispersion(self) -> None:
        """Undefined: the rate never settles."""


class ReplayArrivals(StrictModel):
    """Arrivals as recorded in a file; the first comes at 0 (in an interval file, after the first gap)."""

    kind: Literal["replay"]
    file: Annotated[str, Field(min_length=1)]
    format: ReplayFormat = "auto"
    column: str | None = None
    """CSV or Parquet column; may be left out where there is only one."""
    unit: TimeUnit | None = None
    """Of the numbers; read from the column's name (``_ns``, ``_us``, ``_ms``, ``_s``) when left out."""
    experiment: NonNegativeInt | None = None
    """Which experiment of a perf_analyzer profile export; may be left out where there is only one."""
    loop: bool | None = None
    """Start again at the end. Left out: interval files repeat, as in perf_analyzer; all others end."""
    rate_scale: PositiveFloat = 1.0
    """2 plays the recording twice as fast."""
    sort: bool = False
    """Accept a file that is not in order of time, and sort it."""

    def located(self, folder: Path) -> ReplayArrivals:
        """The same with the file's path made absolute, relative paths counted from ``folder``."""
        return self.model_copy(update={"file": str(located(self.file, folder))})

    def read(self) -> Recording:
        """The recorded times; raises as ``preba.replay.read_arrivals`` does."""
        return read_arrivals(
            Path(self.file),
            form=self.format,
            column=self.column,
            unit=self.unit,
            experiment=self.experiment,
            sort=self.sort,
        )

    def mean_rate_rps(self) -> float:
        """Requests per second of the recording as played (reads the file)."""
        recording = self.read()
        return len(recording.times_ns) / recording.period_ns * NS_PER_S * self.rate_scale

    def gap_cv(self) -> float | None:
        """Coefficient of variation of the recorded gaps (reads the file)."""
        gaps = np.diff(self.read().times_ns).astype(np.float64)
        return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.mean() > 0 else None

    def index_of_dispersion(self) -> None:
        """Not computed for a recording."""


class ClosedLoopArrivals(StrictModel):
    """So many clients, each sending its next request when the last one is answered and thought about.

    A refused client waits ``refusal_backoff_ms`` before its next request: without that, a refusal that costs
    no time would be answered by an endless burst.
    """

    kind: Literal["closed_loop"]
    outstanding: PositiveInt
    think_ms: NonNegativeFloat = 0.0
    think_distribution: Literal["constant", "exponential"] = "constant"
    refusal_backoff_ms: PositiveFloat = 1.0

    def mean_rate_rps(self) -> None:
        """Undefined: the answer times decide."""

    def gap_cv(self) -> None:
        """Undefined: the answer times decide."""

    def index_of_dispersion(self) -> None:
        """Undefined: the answer times decide."""

    def draw_think_ns(self, count: int, rng: np.random.Generator) -> Int64:
        """Think time before each request's successor, int64[count] ns."""
        mean_ns = ns_from_ms(self.think_ms)
        if self.think_distribution == "constant" or mean_ns == 0:
            return np.full(count, mean_ns, dtype=np.int64)
        return np.rint(rng.standard_exponential(count) * mean_ns).astype(np.int64)


ArrivalsConfig = Annotated[
    PoissonArrivals
    | GammaArrivals
    | DeterministicArrivals
    | MmppArrivals
    | OnOffArrivals
    | DiurnalArrivals
    | ReplayArrivals
    | ClosedLoopArrivals,
    Field(discriminator="kind"),
]
