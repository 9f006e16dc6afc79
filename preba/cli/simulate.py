"""``preba simulate``: from a scenario file to a table, a JSON object and a folder of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from preba.cli.progress import engine_progress, stderr_console
from preba.cli.start import load_numba_without_scipy
from preba.errors import UnsupportedError
from preba.report.context import ReportContext
from preba.report.summary import summarise
from preba.scenario.load import errors_located, load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from sim.context import report_context
from sim.run import DEFAULT_ENGINE, Simulation
from sim.run import simulate as run_scenario

if TYPE_CHECKING:
    from rich.console import Console


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
    stream: Annotated[  # noqa: FBT002
        bool,
        typer.Option(
            "--stream",
            help="Keep counts and histograms instead of records: for runs of any length, in constant memory; "
            "percentiles within 0.05 %.",
        ),
    ] = False,
) -> None:
    """Predict how a scenario's server behaves, without any hardware."""
    if stream and (out is not None or trace is not None or engine != DEFAULT_ENGINE):
        raise UnsupportedError(
            "--stream: keeps no records, so there is no --out and no --trace, and the reference engine does not stream"
        )
    # What only tables, folders or traces need is imported where it is needed: a run with --json ends before half of
    # it would have been imported.
    if out is not None or trace is not None:
        from preba.cli.output import check_targets

        check_targets(out, trace)
    with errors_located(scenario):
        resolved = resolve(load_scenario(scenario, overrides or []), folder=scenario.parent)
        if stream:
            summary = stream_and_summarise(resolved)
        else:
            simulation, context, summary = run_and_summarise(resolved, engine=engine, text=out is not None)
    if out is not None:
        from preba.cli.output import write_run

        write_run(out, resolved, simulation, context, summary)
    if trace is not None:
        from preba.report.chrome_trace import write_chrome_trace

        write_chrome_trace(trace, simulation.result, limit=trace_limit)
    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        from rich.console import Console

        from preba.report.table import print_summary

        print_summary(summary, Console(highlight=False))
    if out is not None:
        stderr_console().print(f"report: {out / 'report.html'}", markup=False)
    if trace is not None:
        cut = f"the first {trace_limit:,} requests; " if trace_limit < len(simulation.trace) else ""
        stderr_console().print(f"trace: {trace} ({cut}open in https://ui.perfetto.dev)", markup=False)


def run_and_summarise(
    resolved: ResolvedScenario, *, engine: str, console: Console | None = None, text: bool = True
) -> tuple[Simulation, ReportContext, dict[str, Any]]:
    """Runs a scenario with progress on the console and computes its summary.

    Parameters
    ----------
    resolved : ResolvedScenario
    engine : str
    console : rich Console, optional
        Progress goes here, else to stderr.
    text : bool
        Whether the context must hold the scenario's text, which only pages show.

    Returns
    -------
    tuple
        The simulation, the report's context and the summary object.
    """
    if engine == DEFAULT_ENGINE:
        load_numba_without_scipy()
    with engine_progress(console, resolved.scenario.name) as progress:
        simulation = run_scenario(resolved, engine=engine, progress=progress)
    context = report_context(resolved, simulation, text=text)
    return simulation, context, summarise(simulation.result, context)


def stream_and_summarise(resolved: ResolvedScenario) -> dict[str, Any]:
    """Runs a scenario without keeping its requests, with progress on stderr; returns its summary."""
    from preba.report.stream import summarise_stream
    from sim.compiled.streamed import simulate_streamed

    with engine_progress(None, resolved.scenario.name) as progress:
        simulation = simulate_streamed(resolved, progress)
    return summarise_stream(simulation.run, report_context(resolved, simulation, text=False))
