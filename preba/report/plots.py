"""The pictures of a report, as SVG. Drawn without pyplot, so nothing global is touched; data come from elsewhere."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

from preba.records import RunResult
from preba.report.measures import LATENCY_LABELS, PERCENTILES
from preba.report.numbers import significant
from preba.report.series import TimeSeries, latency_curve, outage_spans_s, time_series
from preba.report.stages import STAGE_LABELS, STAGES

__all__ = [
    "COLOURS", "INK", "QUIET", "WIDTH_IN", "Plot", "bar_plot", "legend", "literal", "new_figure", "run_plots", "style",
    "svg_of",
]  # fmt: skip

Json = dict[str, Any]

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000", "#999999")
"""Told apart with any colour vision. Source: M. Okabe, K. Ito, "Color Universal Design" (2008)."""

STAGE_COLOURS = {
    "generator_lag": "#000000",
    "preprocess_wait": "#F0E442",
    "preprocess_service": "#E69F00",
    "hop": "#999999",
    "batching": "#56B4E9",
    "slice_queue": "#CC79A7",
    "slice_preprocess": "#D55E00",
    "execution": "#0072B2",
    "response": "#009E73",
}
"""The same palette; neighbours differ in lightness too."""

INK, QUIET, GRID = "#1a1a1a", "#5a5a5a", "#d9d9d9"
WIDTH_IN = 9.2
QUEUE_LABELS = {
    "preprocessing": "waiting for preprocessing",
    "batcher": "in the batcher",
    "formed": "in a batch, waiting for a slice",
}


@dataclass(frozen=True)
class Plot:
    """A picture and what it says.

    Attributes
    ----------
    title : str
    caption : str
        How to read it; also the text of the picture for who cannot see it.
    svg : bytes
    """

    title: str
    caption: str
    svg: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that needs no second file."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


def run_plots(result: RunResult, summary: Json) -> list[Plot]:
    """All pictures of a run; those that nothing can be drawn for are left out.

    Parameters
    ----------
    result : RunResult
    summary : dict
        As ``summarise`` gives it for this run.
    """
    if summary["latency_ms"]["mean"]["value"] is None:
        return []
    series = time_series(result)
    return [
        _latency(result, summary),
        _stages(summary),
        _batches(result, summary),
        _utilization(summary, series),
        _queues(result, summary, series),
    ]


def literal(text: str) -> str:
    """A name as it is: a dollar sign is no formula, and a leading underscore hides nothing."""
    text = text.replace("$", r"\$")
    return "\u200a" + text if text.startswith("_") else text


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty picture of the reports' size."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    return figure


def style(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Labels axes and gives them the reports' look."""
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    if title:
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.tick_params(labelsize=8.5, colors=QUIET, labelcolor=INK)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)


def svg_of(figure: Figure) -> bytes:
    """A finished picture as SVG; equal pictures are equal bytes."""
    buffer = io.BytesIO()
    # The salt makes equal pictures equal bytes; names in scripts that the font lacks are drawn as boxes.
    with mpl.rc_context({"svg.hashsalt": "preba"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def legend(axes: Axes, **options: Any) -> None:  # noqa: ANN401 - matplotlib's own options
    """Adds a legend in the reports' look."""
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, **options)


def _kept(result: RunResult, summary: Json) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Served requests behind the warm-up, as near as the summary's own time tells."""
    records = result.records
    keep = records.served & (records.scheduled_ns >= round(summary["warmup"]["until_s"] * 1e9))
    return keep if bool(keep.any()) else records.served


def _latency(result: RunResult, summary: Json) -> Plot:
    figure = new_figure(3.5)
    body, tail = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.0, 1.0)})
    keep = _kept(result, summary)
    records = result.records
    curves: list[tuple[str, Any]] = [("all requests" if len(result.models) > 1 else "", keep)]
    if len(result.models) > 1:
        curves += [(name, keep & (records.model_index == i)) for i, name in enumerate(result.models)]
    for position, (label, mask) in enumerate(curves):
        if not bool(mask.any()):
            continue
        latency_ms, share = latency_curve(records.latency_ns[mask])
        colour = INK if position == 0 and len(curves) > 1 else COLOURS[(position - (len(curves) > 1)) % 8]
        line = {"color": colour, "linewidth": 1.6, "label": literal(label)}
        body.step(latency_ms, share, where="post", **line)
        # The last point, beyond which nothing lies, has no place on a logarithmic axis.
        above = 1.0 - share
        tail.step(latency_ms[above > 0], above[above > 0], where="post", **line)
    _percentile_marks(body, tail, summary["latency_ms"])
    body.set_ylim(0, 1.02)
    body.set_xlim(left=0)
    body.yaxis.set_major_formatter(PercentFormatter(1.0))
    tail.set_yscale("log")
    for axes in (body, tail):
        axes.xaxis.set_major_locator(MaxNLocator(6))
    style(body, x="latency (ms)", y="share of requests at or below", title="distribution")
    style(tail, x="latency (ms)", y="share of requests above", title="tail")
    if len(curves) > 1:
        legend(body, loc="lower right")
    return Plot(
        "Latency",
        "Left: how many requests are answered within a time. Right: how many take longer, on a logarithmic axis. "
        "Dots are the percentiles of the table; an open dot marks one that the run is too short for.",
        svg_of(figure),
    )


