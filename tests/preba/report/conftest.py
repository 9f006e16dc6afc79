"""Small runs made by hand: a first-come first-served pool of cores, then fixed batches on the slice free first."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from preba.hardware import load_hardware
from preba.records import Records, RunResult, SliceFacts, StationFacts, StationSpans, empty_columns
from preba.report.context import ReportContext
from preba.strict import Provenance

MS = 1_000_000


def build_run(
    count: int = 4000,
    *,
    models: tuple[str, ...] = ("resnet50",),
    cores: int = 4,
    slices: int = 3,
    batch: int = 4,
    gap_ms: float = 1.0,
    refuse_every: int = 0,
    slice_preprocess_ms: float = 0.0,
    outages: tuple[tuple[int, int, int], ...] = (),
    seed: int = 7,
) -> RunResult:
    """A run whose every record is consistent: stages follow one another and units never work twice at once."""
    rng = np.random.default_rng(seed)
    columns = empty_columns(count)
    arrival = np.cumsum(rng.exponential(gap_ms * MS, count)).astype(np.int64)
    work = rng.integers(1 * MS, 3 * MS, count)
    columns["model_index"] = rng.integers(0, len(models), count).astype(np.int32)
    for name in ("scheduled_ns", "issued_ns", "preprocess_start_ns", "preprocess_end_ns"):
        columns[name] = arrival.copy()
    free = [(0, unit) for unit in range(cores)]
    spans: list[tuple[int, ...]] = []
    for i in range(count):
        ready, unit = heapq.heappop(free)
        start = max(ready, int(arrival[i]))
        end = start + int(work[i])
        heapq.heappush(free, (end, unit))
        columns["preprocess_start_ns"][i], columns["preprocess_end_ns"][i] = start, end
        columns["preprocess_wait_ns"][i] = start - arrival[i]
        spans.append((0, unit, i, int(arrival[i]), start, end, end))
    columns["enqueued_ns"] = columns["preprocess_end_ns"] + 10_000
    slice_free = [0] * slices
    batch_id = 0
    kept = [i for i in range(count) if not (refuse_every and i % refuse_every == refuse_every - 1)]
    refused = np.setdiff1d(np.arange(count), kept)
    columns["outcome"][refused] = 1
    columns["completed_ns"][refused] = columns["enqueued_ns"][refused]
    for model in range(len(models)):
        mine = [i for i in kept if columns["model_index"][i] == model]
        mine.sort(key=lambda i: (columns["enqueued_ns"][i], i))
        for first in range(0, len(mine), batch):
            rows = mine[first : first + batch]
            formed = max(int(columns["enqueued_ns"][i]) for i in rows)
            where = min(range(slices), key=lambda s: (max(slice_free[s], formed), s))
            start = max(formed, slice_free[where])
            own = round(slice_preprocess_ms * MS)
            end = start + own + 2 * MS + 500_000 * len(rows)
            slice_free[where] = end
            for i in rows:
                columns["dispatched_ns"][i], columns["execution_start_ns"][i] = formed, start
                columns["execution_end_ns"][i] = end
                columns["slice_preprocess_ns"][i] = own
                columns["completed_ns"][i] = end + 7
                columns["server_index"][i], columns["slice_index"][i] = 0, where
                columns["batch_id"][i], columns["batch_size"][i] = batch_id, len(rows)
                columns["batch_units"][i], columns["attempts"][i], columns["outcome"][i] = len(rows), 1, 0
            batch_id += 1
    table = np.array(spans, dtype=np.int64).reshape(-1, 7)
    return RunResult(
        engine="reference",
        records=Records(**columns),
        spans=StationSpans(
            table[:, 0].astype(np.int32), table[:, 1].astype(np.int32), *(table[:, k] for k in range(2, 7))
        ),
        stations=(StationFacts("cpu", "cpu", cores, 0.9),),
        slices=tuple(
            SliceFacts(f"gpu0/1g.5gb@{k}", 0, "1g.5gb", 1, 0 if len(models) == 1 else None) for k in range(slices)
        ),
        models=models,
        end_ns=int(columns["completed_ns"].max()) if count else 0,
        outages=outages,
    )


def build_context(**changes: Any) -> ReportContext:
    """A context with hardware and all three kinds of provenance."""
    given: dict[str, Any] = {
        "scenario_name": "by-hand",
        "description": "made for tests",
        "seed": 7,
        "hardware": load_hardware("preba-testbed"),
        "provenance": (
            ("profile a", Provenance(kind="measured", source="our own bench, 2024")),
            ("profile b", Provenance(kind="modelled", source="an assumption of ours")),
        ),
    }
    return ReportContext(**(given | changes))


@pytest.fixture
def make_run() -> Callable[..., RunResult]:
    return build_run


@pytest.fixture
def make_context() -> Callable[..., ReportContext]:
    return build_context
