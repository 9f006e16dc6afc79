"""Puts the demo's own output and picture into README.md: ``python docs/make_readme.py [--check]``."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from preba.cli.demo import run_demo
from preba.report.plots import bar_plot

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "demo.svg"
BEGIN, END = "<!-- demo output: written by docs/make_readme.py -->\n", "<!-- end of demo output -->\n"
REQUESTS = 20_000


def main() -> int:
    """Rewrites the two files, or with ``--check`` says whether they are up to date (exit code 1 if not)."""
    screen = Console(file=io.StringIO(), width=80, highlight=False, color_system=None)
    with tempfile.TemporaryDirectory() as folder:
        entries = run_demo(Path(folder), requests=REQUESTS, screen=screen, console=Console(stderr=True))
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    readme = before + BEGIN + "```\n" + "\n".join(lines).strip("\n") + "\n```\n" + END + after
    base = {entry.group: entry.saturated_rps for entry in reversed(entries)}
    ratios = {f"{e.group}: {e.label}": (e.saturated_rps or 0.0) / (base[e.group] or 1.0) for e in entries}
    picture = bar_plot("Throughput at saturation", "Against CPU preprocessing.", ratios, unit="x CPU 1g").svg
    if "--check" in sys.argv[1:]:
        return int(readme != text or picture != PICTURE.read_bytes())
    README.write_text(readme, encoding="utf-8")
    PICTURE.write_bytes(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
