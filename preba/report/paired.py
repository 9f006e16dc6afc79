"""How sure an error is when both runs had the same requests: what blocks of them, left out in turn, change of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from preba.records import Records
from preba.report.usage import first_of_batch

__all__ = ["error_half_widths_percent"]

BLOCKS = 20
REQUESTS_MIN = 400
T_19 = 2.093
"""Student's t for two-sided 95 % and one degree of freedom less than blocks."""

Kept = NDArray[np.bool_]


class _Run:
    """One run cut into blocks of requests that came one after another."""

    def __init__(self, records: Records, edges: NDArray[np.int64]) -> None:
        self.latency_ns = records.latency_ns
        self.block = np.clip(np.searchsorted(edges, records.request_id, side="right") - 1, 0, BLOCKS - 1)
        heads = first_of_batch(records)
        self.head_block = self.block[heads]
        self.batch_size = records.batch_size[heads].astype(np.float64)
        self.busy_ns = (records.execution_end_ns - records.execution_start_ns)[heads].astype(np.float64)
        last_ns = np.zeros(BLOCKS, dtype=np.int64)
        np.maximum.at(last_ns, self.block, records.completed_ns)
        last_ns = np.maximum.accumulate(last_ns)
        self.lasts_ns = np.diff(last_ns, prepend=int(records.scheduled_ns.min())).astype(np.float64)

    def without(self, figure: Callable[[_Run, Kept, Kept, float], float], block: int) -> float:
        """A figure of all blocks but one."""
        kept, heads = self.block != block, self.head_block != block
        return figure(self, kept, heads, float(self.lasts_ns.sum() - self.lasts_ns[block]))


def _percentile(level: float) -> Callable[[_Run, Kept, Kept, float], float]:
    return lambda run, kept, _heads, _ns: float(np.percentile(run.latency_ns[kept], level))


FIGURES: Mapping[str, Callable[[_Run, Kept, Kept, float], float]] = {
    "throughput": lambda _run, kept, _heads, ns: float(kept.sum()) / ns,
    "latency mean": lambda run, kept, _heads, _ns: float(run.latency_ns[kept].mean()),
    **{f"latency p{level}": _percentile(level) for level in (50, 90, 95, 99)},
    "mean batch": lambda run, _kept, heads, _ns: float(run.batch_size[heads].mean()),
    "slices busy": lambda run, _kept, heads, ns: float(run.busy_ns[heads].sum()) / ns,
}


def error_half_widths_percent(measured: Records, simulated: Records) -> dict[str, float]:
    """Half the 95 % intervals of figures' errors, in percent of the measured figures.

    Both runs had the same arrivals, so that what these happened to be is in both and not in the error.

    Parameters
    ----------
    measured, simulated : Records
        Served requests of the same trace.

    Returns
    -------
    dict of str to float
        By the jackknife over twenty blocks of requests, under the names of the rows of ``validate_runs``; nothing below
        400 requests, and no figure that was 0.

    Notes
    -----
    Blocks must be long against what makes neighbours alike. Source: Kuensch, "The jackknife and the bootstrap for
    general stationary observations", Annals of Statistics 17 (1989).
    """
    if min(len(measured), len(simulated)) < REQUESTS_MIN:
        return {}
    edges = np.quantile(measured.request_id, np.arange(BLOCKS) / BLOCKS).astype(np.int64)
    runs = [_Run(records, edges) for records in (measured, simulated)]
    if any(len(np.unique(run.head_block)) < BLOCKS for run in runs):
        return {}
    found = {}
    for metric, figure in FIGURES.items():
        here, there = (np.array([run.without(figure, block) for block in range(BLOCKS)]) for run in runs)
        if here.all():
            errors = 100.0 * (there - here) / here
            found[metric] = float(T_19 * np.sqrt((BLOCKS - 1) / BLOCKS * ((errors - errors.mean()) ** 2).sum()))
    return found
