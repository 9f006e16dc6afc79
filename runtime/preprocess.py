"""Preprocessing in processes of its own, one core each, in front of the batcher. What it does is accel's.

A worker decodes one input at a time into a slot of shared memory and says when it started and ended. Inputs wait here,
oldest first, so that at most one is inside each worker. The event loop talks to each over a socket of its own: the pool
of the standard library has two threads in between, and a worker waited twice as long for its next input.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preba.errors import InputError, ServerError
from runtime.cores import bind
from runtime.tensors import TensorPool

if TYPE_CHECKING:
    from accel.executors import Preprocessor

MEL_BINS = 80
TRIES = 2
END_S = 2.0
"""After so long a worker that was told to end is killed."""
WORK = struct.Struct("<IQ")
"""Before the content of an input: its slot and how many bytes it has."""
ANSWER = struct.Struct("<I")
"""Before a worker's answer: how many bytes it has."""


@dataclass(frozen=True)
class Preprocessed:
    """What became of one input.

    Attributes
    ----------
    start_ns, end_ns : int
        Monotonic clock.
    shape : tuple of int
        Of the tensor in its slot.
    """

    start_ns: int
    end_ns: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Failed:
    """Why nothing became of one.

    Attributes
    ----------
    text : str
    broken : bool
        The input is at fault.
    """

    text: str
    broken: bool


@dataclass(frozen=True)
class WorkerPlan:
    """How the workers preprocess.

    Attributes
    ----------
    modality, backend : str
    workers : int
    pool : Path
        Shared memory for the tensors.
    slot_floats : int
    hw_decoder_share : float
    visible_device : str or None
        The only CUDA device the workers see: an index, or the UUID of the MIG slice that preprocesses.
    cores : tuple of int
        Where the workers run; empty: anywhere.
    """

    modality: str
    backend: str
    workers: int
    pool: Path
    slot_floats: int
    hw_decoder_share: float = 0.65
    visible_device: str | None = None
    cores: tuple[int, ...] = ()


WORKER_NICE = 5
"""On cores that they share the front end goes first: it has little to do, and batches wait for it."""


def _work_for(plan: WorkerPlan, channel: socket.socket) -> None:
    """A worker process: answers one input after the other until its server closes the channel, or is gone."""
    from accel.executors import build_preprocessor

    os.nice(WORKER_NICE)
    if plan.cores:
        bind(plan.cores)
    os.setsid()  # its own process group, which the janitor can end; and a terminal's interrupt is for the server
    if plan.visible_device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = plan.visible_device
    preprocessor = build_preprocessor(plan.modality, plan.backend, threads=1, hw_decoder_share=plan.hw_decoder_share)
    pool = TensorPool(plan.pool, slot_floats=plan.slot_floats)
    with contextlib.suppress(ConnectionError), channel, channel.makefile("rb") as inputs:
        channel.sendall(ANSWER.pack(0))  # it can work
        while len(head := inputs.read(WORK.size)) == WORK.size:
            slot, count = WORK.unpack(head)
            content = inputs.read(count)
            if len(content) < count:
                return
            try:
                done = _preprocessed(plan, preprocessor, pool, content, slot)
            except Exception as error:  # whatever it is, its client hears of it and the next input is taken
                done = Failed(f"{type(error).__name__}: {error}", broken=False)
            answer = pickle.dumps(done)
            channel.sendall(ANSWER.pack(len(answer)) + answer)


