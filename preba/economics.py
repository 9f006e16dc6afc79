"""Watts, joules per request and requests per dollar, from utilisations: pure functions, no data of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preba.hardware import Hardware, hardware_provenance
from preba.records import SliceFacts, StationFacts
from preba.strict import Provenance

__all__ = [
    "HOURS_PER_YEAR",
    "CostEfficiency",
    "Power",
    "SliceLoad",
    "cost_efficiency",
    "energy_per_request_j",
    "power",
    "power_of_run",
]

HOURS_PER_YEAR = 365 * 24
SECONDS_PER_HOUR = 3600
W_PER_KW = 1000


@dataclass(frozen=True)
class SliceLoad:
    """One slice's share in its GPU's dynamic power: how many GPCs, busy for which fraction of the time."""

    gpcs: int
    busy_fraction: float


@dataclass(frozen=True)
class Power:
    """Average electrical power of a server, by component, and the utilisations it follows from.

    Attributes
    ----------
    cpu_w : float
        The host: everything but GPUs and accelerators.
    gpu_w : float
        All GPUs.
    accelerator_w : float
        All accelerator cards; 0 without any.
    cpu_utilization, gpu_utilization, accelerator_utilization : float
        0..1.
    provenance : tuple of (what, Provenance)
    """

    cpu_w: float
    gpu_w: float
    accelerator_w: float
    cpu_utilization: float
    gpu_utilization: float
    accelerator_utilization: float
    provenance: tuple[tuple[str, Provenance], ...]

    @property
    def total_w(self) -> float:
        """The whole system."""
        return self.cpu_w + self.gpu_w + self.accelerator_w


@dataclass(frozen=True)
class CostEfficiency:
    """What a dollar buys over the machine's life.

    Attributes
    ----------
    requests_per_usd : float
        Requests served per dollar of CAPEX + OPEX.
    requests : float
        Requests served in all that time.
    capex_usd, opex_usd : float
        The machine, and its electricity.
    capex_parts_usd : tuple of (name, float)
        server, gpu, accelerator.
    hours : float
    provenance : tuple of (what, Provenance)
    """

    requests_per_usd: float
    requests: float
    capex_usd: float
    opex_usd: float
    capex_parts_usd: tuple[tuple[str, float], ...]
    hours: float
    provenance: tuple[tuple[str, Provenance], ...]


def power(
    hardware: Hardware,
    *,
    busy_cores: float,
    slices: Sequence[SliceLoad],
    gpu_count: int,
    gpcs_per_gpu: float,
    accelerators: Sequence[float] = (),
) -> Power:
    """Average power: each component draws ``idle + (max - idle) * utilisation``.

    Parameters
    ----------
    hardware : Hardware
    busy_cores : float
        Cores that preprocessing really uses on average: cores x busy share x usable fraction.
    slices : sequence of SliceLoad
        All slices, those given to DALI included; a GPU's utilisation is their busy GPCs over all GPCs.
    gpu_count : int
    gpcs_per_gpu : float
        GPCs that slices can use, 7 on an A100 or H100; the mean over GPUs that differ.
    accelerators : sequence of float
        One busy share of its units, 0..1, per card in the machine; empty when preprocessing needs none.

    Returns
    -------
    Power

    Raises
    ------
    ValueError
        A count or a share makes no sense.
    """
    if gpu_count < 0 or gpcs_per_gpu < 1:
        raise ValueError("gpu_count must be >= 0 and gpcs_per_gpu >= 1")
    shares = [unit.busy_fraction for unit in slices]
    if busy_cores < 0 or not all(_is_share(share) for share in [*shares, *accelerators]):
        raise ValueError("busy_cores must be >= 0 and busy shares within 0..1")
    cores = hardware.host.cores.value
    cpu = min(1.0, (busy_cores + hardware.host.software_cores.value) / cores)
    busy_gpcs = sum(unit.gpcs * unit.busy_fraction for unit in slices)
    gpu = min(1.0, busy_gpcs / (gpu_count * gpcs_per_gpu)) if gpu_count else 0.0
    accelerator = sum(accelerators) / len(accelerators) if accelerators else 0.0
    host_w = hardware.host.idle_w.value, hardware.host.max_w.value
    gpu_w = hardware.gpu.idle_w.value, hardware.gpu.max_w.value
    card_w = hardware.accelerator.idle_w.value, hardware.accelerator.max_w.value
    return Power(
        cpu_w=_drawn_w(*host_w, cpu),
        gpu_w=gpu_count * _drawn_w(*gpu_w, gpu),
        accelerator_w=len(accelerators) * _drawn_w(*card_w, accelerator),
        cpu_utilization=cpu,
        gpu_utilization=gpu,
        accelerator_utilization=accelerator,
        provenance=_parts(hardware, accelerator=bool(accelerators), prices=False),
    )


def _is_share(value: float) -> bool:
    # Busy shares are quotients of sums; a last bit above one is not an error.
    return -1e-9 <= value <= 1.0 + 1e-9


def _drawn_w(idle_w: float, max_w: float, utilization: float) -> float:
    return idle_w + (max_w - idle_w) * utilization


def power_of_run(
    hardware: Hardware,
    *,
    stations: Sequence[tuple[StationFacts, float]],
    slices: Sequence[tuple[SliceFacts, float]],
    gpcs_per_gpu: float,
    accelerator_count: int = 0,
) -> Power:
    """Average power of a run, from the busy share of each of its stations' units and slices.

    Parameters
    ----------
    hardware : Hardware
    stations : sequence of (StationFacts, float)
        Each with the mean share of time that its units are taken, 0..1.
    slices : sequence of (SliceFacts, float)
        Each with the share of time that it executes or preprocesses, 0..1. A slice given to DALI may have its
        busy share here or as a ``dali`` station; the larger of the two counts.
    gpcs_per_gpu : float
    accelerator_count : int
        Cards in the machine; each is as busy as the DPU stations' units are on average.

    Returns
    -------
    Power
    """
    busy_cores = sum(s.units * busy * s.usable_fraction for s, busy in stations if s.kind == "cpu")
    dpu_units = sum(s.units for s, _ in stations if s.kind == "dpu")
    dpu_busy = sum(s.units * busy for s, busy in stations if s.kind == "dpu") / max(dpu_units, 1)
    dali = max((busy for s, busy in stations if s.kind == "dali"), default=0.0)
    loads = [SliceLoad(unit.gpcs, max(busy, dali) if unit.role == "preprocessing" else busy) for unit, busy in slices]
    return power(
        hardware,
        busy_cores=busy_cores,
        slices=loads,
        gpu_count=len({unit.gpu_index for unit, _ in slices}),
        gpcs_per_gpu=gpcs_per_gpu,
        accelerators=(dpu_busy,) * accelerator_count,
    )


def energy_per_request_j(power_w: float, throughput_rps: float) -> float | None:
    """Joules per served request: power over throughput; None when nothing is served."""
    return power_w / throughput_rps if throughput_rps > 0 else None


def cost_efficiency(
    hardware: Hardware,
    *,
    throughput_rps: float,
    power_w: float,
    gpu_count: int,
    accelerator_count: int = 0,
) -> CostEfficiency:
    """Requests per dollar over the machine's life: ``throughput * time / (CAPEX + OPEX)``.

    CAPEX is one server, the GPUs and the accelerators there are; OPEX is ``power * time * electricity price``.
    Three years are 26,280 hours, so at 0.139 USD/kWh each watt costs 3.653 USD.

    Parameters
    ----------
    hardware : Hardware
    throughput_rps : float
        Requests served per second, sustained.
    power_w : float
        Average power of the system.
    gpu_count, accelerator_count : int

    Returns
    -------
    CostEfficiency

    Source
    ------
    PREBA, arXiv 2411.19114, section 6.3, which takes the metric from E3 (USENIX ATC 2019).
    """
    if throughput_rps < 0 or power_w < 0 or gpu_count < 0 or accelerator_count < 0:
        raise ValueError("throughput_rps, power_w and counts must be >= 0")
    hours = hardware.years.value * HOURS_PER_YEAR
    parts = (
        ("server", hardware.prices_usd.server.value),
        ("gpu", gpu_count * hardware.prices_usd.gpu.value),
        ("accelerator", accelerator_count * hardware.prices_usd.accelerator.value),
    )
    capex_usd = sum(value for _, value in parts)
    opex_usd = power_w / W_PER_KW * hours * hardware.electricity_usd_per_kwh.value
    requests = throughput_rps * hours * SECONDS_PER_HOUR
    total_usd = capex_usd + opex_usd
    return CostEfficiency(
        requests_per_usd=requests / total_usd if total_usd > 0 else 0.0,
        requests=requests,
        capex_usd=capex_usd,
        opex_usd=opex_usd,
        capex_parts_usd=parts,
        hours=hours,
        provenance=_parts(hardware, accelerator=accelerator_count > 0, prices=True),
    )


def _parts(hardware: Hardware, *, accelerator: bool, prices: bool) -> tuple[tuple[str, Provenance], ...]:
    """The provenance of the numbers that were used, and only of those."""
    used: list[tuple[str, Provenance]] = []
    for what, provenance in hardware_provenance(hardware):
        is_money = ".prices_usd." in what or ".electricity" in what or ".years" in what
        if is_money == prices and (accelerator or ".accelerator" not in what):
            used.append((what, provenance))
    return tuple(used)
