"""The front end: a request is preprocessed, batched by preba's own batcher, executed on an idle slice and answered.

It owns the requests inside the server and drives ``LiveBatcher``; how requests come in (gRPC) and how they are counted
for monitoring is elsewhere. Everything happens in one asyncio loop, so nothing here is locked. Times are the monotonic
clock's, in ns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from accel.inputs import InputLimits, check_jpeg, read_wav
from preba.balancing import BALANCER_CODES, M_ALIVE, choose_server
from preba.batching.state import NONE, REFUSED_QUEUE_FULL, SERVED
from preba.errors import InputError
from preba.serving import ServerModel
from runtime.alarm import Alarm
from runtime.counters import ModelCounters
from runtime.decisions import DecisionLog, Dispatch, LiveBatcher
from runtime.errors import RequestError
from runtime.preprocess import Workers
from runtime.slices import AnySlice, BatchFailedError, SliceLostError
from runtime.tensors import TensorPool
from runtime.triton.models.mark import MARK

FAILURE_REASONS = {"RESOURCE_EXHAUSTED": "REJECTED", "INTERNAL": "BACKEND", "UNAVAILABLE": "BACKEND"}
"""Triton's labels of nv_inference_request_failure, by status."""
TRIES = 2
"""How often a request is started: once more after its slice was lost."""


Rows: TypeAlias = NDArray[np.float32]


@dataclass
class Ticket:
    """One request inside the server. Times are 0 until they happen."""

    model: ServedModel
    done: Callable[[Ticket], object]
    """Called once, when there is an answer or an error; from the server's loop, so it must not wait."""
    content: bytes | None = None
    """An encoded image or a WAV file, where the model's inputs are preprocessed here."""
    rows: Rows | None = None
    """What its client sent for an emulated slice; without it the rows say length and factor."""
    audio_ns: int = 0
    factor: float = 1.0
    units: int = 1
    priority: int = 0
    timeout_ns: int = 0
    received_ns: int = 0
    slot: int = NONE
    preprocess_start_ns: int = 0
    preprocess_end_ns: int = 0
    preprocess_wait_ns: int = 0
    enqueued_ns: int = 0
    dispatched_ns: int = 0
    execution_start_ns: int = 0
    execution_end_ns: int = 0
    slice_preprocess_ns: int = 0
    undecodable: bool = False
    """Its slice found that its file is broken."""
    inside: int = NONE
    """The server it is inside of."""
    server_index: int = NONE
    slice_index: int = NONE
    batch_id: int = NONE
    batch_size: int = 0
    batch_units: int = 0
    attempts: int = 0
    working: asyncio.Task[None] | None = None
    """Its preprocessing, while that is under way."""
    is_done: bool = False
    error: RequestError | None = None
    abandoned: bool = False
    """Its client does not wait any more."""
    output: bytes = b""
    output_shape: tuple[int, ...] = ()


@dataclass
class ServedModel:
    """One model as the front end serves it.

    Attributes
    ----------
    name : str
    index : int
    modality : str
    servers : sequence of ServerModel
    table_ns : sequence of sequence of int
        Expected execution by length (0.1 s steps) and batch, of the slowest slice; bounds how long a batch may take.
    workers : Workers or None
    uses_slots : bool
        Slices read preprocessed tensors from shared memory instead of getting rows of facts.
    files : TensorPool or None
        Slices decode themselves: encoded files are put there.
    """

    name: str
    index: int
    modality: str
    servers: Sequence[ServerModel]
    table_ns: Sequence[Sequence[int]]
    workers: Workers | None
    uses_slots: bool
    files: TensorPool | None = None
    counters: ModelCounters = field(default_factory=ModelCounters)

    @property
    def takes_files(self) -> bool:
        """Whether a request carries one encoded file."""
        return self.workers is not None or self.files is not None


@dataclass
class _Server:
    """One batcher at work."""

    model: ServedModel
    batcher: LiveBatcher
    plan: ServerModel
    alarm: Alarm
    place: int
    armed_ns: int | None = None
    load: int = 0


