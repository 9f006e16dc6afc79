"""A slice at work: the Triton server behind it, kept alive, and the calls that execute batches. No batching here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import time
from collections.abc import Callable

import grpc
from tritonclient.grpc import service_pb2 as pb

from preba.errors import ServerError
from runtime.triton.server import TritonServer

LOGGER = logging.getLogger("preba.serve")
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 30.0
STEADY_S = 60.0
"""A server that lived this long is restarted without delay."""
_INFER = "/inference.GRPCInferenceService/ModelInfer"


class SliceLostError(Exception):
    """The slice's server went away, or did not answer in time, with a batch inside."""


class BatchFailedError(Exception):
    """The slice's server answered that it could not execute the batch."""


UNHEALTHY = "is not healthy"
"""Part of what Triton answers when the process of a Python model has died under it."""


class SliceServer:
    """One slice and the server process that executes on it.

    Parameters
    ----------
    index : int
        Of the slice in the scenario.
    name : str
    triton : TritonServer
    ready_timeout_s : float
    """

    def __init__(self, index: int, name: str, triton: TritonServer, ready_timeout_s: float) -> None:
        self.index = index
        self.name = name
        self.triton = triton
        self.ready_timeout_s = ready_timeout_s
        self.is_up = False
        self.restarts = 0
        self.on_up: Callable[[int], None] = lambda _: None
        self.on_down: Callable[[int], None] = lambda _: None
        self._call: grpc.aio.UnaryUnaryMultiCallable | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._in_flight: set[grpc.aio.UnaryUnaryCall] = set()

    async def start(self) -> None:
        """Starts the server and waits until it is ready.

        Raises
        ------
        ServerError
            It does not get ready.
        """
        await self._start_once()
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {self.name}")

    async def _start_once(self) -> None:
        await self.triton.start()
        await self.triton.ready(self.ready_timeout_s)
        self._call = self.triton.channel().unary_unary(
            _INFER,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        self.is_up = True
        self.on_up(self.index)

    async def _keep(self) -> None:
        """Restarts the server whenever it ends, later and later if it does not stay."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            began = time.monotonic()
            status = await self.triton.child.wait()
            LOGGER.warning("slice %s: its server (process %d) ended with %d; restarting", self.name,
                           self.triton.child.pid, status)  # fmt: skip
            self._down()
            await self.triton.stop()
            if time.monotonic() - began > STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            while not self.is_up:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
                self.restarts += 1
                try:
                    await self._start_once()
                except ServerError as error:
                    LOGGER.warning("slice %s: %s", self.name, error)
                    await self.triton.stop()
            LOGGER.warning("slice %s: is back", self.name)

    def _down(self) -> None:
        if self.is_up:
            self.is_up = False
            self._call = None
            self.on_down(self.index)
        for call in list(self._in_flight):
            call.cancel()

    async def execute(self, request: pb.ModelInferRequest, timeout_s: float) -> pb.ModelInferResponse:
        """Executes one batch.

        Raises
        ------
        SliceLostError
            The server is gone, or did not answer in ``timeout_s`` and has been ended.
        BatchFailedError
            It answered with an error.
        """
        if self._call is None:
            raise SliceLostError(f"slice {self.name} is not in service")
        call = self._call(request, timeout=timeout_s)
        self._in_flight.add(call)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            code, said = error.code(), error.details() or ""
            lost = code in (
                grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED
            )  # fmt: skip
            if lost or UNHEALTHY in said:
                # Its server may live on, with a broken connection or a dead model process: its keeper starts it anew.
                LOGGER.warning("slice %s: %s after at most %g s; ending its server", self.name, said, timeout_s)
                self.triton.child.kill()
                self._down()
                raise SliceLostError(f"slice {self.name}: {error.details()}") from error
            raise BatchFailedError(f"slice {self.name}: {error.details()}") from error
        except asyncio.CancelledError:
            if call.cancelled() and not self.is_up:
                raise SliceLostError(f"slice {self.name} was lost") from None
            raise
        finally:
            self._in_flight.discard(call)

    async def stop(self) -> None:
        """Stops the server for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self.is_up = False
        await self.triton.stop()


class NullSlice:
    """A slice without a server behind it that answers at once: what is left is the front end itself.

    Parameters
    ----------
    index : int
    name : str
    """

    def __init__(self, index: int, name: str) -> None:
        self.index = index
        self.name = name
        self.is_up = False
        self.restarts = 0
        self.on_up: Callable[[int], None] = lambda _: None
        self.on_down: Callable[[int], None] = lambda _: None
        self._batches = 0

    async def start(self) -> None:
        """Is ready at once."""
        self.is_up = True
        self.on_up(self.index)

    async def execute(self, request: pb.ModelInferRequest, timeout_s: float) -> pb.ModelInferResponse:  # noqa: ARG002 - as a real slice takes it
        """Answers with zeros."""
        units = request.inputs[0].shape[0]
        now_ns = time.monotonic_ns()
        response = pb.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name="OUTPUT", datatype="FP32", shape=[units, 1])
        response.outputs.add(name="PREBA", datatype="INT64", shape=[units, 5])
        response.raw_output_contents.append(bytes(4 * units))
        response.raw_output_contents.append(struct.pack("<5q", now_ns, now_ns, self._batches, 1, self.index) * units)
        self._batches += 1
        return response

    async def stop(self) -> None:
        """Nothing runs."""
        self.is_up = False


AnySlice = SliceServer | NullSlice
