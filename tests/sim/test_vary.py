"""Axes and points: what `--vary` means, which points a mode makes, and what is wrong said clearly."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import qmc

from preba.errors import ScenarioError
from sim.vary import parse_axis, points_of, sobol_points


def test_values_are_split_at_commas_outside_of_brackets_and_quotes() -> None:
    """A value may be a mapping, a list or a quoted text that holds commas itself."""
    axis = parse_axis("models[0].batcher={kind: fixed, batch_max: 4}, {kind: none} ,'a,b',[1, 2],7")
    assert axis.path == "models[0].batcher"
    assert axis.values == ("{kind: fixed, batch_max: 4}", "{kind: none}", "'a,b'", "[1, 2]", "7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "expected path=v1"),
        ("seed=", "no value"),
        ("x={a: 1", "not closed"),
        ("x='a", "not closed"),
        ("x=a..b", "must be numbers"),
        ("x=5..5", "ascends"),
        ("x={a: [}", "not"),
    ],
)
def test_axis_that_cannot_be_read_is_an_error_with_its_text(text: str, message: str) -> None:
    """What is wrong is said, and where."""
    with pytest.raises(ScenarioError, match=message):
        parse_axis(text)


def test_modes_make_the_points_they_promise() -> None:
    """A grid is every combination, the last axis fastest; zip pairs values; ranges need Sobol."""
    axes = [parse_axis("a=1,2"), parse_axis("b=x,y")]
    assert points_of(axes, "grid") == [("1", "x"), ("1", "y"), ("2", "x"), ("2", "y")]
    assert points_of(axes, "zip") == [("1", "x"), ("2", "y")]
    with pytest.raises(ScenarioError, match="same number of values"):
        points_of([axes[0], parse_axis("b=x,y,z")], "zip")
    with pytest.raises(ScenarioError, match="needs --sobol"):
        points_of([parse_axis("a=1..5")], "grid")
    with pytest.raises(ScenarioError, match="given twice"):
        points_of([axes[0], axes[0]], "grid")


def test_sobol_points_are_those_of_the_published_table() -> None:
    """Without the shift the sequence is scipy's, in all ten dimensions."""
    count = 256
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = qmc.Sobol(10, scramble=False).random(count)
    shifted = (sobol_points(count, 10, seed=3) * (1 << 30)).astype(np.int64)
    shift = shifted[0]  # the first unshifted point is the origin
    assert np.array_equal((shifted ^ shift) / float(1 << 30), expected)


def test_sobol_points_fill_every_axis_evenly() -> None:
    """Of 64 points each eighth of a range gets eight; whole numbers stay whole; a list's values come equally often."""
    axes = [parse_axis("a=0..8"), parse_axis("b=1.0..3.0"), parse_axis("c=x,y")]
    points = points_of(axes, "sobol", sobol=64, seed=5)
    assert points == points_of(axes, "sobol", sobol=64, seed=5)
    second = np.array([float(b) for _, b, _ in points])
    assert np.array_equal(np.bincount(((second - 1.0) * 4).astype(int), minlength=8), [8] * 8)
    assert {int(a) for a, _, _ in points} == set(range(9))
    assert [c for _, _, c in points].count("x") == 32
    with pytest.raises(ScenarioError, match="at most 10 axes"):
        sobol_points(4, 11, seed=1)
