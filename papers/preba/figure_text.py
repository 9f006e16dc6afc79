"""Writing one figure (value, kind, source, notes) into the text of a config file, leaving the rest as it is."""

from __future__ import annotations

import re
import textwrap

WIDTH = 118


def figure_block(name: str, value: float, *, source: str, notes: str) -> str:
    """Write one modelled figure as YAML, indented below its section."""
    number = f"{value:g}"
    folded = textwrap.fill(notes, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    return f'  {name}:\n    value: {number}\n    kind: modelled\n    source: "{source}"\n    notes: >-\n{folded}\n'


def set_figure(text: str, path: str, value: float, *, source: str, notes: str) -> str:
    """Put a figure in the place of the one at ``section.name``.

    Raises
    ------
    ValueError
        The file has no such figure.
    """
    section, name = path.split(".")
    block = re.compile(rf"(?ms)^(?P<head>{section}:\n(?:[ #].*?\n)*?)  {name}:\n(?:    .*?\n)+?(?=\S|  \S|\Z)")
    found = block.search(text)
    if found is None:
        raise ValueError(f"no figure {path} in the file")
    written = found["head"] + figure_block(name, value, source=source, notes=notes)
    return text[: found.start()] + written + text[found.end() :]
