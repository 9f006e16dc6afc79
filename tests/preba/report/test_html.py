"""Promises of the pages and pictures: self-contained, escaped, complete, and small for long runs."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from preba.records import Records, RunResult, SliceFacts, column_names
from preba.report.comparison import ComparisonEntry
from preba.report.context import ReportContext
from preba.report.html import render_comparison_html, render_html
from preba.report.numbers import flagged
from preba.report.plots import bar_plot, run_plots
from preba.report.summary import summarise

Run = Callable[..., RunResult]
Context = Callable[..., ReportContext]

NASTY = r"<script>alert('$\frac$ & _y')</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class _Page(HTMLParser):
    """Checks that tags close in order, and collects tags, sources and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_needs_no_other_file(make_run: Run, make_context: Context) -> None:
    """Every picture is inside the page, nothing is loaded from anywhere, and no script runs."""
    result, context = make_run(), make_context()
    page = _Page(render_html(result, context, summarise(result, context)))
    assert "script" not in page.tags
    assert len(page.links) == 5
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)


def test_page_is_the_same_every_time(make_run: Run, make_context: Context) -> None:
    """The same records give byte for byte the same page, pictures included."""
    result, context = make_run(800), make_context()
    first, second = (render_html(result, context, summarise(result, context)) for _ in range(2))
    assert first == second


def test_page_escapes_whatever_comes_from_outside(make_run: Run, make_context: Context) -> None:
    """Names, texts and warnings with HTML, formulas or underscores in them appear as they are."""
    result = make_run(400, models=(NASTY, "_hidden"))
    result = replace(result, slices=(SliceFacts(NASTY, 0, "1g.5gb", 1, 0), *result.slices[1:]))
    context = make_context(scenario_name=NASTY, description=NASTY, scenario_text=f"name: {NASTY}", warnings=(NASTY,))
    text = render_html(result, context, summarise(result, context))
    assert "<script" not in text
    page = _Page(text)
    assert sum(NASTY in words for words in page.words) >= 5


def test_page_tells_what_is_modelled(make_run: Run, make_context: Context) -> None:
    """Each input is listed under its kind, with its source, and the modelled ones come first."""
    result, context = make_run(400), make_context()
    text = render_html(result, context, summarise(result, context))
    kinds = [text.find(f'class="kind {kind}"') for kind in ("modelled", "published", "measured")]
    assert -1 < kinds[0] < kinds[1] < kinds[2]
    assert "an assumption of ours" in text


def test_page_shows_the_summary_s_numbers(make_run: Run, make_context: Context) -> None:
    """Headline figures on the page are those of the summary, flagged where the run is too short."""
    result, context = make_run(), make_context()
    summary = summarise(result, context)
    words = " ".join(_Page(render_html(result, context, summary)).words)
    assert flagged(summary["throughput_rps"]) in words
    assert flagged(summary["latency_ms"]["p99"]) in words
    assert "too short" in words
    assert "Warm-up: the first" in words


def test_page_of_nothing_served_has_no_pictures(make_run: Run, make_context: Context) -> None:
    """A run without answers has a page with its warning and without pictures."""
    result, context = make_run(30, refuse_every=1), make_context(hardware=None, provenance=())
    text = render_html(result, context, summarise(result, context))
    assert "no request was served" in text
    assert "img" not in _Page(text).tags


def test_page_of_a_run_with_outages(make_run: Run, make_context: Context) -> None:
    """Slices out of service are listed with their times."""
    result, context = make_run(outages=((2, 10**9, 2 * 10**9),)), make_context()
    words = _Page(render_html(result, context, summarise(result, context))).words
    assert "Slices out of service" in words
    assert "2.000" in words


def test_pictures_are_well_formed_and_said_in_words(make_run: Run, make_context: Context) -> None:
    """Each picture is an XML document and has a caption for who cannot see it."""
    result = make_run()
    plots = run_plots(result, summarise(result, make_context()))
    assert len({plot.title for plot in plots}) == 5
    for plot in plots:
        assert ET.fromstring(plot.svg).tag.endswith("svg")  # noqa: S314 - our own drawing
        assert len(plot.caption) > 20
        assert base64.b64decode(plot.data_uri.split(",")[1]) == plot.svg


def test_pictures_of_a_run_of_one_request(make_run: Run, make_context: Context) -> None:
    """Even a single request can be drawn."""
    result = make_run(1)
    assert len(run_plots(result, summarise(result, make_context(warmup_requests=0)))) == 5


def test_pictures_of_a_million_requests_stay_small(make_run: Run, make_context: Context) -> None:
    """A million rows are drawn in pictures no larger than those of a short run could be."""
    short = make_run(20_000)
    copies, span = 50, short.end_ns + 1
    columns = {}
    for name in column_names():
        column = getattr(short.records, name)
        step = {"request_id": 20_000, "batch_id": 5000}.get(name, span if name.endswith("_ns") else 0)
        if name in ("preprocess_wait_ns", "slice_preprocess_ns", "audio_ns"):
            step = 0
        columns[name] = (column[None, :] + step * _column(copies, column.dtype)).ravel()
    long = replace(short, records=Records(**columns), end_ns=copies * span)
    assert len(long.records) == 1_000_000
    summary = summarise(long, make_context())
    plots = run_plots(long, summary)
    assert max(len(plot.svg) for plot in plots) < 300_000


def _column(copies: int, dtype: object) -> object:
    import numpy as np

    return np.arange(copies, dtype=dtype)[:, None]  # type: ignore[call-overload]


def test_comparison_page_links_and_escapes(make_run: Run, make_context: Context) -> None:
    """Each group has its table and bars, each run a link to its report, and labels are escaped."""
    summary = summarise(make_run(400), make_context(warnings=("beware of this",)))
    entries = [
        ComparisonEntry(NASTY, summary, group="image", link="a/report.html", saturated_rps=10.0),
        ComparisonEntry("two", summary, group="image", link="b/report.html", saturated_rps=20.0),
        ComparisonEntry("three", summary, group="audio"),
    ]
    text = render_comparison_html(entries, title=NASTY)
    assert "<script" not in text
    page = _Page(text)
    assert page.tags.count("table") == 2
    assert page.tags.count("img") == 8
    assert {"a/report.html", "b/report.html"} <= set(page.links)
    assert "2.00" in page.words
    assert f"{NASTY}: beware of this" in page.words


@pytest.mark.parametrize("values", [{}, {"a": None}, {"a": 0.0}, {"a": 1.0, "b": 1e6, "c": None}])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_bars_of_any_values(values: dict[str, float | None], logarithmic: bool) -> None:
    """Missing, zero and very different values can all be drawn."""
    plot = bar_plot("t", "c", values, unit="ms", logarithmic=logarithmic)
    assert ET.fromstring(plot.svg) is not None  # noqa: S314 - our own drawing
