"""A validation as a table on a terminal and as one HTML page with plots. No figures of its own."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.console import Console
from rich.table import Table

from preba.records import Records
from preba.report.numbers import ABSENT, significant
from preba.report.page import html_table, list_items, page, section
from preba.report.plots import COLOURS, INK, Plot, legend, new_figure, style, svg_of
from preba.report.series import latency_curve
from preba.report.stages import STAGE_LABELS
from preba.report.validation import ErrorRow, Validated
from preba.units import NS_PER_MS

__all__ = ["TABLE_WIDTH", "print_validation", "validation_html"]

HEADERS = ("figure", "unit", "measured", "simulated", "error", "limit", "verdict")
HINDSIGHT_HEADERS = ("hindsight",)
FRESH_HEADERS = ("fresh draws", "error")
TABLE_WIDTH = 160
"""What the tables need; a narrower terminal wraps the lines itself, which is better than cut figures."""

ROUNDING = 1e-9

STAGE_HEADERS = ("stage (mean)", "measured ms", "simulated ms", "difference ms", "of the latency")


def _value(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ABSENT
    if interval is None:
        return significant(value, 4)
    half = 0.5 * (interval[1] - interval[0])
    half = half if half > ROUNDING * abs(value) else 0.0  # what is left where equal numbers were averaged
    return f"{significant(value, 4)} ±{significant(half, 2)}"


def _percent(value: float | None, half: float | None = None) -> str:
    if value is None:
        return ABSENT
    return f"{value:+.1f} %" if half is None else f"{value:+.1f} ±{half:.1f} %"


def _cells(row: ErrorRow) -> tuple[str, ...]:
    return (
        row.metric,
        row.unit,
        _value(row.measured, row.measured_ci95),
        _value(row.simulated, row.simulated_ci95),
        _percent(row.error_percent, row.error_half_percent),
        "" if row.limit_percent is None else f"{row.limit_percent:g} %",
        row.verdict,
    )


def _errors(found: Validated) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of the errors, without columns that nothing is known for."""
    headers: tuple[str, ...] = HEADERS
    cells = [_cells(row) for row in found.rows]
    if any(row.hindsight_error_percent is not None for row in found.rows):
        headers += HINDSIGHT_HEADERS
        cells = [(*each, _percent(row.hindsight_error_percent)) for each, row in zip(cells, found.rows, strict=True)]
    if any(row.fresh is not None for row in found.rows):
        headers += FRESH_HEADERS
        cells = [
            (*each, _value(row.fresh, row.fresh_ci95), _percent(row.fresh_error_percent))
            for each, row in zip(cells, found.rows, strict=True)
        ]
    return headers, cells


def _stage_cells(found: Validated) -> list[tuple[str, ...]]:
    rows = [
        (
            row.label + ("" if row.modelled else " (not modelled)"),
            f"{row.measured_ms:.3f}",
            f"{row.simulated_ms:.3f}",
            f"{row.difference_ms:+.3f}",
            f"{row.of_latency_percent:+.1f} %",
        )
        for row in found.stages
    ]
    total = (
        "unexplained (sum of the differences)", "", "", f"{found.unexplained_ms:+.3f}",
        f"{found.unexplained_percent:+.1f} %",
    )  # fmt: skip
    return [*rows, total] if rows else []


VERDICT_HEADERS = ("stages together (mean)", "measured ms", "simulated ms", "of the latency", "limit", "verdict")


def _verdict_cells(found: Validated) -> list[tuple[str, ...]]:
    return [
        (
            row.label,
            _value(row.measured_ms, row.measured_ci95),
            _value(row.simulated_ms, row.simulated_ci95),
            f"{row.of_latency_percent:+.1f} %",
            f"{row.limit_percent:g} %",
            row.verdict,
        )
        for row in found.judged_stages
    ]


