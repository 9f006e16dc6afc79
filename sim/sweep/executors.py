"""The executors a sweep can be run on by name: threads, processes, a Dask cluster. In Python any other will do."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from preba.errors import MissingExtraError, UnsupportedError, nearest
from sim.sweep.point import warm_up

DASK_TIMEOUT_S = 5.0


@contextmanager
def executor_named(name: str, *, workers: int | None, engine: str) -> Iterator[tuple[Executor, int]]:
    """An executor by its name on the command line, for as long as the context lasts.

    Parameters
    ----------
    name : str
        ``threads``, ``processes`` or ``dask://HOST:PORT``.
    workers : int or None
        Runs at once; as many as there are cores. A cluster knows its own.
    engine : str
        What worker processes load before their first run.

    Yields
    ------
    tuple of Executor and int
        And how many runs it does at once.

    Raises
    ------
    UnsupportedError
        There is no such executor, or nobody answers at the address.
    MissingExtraError
        Dask is not installed.
    """
    count = workers or os.cpu_count() or 1
    if name == "threads":
        with ThreadPoolExecutor(count) as threads:
            yield threads, count
    elif name == "processes":
        # Fresh processes, because a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context, initializer=warm_up, initargs=(engine,)) as processes:
            yield processes, count
    elif name.startswith("dask://"):
        with _dask(name.removeprefix("dask://")) as found:
            yield found
    else:
        known = ["threads", "processes", "dask://HOST:PORT"]
        raise UnsupportedError(f"--executor: {name!r} is none of {', '.join(known)}{nearest(name, known)}")


@contextmanager
def _dask(address: str) -> Iterator[tuple[Executor, int]]:
    """A Dask cluster's workers behind the interface of an executor."""
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingExtraError(
            "--executor dask: needs the extra dask: pip install 'preba[dask]' (here and on the workers)"
        ) from error
    try:
        client = Client(f"tcp://{address}", timeout=DASK_TIMEOUT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UnsupportedError(
            f"--executor dask://{address}: no scheduler answers there within {DASK_TIMEOUT_S:g} s; start one with "
            "'dask scheduler' and workers with 'dask worker'"
        ) from error
    try:
        threads = sum(client.nthreads().values())
        if threads == 0:
            raise UnsupportedError(f"--executor dask://{address}: the scheduler has no workers")
        yield client.get_executor(), threads
    finally:
        client.close()
