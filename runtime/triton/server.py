"""One Triton server process: started, asked until it is ready, stopped. No requests are sent from here."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as services

from preba.errors import ServerError
from runtime.janitor import remove_shared_memory
from runtime.processes import Child, Workplace, free_ports
from runtime.triton.install import TritonInstall

EXIT_TIMEOUT_S = 1
ASK_EVERY_S = 0.05
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Calls to the loopback must not go through a proxy somebody configured for the Internet.
    ("grpc.enable_http_proxy", 0),
)

LOG_LINE = re.compile(r"[IWE]\d{4} ")
ERROR_LINE = re.compile(r"E\d{4} |error: creating server: (?!Internal - failed to load all models)")
COMPLAINTS = 6


class TritonServer:
    """One server process on the loopback interface.

    Parameters
    ----------
    workplace : Workplace
    install : TritonInstall
    name : str
        Of this server, unique in the workplace.
    repository : Path
        Model repository.
    models : sequence of str
        Models that must be ready.
    environment : mapping, optional
        Further environment variables (``CUDA_VISIBLE_DEVICES``).
    options : sequence of str
        Further command line options.
    keeps_ports : bool
        Start again on the same ports, because somebody else knows them.
    """

    def __init__(
        self,
        workplace: Workplace,
        install: TritonInstall,
        name: str,
        repository: Path,
        models: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        keeps_ports: bool = False,
    ) -> None:
        self.workplace = workplace
        self.install = install
        self.name = name
        self.repository = repository
        self.models = tuple(models)
        self.more_environment = dict(environment or {})
        self.options = tuple(options)
        self.keeps_ports = keeps_ports
        self.child = Child(workplace, name)
        self.http_port = self.grpc_port = self.metrics_port = 0
        self._channel: aio.Channel | None = None

    @property
    def url(self) -> str:
        """Where its gRPC service is."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def shared_memory_prefix(self) -> str:
        """First part of the name of its shared memory."""
        return f"{self.workplace.prefix}{self.name}-"

    def command(self) -> list[str]:
        """The command line."""
        backends = self.install.backends(self.workplace.folder)
        return [
            str(self.install.binary),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
            "--http-address=127.0.0.1", f"--http-port={self.http_port}",
            "--grpc-address=127.0.0.1", f"--grpc-port={self.grpc_port}",
            "--metrics-address=127.0.0.1", f"--metrics-port={self.metrics_port}",
            "--reuse-grpc-port=false", "--disable-auto-complete-config", "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            *self.options,
        ]  # fmt: skip

    async def start(self) -> None:
        """Starts the process on ports that are free now."""
        if self.grpc_port == 0 or not self.keeps_ports:
            self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        await self.child.start(self.command(), self.install.environment(self.more_environment))

    async def ready(self, timeout_s: float) -> None:
        """Waits until all models can be served.

        Raises
        ------
        ServerError
            It ended, or was not ready in time; with the end of its log.
        """
        until = time.monotonic() + timeout_s
        while not await self.is_ready():
            if not self.child.running:
                raise ServerError(f"{self.name}: Triton ended before it was ready:\n{self._complaints()}")
            if time.monotonic() > until:
                self.child.kill()
                raise ServerError(
                    f"{self.name}: Triton was not ready within {timeout_s:g} s (live.ready_timeout_s):\n"
                    f"{self._complaints()}"
                )
            await asyncio.sleep(ASK_EVERY_S)

    def _complaints(self) -> str:
        """The errors of its log, each once, or its end if it has none; tables are left out."""
        lines = [line for line in self.child.log_lines() if not line.lstrip().startswith(("|", "+"))]
        found: dict[str, str] = {}
        for place, line in enumerate(lines):
            if ERROR_LINE.match(line) and "CudaDriverHelper" not in line:
                text = line.partition("] ")[2] or line
                # The Python backend prints the exception's own lines after the first.
                inner = [more for more in lines[place + 1 : place + 12] if more.strip() and not LOG_LINE.match(more)]
                found.setdefault(text, "\n".join([text, *inner]))
        shown = list(found.values())[:COMPLAINTS] or lines[-COMPLAINTS:]
        return "\n".join(f"    {line}" for text in shown for line in text.splitlines())

    async def is_ready(self, timeout_s: float = 1.0) -> bool:
        """Whether it says that all its models are ready."""
        stub = services.GRPCInferenceServiceStub(self.channel())
        try:
            for model in self.models:
                answer = await stub.ModelReady(pb.ModelReadyRequest(name=model), timeout=timeout_s)
                if not answer.ready:
                    return False
        except grpc.RpcError:
            return False
        return True

    def channel(self) -> aio.Channel:
        """The channel to it, opened on first use."""
        if self._channel is None:
            self._channel = aio.insecure_channel(self.url, options=CHANNEL_OPTIONS)
        return self._channel

    async def close_channel(self) -> None:
        """Closes the channel, so that the next one goes to where the server is then."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def stop(self) -> None:
        """Stops the process and removes what it left in shared memory."""
        await self.close_channel()
        await self.child.stop(EXIT_TIMEOUT_S + 3.0)
        remove_shared_memory(self.shared_memory_prefix)