def _sentences(found: Validated) -> list[str]:
    said = []
    if found.batch_distance_percent is not None:
        said.append(f"batch sizes: {found.batch_distance_percent:.1f} % of the batches have another size")
    each = found.per_request
    if each is not None:
        correlation = "" if each.correlation is None else f"correlation {each.correlation:.3f}, "
        said.append(
            f"request by request ({each.requests:,} of them): {correlation}mean absolute error "
            f"{each.mape_percent:.1f} %, bias {each.bias_percent:+.1f} %, {each.same_batch_percent:.0f} % in a batch "
            "of the same size"
        )
    return said


def print_validation(found: Validated, console: Console, *, title: str) -> None:
    """Print the errors, the stages and what else is known."""
    console.print(title, markup=False, style="bold")
    _print(*_errors(found), console)
    _print(STAGE_HEADERS, _stage_cells(found), console)
    _print(VERDICT_HEADERS, _verdict_cells(found), console)
    for text in _sentences(found):
        console.print(text, markup=False, soft_wrap=True)
    for text in found.warnings:
        console.print(f"warning: {text}", markup=False, style="yellow", soft_wrap=True)


def _print(headers: tuple[str, ...], rows: list[tuple[str, ...]], console: Console) -> None:
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for place, header in enumerate(headers):
        side = "left" if place == 0 or header in {"unit", "verdict"} else "right"
        table.add_column(header, justify=cast("Any", side), no_wrap=True)
    for row in rows:
        table.add_row(*row, style="red" if "missed" in row else None)
    console.print(table)


def validation_html(
    found: Validated,
    *,
    title: str,
    runs: tuple[Records, Records] | None,
    notes: list[str],
    scenario_text: str = "",
) -> str:
    """The page: errors, distributions, quantiles against each other, stages, batch sizes.

    Parameters
    ----------
    found : Validated
    title : str
    runs : tuple of Records, or None
        The measured and the simulated one without the warm-up; without them there are no distributions to draw.
    notes : list of str
        What was measured and modelled, as sentences.
    scenario_text : str
    """
    counts = {name: sum(row.verdict == name for row in found.judged) for name in ("met", "unsure", "missed")}
    verdict = f"{counts['met']} figures within their limits, {counts['missed']} beyond"
    if counts["unsure"]:
        verdict += f", {counts['unsure']} unsure: the run is too short for them"
    plots = [_stage_bars(found)] if found.stages else []
    if runs is not None:
        plots = [_distributions(*runs), _quantiles(*runs), *plots, _batch_bars(*runs)]
    body = [f"<h1>{literal_html(title)}</h1>", f'<p class="quiet">{verdict}</p>']
    if found.warnings:
        body.append(f'<div class="warnings">{list_items(found.warnings)}</div>')
    body += [
        section("Errors", html_table(*_errors(found))),
        section(
            "Where the difference lies",
            html_table(STAGE_HEADERS, _stage_cells(found), total_row=True),
            html_table(VERDICT_HEADERS, _verdict_cells(found)),
            list_items(_sentences(found)),
        ),
        *(
            section(
                plot.title,
                f'<figure><img alt="{literal_html(plot.caption)}" src="{plot.data_uri}">'
                f"<figcaption>{literal_html(plot.caption)}</figcaption></figure>",
            )
            for plot in plots
        ),
        section("What was measured and what was modelled", list_items(notes)),
        f"<details><summary>Scenario</summary><pre>{literal_html(scenario_text)}</pre></details>"
        if scenario_text
        else "",
    ]
    return page(title, body)


def literal_html(text: str) -> str:
    """Plain text inside HTML."""
    from html import escape

    return escape(text)


