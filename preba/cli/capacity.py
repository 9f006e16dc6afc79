"""``preba capacity``: the highest rate that keeps an objective, for one scenario or for each point of a grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from preba.cli.progress import stderr_console
from preba.errors import PrebaError, UnsupportedError, nearest
from preba.report.numbers import scaled, significant
from preba.scenario.load import errors_located, scenario_data
from preba.scenario.resolve import resolve
from sim.run import DEFAULT_ENGINE, ENGINES
from sim.slo import Capacity, find_capacity, parse_objective
from sim.vary import Space, parse_axis, points_of

WIDE = 100
"""Columns of a terminal that has room for all figures."""


def capacity(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML); its run.requests is each run's length.")],
    slo: Annotated[str, typer.Option(metavar="PERCENTILE=MS", help="The objective, e.g. p99=50.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="PATH=V1,V2,...",
            help="Ask for each of these values, e.g. 'gpus[0].partition=7x1g.5gb,7g.40gb'; repeat for a grid.",
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="compiled or reference.")] = DEFAULT_ENGINE,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a field for all points.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,  # noqa: FBT002
) -> None:
    """Find the highest rate at which a scenario meets its latency objective, and how surely."""
    if engine not in ENGINES:
        raise UnsupportedError(f"--engine: {engine!r} is not an engine{nearest(engine, ENGINES)}")
    objective = parse_objective(slo)
    axes = [parse_axis(text) for text in vary or []]
    points = points_of(axes, "grid")
    paths = [axis.path for axis in axes]
    found: list[tuple[dict[str, str], Capacity | None, str | None]] = []
    with errors_located(scenario):
        data, lines = scenario_data(scenario, overrides or [])
        space = Space(data, lines, scenario)
        for place, point in enumerate(points):
            settings = dict(zip(paths, point, strict=True))
            try:
                resolved = resolve(space.scenario(settings), folder=scenario.parent)
                found.append((settings, find_capacity(resolved, objective, engine=engine), None))
            except PrebaError as error:
                if len(points) == 1:
                    raise
                found.append((settings, None, str(error)))
            if len(points) > 1 and stderr_console().is_terminal:
                stderr_console().print(f"{place + 1} of {len(points)} points", end="\r", markup=False)
    if as_json:
        answers = [_as_json(settings, answer, error) for settings, answer, error in found]
        result = {"scenario": data.get("name"), "slo": {"level": objective.name, "limit_ms": objective.limit_ms}}
        typer.echo(json.dumps({**result, "points": answers}, indent=2, allow_nan=False))
    else:
        _show(found, objective.name, objective.limit_ms)
    if any(error is not None for _, _, error in found):
        raise typer.Exit(1)


def _as_json(settings: dict[str, str], answer: Capacity | None, error: str | None) -> dict[str, Any]:
    if answer is None:
        return {"set": settings, "error": error}
    return {
        "set": settings,
        "rate_rps": answer.rate_rps,
        "interval_rps": [answer.low_rps, answer.high_rps],
        "latency_ms": answer.latency_ms,
        "limited_by": answer.limited_by,
        "runs": answer.runs,
        "figures": answer.figures,
    }


def _show(found: list[tuple[dict[str, str], Capacity | None, str | None]], name: str, limit_ms: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    wide = console.width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"highest rate with {name} <= {limit_ms:g} ms")
    for path in found[0][0]:
        table.add_column(path.replace("]", "").replace("[", ".").split(".")[-1], overflow="fold", min_width=9)
    for header in ("req/s", "known to", f"{name} ms", "batch", *(("slices busy", "req/USD") if wide else ())):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("limited by", overflow="fold", min_width=10)
    for settings, answer, _ in found:
        values = [Text(value) for value in settings.values()]
        if answer is None:
            table.add_row(*values, Text("error", style="red"))
            continue
        figures = answer.figures
        busy = figures["slices_busy"]
        more = ("–" if busy is None else f"{100 * busy:.3g} %", scaled(figures["requests_per_usd"]))
        table.add_row(
            *values,
            f"{answer.rate_rps:,.0f}",
            f"{answer.low_rps:,.0f} – {answer.high_rps:,.0f}",
            significant(answer.latency_ms),
            significant(figures["batch_mean"]),
            *(more if wide else ()),
            answer.limited_by,
        )
    console.print(table)
    for settings, _, error in found:
        if error is not None:
            point = ", ".join(f"{path}={value}" for path, value in settings.items())
            stderr_console().print(f"error: {point}: {error}", markup=False, style="red")
