"""The ``preba`` command: its verbs, and the one place where errors become a line on stderr and an exit code.

A verb's module is imported when the verb is called, so that none waits for what only the others need.
Exit codes: 0 fine, 1 a check failed, 2 wrong usage or bad input.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from preba import __version__
from preba.cli.start import spare_garbage_collection
from preba.errors import MissingExtraError, PrebaError


@dataclass(frozen=True)
class Verb:
    """Where a verb is defined and what the list of verbs says of it.

    Attributes
    ----------
    module, name : str
        The module, and the function or typer application in it.
    summary : str
        The first sentence of its help.
    extra : str or None
        The optional dependencies it needs.
    """

    module: str
    name: str
    summary: str
    extra: str | None = None

    def load(self) -> Any:  # noqa: ANN401 - a function with options, or a typer application
        """Imports and returns it.

        Raises
        ------
        MissingExtraError
            Its extra is not installed.
        """
        try:
            return getattr(importlib.import_module(self.module), self.name)
        except ModuleNotFoundError as error:
            if self.extra is None:
                raise
            raise MissingExtraError(
                f"this verb needs {error.name}, which is not installed: pip install 'preba[{self.extra}]'"
            ) from error


VERBS: Mapping[str, Verb] = {
    "simulate": Verb(
        "preba.cli.simulate", "simulate", "Predict how a scenario's server behaves, without any hardware."
    ),
    "sweep": Verb(
        "preba.cli.sweep",
        "sweep",
        "Run a scenario at many points and compare them: one row per point, plots and a report.",
    ),
    "capacity": Verb(
        "preba.cli.capacity",
        "capacity",
        "Find the highest rate at which a scenario meets its latency objective, and how surely.",
    ),
    "serve": Verb(
        "preba.cli.serve",
        "serve",
        "Serve a scenario on real parts: preprocessing, preba's batchers and one Triton server per slice.",
        extra="live",
    ),
    "load": Verb(
        "preba.cli.load",
        "load",
        "Play a scenario's traffic against a live server: each request at its time, whatever became of earlier ones.",
        extra="live",
    ),
    "validate": Verb(
        "preba.cli.validate",
        "validate",
        "Run a scenario live and simulate the very same trace: measured, simulated, signed error, verdict.",
        extra="live",
    ),
    "validate-gpu": Verb(
        "preba.cli.validate_gpu",
        "validate_gpu",
        "Measure preprocessing, models, interference and the live pipeline on this machine's GPU, and write profiles.",
        extra="live",
    ),
    "profile": Verb(
        "preba.cli.profile",
        "profile_app",
        "Measure execution times and preprocessing, and write the profiles that simulate reads.",
        extra="live",
    ),
    "demo": Verb(
        "preba.cli.demo",
        "demo",
        "Compare CPU, DPU and ideal preprocessing on seven small slices and on the whole GPU.",
    ),
    "schema": Verb(
        "preba.cli.schema",
        "schema",
        "Print the JSON Schema of scenario files, for editors that complete and check YAML.",
    ),
    "mig": Verb(
        "preba.cli.mig_live", "mig_app", "Cut GPUs into MIG slices: catalogue and plans, and this machine's own GPUs."
    ),
}
"""Every verb, in the order of ``preba --help``."""


class _LaterCommand(TyperCommand):
    """Stands in the list of verbs; the verb itself takes over once it is called."""

    def __init__(self, name: str, verb: Verb) -> None:
        super().__init__(name, help=verb.summary)
        self.verb = verb

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:  # noqa: ANN401 - click's
        found = self.verb.load()
        if not isinstance(found, typer.Typer):
            application = _application()
            application.command(self.name)(found)
            found = application
        return typer.main.get_command(found).make_context(info_name, args, parent=parent, **extra)


class _Verbs(TyperGroup):
    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - click's
        super().__init__(**settings)
        for name, verb in VERBS.items():
            self.add_command(_LaterCommand(name, verb))


def _application(**settings: Any) -> typer.Typer:  # noqa: ANN401 - typer's
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **settings)


app = _application(
    name="preba",
    cls=_Verbs,
    no_args_is_help=True,
    help="Predict tail latency, throughput, power and cost of ML inference on partitioned GPUs.",
)


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
    spare_garbage_collection()
    try:
        # Usage errors and interrupts are the framework's own: it says so on stderr and exits with 2 or 130.
        app(args=arguments)
    except PrebaError as error:
        # Only a failure needs colours, which take longer to import than a verb's own help.
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        for line in str(error).splitlines():
            console.print(f"error: {line}", markup=False, style="red")
        sys.exit(2)
