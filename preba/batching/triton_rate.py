"""Triton's rate limiter (``--rate-limit=execution_count``): which instance a payload is given to, and when.

A payload without an instance is *deferred*, first come first served. An available instance of the lowest
execution count times priority is *staged* with the next one; the staged instance of the lowest product then gets its
resources, or keeps everybody behind it waiting. Only then is the payload *allocated*: it waits for that instance's
thread alone. One model per server is modelled, so the pool of resources is its own.
"""

from __future__ import annotations

from preba.batching.queues import formed_pop, formed_push
from preba.batching.state import (
    NONE,
    S_RESOURCES,
    V_DEFERRED_HEAD,
    V_DEFERRED_TAIL,
    V_FORMED,
    BatcherState,
)
from preba.batching.triton_layout import (
    POLICY_ROW,
    S_INSTANCES,
    STAGE_ABSENT,
    STAGE_ALLOCATED,
    STAGE_AVAILABLE,
    STAGE_STAGED,
)


def deferred_push(state: BatcherState, payload: int) -> None:
    """Appends a payload to those that have no instance yet."""
    state.payload_next[payload] = NONE
    if state.scalar[V_DEFERRED_HEAD] == NONE:
        state.scalar[V_DEFERRED_HEAD] = payload
    else:
        state.payload_next[state.scalar[V_DEFERRED_TAIL]] = payload
    state.scalar[V_DEFERRED_TAIL] = payload
    state.scalar[V_FORMED] += 1


def deferred_return(state: BatcherState, payload: int) -> None:
    """Puts a payload whose instance is gone in front of those that have none yet."""
    state.payload_next[payload] = state.scalar[V_DEFERRED_HEAD]
    if state.scalar[V_DEFERRED_HEAD] == NONE:
        state.scalar[V_DEFERRED_TAIL] = payload
    state.scalar[V_DEFERRED_HEAD] = payload
    state.scalar[V_FORMED] += 1


def deferred_pop(state: BatcherState) -> int:
    """Removes and returns the oldest payload without an instance, or ``NONE``."""
    payload = state.scalar[V_DEFERRED_HEAD]
    if payload == NONE:
        return NONE
    state.scalar[V_DEFERRED_HEAD] = state.payload_next[payload]
    if state.scalar[V_DEFERRED_HEAD] == NONE:
        state.scalar[V_DEFERRED_TAIL] = NONE
    state.payload_next[payload] = NONE
    state.scalar[V_FORMED] -= 1
    return payload


def device_of(state: BatcherState, consumer: int) -> int:
    """The device a consumer runs on."""
    return consumer % (len(state.consumer_up) // state.setting[S_INSTANCES])


def limits_row(state: BatcherState, consumer: int) -> int:
    """Where the priority and the needs of a consumer's instance stand in the policy table."""
    resources = state.setting[S_RESOURCES]
    instance = consumer // (len(state.consumer_up) // state.setting[S_INSTANCES])
    return POLICY_ROW * (len(state.queue_head) // 2) + 2 * resources + instance * (1 + resources)


def best_in_stage(state: BatcherState, stage: int) -> int:
    """The instance of a stage with the lowest execution count times priority (lowest index on a tie), or ``NONE``."""
    best = NONE
    best_key = 0
    for consumer in range(len(state.consumer_stage)):
        if state.consumer_stage[consumer] != stage:
            continue
        key = state.consumer_load[consumer] * state.policy[limits_row(state, consumer)]
        if best == NONE or key < best_key:
            best = consumer
            best_key = key
    return best


def stage_one(state: BatcherState, consumer: int) -> None:
    """Binds the next payload to an available instance and tries to give somebody resources."""
    state.consumer_staged[consumer] = deferred_pop(state)
    state.scalar[V_FORMED] += 1
    state.consumer_stage[consumer] = STAGE_STAGED
    allocate_one(state)


def stage_available(state: BatcherState) -> None:
    """Binds payloads to available instances as long as there are both."""
    while state.scalar[V_DEFERRED_HEAD] != NONE:
        consumer = best_in_stage(state, STAGE_AVAILABLE)
        if consumer == NONE:
            return
        stage_one(state, consumer)


def resource_place(state: BatcherState, consumer: int, resource: int) -> int:
    """Where the use of a resource by a consumer is counted."""
    shared = state.policy[POLICY_ROW * (len(state.queue_head) // 2) + 2 * resource + 1]
    if shared == 1:
        return resource
    return device_of(state, consumer) * state.setting[S_RESOURCES] + resource


def allocate_one(state: BatcherState) -> None:
    """Gives the first staged instance its resources and its payload, if they suffice; the others wait their turn."""
    consumer = best_in_stage(state, STAGE_STAGED)
    if consumer == NONE:
        return
    needs = limits_row(state, consumer) + 1
    for resource in range(state.setting[S_RESOURCES]):
        pool = state.policy[POLICY_ROW * (len(state.queue_head) // 2) + 2 * resource]
        if state.resource_used[resource_place(state, consumer, resource)] + state.policy[needs + resource] > pool:
            return
    for resource in range(state.setting[S_RESOURCES]):
        state.resource_used[resource_place(state, consumer, resource)] += state.policy[needs + resource]
    state.consumer_stage[consumer] = STAGE_ALLOCATED
    payload = state.consumer_staged[consumer]
    state.consumer_staged[consumer] = NONE
    state.scalar[V_FORMED] -= 1
    formed_push(state, 1 + consumer, payload)


def release_resources(state: BatcherState, consumer: int) -> None:
    """Gives back what an allocated instance holds."""
    needs = limits_row(state, consumer) + 1
    for resource in range(state.setting[S_RESOURCES]):
        state.resource_used[resource_place(state, consumer, resource)] -= state.policy[needs + resource]


def rate_returned(state: BatcherState, consumer: int) -> None:
    """An instance has finished a payload, or enters service."""
    stage = state.consumer_stage[consumer]
    if stage == STAGE_ALLOCATED:
        state.consumer_load[consumer] += 1
        release_resources(state, consumer)
    state.consumer_stage[consumer] = STAGE_AVAILABLE
    if state.scalar[V_DEFERRED_HEAD] != NONE:
        # Only the instance that returned is considered, and one allocation is tried for each step.
        stage_one(state, consumer)
    allocate_one(state)


def rate_lost(state: BatcherState, consumer: int) -> None:
    """An instance is gone: what it was bound to goes back to the front, what it held is free."""
    if state.consumer_stage[consumer] == STAGE_ALLOCATED:
        release_resources(state, consumer)
        while state.formed_head[1 + consumer] != NONE:
            deferred_return(state, formed_pop(state, 1 + consumer))
    elif state.consumer_stage[consumer] == STAGE_STAGED:
        deferred_return(state, state.consumer_staged[consumer])
        state.consumer_staged[consumer] = NONE
        state.scalar[V_FORMED] -= 1
    state.consumer_stage[consumer] = STAGE_ABSENT
    stage_available(state)
    allocate_one(state)
