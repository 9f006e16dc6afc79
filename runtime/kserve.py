"""The KServe v2 service over gRPC, as tritonclient and perf_analyzer speak it. Messages in, ``FrontEnd`` calls out."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2

from preba import __version__
from runtime.calls import Call, Method
from runtime.errors import RequestError
from runtime.front_end import FrontEnd, ServedModel, Ticket
from runtime.triton.models.mark import MARK

SERVICE = "inference.GRPCInferenceService"
VERSION = "1"
EXTENSIONS = ("statistics", "model_configuration")
STAGES = (
    "received_ns", "preprocess_start_ns", "preprocess_end_ns", "preprocess_wait_ns", "enqueued_ns", "dispatched_ns",
    "execution_start_ns", "execution_end_ns", "slice_preprocess_ns", "server_index", "slice_index", "batch_id",
    "batch_size", "batch_units", "attempts",
)  # fmt: skip
"""Fields of a ticket that go back with the answer, as parameters of the same name."""
LONGEST_NS = 3_600_000_000_000
LARGEST_FACTOR = 100.0
"""What clients may claim; both lengthen how long a slice is waited for."""
TENSOR_FLOATS = 4
"""Elements of a request's INPUT where nothing is preprocessed."""


class KServe:
    """Answers the calls of the service.

    Parameters
    ----------
    front_end : FrontEnd
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end

    def methods(self) -> dict[str, Method]:
        """What can be called, by path."""
        at_once: dict[str, Callable[[Any], Any]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }
        handlers = {name: _answered(action) for name, action in at_once.items()} | {"ModelInfer": self._infer}
        return {
            f"/{SERVICE}/{name}": Method(getattr(service_pb2, f"{name}Request").FromString, handle)
            for name, handle in handlers.items()
        }

    def _known(self, name: str) -> ServedModel:
        model = self._front_end.models.get(name)
        if model is None:
            known = ", ".join(self._front_end.models)
            raise RequestError("NOT_FOUND", f"unknown model {name!r}; known: {known}")
        return model

    # -- what is there -----------------------------------------------------------------------------------------------

    def _server_live(self, _: Any) -> Any:  # noqa: ANN401 - messages
        return service_pb2.ServerLiveResponse(live=True)

    def _server_ready(self, _: Any) -> Any:  # noqa: ANN401 - messages
        return service_pb2.ServerReadyResponse(ready=self._front_end.ready)

    def _model_ready(self, request: Any) -> Any:  # noqa: ANN401 - messages
        self._known(request.name)
        return service_pb2.ModelReadyResponse(ready=self._front_end.model_ready(request.name))

    def _server_metadata(self, _: Any) -> Any:  # noqa: ANN401 - messages
        return service_pb2.ServerMetadataResponse(name="preba", version=__version__, extensions=EXTENSIONS)

    def _model_metadata(self, request: Any) -> Any:  # noqa: ANN401 - messages
        model = self._known(request.name)
        answer = service_pb2.ModelMetadataResponse(name=model.name, versions=[VERSION], platform="preba")
        datatype, shape = ("BYTES", [1]) if model.takes_files else ("FP32", [-1, TENSOR_FLOATS])
        answer.inputs.add(name="INPUT", datatype=datatype, shape=shape)
        answer.outputs.add(name="OUTPUT", datatype="FP32", shape=[-1, -1])
        return answer

    def _model_config(self, request: Any) -> Any:  # noqa: ANN401 - messages
        model = self._known(request.name)
        config = model_config_pb2.ModelConfig(name=model.name, platform="preba")
        if model.takes_files:
            config.input.add(name="INPUT", data_type=model_config_pb2.TYPE_STRING, dims=[1])
        else:
            config.max_batch_size = max(server.plan.batch_max for server in model.servers)
            config.input.add(name="INPUT", data_type=model_config_pb2.TYPE_FP32, dims=[TENSOR_FLOATS])
        config.output.add(name="OUTPUT", data_type=model_config_pb2.TYPE_FP32, dims=[-1])
        return service_pb2.ModelConfigResponse(config=config)

    def _repository_index(self, _: Any) -> Any:  # noqa: ANN401 - messages
        answer = service_pb2.RepositoryIndexResponse()
        for name in self._front_end.models:
            state = "READY" if self._front_end.model_ready(name) else "UNAVAILABLE"
            answer.models.add(name=name, version=VERSION, state=state)
        return answer

    def _model_statistics(self, request: Any) -> Any:  # noqa: ANN401 - messages
        names = [request.name] if request.name else list(self._front_end.models)
        answer = service_pb2.ModelStatisticsResponse()
        for name in names:
            model = self._known(name)
            counters = model.counters
            entry = answer.model_stats.add(
                name=name, version=VERSION, inference_count=counters.inferences, execution_count=counters.executions
            )
            stats = entry.inference_stats
            for message, total_ns in (
                (stats.success, counters.request_ns),
                (stats.queue, counters.queue_ns),
                (stats.compute_infer, counters.compute_ns),
                (stats.compute_input, counters.preprocess_ns),
            ):
                message.count, message.ns = counters.success, total_ns
            stats.compute_output.count = counters.success
            stats.fail.count = sum(counters.failures.values())
            for size, batch in sorted(counters.batches.items()):
                row = entry.batch_stats.add(batch_size=size)
                row.compute_infer.count, row.compute_infer.ns = batch.count, batch.execution_ns
                row.compute_input.count = row.compute_output.count = batch.count
        return answer

    # -- inference ---------------------------------------------------------------------------------------------------

    def _infer(self, request: Any, call: Call) -> None:  # noqa: ANN401 - a message
        received_ns = time.monotonic_ns()
        request_id = request.id  # not the whole message, for as long as the answer takes
        ticket = self._ticket(request, received_ns, lambda ticket: _reply(call, ticket, request_id))
        call.cancelled = lambda: self._front_end.abandon(ticket)
        self._front_end.submit(ticket)

    def _ticket(self, request: Any, received_ns: int, done: Callable[[Ticket], None]) -> Ticket:  # noqa: ANN401 - a message
        model = self._known(request.model_name)
        given = request.parameters
        audio_ns = given["audio_ns"].int64_param if "audio_ns" in given else 0
        factor = given["execution_factor"].double_param if "execution_factor" in given else 1.0
        if not 0 <= audio_ns <= LONGEST_NS:
            _refuse(f"audio_ns must be from 0 to {LONGEST_NS}, got {audio_ns}")
        if not 0 <= factor <= LARGEST_FACTOR:
            _refuse(f"execution_factor must be from 0 to {LARGEST_FACTOR:g}, got {factor}")
        rows, content = None, None
        if len(request.inputs) != 1 or request.inputs[0].name != "INPUT":
            _refuse(f"model {model.name!r} takes one input named INPUT")
        if model.takes_files:
            content = _one_file(request)
        elif request.inputs[0].datatype == "FP32":
            rows = _rows(request)
            if rows[0][3] == MARK:
                audio_ns = audio_ns or round(float(rows[0][0]) * 1e9)
                factor = float(rows[0][1])
            limit = min(min(server.plan.batch_max, *server.consumer_batch_max) for server in model.servers)
            if len(rows) > limit:
                _refuse(f"a batch of {len(rows)} does not fit model {model.name!r}, which takes up to {limit}")
        else:
            _one_file(request)  # nothing is preprocessed: only its length counts, which comes as a parameter
        return Ticket(
            model,
            done,
            content=content,
            rows=rows,
            audio_ns=audio_ns,
            factor=factor,
            units=1 if rows is None else len(rows),
            priority=given["priority"].int64_param or given["priority"].uint64_param if "priority" in given else 0,
            timeout_ns=given["timeout"].int64_param * 1000 if "timeout" in given else 0,
            received_ns=received_ns,
        )


def _answered(action: Callable[[Any], Any]) -> Callable[[Any, Call], None]:
    """A handler that answers at once."""
    return lambda request, call: call.answer(action(request))


def _reply(call: Call, ticket: Ticket, request_id: str) -> None:
    """Sends what became of a request."""
    if ticket.abandoned:
        return
    if ticket.error is not None:
        call.fail(ticket.error)
        return
    response = service_pb2.ModelInferResponse(model_name=ticket.model.name, model_version=VERSION, id=request_id)
    output = response.outputs.add(name="OUTPUT", datatype="FP32")
    output.shape[:] = ticket.output_shape
    response.raw_output_contents.append(ticket.output)
    parameters = response.parameters
    for name in STAGES:
        value = getattr(ticket, name)
        if value > 0 or not name.endswith("_ns"):
            parameters[name].int64_param = value
    parameters["sent_ns"].int64_param = time.monotonic_ns()
    call.answer(response)


def _refuse(message: str) -> NoReturn:
    raise RequestError("INVALID_ARGUMENT", message)


def _one_file(request: Any) -> bytes:  # noqa: ANN401 - a message
    """The one encoded file of a request."""
    tensor = request.inputs[0]
    if tensor.datatype != "BYTES":
        _refuse(f"INPUT must be BYTES (one encoded image or WAV file), got {tensor.datatype}")
    if int(np.prod(tensor.shape)) != 1:
        _refuse(f"INPUT must hold one file, got shape {list(tensor.shape)}")
    if tensor.contents.bytes_contents:
        return bytes(tensor.contents.bytes_contents[0])
    if len(request.raw_input_contents) != 1 or len(request.raw_input_contents[0]) < 4:
        _refuse("INPUT has no content")
    raw = request.raw_input_contents[0]
    (length,) = struct.unpack_from("<I", raw)
    if length != len(raw) - 4:
        _refuse(f"INPUT: says {length} bytes and brings {len(raw) - 4}")
    return bytes(raw[4:])


def _rows(request: Any) -> np.ndarray[Any, np.dtype[np.float32]]:  # noqa: ANN401 - a message
    tensor = request.inputs[0]
    shape = tuple(tensor.shape)
    if len(shape) != 2 or shape[1] != TENSOR_FLOATS or shape[0] < 1:
        _refuse(f"INPUT must have the shape [n, {TENSOR_FLOATS}], got {list(shape)}")
    if request.raw_input_contents:
        content = request.raw_input_contents[0]
        if len(content) % 4:
            _refuse(f"INPUT: {len(content)} bytes are no whole number of FP32 elements")
        raw = np.frombuffer(content, dtype=np.float32)
    else:
        raw = np.array(tensor.contents.fp32_contents, dtype=np.float32)
    if raw.size != shape[0] * shape[1]:
        _refuse(f"INPUT: {raw.size} elements do not make the shape {list(shape)}")
    rows = raw.reshape(shape)
    marked = rows[rows[:, 3] == MARK]
    limits = np.array([LONGEST_NS / 1e9, LARGEST_FACTOR], dtype=np.float32)
    if not np.all((marked[:, :2] >= 0) & (marked[:, :2] <= limits)):
        _refuse("INPUT: a marked row's length and factor must be numbers from 0 to an hour and to 100")
    return rows
