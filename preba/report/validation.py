"""A simulated run beside a measured one: signed errors, intervals, verdicts. Pure functions of records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.records import Records
from preba.report.stages import STAGE_LABELS, STAGES, times_of_stage_ns
from preba.units import NS_PER_MS
from preba.validation import Validation

__all__ = ["ErrorRow", "PerRequest", "StageRow", "Validated", "per_request", "validate_runs"]

Json = dict[str, Any]

LATENCIES = ("mean", "p50", "p90", "p95", "p99")
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
"""Student's t for two-sided 95 %, by degrees of freedom."""


@dataclass(frozen=True)
class ErrorRow:
    """One figure, measured and simulated.

    Attributes
    ----------
    metric, unit : str
    measured, simulated : float or None
    measured_ci95, simulated_ci95 : tuple of float or None
        95 % intervals.
    error_percent : float or None
        (simulated - measured) / measured.
    fresh, fresh_ci95 : float or None, tuple of float or None
        Mean over fresh draws of the same process, and its interval.
    fresh_error_percent : float or None
    limit_percent : float or None
        The scenario's threshold.
    verdict : str
        ``met``, ``missed``, ``unsure`` (an interval is wider than the threshold, so that neither is proven), or empty
        where there is no threshold.
    """

    metric: str
    unit: str
    measured: float | None
    measured_ci95: tuple[float, float] | None
    simulated: float | None
    simulated_ci95: tuple[float, float] | None
    error_percent: float | None
    fresh: float | None
    fresh_ci95: tuple[float, float] | None
    fresh_error_percent: float | None
    limit_percent: float | None
    verdict: str


@dataclass(frozen=True)
class StageRow:
    """Mean milliseconds of one stage, and which part of the measured latency the difference is, in percent."""

    stage: str
    label: str
    measured_ms: float
    simulated_ms: float
    difference_ms: float
    of_latency_percent: float
    modelled: bool


@dataclass(frozen=True)
class PerRequest:
    """The same requests in both runs.

    Attributes
    ----------
    requests : int
        Served in both.
    correlation : float or None
        Pearson's, of their latencies.
    mape_percent : float
        Mean of the absolute errors, each in percent of the measured latency.
    bias_percent : float
        Mean of the signed errors, likewise.
    same_batch_percent : float
        Requests that were in a batch of the same size in both runs.
    """

    requests: int
    correlation: float | None
    mape_percent: float
    bias_percent: float
    same_batch_percent: float


@dataclass(frozen=True)
class Validated:
    """Everything a validation says."""

    rows: tuple[ErrorRow, ...]
    stages: tuple[StageRow, ...]
    unexplained_ms: float
    unexplained_percent: float
    batch_distance_percent: float | None
    per_request: PerRequest | None
    warnings: tuple[str, ...]

    @property
    def missed(self) -> tuple[ErrorRow, ...]:
        """Figures beyond their threshold."""
        return tuple(row for row in self.rows if row.verdict == "missed")

    def as_json(self) -> Json:
        """Plain JSON values."""
        return {**asdict(self), "met": not self.missed}


def validate_runs(
    measured: Json,
    simulated: Json,
    *,
    limits: Validation,
    fresh: Sequence[Json] = (),
    records: tuple[Records, Records] | None = None,
) -> Validated:
    """Puts the summaries of two runs beside each other.

    Parameters
    ----------
    measured, simulated : dict
        As ``summarise`` gives them.
    limits : Validation
    fresh : sequence of dict
        Summaries of simulations of fresh draws.
    records : tuple of Records, optional
        Of the measured and the simulated run of one trace, without the warm-up, for the comparison by request.
    """
    rows = [
        _row(name, unit, measured, simulated, fresh, path, limit)
        for name, unit, path, limit in (
            ("throughput", "req/s", ("throughput_rps",), limits.throughput_percent),
            *((f"latency {key}", "ms", ("latency_ms", key), getattr(limits, f"{key}_percent")) for key in LATENCIES),
            ("mean batch", "requests", ("batch_size", "mean"), limits.batch_percent),
            ("slices busy", "share", ("utilization", "slices_mean"), limits.utilization_percent),
        )
    ]
    stages = _stages(measured, simulated)
    total = measured["stages_ms"]["total"]["mean"]
    unexplained_ms = simulated["stages_ms"]["total"]["mean"] - total if stages else 0.0
    return Validated(
        rows=tuple(rows),
        stages=stages,
        unexplained_ms=unexplained_ms,
        unexplained_percent=100.0 * unexplained_ms / total if total else 0.0,
        batch_distance_percent=_distance(measured["batch_size"]["histogram"], simulated["batch_size"]["histogram"]),
        per_request=None if records is None else per_request(*records),
        warnings=tuple(_warnings(measured, simulated, rows)),
    )


def _at(summary: Json, path: tuple[str, ...]) -> tuple[float | None, tuple[float, float] | None]:
    found: Any = summary
    for key in path:
        found = found[key]
    if isinstance(found, Mapping):
        interval = found["ci95"]
        return found["value"], None if interval is None else (interval[0], interval[1])
    return found, None


