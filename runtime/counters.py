"""What is counted of each model for statistics and metrics. Only sums; no clock, no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.front_end import Ticket

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Reasons of failure, as Triton names them."""


@dataclass
class BatchCounters:
    """Executions of one batch size."""

    count: int = 0
    execution_ns: int = 0


@dataclass
class ModelCounters:
    """Sums since the server started; durations in ns."""

    pending: int = 0
    success: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    inferences: int = 0
    executions: int = 0
    request_ns: int = 0
    preprocess_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    batches: dict[int, BatchCounters] = field(default_factory=dict)

    def failed(self, reason: str) -> None:
        """A request got no result."""
        self.failures[reason] += 1

    def served(self, ticket: Ticket) -> None:
        """A request was answered."""
        self.success += 1
        self.inferences += ticket.units
        self.request_ns += ticket.execution_end_ns - ticket.received_ns
        self.preprocess_ns += ticket.preprocess_end_ns - ticket.preprocess_start_ns
        self.queue_ns += ticket.execution_start_ns - ticket.enqueued_ns
        self.compute_ns += ticket.execution_end_ns - ticket.execution_start_ns

    def executed(self, tickets: Sequence[Ticket]) -> None:
        """A batch was executed."""
        self.executions += 1
        size = self.batches.setdefault(tickets[0].batch_units, BatchCounters())
        size.count += 1
        size.execution_ns += tickets[0].execution_end_ns - tickets[0].execution_start_ns
