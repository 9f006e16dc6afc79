"""What a streamed run keeps, and the summary made of it: the same keys as any other summary's, from counts alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.records import OUTCOMES, SliceFacts, StationFacts
from preba.report.context import ReportContext
from preba.report.measures import PERCENTILES, finite
from preba.report.stages import STAGES
from preba.report.usage import distinct_names
from preba.statistics import Estimate
from preba.statistics.histogram import RELATIVE_ERROR, histogram_mean, histogram_quantiles
from preba.units import NS_PER_MS, NS_PER_S, ms_from_ns, s_from_ns

__all__ = ["StreamedRun", "summarise_stream"]

Int64 = NDArray[np.int64]
Json = dict[str, Any]

# Indices into a model's row of ``StreamedRun.tally``.
T_OUTCOME = 0  # five counts, over the whole run
T_KEPT = 5  # requests behind the warm-up
T_WITHIN = 6  # of those, served within the objective
T_DONE_WITHIN = 7  # answered in the window, within the objective
T_PREPROCESS_WAIT_NS = 8  # sums over the served requests behind the warm-up
T_PREPROCESS_NS = 9
T_HOP_NS = 10
T_BATCHING_NS = 11
T_SLICE_QUEUE_NS = 12
T_SLICE_PREPROCESS_NS = 13
T_EXECUTION_NS = 14
T_RESPONSE_NS = 15
T_DONE = 16  # answered in the window
TALLY_COUNT = 17
SECTIONS = 20

_STAGE_SUMS = dict(
    zip(
        STAGES,
        (
            None,
            T_PREPROCESS_WAIT_NS,
            T_PREPROCESS_NS,
            T_HOP_NS,
            T_BATCHING_NS,
            T_SLICE_QUEUE_NS,
            T_SLICE_PREPROCESS_NS,
            T_EXECUTION_NS,
            T_RESPONSE_NS,
        ),
        strict=True,
    )
)


@dataclass(frozen=True)
class StreamedRun:
    """A run whose requests were counted and forgotten; arrays are int64.

    Attributes
    ----------
    engine : str
    models : tuple of str
    stations : tuple of StationFacts
    slices : tuple of SliceFacts
    requests : int
    tally : int64[models, TALLY_COUNT]
        Counts and sums, ``T_*``.
    section_count, section_latency_ns : int64[models, SECTIONS]
        Served requests behind the warm-up, by section of the run, and the sum of their latencies.
    histogram : int64[models, SECTIONS, BUCKETS]
        Of those latencies.
    size_count : int64[models, largest batch + 1]
        How many of those requests travelled in a batch of each size.
    slice_busy_ns : int64[slices]
    station_busy_ns : int64[stations]
        Summed over the units.
    window_ns : tuple of int
        From the end of the warm-up to the last arrival.
    warm_requests : int
        Requests before the window; 0 where the warm-up is a time.
    end_ns : int
    outages : tuple of (slice, from_ns, to_ns)
    """

    engine: str
    models: tuple[str, ...]
    stations: tuple[StationFacts, ...]
    slices: tuple[SliceFacts, ...]
    requests: int
    tally: Int64
    section_count: Int64
    section_latency_ns: Int64
    histogram: Int64
    size_count: Int64
    slice_busy_ns: Int64
    station_busy_ns: Int64
    window_ns: tuple[int, int]
    warm_requests: int
    end_ns: int
    outages: tuple[tuple[int, int, int], ...]


def summarise_stream(run: StreamedRun, context: ReportContext) -> Json:
    """Computes what a report can say about a streamed run.

    Parameters
    ----------
    run : StreamedRun
    context : ReportContext

    Returns
    -------
    dict
        The keys of ``preba.report.summary.summarise``. What needs every request is None: the p99 of stages, the mean
        of the slowest requests, queue depths, the throughput's interval. Percentiles are within
        ``percentile_error`` of the exact ones; means and counts are exact.
    """
    from preba.report.summary import money_figures, provenance_figures  # imports what only whole summaries need

    everything = np.arange(len(run.models))
    throughput = _rate(run, everything, T_DONE)
    stations = tuple(_station_shares(run))
    slices = tuple(_slice_shares(run))
    served = int(run.section_count.sum())
    summary: Json = {
        "engine": run.engine,
        "scenario": context.scenario_name,
        "description": context.description,
        "seed": context.seed,
        **_counts(run, everything),
        "duration_s": s_from_ns(run.end_ns),
        "warmup": {
            "requests": run.requests - int(run.tally[:, T_KEPT].sum()),
            "until_s": s_from_ns(run.window_ns[0]),
            "rule": _warmup_text(run),
        },
        "window_s": [s_from_ns(edge) for edge in run.window_ns],
        "steady": all(stage.offered_rps < stage.capacity_rps for stage in context.capacities),
        "measured_requests": int(run.tally[:, T_KEPT].sum()),
        "percentile_error": RELATIVE_ERROR,
        "offered_rps": _rate(run, everything, T_KEPT) if context.offered_rps is None else context.offered_rps,
        "throughput_rps": {"value": throughput, "ci95": None, "enough": True, "samples": served},
        "goodput": _goodput(run, context),
        "latency_ms": _latency(run, everything),
        "stages_ms": _stages(run, everything),
        "batch_size": _batches(run, everything),
        "utilization": _utilization(run, stations, slices),
        "queue_depth": {},
        "capacity": [
            {
                "stage": stage.stage,
                "offered_rps": finite(stage.offered_rps),
                "capacity_rps": finite(stage.capacity_rps),
                "load": finite(stage.offered_rps / stage.capacity_rps if stage.capacity_rps > 0 else float("inf")),
            }
            for stage in context.capacities
        ],
    }
    money, sources = money_figures(
        run.stations, run.slices, context, station_shares=stations, slice_shares=slices, throughput_rps=throughput
    )
    summary |= money
    summary["models"] = _models(run, context) if len(run.models) > 1 else {}
    summary["outages"] = [
        {"slice": run.slices[index].name, "from_s": s_from_ns(begin), "to_s": s_from_ns(end)}
        for index, begin, end in run.outages
    ]
    summary |= provenance_figures(context.provenance + sources)
    summary["warnings"] = list(context.warnings)
    return summary


def _warmup_text(run: StreamedRun) -> str:
    cut = f"the first {run.warm_requests:,} requests" if run.warm_requests else f"{s_from_ns(run.window_ns[0]):g} s"
    return f"{cut} of {run.requests:,} requests (streamed: decided before the run, not checked)"


def _counts(run: StreamedRun, models: Int64) -> Json:
    counts = run.tally[models, T_OUTCOME : T_OUTCOME + len(OUTCOMES)].sum(axis=0)
    reasons = {name: int(counts[code]) for code, name in enumerate(OUTCOMES[1:4], start=1)}
    found: Json = {"served": int(counts[0]), "refused": {"total": sum(reasons.values()), "by_reason": reasons}}
    if len(models) == len(run.models):
        return {"requests": run.requests, **found, "pending": run.requests - int(counts[:4].sum())}
    return {"requests": int(counts.sum()), **found, "pending": 0}


def _rate(run: StreamedRun, models: Int64, what: int) -> float:
    return int(run.tally[models, what].sum()) * NS_PER_S / (run.window_ns[1] - run.window_ns[0])


def _estimate(estimate: Estimate) -> Json:
    scaled = estimate.scaled(1 / NS_PER_MS)
    interval = scaled.ci95
    found: Json = {
        "value": finite(scaled.value),
        "ci95": None if interval is None else [max(0.0, interval[0]), max(0.0, interval[1])],
        "enough": bool(estimate.enough),
        "samples": int(estimate.samples),
    }
    if not estimate.enough:
        found["needed_requests"] = int(estimate.samples_needed)
    return found


def _latency(run: StreamedRun, models: Int64) -> Json:
    mean = histogram_mean(run.section_latency_ns[models].sum(axis=0), run.section_count[models].sum(axis=0))
    levels = histogram_quantiles(run.histogram[models].sum(axis=0), tuple(PERCENTILES.values()))
    found = {"mean": _estimate(mean)}
    for name, estimate in zip(PERCENTILES, levels, strict=True):
        found[name] = _estimate(estimate)
    return found


def _stages(run: StreamedRun, models: Int64) -> Json:
    served = int(run.section_count[models].sum())
    sums = run.tally[models].sum(axis=0)
    found: Json = {}
    for name, place in _STAGE_SUMS.items():
        total = 0 if place is None else int(sums[place])
        found[name] = {"mean": ms_from_ns(total / served) if served else None, "p99": None, "mean_of_slowest": None}
    total = int(run.section_latency_ns[models].sum())
    p99 = histogram_quantiles(run.histogram[models].sum(axis=0), (0.99,))[0].value
    found["total"] = {
        "mean": ms_from_ns(total / served) if served else None,
        "p99": None if p99 is None else ms_from_ns(p99),
        "mean_of_slowest": None,
    }
    return found


def _batches(run: StreamedRun, models: Int64) -> Json:
    seen = run.size_count[models].sum(axis=0)
    sizes = np.flatnonzero(seen)
    requests = int(seen.sum())
    if requests == 0:
        return {"mean": None, "mean_seen_by_request": None, "batches": 0, "histogram": {}}
    # A batch that the warm-up's end cuts counts with the share of it that is kept.
    batches = {int(size): float(seen[size]) / int(size) for size in sizes}
    return {
        "mean": requests / sum(batches.values()),
        "mean_seen_by_request": float((seen * np.arange(len(seen))).sum()) / requests,
        "batches": round(sum(batches.values())),
        "histogram": {str(size): round(count) for size, count in batches.items()},
    }


def _goodput(run: StreamedRun, context: ReportContext) -> Json | None:
    parts: Json = {}
    for index, name in enumerate(run.models):
        slo_ms = context.slo_p99_ms[index] if context.slo_p99_ms else None
        if slo_ms is not None:
            parts[name] = _model_goodput(run, np.array([index]), slo_ms)
    if not parts:
        return None
    if len(run.models) == 1:
        return dict(next(iter(parts.values())))
    verdicts = [part["p99_met"] for part in parts.values()]
    return {
        "rps": sum(part["rps"] for part in parts.values()),
        "p99_met": False if False in verdicts else None if None in verdicts else True,
        "certain": all(part["certain"] for part in parts.values()),
        "models": parts,
    }


def _model_goodput(run: StreamedRun, model: Int64, slo_ms: float) -> Json:
    p99 = histogram_quantiles(run.histogram[model].sum(axis=0), (0.99,))[0].scaled(1 / NS_PER_MS)
    kept = int(run.tally[model, T_KEPT].sum())
    sure = p99.value is not None and p99.half_width is not None and abs(p99.value - slo_ms) > p99.half_width
    return {
        "slo_p99_ms": float(slo_ms),
        "rps": _rate(run, model, T_DONE_WITHIN),
        "share_within_slo": int(run.tally[model, T_WITHIN].sum()) / kept if kept else None,
        "p99_met": None if p99.value is None else bool(p99.value <= slo_ms),
        "certain": bool(sure and p99.enough),
    }


def _models(run: StreamedRun, context: ReportContext) -> Json:
    found: Json = {}
    for index, name in enumerate(run.models):
        model = np.array([index])
        slo_ms = context.slo_p99_ms[index] if context.slo_p99_ms else None
        rate, served = _rate(run, model, T_DONE), int(run.section_count[index].sum())
        found[name] = {
            **_counts(run, model),
            "slices": [unit.name for unit in run.slices if unit.model_index == index],
            "throughput_rps": {
                "value": rate,
                "ci95": None,
                "enough": True,
                "samples": served,
            },
            "goodput": None if slo_ms is None else _model_goodput(run, model, slo_ms),
            "latency_ms": _latency(run, model),
            "stages_ms": _stages(run, model),
            "batch_size": _batches(run, model),
        }
    return found


def _station_shares(run: StreamedRun) -> list[float]:
    length_ns = run.window_ns[1] - run.window_ns[0]
    return [
        min(1.0, int(busy) / (station.units * length_ns))
        for busy, station in zip(run.station_busy_ns, run.stations, strict=True)
    ]


def _slice_shares(run: StreamedRun) -> list[float]:
    length_ns = run.window_ns[1] - run.window_ns[0]
    return [min(1.0, int(busy) / length_ns) for busy in run.slice_busy_ns]


def _utilization(run: StreamedRun, stations: tuple[float, ...], slices: tuple[float, ...]) -> Json:
    names = distinct_names([station.name for station in run.stations])
    shares = [_of_available(run, index, share) for index, share in enumerate(slices)]
    own = [s for s, unit in zip(shares, run.slices, strict=True) if s is not None and unit.role == "model"]
    return {
        "preprocessing": {
            name: share * station.usable_fraction
            for name, share, station in zip(names, stations, run.stations, strict=True)
        },
        "preprocessing_taken": dict(zip(names, stations, strict=True)),
        "slices": dict(zip(distinct_names([unit.name for unit in run.slices]), shares, strict=True)),
        "slices_mean": sum(own) / len(own) if own else None,
    }


def _of_available(run: StreamedRun, slice_index: int, share: float) -> float | None:
    """A slice's busy share of the time in which it was in service."""
    begin, end = run.window_ns
    out_ns = sum(max(0, min(to_ns, end) - max(from_ns, begin)) for i, from_ns, to_ns in run.outages if i == slice_index)
    available = 1.0 - out_ns / (end - begin)
    return min(1.0, share / available) if available > 0 else None