@dataclass
class _Balanced:
    """What the balancer knows of one model's servers."""

    up: list[int]
    load: list[int]
    memory: list[int]
    waiting: list[Ticket]


class FrontEnd:
    """The requests of one live server.

    Parameters
    ----------
    models : sequence of ServedModel
    slices : mapping of int to AnySlice
        By slice index.
    balancer : str
    requests_max : int
        Requests inside; one more is refused.
    retry : bool
        Whether requests of a lost slice are started once more.
    log : DecisionLog, optional
    random : callable, optional
        Draws uniforms for the balancer.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        slices: Mapping[int, AnySlice],
        *,
        balancer: str,
        requests_max: int,
        retry: bool = True,
        log: DecisionLog | None = None,
        random: Callable[[], float] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.models = {model.name: model for model in models}
        self.slices = slices
        self.requests_max = requests_max
        self.retry = retry
        self.draining = False
        self.tickets: dict[int, Ticket] = {}
        self._free_slots = list(range(requests_max - 1, -1, -1))
        self._balancer = BALANCER_CODES[balancer]
        self._random = random or np.random.default_rng().random
        self._batches = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[_Server] = []
        self._of_model: dict[int, list[int]] = {}
        self._balanced: dict[int, _Balanced] = {}
        self._consumers: dict[int, list[tuple[int, int]]] = {}
        for model in models:
            group: list[int] = []
            for plan in model.servers:
                number = len(self._servers)
                alarm = Alarm(loop, lambda number=number: self._ring(number))  # type: ignore[misc]  # bound now
                batcher = LiveBatcher(number, plan, requests_max, log)
                self._servers.append(_Server(model, batcher, plan, alarm, len(group)))
                for consumer, index in enumerate(plan.consumer_slice):
                    self._consumers.setdefault(index, []).append((number, consumer))
                group.append(number)
            self._of_model[model.index] = group
            self._balanced[model.index] = _Balanced([0] * len(group), [0] * len(group), [NONE, 0], [])
        for index, one in slices.items():
            one.on_up = self.slice_up
            one.on_down = self.slice_down
            if one.is_up:
                self.slice_up(index)

    # -- slices come and go ------------------------------------------------------------------------------------------

    def slice_up(self, index: int) -> None:
        """A slice enters service."""
        for number, consumer in self._consumers.get(index, []):
            server = self._servers[number]
            server.batcher.up(time.monotonic_ns(), consumer)
            self._mark_server(server)
            self._pump(number)
            balanced = self._balanced[server.model.index]
            parked, balanced.waiting = balanced.waiting, []
            for ticket in parked:
                self._offer(ticket)

    def slice_down(self, index: int) -> None:
        """A slice is lost; what it was executing comes back by way of its calls."""
        for number, consumer in self._consumers.get(index, []):
            server = self._servers[number]
            server.batcher.lost(time.monotonic_ns(), consumer)
            self._mark_server(server)
            moved: list[int] = []
            if len(self._of_model[server.model.index]) > 1 and not any(server.batcher.state.consumer_up):
                moved = server.batcher.waiting()  # nobody is left behind this batcher: the others take over
            for slot in moved:
                self._left_server(self.tickets[slot])
            for slot in moved:
                self._offer(self.tickets[slot])
            self._pump(number)

    def _mark_server(self, server: _Server) -> None:
        balanced = self._balanced[server.model.index]
        balanced.up[server.place] = int(any(server.batcher.state.consumer_up))
        balanced.memory[M_ALIVE] = sum(balanced.up)

    @property
    def ready(self) -> bool:
        """Whether every model has a slice in service."""
        return not self.draining and all(any(one.up) for one in self._balanced.values())

    def model_ready(self, name: str) -> bool:
        """Whether a model has a slice in service."""
        model = self.models.get(name)
        return model is not None and not self.draining and any(self._balanced[model.index].up)

    # -- one request -------------------------------------------------------------------------------------------------

    def submit(self, ticket: Ticket) -> None:
        """Takes a request in; ``ticket.done`` is called when it has its answer or error, which may be at once.

        Parameters
        ----------
        ticket : Ticket
            Its facts filled in.
        """
        ticket.model.counters.pending += 1
        if ticket.abandoned:
            self._finish(ticket)
        elif self.draining:
            self._finish(ticket, RequestError("UNAVAILABLE", "the server is shutting down"))
        elif not self._free_slots:
            full = f"the server is full: {self.requests_max} requests are inside"
            self._finish(ticket, RequestError("RESOURCE_EXHAUSTED", full))
        else:
            ticket.slot = self._free_slots.pop()
            self.tickets[ticket.slot] = ticket
            if ticket.model.files is not None:
                self._hand_over(ticket, ticket.model.files)
            elif ticket.model.workers is None:
                ticket.enqueued_ns = time.monotonic_ns()
                self._offer(ticket)
            else:
                ticket.working = self._keep(self._preprocess(ticket, ticket.model.workers))
                # Also when it is cancelled before its first step: then nothing inside it runs.
                ticket.working.add_done_callback(lambda task: self._preprocessed(task, ticket))

    def abandon(self, ticket: Ticket) -> None:
        """A client does not wait any more: its request is not executed if that has not begun."""
        if ticket.is_done:
            return
        ticket.abandoned = True
        if ticket.working is not None:
            ticket.working.cancel()
        self._answer(ticket)  # its slot stays taken until the batcher hands it out

    def _hand_over(self, ticket: Ticket, files: TensorPool) -> None:
        """Puts a file where its slice will decode it, if its header makes sense."""
        content = ticket.content or b""
        limits = InputLimits(file_bytes=files.slot_bytes)
        try:
            if ticket.model.modality == "image":
                check_jpeg(content, limits)
            else:
                found_ns = round(read_wav(content, limits).length_s * 1e9)
                ticket.audio_ns = ticket.audio_ns or found_ns
        except InputError as error:
            self._finish(ticket, RequestError("INVALID_ARGUMENT", str(error)))
            return
        files.write_file(ticket.slot, content)
        ticket.enqueued_ns = time.monotonic_ns()
        self._offer(ticket)

    def _preprocessed(self, task: asyncio.Task[None], ticket: Ticket) -> None:
        """Ends a request whose preprocessing did not bring it to a batcher."""
        ticket.working = None
        if task.cancelled():
            self._finish(ticket)
            return
        error = task.exception()
        if isinstance(error, InputError):
            self._finish(ticket, RequestError("INVALID_ARGUMENT", str(error)))
        elif error is not None:
            self._finish(ticket, RequestError("INTERNAL", f"preprocessing failed: {error}"))

    async def _preprocess(self, ticket: Ticket, workers: Workers) -> None:
        done = await workers.preprocess(ticket.content or b"", ticket.slot)
        ticket.working = None
        ticket.preprocess_start_ns, ticket.preprocess_end_ns = done.start_ns, done.end_ns
        ticket.preprocess_wait_ns = done.start_ns - ticket.received_ns
        if ticket.model.modality == "audio" and ticket.audio_ns == 0:
            ticket.audio_ns = done.shape[-1] * 10_000_000  # a frame every 10 ms
        ticket.enqueued_ns = time.monotonic_ns()
        self._offer(ticket)

    def _keep(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Starts a task and holds on to it until it is done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _finish(self, ticket: Ticket, error: RequestError | None = None) -> None:
        """A request leaves the server: with its answer, with an error, or because nobody waits for it."""
        self._left_server(ticket)
        if ticket.slot != NONE and self.tickets.pop(ticket.slot, None) is not None:
            self._free_slots.append(ticket.slot)
        self._answer(ticket, error)

    def _answer(self, ticket: Ticket, error: RequestError | None = None) -> None:
        """Whoever waits for a request need not any more."""
        if ticket.is_done:
            return
        ticket.is_done = True
        ticket.error = error
        ticket.content = None
        counters = ticket.model.counters
        counters.pending -= 1
        if ticket.abandoned:
            counters.failed("CANCELED")
        elif error is None:
            counters.served(ticket)
        else:
            counters.failed(FAILURE_REASONS.get(error.code, "OTHER"))
        ticket.done(ticket)

    def _left_server(self, ticket: Ticket) -> None:
        if ticket.inside != NONE:
            self._balanced[ticket.model.index].load[self._servers[ticket.inside].place] -= 1
            ticket.inside = NONE

    # -- batching ----------------------------------------------------------------------------------------------------

    def _offer(self, ticket: Ticket) -> None:
        """Brings a request to a batcher: the only one of its model, or the one the balancer chooses."""
        model = ticket.model
        group = self._of_model[model.index]
        balanced = self._balanced[model.index]
        place = 0
        if len(group) > 1:
            place = choose_server(
                self._balancer, balanced.up, balanced.load, balanced.memory, self._random(), self._random()
            )
            if place == NONE:
                if self.retry:
                    balanced.waiting.append(ticket)
                else:
                    self._finish(ticket, RequestError("UNAVAILABLE", "no slice is in service"))
                return
        number = group[place]
        server = self._servers[number]
        balanced.load[place] += 1
        ticket.server_index = ticket.inside = number
        grid = -(-ticket.audio_ns // 100_000_000) if model.modality == "audio" else 0
        outcome = server.batcher.enqueue(
            time.monotonic_ns(),
            ticket.slot,
            units=ticket.units,
            bucket=int(server.plan.plan.bucket_of(np.array([ticket.audio_ns]))[0]),
            priority=ticket.priority,
            shape=grid,
            timeout_ns=ticket.timeout_ns,
        )
        if outcome != SERVED:
            self._finish(ticket, _refusal(outcome))
        self._pump(number)

    def _ring(self, number: int) -> None:
        server = self._servers[number]
        server.armed_ns = None
        server.batcher.advance(time.monotonic_ns())
        self._pump(number)

    def _pump(self, number: int) -> None:
        """Starts every batch that may start, hands back what was refused, and sets the batcher's alarm."""
        server = self._servers[number]
        while True:
            started, refused = server.batcher.pump(time.monotonic_ns())
            for slot, outcome in refused:
                self._finish(self.tickets[slot], _refusal(outcome))
            empty = [dispatch.consumer for dispatch in started if not self._start(number, dispatch)]
            if not empty:
                break
            for consumer in empty:  # everybody in those batches has gone away
                server.batcher.idle(time.monotonic_ns(), consumer)
        due_ns = server.batcher.due_ns()
        if due_ns != server.armed_ns:
            server.armed_ns = due_ns
            server.alarm.set(due_ns)

    def _start(self, number: int, dispatch: Dispatch) -> bool:
        """Sends a batch to its slice; ``False`` if nobody in it waits any more."""
        tickets = [self.tickets[slot] for slot in dispatch.slots]
        for ticket in tickets:
            if ticket.abandoned:
                self._finish(ticket)
        wanted = [ticket for ticket in tickets if not ticket.abandoned]
        if not wanted:
            return False
        batch_id, self._batches = self._batches, self._batches + 1
        units = sum(ticket.units for ticket in wanted)
        for ticket in wanted:
            ticket.dispatched_ns = dispatch.formed_ns
            ticket.batch_id, ticket.batch_size, ticket.batch_units = batch_id, len(wanted), units
            ticket.attempts += 1
        self._keep(self._execute(number, dispatch.consumer, wanted))
        return True

    # -- execution ---------------------------------------------------------------------------------------------------

    async def _execute(self, number: int, consumer: int, tickets: Sequence[Ticket]) -> None:
        server = self._servers[number]
        one = self.slices[server.plan.consumer_slice[consumer]]
        sent_ns = time.monotonic_ns()
        failure: RequestError | None = None
        try:
            response = await one.execute(_batch_request(server.model, tickets), _patience_s(server.model, tickets))
        except SliceLostError as error:
            self._lost(number, consumer, tickets, str(error))
            return
        except BatchFailedError as error:
            failure = RequestError("INTERNAL", str(error))
        else:
            _read_answer(response, tickets, one.index, sent_ns)
        if one.is_up:
            server.batcher.idle(time.monotonic_ns(), consumer)
        self._pump(number)
        for ticket in tickets:
            self._finish(ticket, failure or _undecodable(ticket))
        if failure is None:
            server.model.counters.executed(tickets)

    def _lost(self, number: int, consumer: int, tickets: Sequence[Ticket], reason: str) -> None:
        """A batch was lost with its slice: its requests are started once more elsewhere."""
        for ticket in tickets:
            if ticket.abandoned:
                self._finish(ticket)
            elif self.retry and ticket.attempts < TRIES:
                self._left_server(ticket)
                self._offer(ticket)
            else:
                self._finish(ticket, RequestError("UNAVAILABLE", reason))
        one = self.slices[self._servers[number].plan.consumer_slice[consumer]]
        if one.is_up:  # it is back already: nobody else will say that it is idle
            self._servers[number].batcher.idle(time.monotonic_ns(), consumer)
        self._pump(number)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float) -> int:
        """Takes in nothing more and waits for what is inside; returns how many requests were given up."""
        self.draining = True
        until = time.monotonic() + timeout_s
        while self.tickets and time.monotonic() < until:
            await asyncio.sleep(0.01)
        left = list(self.tickets.values())
        for ticket in left:
            self._finish(ticket, RequestError("UNAVAILABLE", "the server is shutting down"))
        return len(left)

    def close(self) -> None:
        """Gives back timers and what is under way."""
        for task in self._tasks:
            task.cancel()
        for server in self._servers:
            server.alarm.close()


