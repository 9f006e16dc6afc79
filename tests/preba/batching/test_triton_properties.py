"""What Triton's batcher promises for any traffic and any configuration."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from preba.batching import brain
from preba.batching.replay import Played, play
from preba.batching.state import NEVER, NONE, REFUSED_QUEUE_FULL, REFUSED_TIMEOUT, BatcherState
from preba.batching.triton_config import TritonBatcher

EXECUTION_NS = 10_000_000
POLICY = st.fixed_dictionaries(
    {},
    optional={
        "timeout_action": st.sampled_from(["REJECT", "DELAY"]),
        "default_timeout_us": st.sampled_from([0, 3000, 40_000]),
        "allow_timeout_override": st.booleans(),
        "max_queue_size": st.sampled_from([0, 2, 7]),
    },
)


@st.composite
def configurations(draw: st.DrawFn) -> TritonBatcher:
    max_batch = draw(st.integers(3, 8))
    levels = draw(st.sampled_from([0, 0, 1, 3]))
    instances = draw(st.sampled_from([1, 1, 2]))
    fields: dict[str, Any] = {
        "kind": "triton",
        "max_batch_size": max_batch,
        "preferred_batch_size": draw(st.lists(st.integers(1, max_batch), max_size=3)),
        "max_queue_delay_us": draw(st.sampled_from([0, 0, 1, 2000, 15_000])),
        "priority_levels": levels,
        "default_priority_level": min(levels, 2),
        "default_queue_policy": draw(POLICY),
        "enforce_equal_shape": draw(st.booleans()),
        "instances_per_slice": instances,
        "quirks": {
            "counter_drift": draw(st.booleans()),
            "batcher_first_permille": draw(st.sampled_from([0, 300, 1000])),
            "batcher_wakeup_us": draw(st.sampled_from([0, 0, 400, 3000])),
            "batcher_wakeup_varies": draw(st.booleans()),
            "batcher_first_seed": draw(st.integers(0, 5)),
            "batcher_first_late_us": draw(st.sampled_from([0, 0, 900])),
        },
        "server_version": draw(st.sampled_from(["23.04", "2.51", "source-2026-06"])),
    }
    if levels > 1:
        fields["priority_queue_policy"] = {"3": draw(POLICY)}
    if draw(st.booleans()):
        needs = [{"name": "memory", "count": draw(st.integers(0, 2)), "global": True}]
        fields["rate_limiter"] = {"mode": "execution_count", "groups": [{"count": instances, "resources": needs}]}
    return TritonBatcher.model_validate_json(json.dumps(fields))


@st.composite
def traffics(draw: st.DrawFn) -> list[tuple[int, int, int, int, int]]:
    """Requests as (arrival ns, units, priority, shape, own timeout ns), by arrival."""
    count = draw(st.integers(1, 40))
    request = st.tuples(
        st.integers(0, 60).map(lambda step: step * 1_000_000),
        st.integers(1, 3),
        st.integers(0, 4),
        st.integers(0, 1),
        st.sampled_from([0, 2_000_000]),
    )
    return sorted(draw(st.lists(request, min_size=count, max_size=count)), key=lambda row: row[0])


def prepared(config: TritonBatcher, traffic: list[tuple[int, int, int, int, int]], devices: int) -> BatcherState:
    consumers = devices * config.instances_per_slice
    state = config.to_settings().make_state(consumers=consumers, capacity=len(traffic))
    for request, (_, units, priority, shape, timeout_ns) in enumerate(traffic):
        state.request_units[request] = units
        state.request_priority[request] = priority
        state.request_shape[request] = shape
        state.request_timeout_ns[request] = timeout_ns
    return state


def served_and_refused(played: Played) -> list[int]:
    return sorted([r for batch in played.batches for r in batch.requests] + [r for r, _, _ in played.refused])


@settings(max_examples=250, deadline=None)
@given(configurations(), traffics(), st.integers(1, 2))
def test_triton_serves_or_refuses_every_request_exactly_once(
    config: TritonBatcher, traffic: list[tuple[int, int, int, int, int]], devices: int
) -> None:
    """Nothing is lost, served twice or left waiting for ever, whatever the configuration and its faults."""
    state = prepared(config, traffic, devices)
    played = play(state, [row[0] for row in traffic], EXECUTION_NS)
    assert served_and_refused(played) == list(range(len(traffic)))
    assert brain.due_ns(state) == NEVER
    assert brain.take_waiting(state) == NONE


@settings(max_examples=150, deadline=None)
@given(configurations(), traffics(), st.integers(1, 2))
def test_triton_batches_keep_to_size_shape_and_level_order(
    config: TritonBatcher, traffic: list[tuple[int, int, int, int, int]], devices: int
) -> None:
    """No batch exceeds max_batch_size or mixes enforced shapes, and a level's requests leave in order of arrival.

    Only the rate limiter may start payloads out of order: it serves the least used instance first.
    """
    state = prepared(config, traffic, devices)
    played = play(state, [row[0] for row in traffic], EXECUTION_NS)
    policies = config.level_policies()
    left: dict[int, list[int]] = {}
    for batch in played.batches:
        assert batch.units == sum(traffic[request][1] for request in batch.requests) <= config.batch_max
        if config.enforce_equal_shape:
            assert len({traffic[request][3] for request in batch.requests}) == 1
        for request in batch.requests:
            priority = traffic[request][2]
            level = priority if 1 <= priority <= config.priority_levels else config.default_priority_level
            left.setdefault(level, []).append(request)
    if config.rate_limiter.mode != "off":
        return
    for level, requests in left.items():
        policy = policies[max(0, level - 1)]
        if policy.timeout_action == "REJECT" or policy.default_timeout_us == 0:
            assert requests == sorted(requests)


@settings(max_examples=150, deadline=None)
@given(configurations(), traffics())
def test_triton_refuses_only_for_a_reason(config: TritonBatcher, traffic: list[tuple[int, int, int, int, int]]) -> None:
    """A request is refused on arrival only where a level is bounded, and later only after its own deadline."""
    played = play(prepared(config, traffic, 1), [row[0] for row in traffic], EXECUTION_NS)
    policies = config.level_policies()
    for request, at_ns, outcome in played.refused:
        priority = traffic[request][2]
        level = priority if 1 <= priority <= config.priority_levels else config.default_priority_level
        policy = policies[max(0, level - 1)]
        if outcome == REFUSED_QUEUE_FULL:
            assert policy.max_queue_size > 0
            assert at_ns == traffic[request][0]
        else:
            assert outcome == REFUSED_TIMEOUT
            assert policy.timeout_action == "REJECT"
            own_ns = traffic[request][4] if policy.allow_timeout_override else 0
            timeout_ns = policy.default_timeout_us * 1000
            assert at_ns > traffic[request][0] + (own_ns if 0 < own_ns < timeout_ns else timeout_ns)


@settings(max_examples=100, deadline=None)
@given(configurations(), traffics(), st.data())
def test_triton_loses_nothing_when_instances_come_and_go(
    config: TritonBatcher, traffic: list[tuple[int, int, int, int, int]], data: st.DataObject
) -> None:
    """Instances may leave and return at any time: what they had not started is served or refused in the end."""
    state = prepared(config, traffic, 2)
    consumers = len(state.consumer_rank)
    seen: list[int] = []
    busy: dict[int, bool] = {}

    def settle(now_ns: int) -> None:
        consumer = brain.take_batch(state, now_ns)
        while consumer != NONE:
            busy[consumer] = True
            seen.extend(state.out_request[: state.out[1]])
            consumer = brain.take_batch(state, now_ns)
        request = brain.take_refused(state)
        while request != NONE:
            seen.append(request)
            request = brain.take_refused(state)

    now_ns = 0
    for request, row in enumerate(traffic):
        now_ns = max(now_ns, row[0])
        if brain.due_ns(state) <= now_ns:
            brain.advance(state, now_ns)
            settle(now_ns)
        if brain.enqueue(state, now_ns, request) == REFUSED_QUEUE_FULL:
            seen.append(request)
        settle(now_ns)
        consumer = data.draw(st.integers(0, consumers - 1))
        event = data.draw(st.sampled_from([brain.consumer_up, brain.consumer_lost, brain.consumer_idle]))
        event(state, now_ns, consumer)
        settle(now_ns)
    for _ in range(40 * len(traffic)):
        now_ns += EXECUTION_NS
        for consumer in range(consumers):
            brain.consumer_up(state, now_ns, consumer)
            settle(now_ns)
            brain.consumer_idle(state, now_ns, consumer)
            settle(now_ns)
        if brain.due_ns(state) <= now_ns:
            brain.advance(state, now_ns)
            settle(now_ns)
        if len(seen) == len(traffic):
            break
    assert sorted(seen) == list(range(len(traffic)))
