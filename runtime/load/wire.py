"""KServe v2 messages of the load generator: requests out of a trace, and what an answer or an error says."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from preba.batching.state import FAILED_SLICE_LOST, REFUSED_QUEUE_FULL, REFUSED_TIMEOUT
from preba.records import SLICE_STAMPS
from preba.trace import Trace
from runtime.load.payloads import Corpus
from runtime.triton.models.mark import MARK

INFER = "/inference.GRPCInferenceService/ModelInfer"
SERVICE = "/inference.GRPCInferenceService/"
TIMES = (
    "received_ns", "preprocess_start_ns", "preprocess_end_ns", "enqueued_ns", "dispatched_ns", "execution_start_ns",
    "execution_end_ns", "sent_ns",
)  # fmt: skip
"""Moments on the server's clock that an answer may carry as parameters."""
COUNTS = ("slice_preprocess_ns", "server_index", "slice_index", "batch_id", "batch_size", "batch_units", "attempts")


@dataclass(frozen=True)
class Messages:
    """Makes the requests of one model.

    Attributes
    ----------
    model : str
    trace : Trace
    corpus : Corpus or None
        Files to send; ``None``: the server takes four numbers per request.
    place_of : int64[n]
        Row of the trace to place among this model's requests.
    """

    model: str
    trace: Trace
    corpus: Corpus | None
    place_of: np.ndarray[Any, np.dtype[np.int64]]

    def request(self, row: int) -> pb.ModelInferRequest:
        """The message of one row of the trace."""
        trace = self.trace
        request = pb.ModelInferRequest(model_name=self.model, id=str(row))
        parameters = request.parameters
        audio_ns = int(trace.audio_ns[row])
        if self.corpus is None:
            units = int(trace.batch_units[row])
            request.inputs.add(name="INPUT", datatype="FP32").shape[:] = (units, 4)
            values = struct.pack("<4f", audio_ns / 1e9, float(trace.execution_factor[row]), 0.0, MARK)
            request.raw_input_contents.append(values * units)
        else:
            request.inputs.add(name="INPUT", datatype="BYTES").shape[:] = (1,)
            content = b"".join(self.corpus.parts(int(self.place_of[row])))
            request.raw_input_contents.append(struct.pack("<I", len(content)) + content)
            parameters["execution_factor"].double_param = float(trace.execution_factor[row])
            audio_ns = int(self.corpus.audio_ns[int(self.place_of[row])])
        if audio_ns:
            parameters["audio_ns"].int64_param = audio_ns
        if trace.priority[row]:
            parameters["priority"].uint64_param = int(trace.priority[row])
        if trace.timeout_ns[row]:
            parameters["timeout"].int64_param = int(trace.timeout_ns[row]) // 1000
        return request


def read_answer(answer: pb.ModelInferResponse, columns: dict[str, Any], row: int) -> None:
    """Writes what an answer says about its request into the columns; what it does not say stays as it is."""
    given = answer.parameters
    for name in (*TIMES, *COUNTS):
        if name in given:
            columns[name][row] = given[name].int64_param
    if "execution_start_ns" in given:
        return
    for output, content in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if output.name == "PREBA" and output.datatype == "INT64" and len(content) >= 8 * len(SLICE_STAMPS):
            for name, value in zip(SLICE_STAMPS, np.frombuffer(content, dtype=np.int64), strict=False):
                columns[name][row] = value


def outcome_of(error: grpc.RpcError) -> int:
    """The outcome code of a call that failed."""
    code, text = error.code(), (error.details() or "").lower()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED or "timeout expired" in text:
        return REFUSED_TIMEOUT
    if code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
        return REFUSED_QUEUE_FULL
    return FAILED_SLICE_LOST
