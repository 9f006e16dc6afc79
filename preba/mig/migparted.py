"""mig-parted configuration files (``version: v1``), read and written; what a partition is lives in placement.py.

Source of the form: NVIDIA mig-parted, api/spec/v1/spec.go. An entry that misses ``devices`` or ``mig-enabled``, a
field it does not know, an enabled entry without ``mig-devices`` and a disabled one with them are errors there too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from preba.errors import FormatError, OutputError, PartitionError, nearest
from preba.mig.catalogue import PROFILE_NAME, Device
from preba.mig.placement import Partition, resolve_partition
from preba.strict import StrictModel
from preba.strictfile import Lines, read_yaml, validate

__all__ = [
    "MigPartedEntry",
    "MigPartedFile",
    "mig_parted_entries",
    "mig_parted_text",
    "read_mig_parted",
    "write_mig_parted",
]

CURRENT = "current"
"""The label that ``nvidia-mig-parted export`` writes."""


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


class _Hyphenated(StrictModel):
    """A model whose keys are written with hyphens."""

    model_config = ConfigDict(alias_generator=_hyphens)


FILTER = re.compile(r"0[xX][0-9A-Fa-f]{8}")
"""PCI device and vendor id; newer releases may add a subsystem behind it."""


def _devices(value: object) -> object:
    """Accept ``all`` or a list of indices, and say both when it is neither."""
    if value == "all":
        return value
    if isinstance(value, list | tuple) and all(type(each) is int and each >= 0 for each in value):
        return tuple(value)
    raise ValueError(f"must be all or a list of GPU indices, got {value!r}")


def _device_filter(value: object) -> object:
    """Accept one PCI id or a list of them."""
    if value is None or (isinstance(value, str) and FILTER.match(value)):
        return value
    if isinstance(value, list | tuple) and all(isinstance(each, str) and FILTER.match(each) for each in value):
        return tuple(value)
    raise ValueError(f"must be like 0x20B010DE, or a list of such, got {value!r}")


class MigPartedEntry(_Hyphenated):
    """What one label asks of some GPUs of a node."""

    device_filter: Annotated[str | tuple[str, ...] | None, BeforeValidator(_device_filter)] = None
    devices: Annotated[Literal["all"] | tuple[int, ...], BeforeValidator(_devices)]
    mig_enabled: bool
    mig_devices: dict[str, Annotated[int, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        wanted = self.mig_devices
        if self.mig_enabled and wanted is None:
            raise ValueError("mig-devices: missing although mig-enabled is true")
        if not self.mig_enabled and wanted:
            raise ValueError("mig-devices: given although mig-enabled is false")
        for name in wanted or {}:
            if PROFILE_NAME.match(name) is None:
                raise ValueError(f"mig-devices: {name!r} is not a profile name like 1g.5gb or 1g.5gb+me")
        if wanted and not any(wanted.values()):
            raise ValueError("mig-devices: all counts are 0")
        return self

    @property
    def counts(self) -> dict[str, int]:
        """Profiles asked for, without those whose count is 0."""
        return {name: count for name, count in (self.mig_devices or {}).items() if count}

    def matches(self, device: Device) -> bool:
        """Whether the entry's filter lets this kind of GPU through (no filter: every kind)."""
        if self.device_filter is None:
            return True
        filters = (self.device_filter,) if isinstance(self.device_filter, str) else self.device_filter
        ours = {each.lower() for each in device.device_filters}
        return any(each[:10].lower() in ours for each in filters)


