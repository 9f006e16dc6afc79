"""Scenarios that ``preba validate`` plays before the one it compares: other draws, other loads."""

from __future__ import annotations

from typing import Any

from preba.arrival_kinds import ClosedLoopArrivals
from preba.batchers import GreedyBatching
from preba.batching.triton_config import TritonBatcher
from preba.scenario.resolve import ResolvedModel, ResolvedScenario, resolve
from preba.scenario.schema import Run
from preba.serving import plan_servers
from runtime.placement import is_native, longest_audio_ns

__all__ = ["batch_limit", "kept_busy", "one_at_a_time", "rehearsal"]

IDLE_THINK_MS = 2.0
REHEARSAL_S = 120.0
REHEARSAL_REQUESTS = 100_000
CLOSED_REQUESTS = 60_000
"""Of a closed loop, whose rate is not known before."""
IDLE_THINK_MAX_MS = 100.0
REQUESTS_MIN = 30


def batch_limit(resolved: ResolvedScenario, model: ResolvedModel) -> int:
    """Largest batch a model's batchers may form."""
    longest_ns = longest_audio_ns(resolved)[model.index]
    wanted = max(server.plan.batch_max for server in plan_servers(resolved, model, longest_ns))
    return min(wanted, max(model.profile.batch_max(resolved.slices[index].profile) for index in model.slice_indices))


def one_at_a_time(resolved: ResolvedScenario, requests: int) -> ResolvedScenario:
    """The scenario with one client per model that waits for each answer, and other draws.

    Between its requests a client waits as long as arrivals are apart in the run: a machine that has slept answers
    later than one that is kept awake.
    """
    scenario = resolved.scenario
    models = []
    for model in scenario.models:
        rate_rps = model.arrivals.mean_rate_rps()
        think_ms = IDLE_THINK_MS if not rate_rps else min(1e3 / float(rate_rps), IDLE_THINK_MAX_MS)
        loop = ClosedLoopArrivals(
            kind="closed_loop", outstanding=1, think_ms=think_ms, think_distribution="exponential"
        )
        models.append(model.model_copy(update={"arrivals": loop}))
    run = Run(requests=requests * len(models), warmup_requests=0)
    other = scenario.model_copy(
        update={"models": tuple(models), "run": run, "seed": scenario.seed + 1_000_003, "events": ()}
    )
    return resolve(other, folder=resolved.folder)


def kept_busy(resolved: ResolvedScenario, batches: int, batch: int) -> ResolvedScenario:
    """The scenario with batchers that never wait and so many clients that slices always have about `batch` waiting."""
    scenario = resolved.scenario
    models, requests = [], 0
    for model in resolved.models:
        limit = batch_limit(resolved, model)
        plain: Any = GreedyBatching(kind="greedy", batch_max=limit)
        if is_native(resolved):
            plain = TritonBatcher(kind="triton", max_batch_size=limit)
        outstanding = min(2 * batch * len(model.slice_indices), scenario.live.requests_max)
        requests += max(batch * len(model.slice_indices) * batches, 2 * outstanding)
        loop = ClosedLoopArrivals(kind="closed_loop", outstanding=outstanding)
        fields = {"batcher": plain, "arrivals": loop, "priority_shares": None, "timeout_ms": 0.0}
        models.append(model.config.model_copy(update=fields))
    run = Run(requests=requests, warmup_requests=0)
    seed = scenario.seed + 2_000_003 + batch
    other = scenario.model_copy(update={"models": tuple(models), "run": run, "seed": seed, "events": ()})
    return resolve(other, folder=resolved.folder)


def rehearsal(resolved: ResolvedScenario) -> ResolvedScenario:
    """As much as two minutes of the scenario itself with other draws, without its events; of closed loops by count."""
    scenario = resolved.scenario
    run = Run(duration_s=REHEARSAL_S, warmup_requests=0)
    rates = [model.arrivals.mean_rate_rps() for model in scenario.models]
    requests = scenario.run.requests
    if requests is not None:
        if all(rates):
            requests = min(requests, max(round(REHEARSAL_S * sum(float(rate or 0.0) for rate in rates)), REQUESTS_MIN))
        run = Run(requests=min(requests, REHEARSAL_REQUESTS if all(rates) else CLOSED_REQUESTS), warmup_requests=0)
    elif scenario.run.duration_s is not None:
        run = Run(duration_s=min(scenario.run.duration_s, REHEARSAL_S), warmup_requests=0)
    other = scenario.model_copy(update={"run": run, "seed": scenario.seed + 3_000_003, "events": ()})
    return resolve(other, folder=resolved.folder)
