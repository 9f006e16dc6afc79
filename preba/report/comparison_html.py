"""The page that compares several runs: one table and a few bars per group, and a link to each run's own report."""

from __future__ import annotations

from collections.abc import Sequence

from preba.report.comparison import COLUMNS, ComparisonEntry, comparison_rows, groups
from preba.report.page import escape, list_items, page, section

__all__ = ["render_comparison_html"]


def render_comparison_html(entries: Sequence[ComparisonEntry], *, title: str = "Comparison") -> str:
    """One self-contained page over several runs.

    Parameters
    ----------
    entries : sequence of ComparisonEntry
        Compared within their groups; the first of each group is its baseline.
    title : str

    Returns
    -------
    str
        HTML; the runs' own reports are linked, everything else is inside.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    for name, group in groups(entries).items():
        body.append(section(name or "Runs", _table(group), _warnings(group), _bars(group)))
    return page(title, body)


def _table(group: Sequence[ComparisonEntry]) -> str:
    head = '<th class="text">run</th>' + "".join(f"<th>{name}<br>{unit}</th>" for name, unit in COLUMNS)
    lines = [f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>']
    rows = comparison_rows(group)
    for row in rows:
        label = escape(row.entry.label)
        if row.entry.link is not None:
            label = f'<a href="{escape(row.entry.link)}">{label}</a>'
        cells = "".join(f'<td class="number">{escape(cell)}</td>' for cell in row.cells)
        lines.append(f'<tr><td class="text">{label}</td>{cells}</tr>')
    saturated = all(entry.saturated_rps is not None for entry in group)
    what = "carried at saturation" if saturated else "served"
    note = (
        f"rate: requests per second {what}; vs. base: times that of the first line; prep: share of the busiest "
        "preprocessing station's units that is taken; slice: mean share of time that slices are busy."
    )
    if any(cell.endswith("*") for row in rows for cell in row.cells):
        note += " * The run is too short for this percentile's interval to be trusted."
    return "\n".join([*lines, "</tbody></table></div>", f'<p class="quiet">{escape(note)}</p>'])


def _warnings(group: Sequence[ComparisonEntry]) -> str:
    texts = [f"{entry.label}: {warning}" for entry in group for warning in entry.summary["warnings"]]
    return f'<div class="warnings"><strong>Beware</strong>{list_items(texts)}</div>' if texts else ""


def _bars(group: Sequence[ComparisonEntry]) -> str:
    # matplotlib takes most of a second to import, which commands without pictures need not wait for.
    from preba.report.plots import bar_plot

    saturated = all(entry.saturated_rps is not None for entry in group)
    rates = {e.label: e.saturated_rps if saturated else e.summary["throughput_rps"]["value"] for e in group}
    p99 = {e.label: e.summary["latency_ms"]["p99"]["value"] for e in group}
    watts = {e.label: e.summary["power_w"]["total"] for e in group}
    spread = [value for value in p99.values() if value]
    wide = bool(spread) and max(spread) > 30 * min(spread)
    plots = [
        bar_plot(
            "Throughput at saturation" if saturated else "Throughput",
            "Requests per second; more is better.", rates, unit="requests/s",
        ),
        bar_plot(
            "p99 latency", "Less is better." + (" Logarithmic axis." if wide else ""), p99, unit="ms",
            logarithmic=wide,
        ),
    ]  # fmt: skip
    if any(value is not None for value in watts.values()):
        plots.append(bar_plot("Power", "Mean power of the whole machine during the run.", watts, unit="W"))
    costs = {e.label: (e.summary["cost_efficiency"] or {}).get("requests_per_usd") for e in group}
    if any(value is not None for value in costs.values()):
        text = "Requests per dollar of machine and electricity over its life; more is better."
        millions = {label: None if value is None else value / 1e6 for label, value in costs.items()}
        plots.append(bar_plot("Cost efficiency", text, millions, unit="million requests/USD"))
    figures = "\n".join(
        f'<figure><h3>{escape(plot.title)}</h3><img alt="{escape(plot.title)}" src="{plot.data_uri}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in plots
    )
    return f'<div class="pair">{figures}</div>'
