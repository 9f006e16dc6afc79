"""Plays arrivals through a batcher with fixed execution times: the smallest driver there is.

For conformance vectors and experiments; scenarios belong to the engines. No policy, no randomness.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from preba.batching import brain
from preba.batching.state import NEVER, NONE, O_CONSUMER, O_COUNT, O_FORMED_NS, O_UNITS, SERVED, BatcherState

_UP = 0
_ARRIVAL = 1
_FREE = 2


@dataclass(frozen=True)
class PlayedBatch:
    """One batch that was executed.

    Attributes
    ----------
    formed_ns, start_ns : int
        When its consumer took it and when it began to execute.
    units : int
        Its size in batch units.
    consumer : int
    requests : tuple of int
        In the order in which the batch holds them.
    """

    formed_ns: int
    start_ns: int
    units: int
    consumer: int
    requests: tuple[int, ...]


@dataclass(frozen=True)
class Played:
    """What came of every request: in a batch, or refused as (request, time, outcome)."""

    batches: tuple[PlayedBatch, ...]
    refused: tuple[tuple[int, int, int], ...]


def play(
    state: BatcherState,
    arrivals_ns: Sequence[int],
    execution_ns: int,
    *,
    consumed_ns: int | None = None,
    up_ns: int = 0,
) -> Played:
    """Plays requests 0, 1, .. through a batcher until nothing more happens.

    Parameters
    ----------
    state : BatcherState
        Fresh; the request slots (units, shape, priority, timeout) are set by the caller.
    arrivals_ns : sequence of int
        One per request, in any order.
    execution_ns : int
        Time per batch, whatever its size.
    consumed_ns : int, optional
        A consumer is free again this long after a batch starts (a TensorRT backend without CUDA graphs); by default at
        its end. Batches of one consumer execute one after the other in either case.
    up_ns : int
        When the consumers enter service.

    Returns
    -------
    Played
    """
    events = [(at_ns, _ARRIVAL, request) for request, at_ns in enumerate(arrivals_ns)]
    events += [(up_ns, _UP, consumer) for consumer in range(len(state.consumer_rank))]
    heapq.heapify(events)
    stream_free_ns = [0] * len(state.consumer_rank)
    batches: list[PlayedBatch] = []
    refused: list[tuple[int, int, int]] = []
    while True:
        due_ns = brain.due_ns(state)
        if events and events[0][0] <= due_ns:
            now_ns, kind, number = heapq.heappop(events)
            if kind == _ARRIVAL:
                outcome = brain.enqueue(state, now_ns, number)
                if outcome != SERVED:
                    refused.append((number, now_ns, outcome))
            elif state.consumer_up[number] == 0:
                brain.consumer_up(state, now_ns, number)
            else:
                brain.consumer_idle(state, now_ns, number)
        elif due_ns != NEVER:
            now_ns = due_ns
            brain.advance(state, now_ns)
        else:
            return Played(tuple(batches), tuple(refused))
        while brain.take_batch(state, now_ns) != NONE:
            consumer = state.out[O_CONSUMER]
            start_ns = max(now_ns, stream_free_ns[consumer])
            stream_free_ns[consumer] = start_ns + execution_ns
            free_ns = stream_free_ns[consumer] if consumed_ns is None else start_ns + consumed_ns
            heapq.heappush(events, (free_ns, _FREE, consumer))
            requests = tuple(int(request) for request in state.out_request[: state.out[O_COUNT]])
            batches.append(PlayedBatch(state.out[O_FORMED_NS], start_ns, state.out[O_UNITS], consumer, requests))
        request = brain.take_refused(state)
        while request != NONE:
            refused.append((request, now_ns, state.request_outcome[request]))
            request = brain.take_refused(state)
