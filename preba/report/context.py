"""What a report must know of a run beyond its records. Values only; who fills them is the caller's business."""

from __future__ import annotations

from dataclasses import dataclass

from preba.hardware import Hardware
from preba.strict import Provenance

__all__ = ["ReportContext", "StageCapacity"]


@dataclass(frozen=True)
class StageCapacity:
    """What reaches a stage and what it can serve at most.

    Attributes
    ----------
    stage : str
        Readable name of the stage.
    offered_rps : float
        Requests per second that reach it, >= 0.
    capacity_rps : float
        Requests per second it can serve at most, > 0; infinite where nothing limits it.
    """

    stage: str
    offered_rps: float
    capacity_rps: float

    def __post_init__(self) -> None:
        if not self.offered_rps >= 0 or not self.capacity_rps >= 0:
            raise ValueError(f"{self.stage}: offered_rps and capacity_rps must be >= 0")


@dataclass(frozen=True)
class ReportContext:
    """The frame of a report: names, choices, hardware and the origin of the inputs.

    Attributes
    ----------
    scenario_name : str
    description : str
    scenario_text : str
        The resolved scenario file, shown as it stands.
    seed : int or None
    warmup_requests, warmup_ns : int or None
        The scenario's own warm-up, at most one of the two; without either the default rule of
        ``preba.statistics.warmup_cut`` applies.
    slo_p99_ms : tuple of (float or None)
        Per model of the run; empty means that no model has one.
    hardware : Hardware or None
        Power and prices; without it the report has neither watts nor dollars.
    gpu_count : int
    gpcs_per_gpu : float
        GPCs that slices can use, 7 on an A100 or H100; the mean over GPUs that differ.
    accelerator_count : int
        Accelerator cards (DPUs) in the machine.
    provenance : tuple of (what, Provenance)
        Every input of the run; numbers of ``hardware`` are added by the summary.
    warnings : tuple of str
        What the run's own checks found, such as an overload.
    offered_rps : float or None
        The mean arrival rate that the scenario asks for; counted from the records when not given.
    capacities : tuple of StageCapacity
        Heaviest load first; empty where unknown or meaningless (closed loops).
    """

    scenario_name: str
    description: str = ""
    scenario_text: str = ""
    seed: int | None = None
    warmup_requests: int | None = None
    warmup_ns: int | None = None
    slo_p99_ms: tuple[float | None, ...] = ()
    hardware: Hardware | None = None
    gpu_count: int = 1
    gpcs_per_gpu: float = 7
    accelerator_count: int = 0
    provenance: tuple[tuple[str, Provenance], ...] = ()
    warnings: tuple[str, ...] = ()
    offered_rps: float | None = None
    capacities: tuple[StageCapacity, ...] = ()

    def __post_init__(self) -> None:
        if not self.scenario_name:
            raise ValueError("scenario_name: must not be empty")
        if self.warmup_requests is not None and self.warmup_ns is not None:
            raise ValueError("warmup_requests, warmup_ns: give at most one")
        for name in ("warmup_requests", "warmup_ns"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}: must be >= 0, got {value}")
        for slo in self.slo_p99_ms:
            if slo is not None and not slo > 0:
                raise ValueError(f"slo_p99_ms: must be > 0, got {slo}")
        if self.gpu_count < 0 or self.gpcs_per_gpu < 1:
            raise ValueError("gpu_count must be >= 0 and gpcs_per_gpu >= 1")
