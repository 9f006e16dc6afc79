"""A sweep's tables, pictures and page, from its rows: one per point. Nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preba.errors import OutputError
from preba.report.numbers import scaled, significant
from preba.report.page import escape, html_table, list_items, page, section

if TYPE_CHECKING:
    from preba.report.plots import Plot

__all__ = ["COLUMNS", "render_sweep_html", "write_tables"]

Row = Mapping[str, Any]

COLUMNS = {
    "throughput_rps": "req/s",
    "latency_mean_ms": "mean ms",
    "latency_p50_ms": "p50 ms",
    "latency_p99_ms": "p99 ms",
    "batch_mean": "batch",
    "slices_busy": "slices busy",
    "power_w": "W",
    "requests_per_usd": "req/USD",
    "refused": "refused",
}
"""Figures shown in tables, and what to call them there."""

MOST_LINES = 8
"""Lines told apart in one picture; a categorical axis with more is not drawn as lines."""
ROWS_SHOWN = 300


def write_tables(folder: Path, rows: Sequence[Row], paths: Sequence[str]) -> None:
    """Writes ``sweep.csv`` and ``sweep.parquet``, one row per point.

    Parameters
    ----------
    folder : Path
    rows : sequence of mapping
        As ``sim.sweep.run.rows_of`` gives them.
    paths : sequence of str
        The axes, which come first.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    import pyarrow as pa  # takes longer to import than many a sweep's report to write
    import pyarrow.csv
    import pyarrow.parquet

    names = list(dict.fromkeys(["point", *paths, "seed", "replications", *(name for row in rows for name in row)]))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        mixed = len({type(value) for value in values if value is not None} - {int, float}) > 1 or (
            any(isinstance(value, str) for value in values) and not all(isinstance(v, str | None) for v in values)
        )
        if mixed:
            values = [None if value is None else str(value) for value in values]
        elif any(isinstance(value, float) for value in values):
            values = [float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]
        columns[name] = values
    try:
        table = pa.table(columns)
        for suffix, write in ((".parquet", pa.parquet.write_table), (".csv", pa.csv.write_csv)):
            temporary = folder / f".sweep{suffix}"
            write(table, temporary)
            temporary.replace(folder / f"sweep{suffix}")
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written: {error.strerror or error}") from error


def render_sweep_html(rows: Sequence[Row], paths: Sequence[str], *, title: str, facts: Sequence[str]) -> str:
    """One self-contained page about a sweep.

    Parameters
    ----------
    rows : sequence of mapping
    paths : sequence of str
    title : str
    facts : sequence of str
        What the sweep was: sentences for the head of the page.

    Returns
    -------
    str
        HTML.
    """
    done = [row for row in rows if row["error"] is None]
    body = [f"<h1>{escape(title)}</h1>", *(f'<p class="quiet">{escape(fact)}</p>' for fact in facts)]
    failed = [row for row in rows if row["error"] is not None]
    if failed:
        texts = [f"{_name(row, paths)}: {row['error']}" for row in failed]
        body.append(f'<div class="warnings"><strong>Points without figures</strong>{list_items(texts)}</div>')
    warned = [f"{_name(row, paths)}: {row['warnings']}" for row in done if row["warnings"]]
    if warned:
        more = [f"and {len(warned) - 12} more"] if len(warned) > 12 else []
        body.append(f'<div class="warnings"><strong>Beware</strong>{list_items([*warned[:12], *more])}</div>')
    figures = "\n".join(
        f'<figure><h3>{escape(plot.title)}</h3><img alt="{escape(plot.title)}" src="{plot.data_uri}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in sweep_plots(done, paths)
    )
    body.append(section("What changes", figures))
    body.append(section("Points", _table(rows, paths)))
    return page(title, body)


def _name(row: Row, paths: Sequence[str]) -> str:
    return ", ".join(f"{path}={row[path]}" for path in paths) or f"point {row['point']}"


