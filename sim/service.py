"""How long a batch takes and when its slice can take the next one: the physics both engines share.

Numba subset: integers and floats in, integers out. No policy.
"""

from __future__ import annotations

BACKEND_BLOCKING = 0
BACKEND_TRT = 1
BACKEND_TRT_GRAPH = 2
BACKEND_EAGER = 3

BACKEND_CODES = {
    "blocking": BACKEND_BLOCKING,
    "trt": BACKEND_TRT,
    "trt-graph": BACKEND_TRT_GRAPH,
    "eager": BACKEND_EAGER,
}


def execution_ns(table_ns: int, factor: float, slowdown_ppm: int, busy_neighbours: int, neighbours: int) -> int:
    """Execution time of one batch on one slice, in ns.

    Parameters
    ----------
    table_ns : int
        The profile's time for (slice, length, batch).
    factor : float
        The jitter of the batch's first request, mean 1.
    slowdown_ppm : int
        By how much the execution is slower, in parts per million, when all other slices of the GPU are busy;
        proportional in between (see ``preba.profile_parts.Interference``).
    busy_neighbours, neighbours : int
        Other slices of the same GPU: busy at the start of this batch, and in total.

    Returns
    -------
    int
    """
    slowed_ns = table_ns
    if neighbours > 0:
        slowed_ns += table_ns * slowdown_ppm * busy_neighbours // (neighbours * 1_000_000)
    return int(slowed_ns * factor + 0.5)


def spread_ns(nominal_ns: int, factor: float) -> int:
    """An overhead as it is for one request or batch: ``factor`` times the nominal one."""
    return int(nominal_ns * factor + 0.5)


def slice_preprocess_ns(launch_ns: int, item_sum_ns: int, slice_factor: float) -> int:
    """Preprocessing a batch on the model's own slice: one launch plus the items, scaled to the slice."""
    return launch_ns + int(item_sum_ns * slice_factor + 0.5)


def ready_ns(backend: int, start_ns: int, end_ns: int, consumed_ns: int) -> int:
    """When the thread that started a batch can take the next one.

    Parameters
    ----------
    backend : int
        ``BACKEND_*``. Blocking backends and TensorRT with CUDA graphs hold the thread until the compute ends;
        TensorRT without graphs until the input has been consumed (input-consumed event), which may come early.
    start_ns, end_ns : int
        Execution of the batch on the slice.
    consumed_ns : int
        From the start until the input is consumed.

    Returns
    -------
    int
    """
    if backend in (BACKEND_TRT, BACKEND_EAGER):
        if start_ns + consumed_ns < end_ns:
            return start_ns + consumed_ns
        return end_ns
    return end_ns
