"""How to cut a GPU as a partition says: order, exact commands, and what is left over. Nothing here runs a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preba.mig.catalogue import Device, SliceProfile
from preba.mig.geometry import Placed, additions, driver_choice, maximal_placements, solve
from preba.mig.placement import Partition, Slice

__all__ = ["Leftover", "Plan", "creation_order", "plan_partition"]


@dataclass(frozen=True)
class Leftover:
    """What a partition leaves of the GPU.

    ``fits`` maps each profile that could still be added, alone, to its free starts. Stranded slices are free, but
    no way of adding further slices ever uses them.
    """

    free_compute_slices: int
    free_memory_slices: tuple[int, ...]
    fits: dict[str, tuple[int, ...]]
    stranded_compute_slices: int
    stranded_memory_slices: int


@dataclass(frozen=True)
class Plan:
    """Everything an operator needs to create a partition and to remove it again.

    ``order`` is the order of creation. ``create`` is the command to use; where the device's placements are known
    it states every start (``9:4`` is profile 9 at memory slice 4). ``create_in_order`` leaves the starts to the
    driver and is ``None`` when the driver, as modelled, would then not arrive at this partition.
    """

    partition: Partition
    gpu_index: int
    order: tuple[Slice, ...]
    enable: str
    create: str
    create_in_order: str | None
    inspect: str
    remove: tuple[str, ...]
    leftover: Leftover
    kubernetes: dict[str, int]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON data."""
        device = self.partition.device
        return {
            "device": device.name,
            "partition": self.partition.name,
            "slices": [
                {
                    "profile": each.profile,
                    "profile_id": each.profile_id,
                    "start": each.start,
                    "size": each.size,
                    "compute_slices": each.gpcs,
                    "sms": each.sms,
                    "memory_mib": each.memory_mib,
                    "engines": {
                        "copy": each.copy_engines,
                        "decoder": each.decoders,
                        "jpeg": each.jpeg_engines,
                        "ofa": each.ofa_engines,
                        "encoder": each.encoders,
                    },
                    "kubernetes_resource": each.resource_name,
                }
                for each in self.partition.slices
            ],
            "creation_order": [each.label for each in self.order],
            "commands": {
                "enable": self.enable,
                "create": self.create,
                "create_in_order": self.create_in_order,
                "inspect": self.inspect,
                "remove": list(self.remove),
            },
            "left_over": {
                "compute_slices": self.leftover.free_compute_slices,
                "memory_slices": list(self.leftover.free_memory_slices),
                "fits": {name: list(starts) for name, starts in self.leftover.fits.items()},
                "stranded_compute_slices": self.leftover.stranded_compute_slices,
                "stranded_memory_slices": self.leftover.stranded_memory_slices,
            },
            "kubernetes_resources": self.kubernetes,
            "notes": list(self.notes),
            "provenance": device.provenance.model_dump(exclude_none=True),
        }


def creation_order(partition: Partition) -> tuple[tuple[Placed, ...], bool]:
    """Find an order in which a driver that is told no starts arrives at exactly this partition.

    Larger slices are tried first; that alone covers 3g+2g+1g+1g, where the 3g has to come first (MIG User Guide).

    Returns
    -------
    tuple
        The slices in order of creation, and whether the order alone suffices. Where no order does, largest first
        and ``False``: the starts have to be given.
    """
    device = partition.device
    largest_first = tuple(sorted(partition.placed, key=lambda each: (-each.profile.g, -each.size, each.start)))

    def grow(created: tuple[Placed, ...], waiting: tuple[Placed, ...]) -> tuple[Placed, ...] | None:
        if not waiting:
            return created
        for profile in dict.fromkeys(each.profile for each in waiting):
            landed = driver_choice(device, created, profile)
            if landed is None or landed not in waiting:
                continue
            found = grow((*created, landed), tuple(each for each in waiting if each != landed))
            if found is not None:
                return found
        return None

    found = grow((), largest_first)
    return (found, True) if found is not None else (largest_first, False)


