"""The live server with emulated slices: real Triton servers, real gRPC, nothing faked."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_serving import (
    file_request,
    needs_triton,
    poisson,
    running,
    send,
    stages,
    tensor_request,
)  # fmt: skip

from preba.errors import PrebaError
from runtime.decisions import replay
from runtime.triton.models.mark import MARK

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_triton")]
TOKEN = "sesame"  # noqa: S105 - a token of the tests
BATCH_MS = {"1": 20, "8": 48}
"""Batches of eight on seven slices: some 1,160 requests/s at most."""


@pytest.fixture(scope="module")
def _triton() -> None:
    needs_triton()


def scenario(toy: Any, *, batcher: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Seven emulated slices behind one batcher."""
    batching = batcher or {"kind": "fixed", "batch_max": 8, "timeout_ms": 5}
    model = toy.model(toy.profile({"1g": BATCH_MS}), {"kind": "poisson", "rate_rps": 300}, batcher=batching)
    return toy.scenario([model], partition="7x1g.5gb", **fields)


def get(port: int, path: str, token: str | None = None) -> tuple[int, str]:
    """Status and body of an HTTP request."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_served_requests_say_what_happened_to_them(toy: Any, tmp_path: Path) -> None:
    """Every answer carries its stages in order, its batch, and the very numbers that were sent."""
    log = tmp_path / "decisions.jsonl"
    rows = [[float(number), 0.0, 0.5, 0.0] for number in range(300)]
    with running(tmp_path, scenario(toy), "--decisions", str(log)) as server:
        played = send(
            server.grpc_port, [tensor_request("toy", [row]) for row in rows], poisson(300, 1.0), keep_answers=True
        )
        status, metrics = get(server.http_port, "/metrics")
        assert get(server.http_port, "/v2/health/ready")[0] == 200
        assert get(server.http_port, "/nowhere")[0] == 404
        code, _ = server.stop()
    assert code == 0
    assert not played.errors
    values = sorted(float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0]) for answer in played.answers)
    assert values == [row[0] for row in rows]  # NumPy 2 would corrupt them if the backend did not use DLPack
    batches: dict[int, list[dict[str, int]]] = {}
    for answer in played.answers:
        stage = stages(answer)
        order = ("received_ns", "enqueued_ns", "execution_start_ns", "execution_end_ns", "sent_ns")
        times = [stage[name] for name in order]
        assert times == sorted(times)
        assert stage["dispatched_ns"] <= stage["execution_start_ns"]
        batches.setdefault(stage["batch_id"], []).append(stage)
    for members in batches.values():
        assert {one["batch_size"] for one in members} == {len(members)}
        assert len({(one["slice_index"], one["execution_start_ns"]) for one in members}) == 1
        table_ns = np.interp(len(members), [1, 8], [20e6, 48e6])
        assert members[0]["execution_end_ns"] - members[0]["execution_start_ns"] >= table_ns - 1e5
    assert 'nv_inference_request_success{model="toy",version="1"} 300.0' in metrics
    assert "# TYPE nv_inference_count counter" in metrics
    assert status == 200
    replayed = replay(log)
    assert replayed.difference is None
    assert replayed.decisions == len(batches)
    assert server.leftovers() == []


def test_a_changed_decision_in_a_log_is_found(toy: Any, tmp_path: Path) -> None:
    """Replaying is a check: a log that says something else than the batcher does is told apart."""
    log = tmp_path / "decisions.jsonl"
    with running(tmp_path, scenario(toy), "--decisions", str(log)) as server:
        send(server.grpc_port, [tensor_request("toy")] * 30, [0.002 * number for number in range(30)])
    lines = log.read_text().splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith('["dispatch"'))
    lines[place] = lines[place].replace('["dispatch",0,', '["dispatch",0,1')
    log.write_text("\n".join(lines) + "\n")
    assert replay(log).difference is not None
    log.write_text("nonsense\n")
    with pytest.raises(PrebaError, match="is no decision log"):
        replay(log)


def test_no_request_fails_when_a_slice_is_killed(toy: Any, tmp_path: Path) -> None:
    """Kill -9 one of seven slices at 70 % load: nobody gets an error, and the slice comes back."""
    log = tmp_path / "decisions.jsonl"
    rate_rps, duration_s = 500.0, 4.0
    with running(tmp_path, scenario(toy), "--decisions", str(log)) as server:
        before = server.slice_processes()
        assert len(before) == 7
        times = poisson(rate_rps, duration_s)
        played = send(
            server.grpc_port, [tensor_request("toy")] * len(times), times,
            during=lambda: os.kill(before["slice3"], signal.SIGKILL),
        )  # fmt: skip
        assert not played.errors, played.messages
        assert len(played.latency_ms) == len(times)
        until = time.monotonic() + 20
        while 'preba_slice_up{slice="3 (gpu0/1g.5gb@3)"} 1.0' not in get(server.http_port, "/metrics")[1]:
            assert time.monotonic() < until, "the slice did not come back"
            time.sleep(0.1)
        after = server.slice_processes()
        assert {name for name in before if before[name] != after[name]} == {"slice3"}
        assert 'preba_slice_restarts_total{slice="3 (gpu0/1g.5gb@3)"} 1.0' in get(server.http_port, "/metrics")[1]
    assert replay(log).difference is None
    assert server.leftovers() == []


def test_overload_is_refused_at_once_and_the_rest_is_served(toy: Any, tmp_path: Path) -> None:
    """At three times its capacity the server refuses what it cannot hold and stays near its capacity."""
    slow = toy.model(
        toy.profile({"1g": {"1": 50, "2": 70}}), {"kind": "poisson", "rate_rps": 100},
        batcher={"kind": "greedy", "batch_max": 2},
    )  # fmt: skip
    capacity_rps = 7 * 2 / 0.07
    data = toy.scenario([slow], partition="7x1g.5gb", live={"requests_max": 40})
    with running(tmp_path, data) as server:
        times = poisson(3 * capacity_rps, 4.0)
        played = send(server.grpc_port, [tensor_request("toy")] * len(times), times)
    assert set(played.errors) == {"RESOURCE_EXHAUSTED"}
    assert "the server is full: 40 requests are inside" in played.messages
    assert played.goodput_rps > 0.8 * capacity_rps
    # 40 inside at capacity wait 0.2 s; without a bound on the queue the last would wait for some 8 s.
    assert np.median(played.latency_ms) < 1000


def test_requests_inside_are_finished_when_it_is_asked_to_stop(toy: Any, tmp_path: Path) -> None:
    """SIGTERM: what is inside gets its answer, what comes later is told to go elsewhere."""
    long = toy.model(toy.profile({"1g": {"1": 700}}), {"kind": "poisson", "rate_rps": 1})
    with running(tmp_path, toy.scenario([long], partition="7x1g.5gb")) as server:
        played = send(
            server.grpc_port, [tensor_request("toy")] * 8, [0.0] * 7 + [0.6],
            during=lambda: server.process.send_signal(signal.SIGTERM),
        )  # fmt: skip
        server.process.communicate(timeout=30)
    assert len(played.latency_ms) == 7
    assert set(played.errors) == {"UNAVAILABLE"}
    assert server.process.returncode == 0


def test_nothing_is_left_when_the_server_itself_is_killed(toy: Any, tmp_path: Path) -> None:
    """Kill -9: its Triton servers end and their shared memory is removed all the same."""
    with running(tmp_path, scenario(toy)) as server:
        send(server.grpc_port, [tensor_request("toy")] * 20, [0.0] * 20)
        assert server.leftovers() != []
        server.stop(signal.SIGKILL)
        until = time.monotonic() + 10
        while server.leftovers() or server.slice_processes():
            assert time.monotonic() < until, (server.leftovers(), server.slice_processes())
            time.sleep(0.1)


def test_deadlines_are_kept_and_their_requests_not_executed(toy: Any, tmp_path: Path) -> None:
    """A request whose client has given up before its batch leaves takes no time on a slice."""
    slow = toy.model(toy.profile({"1g": {"1": 300}}), {"kind": "poisson", "rate_rps": 1})
    data = toy.scenario([slow], partition="7x1g.5gb")
    with running(tmp_path, data) as server:
        played = send(server.grpc_port, [tensor_request("toy")] * 21, [0.0] * 21, timeout_s=0.5)
        time.sleep(0.5)
        metrics = get(server.http_port, "/metrics")[1]
    assert set(played.errors) == {"DEADLINE_EXCEEDED"}
    assert len(played.latency_ms) == 7
    executed = next(line for line in metrics.splitlines() if line.startswith("nv_inference_exec_count{"))
    assert float(executed.split()[-1]) <= 14  # the third batch of each slice was not worth starting
    assert 'nv_inference_pending_request_count{model="toy",version="1"} 0.0' in metrics


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        (lambda: tensor_request("nobody"), "NOT_FOUND", "unknown model 'nobody'; known: toy"),
        (lambda: tensor_request("toy", [[1.0, 2.0]]), "INVALID_ARGUMENT", "must have the shape [n, 4], got [1, 2]"),
        (lambda: tensor_request("toy", [[0.0] * 4] * 9), "INVALID_ARGUMENT", "a batch of 9 does not fit"),
        (lambda: _torn(), "INVALID_ARGUMENT", "2 elements do not make the shape"),
        (lambda: _without_input(), "INVALID_ARGUMENT", "takes one input named INPUT"),
        (lambda: _torn(7), "INVALID_ARGUMENT", "7 bytes are no whole number"),
        (lambda: _claiming(execution_factor=-1e6), "INVALID_ARGUMENT", "execution_factor must be from 0 to 100"),
        (lambda: _claiming(execution_factor=float("nan")), "INVALID_ARGUMENT", "execution_factor must be"),
        (lambda: _claiming(audio_ns=-(10**15)), "INVALID_ARGUMENT", "audio_ns must be from 0"),
        (lambda: tensor_request("toy", [[0, 1, 0, MARK], [float("nan"), 1, 0, MARK]]), "INVALID_ARGUMENT", "marked"),
        (lambda: tensor_request("toy", [[1.0, 1e9, 0.0, MARK]]), "INVALID_ARGUMENT", "marked row's"),
    ],
)
def test_senseless_requests_are_told_so(shared_server: Any, request_: Any, code: str, says: str) -> None:
    """A request that makes no sense is that client's INVALID_ARGUMENT or NOT_FOUND, with what is wrong."""
    played = send(shared_server.grpc_port, [request_()], [0.0], metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert set(played.errors) == {code}
    assert any(says in message for message in played.messages), played.messages


def _torn(length: int = 8) -> Any:
    request = tensor_request("toy")
    request.raw_input_contents[0] = request.raw_input_contents[0][:length]
    return request


def _claiming(**parameters: float) -> Any:
    request = tensor_request("toy")
    for name, value in parameters.items():
        if isinstance(value, int):
            request.parameters[name].int64_param = value
        else:
            request.parameters[name].double_param = value
    return request


def _without_input() -> Any:
    request = tensor_request("toy")
    del request.inputs[:]
    return request


@pytest.fixture(scope="module")
def shared_server(toy: Any, tmp_path_factory: pytest.TempPathFactory, _triton: None) -> Any:
    """One server for tests that do it no harm."""
    with running(tmp_path_factory.mktemp("shared"), scenario(toy), "--token", TOKEN) as server:
        yield server


def test_a_token_is_asked_for(shared_server: Any) -> None:
    """Without the token, or with another, every call is UNAUTHENTICATED, and metrics are 401."""
    for metadata in ((), (("authorization", "Bearer other"),)):
        played = send(shared_server.grpc_port, [tensor_request("toy")], [0.0], metadata=metadata)
        assert set(played.errors) == {"UNAUTHENTICATED"}
    assert get(shared_server.http_port, "/metrics")[0] == 401
    assert get(shared_server.http_port, "/metrics", TOKEN)[0] == 200
    assert get(shared_server.http_port, "/v2/health/live")[0] == 200


def test_a_message_that_is_too_large_is_refused(toy: Any, tmp_path: Path) -> None:
    """A message beyond live.payload_max_mib never reaches the batcher."""
    with running(tmp_path, {**scenario(toy), "live": {"payload_max_mib": 0.5}}) as server:
        played = send(server.grpc_port, [file_request("toy", bytes(700_000)), tensor_request("toy")], [0.0, 0.0])
    assert dict(played.errors) == {"RESOURCE_EXHAUSTED": 1}
    assert len(played.latency_ms) == 1


def test_envoy_is_started_again_and_its_port_is_not_shared(toy: Any, tmp_path: Path) -> None:
    """Killed while requests are inside, it is back within a second; a second server on its port says so and ends."""
    with running(tmp_path, scenario(toy)) as server:
        second = tmp_path / "second"
        second.mkdir()
        with (
            pytest.raises(AssertionError, match=rf"127\.0\.0\.1:{server.grpc_port}: cannot listen there .*--grpc-port"),
            running(second, scenario(toy), "--grpc-port", str(server.grpc_port)),
        ):
            pass
        envoy = next(int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit() and _is_envoy(one, server))
        requests, times = [tensor_request("toy")] * 200, [0.01 * place for place in range(200)]
        played = send(server.grpc_port, requests, times, during=lambda: os.kill(envoy, signal.SIGKILL))
        assert set(played.errors) <= {"UNAVAILABLE"}
        assert len(played.latency_ms) >= 50
        time.sleep(1.0)
        played = send(server.grpc_port, requests, times)
        assert not played.errors
    assert server.leftovers() == []


def _is_envoy(entry: Path, server: Any) -> bool:
    """Whether a process is a server's Envoy."""
    try:
        words = (entry / "cmdline").read_bytes().decode().split("\0")
        parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return parent == server.process.pid and "--config-path" in words


def test_compressed_calls_are_understood(shared_server: Any) -> None:
    """As tritonclient's ``compression_algorithm`` sends them."""
    import grpc
    from live_serving import INFER
    from tritonclient.grpc import service_pb2 as pb

    options = (("grpc.enable_http_proxy", 0),)
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with grpc.insecure_channel(f"127.0.0.1:{shared_server.grpc_port}", options, compression) as channel:
            call = channel.unary_unary(INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
            request = tensor_request("toy", [[0.25] * 4] * 8)
            answer = call(request, metadata=(("authorization", f"Bearer {TOKEN}"),))
            assert answer.raw_output_contents[0] == call(
                request, metadata=(("authorization", f"Bearer {TOKEN}"),), compression=grpc.Compression.NoCompression
            ).raw_output_contents[0]  # fmt: skip


def test_per_slice_topology_spreads_over_real_servers_that_batch_for_themselves(toy: Any, tmp_path: Path) -> None:
    """Behind Envoy each slice's Triton forms its batches; round robin spreads evenly; a killed one costs nobody."""
    triton = {"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 5000}
    data = {**scenario(toy, batcher=triton), "server": {"topology": "per_slice"}}
    with running(tmp_path, data) as server:
        times = poisson(350, 2.0)
        played = send(server.grpc_port, [tensor_request("toy")] * len(times), times, keep_answers=True)
        assert not played.errors
        per_slice = np.zeros(7)
        for answer in played.answers:
            outputs = {
                one.name: content for one, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
            }
            per_slice[np.frombuffer(outputs["PREBA"], np.int64)[4]] += 1
        assert per_slice.max() - per_slice.min() <= 0.1 * len(times) / 7
        status, metrics = get(server.http_port, "/metrics")
        assert status == 200
        counted = [line for line in metrics.splitlines() if line.startswith("nv_inference_request_success{")]
        assert len(counted) == 7
        assert sum(float(line.rpartition(" ")[2]) for line in counted) == len(times)
        assert all('slice="' in line for line in counted)
        assert get(server.http_port, "/v2/health/ready")[0] == 200
        assert get(server.http_port, "/quitquitquit")[0] == 404
        victim = server.slice_processes()["slice2"]
        played = send(
            server.grpc_port,
            [tensor_request("toy")] * len(times),
            times,
            during=lambda: os.kill(victim, signal.SIGKILL),
        )
        assert not played.errors, played.messages
    assert server.leftovers() == []


def test_requests_behind_envoy_are_finished_when_it_is_asked_to_stop(toy: Any, tmp_path: Path) -> None:
    """SIGTERM while every slice executes 600 ms: all of them are answered before anything ends."""
    slow = toy.model(
        toy.profile({"1g": {"1": 600}}), {"kind": "poisson", "rate_rps": 1},
        batcher={"kind": "triton", "max_batch_size": 1},
    )  # fmt: skip
    data = toy.scenario([slow], partition="7x1g.5gb", server={"topology": "per_slice"})
    with running(tmp_path, data) as server:
        played = send(
            server.grpc_port, [tensor_request("toy")] * 7, [0.0] * 6 + [0.3],
            during=lambda: server.process.send_signal(signal.SIGTERM),
        )  # fmt: skip
        server.process.communicate(timeout=30)
    assert not played.errors, played.messages
    assert len(played.latency_ms) == 7
    assert server.process.returncode == 0


def test_what_a_live_server_cannot_do_is_said_before_it_starts(toy: Any, tmp_path: Path) -> None:
    """Events are not made up, and Triton logs no decisions."""
    failing = {**scenario(toy), "events": [{"kind": "slice_fails", "at_s": 1.0, "slice": 0}]}
    with pytest.raises(AssertionError, match=r"events\[0\]: slice_fails"), running(tmp_path, failing):
        pass
    triton = {"kind": "triton", "max_batch_size": 8}
    native = {**scenario(toy, batcher=triton), "server": {"topology": "per_slice"}}
    log = str(tmp_path / "log")
    with pytest.raises(AssertionError, match="logs none"), running(tmp_path, native, "--decisions", log):
        pass


def test_front_end_balances_per_slice_batchers_of_its_own(toy: Any, tmp_path: Path) -> None:
    """A policy that Triton does not have runs per slice in the front end; what waits for a lost slice moves on."""
    data = {
        **scenario(toy, batcher={"kind": "preba", "batch_max": 8, "time_queue_ms": 20}),
        "server": {"topology": "per_slice", "balancer": "round_robin"},
    }
    with running(tmp_path, data) as server:
        times = poisson(400, 3.0)
        victim = server.slice_processes()["slice5"]
        played = send(
            server.grpc_port, [tensor_request("toy")] * len(times), times, keep_answers=True,
            during=lambda: os.kill(victim, signal.SIGKILL),
        )  # fmt: skip
    assert not played.errors, played.messages
    assert {stages(answer)["server_index"] for answer in played.answers} == set(range(7))
