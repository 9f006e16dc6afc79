"""The frame of every page a report writes: style sheet, escaping, tables. No content of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["escape", "html_table", "list_items", "page", "section"]

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --quiet: #5a5a5a; --paper: #ffffff; --line: #d8dce1; --card: #f5f7f9;
  --warn: #8a1c00; --warn-paper: #fff1ec; --accent: #005a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --quiet: #a8adb3; --paper: #16191d; --line: #363c43;
  --card: #1f2429; --warn: #ffb59e; --warn-paper: #3b1d14; --accent: #7cc0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p { margin: .4rem 0; } a { color: var(--accent); }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .75rem; margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.card .name { color: var(--quiet); font-size: .85rem; } .card .value { font-size: 1.5rem; font-weight: 600; }
.card .value small { font-size: .85rem; font-weight: 400; white-space: nowrap; }
.card .note { color: var(--quiet); font-size: .82rem; }
.warnings { background: var(--warn-paper); color: var(--warn); border: 1px solid var(--warn); border-radius: 8px;
  padding: .7rem 1rem; margin: 1rem 0; } .warnings ul { margin: .2rem 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .28rem .8rem .28rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; } td.text, th.text { text-align: left; }
td.text { overflow-wrap: anywhere; min-width: 9rem; } td.number { white-space: nowrap; }
tr.total td { font-weight: 600; border-top: 2px solid var(--line); }
figure { margin: .6rem 0 1.6rem; } figure img { width: 100%; height: auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: 8px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 0 1.2rem; }
.kind { display: inline-block; border-radius: 4px; padding: 0 .45rem; font-size: .8rem; font-weight: 600; }
.measured { background: #d3efe3; color: #00543a; } .published { background: #d6e8f7; color: #003e6b; }
.modelled { background: #fdebc8; color: #6a4300; }
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem; margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; font-size: .82rem; line-height: 1.4; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } figure, .card, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } details { border: 0; padding: 0; } a { color: inherit; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document that needs no other file.

    Parameters
    ----------
    title : str
        As text; escaped here.
    body : iterable of str
        HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it; nothing at all when all parts are empty."""
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def html_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text_columns: Sequence[int] = (0,),
    total_row: bool = False,
) -> str:
    """A table of plain texts, all escaped.

    Parameters
    ----------
    headers : sequence of str
    rows : iterable of sequences of str
        Each as long as ``headers``.
    text_columns : sequence of int
        Columns aligned to the left; the others hold numbers.
    total_row : bool
        Whether the last row is a sum.
    """

    def cell(tag: str, column: int, text: str) -> str:
        kind = "text" if column in text_columns else "number"
        return f'<{tag} class="{kind}">{escape(text)}</{tag}>'

    listed = list(rows)
    head = "".join(cell("th", column, header) for column, header in enumerate(headers))
    lines = [f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>']
    for place, row in enumerate(listed):
        mark = ' class="total"' if total_row and place == len(listed) - 1 else ""
        lines.append(f"<tr{mark}>" + "".join(cell("td", column, text) for column, text in enumerate(row)) + "</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def list_items(texts: Iterable[str]) -> str:
    """An unordered list of plain texts, all escaped."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
