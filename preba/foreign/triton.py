"""Triton's own files: model statistics (``/v2/models/X/stats``) and request traces.

Source: triton-inference-server/server, docs/protocol/extension_statistics.md and docs/user_guide/trace.md. All times
are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from preba.errors import FormatError
from preba.foreign.measured import Measured
from preba.units import NS_PER_MS, NS_PER_S

__all__ = ["looks_like_statistics", "looks_like_trace", "read_statistics", "read_trace"]

SPANS = {"batching": ("QUEUE_START", "COMPUTE_START"), "execution": ("COMPUTE_START", "COMPUTE_END")}


def looks_like_statistics(data: object) -> bool:
    """Whether JSON data are model statistics."""
    return isinstance(data, Mapping) and isinstance(data.get("model_stats"), list)


def looks_like_trace(data: object) -> bool:
    """Whether JSON data are a trace."""
    return isinstance(data, list) and any(isinstance(one, Mapping) and "timestamps" in one for one in data)


def read_statistics(data: Mapping[str, Any], *, origin: str, model: str | None = None) -> Measured:
    """Read one model's statistics: batches and mean stages since its server started.

    Raises
    ------
    FormatError
        The model is not in it, or it has served nothing.
    """
    entries = data["model_stats"]
    chosen = [one for one in entries if model is None or one.get("name") == model]
    if len(chosen) != 1:
        names = ", ".join(sorted({str(one.get("name")) for one in entries})) or "none"
        raise FormatError(f"{origin}: model_stats has {names}; one of them is needed, the scenario's is {model}")
    entry = chosen[0]
    stats = entry.get("inference_stats", {})

    def mean_ms(name: str) -> float | None:
        part = stats.get(name, {})
        count = int(part.get("count", 0))
        return int(part.get("ns", 0)) / count / NS_PER_MS if count else None

    if mean_ms("success") is None:
        raise FormatError(f"{origin}: model {entry.get('name')!r} has answered no request")
    stages = {
        ours: value
        for ours, names in (
            ("batching", ("queue",)),
            ("execution", ("compute_input", "compute_infer", "compute_output")),
        )
        if (value := sum(mean_ms(name) or 0.0 for name in names)) > 0
    }
    histogram = {
        int(row["batch_size"]): int(row["compute_infer"]["count"])
        for row in entry.get("batch_stats", [])
        if int(row.get("compute_infer", {}).get("count", 0))
    }
    executions = int(entry.get("execution_count", 0))
    return Measured(
        from_server=True,
        source=f"Triton statistics {origin}",
        latency_ms={"mean": mean_ms("success") or 0.0},
        stages_ms=stages,
        batch_histogram=histogram,
        batch_mean=int(entry.get("inference_count", 0)) / executions if executions else None,
        requests=int(stats["success"]["count"]),
        notes=(f"{origin} counts from the start of its server, warm-up included, and sees nothing of the client",),
    )


def read_trace(data: Sequence[Any], *, origin: str, model: str | None = None) -> Measured:
    """Read the requests of a trace: latency, time in the queue and in execution.

    Raises
    ------
    FormatError
        No request in it has both ends.
    """
    merged: dict[Any, dict[str, int]] = {}
    names: dict[Any, str] = {}
    for entry in data:
        if not isinstance(entry, Mapping) or "id" not in entry:
            continue
        times = merged.setdefault(entry["id"], {})
        if "model_name" in entry:
            names[entry["id"]] = str(entry["model_name"])
        for stamp in entry.get("timestamps", []):
            times.setdefault(str(stamp["name"]), int(stamp["ns"]))
    rows = [
        times
        for number, times in merged.items()
        if {"REQUEST_START", "REQUEST_END"} <= times.keys() and (model is None or names.get(number, model) == model)
    ]
    if not rows:
        raise FormatError(f"{origin}: no request of model {model} has REQUEST_START and REQUEST_END")
    rows.sort(key=lambda times: times["REQUEST_START"])
    start = np.array([times["REQUEST_START"] for times in rows], dtype=np.int64)
    end = np.array([times["REQUEST_END"] for times in rows], dtype=np.int64)
    stages = {}
    for ours, (first, last) in SPANS.items():
        spans = [times[last] - times[first] for times in rows if first in times and last in times]
        if spans:
            stages[ours] = float(np.mean(spans)) / NS_PER_MS
    return Measured(
        from_server=True,
        source=f"Triton trace {origin}",
        throughput_rps=len(rows) * NS_PER_S / max(int(end.max() - start.min()), 1),
        latencies_ns=end - start,
        stages_ms=stages,
        requests=len(rows),
        notes=(f"{origin} sees nothing of the client and the network; its rate holds if every request was traced",),
    )
