"""``preba validate``: a scenario live and simulated, side by side, every error signed and judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from preba.cli.output import check_targets, write_run
from preba.cli.progress import stderr_console
from preba.cli.validating import Compared, ValidationPlan, live_and_simulated
from preba.errors import OutputError
from preba.report.validation_text import TABLE_WIDTH, print_validation, validation_html
from preba.scenario.dump import scenario_yaml
from preba.scenario.load import errors_located, load_scenario
from preba.scenario.resolve import resolve


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
    report_only: Annotated[bool, typer.Option("--report-only", help="Exit with 0 whatever limits are missed.")] = False,
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
    plan = ValidationPlan(repeats=repeats, idle_requests=idle_requests, fresh=fresh, payloads=payloads)
    compared = live_and_simulated(resolved, plan, lambda text: console.print(text, markup=False))
    if out is not None:
        write_comparison(out, compared)
        console.print(f"report: {out / 'validation.html'}", markup=False)
    show(compared, as_json=as_json)
    if compared.found.missed and not report_only:
        raise typer.Exit(1)


def show(compared: Compared, *, as_json: bool) -> None:
    """Prints a comparison."""
    scenario = compared.calibrated.scenario
    if as_json:
        data = {"scenario": scenario.name, "notes": list(compared.notes), **compared.found.as_json()}
        typer.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    print_validation(compared.found, console, title=f"{scenario.name}: measured live and simulated")
    for note in compared.notes:
        console.print(f"measured first: {note}", markup=False, style="dim", soft_wrap=True)


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
        compared.found, title=f"{name}: measured and simulated", measured=compared.measured,
        simulated=compared.simulated, notes=list(compared.notes),
        scenario_text=scenario_yaml(compared.calibrated.scenario),
    )  # fmt: skip
    data = {"scenario": name, "notes": list(compared.notes), **compared.found.as_json()}
    try:
        (folder / "validation.html").write_text(page, encoding="utf-8")
        (folder / "validation.json").write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written: {error.strerror or error}") from error
