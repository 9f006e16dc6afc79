"""The simulations behind the comparison table. Each takes plain values and returns plain values, so a pool can run it.

What the results are compared with, and how they are shown, is in compare.py and sheet.py.
"""

from __future__ import annotations

import json
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import rig
from rig import Point

from preba.knee import knee
from preba.profile import LatencyProfile, load_profile, profile_from_dict
from preba.report.summary import summarise
from preba.units import ms_from_ns, ns_from_s
from sim.context import report_context
from sim.run import simulate
from sim.theory.greedy import greedy

LOADS = (0.5, 0.7, 0.9, 0.95)
"""Shares of Base's saturated throughput at which tails and latency shares are compared."""

TAIL_LOAD = 0.9
"""The one of them that stands for the paper's unstated operating point."""

POWER_LOAD = 0.95
"""Share of each design's own saturated throughput at which power is taken."""

QUEUE_LOAD = 0.6
QUEUE_FACTORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Time_queue over Time_knee / slices."""

BATCHES = (1, 2, 4, 8, 16)
SERVERS = (1, 2, 3, 4, 7)
DUE_LOADS = (0.2, 0.4, 0.6, 0.8)

INOUE_ALPHA_MS, INOUE_TAU0_MS = 0.1438, 1.8874
"""ResNet-50 on a V100, mixed precision: fitted by Inoue, arXiv 1912.06322, section 4."""

GREEDY_LOADS = (0.3, 0.5, 0.7)

Json = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How long the runs are.

    Attributes
    ----------
    saturation : int
        Requests of a saturation run.
    steady : int
        Requests of a run at an operating point.
    """

    saturation: int
    steady: int


def at_rate(point: Point, rate_rps: float, requests: int) -> Json:
    """Run a design point at a rate; the summary of its steady state."""
    extra = (*point.extra, f"models[0].arrivals.rate_rps={rate_rps:.9g}", f"run.requests={requests}")
    prepared = rig.resolved(Point(point.model, point.design, point.partition, point.batcher, point.audio_s, extra))
    simulation = simulate(prepared)
    whole: Json = summarise(simulation.result, report_context(prepared, simulation))
    keep = (
        "latency_ms",
        "stages_ms",
        "throughput_rps",
        "power_w",
        "energy_per_request_j",
        "cost_efficiency",
        "utilization",
        "measured_requests",
    )
    return {name: whole[name] for name in keep} | {"batch_mean": whole["batch_size"]["mean"]}


def saturate(point: Point, requests: int) -> float:
    """Saturated throughput of a design point."""
    return rig.saturation(point, requests=requests)


def saturations(pool: Executor, scale: Scale) -> dict[Point, float]:
    """Saturated throughput of every design point that a fact needs."""
    points = [Point(model, design) for model in rig.MODELS for design in rig.DESIGNS]
    points += [Point(model, design, rig.LARGE) for model in rig.MODELS for design in ("preba", "ideal")]
    for model in rig.AUDIO:
        profile = load_profile(rig.profile_name(model))
        short = knee(profile, "1g.5gb", ns_from_s(rig.CHARACTERISED_S)).batch
        batcher = json.dumps(rig.fixed_batcher(profile, short))
        points += [Point(model, design, rig.SMALL, batcher, rig.CHARACTERISED_S) for design in ("base", "ideal")]
        points += [ablation_point(model, design, batch) for design in ("base", "base-dpu") for batch in BATCHES]
    points += [server_point(model, count) for model in ("mobilenet-v3-small", "citrinet") for count in SERVERS]
    points = list(dict.fromkeys(points))
    rates = pool.map(saturate, points, [scale.saturation] * len(points))
    return dict(zip(points, rates, strict=True))


def ablation_point(model: str, design: str, batch: int) -> Point:
    """Name a design point without dynamic batching, with another fixed batch."""
    profile = load_profile(rig.profile_name(model))
    return Point(model, design, rig.SMALL, json.dumps(rig.fixed_batcher(profile, batch)))


def server_point(model: str, servers: int) -> Point:
    """Name Base with only some of its inference servers active."""
    return Point(model, "base", f"{servers}x1g.5gb")


def characterised_point(model: str, design: str) -> Point:
    """Name a design point of section 3: audio of 2.5 s in fixed batches of its Batch_knee."""
    if model not in rig.AUDIO:
        return Point(model, design)
    profile = load_profile(rig.profile_name(model))
    short = knee(profile, "1g.5gb", ns_from_s(rig.CHARACTERISED_S)).batch
    return Point(model, design, rig.SMALL, json.dumps(rig.fixed_batcher(profile, short)), rig.CHARACTERISED_S)


