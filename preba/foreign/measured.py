"""What a foreign file says of a measured run, in the terms of preba's own summaries; several files make one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.errors import FormatError
from preba.report.measures import LATENCY_LABELS, latency_estimates
from preba.report.stages import STAGES

__all__ = ["Measured", "merged", "summary_of"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One file's facts; ``None`` or empty: it does not say.

    Attributes
    ----------
    source : str
        Kind and name of the file.
    throughput_rps : float or None
    latency_ms : dict of str to float
        ``mean``, ``p50``, ``p90``, ``p95``, ``p99``, ``p999``.
    latencies_ns : int64[n] or None
        Of every request in order of arrival, where the file has them; intervals come from them.
    stages_ms : dict of str to float
        Mean per request of stages in preba's terms.
    batch_histogram : dict of int to int
        Executions by batch size.
    batch_mean : float or None
    requests : int or None
    notes : tuple of str
    from_server : bool
        A server's figures: what clients saw goes before them.
    """

    source: str
    throughput_rps: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    latencies_ns: NDArray[np.int64] | None = None
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    batch_histogram: Mapping[int, int] = field(default_factory=dict)
    batch_mean: float | None = None
    requests: int | None = None
    notes: tuple[str, ...] = ()
    from_server: bool = False


def merged(files: Sequence[Measured]) -> Measured:
    """Put what several files say of one run together; what a client saw goes before what a server says.

    Raises
    ------
    FormatError
        There is nothing.
    """
    if not files:
        raise FormatError("no measured files")
    first, *others = sorted(files, key=lambda one: one.from_server)
    found: Json = {name: getattr(first, name) for name in Measured.__dataclass_fields__}
    for other in others:
        timed = bool(found["latency_ms"]) or found["latencies_ns"] is not None
        batched = bool(found["batch_histogram"]) or found["batch_mean"] is not None
        for name in Measured.__dataclass_fields__:
            value = getattr(other, name)
            if name == "source":
                found[name] += f", {value}"
            elif name == "notes":
                found[name] = (*found[name], *value)
            elif name in ("latency_ms", "latencies_ns") and timed and other.from_server != first.from_server:
                continue  # the server's own latency is not what the clients saw
            elif name in ("batch_histogram", "batch_mean") and batched:
                continue  # both from one file
            elif name == "stages_ms":
                found[name] = found[name] or value  # stages of one file add up; those of two may not
            elif isinstance(value, Mapping):
                found[name] = {**value, **found[name]}
            elif found[name] is None:
                found[name] = value
    return Measured(**found)


def summary_of(measured: Measured) -> Json:
    """The part of a run's summary that `preba.report.validation.validate_runs` compares."""
    latency: Json = {name: _figure(measured.latency_ms.get(name)) for name in LATENCY_LABELS}
    if measured.latencies_ns is not None and len(measured.latencies_ns):
        latency = latency_estimates(measured.latencies_ns)
    stages: Json = {name: {"mean": measured.stages_ms.get(name)} for name in STAGES}
    total = latency["mean"]["value"]
    known = measured.stages_ms and total is not None
    stages = {name: {"mean": entry["mean"] or 0.0} for name, entry in stages.items()} if known else stages
    stages["total"] = {"mean": total if known else None}
    if known:
        # What no file names: the client's side and the network.
        stages["response"]["mean"] += max(total - sum(stages[name]["mean"] for name in STAGES), 0.0)
    histogram = {str(size): count for size, count in sorted(measured.batch_histogram.items())}
    mean = measured.batch_mean
    if mean is None and histogram:
        mean = sum(int(size) * count for size, count in histogram.items()) / sum(histogram.values())
    return {
        "throughput_rps": _figure(measured.throughput_rps),
        "latency_ms": latency,
        "stages_ms": stages,
        "batch_size": {"mean": mean, "histogram": histogram},
        "utilization": {"slices_mean": None},
        "warnings": list(measured.notes),
    }


def _figure(value: float | None) -> Json:
    return {"value": value, "ci95": None}