def _refusal(outcome: int) -> RequestError:
    if outcome == REFUSED_QUEUE_FULL:
        return RequestError("RESOURCE_EXHAUSTED", "Exceeds maximum queue size")
    return RequestError("UNAVAILABLE", "Request timeout expired")


def _undecodable(ticket: Ticket) -> RequestError | None:
    return RequestError("INVALID_ARGUMENT", "the input cannot be decoded") if ticket.undecodable else None


def _patience_s(model: ServedModel, tickets: Sequence[Ticket]) -> float:
    """How long a batch may take before its slice is given up."""
    longest = 0
    if len(model.table_ns) > 1:
        longest = min(-(-max(ticket.audio_ns for ticket in tickets) // 100_000_000), len(model.table_ns) - 1)
    row = model.table_ns[longest]
    factor = 1.0 if model.uses_slots else max(ticket.factor for ticket in tickets)
    return 10.0 + 5.0 * max(row) * factor / 1e9


def _batch_request(model: ServedModel, tickets: Sequence[Ticket]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model.name)
    if model.uses_slots:
        tensor = request.inputs.add(name="SLOTS", datatype="INT32")
        rows = np.array([[ticket.slot] for ticket in tickets], dtype=np.int32)
    else:
        tensor = request.inputs.add(name="INPUT", datatype="FP32")
        rows = np.concatenate(
            [
                np.array([(one.audio_ns / 1e9, one.factor, 0.0, MARK)], dtype=np.float32)
                if one.rows is None
                else one.rows
                for one in tickets
            ]
        )
    tensor.shape[:] = rows.shape
    request.raw_input_contents.append(rows.tobytes())
    return request


def _read_answer(response: pb.ModelInferResponse, tickets: Sequence[Ticket], slice_index: int, sent_ns: int) -> None:
    contents = dict(zip((one.name for one in response.outputs), response.raw_output_contents, strict=True))
    shapes = {one.name: tuple(one.shape) for one in response.outputs}
    stages = np.frombuffer(contents["PREBA"], dtype=np.int64)
    width = len(contents["OUTPUT"]) // max(shapes["OUTPUT"][0], 1)
    row = 0
    status = np.frombuffer(contents["STATUS"], dtype=np.int64).reshape(-1, 2) if "STATUS" in contents else None
    for ticket in tickets:
        if status is not None:
            ticket.slice_preprocess_ns, ticket.undecodable = int(status[row][0]), bool(status[row][1])
        # The slice's own stamps are of the same clock: the kernel's, counted from the same start.
        ticket.execution_start_ns, ticket.execution_end_ns = max(int(stages[0]), sent_ns), int(stages[1])
        ticket.slice_index = slice_index
        ticket.output = contents["OUTPUT"][row * width : (row + ticket.units) * width]
        ticket.output_shape = (ticket.units, *shapes["OUTPUT"][1:])
        row += ticket.units
