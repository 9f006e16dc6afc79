"""Writing a run's folder: records, traffic, resolved scenario, summary and report, all or nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

from preba import __version__
from preba.arrivals import ReplayArrivals
from preba.batchers import PluginBatching
from preba.errors import OutputError
from preba.records import RunResult, write_records, write_spans
from preba.report.context import ReportContext
from preba.report.html import render_html
from preba.scenario.dump import scenario_yaml
from preba.scenario.resolve import ResolvedScenario
from preba.scenario.schema import Scenario
from preba.sizes import EmpiricalSizes
from preba.trace import Trace, write_trace

INPUTS = "inputs"


class Run(Protocol):
    """A finished run, simulated or measured."""

    @property
    def result(self) -> RunResult:
        """Records and what belongs to them."""
        ...

    @property
    def trace(self) -> Trace:
        """What was played."""
        ...


def check_targets(out: Path | None, trace: Path | None) -> None:
    """Finds out before a run, which may be long, that its results could not be written.

    Raises
    ------
    OutputError
        The folder is a file, or no file can be made where one is wanted; nothing is left behind.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise OutputError(f"--out {out}: is a file, not a folder")
    for option, path in (("--out", out), ("--trace", trace)):
        if path is None:
            continue
        place = path.parent
        while option == "--out" and not place.exists() and place != place.parent:
            place = place.parent
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            raise OutputError(f"{option} {path}: cannot be written: {error.strerror or error}") from error


def write_run(
    folder: Path, resolved: ResolvedScenario, run: Run, context: ReportContext, summary: dict[str, Any]
) -> None:
    """Writes everything about a run to a folder.

    ``records.parquet`` (one row per request), ``stations.parquet`` (one row per visit to a preprocessing station),
    ``trace.parquet`` (the traffic as drawn), ``scenario.yaml`` (resolved: running it again reproduces the records bit
    for bit), ``summary.json`` and ``report.html``; recorded inputs are copied to ``inputs/``.

    Parameters
    ----------
    folder : Path
        Created if needed; files of an earlier run are replaced.
    resolved, run, context, summary
        As ``preba.cli.simulate`` has them.

    Raises
    ------
    OutputError
        The folder cannot be written; nothing in it has changed then.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            _fill(Path(temporary), resolved, run, context, summary)
            folder.mkdir(exist_ok=True)
            for item in sorted(Path(temporary).iterdir()):
                target = folder / item.name
                if target.is_dir():
                    shutil.rmtree(target)
                item.replace(target)
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written: {error.strerror or error}") from error


def _fill(folder: Path, resolved: ResolvedScenario, run: Run, context: ReportContext, summary: dict[str, Any]) -> None:
    scenario = _with_inputs(resolved.scenario, folder)
    metadata = {"preba": __version__, "scenario": scenario.name, "engine": run.result.engine}
    write_records(folder / "records.parquet", run.result.records, metadata)
    write_spans(folder / "stations.parquet", run.result.spans, run.result.stations)
    write_trace(folder / "trace.parquet", run.trace)
    (folder / "scenario.yaml").write_text(scenario_yaml(scenario), encoding="utf-8")
    text = json.dumps(summary, indent=2, allow_nan=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render_html(run.result, context, summary), encoding="utf-8")


def _with_inputs(scenario: Scenario, folder: Path) -> Scenario:
    """Copies recorded arrivals and sizes and plug-in policies beside the scenario and names them there."""
    models = []
    for index, model in enumerate(scenario.models):
        changes: dict[str, object] = {}
        for field in ("arrivals", "sizes", "batcher"):
            config = getattr(model, field)
            if isinstance(config, ReplayArrivals | EmpiricalSizes | PluginBatching):
                source = Path(config.file)
                (folder / INPUTS).mkdir(exist_ok=True)
                name = f"{INPUTS}/{index}-{field}-{source.name}"
                shutil.copyfile(source, folder / name)
                changes[field] = config.model_copy(update={"file": name})
        models.append(model.model_copy(update=changes))
    return scenario.model_copy(update={"models": tuple(models)})
