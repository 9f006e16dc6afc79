"""Reads what ``nvidia-smi mig -lgip`` and ``-lgipp`` print, and compares it with the catalogue. Runs nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from preba.errors import FormatError
from preba.mig.catalogue import PROFILE_NAME, Device, SliceProfile
from preba.strict import Provenance

__all__ = ["Difference", "closest_device", "differences", "parse_lgip", "parse_lgipp", "read_listing"]

MIB_PER_GIB = 1024
ROUNDING_GIB = 0.0051
"""Half of the last printed decimal of a GiB figure, and a hair."""

STEP_MIB = 64
"""Slices of every driver seen since R470 are multiples of this (a 1g.6gb of the A30 has 93 of them)."""

FIRST_LINE = re.compile(
    r"\|\s*(?P<gpu>\d+)\s+MIG\s+(?P<name>\S+)\s+(?P<id>\d+)\s+(?P<free>\d+)/(?P<total>\d+)\s+"
    r"(?P<gib>\d+(?:\.\d+)?)\s+(?P<p2p>Yes|No)\s+(?P<sm>\d+)\s+(?P<dec>\d+)\s+(?P<enc>\d+)\s*\|"
)
SECOND_LINE = re.compile(r"\s*\|\s*(?P<ce>\d+)\s+(?P<jpeg>\d+)\s+(?P<ofa>\d+)\s*\|")
HEADER = re.compile(
    r"GPU\s+Name\s+ID\s+Instances\s+Memory\s+P2P\s+SM\s+DEC\s+ENC[\s|]+Free/Total\s+GiB\s+CE\s+JPEG\s+OFA"
)
PLACEMENT = re.compile(
    r"GPU\s+(?P<gpu>\d+)\s+Profile\s+ID\s+(?P<id>\d+)\s+Placements?\s*:\s*\{(?P<starts>[\d,\s]+)\}\s*:\s*(?P<size>\d+)"
)
COMPARED = (
    "profile_id",
    "sms",
    "memory_mib",
    "instances_max",
    "copy_engines",
    "decoders",
    "jpeg_engines",
    "ofa_engines",
    "encoders",
    "starts",
    "size",
)


@dataclass(frozen=True)
class Difference:
    """One thing a listing says otherwise than the catalogue; ``None`` on a side: it says nothing."""

    profile: str
    field: str
    listed: object
    catalogue: object

    def __str__(self) -> str:
        if self.field == "profile":
            return f"{self.profile}: only in the {'catalogue' if self.listed is None else 'listing'}"
        return f"{self.profile}: {self.field} {_said(self.listed)} here, {_said(self.catalogue)} in the catalogue"


def _said(value: object) -> str:
    return "unknown" if value is None else str(value)


def mib_from_printed_gib(text: str) -> int:
    """Memory in MiB from GiB with two decimals: the multiple of 64 MiB that prints so, else the nearest MiB."""
    gib = float(text)
    stepped = round(gib * MIB_PER_GIB / STEP_MIB) * STEP_MIB
    return stepped if abs(stepped / MIB_PER_GIB - gib) <= ROUNDING_GIB else round(gib * MIB_PER_GIB)


def parse_lgip(text: str, *, origin: str) -> dict[int, tuple[SliceProfile, ...]]:
    """Read the table of GPU instance profiles.

    Both widths of the table (drivers up to and from the ones with ``+me.all``) and a table whose lines were joined
    by copying are read; text around it is skipped.

    Parameters
    ----------
    text : str
        Output of ``nvidia-smi mig -lgip``.
    origin : str
        Name of the file for messages.

    Returns
    -------
    dict of int to tuple of SliceProfile
        Per GPU index its profiles in printed order; starts and size are unknown.

    Raises
    ------
    FormatError
        When it is no such table, its columns are others, or a profile's second line is missing.
    """
    if "GPU instance profiles" not in text:
        raise FormatError(f"{origin}: no table of GPU instance profiles; give the output of `nvidia-smi mig -lgip`")
    if HEADER.search(re.sub(r"[|=+\s]+", " ", text)) is None:
        raise FormatError(
            f"{origin}: the table's columns are not the known ones (GPU Name ID Instances Memory P2P SM DEC ENC, "
            "below them Free/Total GiB CE JPEG OFA)"
        )
    found: dict[int, list[SliceProfile]] = {}
    for first in FIRST_LINE.finditer(text):
        name = first["name"]
        shape = PROFILE_NAME.match(name)
        if shape is None:
            raise FormatError(f"{origin}: MIG {name}: not a profile name like 1g.5gb or 1g.5gb+me")
        second = SECOND_LINE.match(text, first.end())
        if second is None:
            raise FormatError(f"{origin}: MIG {name}: the line with CE, JPEG and OFA is missing below it")
        found.setdefault(int(first["gpu"]), []).append(
            SliceProfile(
                name=name,
                profile_id=int(first["id"]),
                g=int(shape["g"]),
                sms=int(first["sm"]),
                memory_mib=mib_from_printed_gib(first["gib"]),
                instances_max=int(first["total"]),
                copy_engines=int(second["ce"]),
                decoders=int(first["dec"]),
                jpeg_engines=int(second["jpeg"]),
                ofa_engines=int(second["ofa"]),
                encoders=int(first["enc"]),
                starts=None,
                size=None,
            )
        )
    rows = len(re.findall(r"\|\s*\d+\s+MIG\s", text))
    read = sum(len(profiles) for profiles in found.values())
    if not read or read != rows:
        raise FormatError(f"{origin}: {rows} profile rows, {read} of them readable")
    return {gpu: tuple(profiles) for gpu, profiles in found.items()}


def parse_lgipp(text: str, *, origin: str) -> dict[int, dict[int, tuple[tuple[int, ...], int]]]:
    """Read the possible placements.

    Parameters
    ----------
    text : str
        Output of ``nvidia-smi mig -lgipp``.
    origin : str
        Name of the file for messages.

    Returns
    -------
    dict of int to dict of int to tuple
        Per GPU index and profile id: the starts and the size, in steps of the memory axis.

    Raises
    ------
    FormatError
        When there is no such line, or a line that begins like one cannot be read.
    """
    found: dict[int, dict[int, tuple[tuple[int, ...], int]]] = {}
    for line in re.findall(r"GPU\s+\d+\s+Profile\s+ID[^\n]*", text):
        match = PLACEMENT.match(line)
        if match is None:
            raise FormatError(f"{origin}: cannot read {line.strip()!r}; expected like {{0,4}}:4 after the colon")
        starts = tuple(int(part) for part in match["starts"].split(",") if part.strip())
        found.setdefault(int(match["gpu"]), {})[int(match["id"])] = (starts, int(match["size"]))
    if not found:
        raise FormatError(f"{origin}: no placements; give the output of `nvidia-smi mig -lgipp`")
    return found


def read_listing(text: str, *, origin: str) -> dict[int, Device]:
    """Make devices of what ``-lgip`` printed, with the placements of ``-lgipp`` where the text holds both.

    Returns
    -------
    dict of int to Device
        Per GPU index. Without ``-lgipp`` output the placements are unknown and no partition can be planned.

    Raises
    ------
    FormatError
        See `parse_lgip` and `parse_lgipp`; also when a placement's id is in no profile.
    """
    profiles = parse_lgip(text, origin=origin)
    placements = parse_lgipp(text, origin=origin) if re.search(r"Profile\s+ID\s+\d+\s+Placement", text) else {}
    return {
        gpu: device_from_listing(found, placements.get(gpu), name=f"GPU {gpu}", origin=origin)
        for gpu, found in profiles.items()
    }


def device_from_listing(
    profiles: Sequence[SliceProfile],
    placements: dict[int, tuple[tuple[int, ...], int]] | None,
    *,
    name: str,
    origin: str,
) -> Device:
    """Join profiles with their placements by id.

    Raises
    ------
    FormatError
        When a placement's id belongs to no profile.
    """
    known = {profile.profile_id for profile in profiles}
    for profile_id in placements or {}:
        if profile_id not in known:
            raise FormatError(f"{origin}: placements of profile ID {profile_id}, which the table of profiles lacks")
    joined = []
    for profile in profiles:
        place = (placements or {}).get(profile.profile_id if profile.profile_id is not None else -1)
        starts, size = place if place is not None else (None, None)
        joined.append(profile.model_copy(update={"starts": starts, "size": size}))
    ends = [max(each.starts) + each.size for each in joined if each.starts is not None and each.size is not None]
    return Device(
        name=name,
        product=name,
        architecture="unknown",
        compute_capability=None,
        pci_device_ids=(),
        sms_total=None,
        memory_slices=max(ends) if ends else None,
        compute_slices=max(profile.g for profile in profiles),
        placements="measured" if ends else "unknown",
        provenance=Provenance(kind="measured", source=f"nvidia-smi mig listing {origin}"),
        sources=(),
        doubts=(),
        profiles=tuple(joined),
    )


def closest_device(listed: Device, catalogue: Sequence[Device]) -> Device | None:
    """Pick the catalogue device a listing comes from.

    Returns
    -------
    Device or None
        The one that shares most profile names, then the one with fewest differences; ``None`` when none shares any.
    """
    names = {profile.name for profile in listed.profiles}

    def shared(device: Device) -> int:
        return len(names & {name for each in device.profiles for name in (each.name, *each.other_names)})

    candidates = [device for device in catalogue if shared(device)]
    if not candidates:
        return None
    return min(candidates, key=lambda device: (-shared(device), len(differences(listed, device)), device.name))


def differences(listed: Device, known: Device) -> tuple[Difference, ...]:
    """Compare a listing with a device of the catalogue.

    Returns
    -------
    tuple of Difference
        Values that both sides give and that differ, profiles only one side has, and values the catalogue lacks.
        What the listing does not print (placements without ``-lgipp``) is no difference.
    """
    found: list[Difference] = []
    by_name = {name: each for each in known.profiles for name in (each.name, *each.other_names)}
    for profile in listed.profiles:
        ours = by_name.get(profile.name)
        if ours is None:
            found.append(Difference(profile.name, "profile", "listed", None))
            continue
        for field in COMPARED:
            here, there = getattr(profile, field), getattr(ours, field)
            if here is not None and here != there:
                found.append(Difference(profile.name, field, here, there))
    listed_names = {profile.name for profile in listed.profiles}
    found += [
        Difference(each.name, "profile", None, "listed")
        for each in known.profiles
        if not listed_names & {each.name, *each.other_names}
    ]
    return tuple(found)
