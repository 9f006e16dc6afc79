"""``preba mig show|assert|apply|export|restore``: this machine's own GPUs, through their driver.

Looking needs nothing; listing exact places and every change need privileges. What changes a GPU prints its plan first,
and does it only with ``--yes``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from preba.cli.mig import JsonOption, known, mig_app, print_json, print_profiles, table_of
from preba.errors import DriverError, FormatError, OutputError, PartitionError
from preba.mig.geometry import additions
from preba.mig.migparted import CURRENT, read_mig_parted
from runtime.mig import (
    Change,
    GpuState,
    Wanted,
    carry_out,
    difference,
    plan_change,
    process_name,
    read_gpus,
    wanted_layout,
)
from runtime.mig_files import (
    mig_parted_current,
    newest_journal,
    read_layout,
    save_layout,
    saved_layout,
    wanted_by_entries,
    write_journal,
)
from runtime.nvml import Nvml, open_nvml

__all__ = ["mig_app"]

LayoutArgument = Annotated[
    str,
    typer.Argument(
        help="7x1g.5gb, 3g.20gb@4,1g.5gb@0, FILE.yaml:LABEL of mig-parted, none (no slices) or off (no MIG)."
    ),
]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", help="Index of a GPU, several with commas, or all; needed where there are more.")
]
ChangeModeOption = Annotated[
    bool, typer.Option("--change-mode", help="Allow switching MIG mode, which may reset the GPU.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it. Without this the plan is printed and nothing changes.")]


@mig_app.command("show")
def show(
    *,
    gpu: GpuOption = None,
    profiles: Annotated[bool, typer.Option("--profiles", help="Also the profiles and placements on offer.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how this machine's GPUs are cut: modes, slices, places, UUIDs, what runs on them."""
    console = Console(highlight=False)
    with open_nvml() as nvml:
        driver = nvml.driver_version()
        states = read_gpus(nvml, _indices(nvml, gpu or "all"))
    if as_json:
        print_json({"driver": driver, "gpus": [_state_json(state, profiles=profiles) for state in states]})
        return
    console.print(f"driver {driver}", markup=False)
    for state in states:
        _print_state(state, console)
        if profiles and state.device is not None:
            print_profiles(state.device, console)
    if not states:
        console.print("no GPU", markup=False)


@mig_app.command("assert")
def assert_layout(layout: LayoutArgument, *, gpu: GpuOption = None, as_json: JsonOption = False) -> None:
    """Check that GPUs are cut as a layout says: exit code 0 if so, 1 with the differences if not."""
    with open_nvml() as nvml:
        found = {state.facts.index: difference(state, wanted) for state, wanted in _wanted(nvml, layout, gpu)}
    if as_json:
        print_json({"agrees": not any(found.values()), "differences": {str(k): v for k, v in found.items()}})
    else:
        for index, wrong in found.items():
            typer.echo(f"GPU {index}: {'; '.join(wrong) or 'as asked'}")
    if any(found.values()):
        raise typer.Exit(1)


