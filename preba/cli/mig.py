"""``preba mig list|plan|read``: what GPUs can be cut into, how to cut one, what a file says. No GPU is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from preba.errors import FormatError, MissingFileError, PartitionError
from preba.mig.catalogue import Device, SliceProfile, device_names, load_device
from preba.mig.geometry import geometries, maximal_placements
from preba.mig.migparted import CURRENT, MigPartedFile, read_mig_parted, write_mig_parted
from preba.mig.placement import Partition, resolve_partition
from preba.mig.plan import Plan, plan_partition
from preba.mig.smi import closest_device, differences, parse_lgipp, read_listing

mig_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Cut GPUs into MIG slices. list, plan and read need no GPU; the others look at this machine's own.",
)

MIB_PER_GIB = 1024
ENGINES = ("copy_engines", "decoders", "jpeg_engines", "ofa_engines", "encoders")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


@mig_app.command("list")
def list_devices(
    device: Annotated[str | None, typer.Argument(help="Device of the catalogue, or a YAML file.")] = None,
    with_geometries: Annotated[  # noqa: FBT002 - typer's way to declare a flag
        bool, typer.Option("--geometries", help="List the distinct geometries, not only their number.")
    ] = False,
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """List the devices of the catalogue, or one device's profiles, limits and doubtful figures."""
    console = Console(highlight=False)
    if device is None:
        devices = [load_device(name) for name in device_names()]
        if as_json:
            print_json({"devices": [_device_row(each) for each in devices]})
        else:
            _print_devices(devices, console)
        return
    found = load_device(device)
    if as_json:
        print_json(_device_json(found))
        return
    console.print(f"{found.product} ({found.name}), {found.architecture}", markup=False)
    print_profiles(found, console)
    _print_geometries(found, console, listed=with_geometries)
    _print_doubts(found, console)


