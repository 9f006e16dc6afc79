"""Law 1: the batchers compile as they stand, and the compiled ones decide exactly what the interpreted ones decide."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from preba.batching import (
    brain,
    bucketed,
    late,
    queues,
    triton,
    triton_payloads,
    triton_rate,
    triton_scan,
)
from preba.batching import state as s
from preba.batching.triton_config import TritonBatcher

BRAIN: tuple[ModuleType, ...] = (queues, late, bucketed, triton_rate, triton_scan, triton_payloads, triton, brain)

ENQUEUE, IDLE, LOST, UP, ADVANCE, DRAIN = range(6)


def drive(state: s.BatcherState, events: Any, log: Any) -> int:
    """Plays events and writes down all that comes of them; returns how much was written."""
    place = 0
    for row in range(len(events)):
        kind = events[row][0]
        now_ns = events[row][1]
        number = events[row][2]
        if kind == ENQUEUE:
            log[place] = brain.enqueue(state, now_ns, number)
            place += 1
        elif kind == IDLE:
            brain.consumer_idle(state, now_ns, number)
        elif kind == LOST:
            brain.consumer_lost(state, now_ns, number)
        elif kind == UP:
            brain.consumer_up(state, now_ns, number)
        elif kind == ADVANCE:
            brain.advance(state, now_ns)
        else:
            request = brain.take_waiting(state)
            while request != s.NONE:
                log[place] = request
                place += 1
                request = brain.take_waiting(state)
        consumer = brain.take_batch(state, now_ns)
        while consumer != s.NONE:
            log[place] = consumer
            log[place + 1] = state.out[s.O_CONSUMER]
            log[place + 2] = state.out[s.O_COUNT]
            log[place + 3] = state.out[s.O_UNITS]
            log[place + 4] = state.out[s.O_FORMED_NS]
            place += 5
            for member in range(state.out[s.O_COUNT]):
                log[place] = state.out_request[member]
                place += 1
            consumer = brain.take_batch(state, now_ns)
        request = brain.take_refused(state)
        while request != s.NONE:
            log[place] = request
            log[place + 1] = state.request_outcome[request]
            place += 2
            request = brain.take_refused(state)
        log[place] = brain.due_ns(state)
        place += 1
    return place


@pytest.fixture(scope="module")
def compiled() -> Callable[..., int]:
    """``drive`` and every function of the brain, compiled as they stand."""
    numba = pytest.importorskip("numba", reason="numba (extra dev) compiles the batchers")
    for module in BRAIN:
        for _, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__:
                numba.extending.register_jitable(function)
    jitted: Callable[..., int] = numba.njit(drive)
    return jitted


def triton_case(**fields: Any) -> tuple[dict[str, Any], int]:
    config = TritonBatcher.model_validate_json(json.dumps({"kind": "triton", "max_batch_size": 8, **fields}))
    settings = config.to_settings()
    shape = {
        "setting": settings.setting,
        "preferred": settings.preferred,
        "policy": settings.policy,
        "queue_count": settings.queue_count,
        "bucket_batch_max": (8,),
        "bucket_delay_ns": (0,),
    }
    return shape, 1


def plain_case(kind: int, buckets: int = 1, **values: int) -> tuple[dict[str, Any], int]:
    setting = [0] * s.SETTING_COUNT
    setting[s.S_KIND] = kind
    for name, value in values.items():
        setting[getattr(s, name)] = value
    shape = {
        "setting": setting,
        "preferred": (),
        "queue_count": buckets,
        "bucket_batch_max": [8 - place for place in range(buckets)],
        "bucket_delay_ns": [3000 + 500 * place for place in range(buckets)],
    }
    return shape, buckets


POLICIES = {
    "priority_levels": 3,
    "default_priority_level": 2,
    "default_queue_policy": {"default_timeout_us": 6, "allow_timeout_override": True},
    "priority_queue_policy": {
        "1": {"timeout_action": "DELAY", "default_timeout_us": 4},
        "3": {"max_queue_size": 3},
    },
}
LIMITER = {
    "mode": "execution_count",
    "groups": [
        {"count": 1, "priority": 2, "resources": [{"name": "a", "count": 2, "global": True}]},
        {"count": 1, "resources": [{"name": "a", "count": 1, "global": True}, {"name": "b", "count": 1}]},
    ],
    "pool": {"a": 3, "b": 1},
}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "none": plain_case(s.KIND_LATE, S_BATCH_MAX=3),
    "fixed": plain_case(s.KIND_LATE, S_BATCH_MAX=8, S_DELAY_NS=4000, S_QUEUE_MAX=12),
    "preba": plain_case(s.KIND_BUCKET, 3, S_BATCH_MAX=8, S_MERGE_REACH=1, S_DUE_BATCH=s.DUE_STAYS_OPEN),
    "preba-frozen": plain_case(s.KIND_BUCKET, 3, S_BATCH_MAX=8, S_MERGE_REACH=1, S_DUE_BATCH=s.DUE_FROZEN),
    "preba-variants": plain_case(
        s.KIND_BUCKET,
        4,
        S_BATCH_MAX=8,
        S_MERGE_REACH=2,
        S_MERGE_ORDER=s.MERGE_LONGER_FIRST,
        S_TIMER=s.TIMER_LAST_EMISSION,
        S_EMIT_WHEN_IDLE=1,
        S_DUE_BATCH=s.DUE_FROZEN_PER_CONSUMER,
        S_CONSUMER_CHOICE=s.CHOICE_LONGEST_IDLE,
        S_QUEUE_MAX=9,
    ),
    "triton": triton_case(),
    "triton-delay": triton_case(preferred_batch_size=[3, 5], max_queue_delay_us=4),
    "triton-shapes": triton_case(max_queue_delay_us=3, enforce_equal_shape=True),
    "triton-policies": triton_case(preferred_batch_size=[4], max_queue_delay_us=5, **POLICIES),
    "triton-lost-wakeups": triton_case(
        default_queue_policy={"max_queue_size": 9},
        quirks={
            "batcher_first_permille": 400,
            "batcher_first_late_us": 3,
            "batcher_first_seed": 7,
            "counter_drift": False,
        },
    ),
    "triton-threads": triton_case(max_queue_delay_us=4, quirks={"batcher_first_permille": 400, "batcher_wakeup_us": 1}),
    "triton-wakeups": triton_case(
        max_queue_delay_us=4, quirks={"batcher_wakeup_us": 2, "batcher_wakeup_varies": True, "batcher_first_seed": 5}
    ),
    "triton-limited": triton_case(instances_per_slice=2, max_queue_delay_us=3, rate_limiter=LIMITER),
    "triton-limited-policies": triton_case(instances_per_slice=2, rate_limiter=LIMITER, **POLICIES),
    "triton-off": triton_case(dynamic_batching=False),
}
CONSUMERS = 4
REQUESTS = 160


def random_events(rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Consumers enter service, then a mix of all events at non-decreasing times, some at the same time."""
    events = [(UP, 0, consumer) for consumer in range(CONSUMERS)]
    now_ns, request = 0, 0
    while request < REQUESTS:
        now_ns += int(rng.choice([0, 137, 900, 2500, 600_000_000], p=[0.3, 0.4, 0.2, 0.09, 0.01]))
        kind = int(rng.choice(6, p=[0.55, 0.28, 0.02, 0.06, 0.085, 0.005]))
        if kind == ENQUEUE:
            events.append((kind, now_ns, request))
            request += 1
        else:
            events.append((kind, now_ns, int(rng.integers(CONSUMERS))))
    return events


