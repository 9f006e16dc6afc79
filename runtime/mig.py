"""How the GPUs of a machine are cut, and how they get from one layout to another: read, plan, carry out, put back.

A plan is made of the difference between what is there and what is wanted, so that a slice both have is left alone and
applying twice changes nothing. Whatever fails on the way, the old layout is planned and carried out again, by the same
code. Talking to the driver is `runtime.nvml`'s; which layouts a GPU allows is `preba.mig`'s.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preba.errors import DriverError, PartitionError
from preba.mig.catalogue import Device, SliceProfile, device_names, load_device
from preba.mig.geometry import Placed, conflicts, solve
from preba.mig.placement import partition_items, resolve_partition
from preba.mig.smi import device_from_listing
from preba.strict import Provenance
from runtime.nvml import ComputeInstance, GpuFacts, GpuInstance, MigDevice, Nvml, NvmlCallError, Process

__all__ = [
    "Change",
    "GpuState",
    "SliceState",
    "Wanted",
    "WantedSlice",
    "carry_out",
    "difference",
    "mig_device_uuids",
    "plan_change",
    "read_gpus",
    "wanted_as_it_is",
    "wanted_layout",
]

PUT_BACK_TRIES = 3


@dataclass(frozen=True)
class SliceState:
    """A GPU instance that exists, under its profile's name, with its MIG devices."""

    profile: SliceProfile
    instance: GpuInstance
    devices: tuple[MigDevice, ...]

    @property
    def placed(self) -> Placed:
        """The profile at its place."""
        return Placed(self.profile, self.instance.start)

    @property
    def label(self) -> str:
        """``3g.20gb@4``."""
        return self.placed.label

    @property
    def is_whole(self) -> bool:
        """Whether one compute instance has all of it."""
        return len(self.instance.compute) == 1 and self.instance.compute[0].size == self.profile.g

    @property
    def processes(self) -> tuple[Process, ...]:
        """What runs on any of its devices."""
        return tuple(process for device in self.devices for process in device.processes)


@dataclass(frozen=True)
class GpuState:
    """One GPU as it stands.

    ``device`` is ``None`` for a GPU without MIG, or one whose profiles neither driver nor catalogue tells. ``slices``
    is ``None`` where the user may not list them; ``mig_devices`` anybody sees.
    """

    facts: GpuFacts
    device: Device | None
    slices: tuple[SliceState, ...] | None
    mig_devices: tuple[MigDevice, ...]
    processes: tuple[Process, ...]

    @property
    def counts(self) -> Counter[str]:
        """How many slices of each profile; without the right to list them, by the names of the MIG devices."""
        if self.slices is not None:
            return Counter(each.profile.name for each in self.slices)
        found = {each.gpu_instance_id: each.name.partition("MIG ")[2].split("c.")[-1] for each in self.mig_devices}
        return Counter(found.values())


@dataclass(frozen=True)
class WantedSlice:
    """A slice somebody wants: anywhere (``start`` is ``None``), and whole unless its compute instances are given."""

    profile: str
    start: int | None = None
    compute: tuple[ComputeInstance, ...] | None = None


@dataclass(frozen=True)
class Wanted:
    """What a GPU should look like: MIG mode, and the slices if that is on."""

    mig: bool
    slices: tuple[WantedSlice, ...] = ()


@dataclass(frozen=True)
class Change:
    """What has to be done to one GPU, in this order: remove, switch, create. Empty when all is as wanted."""

    state: GpuState
    wanted: Wanted
    kept: tuple[SliceState, ...]
    removed: tuple[SliceState, ...]
    mode: bool | None
    created: tuple[tuple[Placed, tuple[ComputeInstance, ...] | None], ...]

    @property
    def index(self) -> int:
        """The GPU's."""
        return self.state.facts.index

    @property
    def is_empty(self) -> bool:
        """Whether nothing has to be done."""
        return not self.removed and self.mode is None and not self.created

    @property
    def steps(self) -> tuple[str, ...]:
        """Each step in words."""
        said = []
        for each in self.removed:
            number = len(each.instance.compute)
            parts = f" and its {number} compute instances" if number > 1 else ""
            said.append(f"remove {each.label}{parts}")
        if self.mode is not None:
            said.append(f"switch MIG mode {'on' if self.mode else 'off'}, which may reset the GPU")
        for placed, compute in self.created:
            parts = "" if compute is None else f" with {len(compute)} compute instances of its own"
            said.append(f"create {placed.label}{parts}")
        return tuple(said)


