"""How numbers look in tables and pages: enough digits to compare, none that mean nothing. Text only."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["ABSENT", "figure_cells", "flagged", "interval", "matched", "percent", "scaled", "significant"]

ABSENT = "–"
"""What stands where there is no number."""

_SUFFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, whole numbers in full and with separators.

    >>> significant(0.012345), significant(12.345), significant(123456.7), significant(None)
    ('0.0123', '12.3', '123,457', '–')
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    # Rounding first: 9.996 has three digits as 10.0, not as 10.00.
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:,.{max(0, min(decimals, 9))}f}"


def scaled(value: float | None) -> str:
    """Three significant digits with k, M or G behind them.

    >>> scaled(12_345_678), scaled(999_600), scaled(12.3)
    ('12.3M', '1.00M', '12.3')
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    rounded = float(f"{value:.2e}")
    for size, suffix in _SUFFIXES:
        if abs(rounded) >= size:
            return f"{significant(rounded / size)}{suffix}"
    return significant(value)


def percent(share: float | None) -> str:
    """A share of one as a percentage, with one digit behind the point below ten.

    >>> percent(0.4567), percent(0.034), percent(1.0)
    ('46 %', '3.4 %', '100 %')
    """
    if share is None or not math.isfinite(share):
        return ABSENT
    points = 100.0 * share
    return f"{points:.1f} %" if 0 < abs(points) < 9.95 else f"{points:.0f} %"


def matched(value: float | None, half_width: float | None) -> str:
    """A number with as many digits as its uncertainty leaves it: the second digit of the half-width is the last.

    >>> matched(12.3456, 0.0412), matched(1234.5, 56.0), matched(12.3456, None)
    ('12.346', '1,234', '12.3')
    """
    if value is None:
        return ABSENT
    if half_width is None or not half_width > 0:
        return significant(value, 4 if half_width is not None else 3)
    decimals = 1 - math.floor(math.log10(half_width))
    return f"{value:,.{max(0, min(decimals, 4))}f}"


def interval(figure: dict[str, Any]) -> str:
    """The 95 % interval of a figure of the summary, with digits to match its width."""
    ends = figure["ci95"]
    if ends is None:
        return ABSENT
    half = 0.5 * (ends[1] - ends[0])
    return f"{matched(ends[0], half)} – {matched(ends[1], half)}"


def flagged(figure: dict[str, Any], *, digits: int = 3) -> str:
    """The value of a figure, with a star where the run is too short for it."""
    star = "" if figure["enough"] or figure["value"] is None else "*"
    return significant(figure["value"], digits) + star


def figure_cells(figure: dict[str, Any], *, steady: bool) -> tuple[str, str, str]:
    """A figure of the summary as value, 95 % interval and a note on what it would need.

    Parameters
    ----------
    figure : dict
    steady : bool
        Whether the run has a steady state; if not, no length is enough for it.
    """
    ends = figure["ci95"]
    value = matched(figure["value"], None if ends is None else 0.5 * (ends[1] - ends[0]))
    if figure["enough"] or figure["value"] is None:
        return value, interval(figure), ""
    note = f"needs ~{scaled(figure['needed_requests'])} requests" if steady else "no steady state"
    return f"{value}*", interval(figure), note