def steady_runs(pool: Executor, rates: dict[Point, float], scale: Scale) -> dict[str, Json]:
    """Every run at an operating point, by name."""
    jobs: dict[str, tuple[Point, float]] = {}
    for model in rig.MODELS:
        base = rates[Point(model, "base")]
        for load in LOADS:
            for design in ("base", "preba", "ideal"):
                jobs[f"tail/{model}/{design}/{load:g}"] = (Point(model, design), load * base)
        for design in ("base", "preba"):
            jobs[f"power/{model}/{design}"] = (Point(model, design), POWER_LOAD * rates[Point(model, design)])
        slower = min(rates[Point(model, "ideal", where)] for where in (rig.SMALL, rig.LARGE))
        for where in (rig.SMALL, rig.LARGE):
            jobs[f"batching/{model}/{where}"] = (Point(model, "ideal", where), 0.7 * slower)
    for model in ("mobilenet-v3-small", "conformer-small"):
        jobs |= {
            f"queue/{model}/{factor:g}": (queue_point(model, factor), QUEUE_LOAD * rates[Point(model, "preba")])
            for factor in QUEUE_FACTORS
        }
    for model in ("citrinet", "conformer-small"):
        for load in DUE_LOADS:
            for due in ("stays_open", "frozen", "frozen_per_slice"):
                batcher = json.dumps({"kind": "preba", "due_batch": due})
                point = Point(model, "ideal", rig.SMALL, batcher)
                jobs[f"due/{model}/{due}/{load:g}"] = (point, load * rates[Point(model, "ideal")])
    points, speeds = zip(*jobs.values(), strict=True)
    found = pool.map(at_rate, points, speeds, [scale.steady] * len(jobs))
    return dict(zip(jobs, found, strict=True))


def queue_point(model: str, factor: float) -> Point:
    """Name PREBA with another Time_queue."""
    profile = load_profile(rig.profile_name(model))
    queue_ms = factor * rig.time_knee_ms(profile) / 7
    return Point(model, "preba", rig.SMALL, json.dumps({"kind": "preba", "time_queue_ms": queue_ms}))


def one_bucket(requests: int) -> Json:
    """PREBA's batcher against a fixed batch with a time-out of Time_knee / 7, on images: answer times compared."""
    found: Json = {}
    for model in rig.VISION:
        profile = load_profile(rig.profile_name(model))
        best = knee(profile, "1g.5gb")
        plain = {"kind": "fixed", "batch_max": best.batch, "timeout_ms": ms_from_ns(best.latency_ns // 7)}
        own = {"kind": "preba", "time_queue_ms": ms_from_ns(best.latency_ns // 7)}
        rate = 0.7 * rig.characterised_rps(profile, 7)
        extra = (f"models[0].arrivals.rate_rps={rate:.9g}", f"run.requests={requests}")
        answers = [
            simulate(rig.resolved(Point(model, "ideal", batcher=json.dumps(batcher), extra=extra))).result.records
            for batcher in (own, plain)
        ]
        found[model] = int(np.count_nonzero(answers[0].completed_ns != answers[1].completed_ns))
    return found


def inoue_profile() -> LatencyProfile:
    """Write Inoue's fitted batch time down as a profile of the whole GPU."""
    origin = {"kind": "published", "source": "Inoue, arXiv 1912.06322, section 4: ResNet-50 on a V100"}
    return profile_from_dict(
        {
            "name": "inoue-resnet50-v100",
            "model": "resnet50",
            "modality": "image",
            "device": "A100-40GB",
            "precision": "mixed",
            "framework": "not stated",
            "provenance": origin,
            "parts": dict.fromkeys(("floor", "slope", "offset", "batch_max"), origin),
            "closed_form": {
                "floor_ms": INOUE_TAU0_MS,
                "offset_ms": INOUE_TAU0_MS,
                "slope_ms": {"7g": INOUE_ALPHA_MS},
                "batch_max": {"7g": 1024},
            },
        },
        origin="papers/preba inoue",
    )


def greedy_limit(load: float, requests: int) -> Json:
    """PREBA with Time_queue 0 and a batch nobody reaches, one slice: mean latency beside Inoue's exact one."""
    rate = load / (INOUE_ALPHA_MS / 1e3)
    batcher = json.dumps({"kind": "preba", "time_queue_ms": 0, "batch_max": 1024})
    extra = (f"models[0].arrivals.rate_rps={rate:.9g}", f"run.requests={requests}")
    point = Point("mobilenet-v3-small", "ideal", rig.LARGE, batcher, extra=extra)
    prepared = rig.resolved(point, profile=inoue_profile())
    simulation = simulate(prepared)
    summary = summarise(simulation.result, report_context(prepared, simulation))
    exact = greedy(rate_rps=rate, alpha_s=INOUE_ALPHA_MS / 1e3, tau0_s=INOUE_TAU0_MS / 1e3)
    return {"load": load, "ours": summary["latency_ms"]["mean"], "exact_ms": exact.latency_mean_s * 1e3}
