"""A simulated run beside a measured one: signed errors, intervals, verdicts. Pure functions of records."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.records import Records
from preba.report.paired import error_half_widths_percent
from preba.report.stages import STAGE_LABELS, STAGES, times_of_stage_ns
from preba.report.usage import Intervals, first_of_batch, integral_ns
from preba.statistics import Estimate, mean_estimate
from preba.units import NS_PER_MS
from preba.validation import Validation

__all__ = [
    "ErrorRow", "PerRequest", "StageRow", "StageVerdict", "Validated", "mean_of_runs", "per_request", "validate_runs",
]  # fmt: skip

Json = dict[str, Any]

LATENCIES = ("mean", "p50", "p90", "p95", "p99")
BUSY_SPANS = 200
"""Spans of a run in which busy time is counted for its interval."""
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
        (simulated - measured) / measured; of the distance between two histograms, itself.
    fresh, fresh_ci95 : float or None, tuple of float or None
        Mean over fresh draws of the same process, and its interval.
    fresh_error_percent : float or None
    limit_percent : float or None
        The scenario's threshold.
    verdict : str
        ``met``, ``missed``, ``unsure`` (beyond the threshold, which the error's interval reaches; without that one,
        where the measured interval holds the error), or empty where there is no threshold.
    error_half_percent : float or None
        Half the 95 % interval of the error: both runs had the same requests, so it is narrower than theirs.
    hindsight_error_percent : float or None
        The error of a simulation with what was measured in the compared run itself. It judges nothing.
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
    error_half_percent: float | None = None
    hindsight_error_percent: float | None = None


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
class StageVerdict:
    """Stages that both runs can tell from the others, judged together.

    Attributes
    ----------
    label : str
    measured_ms, simulated_ms : float
        Means.
    measured_ci95, simulated_ci95 : tuple of float or None
        95 % intervals of the means; known where there are records.
    of_latency_percent : float
        Simulated minus measured, in percent of the measured mean latency.
    limit_percent : float
    verdict : str
        As of an ``ErrorRow``.
    """

    label: str
    measured_ms: float
    simulated_ms: float
    measured_ci95: tuple[float, float] | None
    simulated_ci95: tuple[float, float] | None
    of_latency_percent: float
    limit_percent: float
    verdict: str


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
    judged_stages: tuple[StageVerdict, ...]
    unexplained_ms: float
    unexplained_percent: float
    batch_distance_percent: float | None
    per_request: PerRequest | None
    warnings: tuple[str, ...]

    @property
    def judged(self) -> tuple[ErrorRow | StageVerdict, ...]:
        """All figures and stages with a verdict."""
        return (*self.rows, *self.judged_stages)

    @property
    def missed(self) -> tuple[ErrorRow | StageVerdict, ...]:
        """Those beyond their threshold."""
        return tuple(row for row in self.judged if row.verdict == "missed")

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
    hindsight: Json | None = None,
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
    hindsight : dict, optional
        Summary of a simulation with what was measured in the measured run itself.
    """
    rows = [
        _row(name, unit, (measured, simulated, hindsight), fresh, path, limit)
        for name, unit, path, limit in (
            ("throughput", "req/s", ("throughput_rps",), limits.throughput_percent),
            *((f"latency {key}", "ms", ("latency_ms", key), getattr(limits, f"{key}_percent")) for key in LATENCIES),
            ("mean batch", "requests", ("batch_size", "mean"), limits.batch_percent),
            ("slices busy", "share", ("utilization", "slices_mean"), limits.utilization_percent),
        )
    ]
    if records is not None:
        halves = error_half_widths_percent(*records)
        rows = [_judged(_with_intervals(row, records), halves.get(row.metric)) for row in rows]
    distance = _distance(measured["batch_size"]["histogram"], simulated["batch_size"]["histogram"])
    if distance is not None:
        rows.append(_distribution(distance, simulated, fresh, limits.distribution_percent))
    stages = _stages(measured, simulated)
    total = measured["stages_ms"]["total"]["mean"]
    unexplained_ms = simulated["stages_ms"]["total"]["mean"] - total if stages else 0.0
    return Validated(
        rows=tuple(rows),
        stages=stages,
        judged_stages=()
        if records is None or not stages
        else _judged_stages(measured, simulated, records, limits.stage_percent),
        unexplained_ms=unexplained_ms,
        unexplained_percent=100.0 * unexplained_ms / total if total else 0.0,
        batch_distance_percent=distance,
        per_request=None if records is None else per_request(*records),
        warnings=tuple(_warnings(measured, simulated, rows)),
    )


