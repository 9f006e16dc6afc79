"""The report of one run as a single HTML file. Numbers come from the summary, pictures from the records."""

from __future__ import annotations

from typing import Any

from preba.records import RunResult
from preba.report.comparison import ComparisonEntry
from preba.report.comparison_html import render_comparison_html
from preba.report.context import ReportContext
from preba.report.measures import LATENCY_LABELS
from preba.report.numbers import ABSENT, figure_cells, flagged, interval, percent, scaled, significant
from preba.report.page import escape, html_table, list_items, page, section
from preba.report.stages import STAGE_LABELS, STAGES

__all__ = ["ComparisonEntry", "render_comparison_html", "render_html"]

Json = dict[str, Any]

OUT_OF_SCOPE = (
    "Not modelled: token-level scheduling of language models, training, the accuracy of the models, the network "
    "between clients and server, and anything not named in the scenario below."
)


def render_html(result: RunResult, context: ReportContext, summary: Json) -> str:
    """One self-contained page about a run.

    Parameters
    ----------
    result : RunResult
    context : ReportContext
    summary : dict
        As ``summarise`` gives it for both.

    Returns
    -------
    str
        HTML that needs no other file, with everything from outside escaped.
    """
    # matplotlib takes most of a second to import, which commands without pictures need not wait for.
    from preba.report.plots import run_plots

    figures = "\n".join(
        f'<figure><h3>{escape(plot.title)}</h3><img alt="{escape(plot.caption)}" src="{plot.data_uri}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in run_plots(result, summary)
    )
    body = [
        *_head(summary),
        _warnings(summary),
        _cards(summary),
        section("Throughput and latency", _latency(summary), _short_note(summary), _models(summary)),
        section("Where the time goes", _stages(summary)),
        section("Pictures", figures),
        section("How busy everything is", _usage(summary), _capacity(summary), _outages(summary)),
        section("Power and cost", _money(summary)),
        section("Where the inputs come from", _provenance(summary)),
        _scenario(context),
        f'<p class="quiet">{escape(OUT_OF_SCOPE)}</p>',
    ]
    return page(f"{summary['scenario']} – preba report", [part for part in body if part])


def _head(summary: Json) -> list[str]:
    seed = "" if summary["seed"] is None else f", seed {summary['seed']}"
    rule = summary["warmup"]["rule"]
    counts = (
        f"{summary['requests']:,} requests in {significant(summary['duration_s'], 4)} s, "
        f"{summary['engine']} engine{seed}. {rule[:1].upper()}{rule[1:]}."
    )
    return [
        f"<h1>{escape(summary['scenario'])}</h1>",
        f"<p>{escape(summary['description'])}</p>" if summary["description"] else "",
        f'<p class="quiet">{escape(counts)}</p>',
    ]


def _warnings(summary: Json) -> str:
    if not summary["warnings"]:
        return ""
    return f'<div class="warnings" role="alert"><strong>Beware</strong>{list_items(summary["warnings"])}</div>'


def _card(name: str, value: str, unit: str, note: str) -> str:
    return (
        f'<div class="card"><div class="name">{escape(name)}</div><div class="value">{escape(value)} '
        f'<small>{escape(unit)}</small></div><div class="note">{escape(note)}</div></div>'
    )


def _cards(summary: Json) -> str:
    rate, p99, p50 = summary["throughput_rps"], summary["latency_ms"]["p99"], summary["latency_ms"]["p50"]
    goodput, cost = summary["goodput"], summary["cost_efficiency"]
    cards = [
        _card("throughput", flagged(rate), "requests/s", f"95 %: {interval(rate)}"),
        _card("latency, p50", flagged(p50), "ms", f"95 %: {interval(p50)}"),
        _card("latency, p99", flagged(p99), "ms", f"95 %: {interval(p99)}"),
    ]
    if goodput is not None:
        share = goodput.get("share_within_slo")
        note = f"p99 objective {_verdict(goodput)}" + (f"; {percent(share)} in time" if share is not None else "")
        cards.append(_card("within objective", significant(goodput["rps"]), "requests/s", note))
    cards.append(_card("slices busy", percent(summary["utilization"]["slices_mean"]), "", "mean over model slices"))
    if cost is not None:
        energy = significant(summary["energy_per_request_j"])
        cards.append(_card("power", significant(summary["power_w"]["total"]), "W", f"{energy} J per request"))
        cards.append(_card("cost efficiency", scaled(cost["requests_per_usd"]), "requests/USD", ""))
    return f'<div class="cards">{"".join(cards)}</div>'


def _verdict(goodput: Json) -> str:
    if goodput["p99_met"] is None:
        return "unknown"
    verdict = "met" if goodput["p99_met"] else "missed"
    return verdict if goodput["certain"] else f"{verdict}, within this run's uncertainty"


def _latency(summary: Json) -> str:
    steady = summary["steady"]
    rows = [("throughput (requests/s)", *figure_cells(summary["throughput_rps"], steady=steady))]
    rows.append(("offered (requests/s)", significant(summary["offered_rps"], 4), "", ""))
    rows += [
        (f"latency {label} (ms)", *figure_cells(summary["latency_ms"][key], steady=steady))
        for key, label in LATENCY_LABELS.items()
    ]
    refused = summary["refused"]
    if refused["total"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in refused["by_reason"].items() if count)
        rows.append(("refused or lost", f"{refused['total']:,}", "", reasons))
    return html_table(("", "value", "95 % interval", ""), rows, text_columns=(0, 3))


def _short_note(summary: Json) -> str:
    figures = [summary["throughput_rps"], *summary["latency_ms"].values()]
    if all(figure["enough"] or figure["value"] is None for figure in figures):
        return ""
    if not summary["steady"]:
        return '<p class="quiet">* Without a steady state this figure depends on how long the run is.</p>'
    return '<p class="quiet">* The run is too short for this figure\'s interval to be trusted.</p>'


