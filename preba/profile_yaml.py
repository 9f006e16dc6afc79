"""Writing latency and cost profiles as small YAML files that a person can read.

Reading is `preba.profile.load_profile` and `preba.preprocessing.load_costs`; what is written here reads back as the
same value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from preba.preprocessing_costs import CpuCosts, DaliCosts
from preba.profile import LatencyProfile, profile_from_dict
from preba.strictfile import validate

__all__ = ["costs_to_yaml", "profile_to_yaml", "stale_files"]

_WIDTH = 110


class _Block(dict[Any, Any]):
    """A mapping written one key per line."""


class _Row(dict[Any, Any]):
    """A mapping written on one line: ``{1: 4.5, 2: 4.6}``."""


class _Dumper(yaml.SafeDumper):
    """Block for structure, one line for rows, folded text for sentences."""


def _block(dumper: yaml.SafeDumper, data: _Block) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=False)


def _row(dumper: yaml.SafeDumper, data: _Row) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    style = ">" if len(data) > 70 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


def _list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(_Block, _block)
_Dumper.add_representer(_Row, _row)
_Dumper.add_representer(str, _text)


def profile_to_yaml(profile: LatencyProfile, *, header: str = "") -> str:
    """Write a profile as YAML text.

    Parameters
    ----------
    profile : LatencyProfile
        What to write. Fields left at their default are not written; numbers keep eight digits.
    header : str
        Comment lines for the top, without ``#``.

    Returns
    -------
    str
        Text that `preba.profile.load_profile` reads back as an equal profile (up to the rounding).
    """
    text = _text_of(profile.model_dump(mode="json", exclude_defaults=True), header)
    # Reading back is cheap and turns a writer's mistake into an error here, not at the next load.
    profile_from_dict(yaml.safe_load(text), origin="text just written")
    return text


def costs_to_yaml(costs: CpuCosts | DaliCosts, *, header: str = "") -> str:
    """Write preprocessing costs as YAML text.

    Parameters
    ----------
    costs : CpuCosts or DaliCosts
    header : str
        Comment lines for the top, without ``#``.

    Returns
    -------
    str
        Text that `preba.preprocessing.load_costs` reads back (figures to eight digits).
    """
    text = _text_of(costs.model_dump(mode="json", exclude_none=True), header)
    validate(type(costs), yaml.safe_load(text), origin="text just written")
    return text


def _text_of(data: Mapping[str, Any], header: str) -> str:
    tree = _Block({key: _arranged(_numbers(value), depth=1) for key, value in data.items()})
    comment = "".join(f"# {line}\n" if line else "#\n" for line in header.splitlines())
    return comment + yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True)


def stale_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """List the generated files that are absent from a folder or differ from what was generated."""
    return [
        name
        for name, text in files.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def _numbers(value: object) -> object:
    """Round floats to eight digits (below any source's own); batch and length keys become numbers again."""
    if isinstance(value, Mapping):
        return {_key(key): _numbers(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.8g}")
    return value


def _key(key: object) -> object:
    text = str(key)
    if text.isdecimal():
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _arranged(value: object, *, depth: int) -> object:
    """Choose block or one-line form: numbers go on one line, anything holding text or rows does not."""
    if not isinstance(value, Mapping):
        return value
    if all(isinstance(each, int | float) for each in value.values()):
        return _Row(value)
    if depth > 1 and all(not isinstance(each, Mapping | list) for each in value.values()):
        short = sum(len(str(each)) for each in value.values()) < 60  # a row of words and numbers
        if short:
            return _Row(value)
    return _Block({key: _arranged(each, depth=depth + 1) for key, each in value.items()})
