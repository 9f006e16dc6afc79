"""``summarise``: a run's records and their context to the one JSON object that every view of the run shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from preba.economics import cost_efficiency, energy_per_request_j, power_of_run
from preba.errors import ScenarioError
from preba.records import RunResult, SliceFacts, StationFacts
from preba.report.context import ReportContext, StageCapacity
from preba.report.measures import (
    batch_figures,
    count_figures,
    finite,
    goodput_figures,
    in_arrival_order,
    latency_figures,
    stage_figures,
    throughput_figure,
)
from preba.report.usage import (
    distinct_names,
    integral_ns,
    outage_intervals,
    queue_intervals,
    slice_busy,
    station_busy,
)
from preba.report.window import SteadyWindow, steady_window
from preba.strict import Provenance
from preba.units import NS_PER_S, s_from_ns

__all__ = ["money_figures", "provenance_figures", "summarise"]

Json = dict[str, Any]
Sources = tuple[tuple[str, Provenance], ...]


def summarise(result: RunResult, context: ReportContext) -> Json:
    """Computes everything a report says about a run.

    Parameters
    ----------
    result : RunResult
        Simulated or measured.
    context : ReportContext

    Returns
    -------
    dict
        Only JSON values, keys in a fixed order, no NaN. Counts are of the whole run; everything else is of the
        steady-state window, without the requests that arrived during the warm-up. Times are in milliseconds
        where a key ends in ``_ms`` and in seconds where it ends in ``_s``.

    Raises
    ------
    ScenarioError
        The context has objectives for another number of models than the run.
    """
    models = len(result.models)
    if context.slo_p99_ms and len(context.slo_p99_ms) != models:
        raise ScenarioError(f"slo_p99_ms: must have {models} entries, got {len(context.slo_p99_ms)}")
    records = result.records
    window = steady_window(result, context)
    kept = in_arrival_order(records.select(window.kept & records.served))
    throughput = throughput_figure(records, window)
    busy = _busy(result, window)
    summary: Json = {
        "engine": result.engine,
        "scenario": context.scenario_name,
        "description": context.description,
        "seed": context.seed,
        **count_figures(records),
        "duration_s": s_from_ns(result.end_ns),
        "warmup": {
            "requests": window.requests_cut,
            "until_s": s_from_ns(window.start_ns),
            "rule": window.text,
        },
        "window_s": [s_from_ns(window.start_ns), s_from_ns(window.end_ns)],
        "steady": window.steady and not any(_load(stage) >= 1.0 for stage in context.capacities),
        "measured_requests": int(window.kept.sum()),
        "offered_rps": _offered_rps(result, context, window),
        "throughput_rps": throughput,
        "goodput": _goodput(result, context, window),
        "latency_ms": latency_figures(kept),
        "stages_ms": stage_figures(kept),
        "batch_size": batch_figures(kept),
        **_usage(result, window, busy),
        "capacity": [
            {
                "stage": stage.stage,
                "offered_rps": finite(stage.offered_rps),
                "capacity_rps": finite(stage.capacity_rps),
                "load": finite(_load(stage)),
            }
            for stage in context.capacities
        ],
    }
    money, sources = money_figures(
        result.stations,
        result.slices,
        context,
        station_shares=busy.stations,
        slice_shares=busy.slices,
        throughput_rps=throughput["value"],
    )
    summary |= money
    summary["models"] = _models(result, context, window) if models > 1 else {}
    summary["outages"] = [
        {"slice": result.slices[index].name, "from_s": s_from_ns(begin), "to_s": s_from_ns(end)}
        for index, begin, end in result.outages
    ]
    summary |= provenance_figures(context.provenance + sources)
    summary["warnings"] = [*context.warnings, *_own_warnings(summary, window, context.warnings)]
    return summary


def _load(stage: StageCapacity) -> float:
    return stage.offered_rps / stage.capacity_rps if stage.capacity_rps > 0 else math.inf


def _offered_rps(result: RunResult, context: ReportContext, window: SteadyWindow) -> float | None:
    """The scenario's rate, else the arrivals counted in the window."""
    if context.offered_rps is not None:
        return float(context.offered_rps)
    scheduled_ns = result.records.scheduled_ns
    inside = (scheduled_ns >= window.start_ns) & (scheduled_ns < window.end_ns)
    return int(inside.sum()) * NS_PER_S / (window.end_ns - window.start_ns)


