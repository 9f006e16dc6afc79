"""Protocol-buffer text (config.pbtxt) to plain Python values, checked against the model configuration schema.

The parser knows the text format, not Triton: what the fields mean is for ``preba.batching.triton_file``. Values come
back as dicts (messages and maps), lists (repeated fields), str, bool, int and float; an enum is its name.

Source: protobuf.dev/reference/protobuf/textformat-spec.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from preba.errors import FormatError, nearest
from preba.pbtxt_schema import ENUMS, MESSAGES

__all__ = ["Schema", "official_schema", "packaged_schema", "parse_config", "parse_message"]

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+|\#[^\n]*)
      |(?P<line>\n)
      |(?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
      |(?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?[fF]?)(?![\w.]))
      |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<mark>[{}<>\[\]:,;-])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_PLAIN_ESCAPES = {
    "a": 7,
    "b": 8,
    "f": 12,
    "n": 10,
    "r": 13,
    "t": 9,
    "v": 11,
    "\\": 92,
    "'": 39,
    '"': 34,
    "?": 63,
}
_INTEGER_RANGE = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
}
_TRUE = {"true", "True", "t", "1"}
_FALSE = {"false", "False", "f", "0"}
_CLOSING = {"{": "}", "<": ">"}
DEPTH_MAX = 100
"""Deepest nesting of messages, as in the official parsers."""


@dataclass(frozen=True)
class Schema:
    """Message name to field name to type, and enum name to its values (see ``pbtxt_schema``)."""

    messages: Mapping[str, Mapping[str, str]]
    enums: Mapping[str, tuple[str, ...]]


def packaged_schema() -> Schema:
    """The schema that comes with this package."""
    messages = {name: dict(field.split(":", 1) for field in fields.split()) for name, fields in MESSAGES.items()}
    return Schema(messages, {name: tuple(values.split()) for name, values in ENUMS.items()})


def official_schema() -> Schema | None:
    """The schema of the installed ``tritonclient`` (extra ``triton``), or ``None`` where there is none."""
    try:
        module = importlib.import_module("tritonclient.grpc.model_config_pb2")
    except ImportError:
        return None
    messages: dict[str, dict[str, str]] = {}
    enums: dict[str, tuple[str, ...]] = {}
    scalars = {
        1: "double",
        2: "float",
        3: "int64",
        4: "uint64",
        5: "int32",
        8: "bool",
        9: "string",
        12: "bytes",
        13: "uint32",
    }

    def walk(message: Any) -> str:  # noqa: ANN401 - a descriptor of an optional package
        name = str(message.full_name).removeprefix("inference.")
        if name not in messages:
            messages[name] = {}
            for field in message.fields:
                repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
                messages[name][field.name] = ("*" if repeated else "") + kind(field)
        return name

    def kind(field: Any) -> str:  # noqa: ANN401 - a descriptor of an optional package
        if field.message_type is not None:
            return walk(field.message_type)
        if field.enum_type is not None:
            name = str(field.enum_type.full_name).removeprefix("inference.")
            enums[name] = tuple(value.name for value in field.enum_type.values)
            return name
        return scalars[field.type]

    walk(module.ModelConfig.DESCRIPTOR)
    return Schema(messages, enums)


def parse_config(text: str, *, where: str) -> dict[str, Any]:
    """Reads a whole model configuration.

    Fields that only a newer server knows are accepted where an installed ``tritonclient`` knows them.

    Parameters
    ----------
    text : str
    where : str
        Name of the file, for errors.

    Returns
    -------
    dict
        Only the fields that are there.

    Raises
    ------
    FormatError
        Not protobuf text, an unknown field, or a value of the wrong type; names file and line.
    """
    try:
        return parse_message(text, "ModelConfig", packaged_schema(), where=where)
    except UnknownFieldError:
        newer = official_schema()
        if newer is None:
            raise
        return parse_message(text, "ModelConfig", newer, where=where)


def parse_message(text: str, message: str, schema: Schema, *, where: str) -> dict[str, Any]:
    """Reads protobuf text as one message of a schema; see ``parse_config``."""
    reader = _Reader(list(_tokens(text, where)), schema, where)
    return reader.message(message, closing="", path="", depth=0)


class UnknownFieldError(FormatError):
    """A field the schema does not have."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def _tokens(text: str, where: str) -> Iterator[_Token]:
    line, position = 1, 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise FormatError(f"{where}:{line}: unexpected {text[position : position + 12].split(chr(10))[0]!r}")
        position = found.end()
        kind = str(found.lastgroup)
        if kind == "line":
            line += 1
        elif kind != "space":
            yield _Token(kind, found.group(), line)
    yield _Token("end", "", line)


