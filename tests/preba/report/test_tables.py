"""Promises of the terminal tables: they fit, they keep their numbers, and they say what to beware of."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console, RenderableType

from preba.records import RunResult
from preba.report.comparison import ComparisonEntry, comparison_rows
from preba.report.context import ReportContext
from preba.report.numbers import flagged, interval, matched, percent, scaled, significant
from preba.report.summary import summarise
from preba.report.table import comparison_table, print_summary, summary_table

Run = Callable[..., RunResult]
Context = Callable[..., ReportContext]


def _text(drawn: RenderableType, width: int = 80) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, highlight=False).print(drawn)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (9.996, "10.0"),
        (99.96, "100"),
        (12.345, "12.3"),
        (123456.7, "123,457"),
        (0.0, "0"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_significant_keeps_three_digits(value: float | None, text: str) -> None:
    """Numbers keep three digits, whole numbers all of them, and no number is a dash."""
    assert significant(value) == text


def test_other_formats_say_what_they_promise() -> None:
    """Suffixes, percentages and digits matched to the uncertainty come out as documented."""
    assert [scaled(v) for v in (12_345_678, 999_600, 1e9, 12.3, None)] == [
        "12.3M",
        "1.00M",
        "1.00G",
        "12.3",
        "–",
    ]
    assert [percent(v) for v in (0.4567, 0.034, 1.0, 0.0, 0.0996, None)] == [
        "46 %", "3.4 %", "100 %", "0 %", "10 %", "–",
    ]  # fmt: skip
    assert [matched(12.3456, h) for h in (0.0412, 0.41, 4.1, 41.0, None)] == [
        "12.346", "12.35", "12.3", "12", "12.3",
    ]  # fmt: skip
    assert interval({"ci95": None}) == "–"
    assert interval({"ci95": [1.0, 2.0]}) == "1.00 – 2.00"
    assert flagged({"value": 1.0, "enough": False}) == "1.00*"


@pytest.mark.parametrize("width", [80, 100])
def test_summary_table_fits_and_keeps_its_numbers(make_run: Run, make_context: Context, width: int) -> None:
    """At 80 columns no line is wider, nothing is cut short, and the headline numbers are there in full."""
    summary = summarise(
        make_run(models=("resnet50", "bert-with-a-very-long-name"), refuse_every=50),
        make_context(slo_p99_ms=(20.0, 30.0), accelerator_count=1),
    )
    text = _text(summary_table(summary), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in (summary["throughput_rps"], *summary["latency_ms"].values()):
        half = 0.5 * (figure["ci95"][1] - figure["ci95"][0])
        assert matched(figure["value"], half) in text
        assert interval(figure) in text
    joined = " ".join(text.split())
    assert "needs ~" in joined
    assert "too short for this figure's interval" in joined
    assert "warm-up: the first" in joined
    assert "1 measured" in joined


def test_summary_table_leads_with_the_warnings(make_run: Run, make_context: Context) -> None:
    """What to beware of comes before any figure."""
    summary = summarise(make_run(200), make_context(warnings=("overloaded: [bottleneck] is x",)))
    text = _text(summary_table(summary))
    assert text.startswith("warning: overloaded: [bottleneck] is x")


def test_summary_table_asks_no_longer_run_of_an_overload(make_run: Run, make_context: Context) -> None:
    """Where no steady state exists, figures say so instead of asking for more requests."""
    text = _text(summary_table(summarise(make_run(4000, slices=1, gap_ms=0.5), make_context())))
    assert "no steady state" in text
    assert "needs ~" not in text


def test_names_are_never_markup(make_run: Run, make_context: Context) -> None:
    """Square brackets in names and descriptions are printed as they are."""
    context = make_context(scenario_name="a[red]b[/red]", description="[bold]c")
    result = make_run(models=("m[dim]x", "other"))
    text = _text(summary_table(summarise(result, context)))
    assert "a[red]b[/red]: [bold]c" in text
    assert "m[dim]x" in text


def test_summary_table_of_nothing_served(make_run: Run, make_context: Context) -> None:
    """A run without answers still prints, with dashes instead of numbers."""
    buffer = io.StringIO()
    print_summary(summarise(make_run(30, refuse_every=1), make_context()), Console(file=buffer, width=80))
    assert "no request was served" in " ".join(buffer.getvalue().split())
    assert "–" in buffer.getvalue()


def test_batch_and_stage_figures_of_a_small_run(make_run: Run, make_context: Context) -> None:
    """The tables of a fixed run look exactly like this."""
    text = _text(summary_table(summarise(make_run(4000), make_context())))
    assert GOLDEN in text


GOLDEN = """\
 where the time goes (ms)         mean         p99  slowest 1 %
 ──────────────────────────────────────────────────────────────
 waiting for preprocessing       0.117        1.57        0.148
 preprocessing                    2.00        2.98         2.25
 hop to the server              0.0100      0.0100       0.0100
 batching                         1.52        7.14         8.64
 execution                        4.00        4.00         4.00
 response                   0.00000700  0.00000700   0.00000700

 total latency                    7.65        13.4         15.0


 busy, batches and queues
 ───────────────────────────────────────────────────────────────
 preprocessing: cpu                            45 % (50 % taken)
 slice gpu0/1g.5gb@0                                        62 %
 slice gpu0/1g.5gb@1                                        34 %
 slice gpu0/1g.5gb@2                                       3.9 %
 batch size, per batch                     4.00 over 800 batches
 batch size, as a request sees it                           4.00
 requests waiting for preprocessing, mean                  0.117
 requests waiting in the batcher, mean                      1.52
 requests waiting for a slice, mean                            0"""


def _entry(label: str, rate: float, **more: Any) -> ComparisonEntry:
    figure = {"value": 12.5, "ci95": [12.0, 13.0], "enough": True}
    summary = {
        "scenario": label,
        "throughput_rps": {"value": rate, "ci95": None, "enough": True},
        "latency_ms": {"p50": figure, "p95": figure, "p99": {**figure, "value": 1234.5, "enough": False}},
        "utilization": {"preprocessing_taken": {"cpu": 0.91, "hop": 0.02}, "slices_mean": 0.4},
        "power_w": {"total": 345.6},
        "energy_per_request_j": 0.0321,
        "cost_efficiency": {"requests_per_usd": 12_345_678.0},
        "warnings": [],
    }
    return ComparisonEntry(label, summary, **more)


def test_comparison_table_is_one_table_within_80_columns() -> None:
    """Several runs become one table with the ratio to the first and a note on flagged percentiles."""
    text = _text(comparison_table([_entry("CPU", 1984.0), _entry("DPU + PREBA", 8608.0)], title="image"))
    assert text == COMPARISON


COMPARISON = """\
image

              rate  vs.  p50  p95    p99 prep slice power energy  cost
             req/s base   ms   ms     ms busy  busy     W  J/req req/$
 ─────────────────────────────────────────────────────────────────────
 CPU         1,984 1.00 12.5 12.5 1,234*  91%   40%   346 0.0321 12.3M
 DPU + PREBA 8,608 4.34 12.5 12.5 1,234*  91%   40%   346 0.0321 12.3M

