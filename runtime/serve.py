"""A scenario as a live server: what is started for it, and in which order it is stopped again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc import aio

from preba.batchers import NoBatching
from preba.batching.triton_config import TritonBatcher
from preba.errors import MissingFileError, ServerError, UnsupportedError
from preba.preprocessing import CpuPreprocessing, DaliSharedPreprocessing, DaliSlicePreprocessing, NoPreprocessing
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.live import CpuSlices, EmulatedSlices
from preba.scenario.resolve import ResolvedModel, ResolvedScenario
from preba.serving import ServerModel, plan_servers
from runtime.decisions import DecisionLog
from runtime.envoy import Backend, Envoy, EnvoyPlan
from runtime.front_end import FrontEnd, ServedModel
from runtime.http_api import HttpApi
from runtime.kserve import Access, KServe
from runtime.preprocess import WorkerPlan, Workers
from runtime.processes import Workplace, free_ports
from runtime.slices import AnySlice, NullSlice, SliceServer
from runtime.tensors import TensorPool
from runtime.triton.install import TritonInstall, find_triton
from runtime.triton.repository import LENGTH_GRID_NS, EmulatedModel, OnnxModel, SliceModel, write_repository
from runtime.triton.server import TritonServer

IMAGE_SHAPE = (3, 224, 224)
MEL_BINS = 80
FRAME_NS = 10_000_000
MEBI = 1 << 20


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

    def credentials(self) -> grpc.ServerCredentials | None:
        """TLS, if a certificate is given.

        Raises
        ------
        MissingFileError
            One of the files is not there.
        """
        if self.certificate is None or self.key is None:
            return None
        contents = []
        for path in (self.key, self.certificate):
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise MissingFileError(f"{path}: cannot be read: {error.strerror}") from error
        return grpc.ssl_server_credentials([(contents[0], contents[1])])


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
        ``None`` behind Envoy, where every Triton server batches for itself.
    grpc_port, http_port : int
        Where it listens.
    """

    front_end: FrontEnd | None = None

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
        credentials = self.listen.credentials()
        install = find_triton()
        live = self.resolved.scenario.live
        self.workplace = self._stack.enter_context(Workplace())
        longest_ns = longest_audio_ns(self.resolved)
        native = is_native(self.resolved)
        self._stack.push_async_callback(self._stop_slices)
        served = []
        starting = []
        for model in self.resolved.models:
            servers = plan_servers(self.resolved, model, longest_ns[model.index])
            pool, workers = self._preprocessing(model, longest_ns[model.index])
            served.append(
                ServedModel(
                    name=model.config.name,
                    index=model.index,
                    modality=model.profile.modality,
                    servers=[replace(server, credits=1) for server in servers],
                    table_ns=slowest_table(self.resolved, model, servers, longest_ns[model.index]),
                    workers=workers,
                    uses_slots=pool is not None and not isinstance(live.slices, EmulatedSlices),
                )
            )
            if workers is not None:
                self._stack.callback(workers.close)
                starting.append(workers.start())
            for index in model.slice_indices:
                one = self._slice(install, model, servers, index, longest_ns[model.index], pool, native=native)
                self.slices[index] = one
                starting.append(one.start())
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
        await self._listen(self.front_end, credentials)

    async def _stop_slices(self) -> None:
        """Stops all slices at once."""
        await asyncio.gather(*(one.stop() for one in self.slices.values()))

    async def _balance(self) -> None:
        """Puts Envoy in front of servers that batch for themselves."""
        listen = self.listen
        backends = []
        for one in self.slices.values():
            if isinstance(one, NullSlice):
                raise UnsupportedError("scenario.live.slices.null: works with the front end only, not behind Envoy")
            backends.append(Backend(one.triton.grpc_port, one.triton.http_port))
        self.grpc_port = listen.grpc_port or free_ports(1)[0]
        self.http_port = listen.http_port or free_ports(1)[0]
        envoy = Envoy(
            self.workplace,
            EnvoyPlan(
                host=listen.host,
                port=self.grpc_port,
                admin_port=self.http_port,
                backends=backends,
                balancer=self.resolved.scenario.server.balancer,
                requests_max=self.resolved.scenario.live.requests_max,
                token=listen.access.token,
                certificate=listen.certificate,
                key=listen.key,
            ),
        )
        self._stack.push_async_callback(envoy.stop)
        await envoy.start()
        await envoy.ready(self.resolved.scenario.live.ready_timeout_s)

    async def _listen(self, front_end: FrontEnd, credentials: grpc.ServerCredentials | None) -> None:
        listen, live = self.listen, self.resolved.scenario.live
        server = aio.server(
            options=(
                ("grpc.max_receive_message_length", int(live.payload_max_mib * MEBI)),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            )
        )
        server.add_generic_rpc_handlers((KServe(front_end, listen.access),))
        address = f"{listen.host}:{listen.grpc_port}"
        try:
            if credentials is None:
                self.grpc_port = server.add_insecure_port(address)
            else:
                self.grpc_port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ServerError(f"{address}: cannot listen there; --grpc-port chooses another") from error
        await server.start()
        self._stack.push_async_callback(server.stop, 0.5)
        try:
            http = await HttpApi(front_end, listen.access).serve(listen.host, listen.http_port)
        except OSError as error:
            where = f"{listen.host}:{listen.http_port}"
            raise ServerError(
                f"{where}: cannot listen there ({error.strerror}); --http-port chooses another"
            ) from error
        self.http_port = int(http.sockets[0].getsockname()[1])
        self._stack.callback(http.close)

    async def drain(self) -> int:
        """Takes in nothing more and lets what is inside finish; returns how many requests were given up."""
        if self.front_end is None:
            return 0  # Triton finishes what is inside before it ends
        return await self.front_end.drain(self.resolved.scenario.live.drain_timeout_s)

    # -- preprocessing -----------------------------------------------------------------------------------------------

    def _preprocessing(self, model: ResolvedModel, longest_ns: int) -> tuple[TensorPool | None, Workers | None]:
        backend = preprocessing_backend(self.resolved)
        if backend == "none" or model.profile.modality == "tensor":
            return None, None
        live = self.resolved.scenario.live
        config = self.resolved.scenario.preprocessing
        floats = int(np.prod(IMAGE_SHAPE))
        if model.profile.modality == "audio":
            floats = MEL_BINS * (longest_ns // FRAME_NS + 10)
        pool = TensorPool.named(f"{self.workplace.prefix}tensors{model.index}", live.requests_max, floats)
        share = live.preprocessing.hw_decoder_share
        if share is None and isinstance(config, DaliSlicePreprocessing | DaliSharedPreprocessing):
            share = config.hw_decoder_share
        plan = WorkerPlan(
            modality=model.profile.modality,
            backend=backend,
            workers=worker_count(self.resolved),
            pool=pool.path,
            slot_floats=floats,
            hw_decoder_share=0.65 if share is None else share,
        )
        return pool, Workers(plan)

    # -- slices ------------------------------------------------------------------------------------------------------

    def _slice(
        self,
        install: TritonInstall,
        model: ResolvedModel,
        servers: Sequence[ServerModel],
        index: int,
        longest_ns: int,
        pool: TensorPool | None,
        *,
        native: bool,
    ) -> AnySlice:
        unit = self.resolved.slices[index]
        kind = self.resolved.scenario.live.slices
        if isinstance(kind, EmulatedSlices) and kind.null:
            return NullSlice(index, f"{index} ({unit.name})")
        batch_max = min(max(server.plan.batch_max for server in servers), model.profile.batch_max(unit.profile))
        name = f"slice{index}"
        batcher = model.config.batcher if native and isinstance(model.config.batcher, TritonBatcher) else None
        instances = batcher.instances_per_slice if batcher is not None else 1
        slice_model, environment = self._slice_model(model, index, batch_max, longest_ns, pool)
        if isinstance(slice_model, EmulatedModel):
            slice_model = replace(slice_model, instances=instances)
        repository = write_repository(
            self.workplace.folder / name, model.config.name, slice_model, batch_max=batch_max, instances=instances,
            batcher=batcher,
        )  # fmt: skip
        options = () if batcher is None or batcher.rate_limiter.mode == "off" else ("--rate-limit=execution_count",)
        triton = TritonServer(
            self.workplace, install, name, repository, [model.config.name], environment=environment, options=options,
            keeps_ports=native,
        )  # fmt: skip
        return SliceServer(index, f"{index} ({unit.name})", triton, self.resolved.scenario.live.ready_timeout_s)

    def _slice_model(
        self, model: ResolvedModel, index: int, batch_max: int, longest_ns: int, pool: TensorPool | None
    ) -> tuple[SliceModel, Mapping[str, str]]:
        kind = self.resolved.scenario.live.slices
        if isinstance(kind, EmulatedSlices):
            table = slice_table(self.resolved, model, index, batch_max, longest_ns)
            return EmulatedModel(table, model.profile.modality == "audio", index), {}
        if not isinstance(kind, CpuSlices):
            raise UnsupportedError(f"scenario.live.slices.kind: {kind.kind}: needs an NVIDIA GPU and its driver")
        onnx = Path(kind.onnx) if Path(kind.onnx).is_absolute() else self.resolved.folder / kind.onnx
        if not onnx.exists():
            raise MissingFileError(f"scenario.live.slices.onnx: {onnx}: no such file")
        shape = IMAGE_SHAPE if model.profile.modality != "audio" else (MEL_BINS, longest_ns // FRAME_NS)
        cores: tuple[int, ...] = ()
        if kind.pin:
            have = sorted(os.sched_getaffinity(0))
            cores = tuple(have[(index * kind.threads + place) % len(have)] for place in range(kind.threads))
        return OnnxModel(
            onnx=onnx.resolve(),
            shape=shape,
            threads=kind.threads,
            cores=cores,
            providers=("CPUExecutionProvider",),
            pool=pool.path if pool is not None else None,
            slot_floats=pool.slot_floats if pool is not None else 0,
            slice_index=index,
        ), {}


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


def is_native(resolved: ResolvedScenario) -> bool:
    """Whether every slice's Triton server batches for itself, behind Envoy: NVIDIA's flower demo.

    So it is where a balancer stands in front of one server per slice, nothing is preprocessed here and Triton has the
    policy. Everything else is the front end's.
    """
    scenario = resolved.scenario
    return (
        scenario.server.topology == "per_slice"
        and len(resolved.models) == 1
        and isinstance(resolved.models[0].config.batcher, TritonBatcher | NoBatching)
        and preprocessing_backend(resolved) == "none"
    )


def preprocessing_backend(resolved: ResolvedScenario) -> str:
    """Which back end preprocesses: the one ``live.preprocessing`` names, or what ``preprocessing.kind`` comes to.

    Raises
    ------
    UnsupportedError
        The scenario's preprocessor is not a part this machine can have.
    """
    named = resolved.scenario.live.preprocessing.backend
    if named != "auto":
        return named
    config = resolved.scenario.preprocessing
    if isinstance(config, NoPreprocessing):
        return "none"
    if isinstance(config, CpuPreprocessing):
        return "cpu"
    if isinstance(config, DaliSlicePreprocessing | DaliSharedPreprocessing):
        return "dali_gpu"
    raise UnsupportedError(
        f"scenario.preprocessing.kind: {config.kind}: a live server has no such card; say what stands in for it, for "
        "example --set live.preprocessing.backend=cpu"
    )


def worker_count(resolved: ResolvedScenario) -> int:
    """How many processes preprocess."""
    live = resolved.scenario.live.preprocessing
    if live.workers is not None:
        return live.workers
    here = len(os.sched_getaffinity(0))
    config = resolved.scenario.preprocessing
    return min(config.cores, here) if isinstance(config, CpuPreprocessing) else here


def longest_audio_ns(resolved: ResolvedScenario) -> list[int]:
    """Per model, the longest audio input of the scenario's own traffic; 0 for other modalities."""
    if all(model.profile.modality != "audio" for model in resolved.models):
        return [0] * len(resolved.models)
    trace = draw_scenario_trace(resolved)
    return [int(trace.audio_ns[trace.model_index == model.index].max(initial=0)) for model in resolved.models]


def slice_table(
    resolved: ResolvedScenario, model: ResolvedModel, index: int, batch_max: int, longest_ns: int
) -> list[list[int]]:
    """Execution times of one slice, by length (0.1 s steps) and batch."""
    edges = None
    if model.profile.modality == "audio":
        steps = -(-longest_ns // LENGTH_GRID_NS)
        edges = [min(max(step, 1) * LENGTH_GRID_NS, longest_ns) for step in range(steps + 1)]
    table = model.profile.table_ns([resolved.slices[index].profile], edges, batch_max, absent_ns=0)[0]
    return [[int(value) for value in row] for row in table]


def slowest_table(
    resolved: ResolvedScenario, model: ResolvedModel, servers: Sequence[ServerModel], longest_ns: int
) -> list[list[int]]:
    """The largest of the slices' times, entry by entry."""
    batch_max = max(server.plan.batch_max for server in servers)
    tables = [slice_table(resolved, model, index, batch_max, longest_ns) for index in model.slice_indices]
    return [[max(values) for values in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]