def _table(rows: Sequence[Row], paths: Sequence[str]) -> str:
    shown = rows[:ROWS_SHOWN]
    listed = [
        [*(str(row[path]) for path in paths), *(cell(row, name) for name in COLUMNS), _verdict(row)] for row in shown
    ]
    table = html_table([*paths, *COLUMNS.values(), "p99 objective"], listed, text_columns=range(len(paths)))
    if len(rows) > ROWS_SHOWN:
        table += f'<p class="quiet">The first {ROWS_SHOWN} of {len(rows):,} points; all are in sweep.csv.</p>'
    return table


def cell(row: Row, name: str) -> str:
    """A figure of a row as text."""
    value = row.get(name)
    if name in ("throughput_rps", "requests_per_usd", "refused"):
        return scaled(value)
    if name == "slices_busy" and value is not None:
        return f"{100 * value:.3g} %"
    return significant(value)


def _verdict(row: Row) -> str:
    met = row.get("slo_met")
    return "–" if met is None else "met" if met else "missed"


# -- pictures --------------------------------------------------------------------------------------------------------


def sweep_plots(rows: Sequence[Row], paths: Sequence[str]) -> list[Plot]:
    """Lines along the numeric axis, a heat map over two, and who is best for whom.

    Parameters
    ----------
    rows : sequence of mapping
        Points with figures.
    paths : sequence of str
    """
    if not rows:
        return []
    numeric = [path for path in paths if _numbers(rows, path) and len(_values(rows, path)) > 1]
    numeric.sort(key=lambda path: -len(_values(rows, path)))
    others = [path for path in paths if len(_values(rows, path)) > 1 and path not in numeric[:1]]
    plots: list[Plot] = []
    lines = _series(rows, others)
    if numeric and len(lines) <= MOST_LINES:
        for name, unit, text in (
            ("latency_p99_ms", "p99 (ms)", "p99 latency"),
            ("throughput_rps", "requests/s", "Throughput"),
        ):
            plots.append(_lines(text, name, unit, (numeric[0], ", ".join(others)), lines))
    if len(numeric) >= 2 and len(paths) == 2 and len(rows) >= 6:
        plots.append(_heat_map(rows, numeric[0], numeric[1]))
    plots += _fronts(rows, others[:1] if others else paths[:1])
    return plots


def _values(rows: Sequence[Row], path: str) -> list[Any]:
    return list(dict.fromkeys(row[path] for row in rows))


def _numbers(rows: Sequence[Row], path: str) -> bool:
    return all(isinstance(row[path], int | float) for row in rows)


def _series(rows: Sequence[Row], others: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by the values of the other axes."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(", ".join(str(row[path]) for path in others), []).append(row)
    return found


def _lines(title: str, name: str, unit: str, paths: tuple[str, str], lines: Mapping[str, Sequence[Row]]) -> Plot:
    """One line per value of the other axes; ``paths`` are the horizontal axis and what tells lines apart."""
    from preba.report.plots import COLOURS, Plot, legend, literal, new_figure, style, svg_of

    figure = new_figure(3.4)
    axes = figure.subplots()
    values: list[float] = []
    for colour, (label, rows) in zip(COLOURS, lines.items(), strict=False):
        known = sorted((row for row in rows if row[name] is not None), key=lambda row: row[paths[0]])
        x = [row[paths[0]] for row in known]
        y = [row[name] for row in known]
        values += y
        axes.plot(x, y, marker="o", markersize=3.5, linewidth=1.4, color=colour, label=literal(label))
        low, high = ([row.get(f"{name}_{end}") for row in known] for end in ("low", "high"))
        if all(value is not None for value in [*low, *high]):
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)  # type: ignore[arg-type]
    wide = name.startswith("latency") and bool(values) and max(values) > 30 * max(min(values), 1e-9)
    if wide:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    style(axes, x=paths[0], y=unit)
    if len(lines) > 1:
        legend(axes, title=literal(paths[1]), title_fontsize=8.5)
    caption = "Shaded: 95 % interval." + (" Logarithmic axis." if wide else "")
    return Plot(title, caption, svg_of(figure))


