"""The runs that a calibration reads, and what follows from them at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from preba.arrival_kinds import ClosedLoopArrivals
from preba.batching.triton_config import TritonBatcher
from preba.cli.rehearsing import batch_limit
from preba.profile import LatencyProfile
from preba.records import Records
from preba.scenario.resolve import ResolvedScenario
from runtime.load.run import Played
from runtime.placement import is_native

__all__ = ["Seen"]


@dataclass(frozen=True)
class Seen:
    """The runs that a calibration reads, with profiles as long as executions take under the load.

    Attributes
    ----------
    resolved : ResolvedScenario
    profiles : tuple of LatencyProfile
    idle, rehearsed : Played
    busy : tuple of Played
    """

    resolved: ResolvedScenario
    profiles: tuple[LatencyProfile, ...]
    idle: Played
    rehearsed: Played
    busy: tuple[Played, ...]

    @cached_property
    def records(self) -> Records:
        """Of the rehearsal, served."""
        return self.rehearsed.result.records.select(self.rehearsed.result.records.served)

    @cached_property
    def alone(self) -> Records:
        """Of requests one at a time, served."""
        return self.idle.result.records.select(self.idle.result.records.served)

    @cached_property
    def native(self) -> bool:
        """Whether Triton batches for itself."""
        return is_native(self.resolved)

    @cached_property
    def closed(self) -> bool:
        """Whether clients wait for their answers."""
        return isinstance(self.resolved.scenario.models[0].arrivals, ClosedLoopArrivals)

    @cached_property
    def open(self) -> bool:
        """Whether no model's clients wait for their answers: when requests are due is known before."""
        return not any(isinstance(model.arrivals, ClosedLoopArrivals) for model in self.resolved.scenario.models)

    @cached_property
    def limit(self) -> int:
        """Largest batch."""
        return max(batch_limit(self.resolved, model) for model in self.resolved.models)

    @cached_property
    def triton(self) -> TritonBatcher | None:
        """Triton's dynamic batcher, where it is at work."""
        batcher = self.resolved.models[0].config.batcher
        return batcher if self.native and isinstance(batcher, TritonBatcher) and batcher.dynamic_batching else None
