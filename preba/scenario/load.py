"""Reading a scenario: YAML with line numbers, ``--set`` overrides, and errors a person can act on."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from preba.errors import MissingFileError, ScenarioError, nearest
from preba.scenario.schema import Scenario

Location = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


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
    if not path.is_file():
        siblings = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise MissingFileError(f"{path}: no such scenario file{nearest(path.name, siblings) if siblings else ''}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read as text: {error}") from error
    return parse_scenario(text, source=str(path), overrides=overrides)


def parse_scenario(text: str, *, source: str, overrides: Sequence[str] = ()) -> Scenario:
    """Validates a scenario given as YAML text; see ``load_scenario``."""
    data, lines = parse_yaml(text, source=source)
    if not isinstance(data, dict):
        raise ScenarioError(f"{source}: a scenario is a mapping of keys, got {type(data).__name__}")
    for override in overrides:
        apply_override(data, override)
    return validate(Scenario, data, source=source, lines=lines, root="scenario")


def parse_yaml(text: str, *, source: str) -> tuple[Any, dict[Location, int]]:
    """Parses YAML into plain data and a map from field location to line number (1-based).

    Raises
    ------
    ScenarioError
        The text is not YAML, or names a key twice.
    """
    lines: dict[Location, int] = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _note_lines(node, (), lines, source)
        return yaml.safe_load(text), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ScenarioError(f"{source}{at}: not valid YAML: {problem}") from error


def _note_lines(node: yaml.Node | None, where: Location, lines: dict[Location, int], source: str) -> None:
    if node is None:
        return
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise ScenarioError(f"{source}:{key.start_mark.line + 1}: key {name!r} is given twice")
            seen.add(name)
            lines[(*where, name)] = key.start_mark.line + 1
            _note_lines(value, (*where, name), lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*where, index), lines, source)


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
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ScenarioError(f"--set {override}: value is not valid YAML: {error}") from error
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


def validate(
    model: type[M], data: Any, *, source: str, lines: dict[Location, int], root: str  # noqa: ANN401 - YAML data
) -> M:
    """Validates plain data against a strict model; all problems become one ScenarioError."""
    try:
        # Through JSON: strict mode then takes lists for tuples and integers for floats, but no strings for numbers.
        return model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems = [
            _describe(model, problem, source, lines, root) for problem in error.errors(include_url=False)
        ]
        raise ScenarioError("\n".join(dict.fromkeys(problems))) from error
    except ValueError as error:
        raise ScenarioError(f"{source}: {error}") from error


def _describe(
    model: type[BaseModel], problem: Any, source: str, lines: dict[Location, int], root: str  # noqa: ANN401
) -> str:
    plain, owner = _walk(model, problem["loc"])
    path = root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in plain)
    line = _line_of(plain, lines)
    at = f" ({source}:{line})" if line is not None else f" ({source})"
    kind = problem["type"]
    if kind == "extra_forbidden":
        hint = nearest(str(plain[-1]), owner) if owner else ""
        return f"{path}: unknown key{hint}{at}"
    if kind == "missing":
        return f"{path}: is missing{at}"
    if kind == "union_tag_invalid":
        context = problem.get("ctx", {})
        known = [tag.strip().strip("'") for tag in str(context.get("expected_tags", "")).split(",")]
        return f"{path}.kind: {context.get('tag')!r} is not known{nearest(str(context.get('tag')), known)}{at}"
    if kind == "union_tag_not_found":
        return f"{path}.kind: is missing{at}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = problem.get("input")
    shown = "" if isinstance(value, dict | list) or kind == "value_error" else f", got {value!r}"
    return f"{path}: {message}{shown}{at}"


def _line_of(location: Location, lines: dict[Location, int]) -> int | None:
    for length in range(len(location), -1, -1):
        if location[:length] in lines:
            return lines[location[:length]]
    return None


def _walk(model: type[BaseModel], location: Iterable[str | int]) -> tuple[Location, tuple[str, ...]]:
    """Strips union tags from a pydantic location; returns it with the field names known at its parent."""
    plain: list[str | int] = []
    here: Any = model
    owner: tuple[str, ...] = ()
    for step in location:
        here = _unwrap(here)
        if isinstance(here, type) and issubclass(here, BaseModel):
            owner = tuple(here.model_fields)
            plain.append(step)
            field = here.model_fields.get(str(step))
            here = field.annotation if field is not None else None
            continue
        member = _union_member(here, step)
        if member is not None:
            here = member
            continue
        if typing.get_origin(here) in (types.UnionType, typing.Union):
            # A plain union names the branch it tried; that is not a step of the user's file.
            if isinstance(step, str) and not _mapping_branch(here):
                continue
            if isinstance(step, str) and ("[" in step or step in ("str", "int", "float")):
                continue
        plain.append(step)
        here = _element(here)
        owner = ()
    return tuple(plain), owner


def _unwrap(annotation: Any) -> Any:  # noqa: ANN401 - type annotations have no narrower type
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        members = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        if len(members) == 1:
            return _unwrap(members[0])
    return annotation


def _union_member(annotation: Any, tag: str | int) -> Any:  # noqa: ANN401
    for member in typing.get_args(annotation):
        inner = _unwrap(member)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner.model_fields.get("kind")
            if inner.__name__ == tag or (kind is not None and tag in typing.get_args(kind.annotation)):
                return inner
        elif typing.get_origin(inner) in (types.UnionType, typing.Union):
            found = _union_member(inner, tag)
            if found is not None:
                return found
    return None


def _mapping_branch(annotation: Any) -> bool:  # noqa: ANN401
    return any(typing.get_origin(_unwrap(arg)) is dict for arg in typing.get_args(annotation))


def _element(annotation: Any) -> Any:  # noqa: ANN401
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict and len(arguments) == 2:
        return arguments[1]
    return arguments[0] if arguments else None
