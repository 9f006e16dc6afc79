"""``preba demo``: PREBA's what-if on its own server, as one table and one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from preba.batchers import FixedBatching
from preba.cli.output import write_run
from preba.cli.simulate import run_and_summarise
from preba.data import config_folder
from preba.errors import OutputError
from preba.report.html import ComparisonEntry, render_comparison_html
from preba.report.table import comparison_table
from preba.scenario.load import load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from sim.run import DEFAULT_ENGINE
from sim.saturation import at_rate_factor, saturated_rps

LOAD = 0.8
"""Share of its own saturated throughput that each design point is offered."""

SMALL, WHOLE = "7x1g.5gb", "1x7g.40gb"

POINTS: tuple[tuple[str, str, str], ...] = (
    ("base", SMALL, "CPU 1g"),
    ("base-dpu", SMALL, "DPU 1g"),
    ("preba", SMALL, "PREBA 1g"),
    ("ideal", SMALL, "ideal 1g"),
    ("base", WHOLE, "CPU 7g"),
    ("preba", WHOLE, "PREBA 7g"),
    ("ideal", WHOLE, "ideal 7g"),
)
"""(scenario suffix, partition, label); the first of each modality is what the others are compared with."""

WHOLE_GPU_BATCH = 8
"""How many times the batch of a 1g slice the fixed batcher gets on 7g: the ratio of PREBA's knees (its Fig. 6)."""

GEOMETRIES = f"1g = seven 1g.5gb slices, 7g = one 7g.40gb; each at {LOAD:.0%} of its saturation"

TITLE = "PREBA's what-if: CPU, FPGA and free preprocessing on one A100"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("out/demo"),
    requests: Annotated[int, typer.Option(min=2000, help="Requests per design point.")] = 20_000,
) -> None:
    """Compare CPU, DPU and ideal preprocessing on seven small slices and on the whole GPU.

    Each design point is driven to saturation, then run at 80 % of what it carried; latencies, watts and dollars
    are those of the second run.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    entries = run_demo(out, requests=requests, screen=Console(highlight=False), console=console)
    _write_page(out / "index.html", entries)
    console.print(f"report: {out / 'index.html'}", markup=False)


def run_demo(out: Path, *, requests: int, screen: Console, console: Console) -> list[ComparisonEntry]:
    """Runs every design point, prints a table per modality and writes each run's folder.

    Parameters
    ----------
    out : Path
        Folder for the runs.
    requests : int
        Per design point.
    screen, console : rich Console
        For the tables, and for progress.

    Returns
    -------
    list of ComparisonEntry
    """
    entries: list[ComparisonEntry] = []
    for modality in ("image", "audio"):
        found = [
            _point(modality, suffix, partition, label, out=out, requests=requests, console=console)
            for suffix, partition, label in POINTS
        ]
        entries += found
        screen.print(comparison_table(found, title=f"{modality} server: {GEOMETRIES}"))
    return entries


def _point(
    modality: str, suffix: str, partition: str, label: str, *, out: Path, requests: int, console: Console
) -> ComparisonEntry:
    path = config_folder() / "scenarios" / f"preba-{modality}-{suffix}.yaml"
    name = f"preba-{modality}-{suffix}-{partition}"
    overrides = [f"gpus[0].partition={partition}", f"name={name}"]
    scenario = load_scenario(path, overrides)
    batcher = scenario.models[0].batcher
    if partition == WHOLE and isinstance(batcher, FixedBatching):
        overrides.append(f"models[0].batcher.batch_max={batcher.batch_max * WHOLE_GPU_BATCH}")
        scenario = load_scenario(path, overrides)
    resolved = resolve(scenario, folder=path.parent)
    most_rps = saturated_rps(resolved)
    offered = _offered_rps(resolved)
    at_load = at_rate_factor(resolved, LOAD * most_rps / offered, requests)
    simulation, context, summary = run_and_summarise(at_load, engine=DEFAULT_ENGINE, console=console)
    write_run(out / name, at_load, simulation, context, summary)
    return ComparisonEntry(
        label=label, group=modality, summary=summary, link=f"{name}/report.html", saturated_rps=most_rps
    )


def _offered_rps(resolved: ResolvedScenario) -> float:
    rate: Any = resolved.scenario.models[0].arrivals.mean_rate_rps()
    return float(rate)


def _write_page(path: Path, entries: Sequence[ComparisonEntry]) -> None:
    try:
        path.write_text(render_comparison_html(entries, title=TITLE), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from error
