"""``preba load``: plays a scenario's traffic against a live server, and reports it as ``simulate`` reports its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from preba.cli.output import check_targets, write_run
from preba.cli.progress import engine_progress, stderr_console
from preba.report.context import ReportContext
from preba.report.summary import summarise
from preba.scenario.live import SmPartitionSlices
from preba.scenario.load import errors_located, load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.strict import Provenance
from runtime.load.run import Played, Target, play
from sim.capacity import StageLoad
from sim.context import report_context


def load(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML).")],
    url: Annotated[str, typer.Option(help="Where the server is: HOST:PORT of its KServe v2 gRPC service.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. models[0].arrivals.rate_rps=500."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write records, resolved scenario, summary and HTML report to this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,  # noqa: FBT002
    payloads: Annotated[Path | None, typer.Option(help="Send the JPEG or WAV files of this folder instead.")] = None,
    warmup: Annotated[int, typer.Option("--warm-up-requests", min=0, help="Sent first and not recorded.")] = 20,
    timeout_ms: Annotated[float | None, typer.Option(min=1, help="Deadline of each request.")] = None,
    in_flight_max: Annotated[
        int, typer.Option("--max-in-flight", min=1, help="Requests under way; one more is counted as refused.")
    ] = 20_000,
    token: Annotated[str | None, typer.Option(envvar="PREBA_TOKEN", help="Bearer token.")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM certificates to trust; makes the connection TLS.")] = None,
) -> None:
    """Play a scenario's traffic against a live server: each request at its time, whatever became of earlier ones.

    Latency counts from the moment a request was scheduled for; how late it was really sent is a column of its own.
    """
    check_targets(out, None)
    with errors_located(scenario):
        resolved = resolve(load_scenario(scenario, overrides or []), folder=scenario.parent)
    target = Target(url, token or None, ca)
    with engine_progress(None, resolved.scenario.name) as progress:
        played = play(
            resolved, target, payloads=payloads, warmup_requests=warmup,
            timeout_s=None if timeout_ms is None else timeout_ms / 1e3, in_flight_max=in_flight_max, progress=progress,
        )  # fmt: skip
    context, summary = measured_summary(resolved, played)
    if out is not None:
        write_run(out, resolved, played, context, summary)
    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        from rich.console import Console

        from preba.report.table import print_summary

        print_summary(summary, Console(highlight=False))
    if out is not None:
        stderr_console().print(f"report: {out / 'report.html'}", markup=False)


SM_PARTITION = (
    "the slices were shares of one GPU's multiprocessors (CUDA green contexts): memory bandwidth and caches were not "
    "partitioned, as they are by MIG, and processes on one GPU take turns unless NVIDIA's MPS runs"
)


@dataclass(frozen=True)
class _Frame:
    warnings: tuple[str, ...]
    loads: tuple[StageLoad, ...] = ()
    provenance: tuple[tuple[str, Provenance], ...] = ()


def measured_summary(resolved: ResolvedScenario, played: Played) -> tuple[ReportContext, dict[str, Any]]:
    """The frame and the summary of a measured run, by the same functions as a simulated one.

    Parameters
    ----------
    resolved : ResolvedScenario
    played : Played
    """
    warnings = played.warnings
    if isinstance(resolved.scenario.live.slices, SmPartitionSlices):
        warnings = (*warnings, SM_PARTITION)
    context = report_context(resolved, _Frame(warnings))
    summary = summarise(played.result, context)
    summary["generator"] = {
        "lag_ms": {name.removesuffix("_ms"): value for name, value in played.lag.items()},
        "errors": [{"code": code, "message": text, "count": count} for code, text, count in played.errors],
    }
    return context, summary
