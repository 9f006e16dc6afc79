"""Where each request's latency went: disjoint stages whose sum is the latency, to the nanosecond. No statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from preba.records import Records

__all__ = ["STAGES", "STAGE_LABELS", "stage_ns", "times_of_stage_ns"]

STAGES = (
    "generator_lag",
    "preprocess_wait",
    "preprocess_service",
    "hop",
    "batching",
    "slice_queue",
    "slice_preprocess",
    "execution",
    "response",
)
"""All stages, in the order in which a request passes them."""

STAGE_LABELS = {
    "generator_lag": "load generator's lag",
    "preprocess_wait": "waiting for preprocessing",
    "preprocess_service": "preprocessing",
    "hop": "hop to the server",
    "batching": "batching",
    "slice_queue": "waiting for a slice",
    "slice_preprocess": "preprocessing on the slice",
    "execution": "execution",
    "response": "response",
    "total": "total latency",
}
"""What to call each stage, and their sum, in tables and plots."""


def stage_ns(records: Records) -> dict[str, NDArray[np.int64]]:
    """Splits the latency of served requests into stages.

    Parameters
    ----------
    records : Records
        Served requests only.

    Returns
    -------
    dict of str to int64[n]
        Nanoseconds per request of each of ``STAGES``, in that order; their sum is ``records.latency_ns``.

    Raises
    ------
    ValueError
        A request was not served.

    Notes
    -----
    * ``generator_lag``: scheduled until issued; 0 in a simulation.
    * ``preprocess_wait``: waiting for preprocessing units, in front of the first station (with the way there) and
      between stations.
    * ``preprocess_service``: the rest from issue to the last preprocessing's end.
    * ``hop``: from there to the batcher: the link to the GPU (its queue included) and the front end's overhead.
    * ``batching``: in the batcher until the batch was complete. Of a request whose slice was lost, its first
      attempt too.
    * ``slice_queue``: the complete batch waiting for its slice.
    * ``slice_preprocess``: the part of the time on the slice that preprocessing takes (DALI sharing it).
    * ``execution``: the rest of the time on the slice.
    * ``response``: from the batch's end to the answer, waiting for earlier answers included.
    """
    return {stage: times_of_stage_ns(records, stage) for stage in STAGES}


def times_of_stage_ns(records: Records, stage: str) -> NDArray[np.int64]:
    """One stage of ``stage_ns``, int64[n], for those who need not hold all of them at once.

    Raises
    ------
    ValueError
        A request was not served.
    """
    if bool(np.any(records.outcome)):
        raise ValueError("stages exist for served requests only")
    return _TIMES_NS[stage](records)


_TIMES_NS: Mapping[str, Callable[[Records], NDArray[np.int64]]] = {
    "generator_lag": lambda r: r.issued_ns - r.scheduled_ns,
    "preprocess_wait": lambda r: r.preprocess_wait_ns,
    "preprocess_service": lambda r: r.preprocess_end_ns - r.issued_ns - r.preprocess_wait_ns,
    "hop": lambda r: r.enqueued_ns - r.preprocess_end_ns,
    "batching": lambda r: r.dispatched_ns - r.enqueued_ns,
    "slice_queue": lambda r: r.execution_start_ns - r.dispatched_ns,
    "slice_preprocess": lambda r: r.slice_preprocess_ns,
    "execution": lambda r: r.execution_end_ns - r.execution_start_ns - r.slice_preprocess_ns,
    "response": lambda r: r.completed_ns - r.execution_end_ns,
}
