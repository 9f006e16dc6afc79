"""One call that plays a scenario against a server: files, connection, warm-up, schedule, records."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from preba.batching.state import SERVED
from preba.errors import MissingFileError, ServerError
from preba.records import Records, RunResult, StationSpans, column_names
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.resolve import ResolvedScenario
from preba.trace import Trace
from runtime.host import cpu_ticks, stolen_percent
from runtime.load.generator import Generator, Observed, Progress, lag_figures
from runtime.load.payloads import make_corpus
from runtime.load.wire import SERVICE, Messages

LAG_LIMIT_MS = 1.0
LAG_SHARE = 0.01
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
)
LOCAL = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Target:
    """The server to play against.

    Attributes
    ----------
    url : str
        ``host:port``, or ``grpc://`` or ``grpcs://`` in front of it.
    token : str or None
        Bearer token.
    ca : Path or None
        PEM certificates to trust; with it, or with ``grpcs://``, the connection is TLS.
    ready_timeout_s : float
    channels : int
        Connections, taken in turns.
    """

    url: str
    token: str | None = None
    ca: Path | None = None
    ready_timeout_s: float = 10.0
    channels: int = 2

    @property
    def address(self) -> str:
        """Host and port."""
        return self.url.partition("://")[2] or self.url

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def connect(self) -> list[grpc.Channel]:
        """Opens the connections.

        Raises
        ------
        MissingFileError
            The certificates cannot be read.
        """
        return self._channels(grpc)

    def connect_in_loop(self) -> list[grpc.aio.Channel]:
        """Opens connections for the event loop that runs."""
        return self._channels(grpc.aio)

    def _channels(self, kind: Any) -> list[Any]:  # noqa: ANN401 - grpc or grpc.aio
        host = self.address.rpartition(":")[0]
        options = (*OPTIONS, ("grpc.enable_http_proxy", 0)) if host in LOCAL else OPTIONS
        if self.ca is None and not self.url.startswith("grpcs://"):
            return [kind.insecure_channel(self.address, options=options) for _ in range(self.channels)]
        roots = None
        if self.ca is not None:
            try:
                roots = self.ca.read_bytes()
            except OSError as error:
                raise MissingFileError(f"--ca {self.ca}: cannot be read: {error.strerror}") from error
        credentials = grpc.ssl_channel_credentials(roots)
        return [kind.secure_channel(self.address, credentials, options=options) for _ in range(self.channels)]


@dataclass(frozen=True)
class Played:
    """A finished run against a server.

    Attributes
    ----------
    result : RunResult
        As a simulation gives it: the same records, from the outside.
    trace : Trace
    lag : dict
        How late requests were sent.
    warnings : tuple of str
    errors : tuple of (gRPC code, message, count)
    queue_us : float or None
        What the server's own statistics say its requests waited in its queues, the mean; ``None`` where they say
        nothing.
    stolen_percent : float or None
        Share of this machine's CPU time that its host gave to others meanwhile; ``None`` where it does not say.
    """

    result: RunResult
    trace: Trace
    lag: dict[str, float]
    warnings: tuple[str, ...]
    errors: tuple[tuple[str, str, int], ...]
    queue_us: float | None = None
    stolen_percent: float | None = None


def play(
    resolved: ResolvedScenario,
    target: Target,
    *,
    trace: Trace | None = None,
    payloads: Path | None = None,
    warmup_requests: int = 20,
    timeout_s: float | None = None,
    in_flight_max: int = 20_000,
    progress: Progress | None = None,
) -> Played:
    """Plays a scenario's trace against a server.

    Parameters
    ----------
    resolved : ResolvedScenario
    target : Target
    trace : Trace, optional
        What to play; drawn from the scenario's seed when not given.
    payloads : Path, optional
        Folder with the user's own files to send.
    warmup_requests : int
        Sent first, one after another, and not recorded.
    timeout_s : float, optional
        Deadline of each call.
    in_flight_max : int
    progress : callable, optional
        Called with (requests done, requests in all).

    Raises
    ------
    ServerError
        Nobody answers at the target, or it does not serve a model of the scenario.
    """
    trace = draw_scenario_trace(resolved) if trace is None else trace
    channels = target.connect()
    try:
        kinds = [_await_model(channels[0], target, model.config.name) for model in resolved.models]
        messages = [_messages(resolved, trace, index, datatype, payloads) for index, datatype in enumerate(kinds)]
        _warm_up(channels, target, messages, trace, warmup_requests)
        names = [model.config.name for model in resolved.models]
        before = _queued(channels[0], target, names)
    finally:
        for channel in channels:
            channel.close()
    generator = Generator(
        trace, messages, target.connect_in_loop, timeout_s=timeout_s, in_flight_max=in_flight_max,
        metadata=target.metadata,
    )  # fmt: skip
    ticks = cpu_ticks()
    try:
        observed = generator.play(progress)
    except TimeoutError as error:
        raise ServerError(f"--url {target.url}: nobody answers there any more") from error
    stolen = stolen_percent(ticks, cpu_ticks())
    queue_us = None
    if before is not None:
        with contextlib.ExitStack() as stack:
            again = [stack.enter_context(contextlib.closing(channel)) for channel in target.connect()]
            after = _queued(again[0], target, names)
        if after is not None and after[0] > before[0]:
            queue_us = (after[1] - before[1]) / 1e3 / (after[0] - before[0])
    records = records_of(observed, trace, messages)
    lag = lag_figures(observed.columns)
    result = live_result(resolved, records)
    errors = tuple((code, text, count) for (code, text), count in observed.errors.most_common())
    return Played(result, trace, lag, tuple(_warnings(observed, records, lag, errors)), errors, queue_us, stolen)


def _queued(channel: grpc.Channel, target: Target, names: Sequence[str]) -> tuple[int, int] | None:
    """Requests that a server has served so far, and the ns they were in its queues; ``None``: it does not say."""
    count = total_ns = 0
    for name in names:
        try:
            found = _stub(channel, "ModelStatistics")(
                pb.ModelStatisticsRequest(name=name), timeout=5, metadata=target.metadata
            )
        except grpc.RpcError:
            return None
        for entry in found.model_stats:
            count += entry.inference_stats.success.count
            total_ns += entry.inference_stats.queue.ns
    return count, total_ns


def _stub(channel: grpc.Channel, name: str) -> Any:  # noqa: ANN401 - grpc's
    return channel.unary_unary(
        SERVICE + name,
        request_serializer=getattr(pb, f"{name}Request").SerializeToString,
        response_deserializer=getattr(pb, f"{name}Response").FromString,
    )


def _await_model(channel: grpc.Channel, target: Target, name: str) -> str:
    """Waits until a model is served; returns the type of its input."""
    until = time.monotonic() + target.ready_timeout_s
    last = "it is not ready"
    while True:
        try:
            ready = _stub(channel, "ModelReady")(pb.ModelReadyRequest(name=name), timeout=2, metadata=target.metadata)
            if ready.ready:
                break
        except grpc.RpcError as error:
            last = error.details() or error.code().name
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise ServerError(f"--url {target.url}: does not serve model {name!r}: {last}") from error
            if error.code() == grpc.StatusCode.UNAUTHENTICATED or "PERMISSION" in error.code().name:
                raise ServerError(f"--url {target.url}: {last}; --token gives one") from error
        if time.monotonic() > until:
            raise ServerError(f"--url {target.url}: model {name!r} is not served there: {last}")
        time.sleep(0.1)
    try:
        facts = _stub(channel, "ModelMetadata")(pb.ModelMetadataRequest(name=name), timeout=5, metadata=target.metadata)
    except grpc.RpcError as error:
        raise ServerError(f"--url {target.url}: says nothing about model {name!r}: {error.details()}") from error
    inputs = {one.name: one.datatype for one in facts.inputs}
    if inputs.get("INPUT") not in ("BYTES", "FP32"):
        raise ServerError(f"--url {target.url}: model {name!r} has no input INPUT of BYTES or FP32 (it has {inputs})")
    return str(inputs["INPUT"])


def _messages(resolved: ResolvedScenario, trace: Trace, index: int, datatype: str, payloads: Path | None) -> Messages:
    model = resolved.models[index]
    mine = trace.model_index == index
    place_of = np.cumsum(mine) - 1
    corpus = None
    if datatype == "BYTES":
        sizes = trace.audio_ns if model.profile.modality == "audio" else trace.jpeg_bytes
        seed = (resolved.scenario.seed, index)
        corpus = make_corpus(model.profile.modality, sizes[mine], seed=seed, folder=payloads)
    return Messages(model.config.name, trace, corpus, place_of.astype(np.int64))


def _warm_up(
    channels: Sequence[grpc.Channel], target: Target, messages: Sequence[Messages], trace: Trace, count: int
) -> None:
    rows = range(min(count, len(trace)))
    for row in rows:
        call = _stub(channels[row % len(channels)], "ModelInfer")
        request = messages[int(trace.model_index[row])].request(row)
        try:
            call(request, timeout=30, metadata=target.metadata)
        except grpc.RpcError as error:
            if row == 0:
                raise ServerError(f"--url {target.url}: the first request failed: {error.details()}") from error


def records_of(observed: Observed, trace: Trace, messages: Sequence[Messages]) -> Records:
    """Brings what was observed into the record schema: the server's moments on the generator's clock.

    Parameters
    ----------
    observed : Observed
    trace : Trace
    messages : sequence of Messages
        Per model; say which files were sent.
    """
    columns = observed.columns
    shift_ns = clock_offset_ns(columns, observed.started_ns) + observed.started_ns
    moments = {}
    for name in ("preprocess_start_ns", "preprocess_end_ns", "enqueued_ns", "dispatched_ns", "execution_start_ns",
                 "execution_end_ns"):  # fmt: skip
        known = columns[name] >= 0
        moments[name] = np.where(known, columns[name] - shift_ns, -1)
    served = columns["outcome"] == SERVED
    issued_ns = columns["issued_ns"]
    untouched = moments["preprocess_start_ns"] < 0
    for name in ("preprocess_start_ns", "preprocess_end_ns"):
        moments[name] = np.where(untouched, issued_ns, moments[name])
    preprocess_wait_ns = np.maximum(moments["preprocess_start_ns"] - issued_ns, 0)
    # Of a server that says less, what is not known counts for the stage before it.
    before = moments["preprocess_end_ns"]
    for name in ("enqueued_ns", "dispatched_ns", "execution_start_ns", "execution_end_ns"):
        missing = served & (moments[name] < 0)
        later = columns["completed_ns"] if name.startswith("execution") else before
        moments[name] = np.where(missing, later, moments[name])
        # Stamps of two processes may cross by the few microseconds between taking and sending them.
        moments[name] = np.where(served, np.maximum(moments[name], before), moments[name])
        before = moments[name]
    columns["completed_ns"] = np.where(served, np.maximum(columns["completed_ns"], before), columns["completed_ns"])
    jpeg_bytes, audio_ns = trace.jpeg_bytes.copy(), trace.audio_ns.copy()
    for index, one in enumerate(messages):
        if one.corpus is not None:
            mine = trace.model_index == index
            jpeg_bytes[mine], audio_ns[mine] = one.corpus.jpeg_bytes, one.corpus.audio_ns
    filled = {**columns, **moments, "preprocess_wait_ns": preprocess_wait_ns, "jpeg_bytes": jpeg_bytes,
              "audio_ns": audio_ns}  # fmt: skip
    filled["batch_size"] = np.where(served, np.maximum(filled["batch_size"], 1), 0).astype(np.int32)
    filled["batch_units"] = np.where(served, np.maximum(filled["batch_units"], 1), 0).astype(np.int32)
    # A Triton server that batches for itself says how many requests a batch had, not how many units.
    untold = served & (filled["batch_units"] < filled["batch_size"]) & (filled["batch_id"] >= 0)
    if untold.any():
        _, group = np.unique(filled["batch_id"][untold], return_inverse=True)
        units = np.bincount(group, weights=trace.batch_units[untold])
        filled["batch_units"][untold] = units[group].astype(np.int32)
    return Records(**{name: filled[name] for name in column_names()})


def live_result(resolved: ResolvedScenario, records: Records) -> RunResult:
    """A live run as a result: only its records are known from the outside.

    Parameters
    ----------
    resolved : ResolvedScenario
    records : Records
    """
    return RunResult(
        engine="live",
        records=records,
        spans=_no_spans(),
        stations=(),
        slices=tuple(unit.facts() for unit in resolved.slices),
        models=tuple(model.config.name for model in resolved.models),
        end_ns=int(records.completed_ns.max(initial=0)),
    )


def clock_offset_ns(columns: dict[str, Any], started_ns: int) -> int:
    """The server's clock minus the generator's, from the requests with the quickest way there and back.

    As NTP has it: half the difference of the two ways; of the quickest tenth, the median. Within its own uncertainty
    (half the shortest way) it is 0, as it is on one machine.
    """
    known = (columns["received_ns"] >= 0) & (columns["sent_ns"] >= 0) & (columns["outcome"] == SERVED)
    if not known.any():
        return 0
    issued = columns["issued_ns"][known] + started_ns
    completed = columns["completed_ns"][known] + started_ns
    received, sent = columns["received_ns"][known], columns["sent_ns"][known]
    way_ns = (completed - issued) - (sent - received)
    quickest = np.argsort(way_ns)[: max(len(way_ns) // 10, 1)]
    offset = ((received - issued) + (sent - completed))[quickest] / 2
    found = int(np.median(offset))
    return 0 if abs(found) <= way_ns[quickest].min() / 2 + 1000 else found


def _no_spans() -> StationSpans:
    none32, none64 = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
    return StationSpans(none32, none32, none64, none64, none64, none64, none64)


def lag_warnings(records: Records, lag: Mapping[str, float]) -> list[str]:
    """What to say where requests left so late that latencies show it; nothing where they did not.

    Parameters
    ----------
    records : Records
    lag : mapping of str to float
        As ``lag_figures`` gives it.
    """
    latency_ns = records.latency_ns[records.served]
    limit_ms = LAG_LIMIT_MS
    if len(latency_ns):
        limit_ms = max(LAG_SHARE * float(np.median(latency_ns)) / 1e6, LAG_LIMIT_MS)
    if lag["p99_ms"] <= limit_ms:
        return []
    said = (
        f"the generator could not keep its schedule: 1 % of the requests left more than {lag['p99_ms']:.2f} ms "
        f"late (p50 {lag['p50_ms']:.2f}, at most {lag['max_ms']:.1f} ms); latencies count from the schedule and "
        "include it"
    )
    return [said]


def failure_warnings(errors: Sequence[tuple[str, str, int]]) -> list[str]:
    """What to say of requests that failed: the most frequent reasons, as ``Played.errors`` has them."""
    return [f"{count} requests failed: {code} {text}" for code, text, count in errors[:5]]


def _warnings(
    observed: Observed, records: Records, lag: dict[str, float], errors: Sequence[tuple[str, str, int]]
) -> list[str]:
    found = lag_warnings(records, lag)
    if observed.unsent:
        found.append(f"{observed.unsent} requests were not sent: too many were under way (--max-in-flight)")
    if observed.cut_short:
        pending = int((records.outcome == 4).sum())
        found.append(f"the run was cut short: {pending} requests have no outcome")
    return [*found, *failure_warnings(errors)]
