"""``preba simulate``: from a scenario file to a table, a JSON object and a folder of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from preba.cli.output import check_targets, write_run
from preba.cli.progress import engine_progress
from preba.report.chrome_trace import write_chrome_trace
from preba.report.context import ReportContext
from preba.report.summary import summarise
from preba.report.table import print_summary
from preba.scenario.load import errors_located, load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from sim.context import report_context
from sim.run import DEFAULT_ENGINE, Simulation
from sim.run import simulate as run_scenario


def simulate(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML).")],
    engine: Annotated[
        str, typer.Option(help="Which engine runs it: compiled, or reference (SimPy; same answers).")
    ] = DEFAULT_ENGINE,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. models[0].arrivals.rate_rps=500."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write records, resolved scenario, summary and HTML report to this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,  # noqa: FBT002
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome/Perfetto trace (.json or .json.gz) to this file.")
    ] = None,
    trace_limit: Annotated[int, typer.Option(min=1, help="Requests shown in the trace.")] = 100_000,
) -> None:
    """Predict how a scenario's server behaves, without any hardware."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    check_targets(out, trace)
    with errors_located(scenario):
        resolved = resolve(load_scenario(scenario, overrides or []), folder=scenario.parent)
        simulation, context, summary = run_and_summarise(resolved, engine=engine, console=console)
    if out is not None:
        write_run(out, resolved, simulation, context, summary)
    if trace is not None:
        write_chrome_trace(trace, simulation.result, limit=trace_limit)
    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        print_summary(summary, Console(highlight=False))
    if out is not None:
        console.print(f"report: {out / 'report.html'}", markup=False)
    if trace is not None:
        cut = f"the first {trace_limit:,} requests; " if trace_limit < len(simulation.trace) else ""
        console.print(f"trace: {trace} ({cut}open in https://ui.perfetto.dev)", markup=False)


def run_and_summarise(
    resolved: ResolvedScenario, *, engine: str, console: Console
) -> tuple[Simulation, ReportContext, dict[str, Any]]:
    """Runs a scenario with progress on the console and computes its summary.

    Parameters
    ----------
    resolved : ResolvedScenario
    engine : str
    console : rich Console
        Progress goes here.

    Returns
    -------
    tuple
        The simulation, the report's context and the summary object.
    """
    with engine_progress(console, resolved.scenario.name) as progress:
        simulation = run_scenario(resolved, engine=engine, progress=progress)
    context = report_context(resolved, simulation)
    return simulation, context, summarise(simulation.result, context)
