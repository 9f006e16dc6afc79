"""MLPerf LoadGen's ``mlperf_log_summary.txt`` and ``mlperf_log_detail.txt``.

Source: mlcommons/inference, loadgen/results.cc and loadgen/logging.cc. Latencies are nanoseconds and count from the
scheduled time in the server scenario.
"""

from __future__ import annotations

import json
import re

from preba.errors import FormatError
from preba.foreign.measured import Measured
from preba.units import NS_PER_MS

__all__ = ["looks_like_detail", "looks_like_summary", "read_detail", "read_summary"]

LOG_PREFIX = ":::MLLOG "
PERCENTILES = {"50.00": "p50", "90.00": "p90", "95.00": "p95", "99.00": "p99", "99.90": "p999"}
VALID = "VALID"


def looks_like_summary(text: str) -> bool:
    """Whether a text is a summary."""
    return "MLPerf Results Summary" in text[:2000]


def looks_like_detail(text: str) -> bool:
    """Whether a text is a detail log."""
    return text.lstrip().startswith(LOG_PREFIX.strip())


def read_summary(text: str, *, origin: str) -> Measured:
    """Read the summary.

    Raises
    ------
    FormatError
        It has neither a rate nor a latency.
    """
    pairs: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?P<key>[^:]+?)\s*:\s*(?P<value>.+?)\s*$", line)
        if match:
            pairs.setdefault(match["key"], match["value"])
    latency = {
        ours: float(pairs[f"{level} percentile latency (ns)"]) / NS_PER_MS
        for level, ours in PERCENTILES.items()
        if f"{level} percentile latency (ns)" in pairs
    }
    if "Mean latency (ns)" in pairs:
        latency["mean"] = float(pairs["Mean latency (ns)"]) / NS_PER_MS
    rate = next(
        (
            pairs[key]
            for key in ("Completed samples per second", "Samples per second", "QPS w/o loadgen overhead")
            if key in pairs
        ),
        None,
    )
    if not latency and rate is None:
        raise FormatError(f"{origin}: a LoadGen summary without a rate and without latencies")
    verdict = pairs.get("Result is", VALID)
    notes = () if verdict == VALID else (f"LoadGen calls the run of {origin} {verdict}",)
    return Measured(
        source=f"LoadGen summary {origin} ({pairs.get('Scenario', 'unknown')} scenario)",
        throughput_rps=None if rate is None else float(rate),
        latency_ms=latency,
        notes=notes,
    )


def read_detail(text: str, *, origin: str) -> Measured:
    """Read the results among the lines of a detail log.

    Raises
    ------
    FormatError
        A line is broken, or there are no results.
    """
    values = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith(LOG_PREFIX):
            continue
        try:
            entry = json.loads(line[len(LOG_PREFIX) :])
            values[str(entry["key"])] = entry["value"]
        except (ValueError, KeyError, TypeError):
            raise FormatError(f"{origin}:{number}: not a line of LoadGen's log") from None
    latency = {
        ours: float(values[key]) / NS_PER_MS
        for level, ours in PERCENTILES.items()
        if isinstance(values.get(key := f"result_{level}_percentile_latency_ns"), int | float)
    }
    if isinstance(values.get("result_mean_latency_ns"), int | float):
        latency["mean"] = float(values["result_mean_latency_ns"]) / NS_PER_MS
    rate = values.get("result_completed_samples_per_sec", values.get("result_samples_per_second"))
    if not latency and rate is None:
        raise FormatError(f"{origin}: a LoadGen log without results: the run did not end")
    verdict = str(values.get("result_validity", VALID))
    return Measured(
        source=f"LoadGen detail log {origin}",
        throughput_rps=None if rate is None else float(rate),
        latency_ms=latency,
        notes=() if verdict == VALID else (f"LoadGen calls the run of {origin} {verdict}",),
    )
