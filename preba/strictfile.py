"""Reading one YAML file strictly: no repeated keys, and every complaint carries field path, file and line.

What the keys mean belongs to the pydantic models that callers pass in; nothing here knows them.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from preba.errors import FormatError, MissingFileError, PrebaError, nearest
from preba.strict import StrictModel

__all__ = ["Lines", "find_config", "read_yaml", "validate"]

Lines = Mapping[tuple[str, ...], int]
"""Field path (keys and list indices as text) -> 1-based line in the file it was read from."""

ModelT = TypeVar("ModelT", bound=StrictModel)


def read_yaml(path: Path, *, error: type[PrebaError] = FormatError) -> tuple[Any, Lines]:
    """Read one YAML document and remember the line of every field.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    error : type of PrebaError
        What to raise when the text is not YAML or repeats a key.

    Returns
    -------
    tuple
        The plain data and the line of each field path.

    Raises
    ------
    MissingFileError
        When there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (IsADirectoryError, UnicodeDecodeError) as problem:
        raise error(f"{path}: not a YAML text file ({problem})") from problem
    try:
        return _parsed(text, error=error, path=path)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        reason = getattr(problem, "problem", None) or "not YAML"
        raise error(f"{path}{where}: {reason}") from problem


def _parsed(text: str, *, error: type[PrebaError], path: Path) -> tuple[Any, Lines]:
    """One document as plain data and lines, by libyaml where PyYAML has it: ten times as fast."""
    if yaml.__with_libyaml__:
        # What it takes offence at is read again below: PyYAML's own words say more, and do not depend on the machine.
        with contextlib.suppress(yaml.YAMLError):
            return _parsed_by(yaml.CSafeLoader(text), error=error, path=path)
    return _parsed_by(yaml.SafeLoader(text), error=error, path=path)


def _parsed_by(loader: yaml.SafeLoader | yaml.CSafeLoader, *, error: type[PrebaError], path: Path) -> tuple[Any, Lines]:
    try:
        node = loader.get_single_node()
        # The lines come first: building the data merges `<<` into the nodes.
        lines = dict(_fields(node, (), error=error, path=path))
        return (None if node is None else loader.construct_document(node)), lines
    finally:
        loader.dispose()