def _slo(context: ReportContext, model_index: int) -> float | None:
    return context.slo_p99_ms[model_index] if context.slo_p99_ms else None


def _goodput(result: RunResult, context: ReportContext, window: SteadyWindow) -> Json | None:
    """Goodput of all models that have an objective; None when none has."""
    parts: Json = {}
    for index, name in enumerate(result.models):
        slo_ms = _slo(context, index)
        if slo_ms is not None:
            mine = result.records.model_index == index
            own = replace(window, kept=window.kept[mine])
            parts[name] = goodput_figures(result.records.select(mine), own, slo_ms)
    if not parts:
        return None
    if len(parts) == 1 and len(result.models) == 1:
        return dict(next(iter(parts.values())))
    verdicts = [part["p99_met"] for part in parts.values()]
    return {
        "rps": sum(part["rps"] for part in parts.values()),
        "p99_met": False if False in verdicts else None if None in verdicts else True,
        "certain": all(part["certain"] for part in parts.values()),
        "models": parts,
    }


@dataclass(frozen=True)
class _Busy:
    """Shares of the window, 0..1: of each station's units, and of each slice."""

    stations: tuple[float, ...]
    slices: tuple[float, ...]


def _busy(result: RunResult, window: SteadyWindow) -> _Busy:
    edges = np.array([window.start_ns, window.end_ns], dtype=np.int64)
    shares = slice_busy(result, edges)[:, 0] / (window.end_ns - window.start_ns)
    return _Busy(
        stations=tuple(float(station_busy(result, i, edges)[0]) for i in range(len(result.stations))),
        slices=tuple(min(1.0, float(share)) for share in shares),
    )


def _usage(result: RunResult, window: SteadyWindow, busy: _Busy) -> Json:
    edges = np.array([window.start_ns, window.end_ns], dtype=np.int64)
    length_ns = window.end_ns - window.start_ns
    shares: list[float | None] = []
    for index, share in enumerate(busy.slices):
        available = 1.0 - float(integral_ns(outage_intervals(result, index), edges)[0]) / length_ns
        shares.append(min(1.0, share / available) if available > 0 else None)
    own = [s for s, unit in zip(shares, result.slices, strict=True) if s is not None and unit.role == "model"]
    stations = distinct_names([station.name for station in result.stations])
    queues = queue_intervals(result)
    return {
        "utilization": {
            "preprocessing": {
                name: share * station.usable_fraction
                for name, share, station in zip(stations, busy.stations, result.stations, strict=True)
            },
            "preprocessing_taken": dict(zip(stations, busy.stations, strict=True)),
            "slices": dict(zip(distinct_names([unit.name for unit in result.slices]), shares, strict=True)),
            "slices_mean": sum(own) / len(own) if own else None,
        },
        "queue_depth": {name: float(integral_ns(stays, edges)[0]) / length_ns for name, stays in queues.items()},
    }