class _Reader:
    """Recursive descent over the tokens of one file."""

    def __init__(self, tokens: list[_Token], schema: Schema, where: str) -> None:
        self._tokens = tokens
        self._at = 0
        self._schema = schema
        self._where = where

    def message(self, name: str, *, closing: str, path: str, depth: int) -> dict[str, Any]:
        """Reads fields up to ``closing`` (or the end of the file) into a dict."""
        if depth > DEPTH_MAX:
            raise self._error(f"{path}: nested deeper than {DEPTH_MAX} messages")
        fields = self._schema.messages[name]
        values: dict[str, Any] = {}
        while True:
            token = self._next()
            if token.kind == "end" and closing == "":
                return values
            if closing and token.text == closing and token.kind == "mark":
                return values
            if token.kind == "end":
                raise self._error(f"{path or 'file'}: ends before {closing!r}", token)
            if token.kind != "name":
                raise self._error(f"{path or 'file'}: a field name must stand here, got {token.text!r}", token)
            field_path = f"{path}.{token.text}" if path else token.text
            if token.text not in fields:
                raise UnknownFieldError(
                    f"{self._where}:{token.line}: {field_path}: unknown field{nearest(token.text, fields)}"
                )
            self._field(values, token, fields[token.text], path=field_path, depth=depth)
            if self._peek().text in {",", ";"} and self._peek().kind == "mark":
                self._next()

    def _field(self, values: dict[str, Any], name: _Token, declared: str, *, path: str, depth: int) -> None:
        repeated = declared.startswith("*")
        kind = declared.removeprefix("*")
        is_message = kind in self._schema.messages
        if self._peek().text == ":" and self._peek().kind == "mark":
            self._next()
        elif not is_message:
            raise self._error(f"{path}: ':' must follow the field name", self._peek())
        if self._peek().kind == "mark" and self._peek().text == "[":
            if not repeated:
                raise self._error(f"{path}: takes one value, got a list", name)
            found = self._list(kind, path=path, depth=depth)
        else:
            found = [self._value(kind, path=path, depth=depth)]
        if not repeated:
            if name.text in values:
                raise self._error(f"{path}: given twice", name)
            values[name.text] = found[0]
        elif kind.endswith("Entry") and is_message:
            # A map is written as key/value messages; a later entry of the same key replaces the earlier one.
            entries = values.setdefault(name.text, {})
            for entry in found:
                key, value = self._entry(kind, entry)
                entries[key] = value
        else:
            values.setdefault(name.text, []).extend(found)

    def _entry(self, kind: str, entry: dict[str, Any]) -> tuple[Any, Any]:
        fields = self._schema.messages[kind]
        return entry.get("key", self._default(fields["key"])), entry.get("value", self._default(fields["value"]))

    def _default(self, kind: str) -> object:
        if kind in self._schema.messages:
            return {}
        if kind in self._schema.enums:
            return self._schema.enums[kind][0]
        return {"string": "", "bytes": "", "bool": False, "float": 0.0, "double": 0.0}.get(kind, 0)

    def _list(self, kind: str, *, path: str, depth: int) -> list[Any]:
        self._next()
        values: list[Any] = []
        if self._peek().text == "]":
            self._next()
            return values
        while True:
            values.append(self._value(kind, path=f"{path}[{len(values)}]", depth=depth))
            token = self._next()
            if token.kind == "mark" and token.text == "]":
                return values
            if token.kind != "mark" or token.text != ",":
                raise self._error(f"{path}: ',' or ']' must stand here, got {token.text!r}", token)

    def _value(self, kind: str, *, path: str, depth: int) -> object:
        token = self._next()
        if kind in self._schema.messages:
            if token.kind != "mark" or token.text not in _CLOSING:
                raise self._error(f"{path}: must be a message in braces, got {token.text!r}", token)
            return self.message(kind, closing=_CLOSING[token.text], path=path, depth=depth + 1)
        if kind in {"string", "bytes"}:
            return self._string(token, path)
        negative = token.kind == "mark" and token.text == "-"
        if negative:
            token = self._next()
        if token.kind not in {"number", "name"}:
            raise self._error(f"{path}: must be {_article(kind)}, got {token.text!r}", token)
        if kind in self._schema.enums:
            return self._enum(token, kind, path, negative=negative)
        if kind == "bool":
            if negative or token.text not in _TRUE | _FALSE:
                raise self._error(f"{path}: must be true or false, got {token.text!r}", token)
            return token.text in _TRUE
        if kind in {"float", "double"}:
            return self._float(token, path, negative=negative)
        return self._integer(token, kind, path, negative=negative)

    def _enum(self, token: _Token, kind: str, path: str, *, negative: bool) -> str:
        names = self._schema.enums[kind]
        if token.kind == "number" and not negative:
            number = self._integer(token, "int32", path, negative=False)
            if number < len(names):
                return names[number]
        elif token.text in names and not negative:
            return token.text
        raise self._error(f"{path}: unknown value {token.text!r}{nearest(token.text, names)}", token)

    def _integer(self, token: _Token, kind: str, path: str, *, negative: bool) -> int:
        text = token.text
        try:
            if text[:2].lower() == "0x":
                value = int(text, 16)
            elif text.startswith("0") and text.isdigit():
                value = int(text, 8)
            else:
                value = int(text)
        except ValueError:
            raise self._error(f"{path}: must be {_article(kind)}, got {text!r}", token) from None
        value = -value if negative else value
        low, high = _INTEGER_RANGE[kind]
        if not low <= value <= high:
            raise self._error(f"{path}: must be in {low} .. {high} ({kind}), got {value}", token)
        return value

    def _float(self, token: _Token, path: str, *, negative: bool) -> float:
        try:
            if token.text[:2].lower() == "0x" or (
                len(token.text) > 1 and token.text.isdigit() and token.text[0] == "0"
            ):
                value = float(self._integer(token, "uint64", path, negative=False))
            else:
                text = token.text if token.kind == "name" else token.text.rstrip("fF")
                value = float(text)
        except ValueError:
            raise self._error(f"{path}: must be a number, got {token.text!r}", token) from None
        return -value if negative else value

    def _string(self, token: _Token, path: str) -> str:
        if token.kind != "string":
            raise self._error(f"{path}: must be a quoted string, got {token.text!r}", token)
        raw = [token.text[1:-1]]
        while self._peek().kind == "string":
            raw.append(self._next().text[1:-1])
        try:
            return _unescape("".join(raw))
        except (ValueError, UnicodeDecodeError) as error:
            raise self._error(f"{path}: {error}", token) from None

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind != "end":
            self._at += 1
        return token

    def _error(self, text: str, token: _Token | None = None) -> FormatError:
        line = (token or self._peek()).line
        return FormatError(f"{self._where}:{line}: {text}")


def _article(kind: str) -> str:
    return "a number" if kind in {"float", "double"} else f"a whole number ({kind})" if kind in _INTEGER_RANGE else kind


def _unescape(text: str) -> str:
    """Escapes name bytes; together with the text around them they must be UTF-8."""
    out, position = bytearray(), 0
    for found in _ESCAPE.finditer(text):
        out += text[position : found.start()].encode()
        position = found.end()
        code = found[1]
        if code[0] == "x" and len(code) > 1:
            out.append(int(code[1:], 16))
        elif code[0] in "uU" and len(code) > 1:
            out += chr(int(code[1:], 16)).encode()
        elif code[0] in "01234567":
            if int(code, 8) > 255:
                raise ValueError(f"octal escape \\{code} is more than a byte")
            out.append(int(code, 8))
        elif code in _PLAIN_ESCAPES:
            out.append(_PLAIN_ESCAPES[code])
        else:
            raise ValueError(f"unknown escape \\{code}")
    out += text[position:].encode()
    return out.decode()
