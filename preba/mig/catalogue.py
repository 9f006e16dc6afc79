"""What each GPU can be cut into, as data from ``configs/devices``; legality and search live in geometry.py."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from preba.data import config_folder
from preba.errors import FormatError, MissingFileError, PartitionError, nearest
from preba.strict import Provenance, StrictModel
from preba.strictfile import find_config, modified_ns, read_yaml, validate

__all__ = ["Device", "Doubt", "Reading", "SliceProfile", "Source", "device_names", "load_device"]

PROFILE_NAME = re.compile(r"(?P<g>[1-9])g\.(?P<gb>\d+)gb(?P<attributes>(?:[+-][a-z]+(?:\.[a-z]+)*)*)\Z")
"""``3g.20gb``, ``1g.5gb+me``, ``1g.24gb+me.all``, ``1g.24gb-me``."""

NVIDIA_PCI_VENDOR = "10DE"

Count = Annotated[int, Field(ge=0)]


class Source(StrictModel):
    """One public document that figures of a device were taken from."""

    what: str
    where: str


class Reading(StrictModel):
    """What another source says of a doubtful value."""

    value: str
    source: str


class Doubt(StrictModel):
    """A value that sources disagree on, or that is modelled or unknown."""

    about: str
    used: str
    kind: Literal["measured", "published", "modelled", "unknown"]
    used_from: str
    others: tuple[Reading, ...]


class SliceProfile(StrictModel):
    """One kind of slice (a GPU instance profile) a device offers; ``None`` is "no source tells".

    ``size`` and ``starts`` are in steps of the device's memory axis, as ``nvidia-smi mig -lgipp`` prints them.
    """

    name: str
    other_names: tuple[str, ...] = ()
    profile_id: Count | None
    g: int = Field(ge=1)
    sms: int | None = Field(ge=1)
    memory_mib: int | None = Field(ge=1)
    instances_max: int = Field(ge=1)
    copy_engines: Count | None
    decoders: Count | None
    jpeg_engines: Count | None
    ofa_engines: Count | None
    encoders: Count | None
    starts: tuple[Count, ...] | None
    size: int | None = Field(ge=1)

    @model_validator(mode="after")
    def _name_says_the_same(self) -> SliceProfile:
        for name in (self.name, *self.other_names):
            match = PROFILE_NAME.match(name)
            if match is None:
                raise ValueError(f"name: {name!r} is not a profile name like 1g.5gb, 1g.5gb+me or 1g.24gb-me")
            if int(match["g"]) != self.g:
                raise ValueError(f"g: {self.g} contradicts the name {name!r}")
        if (self.starts is None) != (self.size is None):
            raise ValueError(f"starts: given without size, or size without starts ({self.name})")
        return self

    @property
    def attributes(self) -> tuple[str, ...]:
        """What follows the size in the name: ``("+me",)``, ``("-me",)``, ``("+me.all",)``, ``("+gfx",)``."""
        match = PROFILE_NAME.match(self.name)
        return tuple(re.findall(r"[+-][a-z.]+", match["attributes"])) if match else ()

    @property
    def takes_media_extensions(self) -> bool:
        """Whether the name carries ``+me`` or ``+me.all``, of which a GPU has room for one."""
        return any(attribute.startswith("+me") for attribute in self.attributes)

    @property
    def resource_name(self) -> str:
        """The Kubernetes resource: ``nvidia.com/mig-1g.5gb.me`` (``+`` becomes ``.``)."""
        return "nvidia.com/mig-" + self.name.replace("+", ".")

    @property
    def selector(self) -> str:
        """What ``nvidia-smi mig -cgi`` is told: the id where known, else the name."""
        return self.name if self.profile_id is None else str(self.profile_id)


class Device(StrictModel):
    """A GPU that MIG can cut, with the sources of its figures.

    ``memory_slices`` is the width of the memory axis (8 on most, 4 on the A30, 12 on the RTX PRO 6000) and is
    ``None`` when no placements are known; ``compute_slices`` is how many g its slices may sum to; ``placements``
    says where the starts and sizes come from.
    """

    name: str
    aliases: tuple[str, ...] = ()
    product: str
    architecture: str
    compute_capability: str | None
    pci_device_ids: tuple[Annotated[str, Field(pattern="^0x[0-9A-F]{4}$")], ...]
    sms_total: int | None = Field(ge=1)
    memory_slices: int | None = Field(ge=1)
    compute_slices: int = Field(ge=1)
    placements: Literal["measured", "published", "modelled", "unknown"]
    provenance: Provenance
    sources: tuple[Source, ...]
    doubts: tuple[Doubt, ...]
    profiles: tuple[SliceProfile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Device:
        names = [name for profile in self.profiles for name in (profile.name, *profile.other_names)]
        ids = [str(profile.profile_id) for profile in self.profiles if profile.profile_id is not None]
        for what, values in (("names", names), ("profile_ids", ids)):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"profiles: {what} used twice: {', '.join(twice)}")
        for profile in self.profiles:
            if profile.g > self.compute_slices:
                raise ValueError(f"profiles: {profile.name} is larger than compute_slices {self.compute_slices}")
            if profile.starts is not None and profile.size is not None:
                end = max(profile.starts) + profile.size
                if self.memory_slices is None or end > self.memory_slices:
                    raise ValueError(f"profiles: {profile.name} ends at {end}, memory_slices is {self.memory_slices}")
        return self

    def profile(self, name: str, *, where: str) -> SliceProfile:
        """Find a profile by any of its names.

        Parameters
        ----------
        name : str
            ``1g.5gb+me``; its Kubernetes form ``mig-1g.5gb.me``; a name under another driver; or just ``2g``
            where only one profile without attributes has that size.
        where : str
            Field path for the message.

        Raises
        ------
        PartitionError
            When there is none, or ``1g`` could mean several; the message lists what there is.
        """
        wanted = name.strip().lower().removeprefix("nvidia.com/").removeprefix("mig-")
        for profile in self.profiles:
            known = (profile.name, *profile.other_names)
            if wanted in known or wanted in {each.replace("+", ".") for each in known}:
                return profile
        if re.fullmatch(r"\d+g", wanted):
            plain = [each for each in self.profiles if f"{each.g}g" == wanted and not each.attributes]
            if len(plain) == 1:
                return plain[0]
            if plain:
                either = " or ".join(each.name for each in plain)
                raise PartitionError(f"{where}: {name!r} could be {either} on {self.name}; write which")
        names = [profile.name for profile in self.profiles]
        raise PartitionError(f"{where}: {self.name} has no profile {name!r}{nearest(wanted, names)}")

    def plain_profiles(self, *, double_memory: bool = False) -> tuple[SliceProfile, ...]:
        """Return the profiles without attributes, one per g.

        Parameters
        ----------
        double_memory : bool
            Also the profiles that hold more memory than another of the same g (``1g.10gb`` of the A100 40GB).
        """
        plain = [profile for profile in self.profiles if not profile.attributes]
        if double_memory:
            return tuple(plain)
        return tuple(
            profile
            for profile in plain
            if not any(other.g == profile.g and _memory_key(other) < _memory_key(profile) for other in plain)
        )

    def engine_totals(self) -> dict[str, int | None]:
        """Return how many of each media engine the whole GPU has, by the profile that holds all of it."""
        whole = next((p for p in self.profiles if p.g == self.compute_slices and not p.attributes), None)
        return {
            field: None if whole is None else getattr(whole, field)
            for field in ("decoders", "jpeg_engines", "ofa_engines", "encoders")
        }

    @property
    def device_filters(self) -> tuple[str, ...]:
        """PCI ids as mig-parted writes them: ``0x20B010DE``."""
        return tuple(f"{device}{NVIDIA_PCI_VENDOR}" for device in self.pci_device_ids)


def _memory_key(profile: SliceProfile) -> int:
    """Order profiles of one g by memory: by the axis where known, else by the name's GB."""
    match = PROFILE_NAME.match(profile.name)
    return profile.size if profile.size is not None else int(match["gb"]) if match else 0


