"""The table of a trace: its columns, their validation, and merging. Drawing one is in ``preba.trace``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preba.errors import TraceError

DTYPES: dict[str, type[np.generic]] = {
    "scheduled_ns": np.int64,
    "model_index": np.int32,
    "jpeg_bytes": np.int64,
    "audio_ns": np.int64,
    "tensor_bytes": np.int64,
    "batch_units": np.int32,
    "priority": np.int32,
    "timeout_ns": np.int64,
    "preprocess_factor": np.float64,
    "execution_factor": np.float64,
    "overhead_factor": np.float64,
    "balancer_draw": np.float64,
    "think_ns": np.int64,
}
"""Columns of a trace, in order."""
PARTS = {"overhead_factor": ("frontend", "turnaround", "response", "response_next"), "balancer_draw": ("0", "1")}
"""What the second dimension of a column means, where there is one."""


@dataclass(frozen=True)
class Request:
    """One row of a trace; see ``Trace`` for the fields."""

    request_id: int
    scheduled_ns: int
    model_index: int
    jpeg_bytes: int
    audio_ns: int
    tensor_bytes: int
    batch_units: int
    priority: int
    timeout_ns: int
    preprocess_factor: float
    execution_factor: float
    overhead_factor: tuple[float, float, float, float]
    balancer_draw: tuple[float, float]
    think_ns: int


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests to play, sorted by scheduled time, then model, then order of drawing. Columns are read-only.

    Attributes
    ----------
    scheduled_ns : int64[n]
        When the request is meant to be sent, from the start of the run; 0 in a closed loop.
    model_index : int32[n]
        Which model of the scenario.
    jpeg_bytes, audio_ns, tensor_bytes : int64[n]
        Input size; the two of another modality are 0.
    batch_units : int32[n]
        Batch dimension of the request, >= 1.
    priority : int32[n]
        Priority level; 0 = none given.
    timeout_ns : int64[n]
        Queue timeout sent along; 0 = none.
    preprocess_factor, execution_factor : float64[n]
        Factors on the nominal service times, mean 1.
    overhead_factor : float64[n, 4]
        Factors on the overheads of the serving software: the way to the batcher; from the batch that this request
        comes first in to the next; the first answer of that batch; and, where another request comes first, from the
        answer before this one's to this one's. Without any memory (one row for all) where nothing varies.
    balancer_draw : float64[n, 2]
        Uniforms in [0, 1) for balancers that choose at random.
    think_ns : int64[n]
        In a closed loop: between the answer to this request and its client's next; else 0.
    outstanding : tuple of int or None
        Per model: how many clients a closed loop has; ``None`` for open-loop traffic.
    refusal_backoff_ns : tuple of int
        Per model: how long a refused closed-loop client waits; 0 for open-loop traffic.
    seed : int or None
        What it was drawn from; ``None`` for a trace put together in another way.
    """

    scheduled_ns: NDArray[np.int64]
    model_index: NDArray[np.int32]
    jpeg_bytes: NDArray[np.int64]
    audio_ns: NDArray[np.int64]
    tensor_bytes: NDArray[np.int64]
    batch_units: NDArray[np.int32]
    priority: NDArray[np.int32]
    timeout_ns: NDArray[np.int64]
    preprocess_factor: NDArray[np.float64]
    execution_factor: NDArray[np.float64]
    overhead_factor: NDArray[np.float64]
    balancer_draw: NDArray[np.float64]
    think_ns: NDArray[np.int64]
    outstanding: tuple[int | None, ...]
    refusal_backoff_ns: tuple[int, ...]
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, dtype in DTYPES.items():
            column = np.asarray(getattr(self, name))
            if column.dtype != dtype:
                raise TraceError(f"trace.{name}: must be {np.dtype(dtype)}, got {column.dtype}")
            view = column.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        count = len(self.scheduled_ns)
        for name in DTYPES:
            shape = (count, len(PARTS[name])) if name in PARTS else (count,)
            if getattr(self, name).shape != shape:
                raise TraceError(f"trace.{name}: must have shape {shape}, got {getattr(self, name).shape}")
        if len(self.outstanding) != len(self.refusal_backoff_ns):
            raise TraceError(
                f"trace: outstanding names {len(self.outstanding)} models, "
                f"refusal_backoff_ns {len(self.refusal_backoff_ns)}"
            )

    def _check_values(self) -> None:
        for name, dtype in DTYPES.items():
            column = getattr(self, name)
            if not column.size:
                continue
            low = 1 if name == "batch_units" else 0
            # Written so that a NaN fails too.
            if not column.min() >= low:
                row = int(np.flatnonzero(~(column.reshape(len(column), -1) >= low).all(axis=1))[0])
                raise TraceError(f"trace.{name}[{row}]: must be >= {low}, got {column[row]}")
            if dtype is np.float64 and not column.max() < np.inf:
                raise TraceError(f"trace.{name}: must be finite")
        if self.balancer_draw.size and self.balancer_draw.max() >= 1.0:
            raise TraceError("trace.balancer_draw: must be < 1")
        if len(self) and int(self.model_index.max()) >= len(self.outstanding):
            raise TraceError(f"trace.model_index: must be < {len(self.outstanding)}, got {int(self.model_index.max())}")
        later, earlier = self.scheduled_ns[1:], self.scheduled_ns[:-1]
        disordered = (later < earlier) | ((later == earlier) & (self.model_index[1:] < self.model_index[:-1]))
        if disordered.any():
            row = int(np.flatnonzero(disordered)[0]) + 1
            raise TraceError(
                f"trace: row {row} must not come before row {row - 1}: rows are sorted by scheduled_ns, "
                "then model_index"
            )
        closed = np.array([clients is not None for clients in self.outstanding], dtype=bool)
        if closed.any() and self.scheduled_ns[closed[self.model_index]].any():
            raise TraceError("trace.scheduled_ns: must be 0 in a closed loop")

    def __len__(self) -> int:
        return len(self.scheduled_ns)

    @property
    def model_count(self) -> int:
        """How many models the trace is for."""
        return len(self.outstanding)

    @property
    def closed_loop(self) -> bool:
        """Whether any model's requests wait for the answers to earlier ones."""
        return any(clients is not None for clients in self.outstanding)

    def request(self, index: int) -> Request:
        """One request as a value of plain Python numbers."""
        plain: dict[str, Any] = {name: getattr(self, name)[index].tolist() for name in DTYPES}
        plain |= {name: tuple(plain[name]) for name in PARTS}
        return Request(request_id=range(len(self))[index], **plain)

    def rows(self, start: int, stop: int) -> Trace:
        """Consecutive requests as a trace of their own, sharing memory."""
        return replace(self, **{name: getattr(self, name)[start:stop] for name in DTYPES})

    def equals(self, other: Trace) -> bool:
        """Whether every field of every request is identical, and so is all else but the seed."""
        return (
            self.outstanding == other.outstanding
            and self.refusal_backoff_ns == other.refusal_backoff_ns
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in DTYPES)
        )