def _preprocessed(
    plan: WorkerPlan, preprocessor: Preprocessor, pool: TensorPool, content: bytes, slot: int
) -> Preprocessed | Failed:
    start_ns = time.monotonic_ns()
    (tensor,) = preprocessor.preprocess([content])
    if isinstance(tensor, InputError):
        return Failed(str(tensor), broken=True)
    if tensor.size > pool.slot_floats:
        return Failed(f"the input is too long: {tensor.shape[-1]} frames do not fit", broken=True)
    shape = tuple(tensor.shape)
    if plan.modality == "audio":  # recordings of all lengths lie in slots of one shape, silence behind them
        wide = np.zeros((MEL_BINS, pool.slot_floats // MEL_BINS), dtype=np.float32)
        wide[:, : shape[1]] = tensor
        tensor = wide
    pool.write(slot, tensor)
    return Preprocessed(start_ns, time.monotonic_ns(), shape)


class Turns:
    """How many inputs are preprocessed at once, by all models together; who has to wait waits in order.

    Parameters
    ----------
    count : int
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Waits for a turn."""
        if self._free > 0:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Ends a turn: the next in line has it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class _LostError(Exception):
    """A worker process is gone."""


class _Worker:
    """One worker process, seen from the server."""

    def __init__(self, process: BaseProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def started(cls, plan: WorkerPlan) -> _Worker:
        """Starts one; does not wait until it can work, and once it is started, for nothing at all."""
        ours, theirs = socket.socketpair()
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            process = multiprocessing.get_context("spawn").Process(target=_work_for, args=(plan, theirs), daemon=True)
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, reader, writer)

    @property
    def gone(self) -> bool:
        """Whether it ended, as far as is known."""
        return self._reader.at_eof() or self._reader.exception() is not None

    async def answer(self) -> bytes:
        """The next thing it says: after its start nothing, then what became of an input.

        Raises
        ------
        _LostError
            It ended instead.
        """
        try:
            (count,) = ANSWER.unpack(await self._reader.readexactly(ANSWER.size))
            return await self._reader.readexactly(count)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _LostError from error

    async def work(self, content: bytes, slot: int) -> Preprocessed | Failed:
        """Has one input preprocessed into a slot."""
        self._writer.write(WORK.pack(slot, len(content)))
        self._writer.write(content)
        done: Preprocessed | Failed = pickle.loads(await self.answer())  # noqa: S301 - of a process started here
        return done

    def end(self) -> None:
        """Ends it, whatever it does."""
        self._writer.close()
        self.process.terminate()

    def reap(self) -> None:
        """Waits for its end."""
        self.process.join(END_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join(END_S)


class Workers:
    """The worker processes of one model.

    Parameters
    ----------
    plan : WorkerPlan
    turns : Turns
        Shared by all models of the server.
    tell : callable
        Tells the janitor which process groups to end should this process be killed.
    """

    def __init__(self, plan: WorkerPlan, turns: Turns, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self._turns = turns
        self._tell = tell
        self._all: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._closed = False

    async def start(self) -> None:
        """Starts all workers and waits until they can work.

        Raises
        ------
        ServerError
            A worker cannot be started, for example because its back end is not installed.
        """
        self._idle += await asyncio.gather(*(self._new() for _ in range(self.plan.workers)))

    async def _new(self) -> _Worker:
        worker = await _Worker.started(self.plan)
        self._all.add(worker)
        try:
            if self._closed:
                raise _LostError
            await worker.answer()
        except _LostError as error:
            await self._forget(worker)
            raise ServerError(
                f"preprocessing ({self.plan.modality}, {self.plan.backend}): its processes end at once; "
                "try `preba profile preprocessing` to see why"
            ) from error
        self._tell(f"+{worker.process.pid}")  # before, it would notice itself that its server is gone
        return worker

    async def _forget(self, worker: _Worker) -> None:
        """Ends a worker, elsewhere: a process may take its time to end, and the event loop has other things to do."""
        worker.end()
        await asyncio.to_thread(worker.reap)
        self._drop(worker)

    def _drop(self, worker: _Worker) -> None:
        self._all.discard(worker)
        self._tell(f"-{worker.process.pid}")

    async def _taken(self) -> _Worker:
        """A worker with nothing to do: who has a turn always finds one, unless one was lost."""
        while self._idle:
            worker = self._idle.pop()
            if not worker.gone:
                return worker
            await self._forget(worker)
        return await self._new()

    async def preprocess(self, content: bytes, slot: int) -> Preprocessed:
        """Preprocesses one input into a slot; once more, by another process, if one dies of it.

        Raises
        ------
        InputError
            The input is broken or too large.
        ServerError
            A worker died of it twice, or none can be started any more.
        """
        await self._turns.take()
        try:
            for _ in range(TRIES):
                try:
                    done = await _finished(asyncio.ensure_future(self._work(content, slot)))
                except _LostError:
                    continue
                if isinstance(done, Preprocessed):
                    return done
                raise InputError(done.text) if done.broken else ServerError(done.text)
        finally:
            self._turns.give_back()
        raise ServerError("a preprocessing process died of this input, twice")

    async def _work(self, content: bytes, slot: int) -> Preprocessed | Failed:
        worker = await self._taken()
        try:
            done = await worker.work(content, slot)
        except BaseException:
            await self._forget(worker)
            raise
        self._idle.append(worker)
        return done

    def close(self) -> None:
        """Ends the workers."""
        self._closed = True
        self._idle.clear()
        for worker in self._all:
            worker.end()
        for worker in tuple(self._all):
            worker.reap()
            self._drop(worker)


async def _finished(work: asyncio.Future[Preprocessed | Failed]) -> Preprocessed | Failed:
    """Waits for a worker, which cannot be interrupted and writes into its slot until it is done."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # nobody asks for it any more
        raise