# what there is


def read_gpus(nvml: Nvml, indices: Sequence[int] | None = None) -> tuple[GpuState, ...]:
    """Read how GPUs are cut.

    Parameters
    ----------
    nvml : Nvml
    indices : sequence of int, optional
        Which; by default all.

    Raises
    ------
    DriverError
        The driver fails, or there is no such GPU.
    """
    facts = nvml.gpus()
    chosen = range(len(facts)) if indices is None else indices
    for index in chosen:
        if index >= len(facts):
            raise DriverError(f"there is no GPU {index}: this machine has {len(facts)}, counted from 0")
    return tuple(_read_gpu(nvml, facts[index]) for index in chosen)


def _read_gpu(nvml: Nvml, facts: GpuFacts) -> GpuState:
    if facts.mig_now is None:
        return GpuState(facts, None, (), (), nvml.processes(facts.index))
    profiles = nvml.profiles(facts.index)
    device = _device(facts, profiles)
    if not facts.mig_now:
        return GpuState(facts, device, (), (), nvml.processes(facts.index))
    devices = nvml.mig_devices(facts.index)
    try:
        instances = nvml.gpu_instances(facts.index, profiles)
    except NvmlCallError as error:
        if error.code != "NVML_ERROR_NO_PERMISSION":
            raise
        return GpuState(facts, device, None, devices, ())
    by_id = {profile.profile_id: profile for profile in profiles}
    slices = tuple(
        SliceState(
            by_id[each.profile_id],
            each,
            tuple(one for one in devices if one.gpu_instance_id == each.instance_id),
        )
        for each in instances
    )
    return GpuState(facts, device, slices, devices, ())


def _device(facts: GpuFacts, profiles: tuple[SliceProfile, ...]) -> Device | None:
    """The rules of a GPU: the driver's own where it tells them, else the catalogue's."""
    known = _catalogued(facts.pci_device_id, frozenset(profile.name for profile in profiles))
    if not profiles or any(profile.starts is None for profile in profiles):
        return known
    name = facts.name if known is None else known.name
    told = device_from_listing(profiles, None, name=name, origin="NVML")
    ends = [max(each.starts) + each.size for each in profiles if each.starts is not None and each.size is not None]
    return told.model_copy(
        update={
            "product": facts.name,
            "pci_device_ids": (facts.pci_device_id,),
            "placements": "measured",
            "memory_slices": max(ends),
            "profiles": profiles,
            "provenance": Provenance(kind="measured", source=f"NVML of {facts.name}"),
        }
    )


@functools.lru_cache(maxsize=64)
def _catalogued(pci_device_id: str, profiles: frozenset[str]) -> Device | None:
    """The device of the catalogue with this PCI id; of several, one that has all these profiles."""
    same = [device for device in map(load_device, device_names()) if pci_device_id in device.pci_device_ids]
    fitting = [device for device in same if profiles <= {profile.name for profile in device.profiles}]
    return next(iter(fitting or same), None)


