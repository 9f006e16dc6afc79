"""What a scenario means: devices, slices, profiles and who serves what, looked up and checked. No engine here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from preba.arrivals import ReplayArrivals
from preba.batchers import PluginBatching
from preba.batching.triton_config import BATCHER_FIRST_PROVENANCE, TritonBatcher
from preba.errors import MissingFileError, ScenarioError
from preba.hardware import Hardware, HardwareConfig, resolve_hardware
from preba.mig.catalogue import Device, load_device
from preba.mig.placement import resolve_partition
from preba.preprocessing import DaliSlicePreprocessing, inline_costs
from preba.profile import LatencyProfile, load_profile
from preba.records import SliceFacts
from preba.scenario.schema import Model, Scenario
from preba.sizes import EmpiricalSizes
from preba.strict import Provenance

PartitionSpec = str | dict[str, int] | tuple[str, ...]

WHOLE = "full"
"""Name of an unpartitioned GPU, in partitions and in latency profiles."""


@dataclass(frozen=True)
class SliceUnit:
    """One slice of one GPU of the scenario."""

    index: int
    name: str
    gpu_index: int
    profile: str
    gpcs: int
    jpeg_engines: int
    model_index: int | None
    role: str

    def facts(self) -> SliceFacts:
        """The part of it that reports need."""
        return SliceFacts(
            name=self.name,
            gpu_index=self.gpu_index,
            profile=self.profile,
            gpcs=self.gpcs,
            model_index=self.model_index,
            role=self.role,
        )


@dataclass(frozen=True)
class ResolvedModel:
    """A model with its profile loaded and its slices assigned."""

    index: int
    config: Model
    profile: LatencyProfile
    slice_indices: tuple[int, ...]

    @property
    def execution(self) -> LatencyProfile:
        """The times its slices take: its profile's, unless it has others."""
        given = self.config.execution_profile
        return given if isinstance(given, LatencyProfile) else self.profile


@dataclass(frozen=True)
class ResolvedScenario:
    """A scenario with everything it names looked up."""

    scenario: Scenario
    folder: Path
    slices: tuple[SliceUnit, ...]
    models: tuple[ResolvedModel, ...]
    hardware: Hardware
    gpu_devices: tuple[Device, ...]
    """Per GPU."""

    def warnings(self) -> list[str]:
        """What was put together although it was not measured together."""
        found: dict[str, None] = {}
        for model in self.models:
            for slice_index in model.slice_indices:
                device = self.gpu_devices[self.slices[slice_index].gpu_index]
                if _family(model.profile.device) != _family(device.name):
                    found[
                        f"profile {model.profile.name!r} holds times of {model.profile.device}, not of {device.name}: "
                        "they are taken as they are"
                    ] = None
        of = self.hardware.gpu_device
        for device in self.gpu_devices:
            if of is not None and _family(of) != _family(device.name):
                found[
                    f"hardware {self.hardware.name!r} has the watts and price of {of}, not of {device.name}: power, "
                    "energy and cost are of the wrong GPU"
                ] = None
        for model in self.models:
            batcher = model.config.batcher
            if isinstance(batcher, TritonBatcher) and batcher.loses_wakeups:
                found[
                    f"model {model.config.name!r}: this Triton version is modelled with lost wake-ups "
                    f"({batcher.batcher_first_permille() / 10:g} % of batch ends; the next arrival or its 500 ms tick "
                    "wakes the batcher); "
                    "batcher.quirks.batcher_first_permille: 0 turns them off"
                ] = None
        return list(found)

    def provenance(self) -> list[tuple[str, Provenance]]:
        """Where the numbers of profiles and devices come from."""
        profiles = [profile for m in self.models for profile in (m.profile, m.execution)]
        found = [(f"latency profile {profile.name}", profile.provenance) for profile in profiles]
        found += [(f"device {device.name}", device.provenance) for device in self.gpu_devices]
        for model in self.models:
            batcher = model.config.batcher
            if isinstance(batcher, TritonBatcher) and batcher.loses_wakeups:
                found.append((f"lost wake-ups of {model.config.name}'s server", BATCHER_FIRST_PROVENANCE))
            sizes = model.config.sizes.provenance()
            if sizes is not None:
                found.append((f"input sizes of {model.config.name}", sizes))
            for part, provenance in sorted(model.profile.parts.items()):
                found.append((f"latency profile {model.profile.name}: {part}", provenance))
        return list(dict(found).items())


def _family(device_name: str) -> str:
    return device_name.partition("-")[0]


