"""What a report must know of a simulation beyond its records, gathered from the scenario. No numbers of its own."""

from __future__ import annotations

from typing import Protocol

from preba.preprocessing import accelerator_count
from preba.report.context import ReportContext, StageCapacity
from preba.scenario.dump import scenario_yaml
from preba.scenario.resolve import ResolvedScenario
from preba.strict import Provenance
from preba.units import ns_from_s
from sim.capacity import StageLoad


class Framed(Protocol):
    """What of a simulation, streamed or not, belongs to its report's frame."""

    @property
    def loads(self) -> tuple[StageLoad, ...]:
        """Offered load against capacity per stage."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to beware of."""
        ...

    @property
    def provenance(self) -> tuple[tuple[str, Provenance], ...]:
        """Of the preprocessing stations' numbers."""
        ...


def report_context(resolved: ResolvedScenario, simulation: Framed, *, text: bool = True) -> ReportContext:
    """Gathers the frame of a report.

    Parameters
    ----------
    resolved : ResolvedScenario
    simulation : Simulation or StreamedSimulation
    text : bool
        Whether to write the resolved scenario out, which takes longer than simulating a few thousand requests and
        which only pages show.

    Returns
    -------
    ReportContext
    """
    scenario = resolved.scenario
    run = scenario.run
    modalities = [model.profile.modality for model in resolved.models]
    return ReportContext(
        scenario_name=scenario.name,
        description=scenario.description,
        scenario_text=scenario_yaml(scenario) if text else "",
        seed=scenario.seed,
        warmup_requests=run.warmup_requests,
        warmup_ns=None if run.warmup_s is None else ns_from_s(run.warmup_s),
        slo_p99_ms=tuple(model.slo_p99_ms for model in scenario.models),
        hardware=resolved.hardware,
        gpu_count=len(resolved.gpu_devices),
        gpcs_per_gpu=sum(device.compute_slices for device in resolved.gpu_devices) / len(resolved.gpu_devices),
        accelerator_count=accelerator_count(scenario.preprocessing, modalities),
        provenance=(*resolved.provenance(), *simulation.provenance),
        warnings=simulation.warnings,
        capacities=tuple(StageCapacity(s.stage, s.offered_rps, s.capacity_rps) for s in simulation.loads),
    )