rate: requests/s served; vs. base: times that of 'CPU'; prep: the busiest
station
* the run is too short for this figure's interval to be trusted"""


def test_comparison_takes_plain_summaries() -> None:
    """A summary stands for a run called after its scenario."""
    text = _text(comparison_table([_entry("alone", 10.0).summary]))
    assert "alone" in text
    assert "1.00" in text


def test_comparison_ratio_refers_to_the_baseline() -> None:
    """Ratios divide saturated rates where all runs have one, else throughputs; an unknown baseline is an error."""
    runs = [_entry("a", 80.0, saturated_rps=100.0), _entry("b", 240.0, saturated_rps=250.0)]
    assert [row.ratio for row in comparison_rows(runs)] == [1.0, 2.5]
    assert [row.ratio for row in comparison_rows(runs, baseline="b")] == [0.4, 1.0]
    mixed = [runs[0], _entry("b", 240.0)]
    assert [row.ratio for row in comparison_rows(mixed)] == [1.0, 3.0]
    with pytest.raises(ValueError, match="no entry is called 'c'"):
        comparison_rows(runs, baseline="c")


def test_comparison_shows_the_runs_warnings() -> None:
    """A run's warnings follow the comparison, under its label."""
    entry = _entry("a", 80.0)
    entry.summary["warnings"].append("overloaded")
    assert "a: overloaded" in _text(comparison_table([entry]))


def test_comparison_of_nothing_says_so() -> None:
    """Without runs there is a sentence, not a crash."""
    assert "nothing to compare" in _text(comparison_table([]))