@mig_app.command("apply")
def apply_layout(
    layout: LayoutArgument,
    *,
    gpu: GpuOption = None,
    change_mode: ChangeModeOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cut GPUs as a layout says. Prints its plan; changes something only with --yes, or nothing if a step fails."""
    with open_nvml() as nvml:
        wanted = _wanted(nvml, layout, gpu)
        _change(nvml, wanted, change_mode=change_mode, yes=yes, as_json=as_json)


@mig_app.command("export")
def export_layout(
    file: Annotated[
        Path | None, typer.Argument(help="FILE.json: exact, for restore; FILE.yaml: mig-parted's form.")
    ] = None,
    *,
    gpu: GpuOption = None,
) -> None:
    """Write how GPUs are cut: mig-parted's form (on stdout without a file), or exactly, with every place."""
    if file is not None and file.suffix not in {".json", ".yaml", ".yml"}:
        raise OutputError(f"{file}: its name must end in .json (exact) or .yaml (mig-parted's form)")
    with open_nvml() as nvml:
        states = read_gpus(nvml, _indices(nvml, gpu or "all"))
        driver = nvml.driver_version()
    if file is not None and file.suffix == ".json":
        save_layout(file, saved_layout(states, driver=driver))
        return
    text = mig_parted_current(states)
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise OutputError(f"{file}: cannot write the layout ({problem.strerror})") from problem


@mig_app.command("restore")
def restore_layout(
    file: Annotated[
        Path | None, typer.Argument(help="What export wrote; by default what the last apply found.")
    ] = None,
    *,
    change_mode: ChangeModeOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring GPUs back to a layout that was exported, or to what was there before the last apply."""
    source = newest_journal() if file is None else file
    with open_nvml() as nvml:
        if source.suffix in {".yaml", ".yml"}:
            wanted = _wanted(nvml, f"{source}:{CURRENT}", "all")
        else:
            by_uuid = {state.facts.uuid: state for state in read_gpus(nvml)}
            saved = [each for each in read_layout(source).gpus if each.mig is not None]
            missing = [f"{each.name} {each.uuid}" for each in saved if each.uuid not in by_uuid]
            if missing:
                raise FormatError(f"{source}: of another machine, or a GPU is gone: {', '.join(missing)}")
            wanted = [(by_uuid[each.uuid], each.wanted) for each in saved]
        Console(stderr=True, highlight=False).print(f"from {source}", markup=False, soft_wrap=True)
        _change(nvml, wanted, change_mode=change_mode, yes=yes, as_json=as_json)


def _change(nvml: Nvml, wanted: list[tuple[GpuState, Wanted]], *, change_mode: bool, yes: bool, as_json: bool) -> None:
    """Plan, print, and, if that is asked for, do it."""
    changes = [plan_change(state, each) for state, each in wanted]
    todo = [change for change in changes if not change.is_empty]
    if not as_json:
        for change in changes:
            _print_change(change)
    needs_mode = [str(change.index) for change in todo if change.mode is not None]
    if needs_mode and not change_mode:
        raise DriverError(
            f"GPU {', '.join(needs_mode)}: MIG mode has to be switched, which may reset the GPU and ends what runs on "
            "it: add --change-mode to allow that"
        )
    done = bool(todo) and yes
    kept: Path | None = None
    after: tuple[GpuState, ...] = ()
    if done:
        kept = write_journal(saved_layout([change.state for change in todo], driver=nvml.driver_version()))
        after = carry_out(nvml, todo)
    if as_json:
        plans = [{"gpu": each.index, "keep": [one.label for one in each.kept], "steps": each.steps} for each in changes]
        print_json({
            "done": done, "plan": plans, "before": None if kept is None else str(kept),
            "gpus": [_state_json(state, profiles=False) for state in after],
        })  # fmt: skip
        return
    if not todo:
        typer.echo("nothing to do")
    elif not yes:
        typer.echo("nothing was changed: add --yes to do this")
    else:
        console = Console(highlight=False)
        for state in after:
            _print_state(state, console)
        console.print(f"what was there before is kept: preba mig restore {kept}", markup=False, soft_wrap=True)


def _indices(nvml: Nvml, text: str) -> list[int]:
    """Read ``0``, ``0,2`` or ``all``."""
    count = len(nvml.gpus())
    if text == "all":
        return list(range(count))
    if re.fullmatch(r"\d+(,\d+)*", text) is None:
        raise DriverError(f"--gpu: must be an index, several with commas, or all, got {text!r}")
    return sorted({int(part) for part in text.split(",")})


def _wanted(nvml: Nvml, layout: str, gpu: str | None) -> list[tuple[GpuState, Wanted]]:
    """What a layout, in any form, asks of each GPU."""
    file = re.fullmatch(r"(?P<file>.+\.ya?ml)(?::(?P<label>[^:/]+))?", layout)
    states = read_gpus(nvml, _indices(nvml, gpu or "all"))
    if file is not None:
        read = read_mig_parted(Path(file["file"]))
        if file["label"] is None:
            raise PartitionError(f"LAYOUT: write {layout}:LABEL; labels: {', '.join(read.labels)}")
        found = wanted_by_entries(read, file["label"], states, where=file["file"])
        if not found:
            raise PartitionError(f"LAYOUT: label {file['label']!r} of {file['file']} speaks of no GPU of this machine")
        return found
    capable = [state for state in states if state.facts.mig_now is not None]
    if gpu is None and len(states) > 1:
        raise DriverError(f"this machine has {len(states)} GPUs: say which with --gpu 0, or --gpu all")
    if not capable:
        names = ", ".join(state.facts.name for state in states) or "this machine has no GPU"
        raise DriverError(f"no GPU with MIG here: {names}")
    wanted = []
    for state in capable:
        if layout in {"none", "off"}:
            wanted.append((state, Wanted(mig=layout == "none")))
            continue
        if state.device is None:
            raise DriverError(
                f"GPU {state.facts.index} ({state.facts.name}): its driver tells the profiles only with MIG mode on: "
                f"`preba mig apply none --gpu {state.facts.index} --change-mode --yes` first"
            )
        wanted.append((state, wanted_layout(state.device, layout, where="LAYOUT")))
    return wanted


def _state_json(state: GpuState, *, profiles: bool) -> dict[str, Any]:
    facts = state.facts
    data: dict[str, Any] = {
        "index": facts.index,
        "uuid": facts.uuid,
        "name": facts.name,
        "pci_device_id": facts.pci_device_id,
        "mig": facts.mig_now,
        "mig_pending": facts.mig_pending,
        "slices": None
        if state.slices is None
        else [
            {
                "profile": each.profile.name,
                "profile_id": each.profile.profile_id,
                "gpu_instance_id": each.instance.instance_id,
                "start": each.instance.start,
                "size": each.instance.size,
                "compute_instances": [
                    {"id": one.instance_id, "profile_id": one.profile_id, "start": one.start, "size": one.size}
                    for one in each.instance.compute
                ],
            }
            for each in state.slices
        ],
        "mig_devices": [
            {
                "uuid": each.uuid,
                "name": each.name,
                "gpu_instance_id": each.gpu_instance_id,
                "compute_instance_id": each.compute_instance_id,
                "processes": [{"pid": one.pid, "memory_bytes": one.memory_bytes} for one in each.processes],
            }
            for each in state.mig_devices
        ],
        "processes": [{"pid": one.pid, "memory_bytes": one.memory_bytes} for one in state.processes],
    }
    if profiles:
        data["profiles"] = [] if state.device is None else [one.model_dump() for one in state.device.profiles]
    return data


def _print_state(state: GpuState, console: Console) -> None:
    facts = state.facts
    mode = {True: "MIG on", False: "MIG off", None: "no MIG"}[facts.mig_now]
    if facts.mig_pending != facts.mig_now:
        mode += f" ({'on' if facts.mig_pending else 'off'} after a reset)"
    console.print(f"\nGPU {facts.index}: {facts.name}, {mode}, {facts.uuid}", markup=False, soft_wrap=True)
    if not facts.mig_now:
        if state.processes:
            used = ", ".join(process_name(each) for each in state.processes)
            console.print(f"used by {used}", markup=False, soft_wrap=True)
        return
    if state.slices is None:
        _print_devices_only(state, console)
        return
    left = ("slice", "MIG device", "processes")
    table = table_of("place", "slice", "SM", "GiB", "instance", "MIG device", "processes", left=left)
    for each in state.slices:
        rows = [
            (one.uuid if each.is_whole else f"{one.uuid} ({one.name})", ", ".join(map(process_name, one.processes)))
            for one in each.devices
        ] or [("no compute instance", "")]
        for number, (device, used) in enumerate(rows):
            memory = each.profile.memory_mib
            facts_of = (
                f"{each.instance.start}:{each.instance.size}", each.profile.name, known(each.profile.sms),
                "?" if memory is None else f"{memory / 1024:.2f}", str(each.instance.instance_id),
            )  # fmt: skip
            table.add_row(*(facts_of if number == 0 else ("",) * 5), device, used)
    if state.slices:
        console.print(table)
    else:
        console.print("no slices", markup=False)
    if state.device is not None:
        fits: dict[str, list[int]] = {}
        for new in additions(state.device, [each.placed for each in state.slices], state.device.profiles):
            fits.setdefault(new.profile.name, []).append(new.start)
        room = "; ".join(f"{name} at {', '.join(map(str, starts))}" for name, starts in fits.items())
        console.print(f"room for: {room or 'nothing more'}", markup=False, soft_wrap=True)


def _print_devices_only(state: GpuState, console: Console) -> None:
    table = table_of("instance", "MIG device", "name", "processes", left=("MIG device", "name", "processes"))
    for one in state.mig_devices:
        used = ", ".join(map(process_name, one.processes))
        table.add_row(str(one.gpu_instance_id), one.uuid, one.name.partition("MIG ")[2], used)
    console.print(table)
    console.print("only privileged users may see places and slices without a MIG device: use sudo", markup=False)


def _print_change(change: Change) -> None:
    now = (
        "+".join(f"{n}x{name}" if n > 1 else name for name, n in sorted(change.state.counts.items(), reverse=True))
        or "no slices"
    )
    now = now if change.state.facts.mig_now else "MIG off"
    typer.echo(f"GPU {change.index} ({change.state.facts.name}), now {now}:")
    for each in change.kept:
        used = f", used by {', '.join(map(process_name, each.processes))}" if each.processes else ""
        typer.echo(f"  keep {each.label}{used}")
    for step in change.steps:
        typer.echo(f"  {step}")
    if change.is_empty and not change.kept:
        typer.echo("  nothing to do")
