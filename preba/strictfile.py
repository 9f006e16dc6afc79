"""Reading one YAML file strictly: no repeated keys, and every complaint carries field path, file and line.

What the keys mean belongs to the pydantic models that callers pass in; nothing here knows them.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
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
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = dict(_fields(node, (), error=error, path=path))
        data = yaml.load(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        reason = getattr(problem, "problem", None) or "not YAML"
        raise error(f"{path}{where}: {reason}") from problem
    return data, lines


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

    Returns
    -------
    StrictModel
        A frozen instance of `model`.
    """
    try:
        return model.model_validate_json(json.dumps(data, default=_refuse))
    except TypeError as problem:
        raise error(f"{problem} ({origin})") from problem
    except ValidationError as problem:
        complaints = [
            _complaint(model, dict(item), origin=origin, lines=lines)
            for item in problem.errors(include_url=False)
        ]
        raise error("\n".join(dict.fromkeys(complaints))) from problem


def _refuse(value: object) -> object:
    raise TypeError(f"{value!r}: a {type(value).__name__} is not accepted; write plain text or numbers")


def _complaint(model: type[BaseModel], item: dict[str, Any], *, origin: str, lines: Lines | None) -> str:
    """Phrase one pydantic complaint as ``field: what is wrong (file:line)``."""
    location = tuple(str(part) for part in item["loc"] if part != "[key]")
    if item["type"] == "extra_forbidden":
        text = f"unknown key{nearest(location[-1], _field_names(model, location[:-1]))}"
    elif item["type"] == "missing":
        text = "missing"
    elif item["type"] == "value_error":
        text = str(item["ctx"]["error"])
        # A validator that compares fields names the one at fault itself: "cv: must be ...".
        inner, colon, rest = text.partition(": ")
        if colon and inner.replace(".", "").replace("_", "").isalnum():
            location, text = (*location, *inner.split(".")), rest
    else:
        text = f"{item['msg']}, got {item['input']!r}"
    known = lines or {}
    line = next((known[location[:n]] for n in range(len(location), -1, -1) if location[:n] in known), None)
    where = f"{origin}:{line}" if line is not None else origin
    return f"{'.'.join(location) or '(top level)'}: {text} ({where})"


def _field_names(model: type[BaseModel], location: tuple[str, ...]) -> list[str]:
    """List the keys accepted at one place of a model tree."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        inner: list[type[BaseModel]] = []
        for each in models:
            if part in each.model_fields:
                inner += _models_in(each.model_fields[part].annotation)
        models = inner or models
    return sorted({name for each in models for name in each.model_fields})


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for inner in typing.get_args(annotation):
        found += _models_in(inner)
    return found


def find_config(name_or_path: str | Path, folder: Path, *, what: str) -> Path:
    """Find a YAML file by its path, or by its name in a folder of configs.

    Parameters
    ----------
    name_or_path : str or pathlib.Path
        ``preba-citrinet`` (a name), or anything with a slash or a ``.yaml``/``.yml`` ending (a path).
    folder : pathlib.Path
        Where names are looked up.
    what : str
        The noun for the message ("profile").

    Raises
    ------
    MissingFileError
        When there is none; the message suggests the nearest name.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if path.is_file():
            return path
        siblings = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise MissingFileError(f"{what} {text!r}: no such file{nearest(path.name, siblings)}")
    path = folder / f"{text}.yaml"
    if path.is_file():
        return path
    names = [entry.stem for entry in folder.glob("*.yaml")]
    raise MissingFileError(f"{what} {text!r}: no {path.name} in {folder}{nearest(text, names)}")
