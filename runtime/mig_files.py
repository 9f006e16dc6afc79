"""Layouts on disk: the exact one, as JSON that `restore` reads, and mig-parted's form. Nothing here asks a driver."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from preba.errors import DriverError, FormatError, MissingFileError, OutputError, PartitionError
from preba.mig.migparted import CURRENT, MigPartedEntry, MigPartedFile, mig_parted_entries
from preba.strict import StrictModel
from preba.strictfile import read_yaml, validate
from runtime.mig import GpuState, Wanted, WantedSlice, wanted_as_it_is, wanted_layout
from runtime.nvml import ComputeInstance

__all__ = [
    "SavedLayout",
    "mig_parted_current",
    "newest_journal",
    "read_layout",
    "save_layout",
    "saved_layout",
    "wanted_by_entries",
    "write_journal",
]

KEPT_JOURNALS = 50


class SavedCompute(StrictModel):
    """A compute instance; start and size in compute slices of its GPU instance."""

    profile_id: int
    start: int
    size: int


class SavedSlice(StrictModel):
    """A GPU instance; ``compute`` only where one compute instance does not have all of it."""

    profile: str
    start: int
    compute: tuple[SavedCompute, ...] | None = None


class SavedGpu(StrictModel):
    """One GPU's layout; it is found again by its UUID."""

    index: int
    uuid: str
    name: str
    pci_device_id: str
    mig: bool | None
    slices: tuple[SavedSlice, ...] = ()

    @property
    def wanted(self) -> Wanted:
        """The layout, as `runtime.mig.plan_change` takes it."""
        return Wanted(
            mig=bool(self.mig),
            slices=tuple(
                WantedSlice(
                    each.profile,
                    each.start,
                    None
                    if each.compute is None
                    else tuple(
                        ComputeInstance(number, one.profile_id, one.start, one.size)
                        for number, one in enumerate(each.compute)
                    ),
                )
                for each in self.slices
            ),
        )


class SavedLayout(StrictModel):
    """How the GPUs of a machine were cut at some time."""

    format: Literal["preba-mig-layout"] = "preba-mig-layout"
    version: Literal[1] = 1
    time: str
    driver: str
    gpus: tuple[SavedGpu, ...]


def saved_layout(states: Sequence[GpuState], *, driver: str) -> SavedLayout:
    """Take down how GPUs are cut.

    Raises
    ------
    DriverError
        Without the right to list the slices.
    """
    gpus = []
    for state in states:
        facts, wanted = state.facts, wanted_as_it_is(state)
        slices = tuple(
            SavedSlice(
                profile=each.profile,
                start=0 if each.start is None else each.start,
                compute=None
                if each.compute is None
                else tuple(SavedCompute(profile_id=c.profile_id, start=c.start, size=c.size) for c in each.compute),
            )
            for each in wanted.slices
        )
        gpus.append(
            SavedGpu(
                index=facts.index, uuid=facts.uuid, name=facts.name, pci_device_id=facts.pci_device_id,
                mig=facts.mig_now, slices=slices,
            )
        )  # fmt: skip
    return SavedLayout(time=datetime.now(UTC).isoformat(timespec="seconds"), driver=driver, gpus=tuple(gpus))


def save_layout(path: Path, layout: SavedLayout) -> None:
    """Write a layout, whole or not at all.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(layout.model_dump_json(indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as problem:
        beside.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot write the layout ({problem.strerror})") from problem


def read_layout(path: Path) -> SavedLayout:
    """Read what `save_layout` wrote.

    Raises
    ------
    MissingFileError, FormatError
        The message names field, file and line.
    """
    data, lines = read_yaml(path, error=FormatError)
    return validate(SavedLayout, data, origin=str(path), lines=lines, error=FormatError)


def journal_folder() -> Path:
    """Where `apply` keeps what was there before."""
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "preba" / "mig"


def write_journal(layout: SavedLayout) -> Path:
    """Keep a layout before it is changed, under a name that sorts by time; the oldest ones go.

    Raises
    ------
    OutputError
        It cannot be written; then nothing should be changed.
    """
    folder = journal_folder()
    path = folder / f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%f')}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputError(f"{folder}: cannot keep the layout as it is now ({problem.strerror})") from problem
    save_layout(path, layout)
    for old in sorted(folder.glob("*.json"))[:-KEPT_JOURNALS]:
        old.unlink(missing_ok=True)
    return path


def newest_journal() -> Path:
    """What `apply` kept last.

    Raises
    ------
    MissingFileError
        It kept nothing yet.
    """
    found = sorted(journal_folder().glob("*.json"))
    if not found:
        raise MissingFileError(f"no layout was kept under {journal_folder()}: name the file to restore")
    return found[-1]


def mig_parted_current(states: Sequence[GpuState]) -> str:
    """Write how GPUs are cut as a mig-parted file with the label ``current``: counts, no places.

    Raises
    ------
    DriverError
        That form cannot say it: compute instances smaller than their slice.
    """
    groups: dict[tuple[str, bool, tuple[tuple[str, int], ...]], list[int]] = {}
    for state in states:
        if state.facts.mig_now is None:
            continue
        broken = [each.label for each in state.slices or () if not each.is_whole]
        if broken:
            raise DriverError(
                f"GPU {state.facts.index}: {', '.join(broken)} is not one whole compute instance, which a mig-parted "
                "file cannot say: export to a file that ends in .json"
            )
        key = (state.facts.pci_device_id, state.facts.mig_now, tuple(sorted(state.counts.items())))
        groups.setdefault(key, []).append(state.facts.index)
    entries = [
        MigPartedEntry.model_validate(
            {
                "device-filter": f"{pci}10DE",
                "devices": indices,
                "mig-enabled": mig,
                "mig-devices": dict(counts) if mig else None,
            }
        )
        for (pci, mig, counts), indices in groups.items()
    ]
    if not entries:
        raise DriverError("no GPU of this machine has MIG: there is nothing to export")
    return mig_parted_entries({CURRENT: entries})


def wanted_by_entries(
    file: MigPartedFile, label: str, states: Sequence[GpuState], *, where: str
) -> list[tuple[GpuState, Wanted]]:
    """What a label of a mig-parted file wants of each GPU; GPUs it does not speak of are left out.

    Raises
    ------
    PartitionError
        There is no such label, two entries want different things of one GPU, or it does not fit.
    """
    file.require(label, where=where)
    found: dict[int, tuple[GpuState, Wanted]] = {}
    for number, entry in enumerate(file.mig_configs[label]):
        for state in states:
            index, device = state.facts.index, state.device
            if entry.devices != "all" and index not in entry.devices:
                continue
            if device is None or not entry.matches(device):
                continue
            place = f"{where}: {label}[{number}].mig-devices"
            wanted = wanted_layout(device, entry.counts, where=place) if entry.mig_enabled else Wanted(mig=False)
            if index in found and found[index][1] != wanted:
                raise PartitionError(f"{where}: {label} wants two different layouts of GPU {index}")
            found[index] = (state, wanted)
    return [found[index] for index in sorted(found)]
