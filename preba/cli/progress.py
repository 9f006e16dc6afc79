"""A progress bar on stderr for runs that take longer than a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_S = 1.0
"""A run shorter than this shows nothing."""


@contextmanager
def engine_progress(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback (finished, total) that draws a bar once a second has passed.

    Parameters
    ----------
    console : rich Console
        Where to draw; on something that is no terminal one plain line every ten seconds is written instead.
    label : str
    """
    began = time.monotonic()
    last_line = began - 9 * QUIET_S  # the first line comes after one second, then one every ten
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(label, total=None)
    started = False

    def report(finished: int, total: int) -> None:
        nonlocal started, last_line
        now = time.monotonic()
        if now - began < QUIET_S:
            return
        if console.is_terminal:
            if not started:
                bar.start()
                started = True
            bar.update(task, completed=finished, total=total)
        elif now - last_line >= 10 * QUIET_S:
            last_line = now
            rate = finished / (now - began)
            console.print(f"{label}: {finished:,} of {total:,} requests ({rate:,.0f}/s)", markup=False)

    try:
        yield report
    finally:
        if started:
            bar.stop()
