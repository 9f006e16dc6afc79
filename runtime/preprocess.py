"""Preprocessing in processes of its own, one core each, in front of the batcher. What it does is accel's.

A worker decodes one input at a time into a slot of shared memory and says when it started and ended. Inputs wait here,
oldest first, so that at most one is inside each worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preba.errors import InputError, ServerError
from runtime.cores import bind
from runtime.tensors import TensorPool

MEL_BINS = 80
TRIES = 2
NEWS_S = 1.0
"""After so long the processes of a new pool are there."""


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
_worker: dict[str, Any] = {}  # of a worker process: filled once, when it starts


def _begin(plan: WorkerPlan) -> None:
    from accel.executors import build_preprocessor

    os.nice(WORKER_NICE)
    if plan.cores:
        bind(plan.cores)
    os.setsid()  # its own process group, which the janitor can end; and a terminal's interrupt is for the server
    if plan.visible_device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = plan.visible_device
    _worker["bands"] = MEL_BINS if plan.modality == "audio" else 0
    _worker["preprocessor"] = build_preprocessor(
        plan.modality, plan.backend, threads=1, hw_decoder_share=plan.hw_decoder_share
    )
    _worker["pool"] = TensorPool(plan.pool, slot_floats=plan.slot_floats)


def _warm() -> int:
    return os.getpid()


def _work(content: bytes, slot: int) -> Preprocessed | str:
    start_ns = time.monotonic_ns()
    (tensor,) = _worker["preprocessor"].preprocess([content])
    if isinstance(tensor, InputError):
        return str(tensor)
    if tensor.size > _worker["pool"].slot_floats:
        return f"the input is too long: {tensor.shape[-1]} frames do not fit"
    shape = tuple(tensor.shape)
    if _worker["bands"]:  # recordings of all lengths lie in slots of one shape, silence behind them
        wide = np.zeros((shape[0], _worker["pool"].slot_floats // shape[0]), dtype=np.float32)
        wide[:, : shape[1]] = tensor
        tensor = wide
    _worker["pool"].write(slot, tensor)
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
        self._told: set[int] = set()
        self._executor = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.plan.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self.plan,),
        )

    async def start(self) -> None:
        """Starts all workers and waits until they can work.

        Raises
        ------
        ServerError
            A worker cannot be started, for example because its back end is not installed.
        """
        loop = asyncio.get_running_loop()
        try:
            await asyncio.gather(*(loop.run_in_executor(self._executor, _warm) for _ in range(self.plan.workers)))
        except BrokenProcessPool as error:
            raise ServerError(
                f"preprocessing ({self.plan.modality}, {self.plan.backend}): its processes end at once; "
                "try `preba profile preprocessing` to see why"
            ) from error
        self._tell_janitor()

    def _tell_janitor(self) -> None:
        """Each worker leads a process group of its own: of those that are new and those that are gone."""
        now = {process.pid for process in self._processes() if process.pid is not None}
        for pid in now - self._told:
            self._tell(f"+{pid}")
        for pid in self._told - now:
            self._tell(f"-{pid}")
        self._told = now

    def _processes(self) -> list[Any]:
        return list((self._executor._processes or {}).values())  # there is no public way to them

    async def preprocess(self, content: bytes, slot: int) -> Preprocessed:
        """Preprocesses one input into a slot; once more, in new processes, if a process dies of it or beside it.

        Raises
        ------
        InputError
            The input is broken or too large.
        ServerError
            A worker died of it twice.
        """
        await self._turns.take()
        try:
            for _ in range(TRIES):
                executor = self._executor
                try:
                    work = asyncio.get_running_loop().run_in_executor(executor, _work, content, slot)
                    done = await self._finished(work)
                except BrokenProcessPool:
                    self._replace(executor)
                    continue
                if isinstance(done, str):
                    raise InputError(done)
                return done
        finally:
            self._turns.give_back()
        raise ServerError("a preprocessing process died of this input, twice; the others have been started again")

    async def _finished(self, work: asyncio.Future[Preprocessed | str]) -> Preprocessed | str:
        """Waits for a worker, which cannot be interrupted and writes into its slot until it is done."""
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # nobody asks for it any more
            raise

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        """Puts new processes in the place of a pool that lost one; whoever finds it broken first does."""
        if broken is self._executor:
            broken.shutdown(wait=False, cancel_futures=True)
            self._executor = self._new()
            asyncio.get_running_loop().call_later(NEWS_S, self._tell_janitor)

    def close(self) -> None:
        """Ends the workers."""
        processes = self._processes()
        self._executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            with contextlib.suppress(ProcessLookupError, ValueError):
                process.terminate()
        for pid in self._told:
            self._tell(f"-{pid}")
