"""Which part of a run its steady-state figures come from: the warm-up cut and the window behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preba.records import RunResult, as_slice
from preba.report.context import ReportContext
from preba.statistics import SECTIONS, warmup_cut

__all__ = ["SteadyWindow", "steady_window"]


@dataclass(frozen=True)
class SteadyWindow:
    """The steady-state part of a run.

    Attributes
    ----------
    kept : bool[n]
        The requests whose latencies count; the others arrived during the warm-up.
    start_ns, end_ns : int
        Rates, utilisations and queue lengths are means over this window: from the end of the warm-up until
        the last arrival, because a server that only drains its queues is not in a steady state.
    requests_cut : int
    steady : bool
        False when the latency drifts through what is kept.
    text : str
        One sentence on the cut.
    """

    kept: NDArray[np.bool_]
    start_ns: int
    end_ns: int
    requests_cut: int
    steady: bool
    text: str


def steady_window(result: RunResult, context: ReportContext) -> SteadyWindow:
    """Finds the steady-state part of a run.

    Parameters
    ----------
    result : RunResult
    context : ReportContext
        May hold the scenario's own warm-up.

    Returns
    -------
    SteadyWindow
    """
    records = result.records
    served = records.arrival_order(records.served)
    rows = as_slice(served)
    arrivals_ns, answered_ns = records.scheduled_ns[rows], records.completed_ns[rows]
    requested_ns = _requested_ns(context, records.scheduled_ns)
    cut = warmup_cut(arrivals_ns, answered_ns - arrivals_ns, requested_ns=requested_ns)
    start_ns = requested_ns if requested_ns is not None else cut.time_ns
    kept = records.scheduled_ns >= start_ns
    kept[served[: cut.index]] = False
    last_ns = int(records.scheduled_ns.max()) if len(records) else 0
    start_ns = min(start_ns, last_ns) if len(records) else 0
    inside = (answered_ns >= start_ns) & (answered_ns < last_ns)
    # A run of a few requests may end before its first answer: then its whole length must do.
    end_ns = last_ns if bool(inside.any()) else result.end_ns + 1
    end_ns = max(end_ns, start_ns + SECTIONS)
    text = cut.text if len(served) == len(records) else f"{cut.text} (counting served requests)"
    return SteadyWindow(kept, start_ns, end_ns, int(len(records) - kept.sum()), cut.steady, text)


def _requested_ns(context: ReportContext, arrivals_ns: NDArray[np.int64]) -> int | None:
    """The scenario's own warm-up as a time; so many requests end at the arrival of the next one."""
    if context.warmup_requests is None or len(arrivals_ns) == 0:
        return context.warmup_ns
    arrivals_ns = np.sort(arrivals_ns)
    if context.warmup_requests < len(arrivals_ns):
        return int(arrivals_ns[context.warmup_requests])
    return int(arrivals_ns[-1]) + 1
