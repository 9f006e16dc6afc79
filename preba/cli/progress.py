"""A progress bar on stderr for runs that take longer than a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

QUIET_S = 1.0
"""A run shorter than this shows nothing."""


def stderr_console() -> Console:
    """The console for progress and messages."""
    # Rich is imported by whoever has something to show: most runs end before they do.
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def engine_progress(console: Console | None, label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback (finished, total) that draws a bar once a second has passed.

    Parameters
    ----------
    console : rich Console or None
        Where to draw, None for stderr; on something that is no terminal one plain line every ten seconds is written
        instead.
    label : str
    """
    began = time.monotonic()
    last_line = began - 9 * QUIET_S  # the first line comes after one second, then one every ten
    bar: Progress | None = None

    def report(finished: int, total: int) -> None:
        nonlocal console, bar, last_line
        now = time.monotonic()
        if now - began < QUIET_S:
            return
        if console is None:
            console = stderr_console()
        if console.is_terminal:
            if bar is None:
                bar = _bar(console)
                bar.add_task(label, total=None)
                bar.start()
            bar.update(bar.task_ids[0], completed=finished, total=total)
        elif now - last_line >= 10 * QUIET_S:
            last_line = now
            rate = finished / (now - began)
            console.print(f"{label}: {finished:,} of {total:,} requests ({rate:,.0f}/s)", markup=False)

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