def _fields(
    node: yaml.Node | None, prefix: tuple[str, ...], *, error: type[PrebaError], path: Path
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Walk a composed document: every field path with its line; a repeated key is an error."""
    if node is None:
        return
    yield prefix, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in seen:
                raise error(f"{'.'.join((*prefix, name))}: given twice ({path}:{line})")
            seen.add(name)
            yield from _fields(value, (*prefix, name), error=error, path=path)
            yield (*prefix, name), line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _fields(value, (*prefix, str(index)), error=error, path=path)


def validate(
    model: type[ModelT],
    data: object,
    *,
    origin: str,
    lines: Lines | None = None,
    error: type[PrebaError] = FormatError,
    root: str = "",
    context: Mapping[str, Any] | None = None,
) -> ModelT:
    """Turn plain data into a strict model, or raise one error that says what to mend.

    Parameters
    ----------
    model : type of StrictModel
        What the data should be.
    data : object
        What YAML or JSON gave.
    origin : str
        Name of the file (or of the field) the data came from, for the message.
    lines : mapping, optional
        From `read_yaml`; adds the line number.
    error : type of PrebaError
        What to raise. All complaints are listed, the first on the first line.
    root : str, optional
        What every field path starts with ("scenario").
    context : mapping, optional
        Handed to the validators of `model`.

    Returns
    -------
    StrictModel
        A frozen instance of `model`.
    """
    try:
        return model.model_validate_json(json.dumps(data, default=_refuse), context=context)
    except TypeError as problem:
        raise error(f"{problem} ({origin})") from problem
    except ValidationError as problem:
        items = [dict(item) for item in problem.errors(include_url=False)]
        complaints = [
            _complaint(model, item, origin=origin, lines=lines, root=root) for item in _mistakes(model, items)
        ]
        raise error("\n".join(dict.fromkeys(complaints))) from problem


def _refuse(value: object) -> object:
    raise TypeError(f"{value!r}: a {type(value).__name__} is not accepted; write plain text or numbers")


def _mistakes(model: type[BaseModel], items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of pydantic's items per mistake the user made."""
    paths = [_user_path(model, item["loc"]) for item in items]
    slips = [
        (*path[:-1], *difflib.get_close_matches(str(path[-1]), known, n=1))
        for item, (path, known) in zip(items, paths, strict=True)
        if item["type"] == "extra_forbidden"
    ]
    kept: list[dict[str, Any]] = []
    for index, (item, (path, _)) in enumerate(zip(items, paths, strict=True)):
        others = [other for place, (other, _) in enumerate(paths) if place != index]
        # An item that is wrong is dropped from its list, which is then "too short".
        # A misspelt key is missing under its right name.
        # A union tries every branch: what is wrong deeper inside is the branch that the user meant.
        shadowed = (
            (item["type"] == "too_short" and any(_lies_below(o["loc"], item["loc"]) for o in items))
            or (item["type"] == "missing" and path in slips)
            or (item["type"] in _WRONG_KIND and any(_lies_below(other, path) for other in others))
        )
        if shadowed:
            continue
        same = next((k for k in kept if item["type"] in _WRONG_KIND and k.get("path") == path), None)
        if same is not None:
            same["msg"] += f" or {item['msg'].removeprefix('Input should be ')}"
        else:
            kept.append({**item, "path": path} if item["type"] in _WRONG_KIND else item)
    return kept


_WRONG_KIND = frozenset(
    {"string_type", "dict_type", "tuple_type", "list_type", "literal_error", "model_type", "model_attributes_type"}
)
"""What pydantic says of a branch of a union whose kind of value was not given at all."""


def _complaint(model: type[BaseModel], item: dict[str, Any], *, origin: str, lines: Lines | None, root: str) -> str:
    """Phrase one pydantic complaint as ``field: what is wrong (file:line)``."""
    location, known = _user_path(model, item["loc"])
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        text = f"unknown key{nearest(str(location[-1]), known)}"
    elif kind == "missing":
        text = "missing"
    elif kind == "union_tag_invalid":
        context = item.get("ctx", {})
        tags = [tag.strip().strip("'") for tag in str(context.get("expected_tags", "")).split(",")]
        tag = context.get("tag")
        location, text = (*location, "kind"), f"{tag!r} is not known{nearest(str(tag), tags)}"
    elif kind == "union_tag_not_found":
        location, text = (*location, "kind"), "missing"
    elif kind == "value_error":
        text = str(item["ctx"]["error"])
        # A validator that compares fields names the one at fault itself: "cv: must be ...".
        inner, colon, rest = text.partition(": ")
        if colon and _FIELD.fullmatch(inner):
            steps = [int(step[1:-1]) if step.startswith("[") else step for step in _STEP.findall(inner)]
            location, text = (*location, *steps), rest
    else:
        message = item["msg"].removeprefix("Input ")
        text = message if isinstance(value, dict | list) else f"{message}, got {value!r}"
    found = lines or {}
    keys = tuple(map(str, location))
    line = next((found[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in found), None)
    where = f"{origin}:{line}" if line is not None else origin
    return f"{_shown(location, root) or '(top level)'}: {text} ({where})"


_FIELD = re.compile(r"[A-Za-z_]\w*(\.\w+|\[\d+\])*")
_STEP = re.compile(r"\[\d+\]|\w+")


def _lies_below(inner: tuple[str | int, ...], outer: tuple[str | int, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _shown(location: Sequence[str | int], root: str) -> str:
    """Write a field path as ``models[0].batcher.kind``."""
    text = root
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _user_path(model: type[BaseModel], location: Sequence[str | int]) -> tuple[tuple[str | int, ...], list[str]]:
    """Drop from a pydantic location what is no step of the user's file (tags and branches of unions).

    Returns the path and the keys that would have been accepted at its last step.
    """
    here: list[Any] = [model]
    path: list[str | int] = []
    known: list[str] = []
    for step in location:
        if step == "[key]":
            continue
        if isinstance(step, str) and step.startswith("function-"):  # a model with validators, in a plain union
            here = [each for each in here if _fields_of(each) and each.__name__ in step]
            continue
        chosen = [each for each in here if _answers_to(each, step)]
        if chosen and not any(str(step) in _fields_of(each) for each in here):
            here = chosen
            continue
        if any(_is_branch_name(each, step) for each in here):
            continue
        path.append(step)
        models = [each for each in here if isinstance(each, type) and issubclass(each, BaseModel)]
        known = sorted({name for each in models for name in each.model_fields})
        inner: list[Any] = []
        for each in here:
            if str(step) in _fields_of(each):
                inner += _alternatives(each.model_fields[str(step)].annotation)
            else:
                inner += [found for argument in typing.get_args(each)[-1:] for found in _alternatives(argument)]
                if typing.get_origin(each) is tuple:
                    inner += _alternatives(typing.get_args(each)[0])
        here = inner
    return tuple(path), known


def _fields_of(kind: object) -> Mapping[str, Any]:
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}


def _alternatives(annotation: object) -> list[Any]:
    """The plain types a value may have: unions and annotations taken apart."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (types.UnionType, typing.Union):
        return [found for argument in typing.get_args(annotation) for found in _alternatives(argument)]
    return [annotation]


def _answers_to(kind: object, step: str | int) -> bool:
    """Whether a pydantic location step names this model: its union tag, or its class in a plain union."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    tag = kind.model_fields.get("kind")
    return step == kind.__name__ or (tag is not None and step in typing.get_args(tag.annotation))


def _is_branch_name(kind: object, step: str | int) -> bool:
    """Whether a step only says which branch of a plain union pydantic tried ("str", "dict[str,int]")."""
    if isinstance(kind, type):
        return step == kind.__name__
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return isinstance(step, str) and step.startswith("literal[")
    name = getattr(origin, "__name__", None)
    return name is not None and isinstance(step, str) and step.startswith(f"{name}[")


def modified_ns(path: Path) -> int:
    """When a file was last changed: part of the key of what is remembered of it."""
    return path.stat().st_mtime_ns


def find_config(name_or_path: str | Path, folder: Path, *, what: str, beside: Path | None = None) -> Path:
    """Find a YAML file by its path, or by its name in a folder of configs.

    Parameters
    ----------
    name_or_path : str or pathlib.Path
        ``preba-citrinet`` (a name), or anything with a slash or a ``.yaml``/``.yml`` ending (a path).
    folder : pathlib.Path
        Where names are looked up.
    what : str
        The noun for the message ("profile").
    beside : pathlib.Path, optional
        Where relative paths are looked for first (the scenario's own folder).

    Raises
    ------
    MissingFileError
        When there is none; the message suggests the nearest name.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if beside is not None and (beside / path).is_file():
            return beside / path
        if path.is_file():
            return path
        siblings = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise MissingFileError(f"{what} {text!r}: no such file{nearest(path.name, siblings)}")
    path = folder / f"{text}.yaml"
    if path.is_file():
        return path
    names = [entry.stem for entry in folder.glob("*.yaml")]
    raise MissingFileError(f"{what} {text!r}: no {path.name} in {folder}{nearest(text, names)}")