def resolve(scenario: Scenario, *, folder: Path) -> ResolvedScenario:
    """Looks up everything a scenario names.

    Parameters
    ----------
    scenario : Scenario
    folder : Path
        Folder that relative file names in the scenario start from.

    Returns
    -------
    ResolvedScenario

    Raises
    ------
    ScenarioError, PartitionError, ProfileError, MissingFileError
        Something named does not exist or does not fit.
    """
    scenario = inline(scenario, folder=folder)
    profiles = tuple(_profile(model.profile, folder) for model in scenario.models)
    _check_modalities(scenario, profiles)
    _check_request_fields(scenario)
    slices, devices = _slices(scenario, folder)
    reserved = _reserved(scenario, slices)
    assigned = _assign(scenario, slices, reserved)
    for index, (profile, wanted) in enumerate(zip(profiles, assigned, strict=True)):
        for slice_index in wanted:
            where = f"scenario.models[{index}].profile"
            if not profile.knows(slices[slice_index].profile):
                raise ScenarioError(
                    f"{where}: profile {profile.name!r} has no times for slice {slices[slice_index].profile} "
                    f"(it has {', '.join(profile.slices)})"
                )
    owner = {slice_index: model for model, wanted in enumerate(assigned) for slice_index in wanted}
    units = tuple(
        SliceUnit(
            index=unit.index,
            name=unit.name,
            gpu_index=unit.gpu_index,
            profile=unit.profile,
            gpcs=unit.gpcs,
            jpeg_engines=unit.jpeg_engines,
            model_index=owner.get(unit.index),
            role="model" if unit.index in owner else "preprocessing" if unit.index in reserved else "unused",
        )
        for unit in slices
    )
    models = tuple(
        ResolvedModel(index=i, config=scenario.models[i], profile=profiles[i], slice_indices=tuple(assigned[i]))
        for i in range(len(scenario.models))
    )
    for found in models:
        missing = [slices[i].profile for i in found.slice_indices if not found.execution.knows(slices[i].profile)]
        if missing:
            raise ScenarioError(
                f"scenario.models[{found.index}].execution_profile: {found.execution.name!r} has no times for slice "
                f"{missing[0]} (it has {', '.join(found.execution.slices)})"
            )
    hardware = resolve_hardware(scenario.hardware, folder=folder)
    return ResolvedScenario(scenario, folder, units, models, hardware, devices)


def inline(scenario: Scenario, *, folder: Path) -> Scenario:
    """Puts everything a scenario names into it: profiles, devices, costs, hardware; data files by absolute path.

    The result needs no other file but recorded arrivals and sizes, and inlining it again changes nothing.
    """
    models = []
    for index, model in enumerate(scenario.models):
        with _named(f"scenario.models[{index}].profile"):
            changes: dict[str, object] = {"profile": _profile(model.profile, folder)}
        if model.execution_profile is not None:
            with _named(f"scenario.models[{index}].execution_profile"):
                changes["execution_profile"] = _profile(model.execution_profile, folder)
        if isinstance(model.arrivals, ReplayArrivals):
            changes["arrivals"] = model.arrivals.located(folder)
        if isinstance(model.sizes, EmpiricalSizes):
            changes["sizes"] = model.sizes.located(folder)
        if isinstance(model.batcher, PluginBatching):
            changes["batcher"] = model.batcher.located(folder)
        models.append(model.model_copy(update=changes))
    gpus = []
    for index, gpu in enumerate(scenario.gpus):
        with _named(f"scenario.gpus[{index}].device"):
            gpus.append(gpu.model_copy(update={"device": _device(gpu.device, folder)}))
    with _named("scenario.preprocessing"):
        preprocessing = inline_costs(scenario.preprocessing, folder=folder)
    with _named("scenario.hardware"):
        hardware = HardwareConfig(use=resolve_hardware(scenario.hardware, folder=folder))
    return scenario.model_copy(
        update={
            "models": tuple(models),
            "gpus": tuple(gpus),
            "preprocessing": preprocessing,
            "hardware": hardware,
        }
    )


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Says which field of the scenario named a file that is not there."""
    try:
        yield
    except MissingFileError as error:
        raise MissingFileError(f"{where}: {error}") from error


def _profile(given: str | LatencyProfile, folder: Path) -> LatencyProfile:
    return load_profile(_from(folder, given)) if isinstance(given, str) else given


def _device(given: str | Device, folder: Path) -> Device:
    return load_device(_from(folder, given)) if isinstance(given, str) else given


def _check_request_fields(scenario: Scenario) -> None:
    """Time-outs and priorities only mean something to a batcher that reads them."""
    for index, model in enumerate(scenario.models):
        if isinstance(model.batcher, TritonBatcher):
            continue
        for name, given in (("timeout_ms", model.timeout_ms > 0), ("priority_shares", model.priority_shares)):
            if given:
                kind = model.batcher.kind
                raise ScenarioError(f"scenario.models[{index}].{name}: batcher {kind!r} does not read it; triton does")


def _check_modalities(scenario: Scenario, profiles: Sequence[LatencyProfile]) -> None:
    for index, (model, profile) in enumerate(zip(scenario.models, profiles, strict=True)):
        if model.sizes.modality != profile.modality:
            raise ScenarioError(
                f"scenario.models[{index}].sizes: gives {model.sizes.modality} inputs, but profile {profile.name!r} "
                f"takes {profile.modality}"
            )


def _from(folder: Path, name: str) -> str:
    """A name as it is; a relative path taken from the scenario's own folder if it is there."""
    beside = folder / name
    return str(beside) if name.endswith((".yaml", ".yml")) and beside.is_file() else name