def steady_overheads(count: int) -> NDArray[np.float64]:
    """Factors of overheads that do not vary, float64[count, 4]: all ones, in the memory of one."""
    return np.broadcast_to(np.float64(1.0), (count, len(PARTS["overhead_factor"])))


def merge(traces: Sequence[Trace]) -> Trace:
    """Puts traces together in order of time; ties by model, then by place in the arguments.

    Raises
    ------
    TraceError
        There is none, or two say different things about the same model's closed loop.
    """
    if not traces:
        raise TraceError("merge: needs at least one trace")
    if len(traces) == 1:
        return traces[0]
    model_count = max(trace.model_count for trace in traces)
    outstanding: list[int | None] = [None] * model_count
    backoff = [0] * model_count
    for trace in traces:
        for index, clients in enumerate(trace.outstanding):
            if clients is None:
                continue
            if outstanding[index] not in (None, clients) or backoff[index] not in (
                0,
                trace.refusal_backoff_ns[index],
            ):
                raise TraceError(f"merge: model {index} has different closed loops in two traces")
            outstanding[index], backoff[index] = clients, trace.refusal_backoff_ns[index]
    steady = not any(trace.overhead_factor.strides[0] for trace in traces)
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(trace, name) for trace in traces])
        for name in DTYPES
        if not (steady and name == "overhead_factor")
    }
    order = np.lexsort((columns["model_index"], columns["scheduled_ns"]))
    seeds = {trace.seed for trace in traces}
    columns = {name: column[order] for name, column in columns.items()}
    if steady:
        columns["overhead_factor"] = steady_overheads(len(order))
    return Trace(
        **columns,
        outstanding=tuple(outstanding),
        refusal_backoff_ns=tuple(backoff),
        seed=seeds.pop() if len(seeds) == 1 else None,
    )