def mig_device_uuids(states: Sequence[GpuState], wanted: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """The MIG devices that stand for a scenario's slices.

    Parameters
    ----------
    states : sequence of GpuState
    wanted : sequence of (int, str)
        Per slice, the scenario's GPU (the first with MIG on is 0) and the profile.

    Returns
    -------
    tuple of str
        Per slice the UUID of a device of its own.

    Raises
    ------
    DriverError
        The GPUs are not cut as the scenario needs; the message has the command that does it.
    """
    cut = [state for state in states if state.facts.mig_now]
    free = [list(state.mig_devices) for state in cut]
    found = []
    for gpu, profile in wanted:
        mine = free[gpu] if gpu < len(free) else []
        device = next((each for each in mine if each.name.partition("MIG ")[2] == profile), None)
        if device is None:
            needs = "+".join(name for other, name in wanted if other == gpu)
            where = f"GPU {cut[gpu].facts.index}" if gpu < len(cut) else "this machine"
            raise DriverError(
                f"{where} has no free MIG device {profile} for the scenario's slice: "
                f"`sudo preba mig apply {needs}` cuts a GPU so (it prints its plan first); `preba mig show` lists what "
                "there is"
            )
        mine.remove(device)
        found.append(device.uuid)
    return tuple(found)


# what is wanted


def wanted_layout(device: Device, spec: str | Mapping[str, int], *, where: str) -> Wanted:
    """Read a layout: ``none`` (no slices), ``off`` (no MIG), or a partition in any form.

    Raises
    ------
    PartitionError
        When it cannot be read, or does not fit the device.
    """
    if spec in ("none", "off"):
        return Wanted(mig=spec == "none")
    if not spec:
        return Wanted(mig=True)
    resolve_partition(device, spec, where=where)
    items = partition_items(device, spec, where=where)
    return Wanted(mig=True, slices=tuple(WantedSlice(profile.name, start) for profile, start in items))


def wanted_as_it_is(state: GpuState) -> Wanted:
    """The layout a GPU has, exactly: places, and compute instances where a slice is not whole.

    Raises
    ------
    DriverError
        Without the right to list the slices.
    """
    if state.slices is None:
        raise DriverError(f"GPU {state.facts.index}: only privileged users may list GPU instances; use sudo")
    return Wanted(
        mig=bool(state.facts.mig_now),
        slices=tuple(
            WantedSlice(each.profile.name, each.instance.start, None if each.is_whole else each.instance.compute)
            for each in state.slices
        ),
    )


def difference(state: GpuState, wanted: Wanted) -> list[str]:
    """Say where a GPU is not as wanted; nothing when it is.

    Raises
    ------
    DriverError
        It cannot be told without the right to list the slices, because places or compute instances are asked for.
    """
    if bool(state.facts.mig_now) != wanted.mig:
        return [f"MIG mode is {'on' if state.facts.mig_now else 'off'}, wanted {'on' if wanted.mig else 'off'}"]
    if state.slices is None and all(each.start is None and each.compute is None for each in wanted.slices):
        have, want = state.counts, Counter(each.profile for each in wanted.slices)
        names = sorted(have.keys() | want.keys())
        return [f"{have[name]} of {name}, wanted {want[name]}" for name in names if have[name] != want[name]]
    change = plan_change(state, wanted)
    return [f"{each.label} should not be there" for each in change.removed] + [
        f"{placed.label} is missing" for placed, _ in change.created
    ]


# from one to the other


def plan_change(state: GpuState, wanted: Wanted) -> Change:
    """Find what has to be done so that a GPU is as wanted, with the least disturbance.

    A slice that is wanted nowhere in particular stays where one of its kind stands, those in use first.

    Raises
    ------
    DriverError
        For a GPU without MIG, and without the right to list its slices.
    PartitionError
        When what is wanted does not fit.
    """
    index, device = state.facts.index, state.device
    if state.facts.mig_now is None:
        if not wanted.mig:
            return Change(state, wanted, (), (), None, ())
        raise DriverError(f"GPU {index} ({state.facts.name}) has no MIG")
    if state.slices is None:
        raise DriverError(
            f"GPU {index}: only privileged users may list and change GPU instances: run the command again with sudo"
        )
    mode = wanted.mig if wanted.mig != state.facts.mig_now else None
    if not wanted.mig:
        return Change(state, wanted, (), state.slices, mode, ())
    if device is None:
        if wanted.slices:
            raise DriverError(
                f"GPU {index} ({state.facts.name}): its driver tells the profiles only with MIG mode on, and the "
                f"catalogue has no such GPU: switch it on first: `preba mig apply none --gpu {index} --change-mode`"
            )
        return Change(state, wanted, (), (), mode, ())
    where = f"GPU {index}"
    asked = [(device.profile(each.profile, where=where), each) for each in wanted.slices]
    kept, placed = _arranged(device, asked, state.slices, where=where)
    removed = tuple(each for each in state.slices if each not in kept)
    order = sorted(placed, key=lambda each: (-each[0].profile.g, -each[0].size, each[0].start))
    return Change(state, wanted, tuple(kept), removed, mode, tuple(order))


def _arranged(
    device: Device, asked: Sequence[tuple[SliceProfile, WantedSlice]], standing: Sequence[SliceState], *, where: str
) -> tuple[list[SliceState], list[tuple[Placed, tuple[ComputeInstance, ...] | None]]]:
    """Which slices stay, and where the others come."""
    kept: list[SliceState] = []
    created: list[tuple[Placed, tuple[ComputeInstance, ...] | None]] = []
    free: Counter[str] = Counter()
    for profile, each in asked:
        if each.start is None:
            free[profile.name] += 1
            continue
        same = next((one for one in standing if one.placed == Placed(profile, each.start)), None)
        if same is not None and _is_as_wanted(same, each):
            kept.append(same)
        else:
            created.append((Placed(profile, each.start), each.compute))
    fixed = tuple(one.placed for one in kept) + tuple(place for place, _ in created)
    broken = conflicts(device, fixed)
    if broken:
        raise PartitionError(f"{where}: {'; '.join(broken)}")
    may_stay = [
        one
        for one in standing
        if one not in kept and free[one.profile.name] and one.is_whole
        and not any(one.placed.overlaps(other) for other in fixed)
    ]  # fmt: skip
    profiles = {profile.name: profile for profile, _ in asked}
    for stay in _by_worth(may_stay):
        rest = free - Counter(one.profile.name for one in stay)
        if sum(rest.values()) + len(stay) != sum(free.values()):
            continue
        wanted = [profiles[name] for name in rest.elements()]
        answer = solve(device, fixed + tuple(one.placed for one in stay), wanted)
        if answer is not None:
            new = [one for one in answer if one not in fixed and one not in {each.placed for each in stay}]
            return [*kept, *stay], [*created, *((one, None) for one in new)]
    raise PartitionError(f"{where}: the slices asked for do not fit {device.name}")


def _is_as_wanted(slice_: SliceState, wanted: WantedSlice) -> bool:
    if wanted.compute is None:
        return slice_.is_whole

    def shape(compute: tuple[ComputeInstance, ...]) -> list[tuple[int, int, int]]:
        return sorted((each.start, each.size, each.profile_id) for each in compute)

    return shape(slice_.instance.compute) == shape(wanted.compute)


def _by_worth(slices: Sequence[SliceState]) -> list[tuple[SliceState, ...]]:
    """Every choice of slices: those that keep most busy ones first, then those that keep most."""
    choices = [choice for number in range(len(slices), -1, -1) for choice in itertools.combinations(slices, number)]
    return sorted(choices, key=lambda choice: (-sum(bool(each.processes) for each in choice), -len(choice)))


def carry_out(nvml: Nvml, changes: Sequence[Change]) -> tuple[GpuState, ...]:
    """Do what is planned, on every GPU, or leave all of them as they were.

    Parameters
    ----------
    nvml : Nvml
    changes : sequence of Change

    Returns
    -------
    tuple of GpuState
        Every GPU afterwards, as read from the driver.

    Raises
    ------
    DriverError
        Something is in use (nothing was changed), or a step failed (the old layout was put back, or the message says
        what stands now).
    """
    for change in changes:
        _refuse_if_used(change)
    begun: list[Change] = []
    try:
        for change in changes:
            begun.append(change)
            _do(nvml, change)
        after = read_gpus(nvml, [change.index for change in changes])
        for state, change in zip(after, changes, strict=True):
            wrong = difference(state, change.wanted)
            if wrong:
                raise DriverError(f"GPU {change.index} is not as it should be: {'; '.join(wrong)}")
    except BaseException as failure:
        _put_back(nvml, begun, failure)
        if isinstance(failure, DriverError):
            raise DriverError(f"{failure}. Everything is as it was before") from failure
        raise
    return after


def _refuse_if_used(change: Change) -> None:
    used = [(f"{each.label} of GPU {change.index}", each.processes) for each in change.removed if each.processes]
    if change.mode is not None and change.state.processes:
        used.append((f"GPU {change.index}", change.state.processes))
    if used:
        said = "; ".join(
            f"{what} is used by {', '.join(process_name(each) for each in processes)}" for what, processes in used
        )
        raise DriverError(f"{said}. Nothing was changed; stop what uses it first")


def process_name(process: Process) -> str:
    """``1234 (tritonserver)``."""
    try:
        return f"{process.pid} ({Path(f'/proc/{process.pid}/comm').read_text(encoding='utf-8').strip()})"
    except OSError:
        return str(process.pid)


def _do(nvml: Nvml, change: Change) -> None:
    index = change.index
    for each in change.removed:
        for compute in each.instance.compute:
            nvml.destroy_compute_instance(index, each.instance.instance_id, compute.instance_id)
        nvml.destroy_gpu_instance(index, each.instance.instance_id)
    created = change.created
    if change.mode is not None:
        created = _switch(nvml, change, on=change.mode)
    for placed, wanted in created:
        instance_id = nvml.create_gpu_instance(index, placed.profile, placed.start)
        if wanted is None:
            kinds = nvml.compute_profiles(index, instance_id)
            whole = next((each for each in kinds if each.slices == placed.profile.g), None)
            if whole is None:
                raise DriverError(f"GPU {index}: the driver offers no compute instance that has all of {placed.label}")
            nvml.create_compute_instance(index, instance_id, whole.profile_id)
        for compute in wanted or ():
            nvml.create_compute_instance(index, instance_id, compute.profile_id, (compute.start, compute.size))


def _switch(nvml: Nvml, change: Change, *, on: bool) -> tuple[tuple[Placed, tuple[ComputeInstance, ...] | None], ...]:
    """Switch the mode; what is to be created, in the words of the driver, which may tell its profiles only now."""
    index = change.index
    nvml.set_mig_mode(index, on=on)
    (now,) = read_gpus(nvml, [index])
    if now.facts.mig_now != on:
        raise DriverError(
            f"GPU {index}: the new MIG mode takes effect only when the GPU is reset: stop everything that uses it, "
            f"`sudo nvidia-smi -i {index} -mig {int(on)}`, `sudo nvidia-smi --gpu-reset -i {index}`, and run the "
            "command again"
        )
    if not change.created:
        return ()
    told = {} if now.device is None else {profile.name: profile for profile in now.device.profiles}
    created = tuple(
        (Placed(told[placed.profile.name], placed.start), compute)
        for placed, compute in change.created
        if placed.profile.name in told
    )
    wrong = [] if now.device is None else conflicts(now.device, [placed for placed, _ in created])
    if wrong or len(created) != len(change.created):
        raise DriverError(
            f"GPU {index}: now that MIG mode is on, its driver tells other placements than the catalogue had: "
            f"{'; '.join(wrong) or 'a profile is missing'}"
        )
    return created


def _put_back(nvml: Nvml, changes: Sequence[Change], failure: BaseException) -> None:
    """Bring the GPUs back to where they were; a call that fails once is tried again.

    Raises
    ------
    DriverError
        When that does not work either.
    """
    for _ in range(PUT_BACK_TRIES):
        if not any([_not_back(nvml, change, repair=True) for change in changes]):  # noqa: C419 - all of them
            break
    left = [said for change in changes if (said := _not_back(nvml, change, repair=False))]
    if left:
        raise DriverError(
            f"{failure}. Putting the old layout back failed too; still to do: {'; '.join(left)}. "
            "`preba mig restore` tries again"
        ) from failure


def _not_back(nvml: Nvml, change: Change, *, repair: bool) -> str:
    """What one GPU lacks to be as before, after doing it if asked; empty when it is."""
    try:
        back = _way_back(nvml, change)
        if repair and not back.is_empty:
            _do(nvml, back)
            back = _way_back(nvml, change)
    except (DriverError, PartitionError) as error:
        return f"GPU {change.index}: {error}"
    return "" if back.is_empty else f"GPU {change.index}: {', '.join(back.steps)}"


def _way_back(nvml: Nvml, change: Change) -> Change:
    (now,) = read_gpus(nvml, [change.index])
    wanted = wanted_as_it_is(change.state)
    if now.facts.mig_pending != now.facts.mig_now and now.facts.mig_now == wanted.mig:
        # A switch that waits for a reset is taken back too.
        return replace(plan_change(now, wanted), mode=wanted.mig)
    return plan_change(now, wanted)
