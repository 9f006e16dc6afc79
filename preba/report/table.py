"""Tables for a terminal, drawn with rich from summaries. Every number comes from the summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from preba.report.comparison import COLUMNS, ComparisonEntry, comparison_rows
from preba.report.measures import LATENCY_LABELS
from preba.report.numbers import ABSENT, figure_cells, flagged, percent, scaled, significant
from preba.report.stages import STAGE_LABELS, STAGES

__all__ = ["comparison_table", "print_summary", "summary_table"]

Json = dict[str, Any]

SLICES_SHOWN = 28
"""Slices that get a line of their own (four GPUs of seven); of more their mean and range are shown."""
SHORT_RUN = "* the run is too short for this figure's interval to be trusted"
UNSTEADY = "* without a steady state this figure depends on how long the run is"


def print_summary(summary: Json, console: Console) -> None:
    """Prints a summary as tables.

    Parameters
    ----------
    summary : dict
        As ``summarise`` gives it.
    console : rich Console
    """
    console.print(summary_table(summary))


def summary_table(summary: Json) -> RenderableType:
    """A summary as tables that fit 80 columns.

    Parameters
    ----------
    summary : dict
        As ``summarise`` gives it.
    """
    parts: list[RenderableType] = [*_warnings(summary), _title(summary), *_counts(summary), _latency(summary)]
    parts.append(_stages(summary))
    if summary["models"]:
        parts.append(_models(summary["models"]))
    parts += [_usage(summary), *_money(summary), *_origin(summary)]
    return Group(*parts)


def _grid(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(headers[0], overflow="fold", header_style="bold")
    for header in headers[1:]:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _line(text: str, style: str = "") -> Text:
    # Text, not a string: brackets in names are not markup.
    return Text(text, style=style, overflow="fold")


def _warnings(summary: Json) -> list[RenderableType]:
    found: list[RenderableType] = []
    for warning in summary["warnings"]:
        row = Table.grid(padding=(0, 1))
        row.add_row(Text("warning:", style="bold red"), _line(warning, "red"))
        found.append(row)
    return [*found, Text("")] if found else []


def _title(summary: Json) -> Text:
    title = Text(summary["scenario"], style="bold", overflow="fold")
    if summary["description"]:
        title.append(f": {summary['description']}", style="not bold")
    return title


def _counts(summary: Json) -> list[RenderableType]:
    refused = summary["refused"]
    text = (
        f"{summary['requests']:,} requests, {summary['served']:,} served, {refused['total']:,} refused or lost; "
        f"{significant(summary['duration_s'], 4)} s, {summary['engine']} engine"
    )
    if summary["seed"] is not None:
        text += f", seed {summary['seed']}"
    return [_line(text), _line(summary["warmup"]["rule"])]


def _latency(summary: Json) -> RenderableType:
    table = _grid("", "value", "95 % interval", "")
    steady = summary["steady"]
    table.add_row("throughput (req/s)", *figure_cells(summary["throughput_rps"], steady=steady))
    table.add_row("  offered (req/s)", significant(summary["offered_rps"], 4), "", "")
    goodput = summary["goodput"]
    if goodput is not None:
        table.add_row("  within objective (req/s)", significant(goodput["rps"], 4), "", f"p99 {_verdict(goodput)}")
    for key, label in LATENCY_LABELS.items():
        table.add_row(f"latency {label} (ms)", *figure_cells(summary["latency_ms"][key], steady=steady))
    figures = [summary["throughput_rps"], *summary["latency_ms"].values()]
    short = any(not figure["enough"] and figure["value"] is not None for figure in figures)
    return Group(table, _line(SHORT_RUN if steady else UNSTEADY, "yellow")) if short else table


def _verdict(goodput: Json) -> str:
    if goodput["p99_met"] is None:
        return ""
    sure = "" if goodput["certain"] else " (uncertain)"
    return ("met" if goodput["p99_met"] else "missed") + sure


def _stages(summary: Json) -> Table:
    table = _grid("where the time goes (ms)", "mean", "p99", "slowest 1 %")
    for name in (*STAGES, "total"):
        stage = summary["stages_ms"][name]
        if name == "total" or stage["p99"] or stage["mean"]:
            if name == "total":
                table.add_section()
            values = (significant(stage[key]) for key in ("mean", "p99", "mean_of_slowest"))
            table.add_row(STAGE_LABELS[name], *values)
    return table


def _models(models: Json) -> Table:
    table = _grid("per model", "req/s", "refused", "mean ms", "p50 ms", "p99 ms", "batch", "p99 SLO")
    for name, model in models.items():
        goodput = model["goodput"]
        table.add_row(
            Text(name),
            flagged(model["throughput_rps"]),
            f"{model['refused']['total']:,}",
            *(flagged(model["latency_ms"][key]) for key in ("mean", "p50", "p99")),
            significant(model["batch_size"]["mean"]),
            ABSENT if goodput is None else _verdict(goodput),
        )
    return table


def _usage(summary: Json) -> Table:
    usage, queues, batch = summary["utilization"], summary["queue_depth"], summary["batch_size"]
    table = _grid("busy, batches and queues", "")
    for name, share in usage["preprocessing"].items():
        taken = usage["preprocessing_taken"][name]
        text = percent(share) if abs(share - taken) < 5e-4 else f"{percent(share)} ({percent(taken)} taken)"
        table.add_row(Text(f"preprocessing: {name}"), text)
    shares = [share for share in usage["slices"].values() if share is not None]
    if len(usage["slices"]) > SLICES_SHOWN and shares:
        span = f"{percent(usage['slices_mean'])}, from {percent(min(shares))} to {percent(max(shares))}"
        table.add_row(f"{len(usage['slices']):,} slices, mean", span)
    else:
        for name, share in usage["slices"].items():
            table.add_row(Text(f"slice {name}"), percent(share) if share is not None else "out of service")
    table.add_row("batch size, per batch", f"{significant(batch['mean'])} over {scaled(batch['batches'])} batches")
    table.add_row("batch size, as a request sees it", significant(batch["mean_seen_by_request"]))
    labels = {"preprocessing": "for preprocessing", "batcher": "in the batcher", "formed": "for a slice"}
    for name, depth in queues.items():
        table.add_row(f"requests waiting {labels.get(name, name)}, mean", significant(depth))
    return table


def _money(summary: Json) -> list[RenderableType]:
    power, cost, hardware = summary["power_w"], summary["cost_efficiency"], summary["hardware"]
    if hardware is None:
        return []
    table = _grid("power and cost", "")
    parts = [f"{significant(power[name])} {name}" for name in ("cpu", "gpu") if power[name] is not None]
    if hardware["accelerators"]:
        parts.append(f"{significant(power['accelerator'])} accelerator")
    table.add_row("power (W)", f"{significant(power['total'])} = {' + '.join(parts)}")
    table.add_row("energy per request (J)", significant(summary["energy_per_request_j"]))
    years = cost["hours"] / (365 * 24)
    table.add_row(
        f"cost over {years:g} years (USD)",
        f"{cost['capex_usd']:,.0f} machine + {cost['opex_usd']:,.0f} electricity",
    )
    table.add_row("requests per USD", scaled(cost["requests_per_usd"]))
    return [table]


def _origin(summary: Json) -> list[RenderableType]:
    """How much of the input is measured, and what is not: one line each."""
    kinds = [entry["kind"] for entry in summary["provenance"]]
    if not kinds:
        return [_line("inputs: no provenance given", "yellow")]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("measured", "published", "modelled"))
    lines: list[RenderableType] = [_line(f"inputs: {counts}; --json and the report list each with its source")]
    modelled = summary["modelled_inputs"]
    if modelled:
        shown = "; ".join(modelled[:3]) + (f"; and {len(modelled) - 3} more" if len(modelled) > 3 else "")
        lines.append(Padding(_line(f"modelled: {shown}", "dim"), (0, 0, 0, 2)))
    return lines


def comparison_table(
    entries: Sequence[ComparisonEntry | Json], *, title: str = "", baseline: str | None = None
) -> RenderableType:
    """One table over several runs, within 80 columns.

    Parameters
    ----------
    entries : sequence of ComparisonEntry or dict
        Summaries stand for entries called after their scenario.
    title : str
    baseline : str, optional
        Label of the run that ratios refer to; the first one's unless given.

    Raises
    ------
    ValueError
        No entry has the baseline's label.
    """
    runs = [e if isinstance(e, ComparisonEntry) else ComparisonEntry(str(e["scenario"]), e) for e in entries]
    rows = comparison_rows(runs, baseline=baseline)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("", overflow="fold")
    for name, unit in COLUMNS:
        table.add_column(f"{name}\n{unit}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.entry.label), *row.cells)
    # Not the table's own title, which would be broken at the table's width.
    heading = [_line(title, "bold")] if title else []
    return Group(*heading, table, *(_line(note, "dim") for note in _comparison_notes(runs, rows, baseline)))


def _comparison_notes(runs: Sequence[ComparisonEntry], rows: Sequence[Any], baseline: str | None) -> list[str]:
    if not runs:
        return ["nothing to compare"]
    saturated = all(run.saturated_rps is not None for run in runs)
    what = "carried at saturation" if saturated else "served"
    notes = [
        f"rate: requests/s {what}; vs. base: times that of {baseline or runs[0].label!r}; prep: the busiest station"
    ]
    if any(cell.endswith("*") for row in rows for cell in row.cells):
        notes.append(SHORT_RUN)
    notes += [f"{run.label}: {warning}" for run in runs for warning in run.summary["warnings"]]
    return notes