def device_names() -> tuple[str, ...]:
    """Names of the devices in the catalogue, sorted."""
    return tuple(sorted(path.stem for path in (config_folder() / "devices").glob("*.yaml")))


def load_device(name_or_path: str | Path) -> Device:
    """Load a device of the catalogue, or one from a file of the same form.

    Parameters
    ----------
    name_or_path : str or pathlib.Path
        ``A100-40GB`` (upper or lower case), an alias (``A30``), or the path of a YAML file.

    Raises
    ------
    MissingFileError
        When there is none; the message suggests the nearest name.
    FormatError
        When the file is not a device; the message names field, file and line.
    """
    folder = config_folder() / "devices"
    if isinstance(name_or_path, str) and "/" not in name_or_path and not name_or_path.endswith((".yaml", ".yml")):
        names = device_names()
        same = [name for name in names if name.lower() == name_or_path.lower()]
        if same:
            return _read(folder / f"{same[0]}.yaml")
        for name in names:
            device = _read(folder / f"{name}.yaml")
            if name_or_path.lower() in {alias.lower() for alias in device.aliases}:
                return device
        raise MissingFileError(f"device {name_or_path!r}: not in the catalogue{nearest(name_or_path, names)}")
    return _read(find_config(name_or_path, folder, what="device"))


def _read(path: Path) -> Device:
    return _parsed(path, modified_ns(path))


@functools.lru_cache(maxsize=64)  # sweeps read the same file thousands of times
def _parsed(path: Path, _modified_ns: int) -> Device:
    data, lines = read_yaml(path, error=FormatError)
    return validate(Device, data, origin=str(path), lines=lines, error=FormatError)
