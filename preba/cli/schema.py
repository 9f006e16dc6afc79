"""``preba schema``: the JSON Schema of scenario files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from preba.errors import OutputError
from preba.scenario.schema import Scenario


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
