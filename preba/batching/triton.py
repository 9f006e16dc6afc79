"""Triton's dynamic batcher (being built: this version takes all that waits when a consumer is idle)."""

from __future__ import annotations

from preba.batching.late import late_due_ns, late_enqueue, late_take_batch
from preba.batching.queues import queue_pop
from preba.batching.state import NONE, BatcherState


def triton_enqueue(state: BatcherState, now_ns: int, request: int) -> int:
    """Takes a request in or returns why not."""
    return late_enqueue(state, now_ns, request)


def triton_consumer_idle(state: BatcherState, now_ns: int, consumer: int) -> None:
    """A backend thread asks for its next payload."""


def triton_consumer_lost(state: BatcherState, now_ns: int, consumer: int) -> None:
    """An instance leaves service."""


def triton_advance(state: BatcherState, now_ns: int) -> None:
    """Lets time pass."""


def triton_take_batch(state: BatcherState, now_ns: int) -> int:
    """Hands out the next batch or ``NONE``."""
    return late_take_batch(state, now_ns)


def triton_due_ns(state: BatcherState) -> int:
    """When to look again."""
    return late_due_ns(state)


def triton_take_waiting(state: BatcherState) -> int:
    """Gives back one waiting request or ``NONE``."""
    for queue in range(len(state.queue_head)):
        if state.queue_head[queue] != NONE:
            return queue_pop(state, queue)
    return NONE
