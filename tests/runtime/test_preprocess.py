"""Preprocessing workers by themselves: real processes, real pictures."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel.executors import build_preprocessor
from preba.errors import InputError, ServerError
from runtime.preprocess import Turns, WorkerPlan, Workers
from runtime.tensors import TensorPool
from tests.helpers.pictures_and_speech import jpeg, photographs

FLOATS = 3 * 224 * 224
SLOTS = 32
PATIENCE_S = 60
"""So long, and a promise counts as broken."""


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[TensorPool]:
    """Room for tensors, in a file."""
    made = TensorPool(tmp_path / "tensors", SLOTS, FLOATS)
    yield made
    made.remove()


def with_workers(
    pool: TensorPool,
    count: int,
    use: Callable[[Workers, list[str]], Awaitable[None]],
    *,
    backend: str = "cpu",
) -> list[str]:
    """Starts workers, uses and ends them; returns what the janitor was told."""
    told: list[str] = []

    async def go() -> None:
        plan = WorkerPlan("image", backend, count, pool.path, FLOATS)
        workers = Workers(plan, Turns(count), told.append)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await workers.start()
                await use(workers, told)
        finally:
            workers.close()

    asyncio.run(go())
    return told


def alive(told: list[str]) -> list[int]:
    """The workers that the janitor would end."""
    return [int(line[1:]) for line in told if line[0] == "+" and f"-{line[1:]}" not in told]


def slot_of(pool: TensorPool, slot: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What is in a slot."""
    return np.fromfile(pool.path, dtype=np.float32, count=FLOATS, offset=4 * slot * FLOATS)


def test_each_tensor_lies_in_its_slot_and_all_workers_work(pool: TensorPool) -> None:
    """Thirty-two pictures at once through two workers: each as one process would make it, two under way at a time."""
    pictures = list(photographs().values())
    contents = [pictures[k % len(pictures)] for k in range(SLOTS)]

    async def use(workers: Workers, told: list[str]) -> None:
        done = await asyncio.gather(*(workers.preprocess(content, slot) for slot, content in enumerate(contents)))
        starts, ends = ([getattr(one, name) for one in done] for name in ("start_ns", "end_ns"))
        under_way = [sum(a <= s < b for a, b in zip(starts, ends, strict=True)) for s in starts]
        assert max(under_way) == 2
        assert len(alive(told)) == 2

    told = with_workers(pool, 2, use)
    assert not alive(told)
    preprocessor = build_preprocessor("image", "cpu", threads=1)
    for slot, content in enumerate(contents):
        (tensor,) = preprocessor.preprocess([content])
        assert not isinstance(tensor, InputError)
        np.testing.assert_array_equal(slot_of(pool, slot), tensor.reshape(-1))


def test_inputs_are_taken_in_their_order(pool: TensorPool) -> None:
    """One worker: the oldest first."""
    picture = photographs()["coffee"]

    async def use(workers: Workers, _: list[str]) -> None:
        done = await asyncio.gather(*(workers.preprocess(picture, slot) for slot in range(12)))
        assert all(before.end_ns <= after.start_ns for before, after in itertools.pairwise(done))

    with_workers(pool, 1, use)


def test_workers_that_died_idle_are_replaced_unnoticed(pool: TensorPool) -> None:
    """All three killed: the next inputs are preprocessed by new ones, of which the janitor knows."""
    picture = photographs()["coffee"]

    async def use(workers: Workers, told: list[str]) -> None:
        before = alive(told)
        assert len(before) == 3
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.3)
        await workers.preprocess(picture, 0)
        await asyncio.gather(*(workers.preprocess(picture, slot) for slot in range(6)))
        assert not set(alive(told)) & set(before)
        assert 1 <= len(alive(told)) <= 3

    with_workers(pool, 3, use)