def mean_of_runs(summaries: Sequence[Json]) -> Json:
    """One summary for several simulations of one trace that differ in the server's own randomness.

    Parameters
    ----------
    summaries : sequence of dict
        As ``summarise`` gives them; of the first everything that is not judged, and the width of its intervals.

    Returns
    -------
    dict
        What ``validate_runs`` judges is the mean over all; histograms of batch sizes are added up.
    """
    found: Json = copy.deepcopy(dict(summaries[0]))
    paths = [("throughput_rps",), ("batch_size", "mean"), ("utilization", "slices_mean")]
    paths += [("latency_ms", key) for key in LATENCIES]
    paths += [("stages_ms", stage, "mean") for stage in (*STAGES, "total")]
    for path in paths:
        values = [value for one in summaries if (value := _at(one, path)[0]) is not None]
        if len(values) < len(summaries):
            continue
        *above, last = path
        place = found
        for key in above:
            place = place[key]
        mean = float(np.mean(values))
        if isinstance(place[last], dict):
            moved, interval = mean - values[0], place[last]["ci95"]
            shifted = None if interval is None else [interval[0] + moved, interval[1] + moved]
            place[last] = {**place[last], "value": mean, "ci95": shifted}
        else:
            place[last] = mean
    sizes: Counter[str] = Counter()
    for one in summaries:
        sizes.update(one["batch_size"]["histogram"])
    found["batch_size"]["histogram"] = dict(sizes)
    return found


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
    runs: tuple[Json, Json, Json | None],
    fresh: Sequence[Json],
    path: tuple[str, ...],
    limit: float,
) -> ErrorRow:
    measured, simulated, hindsight = runs
    here, here_ci = _at(measured, path)
    there, there_ci = _at(simulated, path)
    draws = [value for one in fresh if (value := _at(one, path)[0]) is not None]
    mean, interval = _mean_of(draws)
    error = _error(here, there)
    return ErrorRow(
        metric=name, unit=unit, measured=here, measured_ci95=here_ci, simulated=there, simulated_ci95=there_ci,
        error_percent=error, fresh=mean, fresh_ci95=interval, fresh_error_percent=_error(here, mean),
        limit_percent=limit, verdict="missed" if here and there is None else _verdict(error, limit, here, here_ci),
        hindsight_error_percent=None if hindsight is None else _error(here, _at(hindsight, path)[0]),
    )  # fmt: skip


def _with_intervals(row: ErrorRow, records: tuple[Records, Records]) -> ErrorRow:
    """Intervals of what the summaries have none for, from the batches one after another."""
    if row.metric not in ("mean batch", "slices busy") or row.measured is None or row.simulated is None:
        return row
    estimate = _batch_interval if row.metric == "mean batch" else _busy_interval
    here, there = estimate(records[0], row.measured), estimate(records[1], row.simulated)
    verdict = _verdict(row.error_percent, row.limit_percent or math.inf, row.measured, here)
    return replace(row, measured_ci95=here, simulated_ci95=there, verdict=verdict)


def _judged(row: ErrorRow, half: float | None) -> ErrorRow:
    """The row with its error's own interval, judged by it."""
    if half is None or row.error_percent is None or row.limit_percent is None:
        return row
    beyond = abs(row.error_percent) - row.limit_percent
    verdict = "met" if beyond <= 0 else "unsure" if beyond <= half else "missed"
    return replace(row, error_half_percent=half, verdict=verdict)


