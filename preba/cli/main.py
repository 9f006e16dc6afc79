"""The ``preba`` command: verbs, and the one place where errors become a line on stderr and an exit code.

Exit codes: 0 fine, 1 a check failed, 2 wrong usage or bad input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from preba import __version__
from preba.cli.demo import demo
from preba.cli.mig import mig_app
from preba.cli.simulate import simulate
from preba.errors import OutputError, PrebaError
from preba.scenario.schema import Scenario

app = typer.Typer(
    name="preba",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Predict tail latency, throughput, power and cost of ML inference on partitioned GPUs.",
)
app.command()(simulate)
app.command()(demo)
app.add_typer(mig_app, name="mig")


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")] = None,
) -> None:
    """Print the JSON Schema of scenario files, for editors that complete and check YAML."""
    text = json.dumps(Scenario.model_json_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"--out {out}: cannot be written: {error.strerror or error}") from error


def _version(wanted: bool) -> None:  # noqa: FBT001 - called by typer with the option's value
    if wanted:
        typer.echo(f"preba {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def run(arguments: list[str] | None = None) -> None:
    """Entry point of the ``preba`` command.

    Parameters
    ----------
    arguments : list of str, optional
        Instead of the process's own.
    """
    try:
        # Usage errors and interrupts are the framework's own: it says so on stderr and exits with 2 or 130.
        app(args=arguments)
    except PrebaError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        for line in str(error).splitlines():
            console.print(f"error: {line}", markup=False, style="red")
        sys.exit(2)
