"""``preba validate``: a scenario live and simulated, side by side, every error signed and judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from preba.arrival_kinds import ClosedLoopArrivals
from preba.cli.output import check_targets, write_run
from preba.cli.progress import stderr_console
from preba.cli.simulate import run_and_summarise
from preba.cli.validating import Compared, ValidationPlan, fresh_summaries, live_and_simulated
from preba.errors import OutputError, ScenarioError
from preba.foreign.measured import merged, summary_of
from preba.foreign.read import read_measured
from preba.report.validation import Validated, validate_runs
from preba.report.validation_text import TABLE_WIDTH, print_validation, validation_html
from preba.scenario.dump import scenario_yaml
from preba.scenario.load import errors_located, load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from sim.run import DEFAULT_ENGINE


def validate(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML).")],
    *,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a field of the scenario.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write both runs, the calibrated scenario, JSON and the page to this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    payloads: Annotated[Path | None, typer.Option(help="Send the JPEG or WAV files of this folder instead.")] = None,
    repeats: Annotated[int, typer.Option(min=5, help="Batches measured per point of the latency profile.")] = 30,
    idle_requests: Annotated[int, typer.Option(min=10, help="Requests sent one by one to find overheads.")] = 80,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            "--measured",
            help="Compare with a run that others measured instead: perf_analyzer CSV or profile export, Triton "
            "statistics or trace JSON, LoadGen summary or detail log. Several files make one run.",
        ),
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Exit with 0 whatever limits are missed.")] = False,
    sections: Annotated[
        int,
        typer.Option(
            min=1,
            help="Cut rehearsal and run into so many pieces and play them in turns, with pauses: on machines whose "
            "speed drifts. Open loops without events.",
        ),
    ] = 1,
    fresh: Annotated[int, typer.Option(min=0, help="Fresh draws of the same process simulated as well.")] = 5,
) -> None:
    """Run a scenario live and simulate the very same trace: measured, simulated, signed error, verdict.

    Latency profiles, preprocessing costs and overheads are measured first, in runs of their own. Exit code 1 when a
    limit of the scenario's validation section is missed.
    """
    check_targets(out, None)
    with errors_located(scenario):
        resolved = resolve(load_scenario(scenario, overrides or []), folder=scenario.parent)
    console = stderr_console()
    if measured and sections > 1:
        raise ScenarioError("--sections: with --measured nothing is played that could be cut")
    if measured:
        found, notes = with_measured(resolved, measured, fresh)
        if out is not None:
            write_verdict(out, resolved.scenario.name, found, notes)
            console.print(f"report: {out / 'validation.html'}", markup=False)
        show(resolved.scenario.name, found, notes, as_json=as_json, what="measured by others and simulated")
        end(found, report_only=report_only)
        return
    plan = ValidationPlan(
        repeats=repeats, idle_requests=idle_requests, fresh=fresh, payloads=payloads, sections=sections
    )
    compared = live_and_simulated(resolved, plan, lambda text: console.print(text, markup=False))
    if out is not None:
        write_comparison(out, compared)
        console.print(f"report: {out / 'validation.html'}", markup=False)
    name = compared.calibrated.scenario.name
    show(name, compared.found, compared.notes, as_json=as_json, what="measured live and simulated")
    end(compared.found, report_only=report_only)


def end(found: Validated, *, report_only: bool) -> None:
    """Exit code 1 where a limit is missed."""
    if found.missed and not report_only:
        raise typer.Exit(1)


def with_measured(resolved: ResolvedScenario, files: Sequence[Path], fresh: int) -> tuple[Validated, tuple[str, ...]]:
    """Simulates a scenario and puts it beside what files say; nothing is served."""
    if len(resolved.models) > 1:
        raise ScenarioError("scenario.models: --measured compares scenarios with one model")
    model = resolved.models[0].config
    load = model.arrivals.mean_rate_rps()
    if isinstance(model.arrivals, ClosedLoopArrivals):
        load = float(model.arrivals.outstanding)
    read = merged([read_measured(path, model=model.name, load=load) for path in files])
    here = summary_of(read)
    there = run_and_summarise(resolved, engine=DEFAULT_ENGINE, text=False)[2]
    draws = fresh_summaries(resolved, fresh)
    found = validate_runs(here, there, limits=resolved.scenario.validation, fresh=draws)
    return found, (f"measured: {read.source}",)


def show(name: str, found: Validated, notes: Sequence[str], *, as_json: bool, what: str) -> None:
    """Prints a comparison."""
    if as_json:
        data = {"scenario": name, "notes": list(notes), **found.as_json()}
        typer.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    print_validation(found, console, title=f"{name}: {what}")
    for note in notes:
        console.print(note, markup=False, style="dim", soft_wrap=True)


def write_comparison(folder: Path, compared: Compared) -> None:
    """Writes ``measured/`` and ``simulated/`` as their commands do, ``validation.json`` and ``validation.html``.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    write_run(folder / "measured", compared.calibrated, compared.played, compared.context, compared.measured_summary)
    write_run(
        folder / "simulated", compared.calibrated, compared.simulation, compared.context, compared.simulated_summary
    )
    name = compared.calibrated.scenario.name
    page = validation_html(
        compared.found, title=f"{name}: measured and simulated", runs=(compared.measured, compared.simulated),
        notes=list(compared.notes), scenario_text=scenario_yaml(compared.calibrated.scenario),
    )  # fmt: skip
    _write(folder, name, page, compared.found, compared.notes)


def write_verdict(folder: Path, name: str, found: Validated, notes: Sequence[str]) -> None:
    """Writes ``validation.json`` and ``validation.html`` of a comparison without records of the measured run.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    page = validation_html(found, title=f"{name}: measured and simulated", runs=None, notes=list(notes))
    _write(folder, name, page, found, notes)


def _write(folder: Path, name: str, page: str, found: Validated, notes: Sequence[str]) -> None:
    data = {"scenario": name, "notes": list(notes), **found.as_json()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "validation.html").write_text(page, encoding="utf-8")
        (folder / "validation.json").write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written: {error.strerror or error}") from error