@mig_app.command("plan")
def plan(
    device: Annotated[str, typer.Argument(help="Device of the catalogue, or a YAML file.")],
    partition: Annotated[
        str,
        typer.Argument(help="7x1g.5gb, 4g.20gb+3g.20gb, 3g.20gb@4,1g.5gb@0, or FILE.yaml:LABEL of mig-parted."),
    ],
    gpu: Annotated[int, typer.Option(min=0, help="Index of the GPU in the commands.")] = 0,
    mig_parted: Annotated[
        Path | None, typer.Option("--mig-parted", help="Also write the partition as a mig-parted file.")
    ] = None,
    label: Annotated[str, typer.Option(help="Label in that file.")] = CURRENT,
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Show how to cut a GPU: order of creation, commands, what is left over, engines of every slice."""
    found = load_device(device)
    wanted = plan_partition(_partition(found, partition), gpu_index=gpu)
    if mig_parted is not None:
        write_mig_parted(mig_parted, {label: [wanted.partition]})
    if as_json:
        print_json(wanted.as_json())
    else:
        _print_plan(wanted, Console(highlight=False))
    if mig_parted is not None:
        Console(stderr=True, highlight=False).print(f"mig-parted: {mig_parted}", markup=False, soft_wrap=True)


@mig_app.command("read")
def read(
    file: Annotated[Path, typer.Argument(help="Output of nvidia-smi mig -lgip/-lgipp, or a mig-parted YAML file.")],
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Read an nvidia-smi listing (and compare it with the catalogue) or a mig-parted file."""
    console = Console(highlight=False)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{file}: no such file") from None
    except (IsADirectoryError, UnicodeDecodeError) as problem:
        raise FormatError(f"{file}: not a text file ({problem})") from problem
    if "mig-configs" in text or file.suffix in {".yaml", ".yml"}:
        _read_mig_parted(file, console, as_json=as_json)
    elif "GPU instance profiles" in text:
        _read_listing(text, str(file), console, as_json=as_json)
    elif re.search(r"Profile\s+ID\s+\d+\s+Placement", text):
        _read_placements(text, str(file), console, as_json=as_json)
    else:
        raise FormatError(
            f"{file}: neither output of `nvidia-smi mig -lgip` or `-lgipp` nor a mig-parted file (mig-configs)"
        )


def _partition(device: Device, text: str) -> Partition:
    """Resolve a partition given as text, or as ``FILE.yaml:LABEL``."""
    match = re.fullmatch(r"(?P<file>.+\.ya?ml)(?::(?P<label>[^:/]+))?", text)
    if match is None:
        return resolve_partition(device, text, where="PARTITION")
    file = read_mig_parted(Path(match["file"]))
    if match["label"] is None:
        raise PartitionError(f"PARTITION: write {text}:LABEL; labels: {', '.join(file.labels)}")
    found = file.partitions(match["label"], device, where=match["file"])
    distinct = {each.name: each for each in found}
    if len(distinct) != 1:
        what = "cuts no" if not distinct else f"has {len(distinct)} different partitions for a"
        raise PartitionError(f"PARTITION: label {match['label']!r} of {match['file']} {what} {device.name}")
    return found[0]


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def known(value: object) -> str:
    """A value, or a question mark where no source tells it."""
    return "?" if value is None else str(value)


def _gib(memory_mib: int | None) -> str:
    return "?" if memory_mib is None else f"{memory_mib / MIB_PER_GIB:.2f}"


def table_of(*columns: str, left: Iterable[str] = ()) -> Table:
    """An empty table; the columns named in `left` are aligned there and may wrap."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        side = name in left
        table.add_column(name, justify="left" if side else "right", no_wrap=not side, overflow="fold")
    return table


def _device_row(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "aliases": list(device.aliases),
        "product": device.product,
        "compute_slices": device.compute_slices,
        "memory_slices": device.memory_slices,
        "sms_total": device.sms_total,
        "profiles": [profile.name for profile in device.profiles],
        "placements": device.placements,
        "doubts": len(device.doubts),
    }


def _print_devices(devices: list[Device], console: Console) -> None:
    table = table_of("device", "g", "SM", "profiles", "places", "doubts", left=("device", "profiles", "places"))
    for device in devices:
        names = " ".join(profile.name for profile in device.plain_profiles())
        table.add_row(
            device.name,
            str(device.compute_slices),
            known(device.sms_total),
            names,
            device.placements,
            str(len(device.doubts)),
        )
    console.print(table)
    console.print(
        "`preba mig list DEVICE` shows all profiles of one, its limits and its doubtful figures.",
        markup=False,
    )


def _profile_json(profile: SliceProfile) -> dict[str, Any]:
    return {**profile.model_dump(), "kubernetes_resource": profile.resource_name}


def _device_json(device: Device) -> dict[str, Any]:
    data = json.loads(device.model_dump_json())
    data["profiles"] = [_profile_json(profile) for profile in device.profiles]
    if device.memory_slices is not None:
        for key, double in (("plain", False), ("with_double_memory", True)):
            profiles = device.plain_profiles(double_memory=double)
            found = geometries(device, profiles)
            data.setdefault("geometries", {})[key] = {
                "maximal_placements": len(maximal_placements(device, profiles)),
                "geometries": [list(names) for names in found],
            }
    return dict(data)


def print_profiles(device: Device, console: Console) -> None:
    """Print the profiles of a device with their limits, engines and places."""
    table = table_of(
        "profile",
        "id",
        "SM",
        "GiB",
        "CE",
        "DEC",
        "JPG",
        "OFA",
        "ENC",
        "max",
        "starts:size",
        left=("profile", "starts:size"),
    )
    for profile in device.profiles:
        places = "?" if profile.starts is None else f"{','.join(map(str, profile.starts))}:{profile.size}"
        table.add_row(
            profile.name,
            known(profile.profile_id),
            known(profile.sms),
            _gib(profile.memory_mib),
            *(known(getattr(profile, field)) for field in ENGINES),
            str(profile.instances_max),
            places,
        )
    console.print(table)


def _print_geometries(device: Device, console: Console, *, listed: bool) -> None:
    if device.memory_slices is None:
        console.print("placements unknown: geometries cannot be counted", markup=False)
        return
    plain, double = device.plain_profiles(), device.plain_profiles(double_memory=True)
    found = geometries(device, plain)
    console.print(
        f"{len(maximal_placements(device, plain))} maximal placements, {len(found)} distinct geometries of "
        f"{', '.join(profile.name for profile in plain)}",
        markup=False,
    )
    extra = [profile.name for profile in double if profile not in plain]
    if extra:
        console.print(
            f"{len(maximal_placements(device, double))} and {len(geometries(device, double))} with the "
            f"double-memory {', '.join(extra)}",
            markup=False,
        )
    if listed:
        for names in found:
            console.print("  " + " ".join(names), markup=False)


def _print_doubts(device: Device, console: Console) -> None:
    console.print(f"\nsource ({device.provenance.kind}): {device.provenance.source}", markup=False)
    for doubt in device.doubts:
        console.print(f"doubtful: {doubt.about}: {doubt.used} ({doubt.kind}; {doubt.used_from})", markup=False)
        for other in doubt.others:
            console.print(f"  otherwise: {other.value} ({other.source})", markup=False)


def _print_plan(wanted: Plan, console: Console) -> None:
    partition = wanted.partition
    console.print(f"{partition.device.product}: {partition.name}", markup=False)
    table = table_of("start", "profile", "id", "g", "SM", "GiB", "CE", "DEC", "JPG", "OFA", "ENC", left=("profile",))
    for each in partition.slices:
        table.add_row(
            f"{each.start}:{each.size}",
            each.profile,
            known(each.profile_id),
            str(each.gpcs),
            known(each.sms),
            _gib(each.memory_mib),
            *(known(getattr(each, field)) for field in ENGINES),
        )
    console.print(table)

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    line("create, in this order: " + ", ".join(each.label for each in wanted.order))
    line(f"  {wanted.enable}")
    line(f"  {wanted.create}")
    line(f"  {wanted.inspect}")
    if wanted.create_in_order is not None and wanted.create_in_order != wanted.create:
        line("where the driver chooses the starts itself:")
        line(f"  {wanted.create_in_order}")
    line("remove:")
    for command in wanted.remove:
        line(f"  {command}")
    left = wanted.leftover
    free = ", ".join(map(str, left.free_memory_slices)) or "none"
    compute = f"{left.free_compute_slices} of {partition.device.compute_slices} compute slices"
    line(f"left over: {compute}; memory slices {free}")
    for name, starts in left.fits.items():
        line(f"  {name} still fits at {', '.join(map(str, starts))}")
    line("Kubernetes: " + ", ".join(f"{name}: {count}" for name, count in wanted.kubernetes.items()))
    for note in wanted.notes:
        line(f"note: {note}")


def _read_listing(text: str, origin: str, console: Console, *, as_json: bool) -> None:
    catalogue = [load_device(name) for name in device_names()]
    data: dict[str, Any] = {"kind": "nvidia-smi mig -lgip", "gpus": []}
    for gpu, listed in read_listing(text, origin=origin).items():
        known = closest_device(listed, catalogue)
        found = () if known is None else differences(listed, known)
        data["gpus"].append(
            {
                "gpu": gpu,
                "profiles": [_profile_json(profile) for profile in listed.profiles],
                "placements": listed.placements,
                "closest": None if known is None else known.name,
                "differences": [
                    {"profile": d.profile, "field": d.field, "listed": d.listed, "catalogue": d.catalogue}
                    for d in found
                ],
            }
        )
        if as_json:
            continue
        console.print(f"GPU {gpu}", markup=False)
        print_profiles(listed, console)
        if known is None:
            console.print("no device of the catalogue has any of these profiles", markup=False)
            continue
        verdict = "agrees with it" if not found else f"{len(found)} differences"
        console.print(f"closest in the catalogue: {known.name}; {verdict}", markup=False)
        for difference in found:
            console.print(f"  {difference}", markup=False)
    if as_json:
        print_json(data)


def _read_placements(text: str, origin: str, console: Console, *, as_json: bool) -> None:
    found = parse_lgipp(text, origin=origin)
    if as_json:
        gpus = [
            {
                "gpu": gpu,
                "placements": [{"profile_id": i, "starts": s, "size": z} for i, (s, z) in rows.items()],
            }
            for gpu, rows in found.items()
        ]
        print_json({"kind": "nvidia-smi mig -lgipp", "gpus": gpus})
        return
    for gpu, rows in found.items():
        table = table_of("profile id", "starts", "size", left=("starts",))
        for profile_id, (starts, size) in rows.items():
            table.add_row(str(profile_id), ", ".join(map(str, starts)), str(size))
        console.print(f"GPU {gpu}", markup=False)
        console.print(table)
    console.print("add the output of `nvidia-smi mig -lgip` to the same file to name the profiles", markup=False)


def _read_mig_parted(file: Path, console: Console, *, as_json: bool) -> None:
    found = read_mig_parted(file)
    catalogue = [load_device(name) for name in device_names()]
    entries = [(label, index, e) for label, es in found.mig_configs.items() for index, e in enumerate(es)]
    possible = [_possible_on(found, label, index, catalogue) for label, index, _ in entries]
    if as_json:
        rows = [
            {
                "label": label,
                "entry": index,
                "device_filter": entry.device_filter,
                "devices": entry.devices,
                "mig_enabled": entry.mig_enabled,
                "mig_devices": entry.counts,
                "possible_on": names,
            }
            for (label, index, entry), names in zip(entries, possible, strict=True)
        ]
        print_json({"kind": "mig-parted", "version": found.version, "configs": rows})
        return
    table = table_of("label", "GPUs", "slices", "possible on", left=("label", "GPUs", "slices", "possible on"))
    for (label, _, entry), names in zip(entries, possible, strict=True):
        gpus = "all" if entry.devices == "all" else ", ".join(map(str, entry.devices))
        slices = ", ".join(f"{count}x{name}" for name, count in entry.counts.items())
        off = "none" if entry.mig_enabled else "MIG off"
        where = ", ".join(names) if entry.counts else "any"
        table.add_row(label, gpus, slices or off, where or "no device of the catalogue")
    console.print(table)


def _possible_on(file: MigPartedFile, label: str, index: int, catalogue: list[Device]) -> list[str]:
    """Name the catalogue devices an entry lets through and whose rules allow its slices."""
    entry = file.mig_configs[label][index]
    names = []
    for device in catalogue:
        if not entry.counts or not entry.matches(device):
            continue
        try:
            resolve_partition(device, entry.counts, where=label)
        except PartitionError:
            continue
        names.append(device.name)
    return names