def made(shape: dict[str, Any], buckets: int, seed: int, *, as_arrays: bool) -> s.BatcherState:
    state = s.make_state(
        **shape,
        consumer_rank=[2, 0, 1, 3],
        consumer_batch_max=[8, 6, 8, 7],
        capacity=REQUESTS,
        out_capacity=8,
        as_arrays=as_arrays,
    )
    rng = np.random.default_rng(seed)
    for request in range(REQUESTS):
        state.request_units[request] = int(rng.integers(1, 4))
        state.request_bucket[request] = int(rng.integers(buckets))
        state.request_priority[request] = int(rng.integers(5))
        state.request_shape[request] = int(rng.integers(2))
        state.request_timeout_ns[request] = int(rng.integers(3)) * 2000
    return state


def as_lists(state: s.BatcherState) -> dict[str, list[int]]:
    return {name: [int(value) for value in field] for name, field in state._asdict().items()}


def flat(log: Sequence[int], count: int) -> list[int]:
    return [int(value) for value in log[:count]]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_jit_compiled_batcher_equals_the_interpreted_one(case: str, compiled: Callable[..., int]) -> None:
    """The same events give the same batches, refusals, due times and final state, compiled or interpreted."""
    shape, buckets = CASES[case]
    batches = 0
    for seed in range(12):
        events = random_events(np.random.default_rng(1000 + seed))
        plain, arrays = (made(shape, buckets, seed, as_arrays=flag) for flag in (False, True))
        slow_log = [0] * (REQUESTS * 20)
        fast_log = np.zeros(REQUESTS * 20, dtype=np.int64)
        written = drive(plain, events, slow_log)
        assert compiled(arrays, np.array(events, dtype=np.int64), fast_log) == written
        assert flat(fast_log, written) == flat(slow_log, written)
        assert as_lists(arrays) == as_lists(plain)
        batches += sum(outcome == s.PENDING for outcome in plain.request_outcome)
    assert batches > 0
