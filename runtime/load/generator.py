"""The schedule: sends each request of a trace at its time, whatever became of the ones before, and notes what happens.

Everything happens in one event loop, woken for each request by a timer of the kernel: threads that wait for one another
cost twice the time a call, and on a machine that the server shares it would be measured with it. In a closed loop an
answer schedules the next request of its model. No request is ever skipped or put off because others are slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
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
from runtime.alarm import Alarm
from runtime.load.wire import INFER, TIMES, Messages, outcome_of, read_answer

REPORT_S = 0.2
CONNECT_S = 10.0
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
    connect : callable
        Opens the connections, which are taken in turns; called in the generator's own event loop.
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
        connect: Callable[[], Sequence[grpc.aio.Channel]],
        *,
        timeout_s: float | None = None,
        in_flight_max: int = 20_000,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._trace = trace
        self._messages = messages
        self._connect = connect
        self._calls: list[Any] = []
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
        self._queue: list[tuple[int, int]] = []
        self._closed: dict[int, deque[int]] = {}
        self._ready: tuple[int, pb.ModelInferRequest] | None = None
        self._turn = 0
        self._waiting: set[asyncio.Task[None]] = set()
        self._done = 0
        self._all_done = asyncio.Event()
        self._failure: Exception | None = None

    def play(self, progress: Progress | None = None) -> Observed:
        """Sends everything and waits for every answer; an interrupt ends it early and keeps what is done."""
        trace = self._trace
        closed = [count or 0 for count in trace.outstanding]
        for row in range(len(trace)):
            if closed[trace.model_index[row]] == 0:
                self._queue.append((int(trace.scheduled_ns[row]), row))
        for model, outstanding in enumerate(closed):
            if outstanding:
                self._closed[model] = deque(int(row) for row in np.flatnonzero(trace.model_index == model))
                for _ in range(outstanding):
                    self._next_closed(model, 0)
        heapq.heapify(self._queue)
        try:
            asyncio.run(self._play(progress))
        except KeyboardInterrupt:
            self.observed.cut_short = True
        return self.observed

    async def _play(self, progress: Progress | None) -> None:
        channels = self._connect()
        self._alarm = Alarm(asyncio.get_running_loop(), self._send_due)
        gc.collect()
        gc.freeze()  # a search of all there is would be the slowest request
        try:
            for channel in channels:
                await asyncio.wait_for(channel.channel_ready(), CONNECT_S)
            self._calls = [
                channel.unary_unary(
                    INFER,
                    request_serializer=pb.ModelInferRequest.SerializeToString,
                    response_deserializer=pb.ModelInferResponse.FromString,
                )
                for channel in channels
            ]
            self.observed.started_ns = time.monotonic_ns()
            self._prepare()
            self._send_due()
            while not self._finished():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._all_done.wait(), REPORT_S)
                if self._failure is not None:
                    raise self._failure
                if progress is not None:
                    progress(self._done, len(self._trace))
        finally:
            self._alarm.close()
            gc.unfreeze()
            for channel in channels:
                await channel.close()

    def _finished(self) -> bool:
        return not self._queue and not self._waiting

    def _next_closed(self, model: int, not_before_ns: int) -> None:
        """A client of a closed loop sends its next request after its think time."""
        rows = self._closed.get(model)
        if rows:
            row = rows.popleft()
            heapq.heappush(self._queue, (not_before_ns + int(self._trace.think_ns[row]), row))

    def _prepare(self) -> None:
        """Makes the next message before its time has come."""
        if self._queue:
            row = self._queue[0][1]
            if self._ready is None or self._ready[0] != row:
                self._ready = (row, self._messages[int(self._trace.model_index[row])].request(row))

    def _send_due(self) -> None:
        """Sends the next request if its time has come, and has itself called when that of the one after it comes.

        Not more than one at a time: a call leaves when the loop goes on.
        """
        try:
            if self._queue and self._due_ns() <= time.monotonic_ns():
                self._prepare()
                due_ns, row = heapq.heappop(self._queue)
                self._send(row, due_ns)
            self._prepare()
            if not self._queue:
                self._alarm.set(None)
            elif self._due_ns() <= time.monotonic_ns():
                asyncio.get_running_loop().call_soon(self._send_due)
            else:
                self._alarm.set(self._due_ns())
        except Exception as error:
            self._failure = error
            self._all_done.set()

    def _due_ns(self) -> int:
        """When the next request is to be sent."""
        return self.observed.started_ns + self._queue[0][0]

    def _send(self, row: int, due_ns: int) -> None:
        columns = self.observed.columns
        issued_ns = time.monotonic_ns() - self.observed.started_ns
        columns["scheduled_ns"][row] = due_ns
        columns["issued_ns"][row] = issued_ns
        columns["attempts"][row] = 1
        if len(self._waiting) >= self._in_flight_max:
            self.observed.unsent += 1
            columns["outcome"][row] = REFUSED_QUEUE_FULL
            columns["completed_ns"][row] = issued_ns
            self._done += 1
            return
        assert self._ready is not None  # noqa: S101 - made just before
        call = self._calls[self._turn % len(self._calls)](
            self._ready[1], timeout=self._timeout_s, metadata=self._metadata, wait_for_ready=False
        )
        self._turn += 1
        task = asyncio.ensure_future(self._await(row, call))
        self._waiting.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._waiting.discard(task)
        if self._finished():
            self._all_done.set()

    async def _await(self, row: int, call: Any) -> None:  # noqa: ANN401 - grpc's
        """Notes the answer of one request."""
        outcome = SERVED
        columns = self.observed.columns
        try:
            answer = await call
        except grpc.RpcError as error:
            completed_ns = time.monotonic_ns() - self.observed.started_ns
            outcome = outcome_of(error)
            self.observed.errors[(error.code().name, (error.details() or "")[:200])] += 1
        except asyncio.CancelledError:
            columns["completed_ns"][row] = time.monotonic_ns() - self.observed.started_ns
            columns["outcome"][row] = PENDING
            raise
        else:
            completed_ns = time.monotonic_ns() - self.observed.started_ns
            read_answer(answer, columns, row)
        columns["completed_ns"][row] = completed_ns
        columns["outcome"][row] = outcome
        self._done += 1
        model = int(self._trace.model_index[row])
        if model in self._closed:
            pause_ns = int(self._trace.refusal_backoff_ns[model]) if outcome != SERVED else 0
            self._next_closed(model, completed_ns + pause_ns)
            self._send_due()


def lag_figures(columns: Mapping[str, Any]) -> dict[str, float]:
    """How late requests were sent: p50, p99 and the largest, in ms."""
    sent = columns["issued_ns"][columns["attempts"] > 0] - columns["scheduled_ns"][columns["attempts"] > 0]
    if len(sent) == 0:
        return {"p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}
    p50, p99 = np.percentile(sent, [50, 99])
    return {"p50_ms": float(p50) / 1e6, "p99_ms": float(p99) / 1e6, "max_ms": float(sent.max()) / 1e6}
