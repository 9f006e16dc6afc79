"""``preba profile``: measures what the simulator takes as given, and writes it as profile files."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from preba.cli.progress import stderr_console
from preba.errors import OutputError, ScenarioError, nearest
from preba.profile_yaml import profile_to_yaml
from preba.scenario.load import errors_located, load_scenario
from preba.scenario.resolve import ResolvedModel, ResolvedScenario, resolve

profile_app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="Measure execution times and preprocessing."
)


@profile_app.callback()
def _group() -> None:
    pass


@profile_app.command("model")
def model(
    scenario: Annotated[Path, typer.Argument(help="Scenario file; its live.slices say what executes.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a field of the scenario.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--model", help="Which of the scenario's models; default: the first.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, comma separated.")] = "1,2,4,8",
    lengths_s: Annotated[str, typer.Option(help="Audio lengths in seconds, comma separated.")] = "",
    warmup: Annotated[int, typer.Option(min=0, help="Batches thrown away per point.")] = 5,
    repeats: Annotated[int, typer.Option(min=5, help="Batches measured per point.")] = 50,
    out: Annotated[Path | None, typer.Option(help="Write the profile to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every point as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Measure latency per slice kind, audio length and batch through Triton, one batch at a time."""
    from runtime.profiling import Plan, measure_model, profile_of

    plan = Plan(tuple(_integers(batches, "--batches")), tuple(_numbers(lengths_s, "--lengths-s")), warmup, repeats)
    with errors_located(scenario):
        resolved = resolve(load_scenario(scenario, overrides or []), folder=scenario.parent)
        chosen = _chosen(resolved, name)
        console = stderr_console()
        with console.status("starting") as status:
            points = asyncio.run(
                measure_model(resolved, chosen, plan, lambda done, all_: status.update(f"{done} of {all_} points"))
            )
        stem = out.stem if out is not None else f"{chosen.config.name}-measured"
        profile = profile_of(resolved, chosen, plan, points, name=stem.lower())
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(profile_to_yaml(profile, header="Written by preba profile model."), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"--out {out}: cannot be written: {error.strerror}") from error
        console.print(f"profile: {out}", markup=False)
    if as_json:
        typer.echo(json.dumps({"points": [asdict(point) for point in points]}, indent=2))
        return
    typer.echo(
        f"{'slice':12}{'length s':>9}{'batch':>7}{'median ms':>11}{'p10':>9}{'p90':>9}{'in model':>10}{'count':>7}"
    )
    for point in points:
        length = "" if point.length_s is None else f"{point.length_s:g}"
        typer.echo(
            f"{point.slice_profile:12}{length:>9}{point.batch:>7}{point.median_ms:>11.3f}{point.p10_ms:>9.3f}"
            f"{point.p90_ms:>9.3f}{point.inside_ms:>10.3f}{point.count:>7}"
        )


def _chosen(resolved: ResolvedScenario, name: str | None) -> ResolvedModel:
    if name is None:
        return resolved.models[0]
    for one in resolved.models:
        if one.config.name == name:
            return one
    raise ScenarioError(
        f"--model: no model named {name!r}{nearest(name, [one.config.name for one in resolved.models])}"
    )


def _integers(text: str, option: str) -> list[int]:
    try:
        found = sorted({int(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise typer.BadParameter(f"{option}: needs whole numbers >= 1 such as 1,2,4, got {text!r}")
    return found


def _numbers(text: str, option: str) -> list[float]:
    try:
        found = sorted({float(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = [-1.0]
    if found and found[0] <= 0:
        raise typer.BadParameter(f"{option}: needs numbers > 0 such as 2.5,5,10, got {text!r}")
    return found
