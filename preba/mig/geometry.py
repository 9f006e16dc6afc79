"""Which sets of placed slices a GPU allows, and the search over them: no files, no parsing, no commands.

A set of slices is legal when (MIG User Guide, "Partitioning"; the last rule is read off the guide's engine tables)

* each starts where its profile may start and none overlap on the memory axis,
* their g do not sum to more than the GPU's compute slices,
* no profile is used more often than its maximum,
* at most one carries the media extensions (``+me``, ``+me.all``), and
* together they do not hold more decoders, encoders, JPEG or OFA engines than the whole GPU has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from preba.errors import PartitionError
from preba.mig.catalogue import Device, SliceProfile

__all__ = [
    "Placed",
    "additions",
    "admits",
    "conflicts",
    "driver_choice",
    "driver_replay",
    "geometries",
    "maximal_placements",
    "over_capacity",
    "solve",
    "starts_of",
]

ENGINES = {"decoders": "NVDEC", "jpeg_engines": "NVJPG", "ofa_engines": "OFA", "encoders": "NVENC"}


@dataclass(frozen=True)
class Placed:
    """A slice profile at a place on the memory axis."""

    profile: SliceProfile
    start: int

    @property
    def size(self) -> int:
        """Steps of the memory axis it takes."""
        if self.profile.size is None:
            raise PartitionError(
                f"{self.profile.name}: its placements are unknown; read `nvidia-smi mig -lgipp` of the device"
            )
        return self.profile.size

    @property
    def end(self) -> int:
        """First step after it."""
        return self.start + self.size

    @property
    def label(self) -> str:
        """``3g.20gb@4``."""
        return f"{self.profile.name}@{self.start}"

    def overlaps(self, other: Placed) -> bool:
        """Whether both want some step of the memory axis."""
        return self.start < other.end and other.start < self.end


def starts_of(device: Device, profile: SliceProfile) -> tuple[int, ...]:
    """Starts a profile may have.

    Raises
    ------
    PartitionError
        When no source tells them.
    """
    if profile.starts is None:
        raise PartitionError(
            f"{device.name}: the placements of {profile.name} are unknown; read `nvidia-smi mig -lgipp` of the device"
        )
    return profile.starts


def conflicts(device: Device, placed: Sequence[Placed]) -> list[str]:
    """Say every rule that a set of placed slices breaks.

    Parameters
    ----------
    device : Device
    placed : sequence of Placed

    Returns
    -------
    list of str
        Empty when the set is legal; else one sentence per broken rule, each naming the placements at fault.
    """
    found: list[str] = []
    for each in placed:
        starts = starts_of(device, each.profile)
        if each.start not in starts:
            allowed = ", ".join(map(str, starts))
            found.append(f"{each.label} cannot start there; {each.profile.name} starts at {allowed}")
    for index, first in enumerate(placed):
        for second in placed[index + 1 :]:
            if first.overlaps(second):
                low, high = max(first.start, second.start), min(first.end, second.end) - 1
                steps = f"memory slice {low}" if low == high else f"memory slices {low}-{high}"
                found.append(f"{first.label} overlaps {second.label}: both need {steps}")
    return found + over_capacity(device, [each.profile for each in placed])


def over_capacity(device: Device, profiles: Sequence[SliceProfile]) -> list[str]:
    """Say the rules a set of profiles breaks wherever they are placed: maxima, totals, engines."""
    count = Counter(profile.name for profile in profiles)
    found = [
        f"{count[profile.name]} of {profile.name}, at most {profile.instances_max} fit"
        for profile in dict.fromkeys(profiles)
        if count[profile.name] > profile.instances_max
    ]
    total_g = sum(profile.g for profile in profiles)
    if total_g > device.compute_slices:
        parts = "+".join(str(profile.g) for profile in profiles)
        found.append(f"{parts} = {total_g} compute slices, {device.name} has {device.compute_slices}")
    sizes = [profile.size for profile in profiles if profile.size is not None]
    if device.memory_slices is not None and sum(sizes) > device.memory_slices:
        parts = "+".join(map(str, sizes))
        found.append(f"{parts} = {sum(sizes)} memory slices, {device.name} has {device.memory_slices}")
    extended = [profile.name for profile in profiles if profile.takes_media_extensions]
    if len(extended) > 1:
        found.append(f"{' and '.join(extended)}: only one slice can have the media extensions")
    for field, total in device.engine_totals().items():
        held = [(profile.name, getattr(profile, field) or 0) for profile in profiles]
        if total is not None and sum(number for _, number in held) > total and len(extended) <= 1:
            who = ", ".join(f"{name} {number}" for name, number in held if number)
            found.append(f"{ENGINES[field]} engines: {who}; {device.name} has {total}")
    return found


def admits(device: Device, placed: Sequence[Placed], new: Placed) -> bool:
    """Whether a legal set stays legal with one more slice."""
    profile = new.profile
    if new.start not in starts_of(device, profile) or any(new.overlaps(each) for each in placed):
        return False
    if sum(each.profile.g for each in placed) + profile.g > device.compute_slices:
        return False
    if sum(each.profile.name == profile.name for each in placed) >= profile.instances_max:
        return False
    if profile.takes_media_extensions and any(each.profile.takes_media_extensions for each in placed):
        return False
    for field, total in device.engine_totals().items():
        held = sum(getattr(each.profile, field) or 0 for each in placed)
        if total is not None and held + (getattr(profile, field) or 0) > total:
            return False
    return True


def additions(device: Device, placed: Sequence[Placed], profiles: Sequence[SliceProfile]) -> tuple[Placed, ...]:
    """List every single slice of `profiles` that could still be placed beside `placed`."""
    return tuple(
        new
        for profile in profiles
        for new in (Placed(profile, start) for start in starts_of(device, profile))
        if admits(device, placed, new)
    )


def maximal_placements(
    device: Device, profiles: Sequence[SliceProfile], beside: Sequence[Placed] = ()
) -> tuple[tuple[Placed, ...], ...]:
    """Enumerate the sets of placed slices to which no further slice of `profiles` can be added.

    Parameters
    ----------
    device : Device
    profiles : sequence of SliceProfile
        What may be added.
    beside : sequence of Placed
        Slices that stand already and belong to every set.

    Returns
    -------
    tuple of tuple of Placed
        `beside`, then the added slices by start; 19 sets for the A100's five plain profiles.
    """
    spots = [Placed(profile, start) for profile in profiles for start in starts_of(device, profile)]
    spots.sort(key=lambda spot: (spot.start, -spot.size, spot.profile.name))

    def grow(chosen: tuple[Placed, ...], index: int) -> Iterator[tuple[Placed, ...]]:
        if not additions(device, chosen, profiles):
            yield chosen
        for position in range(index, len(spots)):
            if admits(device, chosen, spots[position]):
                yield from grow((*chosen, spots[position]), position + 1)

    return tuple(grow(tuple(beside), 0))


def geometries(device: Device, profiles: Sequence[SliceProfile]) -> tuple[tuple[str, ...], ...]:
    """Enumerate the distinct multisets of profile names among the maximal placements, largest first.

    Returns
    -------
    tuple of tuple of str
        14 for the A100's five plain profiles.
    """
    rank = {profile.name: (-profile.g, -(profile.size or 0), profile.name) for profile in profiles}
    found = {
        tuple(sorted((each.profile.name for each in placed), key=rank.__getitem__))
        for placed in maximal_placements(device, profiles)
    }
    return tuple(sorted(found, key=lambda names: [rank[name] for name in names]))


def solve(device: Device, fixed: Sequence[Placed], wanted: Sequence[SliceProfile]) -> tuple[Placed, ...] | None:
    """Place slices so that they are legal and leave as much open as can be.

    Parameters
    ----------
    device : Device
    fixed : sequence of Placed
        Slices whose place is given.
    wanted : sequence of SliceProfile
        Slices to be placed, repeated for several of one kind.

    Returns
    -------
    tuple of Placed or None
        All slices sorted by start; of several ways the one after which most single slices could still be added,
        then the one whose larger slices start lowest. ``None`` when there is no way.
    """
    order = sorted(wanted, key=lambda profile: (-(profile.size or 0), -profile.g, profile.name))

    def place(chosen: tuple[Placed, ...], index: int) -> Iterator[tuple[Placed, ...]]:
        if index == len(order):
            yield chosen
            return
        profile = order[index]
        same = index > 0 and order[index - 1].name == profile.name
        for start in starts_of(device, profile):
            # Slices of one kind are alike: placing them in rising order avoids counting each way many times.
            if same and start < chosen[-1].start:
                continue
            new = Placed(profile, start)
            if admits(device, chosen, new):
                yield from place((*chosen, new), index + 1)

    best: tuple[int, list[int]] | None = None
    answer: tuple[Placed, ...] | None = None
    for found in place(tuple(fixed), 0):
        score = (-len(additions(device, found, device.profiles)), [each.start for each in found])
        if best is None or score < best:
            best, answer = score, found
    return None if answer is None else tuple(sorted(answer, key=lambda each: each.start))


def driver_choice(device: Device, placed: Sequence[Placed], profile: SliceProfile) -> Placed | None:
    """Choose a start as a driver that is told none: the one that leaves most open, then the lowest.

    This is a model: no document says how a driver chooses. It reproduces the placements printed in public for the
    A100 (MIG User Guide: 1g to 6, 2g to 4, 4g to 0 when created in that order), the A30 and the RTX PRO 6000, and
    the guide's remark that of 3g+2g+1g+1g the 3g has to come first. It is stricter than the guide in that 3g+2g+2g
    and 3g+1g+1g+1g+1g fail here too when the 3g comes last.

    Returns
    -------
    Placed or None
        ``None`` when the profile does not fit any more.
    """
    choices = additions(device, placed, (profile,))
    if not choices:
        return None
    return min(choices, key=lambda new: (-len(additions(device, (*placed, new), device.profiles)), new.start))


def driver_replay(device: Device, order: Sequence[SliceProfile]) -> tuple[Placed, ...] | None:
    """Create slices one by one without saying where; ``None`` when one of them finds no room."""
    placed: tuple[Placed, ...] = ()
    for profile in order:
        new = driver_choice(device, placed, profile)
        if new is None:
            return None
        placed = (*placed, new)
    return placed