def _distributions(measured: Records, simulated: Records) -> Plot:
    figure = new_figure(3.3)
    body, tail = figure.subplots(1, 2)
    for place, (name, records) in enumerate((("measured", measured), ("simulated", simulated))):
        latency_ms, share = latency_curve(records.latency_ns[records.served])
        line: dict[str, Any] = {"color": COLOURS[place], "linewidth": 1.6, "label": name}
        if place:
            line["linestyle"] = "--"
        body.step(latency_ms, share, where="post", **line)
        above = 1.0 - share
        tail.step(latency_ms[above > 0], above[above > 0], where="post", **line)
    body.yaxis.set_major_formatter(PercentFormatter(1.0))
    body.set_ylim(0, 1.02)
    tail.set_yscale("log")
    for axes in (body, tail):
        axes.xaxis.set_major_locator(MaxNLocator(6))
    style(body, x="latency (ms)", y="share of requests at or below", title="distribution")
    style(tail, x="latency (ms)", y="share of requests above", title="tail")
    legend(body, loc="lower right")
    return Plot("Latency", "Left: how many requests are answered within a time. Right: the tail.", svg_of(figure))


def _quantiles(measured: Records, simulated: Records) -> Plot:
    levels = np.concatenate([np.linspace(0.005, 0.99, 198), [0.995, 0.999]])
    ours = np.quantile(measured.latency_ns[measured.served] / NS_PER_MS, levels)
    theirs = np.quantile(simulated.latency_ns[simulated.served] / NS_PER_MS, levels)
    figure = new_figure(3.6, 4.6)
    axes = figure.subplots()
    highest = float(max(ours.max(), theirs.max())) * 1.03
    axes.plot([0, highest], [0, highest], color=INK, linewidth=0.8)
    axes.plot(ours, theirs, marker="o", markersize=2.5, linestyle="none", color=COLOURS[0])
    for name, level in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        at = np.quantile(measured.latency_ns[measured.served], level) / NS_PER_MS
        there = np.quantile(simulated.latency_ns[simulated.served], level) / NS_PER_MS
        axes.annotate(name, (at, there), xytext=(6, -10), textcoords="offset points", fontsize=8.5, color=INK)
    axes.set_xlim(0, highest)
    axes.set_ylim(0, highest)
    style(axes, x="measured quantile (ms)", y="simulated quantile (ms)")
    return Plot(
        "Quantile against quantile",
        "Each dot is one quantile of both runs; on the line they agree, above it the simulation is slower.",
        svg_of(figure),
    )


def _stage_bars(found: Validated) -> Plot:
    figure = new_figure(0.9 + 0.32 * max(len(found.stages), 1))
    axes = figure.subplots()
    places = np.arange(len(found.stages))[::-1]
    axes.barh(places + 0.2, [row.measured_ms for row in found.stages], height=0.38, color=COLOURS[0], label="measured")
    axes.barh(
        places - 0.2, [row.simulated_ms for row in found.stages], height=0.38, color=COLOURS[1], label="simulated"
    )
    axes.set_yticks(places, [STAGE_LABELS[row.stage] for row in found.stages])
    style(axes, x="mean time per request (ms)")
    axes.grid(visible=False, axis="y")
    legend(axes)
    return Plot("Stages", "Mean of each stage in both runs.", svg_of(figure))


def _batch_bars(measured: Records, simulated: Records) -> Plot:
    figure = new_figure(2.6)
    axes = figure.subplots()
    largest = 1
    for place, (name, records) in enumerate((("measured", measured), ("simulated", simulated))):
        served = records.select(records.served)
        counts = np.bincount(served.batch_size) / np.maximum(np.arange(int(served.batch_size.max()) + 1), 1)
        sizes = np.arange(len(counts))
        axes.bar(
            sizes + 0.4 * place - 0.2, counts / max(counts.sum(), 1e-9), width=0.38, color=COLOURS[place], label=name
        )
        largest = max(largest, len(counts))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.4, max(largest, 4))
    style(axes, x="requests in the batch", y="share of batches")
    axes.grid(visible=False, axis="x")
    legend(axes)
    return Plot("Batch sizes", "How many of the batches had which size, in both runs.", svg_of(figure))