def _slices(scenario: Scenario, folder: Path) -> tuple[list[SliceUnit], tuple[Device, ...]]:
    units: list[SliceUnit] = []
    devices: list[Device] = []
    for position, gpu in enumerate(scenario.gpus):
        device = _device(gpu.device, folder)
        where = f"scenario.gpus[{position}].partition"
        cut = [_whole(device)] if gpu.partition == WHOLE else _cut(device, gpu.partition, where)
        for _ in range(gpu.count):
            prefix = f"gpu{len(devices)}"
            for label, profile, gpcs, jpeg_engines in cut:
                units.append(
                    SliceUnit(
                        index=len(units),
                        name=f"{prefix}/{label}",
                        gpu_index=len(devices),
                        profile=profile,
                        gpcs=gpcs,
                        jpeg_engines=jpeg_engines,
                        model_index=None,
                        role="unused",
                    )
                )
            devices.append(device)
    return units, tuple(devices)


def _whole(device: Device) -> tuple[str, str, int, int]:
    """A GPU with MIG off, as (label, profile, gpcs, jpeg engines)."""
    return WHOLE, WHOLE, device.compute_slices, max(p.jpeg_engines or 0 for p in device.profiles)


def _cut(device: Device, spec: PartitionSpec, where: str) -> list[tuple[str, str, int, int]]:
    """The slices of a MIG partition, as (label, profile, gpcs, jpeg engines)."""
    partition = resolve_partition(device, spec, where=where)
    return [
        (f"{placed.profile}@{placed.start}", placed.profile, placed.gpcs, placed.jpeg_engines or 0)
        for placed in partition.slices
    ]


def _reserved(scenario: Scenario, slices: Sequence[SliceUnit]) -> set[int]:
    if not isinstance(scenario.preprocessing, DaliSlicePreprocessing):
        return set()
    return set(_pick(scenario.preprocessing.slices, slices, set(), "scenario.preprocessing.slices"))


def _pick(
    wanted: dict[str, int] | Sequence[int], slices: Sequence[SliceUnit], taken: set[int], where: str
) -> list[int]:
    picked: list[int] = []
    if isinstance(wanted, dict):
        for profile, count in wanted.items():
            free = [u.index for u in slices if u.profile == profile and u.index not in taken]
            if len(free) < count:
                have = ", ".join(sorted({u.profile for u in slices}))
                raise ScenarioError(
                    f"{where}.{profile}: asks for {count} slices, {len(free)} free (the partition has {have})"
                )
            picked += free[:count]
            taken = taken | set(free[:count])
        return sorted(picked)
    for index in wanted:
        if index >= len(slices):
            raise ScenarioError(f"{where}: there is no slice {index}; slices are 0..{len(slices) - 1}")
        if index in taken or index in picked:
            raise ScenarioError(f"{where}: slice {index} ({slices[index].name}) is already taken")
        picked.append(index)
    return sorted(picked)


def _assign(scenario: Scenario, slices: Sequence[SliceUnit], reserved: set[int]) -> list[list[int]]:
    taken = set(reserved)
    assigned: list[list[int]] = []
    for index, model in enumerate(scenario.models):
        where = f"scenario.models[{index}].slices"
        if model.slices == "all":
            if len(scenario.models) > 1:
                raise ScenarioError(
                    f"{where}: 'all' works with one model only; with {len(scenario.models)} say which slices "
                    f"serve {model.name!r}, for example {{{slices[0].profile}: 2}}"
                )
            mine = [unit.index for unit in slices if unit.index not in taken]
        else:
            wanted = model.slices if isinstance(model.slices, dict) else list(model.slices)
            mine = _pick(wanted, slices, taken, where)
        if not mine:
            raise ScenarioError(f"{where}: no slice is left to serve {model.name!r}")
        taken |= set(mine)
        assigned.append(mine)
    return assigned
