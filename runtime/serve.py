"""A scenario as a live server: what is started for it, and in which order it is stopped again."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from preba.errors import MissingFileError, ServerError, UnsupportedError
from preba.scenario.live import EmulatedSlices
from preba.scenario.resolve import ResolvedScenario
from preba.serving import plan_servers
from runtime.access import Access
from runtime.calls import Service, allow_files, serve_calls
from runtime.cores import bound_to
from runtime.decisions import DecisionLog
from runtime.envoy import Envoy
from runtime.envoy_config import Backend, Door, ToSlices, ToSocket
from runtime.front_end import FrontEnd, ServedModel
from runtime.http_api import HttpApi
from runtime.kserve import KServe
from runtime.metrics import render
from runtime.native import SlicesBehindEnvoy
from runtime.placement import (
    is_native,
    longest_audio_ns,
    other_cores,
    place_preprocessing,
    place_slice,
    slowest_table,
    worker_count,
)
from runtime.preprocess import Turns
from runtime.processes import Workplace
from runtime.slices import AnySlice, NullSlice
from runtime.triton.install import find_triton

MEBI = 1 << 20
SPARE_CALLS = 512
"""Calls beyond the requests inside that are answered, if only with a refusal."""
STOP_S = 0.5


@dataclass(frozen=True)
class Listen:
    """Where and how the server listens.

    Attributes
    ----------
    host : str
    grpc_port, http_port : int
        0: any free one.
    access : Access
    certificate, key : Path or None
        PEM files; both or neither.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    access: Access = field(default_factory=Access)
    certificate: Path | None = None
    key: Path | None = None

    def address(self) -> str:
        """The host as an IP address, IPv4 where it has one.

        Raises
        ------
        ServerError
            Nobody knows the host.
        """
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ServerError(f"--host {self.host}: {error.strerror}") from error
        return str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])

    def check_free(self) -> None:
        """Tries both addresses, before anything is started for them.

        Raises
        ------
        ServerError
            Somebody listens there already, or nobody may.
        """
        address = self.address()
        for port, option in ((self.grpc_port, "--grpc-port"), (self.http_port, "--http-port")):
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address, port))
                except OSError as error:
                    raise ServerError(
                        f"{self.host}:{port}: cannot listen there ({error.strerror}); {option} chooses another"
                    ) from error

    def tls(self) -> ssl.SSLContext | None:
        """TLS, if a certificate is given.

        Raises
        ------
        MissingFileError
            One of the files cannot be read.
        ServerError
            They are no certificate and its key.
        """
        if self.certificate is None or self.key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        for path in (self.certificate, self.key):
            try:
                path.read_bytes()
            except OSError as error:
                raise MissingFileError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            context.load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:
            raise ServerError(
                f"{self.certificate}, {self.key}: are no certificate and its key ({error.reason or error})"
            ) from error
        return context


