"""Timing on a device: by CUDA events on a stream, or by the processor's clock where there is no GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Timing", "as_graph", "on_partition", "time_steps"]

MIN_CALLS, MAX_CALLS = 10, 200


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one step, over ``count`` of them."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    count: int


def time_steps(torch: Any, step: Callable[[], object], *, device: str, budget_s: float) -> Timing:  # noqa: ANN401
    """Time a step again and again for so long: after three to warm up, at least ten.

    Parameters
    ----------
    torch : module
    step : callable
        Enqueues the work on the current stream.
    device : str
        ``cuda`` or ``cpu``.
    budget_s : float
    """
    for _ in range(3):
        step()
    times: list[float] = []
    if device == "cpu":
        until = time.perf_counter() + budget_s
        while len(times) < MIN_CALLS or (len(times) < MAX_CALLS and time.perf_counter() < until):
            began = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - began))
        return _timing(times)
    stream = torch.cuda.current_stream()
    stream.synchronize()
    until = time.perf_counter() + budget_s
    while len(times) < MIN_CALLS or (len(times) < MAX_CALLS and time.perf_counter() < until):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record(stream)
        step()
        last.record(stream)
        last.synchronize()
        times.append(float(first.elapsed_time(last)))
    return _timing(times)


def as_graph(torch: Any, step: Callable[[], object], *, device: str) -> Callable[[], object] | None:  # noqa: ANN401
    """The step as a CUDA graph: one launch, however many kernels it has.

    Small networks are bound by their launches otherwise, which is the processor's time and not the GPU's.

    Parameters
    ----------
    torch : module
    step : callable
        Enqueues the work on the current stream, which must not be the device's default one.
    device : str
        ``cuda`` or ``cpu``.

    Returns
    -------
    callable or None
        Does the step once; ``None`` on a CPU and where it cannot be captured.
    """
    if device == "cpu":
        return None
    stream = torch.cuda.current_stream()
    step()  # libraries make their handles and workspaces outside the capture
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except RuntimeError:
        return None

    def replay(_kept: Callable[[], object] = step) -> None:  # what the graph reads and writes lives as long as it does
        graph.replay()

    return replay


def _timing(times: list[float]) -> Timing:
    low, middle, high = np.percentile(times, [10, 50, 90])
    return Timing(float(middle), float(low), float(high), len(times))


@contextlib.contextmanager
def on_partition(torch: Any, parts: int, first: int, count: int, *, device: str) -> Iterator[int | None]:  # noqa: ANN401
    """Runs the block on ``count`` of ``parts`` equal parts of the GPU's multiprocessors, from part ``first`` on.

    Yields
    ------
    int or None
        How many multiprocessors those are; ``None`` on a CPU, which is not cut. All parts: the whole GPU, uncut.
    """
    if device == "cpu":
        yield None
        return
    if count == parts:
        with torch.cuda.stream(torch.cuda.Stream()):
            yield int(torch.cuda.get_device_properties(0).multi_processor_count)
        return
    green = importlib.import_module("runtime.triton.models.green")
    torch.zeros(1, device=device)  # the primary context is there before it is cut
    handle, multiprocessors = green.partition(ctypes.CDLL("libcuda.so.1"), 0, parts, first, count)
    with torch.cuda.stream(torch.cuda.ExternalStream(handle)):
        yield int(multiprocessors)
