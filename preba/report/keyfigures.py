"""The figures that make one line of a table of many runs: a lean way to the same numbers as a summary's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.records import OUTCOMES, Records, RunResult
from preba.report.context import ReportContext
from preba.report.measures import PERCENTILES, finite
from preba.report.summary import money_figures
from preba.report.usage import station_busy
from preba.report.window import SteadyWindow, steady_window
from preba.statistics import Estimate, mean_estimate, quantile_estimates, throughput_estimate
from preba.units import NS_PER_MS, NS_PER_S

__all__ = ["FIGURES", "INTERVALS", "key_figures"]

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

INTERVALS = ("throughput_rps", "latency_mean_ms", *(f"latency_{name}_ms" for name in PERCENTILES))
"""Figures that come with ``_low`` and ``_high``, their 95 % interval."""

FIGURES = (
    *INTERVALS,
    "goodput_rps",
    "within_slo_share",
    "batch_mean",
    "slices_busy",
    "preprocessing_busy",
    "power_w",
    "energy_per_request_j",
    "requests_per_usd",
    "cost_usd",
    "requests",
    "served",
    "refused",
    "pending",
)
"""Every figure that is a number."""


def key_figures(result: RunResult, context: ReportContext) -> dict[str, Any]:
    """Computes one line: what ``preba.report.summary.summarise`` says of the same run, without its details.

    Parameters
    ----------
    result : RunResult
    context : ReportContext

    Returns
    -------
    dict
        ``FIGURES`` (None where there is none), ``_low`` and ``_high`` of ``INTERVALS``, ``steady``, ``slo_met`` (None
        without an objective) and ``p99_enough``. ``preprocessing_busy`` is the busiest station's.
    """
    records = result.records
    window = steady_window(result, context)
    kept = window.kept & records.served
    latency_ns = records.completed_ns[kept] - records.scheduled_ns[kept]
    order = _arrival_order(records, kept)
    if order is not None:
        latency_ns = latency_ns[order]
    found: dict[str, Any] = {}
    throughput = throughput_estimate(
        records.completed_ns[records.served], start_ns=window.start_ns, end_ns=window.end_ns
    )
    _put(found, "throughput_rps", throughput)
    _put(found, "latency_mean_ms", mean_estimate(latency_ns).scaled(1 / NS_PER_MS))
    levels = quantile_estimates(latency_ns, tuple(PERCENTILES.values()))
    for name, estimate in zip(PERCENTILES, levels, strict=True):
        _put(found, f"latency_{name}_ms", estimate.scaled(1 / NS_PER_MS))
    found["p99_enough"] = bool(levels[list(PERCENTILES).index("p99")].enough)
    found |= _objective(result, context, window)
    sizes = records.batch_size[_one_per_batch(records, kept)]
    found["batch_mean"] = float(sizes.mean()) if len(sizes) else None
    slices, stations = _slice_shares(result, window), _station_shares(result, window)
    own = [share for share, unit in zip(slices, result.slices, strict=True) if unit.role == "model"]
    found["slices_busy"] = sum(own) / len(own) if own else None
    found["preprocessing_busy"] = max(stations, default=None)
    found |= _costs(result, context, stations, slices, throughput.value)
    counts = np.bincount(records.outcome, minlength=len(OUTCOMES))
    found |= {"requests": len(records), "served": int(counts[0]), "refused": int(counts[1:4].sum())}
    found["pending"] = int(counts[4])
    found["steady"] = window.steady and not any(s.offered_rps >= s.capacity_rps for s in context.capacities)
    return found


def _put(found: dict[str, Any], name: str, estimate: Estimate) -> None:
    found[name] = finite(estimate.value)
    interval = estimate.ci95
    found[f"{name}_low"] = None if interval is None else max(0.0, interval[0])
    found[f"{name}_high"] = None if interval is None else max(0.0, interval[1])


def _arrival_order(records: Records, kept: Bools) -> NDArray[np.intp] | None:
    """What sorts the kept requests by arrival; None where they are."""
    scheduled = records.scheduled_ns[kept]
    if bool(np.all(scheduled[1:] >= scheduled[:-1])):
        return None
    return np.lexsort((records.request_id[kept], scheduled))


def _one_per_batch(records: Records, mask: Bools) -> NDArray[np.intp]:
    """One row for each batch of the requests that a mask picks, by batch id."""
    rows = np.flatnonzero(mask & (records.batch_id >= 0))
    if len(rows) == 0:
        return rows
    ids = records.batch_id[rows]
    row_of = np.full(int(ids.max()) + 1, -1, dtype=np.intp)
    row_of[ids] = rows
    return row_of[row_of >= 0]


def _slice_shares(result: RunResult, window: SteadyWindow) -> list[float]:
    records = result.records
    batches = _one_per_batch(records, records.batch_id >= 0)
    start_ns = np.maximum(records.execution_start_ns[batches], window.start_ns)
    end_ns = np.minimum(records.execution_end_ns[batches], window.end_ns)
    index = records.slice_index[batches]
    busy = np.zeros(len(result.slices))
    if len(index):
        inside = np.maximum(end_ns - start_ns, 0)
        busy += np.bincount(index, weights=inside, minlength=len(result.slices))
    length_ns = window.end_ns - window.start_ns
    edges = np.array([window.start_ns, window.end_ns], dtype=np.int64)
    own = [index for index, unit in enumerate(result.slices) if unit.role == "preprocessing"]
    for position, station in enumerate(result.stations):
        if station.kind == "dali":  # the slices that preprocess are its units, all equally busy on average
            share = float(station_busy(result, position, edges)[0])
            for slice_index in own:
                busy[slice_index] = share * length_ns
    return [min(1.0, float(ns) / length_ns) for ns in busy]


def _station_shares(result: RunResult, window: SteadyWindow) -> list[float]:
    spans = result.spans
    edges = np.array([window.start_ns, window.end_ns], dtype=np.int64)
    shares: list[float] = []
    for position, station in enumerate(result.stations):
        if station.kind == "dali":  # the requests of a batch share their unit's time
            shares.append(float(station_busy(result, position, edges)[0]))
            continue
        mine = slice(None) if len(result.stations) == 1 else spans.station_index == position
        start_ns = np.maximum(spans.start_ns[mine], window.start_ns)
        inside = np.maximum(np.minimum(spans.released_ns[mine], window.end_ns) - start_ns, 0)
        shares.append(min(1.0, int(inside.sum()) / (station.units * (window.end_ns - window.start_ns))))
    return shares


def _objective(result: RunResult, context: ReportContext, window: SteadyWindow) -> dict[str, Any]:
    records = result.records
    nothing = {"goodput_rps": None, "within_slo_share": None, "slo_met": None}
    goals = [(index, slo_ms) for index in range(len(result.models)) if (slo_ms := _slo(context, index)) is not None]
    if not goals:
        return nothing
    done = kept = within = 0
    met = True
    for index, slo_ms in goals:
        mine = records.model_index == index
        latency_ns = records.completed_ns - records.scheduled_ns
        good = mine & records.served & (latency_ns <= slo_ms * NS_PER_MS)
        done += int((good & (records.completed_ns >= window.start_ns) & (records.completed_ns < window.end_ns)).sum())
        kept += int((mine & window.kept).sum())
        within += int((good & window.kept).sum())
        served_ns = latency_ns[mine & records.served & window.kept]
        p99 = quantile_estimates(served_ns, (0.99,))[0].value if len(served_ns) else None
        met = met and p99 is not None and p99 <= slo_ms * NS_PER_MS
    return {
        "goodput_rps": done * NS_PER_S / (window.end_ns - window.start_ns),
        "within_slo_share": within / kept if kept else None,
        "slo_met": bool(met),
    }


def _slo(context: ReportContext, index: int) -> float | None:
    return context.slo_p99_ms[index] if context.slo_p99_ms else None


def _costs(
    result: RunResult,
    context: ReportContext,
    stations: Sequence[float],
    slices: Sequence[float],
    throughput_rps: float | None,
) -> dict[str, Any]:
    money, _ = money_figures(
        result.stations,
        result.slices,
        context,
        station_shares=stations,
        slice_shares=slices,
        throughput_rps=throughput_rps,
    )
    cost = money["cost_efficiency"]
    return {
        "power_w": money["power_w"]["total"],
        "energy_per_request_j": money["energy_per_request_j"],
        "requests_per_usd": None if cost is None else cost["requests_per_usd"],
        "cost_usd": None if cost is None else cost["capex_usd"] + cost["opex_usd"],
    }
