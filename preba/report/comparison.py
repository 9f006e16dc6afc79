"""Several runs side by side: which figures, and their ratio to a baseline. What they look like is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preba.report.numbers import ABSENT, flagged, percent, scaled, significant

__all__ = ["COLUMNS", "ComparisonEntry", "ComparisonRow", "comparison_rows", "groups"]

COLUMNS: tuple[tuple[str, str], ...] = (
    ("rate", "req/s"),
    ("vs.", "base"),
    ("p50", "ms"),
    ("p95", "ms"),
    ("p99", "ms"),
    ("prep", "busy"),
    ("slice", "busy"),
    ("power", "W"),
    ("energy", "J/req"),
    ("cost", "req/$"),
)
"""Name and unit of each figure of a comparison."""


@dataclass(frozen=True)
class ComparisonEntry:
    """One run of a comparison.

    Attributes
    ----------
    label : str
    summary : dict
        As ``summarise`` gives it.
    group : str
        Runs are compared within their group; its first run is the baseline unless another is chosen.
    link : str or None
        Where the run's own report lies, relative to the comparison.
    saturated_rps : float or None
        Requests per second it carries at most; compared instead of the throughput where every run of the group
        has one, because a throughput at a share of saturation says nothing by itself.
    """

    label: str
    summary: dict[str, Any]
    group: str = ""
    link: str | None = None
    saturated_rps: float | None = None


@dataclass(frozen=True)
class ComparisonRow:
    """One line of a comparison: its entry, the ratio to the baseline, and the cells in the order of ``COLUMNS``."""

    entry: ComparisonEntry
    ratio: float | None
    cells: tuple[str, ...]


def groups(entries: Sequence[ComparisonEntry]) -> dict[str, list[ComparisonEntry]]:
    """The entries by group, in order of appearance."""
    found: dict[str, list[ComparisonEntry]] = {}
    for entry in entries:
        found.setdefault(entry.group, []).append(entry)
    return found


def _rate(entry: ComparisonEntry, *, saturated: bool) -> float | None:
    value = entry.saturated_rps if saturated else entry.summary["throughput_rps"]["value"]
    return None if value is None else float(value)


def comparison_rows(entries: Sequence[ComparisonEntry], *, baseline: str | None = None) -> list[ComparisonRow]:
    """The lines of one group's comparison.

    Parameters
    ----------
    entries : sequence of ComparisonEntry
        Of one group.
    baseline : str, optional
        Label of the entry that ratios refer to; the first one's unless given.

    Returns
    -------
    list of ComparisonRow
        The preprocessing column is the busiest station's share of units taken; the slice column the mean over
        the slices that serve models.

    Raises
    ------
    ValueError
        No entry has the baseline's label.
    """
    if not entries:
        return []
    labels = [entry.label for entry in entries]
    if baseline is not None and baseline not in labels:
        raise ValueError(f"baseline: no entry is called {baseline!r}; there are {', '.join(labels)}")
    base = entries[0 if baseline is None else labels.index(baseline)]
    saturated = all(entry.saturated_rps is not None for entry in entries)
    base_rate = _rate(base, saturated=saturated)
    rows: list[ComparisonRow] = []
    for entry in entries:
        rate = _rate(entry, saturated=saturated)
        ratio = rate / base_rate if rate is not None and base_rate else None
        rows.append(ComparisonRow(entry, ratio, _cells(entry, rate, ratio)))
    return rows


def _cells(entry: ComparisonEntry, rate: float | None, ratio: float | None) -> tuple[str, ...]:
    summary = entry.summary
    latency, usage = summary["latency_ms"], summary["utilization"]
    busiest = max(usage["preprocessing_taken"].values(), default=None)
    cost = summary["cost_efficiency"]
    return (
        ABSENT if rate is None else significant(rate),
        ABSENT if ratio is None else f"{ratio:.2f}",
        flagged(latency["p50"]),
        flagged(latency["p95"]),
        flagged(latency["p99"]),
        _short_percent(busiest),
        _short_percent(usage["slices_mean"]),
        significant(summary["power_w"]["total"]),
        significant(summary["energy_per_request_j"]),
        ABSENT if cost is None else scaled(cost["requests_per_usd"]),
    )


def _short_percent(share: float | None) -> str:
    return percent(share).replace(" ", "")