def _error(measured: float | None, simulated: float | None) -> float | None:
    if measured is None or simulated is None or measured == 0:
        return None
    return 100.0 * (simulated - measured) / measured


def _row(
    name: str,
    unit: str,
    measured: Json,
    simulated: Json,
    fresh: Sequence[Json],
    path: tuple[str, ...],
    limit: float,
) -> ErrorRow:
    here, here_ci = _at(measured, path)
    there, there_ci = _at(simulated, path)
    draws = [value for one in fresh if (value := _at(one, path)[0]) is not None]
    mean, interval = _mean_of(draws)
    error = _error(here, there)
    return ErrorRow(
        metric=name, unit=unit, measured=here, measured_ci95=here_ci, simulated=there, simulated_ci95=there_ci,
        error_percent=error, fresh=mean, fresh_ci95=interval, fresh_error_percent=_error(here, mean),
        limit_percent=limit, verdict="missed" if here and there is None else _verdict(error, limit, here, here_ci),
    )  # fmt: skip


def _mean_of(values: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    if not values:
        return None, None
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    half = T_975.get(len(values) - 1, 2.0) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def _verdict(error: float | None, limit: float, measured: float | None, interval: tuple[float, float] | None) -> str:
    """Judge one error. Both runs had the same requests, so their intervals do not add to the error's own."""
    if error is None:
        return ""
    if abs(error) <= limit:
        return "met"
    if interval is not None and measured:
        half_percent = 50.0 * (interval[1] - interval[0]) / measured
        if half_percent > limit and abs(error) <= half_percent:
            return "unsure"
    return "missed"


def _stages(measured: Json, simulated: Json) -> tuple[StageRow, ...]:
    total = measured["stages_ms"]["total"]["mean"]
    if total is None or simulated["stages_ms"]["total"]["mean"] is None:
        return ()
    rows = []
    for stage in STAGES:
        here, there = measured["stages_ms"][stage]["mean"], simulated["stages_ms"][stage]["mean"]
        if here == 0 and there == 0:
            continue
        rows.append(
            StageRow(
                stage=stage, label=STAGE_LABELS[stage], measured_ms=here, simulated_ms=there,
                difference_ms=there - here, of_latency_percent=100.0 * (there - here) / total, modelled=there != 0,
            )
        )  # fmt: skip
    return tuple(rows)


def _distance(measured: Mapping[str, int], simulated: Mapping[str, int]) -> float | None:
    """Total variation distance of two histograms of batch sizes, in percent: 0 equal, 100 nothing in common."""
    here, there = sum(measured.values()), sum(simulated.values())
    if not here or not there:
        return None
    sizes = measured.keys() | simulated.keys()
    return 50.0 * sum(abs(measured.get(size, 0) / here - simulated.get(size, 0) / there) for size in sizes)


def per_request(measured: Records, simulated: Records) -> PerRequest | None:
    """Compare two runs of one trace request by request; ``None`` when they share none that both served."""
    rows = _paired(measured, simulated)
    if rows is None:
        return None
    here, there = rows
    ours, theirs = measured.latency_ns[here].astype(float), simulated.latency_ns[there].astype(float)
    errors = (theirs - ours) / np.maximum(ours, 1.0)
    varies = len(ours) > 1 and ours.std() > 0 and theirs.std() > 0
    return PerRequest(
        requests=len(ours),
        correlation=float(np.corrcoef(ours, theirs)[0, 1]) if varies else None,
        mape_percent=100.0 * float(np.abs(errors).mean()),
        bias_percent=100.0 * float(errors.mean()),
        same_batch_percent=100.0 * float((measured.batch_size[here] == simulated.batch_size[there]).mean()),
    )


def _paired(measured: Records, simulated: Records) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    _, here, there = np.intersect1d(measured.request_id, simulated.request_id, return_indices=True)
    both = measured.served[here] & simulated.served[there]
    if not both.any():
        return None
    return here[both], there[both]


def stage_differences_ms(measured: Records, simulated: Records) -> dict[str, NDArray[np.float64]]:
    """Per stage, simulated minus measured of every request both served, float64[n] in milliseconds."""
    rows = _paired(measured, simulated)
    if rows is None:
        return {}
    ours, theirs = measured.select(rows[0]), simulated.select(rows[1])
    return {stage: (times_of_stage_ns(theirs, stage) - times_of_stage_ns(ours, stage)) / NS_PER_MS for stage in STAGES}


def _warnings(measured: Json, simulated: Json, rows: Sequence[ErrorRow]) -> list[str]:
    found = [f"measured run: {text}" for text in measured["warnings"]]
    found += [f"simulated run: {text}" for text in simulated["warnings"] if text not in measured["warnings"]]
    unsure = [row.metric for row in rows if row.verdict == "unsure"]
    if unsure:
        found.append(
            f"the run is too short to judge {', '.join(unsure)}: the measured interval is wider than the limit"
        )
    return found
