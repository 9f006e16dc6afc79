"""Which scenarios a sweep is about: axes of values for fields of a scenario, and points made of them.

An axis is written ``path=v1,v2,...``: the path as for ``--set``, the values as YAML, so a value that holds commas is a
flow mapping, a list or a quoted text. ``path=low..high`` is a range, for Sobol points.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from preba.errors import ScenarioError, nearest
from preba.scenario.load import apply_override, split_path, validated
from preba.scenario.schema import Scenario

__all__ = ["Axis", "Mode", "Point", "Space", "parse_axis", "points_of"]

Mode = Literal["grid", "zip", "sobol"]
Point = tuple[str, ...]
"""One value per axis, as YAML text."""

_OPENING = {"{": "}", "[": "]"}
SOBOL_BITS = 30


@dataclass(frozen=True)
class Axis:
    """A field and the values it takes.

    Attributes
    ----------
    path : str
        As for ``--set``.
    values : tuple of str
        As YAML; empty for a range.
    low, high : float or None
        A range, both ends belonging to it.
    whole : bool
        Whether a range has only whole numbers.
    """

    path: str
    values: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    whole: bool = False

    @property
    def is_range(self) -> bool:
        """Whether it is a range rather than a list."""
        return self.low is not None

    def at(self, share: float) -> str:
        """The value at a share in [0, 1) of the axis."""
        if self.low is None or self.high is None:
            return self.values[int(share * len(self.values))]
        if self.whole:
            return str(int(self.low) + int(share * (int(self.high) - int(self.low) + 1)))
        return repr(self.low + share * (self.high - self.low))


def parse_axis(text: str) -> Axis:
    """Reads ``path=v1,v2,...`` or ``path=low..high``.

    Raises
    ------
    ScenarioError
        There is no ``=`` or no value, brackets or quotes do not match, or the range is none.
    """
    path, found, rest = text.partition("=")
    path = path.strip()
    if not found or not path:
        raise ScenarioError(f"--vary {text}: expected path=v1,v2,..., for example models[0].arrivals.rate_rps=100,200")
    split_path(path)
    values = _split(rest, text)
    if not values:
        raise ScenarioError(f"--vary {text}: no value behind '='")
    if len(values) == 1 and ".." in values[0] and not values[0].startswith(("'", '"', "{", "[")):
        low, _, high = values[0].partition("..")
        return _range(path, low.strip(), high.strip(), text)
    for value in values:
        try:
            yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ScenarioError(f"--vary {text}: {value!r} is not valid YAML") from error
    return Axis(path, tuple(values))


def _range(path: str, low: str, high: str, text: str) -> Axis:
    try:
        ends = float(low), float(high)
    except ValueError as error:
        raise ScenarioError(f"--vary {text}: {low!r} and {high!r} must be numbers to be a range") from error
    if not ends[0] < ends[1]:
        raise ScenarioError(f"--vary {text}: a range ascends")
    whole = all(end.lstrip("+-").isdecimal() for end in (low, high))
    return Axis(path, (), low=ends[0], high=ends[1], whole=whole)


def _split(text: str, whole: str) -> list[str]:
    """Splits at commas outside of brackets and quotes."""
    parts, current, closing, quote = [], "", [], ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in _OPENING:
            closing.append(_OPENING[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            parts.append(current.strip())
            current = ""
            continue
        current += character
    if quote or closing:
        raise ScenarioError(f"--vary {whole}: a bracket or quote is not closed")
    return [part for part in [*parts, current.strip()] if part]


def points_of(axes: Sequence[Axis], mode: Mode, *, sobol: int = 0, seed: int = 1) -> list[Point]:
    """All points of a sweep, in order.

    Parameters
    ----------
    axes : sequence of Axis
    mode : str
        ``grid``: every combination, the last axis fastest; ``zip``: the first values together, then the second;
        ``sobol``: ``sobol`` points that fill the space evenly.
    sobol : int
    seed : int
        Of the random shift of Sobol's points.

    Raises
    ------
    ScenarioError
        Axes of different lengths for ``zip``, a range without ``sobol``, or a path given twice.
    """
    paths = [axis.path for axis in axes]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise ScenarioError(f"--vary {twice[0]}: given twice")
    if mode == "sobol":
        return [
            tuple(axis.at(float(share)) for axis, share in zip(axes, row, strict=True))
            for row in sobol_points(sobol, len(axes), seed=seed)
        ]
    ranges = [axis.path for axis in axes if axis.is_range]
    if ranges:
        raise ScenarioError(f"--vary {ranges[0]}: a range needs --sobol N; list its values otherwise")
    if mode == "zip":
        lengths = {len(axis.values) for axis in axes}
        if len(lengths) > 1:
            raise ScenarioError(
                "--zip: every --vary needs the same number of values, got "
                + ", ".join(f"{axis.path}: {len(axis.values)}" for axis in axes)
            )
        return list(zip(*(axis.values for axis in axes), strict=True)) if axes else [()]
    return list(itertools.product(*(axis.values for axis in axes)))


_DIRECTIONS = (
    (0, 0, ()),
    (1, 0, (1,)),
    (2, 1, (1, 3)),
    (3, 1, (1, 3, 1)),
    (3, 2, (1, 1, 1)),
    (4, 1, (1, 1, 3, 3)),
    (4, 4, (1, 3, 5, 13)),
    (5, 2, (1, 1, 5, 5, 17)),
    (5, 4, (1, 1, 5, 5, 5)),
    (5, 7, (1, 1, 7, 11, 19)),
)
"""Degree, coefficients and first direction numbers per dimension.