class LiveServer:
    """Everything that serves one scenario; an asynchronous context.

    Parameters
    ----------
    resolved : ResolvedScenario
    listen : Listen
    decisions : Path, optional
        Log every input of the batchers and every decision there.

    Attributes
    ----------
    front_end : FrontEnd or None
        ``None`` where every Triton server batches for itself.
    grpc_port, http_port : int
        Where it listens.
    """

    front_end: FrontEnd | None = None
    _envoy: Envoy | None = None
    _tls: ssl.SSLContext | None = None

    def __init__(self, resolved: ResolvedScenario, listen: Listen, *, decisions: Path | None = None) -> None:
        self.resolved = resolved
        self.listen = listen
        self.decisions = decisions
        self.grpc_port = self.http_port = 0
        self.slices: dict[int, AnySlice] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> LiveServer:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        self.listen.check_free()
        allow_files(self.resolved.scenario.live.requests_max + SPARE_CALLS)
        self._tls = self.listen.tls()
        if self.resolved.scenario.events:
            event = self.resolved.scenario.events[0]
            raise UnsupportedError(
                f"scenario.events[0]: {event.kind}: a live server makes no events of its own; end a slice's process, "
                "or leave the events out"
            )
        install = find_triton()
        live = self.resolved.scenario.live
        self.workplace = self._stack.enter_context(Workplace())
        longest_ns = longest_audio_ns(self.resolved)
        native = is_native(self.resolved)
        if native and self.decisions is not None:
            raise UnsupportedError("--decisions: Triton batches here and logs none; live.batching: front_end does")
        self._stack.push_async_callback(self._stop_slices)
        served = []
        starting = []
        turns = Turns(worker_count(self.resolved))
        for model in self.resolved.models:
            servers = plan_servers(self.resolved, model, longest_ns[model.index])
            pool, workers = place_preprocessing(self.resolved, self.workplace, model, longest_ns[model.index], turns)
            served.append(
                ServedModel(
                    name=model.config.name,
                    index=model.index,
                    modality=model.profile.modality,
                    servers=[replace(server, credits=1) for server in servers],
                    table_ns=slowest_table(self.resolved, model, servers, longest_ns[model.index]),
                    workers=workers,
                    uses_slots=pool is not None and not isinstance(live.slices, EmulatedSlices),
                    files=pool if workers is None else None,
                )
            )
            if workers is not None:
                self._stack.callback(workers.close)
                starting.append(workers.start())
            together = native and self.resolved.scenario.server.topology == "central"
            for index in model.slice_indices[:1] if together else model.slice_indices:
                one = place_slice(
                    self.resolved, self.workplace, install, model, servers, index, longest_ns[model.index], pool,
                    native=native, instances_of_all=len(model.slice_indices) if together else 0,
                )  # fmt: skip
                self.slices[index] = one
                starting.append(one.start())
        self._stack.enter_context(bound_to(other_cores(self.resolved)))  # of this process and of those it starts
        await _all(starting)
        if native:
            await self._balance()
            return
        log = None
        if self.decisions is not None:
            log = DecisionLog(self.decisions)
            self._stack.callback(log.close)
        scenario = self.resolved.scenario
        self.front_end = FrontEnd(
            served,
            self.slices,
            balancer=scenario.server.balancer,
            requests_max=live.requests_max,
            retry=scenario.server.on_slice_loss == "retry",
            log=log,
            random=np.random.default_rng(scenario.seed).random,
        )
        self._stack.callback(self.front_end.close)
        await self._listen(self.front_end)

    async def _stop_slices(self) -> None:
        """Stops all slices at once."""
        await asyncio.gather(*(one.stop() for one in self.slices.values()))

    async def _balance(self) -> None:
        """Puts Envoy in front of servers that batch for themselves."""
        backends = []
        for one in self.slices.values():
            if isinstance(one, NullSlice):
                raise UnsupportedError(
                    "scenario.live.slices.null: works with the front end only, not where Triton batches"
                )
            backends.append(Backend(one.triton.grpc_port, one.triton.http_port))
        scenario = self.resolved.scenario
        way = ToSlices(
            backends=backends,
            balancer=scenario.server.balancer,
            token=self.listen.access.token,
            message_bytes_max=int(scenario.live.payload_max_mib * MEBI),
            retry=scenario.server.on_slice_loss == "retry",
        )
        envoy = await self._open(way, scenario.live.requests_max)
        behind = SlicesBehindEnvoy(self.slices)
        await self._listen_http(
            HttpApi(lambda: behind.ready and envoy.child.running, behind.metrics, self.listen.access)
        )

    async def _open(self, way: ToSlices | ToSocket, requests_max: int) -> Envoy:
        """Starts what clients connect to; it is stopped when everything is."""
        listen = self.listen
        door = Door(
            listen.address(), listen.grpc_port, requests_max, requests_max + SPARE_CALLS, listen.certificate, listen.key
        )
        envoy = self._envoy = Envoy(self.workplace, door, way)
        self._stack.push_async_callback(envoy.stop)
        await envoy.start()
        await envoy.ready(self.resolved.scenario.live.ready_timeout_s)
        self.grpc_port = envoy.door.port
        return envoy

    async def _listen(self, front_end: FrontEnd) -> None:
        live = self.resolved.scenario.live
        path = self.workplace.folder / "front-end"
        calls_max = live.requests_max + SPARE_CALLS
        service = Service(KServe(front_end).methods(), self.listen.access, int(live.payload_max_mib * MEBI))
        calls = await serve_calls(path, service, calls_max)
        self._stack.callback(calls.close)
        envoy = await self._open(ToSocket(path), calls_max)
        await self._listen_http(
            HttpApi(lambda: front_end.ready and envoy.child.running, lambda: _rendered(front_end), self.listen.access)
        )

    async def _listen_http(self, api: HttpApi) -> None:
        listen = self.listen
        try:
            http = await api.serve(listen.host, listen.http_port, self._tls)
        except OSError as error:
            where = f"{listen.host}:{listen.http_port}"
            raise ServerError(
                f"{where}: cannot listen there ({error.strerror}); --http-port chooses another"
            ) from error
        self.http_port = int(http.sockets[0].getsockname()[1])
        self._stack.callback(http.close)

    async def drain(self) -> int:
        """Takes in nothing more and lets what is inside finish; returns how many requests were given up."""
        timeout_s = self.resolved.scenario.live.drain_timeout_s
        if self.front_end is None:
            return 0 if self._envoy is None else await self._envoy.drain(timeout_s)
        given_up = await self.front_end.drain(timeout_s)
        if self._envoy is not None:
            await self._envoy.drain(STOP_S)  # the last answers leave
        return given_up


async def _rendered(front_end: FrontEnd) -> bytes:
    return render(front_end)


async def _all(starting: Sequence[Any]) -> None:
    """Runs coroutines at once; the first error ends the others and is raised."""
    tasks = [asyncio.ensure_future(one) for one in starting]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