def _percentile_marks(body: Axes, tail: Axes, latency: Json) -> None:
    for name, level in PERCENTILES.items():
        figure, label = latency[name], LATENCY_LABELS[name]
        fill = COLOURS[5] if figure["enough"] else "white"
        dot: dict[str, Any] = {
            "marker": "o",
            "markersize": 5,
            "markerfacecolor": fill,
            "markeredgecolor": COLOURS[5],
        }
        for axes, height in ((body, level), (tail, 1.0 - level)):
            axes.plot([figure["value"]], [height], linestyle="none", zorder=5, **dot)
        tail.annotate(
            f"{label}  {significant(figure['value'])} ms",
            (figure["value"], 1.0 - level), xytext=(7, 3), textcoords="offset points", fontsize=8.5, color=INK,
            path_effects=[withStroke(linewidth=3, foreground="white")], zorder=6,
        )  # fmt: skip


def _stages(summary: Json) -> Plot:
    stages = summary["stages_ms"]
    names = [name for name in STAGES if stages[name]["mean"] or stages[name]["p99"]]
    figure = new_figure(3.3)
    stacked, single = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.25, 1.0)})
    left = np.zeros(2)
    for name in names:
        widths = np.array([stages[name]["mean_of_slowest"], stages[name]["mean"]])
        colour = STAGE_COLOURS[name]
        stacked.barh([0, 1], widths, left=left, color=colour, height=0.55, label=STAGE_LABELS[name])
        left += widths
    for place, total in enumerate(left):
        stacked.annotate(
            f"{significant(float(total))} ms", (total, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    stacked.set_yticks([0, 1], ["slowest\n1 %", "all"])
    stacked.set_xlim(0, max(float(left.max()) * 1.18, 1e-9))
    style(stacked, x="mean time per request (ms)", title="mean")
    places = np.arange(len(names))[::-1]
    p99s = [stages[name]["p99"] for name in names]
    single.barh(places, p99s, color=[STAGE_COLOURS[name] for name in names], height=0.6)
    for place, value in zip(places, p99s, strict=True):
        single.annotate(
            significant(value), (value, place), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=8.5, color=INK,
        )  # fmt: skip
    single.set_yticks(places, [STAGE_LABELS[name] for name in names])
    single.set_xlim(0, max(*p99s, 1e-9) * 1.2)
    style(single, x="p99 (ms)", title="p99 of each stage by itself")
    for axes in (stacked, single):
        axes.grid(visible=False, axis="y")
    handles, labels = stacked.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8.5, frameon=False, labelcolor=INK)
    return Plot(
        "Where the time goes",
        "Left: the stages of a request's latency, of all requests and of the slowest hundredth; they add up. "
        "Right: the 99th percentile of each stage; these do not add up.",
        svg_of(figure),
    )


def _batches(result: RunResult, summary: Json) -> Plot:
    parts = {name: model["batch_size"] for name, model in summary["models"].items()}
    parts = parts or {result.models[0]: summary["batch_size"]}
    figure = new_figure(2.6)
    axes = figure.subplots()
    largest = max((int(size) for part in parts.values() for size in part["histogram"]), default=1)
    below = np.zeros(largest + 1)
    for position, (name, part) in enumerate(parts.items()):
        heights = np.zeros(largest + 1)
        for size, count in part["histogram"].items():
            heights[int(size)] = count
        sizes = np.arange(1, largest + 1)
        axes.bar(
            sizes,
            heights[1:],
            bottom=below[1:],
            width=0.85,
            color=COLOURS[position % 8],
            label=literal(name),
        )
        below += heights
    mean = summary["batch_size"]["mean"]
    axes.axvline(mean, color=INK, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"mean {significant(mean)}", (mean, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -9),
        textcoords="offset points", fontsize=8.5, color=INK,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.4, max(largest, 4) + 0.6)
    axes.set_ylim(0.0, max(float(below.max()), 1.0) * 1.18)
    style(axes, x="requests in the batch", y="batches")
    axes.grid(visible=False, axis="x")
    if len(parts) > 1:
        legend(axes)
    return Plot("Batch sizes", "How many batches had which size; the dashed line is the mean.", svg_of(figure))


def _shade_time(axes: Axes, summary: Json, outages: Sequence[tuple[float, float]]) -> None:
    start_s, end_s = summary["window_s"]
    duration_s = max(summary["duration_s"], end_s)
    for begin, end in ((0.0, start_s), (end_s, duration_s)):
        if end > begin:
            axes.axvspan(begin, end, color="#eeeeee", linewidth=0, zorder=0)
    for begin, end in outages:
        axes.axvspan(begin, end, facecolor="none", edgecolor=COLOURS[5], hatch="///", linewidth=0, alpha=0.5, zorder=0)
    axes.set_xlim(0.0, duration_s)


def _stairs(axes: Axes, series: TimeSeries, lines: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    for position, (name, values) in enumerate(lines.items()):
        axes.stairs(
            values, series.edges_s, baseline=None, color=COLOURS[position % 8], linewidth=1.4,
            label=literal(labels.get(name, name)),
        )  # fmt: skip


def _utilization(summary: Json, series: TimeSeries) -> Plot:
    rows = max(1, len(series.slices))
    stations = bool(series.stations)
    heat_in = 0.9 + 0.24 * min(rows, 24)
    figure = new_figure(heat_in + (2.0 if stations else 0.0))
    grid = figure.subplots(
        2 if stations else 1,
        1,
        sharex=True,
        squeeze=False,
        height_ratios=(2.0, heat_in) if stations else (1.0,),
    )[:, 0]
    if stations:
        _stairs(grid[0], series, series.stations, {})
        _shade_time(grid[0], summary, [])
        grid[0].set_ylim(-0.02, 1.05)
        grid[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        style(grid[0], y="units taken", title="preprocessing")
        legend(grid[0], loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, borderaxespad=0.1)
    heat = grid[-1]
    colours = mpl.colormaps["cividis"].with_extremes(bad="#ffffff")
    image = heat.imshow(
        np.array(list(series.slices.values())), aspect="auto", interpolation="nearest", cmap=colours, vmin=0.0,
        vmax=1.0, extent=(0.0, float(series.edges_s[-1]), rows - 0.5, -0.5),
    )  # fmt: skip
    heat.set_facecolor("#ffffff")
    heat.set_yticks(range(rows), [literal(name) for name in series.slices])
    style(heat, x="time (s)", title="slices")
    heat.grid(visible=False)
    bar = figure.colorbar(image, ax=heat, format=PercentFormatter(1.0), pad=0.01)
    bar.ax.tick_params(labelsize=8.5)
    return Plot(
        "Utilisation over time",
        "Top: share of each preprocessing station's units that is taken. Bottom: share of time in which each slice is "
        "busy; white where it is out of service. Grey: outside the window that the figures are taken from."
        if stations
        else "Share of time in which each slice is busy; white where it is out of service.",
        svg_of(figure),
    )


def _queues(result: RunResult, summary: Json, series: TimeSeries) -> Plot:
    figure = new_figure(2.7)
    axes = figure.subplots()
    _stairs(axes, series, series.queues, QUEUE_LABELS)
    _shade_time(axes, summary, outage_spans_s(result))
    axes.set_ylim(bottom=0.0)
    formatter = ScalarFormatter()
    formatter.set_scientific(False)
    axes.yaxis.set_major_formatter(formatter)
    style(axes, x="time (s)", y="requests waiting (mean)")
    legend(axes, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
    return Plot(
        "Queues over time",
        "Mean number of waiting requests per interval. Grey: outside the window that the figures are taken from"
        + ("; hatched: a slice is out of service." if result.outages else "."),
        svg_of(figure),
    )


def bar_plot(
    title: str, caption: str, values: Mapping[str, float | None], *, unit: str, logarithmic: bool = False
) -> Plot:
    """One horizontal bar per run of a comparison.

    Parameters
    ----------
    title, caption : str
    values : mapping of label to float or None
        None has a label and no bar.
    unit : str
        Unit of the values, for the axis.
    logarithmic : bool
        For values that differ by orders of magnitude.
    """
    figure = new_figure(0.8 + 0.28 * max(len(values), 1), 0.65 * WIDTH_IN)
    axes = figure.subplots()
    places = np.arange(len(values))[::-1]
    numbers = np.array([np.nan if value is None else value for value in values.values()], dtype=np.float64)
    axes.barh(places, np.nan_to_num(numbers), color=COLOURS[0], height=0.65)
    axes.set_yticks(places, [literal(label) for label in values])
    largest = float(np.nanmax(numbers)) if bool(np.isfinite(numbers).any()) else 1.0
    if logarithmic and bool((numbers > 0).any()):
        axes.set_xscale("log")
        axes.set_xlim(float(numbers[numbers > 0].min()) / 2, largest * 3)
    else:
        axes.set_xlim(0.0, max(largest, 1e-9) * 1.15)
    for place, value in zip(places, values.values(), strict=True):
        axes.annotate(
            significant(value), (0.0 if value is None else value, place), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    style(axes, x=unit)
    axes.grid(visible=False, axis="y")
    return Plot(title, caption, svg_of(figure))