def _batch_interval(records: Records, value: float) -> tuple[float, float] | None:
    rows = first_of_batch(records)
    rows = rows[np.argsort(records.execution_start_ns[rows], kind="stable")]
    return _around(value, mean_estimate(records.batch_size[rows]))


def _busy_interval(records: Records, value: float) -> tuple[float, float] | None:
    """Busy time in equal spans of the run, one after another; ``value`` is their mean."""
    rows = first_of_batch(records)
    start_ns, end_ns = records.execution_start_ns[rows], records.execution_end_ns[rows]
    edges = np.linspace(start_ns.min(), end_ns.max(), BUSY_SPANS + 1).astype(np.int64)
    busy = integral_ns(Intervals(start_ns, end_ns), edges)
    estimate = mean_estimate(busy)
    return None if busy.mean() == 0 else _around(value, estimate.scaled(value / float(busy.mean())))


def _around(value: float, estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.half_width is None else (value - estimate.half_width, value + estimate.half_width)


def _distribution(distance: float, simulated: Json, fresh: Sequence[Json], limit: float) -> ErrorRow:
    """How far apart the batch sizes are; unsure where fresh draws are further apart than the limit by chance alone."""
    chance = [
        found
        for one in fresh
        if (found := _distance(one["batch_size"]["histogram"], simulated["batch_size"]["histogram"])) is not None
    ]
    mean, interval = _mean_of(chance)
    by_chance = mean is not None and limit < mean and distance <= mean
    verdict = "met" if distance <= limit else "unsure" if by_chance else "missed"
    return ErrorRow(
        metric="batch sizes apart", unit="% of batches", measured=None, measured_ci95=None, simulated=distance,
        simulated_ci95=None, error_percent=distance, fresh=mean, fresh_ci95=interval, fresh_error_percent=None,
        limit_percent=limit, verdict=verdict,
    )  # fmt: skip


def _judged_stages(
    measured: Json, simulated: Json, records: tuple[Records, Records], limit: float
) -> tuple[StageVerdict, ...]:
    """Stages as both runs know them: those before execution are one where one of the two cannot tell them apart.

    Files of others have no records; what they name no stage of is in their response.
    """
    known = [{stage for stage in STAGES if run["stages_ms"][stage]["mean"]} for run in (measured, simulated)]
    to_batcher, waiting = ("generator_lag", "hop"), ("batching", "slice_queue")
    groups: list[tuple[str, tuple[str, ...]]] = [
        ("preprocessing and its line", ("preprocess_wait", "preprocess_service"))
    ]
    if all((stage in known[0]) == (stage in known[1]) for stage in ("hop", *waiting)):
        groups += [
            ("the way to the batcher", to_batcher),
            ("batching", waiting[:1]),
            ("waiting for a slice", waiting[1:]),
        ]
    else:
        groups.append(("the way to the slice, batching", (*to_batcher, *waiting)))
    groups += [("on the slice", ("slice_preprocess", "execution")), ("response", ("response",))]
    total = measured["stages_ms"]["total"]["mean"]
    found = []
    for label, stages in groups:
        here, there = (sum(run["stages_ms"][stage]["mean"] for stage in stages) for run in (measured, simulated))
        if here == 0 and there == 0:
            continue
        times = [sum(times_of_stage_ns(run, stage) for stage in stages) / NS_PER_MS for run in records]
        intervals = [_around(value, mean_estimate(each)) for value, each in zip((here, there), times, strict=True)]
        error = 100.0 * (there - here) / total if total else 0.0
        verdict = _verdict(error, limit, total, intervals[0])
        found.append(StageVerdict(label, here, there, intervals[0], intervals[1], error, limit, verdict))
    return tuple(found)


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
