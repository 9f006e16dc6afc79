"""The batcher's whole memory: one NamedTuple of integer sequences, and how to make an empty one.

Nothing here knows a clock or a policy. The sequences are NumPy int64 arrays where the compiled engine or a live
server drives the batcher, and plain lists where Python interprets it (scalar access to a list is three times
faster); the policy code only ever indexes them, so it cannot tell.

A *request* is a slot number ``0 .. capacity-1`` chosen by the driver: the trace index in a simulation, a recycled
slot in a live server. A *payload* (a batch being formed or waiting) is named by the slot of its first request. A
*consumer* is what executes batches: a slice, or one backend thread of it.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import NamedTuple, cast

import numpy as np

from preba.units import NEVER_NS

Ints = MutableSequence[int]

NONE = -1
"""No request, no payload, no consumer."""

NEVER = NEVER_NS
"""A due time that never comes."""

# Policy kinds (S_KIND). One code path may serve several names a user writes.
KIND_LATE = 0  # none, fixed (at dispatch), greedy: the batch is formed when a consumer takes it
KIND_BUCKET = 1  # preba, fixed (when due): the batch is formed when it is full or due, then waits
KIND_TRITON = 2
KIND_PLUGIN = 3  # a policy from a user's file, see plugin.py

# Outcomes of a request, shared with the record schema.
SERVED = 0
REFUSED_QUEUE_FULL = 1
REFUSED_TIMEOUT = 2
FAILED_SLICE_LOST = 3
PENDING = 4

# Read-only settings: indices into ``BatcherState.setting``.
S_KIND = 0
S_BATCH_MAX = 1  # batch units
S_DELAY_NS = 2
S_QUEUE_MAX = 3  # waiting requests, 0 = unbounded
S_CONSUMER_CHOICE = 4  # CHOICE_*
S_MERGE_REACH = 5  # buckets, preba
S_MERGE_ORDER = 6  # MERGE_*
S_TIMER = 7  # TIMER_*
S_EMIT_WHEN_IDLE = 8  # 0 or 1
S_DUE_BATCH = 9  # DUE_*
S_POLICY_FIRST = 10  # settings from here on belong to one policy (Triton's: see triton_layout.py)
S_RESOURCES = 10  # Triton's rate limiter: kinds of resources
S_PLUGIN_NUMBER = 11  # which of a run's plug-ins
S_PLUGIN_FIRST = 16  # a plug-in's own settings
SETTING_COUNT = 48

CHOICE_RANK = 0  # the idle consumer of lowest rank
CHOICE_LONGEST_IDLE = 1
MERGE_SHORTER_FIRST = 0
MERGE_LONGER_FIRST = 1
TIMER_OLDEST_REQUEST = 0
TIMER_LAST_EMISSION = 1
DUE_STAYS_OPEN = 0
DUE_FROZEN = 1
DUE_FROZEN_PER_CONSUMER = 2

# Mutable scalars: indices into ``BatcherState.scalar``.
V_WAITING = 0  # requests in queues
V_WAITING_UNITS = 1
V_IDLE = 2  # idle consumers
V_FORMED = 3  # payloads formed and waiting for a consumer
V_REFUSED_HEAD = 4
V_REFUSED_TAIL = 5
V_CONSUMERS_UP = 6
V_LEAST_LIMIT = 7  # units: the smallest batch limit of the batcher and all its consumers; does not change
V_POLICY_FIRST = 8  # scalars from here on belong to one policy (Triton's: see triton_layout.py)
V_CURRENT = 8  # Triton: payload that may still grow, NONE while it is empty
V_DEFERRED_HEAD = 9  # Triton's rate limiter: payloads without an instance
V_DEFERRED_TAIL = 10
V_DUE_NS = 11  # Triton: end of the batcher's sleep when not blocked
V_PLUGIN_FIRST = 16  # a plug-in's own memory, 0 at first
SCALAR_COUNT = 48

# What `take_batch` hands out: indices into ``BatcherState.out``.
O_CONSUMER = 0
O_COUNT = 1  # requests
O_UNITS = 2  # batch units
O_FORMED_NS = 3  # when the last request that could join had joined
OUT_COUNT = 4


class BatcherState(NamedTuple):
    """Everything a batcher remembers; every field is a sequence of int64 indexed as its prefix says."""

    setting: Ints
    scalar: Ints
    preferred: Ints
    """Preferred batch sizes, ascending (Triton)."""
    bucket_batch_max: Ints
    bucket_delay_ns: Ints
    bucket_emitted_ns: Ints
    consumer_up: Ints
    consumer_idle: Ints
    consumer_idle_since_ns: Ints
    consumer_rank: Ints
    consumer_batch_max: Ints
    consumer_load: Ints
    """Payloads assigned and not yet finished (per-consumer formed queues); Triton: batches executed so far."""
    queue_head: Ints
    queue_tail: Ints
    queue_count: Ints
    queue_units: Ints
    formed_head: Ints
    """Payloads waiting: list 0 is for any consumer, list 1 + c for consumer c."""
    formed_tail: Ints
    request_units: Ints
    request_bucket: Ints
    request_priority: Ints
    request_shape: Ints
    request_timeout_ns: Ints
    request_next: Ints
    request_enqueued_ns: Ints
    request_deadline_ns: Ints
    request_outcome: Ints
    payload_tail: Ints
    payload_count: Ints
    payload_units: Ints
    payload_formed_ns: Ints
    payload_oldest_ns: Ints
    payload_flag: Ints
    payload_next: Ints
    out: Ints
    out_request: Ints
    policy: Ints
    """Read-only table of one policy (Triton: queue policies and rate limits, laid out in triton_layout.py)."""
    consumer_asking: Ints
    """Triton: 1 while a consumer's request for a payload is counted."""
    consumer_stage: Ints
    """Triton's rate limiter: where an instance is between available and allocated."""
    consumer_staged: Ints
    """Triton's rate limiter: the payload an instance was staged with."""
    resource_used: Ints
    """Triton's rate limiter: units taken, one row of ``S_RESOURCES`` per device."""


