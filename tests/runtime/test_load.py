"""The load generator against a server that can be made slow, wrong or far away; and against the real one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from preba.errors import ServerError
from preba.records import OUTCOMES
from preba.report.stages import stage_ns

grpc = pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")

from live_serving import CODE, needs_triton, running  # noqa: E402 - needs grpc
from tritonclient.grpc import service_pb2 as pb  # noqa: E402
from tritonclient.grpc import service_pb2_grpc as services  # noqa: E402

from runtime.load.run import Target, play  # noqa: E402


class FakeServer(services.GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated without types
    """A KServe v2 server that does what a test tells it: ``act`` gets the request's number and returns a result."""

    def __init__(self) -> None:
        self.act: Callable[[int], str] = lambda _: "OK"
        self.clock_ahead_ns = 0
        self.says_stages = True
        self.service_s = 0.002
        self.seen: list[int] = []
        self.inside = self.most_inside = 0
        self.datatype = "FP32"
        self._lock = threading.Lock()

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - the service's name
        return pb.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - the service's name
        answer = pb.ModelMetadataResponse(name=request.name)
        answer.inputs.add(name="INPUT", datatype=self.datatype, shape=[-1, 4])
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name
        received_ns = time.monotonic_ns()
        with self._lock:
            self.seen.append(int(request.id))
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            done = self.act(int(request.id))
            if done != "OK":
                code, _, text = done.partition(" ")
                context.abort(grpc.StatusCode[code], text)
            time.sleep(self.service_s)
        finally:
            with self._lock:
                self.inside -= 1
        answer = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        if self.says_stages:
            now_ns = time.monotonic_ns()
            given = answer.parameters
            for name, value in (
                ("received_ns", received_ns), ("enqueued_ns", received_ns + 1000),
                ("dispatched_ns", received_ns + 2000),
                ("execution_start_ns", received_ns + 3000), ("execution_end_ns", now_ns - 1000), ("sent_ns", now_ns),
            ):  # fmt: skip
                given[name].int64_param = value + self.clock_ahead_ns
            for name, value in (("batch_size", 3), ("batch_id", int(request.id) // 3), ("slice_index", 5)):
                given[name].int64_param = value
        return answer


@pytest.fixture
def fake() -> Iterator[tuple[FakeServer, Target]]:
    """A fake server that listens, and where."""
    servicer = FakeServer()
    server = grpc.server(ThreadPoolExecutor(200))
    services.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, Target(f"127.0.0.1:{port}", ready_timeout_s=2.0)
    server.stop(0).wait()


def scenario(toy: Any, requests: int, arrivals: dict[str, Any]) -> Any:
    """One model and so many requests."""
    model = toy.model(toy.profile({"1g": {"1": 5}}), arrivals)
    return toy.resolve(toy.scenario([model], partition="7x1g.5gb", requests=requests))


def test_schedule_is_kept_while_the_server_stalls(toy: Any, fake: Any) -> None:
    """A server that freezes for 300 ms delays no request's departure, and latencies count from the schedule."""
    servicer, target = fake
    began = time.monotonic()
    resolved = scenario(toy, 120, {"kind": "deterministic", "rate_rps": 200})

    def freeze(_: int) -> str:
        left_s = 0.6 - (time.monotonic() - began_playing[0])
        if 0 < left_s < 0.3:
            time.sleep(left_s)
        return "OK"

    began_playing = [began]
    servicer.act = lambda number: freeze(number)
    began_playing[0] = time.monotonic()
    played = play(resolved, target, warmup_requests=0)
    records = played.result.records
    assert len(servicer.seen) == 120
    assert records.served.all()
    lag_ms = (records.issued_ns - records.scheduled_ns) / 1e6
    assert np.percentile(lag_ms, 90) < 20
    assert np.array_equal(records.scheduled_ns, played.trace.scheduled_ns)
    assert records.latency_ns.max() > 150e6  # one that came at the beginning of the freeze
    assert (records.latency_ns > 50e6).sum() >= 15  # and those behind it: none was held back


def test_records_hold_what_the_server_says_and_add_up(toy: Any, fake: Any) -> None:
    """Stages come from the server's stamps; together they are the latency, to the nanosecond."""
    servicer, target = fake
    played = play(scenario(toy, 60, {"kind": "poisson", "rate_rps": 300}), target, warmup_requests=3)
    records = played.result.records
    assert len(servicer.seen) == 63
    assert records.served.all()
    assert (records.batch_size == 3).all()
    assert (records.slice_index == 5).all()
    stages = stage_ns(records)
    assert all((times >= 0).all() for times in stages.values())
    assert np.array_equal(sum(stages.values()), records.latency_ns)
    assert stages["execution"].min() >= servicer.service_s * 1e9 - 1e5


@pytest.mark.parametrize("ahead_s", [3600.0, -7.5])
def test_another_machine_s_clock_is_removed(toy: Any, fake: Any, ahead_s: float) -> None:
    """A server whose clock is far off gives the same stages as one whose clock is ours."""
    servicer, target = fake
    servicer.clock_ahead_ns = int(ahead_s * 1e9)
    played = play(scenario(toy, 60, {"kind": "poisson", "rate_rps": 300}), target, warmup_requests=0)
    records = played.result.records
    stages = stage_ns(records)
    assert np.median(stages["hop"]) < 20e6
    assert np.median(stages["response"]) < 20e6
    assert np.array_equal(sum(stages.values()), records.latency_ns)


def test_a_server_that_says_nothing_is_measured_from_outside(toy: Any, fake: Any) -> None:
    """Plain KServe servers work: latency is known, its stages are not invented."""
    servicer, target = fake
    servicer.says_stages = False
    played = play(scenario(toy, 40, {"kind": "poisson", "rate_rps": 300}), target, warmup_requests=0)
    records = played.result.records
    assert records.served.all()
    assert records.latency_ns.min() >= servicer.service_s * 1e9
    assert np.array_equal(sum(stage_ns(records).values()), records.latency_ns)


def test_a_closed_loop_keeps_so_many_requests_outstanding(toy: Any, fake: Any) -> None:
    """With four outstanding there are never five inside, and all are sent."""
    servicer, target = fake
    closed = {"kind": "closed_loop", "outstanding": 4, "think_ms": 0.0}
    played = play(scenario(toy, 100, closed), target, warmup_requests=0)
    assert servicer.most_inside == 4
    assert played.result.records.served.all()
    assert sorted(servicer.seen) == list(range(100))


def test_every_failure_has_its_outcome(toy: Any, fake: Any) -> None:
    """Refusals, deadlines and failures are told apart, counted with their messages, and nobody is lost."""
    servicer, target = fake
    answers = {
        0: "RESOURCE_EXHAUSTED the server is full",
        1: "UNAVAILABLE Request timeout expired",
        2: "INTERNAL out of order",
        3: "UNAVAILABLE Exceeds maximum queue size",
    }
    servicer.act = lambda number: answers.get(number, "OK")
    played = play(scenario(toy, 20, {"kind": "poisson", "rate_rps": 200}), target, warmup_requests=0)
    outcomes = [OUTCOMES[code] for code in played.result.records.outcome]
    assert outcomes[:4] == ["refused_queue_full", "refused_timeout", "failed_slice_lost", "refused_queue_full"]
    assert set(outcomes[4:]) == {"served"}
    assert ("INTERNAL", "out of order", 1) in played.errors
    assert any("1 requests failed: INTERNAL out of order" in text for text in played.warnings)


def test_an_overloaded_generator_says_so(toy: Any, fake: Any) -> None:
    """More requests under way than allowed are counted as refused and said."""
    servicer, target = fake
    servicer.service_s = 0.2
    resolved = scenario(toy, 80, {"kind": "deterministic", "rate_rps": 400})
    played = play(resolved, target, warmup_requests=0, in_flight_max=10)
    refused = played.result.records.outcome == OUTCOMES.index("refused_queue_full")
    assert 0 < refused.sum() == 80 - len(servicer.seen)
    assert any("were not sent: too many were under way" in text for text in played.warnings)


def test_nobody_there_is_one_clear_error(toy: Any) -> None:
    """An address where nobody listens is named."""
    resolved = scenario(toy, 5, {"kind": "poisson", "rate_rps": 200})
    with pytest.raises(ServerError, match=r"--url 127.0.0.1:9: model 'toy' is not served there"):
        play(resolved, Target("127.0.0.1:9", ready_timeout_s=0.3))


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", ["none", "cpu"])
def test_live_run_has_the_shape_of_the_simulated_one(toy: Any, tmp_path: Path, preprocessing: str) -> None:
    """The same scenario, served and simulated: the same batches on average, latencies within the software's cost."""
    needs_triton()
    model = toy.model(
        toy.profile({"1g": {"1": 60, "4": 90}}), {"kind": "poisson", "rate_rps": 60},
        batcher={"kind": "fixed", "batch_max": 4, "timeout_ms": 40}, sizes={"kind": "constant", "jpeg_kb": 20},
    )  # fmt: skip
    fields = {} if preprocessing == "none" else {"preprocessing": toy.cpu(1, 3000)}
    data = toy.scenario([model], partition="7x1g.5gb", requests=300, **fields)
    out = tmp_path / "live"
    with running(tmp_path, data) as server:
        done = subprocess.run(
            [sys.executable, "-c", CODE, "load", str(tmp_path / "scenario.yaml"), "--url",
             f"127.0.0.1:{server.grpc_port}", "--out", str(out), "--json"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    live = json.loads(done.stdout)
    assert live["served"] == 300
    assert {"records.parquet", "summary.json", "report.html"} <= {path.name for path in out.iterdir()}
    resolved_again = yaml.safe_load((out / "scenario.yaml").read_text())
    assert resolved_again["run"]["requests"] == 300
    simulated = subprocess.run(
        [sys.executable, "-c", CODE, "simulate", str(tmp_path / "scenario.yaml"), "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    expected = json.loads(simulated.stdout)
    assert live["batch_size"]["mean"] == pytest.approx(expected["batch_size"]["mean"], rel=0.1)
    # A busy machine adds some milliseconds, never takes any away.
    assert live["latency_ms"]["p50"]["value"] > 0.97 * expected["latency_ms"]["p50"]["value"]
    assert live["latency_ms"]["p50"]["value"] < 1.5 * expected["latency_ms"]["p50"]["value"]
