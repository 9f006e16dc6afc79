"""The schedule: sends each request of a trace at its time, whatever became of the ones before, and notes what happens.

One thread keeps the schedule and sends; answers come in gRPC's threads. In a closed loop an answer schedules the next
request of its model. No request is ever skipped or put off because others are slow.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from preba.batching.state import PENDING, REFUSED_QUEUE_FULL, SERVED
from preba.records import empty_columns
from preba.trace import Trace
from runtime.load.wire import INFER, TIMES, Messages, outcome_of, read_answer

SPIN_NS = 150_000
"""The last part of a wait is spent in short sleeps: a sleep ends late, never early."""
Progress = Callable[[int, int], None]


@dataclass
class Observed:
    """What was seen of every request of a trace.

    Attributes
    ----------
    columns : dict of str to array
        Record columns, times in ns since the start; and the server's own moments (``wire.TIMES``) on its clock.
    started_ns : int
        The start of the run on the monotonic clock of the generator.
    errors : Counter of (gRPC code, first message)
    cut_short : bool
        The run was interrupted.
    unsent : int
        Requests that were not sent because too many were under way.
    """

    columns: dict[str, Any]
    started_ns: int
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    cut_short: bool = False
    unsent: int = 0


class Generator:
    """Plays one trace once.

    Parameters
    ----------
    trace : Trace
    messages : sequence of Messages
        Per model.
    channels : sequence of grpc.Channel
        Taken in turns.
    timeout_s : float, optional
        Deadline of each call.
    in_flight_max : int
        Requests under way; one more is noted as refused and not sent.
    metadata : sequence of (str, str)
        Sent with each call.
    """

    def __init__(
        self,
        trace: Trace,
        messages: Sequence[Messages],
        channels: Sequence[grpc.Channel],
        *,
        timeout_s: float | None = None,
        in_flight_max: int = 20_000,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._trace = trace
        self._messages = messages
        self._calls = [
            channel.unary_unary(
                INFER,
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            for channel in channels
        ]
        self._timeout_s = timeout_s
        self._in_flight_max = in_flight_max
        self._metadata = tuple(metadata)
        count = len(trace)
        columns = empty_columns(count)
        columns["model_index"][:] = trace.model_index
        columns["scheduled_ns"][:] = trace.scheduled_ns
        columns["batch_units"][:] = trace.batch_units
        for name in TIMES:
            if name not in columns:
                columns[name] = np.full(count, -1, dtype=np.int64)
        self.observed = Observed(columns, 0)
        self._lock = threading.Condition()
        self._queue: list[tuple[int, int]] = []
        self._closed: dict[int, deque[int]] = {}
        self._in_flight = 0
        self._done = 0
        self._stopped = False

    def play(self, progress: Progress | None = None) -> Observed:
        """Sends everything and waits for every answer; an interrupt ends it early and keeps what is done."""
        trace = self._trace
        closed = [count or 0 for count in trace.outstanding]
        open_rows = [row for row in range(len(trace)) if closed[trace.model_index[row]] == 0]
        for model, outstanding in enumerate(closed):
            if outstanding:
                self._closed[model] = deque(int(row) for row in np.flatnonzero(trace.model_index == model))
                for _ in range(outstanding):
                    self._next_closed(model, 0)
        for row in open_rows:
            self._queue.append((int(trace.scheduled_ns[row]), row))
        heapq.heapify(self._queue)
        self.observed.started_ns = time.monotonic_ns()
        try:
            self._send_all(progress)
            with self._lock:
                while self._in_flight:
                    self._lock.wait(0.2)
                    self._report(progress)
        except KeyboardInterrupt:
            self._stopped = True
            self.observed.cut_short = True
        return self.observed

    def _report(self, progress: Progress | None) -> None:
        if progress is not None:
            progress(self._done, len(self._trace))

    def _next_closed(self, model: int, not_before_ns: int) -> None:
        """A client of a closed loop sends its next request after its think time."""
        rows = self._closed.get(model)
        if rows:
            row = rows.popleft()
            heapq.heappush(self._queue, (not_before_ns + int(self._trace.think_ns[row]), row))

    def _send_all(self, progress: Progress | None) -> None:
        turn = 0
        while True:
            with self._lock:
                while not self._queue:
                    if self._in_flight == 0 or not any(self._closed.values()):
                        return
                    self._lock.wait(0.2)
                due_ns, row = self._queue[0]
                wait_ns = self.observed.started_ns + due_ns - time.monotonic_ns()
                if wait_ns > 2_000_000 and self._closed:
                    self._lock.wait((wait_ns - 1_000_000) / 1e9)  # an answer may schedule something earlier meanwhile
                    continue
                heapq.heappop(self._queue)
            request = self._messages[int(self._trace.model_index[row])].request(row)  # made before its time has come
            _sleep_until(self.observed.started_ns + due_ns)
            self._send(row, due_ns, request, self._calls[turn % len(self._calls)])
            turn += 1
            if turn % 500 == 0:
                self._report(progress)

    def _send(self, row: int, due_ns: int, request: pb.ModelInferRequest, call: Any) -> None:  # noqa: ANN401 - grpc's
        columns = self.observed.columns
        columns["scheduled_ns"][row] = due_ns
        with self._lock:
            full = self._in_flight >= self._in_flight_max
            self._in_flight += 0 if full else 1
        issued_ns = time.monotonic_ns() - self.observed.started_ns
        columns["issued_ns"][row] = issued_ns
        columns["attempts"][row] = 1
        if full:
            self.observed.unsent += 1
            columns["outcome"][row] = REFUSED_QUEUE_FULL
            columns["completed_ns"][row] = issued_ns
            self._done += 1
            return
        future = call.future(request, timeout=self._timeout_s, metadata=self._metadata, wait_for_ready=False)
        future.add_done_callback(lambda done: self._answered(row, done))

    def _answered(self, row: int, done: Any) -> None:  # noqa: ANN401 - grpc's
        completed_ns = time.monotonic_ns() - self.observed.started_ns
        columns = self.observed.columns
        outcome, pause_ns = SERVED, 0
        try:
            read_answer(done.result(), columns, row)
        except grpc.RpcError as error:
            outcome = outcome_of(error)
            with self._lock:
                self.observed.errors[(error.code().name, (error.details() or "")[:200])] += 1
        except grpc.FutureCancelledError:
            outcome = PENDING
        columns["completed_ns"][row] = completed_ns
        columns["outcome"][row] = outcome
        model = int(self._trace.model_index[row])
        if outcome != SERVED:
            pause_ns = int(self._trace.refusal_backoff_ns[model])
        with self._lock:
            self._in_flight -= 1
            self._done += 1
            if not self._stopped and model in self._closed:
                self._next_closed(model, completed_ns + pause_ns)
            self._lock.notify()


def _sleep_until(target_ns: int) -> None:
    while True:
        left_ns = target_ns - time.monotonic_ns()
        if left_ns <= 0:
            return
        time.sleep((left_ns - SPIN_NS) / 1e9 if left_ns > 2 * SPIN_NS else min(left_ns, 30_000) / 1e9)


def lag_figures(columns: Mapping[str, Any]) -> dict[str, float]:
    """How late requests were sent: p50, p99 and the largest, in ms."""
    sent = columns["issued_ns"][columns["attempts"] > 0] - columns["scheduled_ns"][columns["attempts"] > 0]
    if len(sent) == 0:
        return {"p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}
    p50, p99 = np.percentile(sent, [50, 99])
    return {"p50_ms": float(p50) / 1e6, "p99_ms": float(p99) / 1e6, "max_ms": float(sent.max()) / 1e6}
