"""Servers as any host drives them: one batcher and the slices behind it. No events, no clock, no execution times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preba.batchers import BatcherPlan, plan_batcher
from preba.batching.state import BatcherState, make_state
from preba.batching.triton_config import TritonBatcher
from preba.scenario.resolve import ResolvedModel, ResolvedScenario

EAGER_EVENT_SETS = 3
"""Batches an eager TensorRT instance may form ahead (EVENT_SET_COUNT of Triton's TensorRT backend)."""


@dataclass(frozen=True)
class ServerModel:
    """One batcher and the consumers behind it.

    Attributes
    ----------
    model_index : int
    plan : BatcherPlan
    consumer_slice : tuple of int
        Slice of each consumer.
    consumer_rank, consumer_batch_max : tuple of int
    credits : int
        Batches a consumer may have in flight (1 for blocking backends).
    """

    model_index: int
    plan: BatcherPlan
    consumer_slice: tuple[int, ...]
    consumer_rank: tuple[int, ...]
    consumer_batch_max: tuple[int, ...]
    credits: int

    def new_state(self, capacity: int, *, as_arrays: bool = False) -> BatcherState:
        """An empty batcher for ``capacity`` request slots."""
        return make_state(
            setting=self.plan.setting,
            preferred=self.plan.preferred,
            bucket_batch_max=self.plan.bucket_batch_max,
            bucket_delay_ns=self.plan.bucket_delay_ns,
            consumer_rank=self.consumer_rank,
            consumer_batch_max=self.consumer_batch_max,
            queue_count=self.plan.queue_count,
            policy=self.plan.policy,
            capacity=capacity,
            out_capacity=max(self.plan.batch_max, 1),
            as_arrays=as_arrays,
        )


def plan_servers(resolved: ResolvedScenario, model: ResolvedModel, longest_ns: int) -> list[ServerModel]:
    """The servers of one model: one in front of all its slices, or one per slice, as the topology says.

    Parameters
    ----------
    resolved : ResolvedScenario
    model : ResolvedModel
    longest_ns : int
        Longest audio input it will see; 0 for other modalities.

    Raises
    ------
    ScenarioError
        The batcher asks for more than the profile covers.
    """
    central = resolved.scenario.server.topology == "central"
    groups = [model.slice_indices] if central else [(index,) for index in model.slice_indices]
    return [_plan_server(resolved, model, group, longest_ns, place) for place, group in enumerate(groups)]


def _plan_server(
    resolved: ResolvedScenario, model: ResolvedModel, group: Sequence[int], longest_ns: int, place: int
) -> ServerModel:
    config = model.config.batcher
    if isinstance(config, TritonBatcher):  # the threads of each server have luck of their own
        config = config.with_quirks(batcher_first_seed=config.quirks.batcher_first_seed + place)
    where = f"scenario.models[{model.index}].batcher"
    profiles = [resolved.slices[index].profile for index in group]
    plan = plan_batcher(config, model.profile, profiles, length_max_ns=longest_ns, where=where)
    backend = backend_name(model)
    instances = config.instances_per_slice if isinstance(config, TritonBatcher) else 1
    threads = instances if backend == "blocking" else 1
    credits_ = 1 if backend == "blocking" else instances
    if backend == "eager":
        credits_ *= EAGER_EVENT_SETS
    order = list(range(len(group)))
    if getattr(config, "slice_choice", "first") == "fastest":
        order.sort(key=lambda position: (-resolved.slices[group[position]].gpcs, position))
    rank_of = {position: rank for rank, position in enumerate(order)}
    consumers = [position for _ in range(threads) for position in range(len(group))]
    return ServerModel(
        model_index=model.index,
        plan=plan,
        consumer_slice=tuple(group[position] for position in consumers),
        consumer_rank=tuple(
            rank_of[position] + turn * len(group) for turn in range(threads) for position in range(len(group))
        ),
        consumer_batch_max=tuple(model.profile.batch_max(profiles[position]) for position in consumers),
        credits=credits_,
    )


def backend_name(model: ResolvedModel) -> str:
    """The backend kind of a model: its Triton configuration's, else its profile's."""
    config = model.config.batcher
    return config.backend if isinstance(config, TritonBatcher) else model.profile.backend.kind
