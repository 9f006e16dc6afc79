"""What the machine draws and costs, each number with its provenance. Formulas are in preba.economics."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from preba.data import config_folder
from preba.errors import ScenarioError
from preba.figures import Count, Figure, PositiveFigure, figures_of, replace_figures
from preba.strict import Provenance, StrictModel
from preba.strictfile import find_config, modified_ns, read_yaml, validate

__all__ = ["Hardware", "HardwareConfig", "hardware_provenance", "load_hardware", "resolve_hardware"]


class PowerRange(StrictModel):
    """Draw of one component: ``idle_w`` at rest, ``max_w`` fully used, in between in proportion to its use."""

    idle_w: Figure
    max_w: Figure

    @model_validator(mode="after")
    def _ordered(self) -> PowerRange:
        if self.max_w.value < self.idle_w.value:
            raise ValueError(f"max_w: must be >= idle_w = {self.idle_w.value:g}, got {self.max_w.value:g}")
        return self


class Host(PowerRange):
    """The server without GPUs and accelerators.

    ``software_cores``: cores that the serving software itself keeps busy, whatever the preprocessing.
    """

    cores: Count
    software_cores: Figure


class GpuPower(PowerRange):
    """One GPU. ``slice_share`` says how a busy slice adds to its dynamic power: by its share of the GPCs."""

    slice_share: Literal["gpcs"] = "gpcs"


class Prices(StrictModel):
    """One-off prices: one server node, each GPU, each accelerator card."""

    server: Figure
    gpu: Figure
    accelerator: Figure


class Hardware(StrictModel):
    """A server: its power, its prices, and what electricity costs over how many years."""

    name: str = Field(min_length=1)
    description: str = ""
    gpu_device: str | None = None
    """Which device of the catalogue its GPU figures are for."""
    host: Host
    gpu: GpuPower
    accelerator: PowerRange
    prices_usd: Prices
    electricity_usd_per_kwh: Figure
    years: PositiveFigure


class PowerOverride(StrictModel):
    """Numbers that replace those of the hardware file."""

    idle_w: NonNegativeFloat | None = None
    max_w: NonNegativeFloat | None = None


class HostOverride(PowerOverride):
    """Numbers that replace those of the hardware file."""

    cores: PositiveInt | None = None
    software_cores: NonNegativeFloat | None = None


class PricesOverride(StrictModel):
    """Prices that replace those of the hardware file."""

    server: NonNegativeFloat | None = None
    gpu: NonNegativeFloat | None = None
    accelerator: NonNegativeFloat | None = None


class HardwareConfig(StrictModel):
    """The ``hardware`` section of a scenario: a file of configs/hardware, and numbers that replace its own.

    ``--set hardware.prices_usd.gpu=9000`` is such a number. ``hardware: NAME`` is short for ``use: NAME``.
    """

    use: Annotated[str, Field(min_length=1)] | Hardware = "preba-testbed"
    """A name in configs/hardware, a path, or the hardware itself."""
    host: HostOverride = HostOverride()
    gpu: PowerOverride = PowerOverride()
    accelerator: PowerOverride = PowerOverride()
    prices_usd: PricesOverride = PricesOverride()
    electricity_usd_per_kwh: NonNegativeFloat | None = None
    years: PositiveFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: object) -> object:
        return {"use": data} if isinstance(data, str) else data


def load_hardware(name_or_path: str, *, folder: Path | None = None) -> Hardware:
    """Reads a hardware file.

    Parameters
    ----------
    name_or_path : str
        A name in configs/hardware, or a path.
    folder : Path, optional
        Where relative paths are looked for first (the scenario's own folder).

    Raises
    ------
    MissingFileError
        There is no such file.
    FormatError
        It is not a hardware file, or a number lacks its provenance.
    """
    path = find_config(name_or_path, config_folder() / "hardware", what="hardware", beside=folder)
    return _parsed(path, modified_ns(path))


@functools.lru_cache(maxsize=64)  # sweeps read the same file thousands of times
def _parsed(path: Path, _modified_ns: int) -> Hardware:
    data, lines = read_yaml(path)
    return validate(Hardware, data, origin=str(path), lines=lines)


def resolve_hardware(config: HardwareConfig, *, folder: Path | None = None) -> Hardware:
    """The hardware a scenario means: its file, with the scenario's own numbers in it.

    Raises
    ------
    MissingFileError, FormatError
        See `load_hardware`.
    ScenarioError
        A component would draw less when used than idle.
    """
    base = config.use if isinstance(config.use, Hardware) else load_hardware(config.use, folder=folder)
    changed: dict[str, Any] = {}
    for name in ("host", "gpu", "accelerator", "prices_usd"):
        override: StrictModel = getattr(config, name)
        changes = {field: getattr(override, field) for field in type(override).model_fields}
        changed[name] = replace_figures(getattr(base, name), changes)
    for name in ("host", "gpu", "accelerator"):
        part: PowerRange = changed[name]
        if part.max_w.value < part.idle_w.value:
            raise ScenarioError(
                f"scenario.hardware.{name}.max_w: must be >= idle_w = {part.idle_w.value:g} W, "
                f"got {part.max_w.value:g} W"
            )
    base = base.model_copy(update=changed)
    return replace_figures(base, {"electricity_usd_per_kwh": config.electricity_usd_per_kwh, "years": config.years})


def hardware_provenance(hardware: Hardware) -> tuple[tuple[str, Provenance], ...]:
    """Every number of a hardware value with its provenance."""
    return tuple(figures_of(hardware, f"hardware {hardware.name}"))
