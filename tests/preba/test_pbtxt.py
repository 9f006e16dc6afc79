"""The protobuf text reader: the whole text format, and errors that name the line."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.errors import FormatError
from preba.pbtxt import Schema, official_schema, packaged_schema, parse_config, parse_message

SMALL = Schema(
    messages={
        "M": {
            "i": "int32",
            "u": "uint64",
            "many": "*int32",
            "f": "double",
            "b": "bool",
            "s": "string",
            "e": "E",
            "m": "M",
            "ms": "*M",
            "map": "*M.MapEntry",
        },
        "M.MapEntry": {"key": "string", "value": "int32"},
    },
    enums={"E": ("ZERO", "ONE")},
)


def read(text: str) -> dict[str, Any]:
    return parse_message(text, "M", SMALL, where="x.pbtxt")


READABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("  # only a comment", {}),
    "separators": ("i: 1, s: 'a'; b: true", {"i": 1, "s": "a", "b": True}),
    "no spaces": ('i:1,s:"a"m{i:2}', {"i": 1, "s": "a", "m": {"i": 2}}),
    "messages with and without a colon": (
        "m { i: 1 } ms: { i: 2 } ms <i: 3>",
        {"m": {"i": 1}, "ms": [{"i": 2}, {"i": 3}]},
    ),
    "lists": ("many: [1, 2] many: 3 ms [ { }, < i: 4 > ]", {"many": [1, 2, 3], "ms": [{}, {"i": 4}]}),
    "empty list": ("many: []", {"many": []}),
    "integers": ("many: [0x1F, 017, -8, - 2, 0]", {"many": [31, 15, -8, -2, 0]}),
    "largest": ("u: 18446744073709551615", {"u": 2**64 - 1}),
    "floats": ("f: -1.5e3f", {"f": -1500.0}),
    "float from integer": ("f: 7", {"f": 7.0}),
    "infinity": ("f: -inf", {"f": -math.inf}),
    "booleans": ("b: t", {"b": True}),
    "boolean number": ("b: 0", {"b": False}),
    "enum name": ("e: ONE", {"e": "ONE"}),
    "enum number": ("e: 1", {"e": "ONE"}),
    "strings join": ("s: 'a' # between\n \"b\"", {"s": "ab"}),
    "escapes": (r's: "\n\t\\\"\x41\101\u00e9\U0001F600\?"', {"s": '\n\t\\"AAé😀?'}),
    "bytes of one character": (r's: "\303\251"', {"s": "é"}),
    "maps": ("map { key: 'a' value: 1 } map: { value: 2 } map { key: 'a' value: 3 }", {"map": {"a": 3, "": 2}}),
    "hash in a string": ("s: '#1' i: 2", {"s": "#1", "i": 2}),
}


@pytest.mark.parametrize("case", READABLE)
def test_pbtxt_reads_every_form_of_the_text_format(case: str) -> None:
    """Each way the text format has of writing a value gives that value."""
    text, expected = READABLE[case]
    assert read(text) == expected


UNREADABLE = {
    "unknown field": ("\ni: 1\nmamy: 2", r"x.pbtxt:3: mamy: unknown field; did you mean 'many'\?"),
    "unknown nested": ("m {\n m { j: 1 }\n}", r"x.pbtxt:2: m.m.j: unknown field"),
    "no colon": ("i 1", "x.pbtxt:1: i: ':' must follow"),
    "not a number": ("i: x", r"x.pbtxt:1: i: must be a whole number \(int32\), got 'x'"),
    "fraction": ("i: 1.5", "must be a whole number"),
    "too large": ("i: 2147483648", "must be in -2147483648 .. 2147483647"),
    "negative unsigned": ("u: -1", "got -1"),
    "bad octal": ("i: 09", "must be a whole number"),
    "bad boolean": ("b: yes", "must be true or false, got 'yes'"),
    "bad enum": ("e: TWO", "unknown value 'TWO'"),
    "enum out of range": ("e: 2", "unknown value '2'"),
    "twice": ("i: 1\ni: 2", "x.pbtxt:2: i: given twice"),
    "list for one": ("i: [1]", "takes one value, got a list"),
    "open list": ("many: [1, 2", "',' or '\\]' must stand here"),
    "trailing comma": ("many: [1, ]", r"many\[1\]: must be a whole number"),
    "open message": ("m { i: 1", r"m: ends before '}'"),
    "wrong bracket": ("m { i: 1 >", "a field name must stand here, got '>'"),
    "stray bracket": ("}", "a field name must stand here, got '}'"),
    "open string": ("s: 'a", "x.pbtxt:1: unexpected"),
    "number as string": ("s: 1", "must be a quoted string"),
    "scalar as message": ("m: 3", "must be a message in braces"),
    "bad escape": (r"s: '\q'", r"unknown escape \\q"),
    "octal beyond a byte": (r"s: '\777'", "more than a byte"),
    "not utf-8": (r"s: '\377'", "can't decode"),
    "number glued to a name": ("i: 1x", "unexpected '1x'"),
    "too deep": ("m {" * 101 + "}" * 101, "nested deeper than 100"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_pbtxt_errors_name_file_line_and_field(case: str) -> None:
    """Whatever is not protobuf text of the schema is one clear error."""
    text, message = UNREADABLE[case]
    with pytest.raises(FormatError, match=message):
        read(text)


@given(st.text(max_size=40))
def test_pbtxt_any_text_is_read_or_refused(text: str) -> None:
    """No input makes the reader fail in any other way than its own error."""
    with contextlib.suppress(FormatError):
        assert set(read(text)) <= set(SMALL.messages["M"])


@given(st.text(max_size=40))
def test_pbtxt_strings_survive_quoting(text: str) -> None:
    """Any text, escaped byte by byte, comes back as it was."""
    quoted = "".join(f"\\{byte:03o}" for byte in text.encode("utf-8", "ignore"))
    assert read(f's: "{quoted}"').get("s") == text.encode("utf-8", "ignore").decode()


def test_pbtxt_schema_is_closed() -> None:
    """Every type that the packaged schema mentions is a scalar, one of its messages or one of its enums."""
    schema = packaged_schema()
    scalars = {"double", "float", "int32", "int64", "uint32", "uint64", "bool", "string", "bytes"}
    for fields in schema.messages.values():
        for kind in fields.values():
            assert kind.removeprefix("*") in scalars | set(schema.messages) | set(schema.enums)


def test_pbtxt_reads_a_model_configuration() -> None:
    """A configuration with most of what real ones hold is read to the same values as written."""
    text = """
    name: "ensemble"
    platform: "ensemble"
    input [ { name: "RAW" data_type: TYPE_UINT8 dims: [ -1 ] } ]
    parameters: { key: "threads" value: { string_value: "4" } }
    version_policy: { latest: { num_versions: 2 } }
    model_warmup {
      name: "w" batch_size: 1 inputs { key: "RAW" value { data_type: TYPE_UINT8 dims: 1 zero_data: true } }
    }
    ensemble_scheduling {
      step [
        {
          model_name: "dali" model_version: -1
          input_map { key: "IN" value: "RAW" } output_map { key: "OUT" value: "x" }
        }
      ]
    }
    """
    config = parse_config(text, where="config.pbtxt")
    assert config["input"] == [{"name": "RAW", "data_type": "TYPE_UINT8", "dims": [-1]}]
    assert config["parameters"] == {"threads": {"string_value": "4"}}
    step = config["ensemble_scheduling"]["step"][0]
    assert (step["model_version"], step["input_map"], step["output_map"]) == (-1, {"IN": "RAW"}, {"OUT": "x"})


def test_pbtxt_official_schema_agrees_with_the_packaged_one() -> None:
    """Every field of the packaged schema has the same type in the official one, where that is installed."""
    official = official_schema()
    if official is None:
        pytest.skip("tritonclient (extra triton) is not installed")
    for name, fields in packaged_schema().messages.items():
        assert {key: official.messages[name][key] for key in fields} == fields
    for name, values in packaged_schema().enums.items():
        assert official.enums[name][: len(values)] == values
