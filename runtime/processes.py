"""Processes the live server starts: each in a group of its own, its output in a file, known to the janitor.

``Workplace`` is the folder, the name of the shared memory and the janitor of one run; ``Child`` is one process in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from preba.errors import ServerError
from runtime import janitor

TAIL_LINES = 15


class Workplace:
    """The temporary folder and shared memory of one live run, removed when it ends however it ends.

    Attributes
    ----------
    folder : Path
    prefix : str
        First part of the name of all its shared memory.
    """

    def __init__(self) -> None:
        self.prefix = f"preba-{os.getpid()}-{secrets.token_hex(4)}-"
        self.folder = Path(tempfile.mkdtemp(prefix="preba-"))
        self._janitor = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-S", "-E", janitor.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        self.tell(f"shm {self.prefix}")
        self.tell(f"dir {self.folder}")

    def tell(self, line: str) -> None:
        """Tells the janitor something."""
        if self._janitor.stdin is not None and not self._janitor.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._janitor.stdin.write(f"{line}\n")
                self._janitor.stdin.flush()

    def __enter__(self) -> Workplace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._janitor.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._janitor.stdin.close()
        self._janitor.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Child:
    """One process and all it starts.

    Parameters
    ----------
    workplace : Workplace
    name : str
        For messages and the log's file name.
    """

    def __init__(self, workplace: Workplace, name: str) -> None:
        self.workplace = workplace
        self.name = name
        self.log_path = workplace.folder / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the process; its output is appended to the log.

        Raises
        ------
        ServerError
            There is no such program, or it may not be executed.
        """
        with self.log_path.open("ab") as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, cwd=self.workplace.folder,
                )  # fmt: skip
            except OSError as error:
                raise ServerError(f"{self.name}: {command[0]} cannot be started: {error.strerror}") from error
        self.workplace.tell(f"+{self._process.pid}")

    @property
    def pid(self) -> int:
        """Process (and group) id."""
        if self._process is None:
            raise ServerError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    async def wait(self) -> int:
        """Waits until the process ends; returns its exit status, negative for a signal."""
        if self._process is None:
            return 0
        status = await self._process.wait()
        janitor.end_group(self._process.pid)  # what it started ends with it
        self.workplace.tell(f"-{self._process.pid}")
        return status

    async def stop(self, grace_s: float) -> None:
        """Asks the process to end, and ends it if it does not within ``grace_s``."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            self.kill()
        await self.wait()

    def kill(self) -> None:
        """Ends the process and all it started at once."""
        if self._process is not None and self._process.returncode is None:
            janitor.end_group(self._process.pid)

    def log_lines(self) -> list[str]:
        """What it has printed so far."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def log_tail(self) -> str:
        """The last lines of its output, indented, for an error message."""
        return "\n".join(f"    {line}" for line in self.log_lines()[-TAIL_LINES:])


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, kept from being given to anybody else for a while.

    A connection to each one is closed from its side. Until the kernel forgets that (60 s), it gives the port to no
    client and to no server that asks for any port; a server that asks for this one gets it (``SO_REUSEADDR``, which
    Triton sets). Without this the port could be taken while Triton loads its models.
    """
    with contextlib.ExitStack() as stack:
        return [_reserved_port(stack.enter_context(socket.socket())) for _ in range(count)]


def _reserved_port(listener: socket.socket) -> int:
    """Any free port, with a connection to it that waits to be forgotten."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    with socket.create_connection(listener.getsockname()):
        listener.accept()[0].close()
    return int(listener.getsockname()[1])