class MigPartedFile(_Hyphenated):
    """A whole file: labels, each with its entries."""

    version: Literal["v1"]
    mig_configs: dict[str, tuple[MigPartedEntry, ...]] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_empty_label(self) -> Self:
        for label, entries in self.mig_configs.items():
            if not entries:
                raise ValueError(f"mig-configs: label {label!r} needs at least one entry")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label of the file, in its order."""
        return tuple(self.mig_configs)

    def require(self, label: str, *, where: str) -> None:
        """Make sure that there is a label.

        Raises
        ------
        PartitionError
            There is none; the message suggests the nearest.
        """
        if label not in self.mig_configs:
            raise PartitionError(f"{where}: no label {label!r}{nearest(label, self.labels)}")

    def partitions(self, label: str, device: Device, *, where: str) -> tuple[Partition, ...]:
        """Give the partitions one label makes of one kind of GPU.

        Parameters
        ----------
        label : str
        device : Device
        where : str
            Beginning of the message of an error.

        Returns
        -------
        tuple of Partition
            One per entry of the label that matches the device and cuts it; empty when the label leaves it whole.

        Raises
        ------
        PartitionError
            When there is no such label, or the device does not allow what it asks for.
        """
        self.require(label, where=where)
        return tuple(
            resolve_partition(device, entry.counts, where=f"{where}: {label}[{index}].mig-devices")
            for index, entry in enumerate(self.mig_configs[label])
            if entry.mig_enabled and entry.counts and entry.matches(device)
        )


def read_mig_parted(path: Path) -> MigPartedFile:
    """Read a mig-parted configuration, or a Kubernetes ConfigMap that holds one under ``data``.

    Parameters
    ----------
    path : pathlib.Path

    Raises
    ------
    MissingFileError, FormatError
        The message names field, file and line.
    """
    data, lines = read_yaml(path, error=FormatError)
    if isinstance(data, Mapping) and data.get("kind") == "ConfigMap":
        inner = data.get("data")
        texts = [text for text in inner.values() if "mig-configs" in str(text)] if isinstance(inner, Mapping) else []
        if len(texts) != 1:
            raise FormatError(f"data: holds {len(texts)} mig-parted configurations, one is needed ({path})")
        try:
            data, lines = yaml.safe_load(texts[0]), {}
        except yaml.YAMLError as problem:
            raise FormatError(f"data: the configuration in it is not YAML ({path})") from problem
    if not isinstance(data, Mapping):
        raise FormatError(f"(top level): must be a mapping with version and mig-configs ({path})")
    _check_keys(MigPartedFile, data, (), origin=str(path), lines=lines)
    configs = data.get("mig-configs")
    for label, entries in configs.items() if isinstance(configs, Mapping) else ():
        for index, entry in enumerate(entries) if isinstance(entries, list) else ():
            place = ("mig-configs", str(label), str(index))
            _check_keys(MigPartedEntry, entry, place, origin=str(path), lines=lines)
    return validate(MigPartedFile, data, origin=str(path), lines=lines, error=FormatError)


def _check_keys(model: type[_Hyphenated], data: object, place: tuple[str, ...], *, origin: str, lines: Lines) -> None:
    """Refuse a key the form does not have, and suggest the nearest one as it is written."""
    known = [_hyphens(name) for name in model.model_fields]
    for key in data if isinstance(data, Mapping) else ():
        if key not in known:
            path = (*place, str(key))
            where = f"{origin}:{lines[path]}" if path in lines else origin
            field = re.sub(r"\.(\d+)(?=\.)", r"[\1]", ".".join(path))
            raise FormatError(f"{field}: unexpected field{nearest(str(key), known)} ({where})")


def mig_parted_text(partitions: Mapping[str, Sequence[Partition]]) -> str:
    """Write partitions as a mig-parted configuration.

    Parameters
    ----------
    partitions : mapping of str to sequence of Partition
        Per label (``current`` is what ``export`` uses) the partitions of GPU 0, 1, ...; one alone goes to all GPUs
        of its kind.

    Returns
    -------
    str
        YAML that `read_mig_parted` and ``nvidia-mig-parted apply -f`` read. Starts are not part of that form: it
        holds counts only.
    """
    configs: dict[str, list[MigPartedEntry]] = {}
    for label, wanted in partitions.items():
        configs[label] = [
            MigPartedEntry.model_validate(
                {
                    "device-filter": list(partition.device.device_filters) or None,
                    "devices": "all" if len(wanted) == 1 else [index],
                    "mig-enabled": True,
                    "mig-devices": partition.counts,
                }
            )
            for index, partition in enumerate(wanted)
        ]
    return mig_parted_entries(configs)


def mig_parted_entries(configs: Mapping[str, Sequence[MigPartedEntry]]) -> str:
    """Write entries under their labels, as NVIDIA's own files are laid out."""
    lines = ["version: v1", "mig-configs:"]
    for label, entries in configs.items():
        plain = label.replace("-", "").replace(".", "").isalnum()
        lines.append(f"  {label if plain else json.dumps(label)}:")
        for entry in entries:
            marker = "    - "
            for key, value in entry.model_dump(by_alias=True, exclude_none=True).items():
                if key == "mig-devices" and value:
                    lines.append(f"{marker}{key}:")
                    lines += [f'        "{name}": {count}' for name, count in value.items()]
                else:
                    text = value if value == "all" else json.dumps(value)
                    lines.append(f"{marker}{key}: {text}")
                marker = "      "
    return "\n".join(lines) + "\n"


def write_mig_parted(path: Path, partitions: Mapping[str, Sequence[Partition]]) -> None:
    """Write `mig_parted_text` to a file.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    text = mig_parted_text(partitions)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise OutputError(f"{path}: cannot write the mig-parted file ({problem.strerror})") from problem