**Source**: S. Joe and F. Y. Kuo, "Constructing Sobol sequences with better two-dimensional projections", SIAM J. Sci.
Comput. 30 (2008), table new-joe-kuo-6.
"""


def sobol_points(count: int, dimensions: int, *, seed: int) -> np.ndarray:
    """The first ``count`` points of Sobol's sequence, shifted by a random digital shift, float64[count, dimensions].

    Raises
    ------
    ScenarioError
        There are more dimensions than direction numbers, or no point is asked for.
    """
    if count < 1:
        raise ScenarioError(f"--sobol: must be >= 1, got {count}")
    if dimensions > len(_DIRECTIONS):
        raise ScenarioError(f"--sobol: at most {len(_DIRECTIONS)} axes, got {dimensions}")
    numbers = np.arange(count, dtype=np.int64)
    gray = numbers ^ (numbers >> 1)
    shift = np.random.default_rng(seed).integers(0, 1 << SOBOL_BITS, size=dimensions)
    points = np.empty((count, dimensions))
    for dimension in range(dimensions):
        found = np.full(count, shift[dimension], dtype=np.int64)
        for bit, direction in enumerate(_direction_numbers(dimension)):
            found ^= np.where((gray >> bit) & 1 == 1, direction, 0)
        points[:, dimension] = found / float(1 << SOBOL_BITS)
    return points


def _direction_numbers(dimension: int) -> list[int]:
    degree, coefficients, first = _DIRECTIONS[dimension]
    if degree == 0:
        return [1 << (SOBOL_BITS - 1 - bit) for bit in range(SOBOL_BITS)]
    numbers = [value << (SOBOL_BITS - 1 - bit) for bit, value in enumerate(first)]
    for bit in range(degree, SOBOL_BITS):
        value = numbers[bit - degree] ^ (numbers[bit - degree] >> degree)
        for place in range(1, degree):
            if (coefficients >> (degree - 1 - place)) & 1:
                value ^= numbers[bit - place]
        numbers.append(value)
    return numbers


@dataclass(frozen=True)
class Space:
    """A scenario's plain data and how to make points' scenarios of it.

    Attributes
    ----------
    data : dict
        As read from the file, ``--set`` applied.
    lines : mapping
        Line of each field in the file.
    origin : Path
    """

    data: Mapping[str, Any]
    lines: Mapping[Any, int]
    origin: Path

    def scenario(self, settings: Mapping[str, str]) -> Scenario:
        """The scenario with some fields set.

        Raises
        ------
        ScenarioError
            A path does not exist (the nearest is named) or a value is not allowed there.
        """
        data = copy.deepcopy(dict(self.data))
        for path, value in settings.items():
            try:
                apply_override(data, f"{path}={value}")
            except ScenarioError as error:
                raise ScenarioError(str(error).replace("--set", "--vary", 1) + self._nearest(path)) from error
        return validated(data, origin=self.origin, lines=self.lines)

    def _nearest(self, path: str) -> str:
        known = [".".join(str(step) for step in steps) for steps in self.lines]
        return nearest(".".join(str(step) for step in split_path(path)), known)