def money_figures(
    stations: Sequence[StationFacts],
    slices: Sequence[SliceFacts],
    context: ReportContext,
    *,
    station_shares: Sequence[float],
    slice_shares: Sequence[float],
    throughput_rps: float | None,
) -> tuple[Json, Sources]:
    """Watts, joules and dollars, and the origin of the numbers behind them.

    Parameters
    ----------
    stations, slices : sequence of StationFacts, SliceFacts
    context : ReportContext
    station_shares, slice_shares : sequence of float
        Mean share of the window in which each was busy, 0..1.
    throughput_rps : float or None
    """
    power: Json = {"cpu": None, "gpu": None, "accelerator": None, "total": None}
    found: Json = {"hardware": None, "power_w": power, "energy_per_request_j": None, "cost_efficiency": None}
    if context.hardware is None:
        return found, ()
    cards = context.accelerator_count
    drawn = power_of_run(
        context.hardware,
        stations=list(zip(stations, station_shares, strict=True)),
        slices=list(zip(slices, slice_shares, strict=True)),
        gpcs_per_gpu=context.gpcs_per_gpu,
        accelerator_count=cards,
    )
    rate = throughput_rps or 0.0
    cost = cost_efficiency(
        context.hardware,
        throughput_rps=rate,
        power_w=drawn.total_w,
        gpu_count=context.gpu_count,
        accelerator_count=cards,
    )
    found["hardware"] = {
        "name": context.hardware.name,
        "description": context.hardware.description,
        "gpus": context.gpu_count,
        "gpcs_per_gpu": context.gpcs_per_gpu,
        "accelerators": cards,
    }
    found["power_w"] = {
        "cpu": drawn.cpu_w,
        "gpu": drawn.gpu_w,
        "accelerator": drawn.accelerator_w,
        "total": drawn.total_w,
    }
    found["energy_per_request_j"] = finite(energy_per_request_j(drawn.total_w, rate))
    found["cost_efficiency"] = {
        "requests_per_usd": finite(cost.requests_per_usd) if rate > 0 else None,
        "capex_usd": cost.capex_usd,
        "opex_usd": cost.opex_usd,
        "capex_parts_usd": dict(cost.capex_parts_usd),
        "hours": cost.hours,
    }
    return found, drawn.provenance + cost.provenance


def _models(result: RunResult, context: ReportContext, window: SteadyWindow) -> Json:
    found: Json = {}
    for index, name in enumerate(result.models):
        mine = result.records.model_index == index
        records = result.records.select(mine)
        own = replace(window, kept=window.kept[mine])
        kept = in_arrival_order(records.select(own.kept & records.served))
        slo_ms = _slo(context, index)
        found[name] = {
            **count_figures(records),
            "slices": [unit.name for unit in result.slices if unit.model_index == index],
            "throughput_rps": throughput_figure(records, own),
            "goodput": None if slo_ms is None else goodput_figures(records, own, slo_ms),
            "latency_ms": latency_figures(kept),
            "stages_ms": stage_figures(kept),
            "batch_size": batch_figures(kept),
        }
    return found


def provenance_figures(sources: Sources) -> Json:
    """The inputs and where their numbers come from, and which of them are modelled."""
    found: list[Json] = []
    for what, origin in dict(sources).items():
        entry: Json = {"what": what, "kind": origin.kind, "source": origin.source}
        entry |= {name: value for name in ("where", "date", "notes") if (value := getattr(origin, name)) is not None}
        found.append(entry)
    return {
        "provenance": found,
        "modelled_inputs": [entry["what"] for entry in found if entry["kind"] == "modelled"],
    }


def _own_warnings(summary: Json, window: SteadyWindow, known: tuple[str, ...]) -> list[str]:
    """What the figures themselves give reason to warn of."""
    found: list[str] = []
    requests, refused, pending = summary["requests"], summary["refused"]["total"], summary["pending"]
    if summary["served"] == 0:
        found.append("no request was served: there is no latency, no batch and no cost to report")
    elif len(summary["latency_ms"]) and summary["latency_ms"]["mean"]["value"] is None:
        found.append("every served request belongs to the warm-up: run longer, or cut less")
    if refused:
        reasons = ", ".join(f"{n:,} {why}" for why, n in summary["refused"]["by_reason"].items() if n)
        found.append(
            f"{refused:,} of {requests:,} requests were refused or lost ({reasons}); latencies are of the others"
        )
    if pending and not any("never served" in text for text in known):
        found.append(f"{pending:,} of {requests:,} requests were never answered")
    if not window.steady and not any("overloaded" in text for text in known):
        found.append(
            "the latency drifts through the run: no steady state was found, so percentiles depend on its length"
        )
    found += _slo_warnings(summary)
    return found


def _slo_warnings(summary: Json) -> list[str]:
    goodput = summary["goodput"]
    if goodput is None:
        return []
    parts = goodput.get("models", {"": goodput})
    found: list[str] = []
    for name, part in parts.items():
        if part["p99_met"] is False:
            of = f" of {name}" if name else ""
            sure = "" if part["certain"] else " (within the uncertainty of this run)"
            found.append(f"the p99 objective{of}, {part['slo_p99_ms']:g} ms, is missed{sure}")
    return found