def _heat_map(rows: Sequence[Row], x_path: str, y_path: str) -> Plot:
    import numpy as np

    from preba.report.plots import INK, Plot, new_figure, style, svg_of

    xs, ys = sorted(_values(rows, x_path)), sorted(_values(rows, y_path))
    grid = np.full((len(ys), len(xs)), np.nan)
    for row in rows:
        if row["latency_p99_ms"] is not None:
            grid[ys.index(row[y_path]), xs.index(row[x_path])] = row["latency_p99_ms"]
    figure = new_figure(1.2 + 0.32 * len(ys))
    axes = figure.subplots()
    finite = grid[np.isfinite(grid)]
    wide = bool(len(finite)) and finite.max() > 30 * max(finite.min(), 1e-9)
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis", norm="log" if wide else "linear")
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    if grid.size <= 150:
        for (row_place, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                colour = "white" if float(np.asarray(image.norm(value))) < 0.5 else INK
                axes.text(column, row_place, significant(value), ha="center", va="center", fontsize=8, color=colour)
    style(axes, x=x_path, y=y_path)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes).set_label("p99 (ms)", fontsize=9, color=INK)
    return Plot("p99 latency over both axes", "Milliseconds; darker is better.", svg_of(figure))


def _fronts(rows: Sequence[Row], by: Sequence[str]) -> list[Plot]:
    """p99 against throughput and, where it differs, against cost: points that no other beats in both."""
    plots = [_front("p99 latency against throughput", rows, "throughput_rps", "requests/s", by, more_is_better=True)]
    costs = {row["requests_per_usd"] for row in rows}
    if None not in costs and len(costs) > 1:
        title = "p99 latency against requests per dollar"
        plots.append(_front(title, rows, "requests_per_usd", "requests/USD", by, more_is_better=True))
    spent = {row["cost_usd"] for row in rows}
    if None not in spent and len(spent) > 1:
        title = "p99 latency against cost"
        plots.append(_front(title, rows, "cost_usd", "USD over the machine's life", by, more_is_better=False))
    return plots


def pareto(points: Sequence[tuple[float, float]], *, more_is_better: bool) -> list[int]:
    """Which (x, p99) no other point beats: none is at least as good in both and better in one.

    Parameters
    ----------
    points : sequence of (x, p99)
    more_is_better : bool
        Whether a larger x is better; a lower p99 always is.

    Returns
    -------
    list of int
        Places, by x from the best on.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0] if more_is_better else points[i][0], points[i][1]))
    front: list[int] = []
    for place in order:
        if not front or points[place][1] < points[front[-1]][1]:
            front.append(place)
    return front


def _front(title: str, rows: Sequence[Row], name: str, unit: str, by: Sequence[str], *, more_is_better: bool) -> Plot:
    from preba.report.plots import COLOURS, QUIET, Plot, legend, literal, new_figure, style, svg_of

    known = [row for row in rows if row[name] is not None and row["latency_p99_ms"] is not None]
    figure = new_figure(3.6)
    axes = figure.subplots()
    groups = _series(known, by)
    if len(groups) > MOST_LINES:
        groups = {"": known}
    for colour, (label, members) in zip(COLOURS, groups.items(), strict=False):
        axes.scatter(
            [row[name] for row in members], [row["latency_p99_ms"] for row in members], s=18, color=colour,
            label=literal(label), zorder=3,
        )  # fmt: skip
    points = [(float(row[name]), float(row["latency_p99_ms"])) for row in known]
    front = [points[place] for place in pareto(points, more_is_better=more_is_better)]
    axes.plot([x for x, _ in front], [y for _, y in front], color=QUIET, linewidth=1.0, linestyle="--", zorder=2)
    heights = [y for _, y in points]
    if heights and max(heights) > 30 * max(min(heights), 1e-9):
        axes.set_yscale("log")
    axes.scatter(
        [x for x, _ in front],
        [y for _, y in front],
        s=70,
        facecolors="none",
        edgecolors=QUIET,
        linewidths=1.0,
        zorder=4,
    )
    style(axes, x=unit, y="p99 (ms)")
    if len(groups) > 1:
        legend(axes, title=literal(", ".join(by)), title_fontsize=8.5)
    better = "right" if more_is_better else "left"
    return Plot(
        title, f"Ringed: nobody is as good in both and better in one. Better is down and {better}.", svg_of(figure)
    )
