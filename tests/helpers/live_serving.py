"""Live servers for tests: started as a user starts them, driven by a client of the tests' own, stopped at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from runtime.janitor import SHARED_MEMORY

CODE = "from preba.cli.main import run; run()"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def needs_triton() -> None:
    """Skips a test where there is no Triton server."""
    pytest.importorskip("tritonclient.grpc")
    from preba.errors import PrebaError
    from runtime.triton.install import find_triton

    try:
        find_triton()
    except PrebaError as error:
        pytest.skip(str(error))


@dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen[str]
    grpc_port: int
    http_port: int
    folder: Path
    prefix: str

    def slice_processes(self) -> dict[str, int]:
        """Process ids of the slices' servers, by the name of their folder."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().decode().split("\0")
                    if words[0].endswith("tritonserver") and any(self.prefix in word for word in words):
                        repository = next(word for word in words if word.startswith("--model-repository="))
                        found[Path(repository.partition("=")[2]).parent.name] = int(entry.name)
        return found

    def triton_ports(self) -> list[int]:
        """GRPC ports of the slices' own servers."""
        ports = []
        for pid in self.slice_processes().values():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            ports += [int(word.partition("=")[2]) for word in words if word.startswith("--grpc-port=")]
        return ports

    def leftovers(self) -> list[str]:
        """Shared memory of this server that still exists."""
        return [path.name for path in SHARED_MEMORY.glob(f"{self.prefix}*")]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal, waits for the end; returns the exit status and what it printed."""
        self.process.send_signal(number)
        printed, _ = self.process.communicate(timeout=30)
        return self.process.returncode, printed


@contextlib.contextmanager
def running(folder: Path, scenario: dict[str, Any], *options: str) -> Iterator[Running]:
    """``preba serve`` on free ports, until the end of the block."""
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    ports = folder / "ports"
    ports.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "serve", str(path), "--grpc-port", "0", "--http-port", "0", "--ports-file",
         str(ports), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PREBA_TOKEN": ""},
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not ports.exists():
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise AssertionError(f"preba serve did not get ready: {process.communicate()[0]}")
            time.sleep(0.05)
        grpc_port, http_port = (int(word) for word in ports.read_text().split())
        yield Running(process, grpc_port, http_port, folder, f"preba-{process.pid}-")
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


@dataclass
class Played:
    """What became of requests that were sent."""

    latency_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    messages: set[str] = field(default_factory=set)
    answers: list[Any] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def goodput_rps(self) -> float:
        """Answers per second."""
        return len(self.latency_ms) / self.wall_s


def tensor_request(model: str, rows: Sequence[Sequence[float]] = ((0.0, 0.0, 0.0, 0.0),)) -> Any:
    """A request of plain rows."""
    from tritonclient.grpc import service_pb2 as pb

    values = np.array(rows, dtype=np.float32)
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT", datatype="FP32").shape[:] = values.shape
    request.raw_input_contents.append(values.tobytes())
    return request


def file_request(model: str, content: bytes) -> Any:
    """A request of one encoded file."""
    from tritonclient.grpc import service_pb2 as pb

    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT", datatype="BYTES").shape[:] = [1]
    request.raw_input_contents.append(len(content).to_bytes(4, "little") + content)
    return request


def send(
    port: int,
    requests: Sequence[Any],
    at_s: Sequence[float],
    *,
    timeout_s: float | None = None,
    metadata: Sequence[tuple[str, str]] = (),
    keep_answers: bool = False,
    during: Any = None,
    credentials: Any = None,
) -> Played:
    """Sends requests at their times, whatever became of earlier ones, and waits for all answers.

    ``during`` is called (in a thread) once half of the time has passed.
    """
    return asyncio.run(_send(port, requests, at_s, timeout_s, metadata, keep_answers, during, credentials))


async def _send(
    port: int, requests: Sequence[Any], at_s: Sequence[float], timeout_s: float | None, metadata: Any,
    keep_answers: bool, during: Any, credentials: Any,
) -> Played:  # fmt: skip
    from grpc import aio
    from tritonclient.grpc import service_pb2 as pb

    played = Played()
    address, options = (
        f"127.0.0.1:{port}",
        (("grpc.enable_http_proxy", 0), ("grpc.ssl_target_name_override", "localhost")),
    )
    channel = (
        aio.insecure_channel(address, options=options)
        if credentials is None
        else aio.secure_channel(address, credentials, options=options)
    )
    async with channel:
        call = channel.unary_unary(
            INFER,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        await channel.channel_ready()
        start = time.monotonic() + 0.05

        async def one(request: Any, due: float) -> None:
            try:
                answer = await call(request, timeout=timeout_s, metadata=tuple(metadata))
            except aio.AioRpcError as error:
                played.errors[error.code().name] += 1
                played.messages.add(error.details() or "")
                return
            played.latency_ms.append((time.monotonic() - due) * 1e3)
            if keep_answers:
                played.answers.append(answer)

        helper = None
        if during is not None:

            async def later() -> None:
                await asyncio.sleep(max(at_s) / 2)
                await asyncio.to_thread(during)

            helper = asyncio.create_task(later())
        tasks = []
        for request, at in zip(requests, at_s, strict=True):
            left = start + at - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(one(request, start + at)))
        await asyncio.gather(*tasks)
        played.wall_s = time.monotonic() - start
        if helper is not None:
            await helper
    return played


def poisson(rate_rps: float, duration_s: float, seed: int = 1) -> list[float]:
    """Arrival times."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate_rps, int(rate_rps * duration_s)))
    return [float(one) for one in times]


def stages(answer: Any) -> dict[str, int]:
    """The parameters of an answer as numbers."""
    return {name: value.int64_param for name, value in answer.parameters.items()}
