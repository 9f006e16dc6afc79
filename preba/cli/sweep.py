"""``preba sweep``: many points of a scenario, on threads, processes or a Dask cluster, resumable."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from preba.cli.progress import stderr_console
from preba.errors import OutputError, ScenarioError, UnsupportedError, nearest
from preba.scenario.load import errors_located
from sim.run import DEFAULT_ENGINE, ENGINES
from sim.vary import Mode, parse_axis

if TYPE_CHECKING:
    from rich.table import Table

    from sim.sweep.run import Row, Sweep

ROWS_PRINTED = 40
AXIS_WIDTH, FIGURE_WIDTH = 24, 10
COLUMNS_BY_WORTH = (
    "latency_p99_ms", "throughput_rps", "refused", "requests_per_usd", "batch_mean", "slices_busy", "latency_p50_ms",
    "power_w", "latency_mean_ms",
)  # fmt: skip
"""Which figures a narrow terminal shows first."""


def sweep(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML).")],
    vary: Annotated[
        list[str],
        typer.Option(
            "--vary",
            metavar="PATH=V1,V2,...",
            help="A field and its values, as YAML; values that hold commas are quoted or in brackets, e.g. "
            "'models[0].batcher={kind: none},{kind: greedy}'. With --sobol also PATH=LOW..HIGH. Repeat for more axes.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results; a killed sweep goes on from there.")],
    grid: Annotated[bool, typer.Option("--grid", help="Every combination (the default).")] = False,  # noqa: FBT002
    zipped: Annotated[bool, typer.Option("--zip", help="First values together, then second.")] = False,  # noqa: FBT002
    sobol: Annotated[int, typer.Option(min=0, help="So many points that fill the space evenly.")] = 0,
    replications: Annotated[int, typer.Option(min=1, help="Runs per point, with seeds of their own.")] = 1,
    executor: Annotated[str, typer.Option(help="threads, processes, or dask://HOST:PORT.")] = "processes",
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once; as many as there are cores.")] = None,
    engine: Annotated[str, typer.Option(help="compiled or reference.")] = DEFAULT_ENGINE,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a field for all points.")
    ] = None,
) -> None:
    """Run a scenario at many points and compare them: one row per point, plots and a report."""
    from sim.sweep.executors import executor_named
    from sim.sweep.run import plan_sweep, rows_of, run_sweep
    from sim.sweep.store import SweepStore

    if engine not in ENGINES:
        raise UnsupportedError(f"--engine: {engine!r} is not an engine{nearest(engine, ENGINES)}")
    mode = _mode(grid=grid, zipped=zipped, sobol=sobol)
    axes = [parse_axis(text) for text in vary]
    with errors_located(scenario):
        plan = plan_sweep(
            scenario, axes, mode=mode, sobol=sobol, replications=replications, engine=engine, overrides=overrides or []
        )
    store = SweepStore(out, plan.plan())
    began, known = time.perf_counter(), len(store.lines)
    try:
        if known < len(plan.points) * replications or any("error" in line for line in store.lines.values()):
            with (
                executor_named(executor, workers=workers, engine=engine) as (pool, at_once),
                sweep_progress() as progress,
            ):
                run_sweep(plan, store, pool, workers=at_once, progress=progress)
    finally:
        store.close()
    rows = rows_of(plan, store)
    runs = f"{len(plan.points):,} points of {scenario.name}, {replications} run(s) each, {engine} engine"
    _write(out, plan, rows, [f"{runs}; seed {plan.seed} for all points (common random numbers)"])
    _show(plan, rows, out, resumed=known, wall_s=time.perf_counter() - began)
    if any(row["error"] is not None for row in rows):
        raise typer.Exit(1)


def _mode(*, grid: bool, zipped: bool, sobol: int) -> Mode:
    if grid + zipped + (sobol > 0) > 1:
        raise ScenarioError("--grid, --zip, --sobol: give at most one of them")
    return "zip" if zipped else "sobol" if sobol else "grid"


@contextmanager
def sweep_progress() -> Iterator[Any]:
    """Yields a callback (finished, total) that shows runs, their rate and the time left on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = stderr_console()
    rate = TextColumn("{task.fields[rate]}")
    bar = Progress(
        TextColumn("runs"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), console=console,
        transient=True,
    )  # fmt: skip
    began = last_line = time.monotonic()
    first: int | None = None
    task = bar.add_task("runs", total=None, rate="")

    def report(finished: int, total: int) -> None:
        nonlocal first, last_line
        now = time.monotonic()
        if first is None:
            first = finished
            if first:
                console.print(f"{first:,} of {total:,} runs were finished before; going on", markup=False)
        speed = (finished - first) / max(now - began, 1e-9)
        left_s = (total - finished) / speed if speed > 0 else float("inf")
        if console.is_terminal:
            bar.update(task, completed=finished, total=total, rate=f"{speed:.1f}/s")
        elif now - last_line >= 10.0 and finished < total:
            last_line = now
            console.print(f"{finished:,} of {total:,} runs ({speed:.1f}/s, {left_s:.0f} s left)", markup=False)

    if console.is_terminal:
        bar.start()
    try:
        yield report
    finally:
        if console.is_terminal:
            bar.stop()


