"""Reading a scenario file, with ``--set`` overrides; every mistake becomes one error a person can act on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from preba.errors import PrebaError, ScenarioError
from preba.scenario.schema import Scenario
from preba.strictfile import find_config, read_yaml, validate

Location = tuple[str | int, ...]


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Reads and validates a scenario file.

    Parameters
    ----------
    path : Path
        YAML file.
    overrides : sequence of str
        ``path=value`` as given to ``--set``, for example ``models[0].arrivals.rate_rps=500``; the value is YAML.

    Returns
    -------
    Scenario

    Raises
    ------
    MissingFileError
        There is no such file.
    ScenarioError
        It is not YAML, or a field is unknown, missing or of the wrong type; the message names the field, the
        value, what is allowed and the line.
    """
    data, lines = scenario_data(path, overrides)
    return validated(data, origin=path, lines=lines)


def scenario_data(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Mapping[Any, int]]:
    """Reads a scenario file as plain data, with overrides, and the line of each field; raises as ``load_scenario``."""
    data, lines = read_yaml(find_config(path, path.parent, what="scenario"), error=ScenarioError)
    if not isinstance(data, dict):
        raise ScenarioError(f"{path}: a scenario is a mapping of keys, got {type(data).__name__}")
    for override in overrides:
        apply_override(data, override)
    return data, lines


def validated(data: Mapping[str, Any], *, origin: Path, lines: Mapping[Any, int]) -> Scenario:
    """A scenario from plain data; raises as ``load_scenario``, naming the file and line it came from."""
    return validate(
        Scenario,
        data,
        origin=str(origin),
        lines=lines,
        error=ScenarioError,
        root="scenario",
        context={"directory": origin.parent},
    )


@contextmanager
def errors_located(path: Path) -> Iterator[None]:
    """Adds file and line to errors that name a field but are found only when the scenario is resolved or run.

    Parameters
    ----------
    path : Path
        The scenario's file.
    """
    try:
        yield
    except PrebaError as error:
        text = str(error)
        named = re.match(r"scenario\.((?:\.?[A-Za-z_]\w*|\[\d+\])+)", text)
        if named is None or f"({path}:" in text:
            raise
        _, lines = read_yaml(path, error=ScenarioError)
        steps = tuple(str(step) for step in split_path(named[1]))
        known = [steps[:count] for count in range(len(steps), 0, -1) if steps[:count] in lines]
        raise type(error)(f"{text} ({path}:{lines[known[0]]})" if known else f"{text} ({path})") from error


_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_STEP = re.compile(r"""\[(\d+)\]|\["([^"]+)"\]|\['([^']+)'\]|\.?([^.\[\]]+)""")


def split_path(text: str) -> Location:
    """Splits a path into its steps.

    ``models[0].batcher.batch_max`` and ``models.0.batcher.batch_max`` are the same; a key that holds dots is
    quoted in brackets: ``models[0].slices["1g.5gb"]``.

    Raises
    ------
    ScenarioError
        The text is no such path.
    """
    steps: list[str | int] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            raise ScenarioError(f"--set {text}: cannot read the path from {text[position:]!r} on")
        index, double, single, name = match.groups()
        if index is not None or (name is not None and name.isdecimal()):
            steps.append(int(index if index is not None else name))
        else:
            steps.append(double or single or name)
        position = match.end()
    if not steps:
        raise ScenarioError("--set: the path before '=' is empty")
    return tuple(steps)


def _parsed(value: str) -> Any:  # noqa: ANN401 - any YAML value
    """A value as YAML, or as the number it is: YAML 1.1 takes 1e6 for text."""
    try:
        return float(value) if _EXPONENT.fullmatch(value.strip()) else yaml.safe_load(value)
    except ValueError:
        return yaml.safe_load(value)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Applies one ``path=value`` to parsed data, in place; mappings on the way are created.

    Raises
    ------
    ScenarioError
        There is no ``=``, the value is not YAML, or a list index is out of range.
    """
    path, found, value = override.partition("=")
    if not found:
        raise ScenarioError(f"--set {override}: expected path=value, for example seed=2")
    try:
        parsed = _parsed(value)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or "cannot be read"
        raise ScenarioError(f"--set {override}: value is not valid YAML: {reason}") from error
    steps = split_path(path.strip())
    target: Any = data
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(target, list):
            if not isinstance(step, int) or step >= len(target):
                allowed = f"an index 0..{len(target) - 1}" if target else "nothing: the list is empty"
                raise ScenarioError(f"--set {path}: {step!r} is not in that list; allowed: {allowed}")
            if last:
                target[step] = parsed
            else:
                target = target[step]
        elif isinstance(target, dict):
            name = str(step)
            if last:
                target[name] = parsed
            else:
                target = target.setdefault(name, {})
        else:
            raise ScenarioError(f"--set {path}: nothing lies below {'.'.join(map(str, steps[:depth]))!r}")