def make_state(
    *,
    setting: Sequence[int],
    preferred: Sequence[int],
    bucket_batch_max: Sequence[int],
    bucket_delay_ns: Sequence[int],
    consumer_rank: Sequence[int],
    consumer_batch_max: Sequence[int],
    queue_count: int,
    capacity: int,
    out_capacity: int,
    policy: Sequence[int] = (0, 0, 0, 0),
    as_arrays: bool = False,
) -> BatcherState:
    """Makes an empty batcher: no request waits and every consumer is down until the driver says otherwise.

    Parameters
    ----------
    setting : sequence of int
        At most ``SETTING_COUNT`` values, indexed by ``S_*``.
    preferred : sequence of int
        Preferred batch sizes in batch units, ascending; may be empty.
    bucket_batch_max, bucket_delay_ns : sequence of int
        Per length bucket: largest batch (units) and longest wait (ns).
    consumer_rank : sequence of int
        Preference among idle consumers, lowest first.
    consumer_batch_max : sequence of int
        Largest batch each consumer accepts, in units.
    queue_count : int
        How many request queues the policy needs.
    capacity : int
        Request slots.
    out_capacity : int
        Largest number of requests in one batch.
    policy : sequence of int
        Table of one policy; the default is Triton's for a single queue without any queue policy.
    as_arrays : bool
        NumPy int64 arrays (for compiled and live drivers) instead of lists.

    Returns
    -------
    BatcherState
    """
    consumers = len(consumer_rank)

    def full(count: int, value: int = 0) -> Ints:
        if as_arrays:
            return cast("Ints", np.full(count, value, dtype=np.int64))
        return [value] * count

    def filled(values: Sequence[int], count: int) -> Ints:
        padded = [int(v) for v in values] + [0] * (count - len(values))
        return cast("Ints", np.array(padded, dtype=np.int64)) if as_arrays else padded

    scalar = full(SCALAR_COUNT)
    scalar[V_REFUSED_HEAD] = NONE
    scalar[V_REFUSED_TAIL] = NONE
    scalar[V_CURRENT] = NONE
    scalar[V_DEFERRED_HEAD] = NONE
    scalar[V_DEFERRED_TAIL] = NONE
    scalar[V_DUE_NS] = NEVER
    scalar[V_LEAST_LIMIT] = min([setting[S_BATCH_MAX], *consumer_batch_max])
    return BatcherState(
        setting=filled(setting, SETTING_COUNT),
        scalar=scalar,
        preferred=filled(preferred, len(preferred)),
        bucket_batch_max=filled(bucket_batch_max, len(bucket_batch_max)),
        bucket_delay_ns=filled(bucket_delay_ns, len(bucket_delay_ns)),
        bucket_emitted_ns=full(len(bucket_batch_max)),
        consumer_up=full(consumers),
        consumer_idle=full(consumers),
        consumer_idle_since_ns=full(consumers),
        consumer_rank=filled(consumer_rank, consumers),
        consumer_batch_max=filled(consumer_batch_max, consumers),
        consumer_load=full(consumers),
        queue_head=full(queue_count, NONE),
        queue_tail=full(queue_count, NONE),
        queue_count=full(queue_count),
        queue_units=full(queue_count),
        formed_head=full(1 + consumers, NONE),
        formed_tail=full(1 + consumers, NONE),
        request_units=full(capacity, 1),
        request_bucket=full(capacity),
        request_priority=full(capacity),
        request_shape=full(capacity),
        request_timeout_ns=full(capacity),
        request_next=full(capacity, NONE),
        request_enqueued_ns=full(capacity),
        request_deadline_ns=full(capacity),
        request_outcome=full(capacity, PENDING),
        payload_tail=full(capacity, NONE),
        payload_count=full(capacity),
        payload_units=full(capacity),
        payload_formed_ns=full(capacity),
        payload_oldest_ns=full(capacity),
        payload_flag=full(capacity),
        payload_next=full(capacity, NONE),
        out=full(OUT_COUNT),
        out_request=full(out_capacity, NONE),
        policy=filled(policy, len(policy)),
        consumer_asking=full(consumers),
        consumer_stage=full(consumers),
        consumer_staged=full(consumers, NONE),
        resource_used=full((setting[S_RESOURCES] if len(setting) > S_RESOURCES else 0) * consumers),
    )