def test_a_worker_that_dies_at_work_costs_a_second_try_and_a_second_one_the_input(pool: TensorPool) -> None:
    """A worker is stopped, given an input and killed: another does it. If that dies as well, the input is at fault."""
    picture = photographs()["coffee"]
    noise = np.random.default_rng(1).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    takes_long = jpeg(Image.fromarray(noise), quality=90)

    async def killed(told: list[str], pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        while f"-{pid}" not in told:
            await asyncio.sleep(0.01)

    async def use(workers: Workers, told: list[str]) -> None:
        (first,) = alive(told)
        os.kill(first, signal.SIGSTOP)
        work = asyncio.ensure_future(workers.preprocess(picture, 0))
        await asyncio.sleep(0.1)
        await killed(told, first)
        assert (await work).shape == (3, 224, 224)

        (second,) = alive(told)
        os.kill(second, signal.SIGSTOP)
        work = asyncio.ensure_future(workers.preprocess(takes_long, 1))
        await asyncio.sleep(0.1)
        await killed(told, second)
        while not alive(told):
            await asyncio.sleep(0.001)
        (third,) = alive(told)
        os.kill(third, signal.SIGSTOP)
        await killed(told, third)
        with pytest.raises(ServerError, match="died of this input, twice"):
            await work
        assert (await workers.preprocess(picture, 2)).shape == (3, 224, 224)

    with_workers(pool, 1, use)


def test_errors_do_not_end_a_worker(pool: TensorPool) -> None:
    """A broken picture, and a slot that is none: each has its error, and the same process takes the next input."""
    picture = photographs()["coffee"]

    async def use(workers: Workers, told: list[str]) -> None:
        before = alive(told)
        with pytest.raises(InputError):
            await workers.preprocess(b"no picture", 0)
        with pytest.raises(InputError):
            await workers.preprocess(b"", 0)
        with pytest.raises(ServerError, match="Error: "):
            await workers.preprocess(picture, 10 * SLOTS)
        await workers.preprocess(picture, 0)
        assert alive(told) == before

    with_workers(pool, 1, use)


def test_cancelled_input_keeps_its_worker_until_it_is_done(pool: TensorPool) -> None:
    """Who waits in line leaves at once; who is being preprocessed leaves when nothing writes into its slot any more."""
    picture = photographs()["coffee"]

    async def use(workers: Workers, told: list[str]) -> None:
        (pid,) = alive(told)
        os.kill(pid, signal.SIGSTOP)
        works = [asyncio.ensure_future(workers.preprocess(picture, slot)) for slot in range(3)]
        await asyncio.sleep(0.05)
        works[1].cancel()
        works[0].cancel()
        await asyncio.sleep(0.05)
        assert [work.done() for work in works] == [False, True, False]
        os.kill(pid, signal.SIGCONT)
        assert (await works[2]).shape == (3, 224, 224)
        assert works[0].cancelled()
        assert slot_of(pool, 0).any()
        assert not slot_of(pool, 1).any()

    with_workers(pool, 1, use)


def test_large_input_for_a_worker_that_does_not_read_keeps_nobody(pool: TensorPool) -> None:
    """Eight megabytes do not fit into a socket: the event loop goes on meanwhile."""

    async def use(workers: Workers, told: list[str]) -> None:
        (pid,) = alive(told)
        os.kill(pid, signal.SIGSTOP)
        picture = photographs()["coffee"]
        comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)
        work = asyncio.ensure_future(workers.preprocess(picture[:2] + 128 * comment + picture[2:], 0))
        resumed = threading.Event()

        def resume() -> None:
            resumed.set()
            os.kill(pid, signal.SIGCONT)

        rescue = threading.Timer(5.0, resume)
        rescue.start()
        await asyncio.sleep(0.1)
        rescue.cancel()
        assert not resumed.is_set()
        assert not work.done()
        os.kill(pid, signal.SIGCONT)
        assert (await work).shape == (3, 224, 224)
        assert alive(told) == [pid]

    with_workers(pool, 1, use)


def test_back_end_that_cannot_start_is_told_so(pool: TensorPool) -> None:
    """The process ends at once; the error says what to try."""

    async def use(_workers: Workers, _told: list[str]) -> None:
        raise AssertionError

    with pytest.raises(ServerError, match="preba profile preprocessing"):
        with_workers(pool, 2, use, backend="none such")


def test_replacement_that_cannot_start_costs_its_input_and_nothing_else(
    pool: TensorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The back end is gone for a while: an error, and the turn is given back; then there is a worker again."""
    picture = photographs()["coffee"]

    async def use(workers: Workers, told: list[str]) -> None:
        plan = workers.plan
        os.kill(alive(told)[0], signal.SIGKILL)
        await asyncio.sleep(0.3)
        monkeypatch.setattr(workers, "plan", replace(plan, backend="none such"))
        with pytest.raises(ServerError, match="end at once"):
            await workers.preprocess(picture, 0)
        monkeypatch.setattr(workers, "plan", plan)
        assert (await workers.preprocess(picture, 0)).shape == (3, 224, 224)
        assert len(alive(told)) == 1

    with_workers(pool, 1, use)


@pytest.mark.parametrize("after_s", [0.0, 0.05])
def test_nothing_is_left_of_a_worker_that_was_starting_when_all_ended(pool: TensorPool, after_s: float) -> None:
    """Closed while a replacement starts: its input has an error, and no process remains."""
    picture = photographs()["coffee"]

    async def use(workers: Workers, told: list[str]) -> None:
        os.kill(alive(told)[0], signal.SIGKILL)
        await asyncio.sleep(0.3)
        work = asyncio.ensure_future(workers.preprocess(picture, 0))
        await asyncio.sleep(after_s)
        workers.close()
        with pytest.raises(ServerError):
            await work

    told = with_workers(pool, 1, use)
    assert not alive(told)
    assert not multiprocessing.active_children()


def test_cancelled_input_leaves_a_starting_worker_to_the_next(pool: TensorPool) -> None:
    """Nobody waits for the replacement any more when it is there: it takes the next input."""
    picture = photographs()["coffee"]

    async def use(workers: Workers, told: list[str]) -> None:
        os.kill(alive(told)[0], signal.SIGKILL)
        await asyncio.sleep(0.3)
        work = asyncio.ensure_future(workers.preprocess(picture, 0))
        await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.wait([work])
        (pid,) = alive(told)
        assert (await workers.preprocess(picture, 1)).shape == (3, 224, 224)
        assert alive(told) == [pid]

    with_workers(pool, 1, use)