def plan_partition(partition: Partition, *, gpu_index: int = 0) -> Plan:
    """Work out how to create a partition on one GPU.

    Parameters
    ----------
    partition : Partition
    gpu_index : int
        Which GPU of the node the commands are for.

    Returns
    -------
    Plan
    """
    device = partition.device
    order, suffices = creation_order(partition)
    facts = {(each.profile, each.start): each for each in partition.slices}
    create = f"sudo nvidia-smi mig -i {gpu_index} -cgi "
    with_starts = create + ",".join(f"{each.profile.selector}:{each.start}" for each in order) + " -C"
    in_order = create + ",".join(each.profile.selector for each in order) + " -C"
    resources: dict[str, int] = {}
    for each in partition.slices:
        resources[each.resource_name] = resources.get(each.resource_name, 0) + 1
    leftover = _leftover(device, partition.placed)
    return Plan(
        partition=partition,
        gpu_index=gpu_index,
        order=tuple(facts[each.profile.name, each.start] for each in order),
        enable=f"sudo nvidia-smi -i {gpu_index} -mig 1",
        create=in_order if device.placements == "modelled" else with_starts,
        create_in_order=in_order if suffices else None,
        inspect=f"nvidia-smi mig -i {gpu_index} -lgi",
        remove=(
            f"sudo nvidia-smi mig -i {gpu_index} -dci",
            f"sudo nvidia-smi mig -i {gpu_index} -dgi",
            f"sudo nvidia-smi -i {gpu_index} -mig 0",
        ),
        leftover=leftover,
        kubernetes=resources,
        notes=tuple(_notes(partition, leftover, suffices=suffices)),
    )


def _leftover(device: Device, placed: Sequence[Placed]) -> Leftover:
    taken = {step for each in placed for step in range(each.start, each.end)}
    width = device.memory_slices or 0
    fits: dict[str, tuple[int, ...]] = {}
    for new in additions(device, placed, device.profiles):
        fits[new.profile.name] = (*fits.get(new.profile.name, ()), new.start)
    completions = maximal_placements(device, _frugal(device), beside=placed)
    return Leftover(
        free_compute_slices=device.compute_slices - sum(each.profile.g for each in placed),
        free_memory_slices=tuple(step for step in range(width) if step not in taken),
        fits=fits,
        stranded_compute_slices=min(
            device.compute_slices - sum(each.profile.g for each in completed) for completed in completions
        ),
        stranded_memory_slices=min(width - sum(each.size for each in completed) for completed in completions),
    )


def _frugal(device: Device) -> tuple[SliceProfile, ...]:
    """One profile per g and size, the one that asks for the fewest engines: it fits wherever any of them does."""

    def engines(profile: SliceProfile) -> int:
        counts = (profile.decoders, profile.jpeg_engines, profile.ofa_engines, profile.encoders)
        return sum(count or 0 for count in counts)

    best: dict[tuple[int, int | None], SliceProfile] = {}
    for profile in sorted(device.profiles, key=lambda each: (each.takes_media_extensions, engines(each))):
        best.setdefault((profile.g, profile.size), profile)
    return tuple(best.values())


def _notes(partition: Partition, leftover: Leftover, *, suffices: bool) -> list[str]:
    device = partition.device
    notes: list[str] = []
    if device.placements == "modelled":
        notes.append(
            f"no listing of {device.name}'s placements has been seen; they are modelled, so the command leaves the "
            "starts to the driver. Compare with `nvidia-smi mig -lgipp` (`preba mig read` does it)"
        )
    if not suffices:
        notes.append(
            "no order of creation brings a driver that chooses the starts itself to this partition; the starts in "
            "the command are needed (`-cgi PROFILE:START`, drivers that know placement specifiers)"
        )
    if leftover.stranded_compute_slices:
        notes.append(_stranded(partition, leftover))
    if leftover.stranded_memory_slices:
        number = leftover.stranded_memory_slices
        notes.append(f"{number} of {device.memory_slices} memory slices cannot be used by any further slice")
    without_jpeg = dict.fromkeys(each.profile for each in partition.slices if each.jpeg_engines == 0)
    if without_jpeg:
        notes.append(f"no hardware JPEG decoder in {', '.join(without_jpeg)}: decoding there costs SMs or CPU")
    unknown = dict.fromkeys(each.profile for each in partition.slices if each.jpeg_engines is None)
    if unknown:
        notes.append(f"no source tells how many JPEG engines {', '.join(unknown)} has")
    return notes


def _stranded(partition: Partition, leftover: Leftover) -> str:
    """Say how many compute slices are lost, to which slices, and whether another placement would save them."""
    device = partition.device
    number = leftover.stranded_compute_slices
    text = f"{number} of {device.compute_slices} compute slices cannot be used by any further slice"
    culprits = [each.label for each in partition.placed if _wider_than_its_g(device, each)]
    if culprits:
        text += f" (lost under {', '.join(culprits)})"
    other = solve(device, (), [each.profile for each in partition.placed])
    if other is not None and _leftover(device, other).stranded_compute_slices < number:
        text += f"; fewer are lost with {', '.join(each.label for each in other)}"
    return text


def _wider_than_its_g(device: Device, placed: Placed) -> bool:
    """Whether a slice covers more compute slices than its g: 3g at 0, or a double-memory 1g."""
    steps = (device.memory_slices or 0) // (device.compute_slices + device.compute_slices % 2)
    covered = min(placed.end, device.compute_slices * steps) - placed.start
    return covered > placed.profile.g * steps
