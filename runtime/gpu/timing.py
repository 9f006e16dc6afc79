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

__all__ = ["Timing", "on_partition", "time_steps"]

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
    if device == "cpu" or count == parts:
        yield None if device == "cpu" else int(torch.cuda.get_device_properties(0).multi_processor_count)
        return
    green = importlib.import_module("runtime.triton.models.green")
    torch.zeros(1, device=device)  # the primary context is there before it is cut
    handle, multiprocessors = green.partition(ctypes.CDLL("libcuda.so.1"), 0, parts, first, count)
    with torch.cuda.stream(torch.cuda.ExternalStream(handle)):
        yield int(multiprocessors)
