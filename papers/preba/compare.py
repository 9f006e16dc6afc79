"""Run PREBA's six models through its four designs and print ours beside the paper's numbers.

Run ``python papers/preba/compare.py [--out DIR] [--requests N]``. Writes comparison.md and comparison.json (into this
folder unless told otherwise). Facts come from numbers.csv, simulations from experiments.py, rows from sheet.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import experiments as ex
import rig
import sheet
from facts import load_facts
from rig import Point
from sheet import Results, Row

HERE = Path(__file__).resolve().parent

REQUESTS = 10_000
WORKERS = 2


def simulate_all(pool: Executor, scale: ex.Scale) -> Results:
    """Run every experiment."""
    rates = ex.saturations(pool, scale)
    limits = pool.map(ex.greedy_limit, ex.GREEDY_LOADS, [4 * scale.steady] * len(ex.GREEDY_LOADS))
    return Results(
        rates=rates,
        runs=ex.steady_runs(pool, rates, scale),
        one_bucket=ex.one_bucket(scale.steady // 2),
        greedy=list(limits),
    )


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


def _signed(row: Row) -> str:
    if row.off is None:
        return "" if row.ours == row.fact.text or row.fact.unit == "us" else "differs"
    if row.fact.id in sheet.LOWER_BOUNDS and row.off >= 0:
        return "kept"
    digits = f"{row.off:+,.0f}" if abs(row.off) >= 100 else f"{row.off:+.2g}" if abs(row.off) >= 0.005 else "0"
    return f"{digits} ({row.off / row.fact.value:+.0%})" if row.fact.value else digits


def _ours(row: Row) -> str:
    return _number(row.ours) + (f" ± {row.half_width:.2g}" if row.half_width is not None else "")


def _table(header: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines)]


def _facts_text(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for item in dict.fromkeys(row.item for row in rows):
        lines += [f"## {item}", ""]
        cells = [
            [
                row.fact.claim,
                row.fact.where,
                f"{row.fact.text} {'' if row.fact.unit == '-' else row.fact.unit}".strip(),
                _ours(row),
                _signed(row),
                row.status,
                row.note,
            ]
            for row in rows
            if row.item == item
        ]
        lines += [*_table(["claim", "where", "paper", "ours", "difference", "status", "note"], cells), ""]
    return lines


def _throughputs(results: Results) -> list[str]:
    cells = [
        [m, *(_number(results.rate(m, d)) for d in rig.DESIGNS)]
        + [f"{results.rate(m, 'preba') / results.rate(m, 'base'):.2f}"]
        + [f"{results.rate(m, 'preba') / results.rate(m, 'ideal'):.0%}"]
        + [_number(results.rate(m, d, rig.LARGE)) for d in ("preba", "ideal")]
        for m in rig.MODELS
    ]
    header = ["model", *rig.DESIGNS, "preba / base", "preba / ideal", "preba, 7g(1x)", "ideal, 7g(1x)"]
    return ["### Saturated throughput, requests per second", "", *_table(header, cells), ""]


def _tails(results: Results) -> list[str]:
    cells = []
    for model in rig.MODELS:
        row = [model]
        for load in ex.LOADS:
            base, own, free = (results.tail_ms(model, d, load)[0] for d in ("base", "preba", "ideal"))
            row.append(f"{base:.0f} / {own:.1f} / {free:.1f} ({base / own:.1f})")
        cells.append(row)
    header = ["model", *(f"{load:.0%}" for load in ex.LOADS)]
    title = "### p95 latency in ms, base / preba / ideal (base over preba), at a share of Base's throughput"
    return [title, "", *_table(header, cells), ""]


def _batches(results: Results) -> list[str]:
    facts = load_facts()
    cells = [[str(batch), *(f"{value:.2f}" for value in sheet.ablation(results, batch))] for batch in ex.BATCHES]
    cells.append(["paper", facts["ablation_dpu"].text, facts["ablation_batching"].text])
    text = 'What "without dynamic batching" means decides the ablation (1: no batching at all):'
    return [f"### Ablation by Base's fixed batch\n\n{text}\n", *_table(["batch", "DPU", "batching"], cells), ""]


def _queue(results: Results) -> list[str]:
    cells = [
        [model]
        + [
            f"{run['latency_ms']['p95']['value']:.1f} ({run['batch_mean']:.1f})"
            for factor in ex.QUEUE_FACTORS
            for run in [results.runs[f"queue/{model}/{factor:g}"]]
        ]
        for model in ("mobilenet-v3-small", "conformer-small")
    ]
    title = f"### p95 in ms (mean batch) by Time_queue over Time_knee / slices, at {ex.QUEUE_LOAD:.0%} load"
    return [title, "", *_table(["model", *(f"x{factor:g}" for factor in ex.QUEUE_FACTORS)], cells), ""]


def _due(results: Results) -> list[str]:
    kinds = ("stays_open", "frozen", "frozen_per_slice")
    cells = [
        [model, due]
        + [
            f"{run['latency_ms']['p95']['value']:,.0f} ({run['batch_mean']:.1f})"
            for load in ex.DUE_LOADS
            for run in [results.runs[f"due/{model}/{due}/{load:g}"]]
        ]
        for model in ("citrinet", "conformer-small")
        for due in kinds
    ]
    title = "### A due batch while every slice is busy: p95 in ms (mean batch), at a share of Ideal's throughput"
    note = "Where a frozen queue grows without bound, its p95 only tells how long the run was."
    return [title, "", *_table(["model", "due_batch", *(f"{x:.0%}" for x in ex.DUE_LOADS)], cells), "", note, ""]


def _servers(results: Results) -> list[str]:
    cells = [
        [model, *(_number(results.rates[ex.server_point(model, count)]) for count in ex.SERVERS)]
        for model in ("mobilenet-v3-small", "citrinet")
    ]
    return ["### Base by active servers", "", *_table(["model", *map(str, ex.SERVERS)], cells), ""]


def _watts(results: Results) -> list[str]:
    cells = [
        [model, design, *(f"{results.runs[f'power/{model}/{design}']['power_w'][part]:.0f}" for part in parts)]
        for parts in [("cpu", "gpu", "accelerator", "total")]
        for model in rig.MODELS
        for design in ("base", "preba")
    ]
    title = f"### Watts, each design at {ex.POWER_LOAD:.0%} of its own saturation"
    return [title, "", *_table(["model", "design", "CPU", "GPU", "FPGA", "total"], cells), ""]


def render(rows: list[Row], results: Results, scale: ex.Scale) -> str:
    """Write the whole comparison as Markdown."""
    counts = ", ".join(f"{sum(row.status == s for row in rows)} {s} ({text})" for s, text in sheet.STATUSES.items())
    lines = [
        "# PREBA: ours beside the paper's",
        "",
        (
            f"Written by papers/preba/compare.py from simulations of {scale.saturation:,} (saturation) and "
            f"{scale.steady:,} requests; the paper is arXiv 2411.19114v1, its facts are numbers.csv. Status of the "
            f"{len(rows)} rows: {counts}."
        ),
        "",
        *_facts_text(rows),
        "## What is behind it",
        "",
        *_throughputs(results),
        *_tails(results),
        *_batches(results),
        *_queue(results),
        *_due(results),
        *_servers(results),
        *_watts(results),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _slim(run: ex.Json) -> ex.Json:
    return {
        "requests": run["measured_requests"],
        "throughput_rps": run["throughput_rps"]["value"],
        "latency_ms": {key: run["latency_ms"][key] for key in ("mean", "p95")},
        "stages_mean_ms": {stage: figure["mean"] for stage, figure in run["stages_ms"].items()},
        "batch_mean": run["batch_mean"],
        "power_w": run["power_w"],
        "energy_per_request_j": run["energy_per_request_j"],
    }


def as_json(rows: list[Row], results: Results, scale: ex.Scale) -> str:
    """Write the rows and what is behind them as JSON."""

    def name(point: Point) -> str:
        parts = (point.model, point.design, point.partition, point.batcher, point.audio_s)
        return " ".join(str(part) for part in parts if part is not None)

    data = {
        "requests": {"saturation": scale.saturation, "steady": scale.steady},
        "rows": [
            {
                "item": row.item,
                "fact": row.fact.id,
                "paper": row.fact.text,
                "unit": row.fact.unit,
                "ours": row.ours,
                "half_width": row.half_width,
                "difference": row.off,
                "status": row.status,
                "note": row.note,
            }
            for row in rows
        ],
        "saturated_rps": {name(point): rate for point, rate in results.rates.items()},
        "one_bucket_differences": dict(results.one_bucket),
        "greedy": results.greedy,
        "runs": {key: _slim(run) for key, run in results.runs.items()},
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def main(arguments: list[str]) -> int:
    """Simulate, print the comparison and write it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    given = parser.parse_args(arguments)
    scale, began = ex.Scale(saturation=given.requests, steady=given.requests), time.perf_counter()
    print(f"simulating with {WORKERS} processes; about two minutes", file=sys.stderr)
    with ProcessPoolExecutor(WORKERS) as pool:
        results = simulate_all(pool, scale)
    rows = sheet.rows(results, load_facts())
    text = render(rows, results, scale)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "comparison.md").write_text(text, encoding="utf-8")
    (given.out / "comparison.json").write_text(as_json(rows, results, scale), encoding="utf-8")
    print(text)
    print(f"{given.out / 'comparison.md'}: {len(rows)} rows, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