def _write(out: Path, plan: Sweep, rows: list[Row], facts: list[str]) -> None:
    from preba.report.sweep import render_sweep_html, write_tables

    write_tables(out, rows, plan.paths)
    name = plan.space.data.get("name", plan.space.origin.stem)
    html = render_sweep_html(rows, plan.paths, title=f"Sweep of {name}", facts=facts)
    try:
        (out / "report.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written: {error.strerror or error}") from error


def _show(plan: Sweep, rows: list[Row], out: Path, *, resumed: int, wall_s: float) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table(plan, rows[:ROWS_PRINTED], console.width))
    if len(rows) > ROWS_PRINTED:
        console.print(f"the first {ROWS_PRINTED} of {len(rows):,} points; all are in {out / 'sweep.csv'}", markup=False)
    messages = stderr_console()
    for row in rows:
        if row["error"] is not None:
            point = ", ".join(f"{path}={row[path]}" for path in plan.paths)
            messages.print(f"error: {point}: {row['error']}", markup=False, style="red")
    runs = len(plan.points) * plan.replications - resumed
    messages.print(f"{runs:,} runs in {wall_s:.1f} s; report: {out / 'report.html'}", markup=False)


def _table(plan: Sweep, rows: list[Row], width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from preba.report.sweep import COLUMNS, cell

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    short = _short_names(plan.paths)
    for path in plan.paths:
        longest = max([len(short[path]), *(len(str(row[path])) for row in rows)])
        table.add_column(short[path], overflow="fold", min_width=min(longest, AXIS_WIDTH), max_width=longest)
        width -= min(longest, AXIS_WIDTH) + 3
    shown = []
    for name in COLUMNS_BY_WORTH:
        if any(row.get(name) not in (None, 0) for row in rows) and width >= FIGURE_WIDTH:
            shown.append(name)
            width -= FIGURE_WIDTH
    shown.sort(key=list(COLUMNS).index)
    for name in shown:
        table.add_column(COLUMNS[name], justify="right", no_wrap=True)
    for row in rows:
        values = [Text(str(row[path])) for path in plan.paths]
        if row["error"] is not None:
            table.add_row(*values, Text("error", style="red"))
        else:
            table.add_row(*values, *(cell(row, name) for name in shown))
    return table


def _short_names(paths: tuple[str, ...]) -> dict[str, str]:
    """The last step of each path, or the whole path where two end alike."""
    last = {path: path.replace("]", "").replace("[", ".").split(".")[-1] for path in paths}
    return {path: name if list(last.values()).count(name) == 1 else path for path, name in last.items()}