def _models(summary: Json) -> str:
    if not summary["models"]:
        return ""
    rows = [
        (
            name,
            flagged(model["throughput_rps"]),
            f"{model['refused']['total']:,}",
            *(flagged(model["latency_ms"][key]) for key in ("mean", "p50", "p99")),
            significant(model["batch_size"]["mean"]),
            ABSENT if model["goodput"] is None else f"{model['goodput']['slo_p99_ms']:g} ms",
            ABSENT if model["goodput"] is None else _verdict(model["goodput"]),
        )
        for name, model in summary["models"].items()
    ]
    headers = ("model", "requests/s", "refused", "mean ms", "p50 ms", "p99 ms", "batch", "p99 objective", "")
    return "<h3>By model</h3>" + html_table(headers, rows, text_columns=(0, 8))


def _stages(summary: Json) -> str:
    stages = summary["stages_ms"]
    shown = [name for name in STAGES if stages[name]["mean"] or stages[name]["p99"]]
    if not shown:
        return ""
    rows = [
        (STAGE_LABELS[name], *(significant(stages[name][key]) for key in ("mean", "p99", "mean_of_slowest")))
        for name in (*shown, "total")
    ]
    headers = ("ms per request", "mean", "p99", "mean of the slowest 1 %")
    return html_table(headers, rows, total_row=True)


def _usage(summary: Json) -> str:
    usage, batch = summary["utilization"], summary["batch_size"]
    busy = [
        (f"preprocessing: {name}", percent(usage["preprocessing_taken"][name]), percent(share))
        for name, share in usage["preprocessing"].items()
    ]
    busy += [
        (f"slice {name}", "out of service" if share is None else percent(share), ABSENT)
        for name, share in usage["slices"].items()
    ]
    labels = {
        "preprocessing": "waiting for preprocessing",
        "batcher": "in the batcher",
        "formed": "waiting for a slice",
    }
    queues = [(labels.get(name, name), significant(depth)) for name, depth in summary["queue_depth"].items()]
    queues.append(("batch size, mean per batch", significant(batch["mean"])))
    queues.append(("batch size, as a request sees it", significant(batch["mean_seen_by_request"])))
    return (
        html_table(("", "time taken", "really used"), busy)
        + '<p class="quiet">Really used: a taken unit works on preprocessing for its usable share of the time.</p>'
        + "<h3>Queues and batches</h3>"
        + html_table(("", "mean"), queues)
    )


def _capacity(summary: Json) -> str:
    if not summary["capacity"]:
        return ""
    rows = [
        (
            stage["stage"],
            significant(stage["offered_rps"]),
            "unlimited" if stage["capacity_rps"] is None else significant(stage["capacity_rps"]),
            percent(stage["load"]),
        )
        for stage in summary["capacity"]
    ]
    headers = ("stage", "offered (requests/s)", "capacity (requests/s)", "load")
    return (
        "<h3>Load against capacity</h3>"
        + html_table(headers, rows)
        + '<p class="quiet">Arithmetic on the traffic, with full batches: an upper bound of what each stage can do.</p>'
    )


def _outages(summary: Json) -> str:
    rows = [(o["slice"], significant(o["from_s"], 4), significant(o["to_s"], 4)) for o in summary["outages"]]
    return "<h3>Slices out of service</h3>" + html_table(("slice", "from (s)", "to (s)"), rows) if rows else ""


def _money(summary: Json) -> str:
    hardware, power, cost = summary["hardware"], summary["power_w"], summary["cost_efficiency"]
    if hardware is None:
        return ""
    parts = ["cpu", "gpu"] + (["accelerator"] if hardware["accelerators"] else [])
    rows = [(f"power, {name} (W)", significant(power[name])) for name in (*parts, "total")]
    rows.append(("energy per request (J)", significant(summary["energy_per_request_j"])))
    rows += [(f"{name} (USD)", f"{value:,.0f}") for name, value in cost["capex_parts_usd"].items() if value]
    years = cost["hours"] / (365 * 24)
    rows.append((f"electricity over {years:g} years (USD)", f"{cost['opex_usd']:,.0f}"))
    rows.append(("requests per USD", scaled(cost["requests_per_usd"])))
    about = hardware["description"] or hardware["name"]
    return f"<p>{escape(about)}</p>" + html_table(("", ""), rows)


def _provenance(summary: Json) -> str:
    entries = summary["provenance"]
    if not entries:
        return "<p>No provenance was given.</p>"
    head = "".join(f'<th class="text">{name}</th>' for name in ("input", "kind", "source"))
    lines = [f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>']
    # What is only assumed comes first: it is what to question first.
    for kind in ("modelled", "published", "measured"):
        for entry in (entry for entry in entries if entry["kind"] == kind):
            more = "; ".join(entry[key] for key in ("where", "date", "notes") if key in entry)
            source = escape(entry["source"]) + (f'<br><span class="quiet">{escape(more)}</span>' if more else "")
            lines.append(
                f'<tr><td class="text">{escape(entry["what"])}</td>'
                f'<td class="text"><span class="kind {kind}">{kind}</span></td><td class="text">{source}</td></tr>'
            )
    counts = [sum(entry["kind"] == kind for entry in entries) for kind in ("measured", "published", "modelled")]
    text = f"{counts[0]} measured, {counts[1]} published, {counts[2]} modelled (assumed, not observed)."
    return f"<p>{text}</p>" + "".join([*lines, "</tbody></table></div>"])


def _scenario(context: ReportContext) -> str:
    if not context.scenario_text:
        return ""
    return f"<details><summary>Scenario as it was run</summary><pre>{escape(context.scenario_text)}</pre></details>"
