"""Clients that nobody here wrote drive the live server: tritonclient, perf_analyzer, MLPerf LoadGen; and TLS."""

from __future__ import annotations

import base64
import contextlib
import csv
import http.client
import json
import os
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_serving import INFER, Running, file_request, needs_triton, poisson, running, send, stages, tensor_request
from perf_analyzer import analysed, prepared
from pictures_and_speech import jpeg, photographs, speech, wav
from PIL import Image

from preba.foreign.read import read_measured

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_triton")]


@pytest.fixture(scope="module")
def _triton() -> None:
    needs_triton()


@pytest.fixture(scope="module")
def tensors(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose requests arrive preprocessed; seven slices, 20 ms a batch of one, 48 of eight."""
    model = toy.model(
        toy.profile({"1g": {"1": 20, "8": 48}}), {"kind": "poisson", "rate_rps": 300},
        batcher={"kind": "fixed", "batch_max": 8, "timeout_ms": 5},
    )  # fmt: skip
    with running(tmp_path_factory.mktemp("tensors"), toy.scenario([model], partition="7x1g.5gb")) as server:
        yield server


@pytest.fixture(scope="module")
def images(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that decodes JPEGs on one core; two slices of 4 ms."""
    model = toy.model(
        toy.profile({"3g": {"1": 4, "8": 8}}), {"kind": "poisson", "rate_rps": 50},
        batcher={"kind": "fixed", "batch_max": 8, "timeout_ms": 2},
    )  # fmt: skip
    data = toy.scenario([model], partition="2x3g.20gb", preprocessing=toy.cpu(1, 2000.0))
    data["live"] = {"payload_max_mib": 4.0}
    with running(tmp_path_factory.mktemp("images"), data) as server:
        yield server


def address(server: Running) -> str:
    return f"127.0.0.1:{server.grpc_port}"


# tritonclient


def test_tritonclient_finds_everything_it_asks_for(tensors: Running, tmp_path: Path) -> None:
    """Health, metadata, configuration, index and statistics through NVIDIA's own client."""
    import tritonclient.grpc as client

    with client.InferenceServerClient(address(tensors)) as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("toy")
        assert triton.get_server_metadata().name == "preba"
        metadata = triton.get_model_metadata("toy")
        assert [(each.name, each.datatype) for each in metadata.inputs] == [("INPUT", "FP32")]
        assert triton.get_model_config("toy").config.max_batch_size == 8
        assert [each.name for each in triton.get_model_repository_index().models] == ["toy"]
        before = triton.get_inference_statistics("toy").model_stats[0].inference_count
        wanted = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], dtype=np.float32)
        tensor = client.InferInput("INPUT", wanted.shape, "FP32")
        tensor.set_data_from_numpy(wanted)
        answer = triton.infer("toy", [tensor], request_id="seven")
        assert answer.get_response().id == "seven"
        assert np.array_equal(answer.as_numpy("OUTPUT"), wanted[:, :1])  # an emulated slice sends the first number back
        statistics = triton.get_inference_statistics("toy", as_json=True)
        after = triton.get_inference_statistics("toy").model_stats[0]
        assert after.inference_count == before + 2
        with pytest.raises(client.InferenceServerException, match="unknown model"):
            triton.get_model_metadata("nobody")
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(statistics), encoding="utf-8")
    found = read_measured(file, model="toy")
    assert found.requests is not None
    assert found.batch_mean is not None
    assert found.stages_ms["execution"] >= 20


def test_cancelled_calls_are_not_executed(tensors: Running) -> None:
    """Calls given up while they wait leave the queue; the server goes on, and says so to NVIDIA's own client."""
    import grpc
    import tritonclient.grpc as client
    from tritonclient.grpc import service_pb2 as pb

    with client.InferenceServerClient(address(tensors)) as triton:

        def executed() -> int:
            return int(triton.get_inference_statistics("toy").model_stats[0].inference_count)

        before = executed()
        with grpc.insecure_channel(address(tensors)) as channel:
            call = channel.unary_unary(
                INFER,
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            # Seven slices and 20 to 48 ms a batch: of 300 at once, most have to wait.
            calls = [call.future(tensor_request("toy")) for _ in range(300)]
            calls[0].result(timeout=5)
            for each in calls:
                each.cancel()
            given_up = sum(each.cancelled() for each in calls)
        time.sleep(0.3)
        assert given_up > 100
        # While the cancellations travel, each slice may take another batch or two.
        assert executed() - before <= 300 - given_up + 3 * 7 * 8
        tensor = client.InferInput("INPUT", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 4), dtype=np.float32))
        assert triton.infer("toy", [tensor]).as_numpy("OUTPUT").shape == (1, 1)


# perf_analyzer


@pytest.fixture(scope="module")
def analyse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs perf_analyzer; skips where the test environment has none."""
    program = prepared(tmp_path_factory.mktemp("perf_analyzer"))
    if program is None:
        pytest.skip("perf_analyzer is not unpacked in this environment (`make test` does it)")

    def run(server: Running, *options: str) -> str:
        return analysed(program, "-m", "toy", "-u", address(server), *options)

    return run


def test_perf_analyzer_drives_tensors_open_loop(tensors: Running, analyse: Callable[..., str], tmp_path: Path) -> None:
    """All requests are answered, at the rate asked for, with server figures that add up to the client's."""
    out = tmp_path / "out.csv"
    said = analyse(
        tensors, "--request-rate-range", "200", "--request-distribution", "poisson", "--request-count", "400",
        "--max-threads", "32", "-f", str(out), "--percentile", "99",
        "--profile-export-file", str(tmp_path / "export.json"),
    )  # fmt: skip
    assert "Request count: 400" in said
    (row,) = csv.DictReader(out.read_text(encoding="utf-8").splitlines())
    assert 100 < float(row["Inferences/Second"]) < 260
    assert 20_000 <= float(row["Server Compute Infer"]) <= 48_000 * 1.5
    assert float(row["p50 latency"]) >= 20_000
    # What perf_analyzer writes, preba reads; its two files agree on the median.
    report, export = read_measured(out), read_measured(tmp_path / "export.json")
    assert report.throughput_rps == float(row["Inferences/Second"])
    assert export.latencies_ns is not None
    assert len(export.latencies_ns) == 400
    assert float(np.median(export.latencies_ns)) / 1e6 == pytest.approx(report.latency_ms["p50"], rel=0.02)


def test_perf_analyzer_drives_tensors_in_batches_of_its_own(tensors: Running, analyse: Callable[..., str]) -> None:
    """A request of four rows counts four inferences."""
    said = analyse(tensors, "--concurrency-range", "8", "-b", "4", "--request-count", "100")
    assert "Successful request count: 100" in said
    assert "Inference count: 400" in said


def test_perf_analyzer_drives_real_jpegs(images: Running, analyse: Callable[..., str], tmp_path: Path) -> None:
    """Photographs go through decoding, batching and a slice."""
    files = [len(one).to_bytes(4, "little") + one for one in photographs().values() if len(one) < 200_000]
    rows = [{"INPUT": {"content": {"b64": base64.b64encode(one).decode()}, "shape": [1]}} for one in files]
    data = {"data": rows}
    file = tmp_path / "input.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    said = analyse(images, "--input-data", str(file), "--concurrency-range", "4", "--request-count", "80")
    assert "Successful request count: 80" in said
    (line,) = (line for line in said.splitlines() if "compute input" in line)
    assert int(line.split("compute input ")[1].split()[0]) > 500, "nothing was decoded"


# MLPerf


def test_mlperf_loadgen_server_scenario_is_valid(tensors: Running, tmp_path: Path) -> None:
    """LoadGen's own Poisson traffic meets its own latency bound, and its log says VALID."""
    loadgen = pytest.importorskip("mlperf_loadgen")
    import tritonclient.grpc as client

    triton = client.InferenceServerClient(address(tensors))
    tensor = client.InferInput("INPUT", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), dtype=np.float32))

    failed: list[str] = []  # LoadGen waits for ever for an answer that does not come
    with ThreadPoolExecutor(64) as threads:

        def one(sample: Any) -> None:
            try:
                triton.infer("toy", [tensor], client_timeout=10)
            except client.InferenceServerException as error:
                failed.append(str(error))
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

        def issue(samples: list[Any]) -> None:
            for sample in samples:
                threads.submit(one, sample)

        sut = loadgen.ConstructSUT(issue, lambda: None)
        library = loadgen.ConstructQSL(64, 64, lambda _: None, lambda _: None)
        settings = loadgen.TestSettings()
        settings.scenario = loadgen.TestScenario.Server
        settings.mode = loadgen.TestMode.PerformanceOnly
        settings.server_target_qps = 200.0
        settings.server_target_latency_ns = 300_000_000
        settings.min_duration_ms = 2500
        settings.min_query_count = 600
        settings.use_token_latencies = False
        output, log = loadgen.LogOutputSettings(), loadgen.LogSettings()
        output.outdir = str(tmp_path)
        output.copy_summary_to_stdout = False
        log.log_output, log.enable_trace = output, False
        loadgen.StartTestWithLogSettings(sut, library, settings, log)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
    triton.close()
    assert failed == []
    summary = (tmp_path / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    assert "Result is : VALID" in summary, summary
    short = read_measured(tmp_path / "mlperf_log_summary.txt")
    long = read_measured(tmp_path / "mlperf_log_detail.txt")
    assert short.throughput_rps == pytest.approx(long.throughput_rps, rel=1e-3)
    assert dict(short.latency_ms) == pytest.approx(dict(long.latency_ms))
    assert 20 <= short.latency_ms["p50"] <= short.latency_ms["p99"] <= 300


# what requests carry


def test_broken_images_are_that_request_s_own_fault(images: Running) -> None:
    """Corrupt, truncated, bombs and things that are no image: INVALID_ARGUMENT each, the good ones beside unharmed."""
    good = photographs()["coffee"]
    small = jpeg(Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)))
    bomb = bytearray(small)
    place = bomb.index(b"\xff\xc0") + 5
    bomb[place : place + 4] = b"\xff\xdc\xff\xdc"
    bad = [
        good[: len(good) // 2],
        bytes(bomb),
        b"GIF89a" + bytes(300),
        b"",
        b"\xff\xd8\xff\xd9",
        good[:200] + bytes(900),
    ]
    requests = [request for one in bad for request in (file_request("toy", one), file_request("toy", good))]
    played = send(images.grpc_port, requests, poisson(60, len(requests) / 60), keep_answers=True)
    assert played.errors == {"INVALID_ARGUMENT": len(bad)}
    assert any("65500 x 65500" in said for said in played.messages)
    assert len(played.answers) == len(bad)
    assert images.process.poll() is None
    large = send(images.grpc_port, [file_request("toy", bytes(5 << 20))], [0.0])
    assert set(large.errors) <= {"RESOURCE_EXHAUSTED", "CANCELLED"}
    assert sum(large.errors.values()) == 1


def test_recordings_are_preprocessed_and_broken_ones_refused(toy: Any, tmp_path: Path) -> None:
    """WAVs of two lengths are bucketed by what they last; malformed ones are INVALID_ARGUMENT."""
    model = toy.model(
        toy.audio_profile(["3g"]), {"kind": "poisson", "rate_rps": 20}, batcher={"kind": "fixed", "batch_max": 4,
        "timeout_ms": 5}, sizes={"kind": "uniform", "low_s": 1.0, "high_s": 10.0},
    )  # fmt: skip
    data = toy.scenario([model], partition="2x3g.20gb", preprocessing=toy.cpu(1, 2000.0), requests=50)
    sound = wav(speech(1.5, 16_000), 16_000)
    long_, odd = wav(speech(7.9, 16_000), 16_000), wav(speech(2.0, 44_100), 44_100)
    bad = [sound[:-50], b"RIFF" + bytes(40), wav(np.zeros(3), 16_000), wav(np.zeros((99, 9)), 16_000)]
    contents = [sound, *bad, long_, odd, sound]
    with running(tmp_path, data) as server:
        played = send(
            server.grpc_port, [file_request("toy", one) for one in contents], [0.1 * k for k in range(len(contents))],
            keep_answers=True,
        )  # fmt: skip
        code, _ = server.stop()
    assert code == 0
    assert played.errors == {"INVALID_ARGUMENT": len(bad)}
    spent = sorted(stage["execution_end_ns"] - stage["execution_start_ns"] for stage in map(stages, played.answers))
    assert len(spent) == 4
    assert spent[0] >= 2_500_000  # the floor of the profile
    assert spent[-1] >= 2_750_000  # 7.9 s take longer: the server found their length in the file


def workers_of(server: Running) -> list[int]:
    """Process ids of the preprocessing workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == server.process.pid and any("spawn_main" in word for word in words):
                    found.append(int(entry.name))
    return found


def test_a_preprocessing_process_that_dies_costs_no_request(toy: Any, tmp_path: Path) -> None:
    """Killed while idle, and killed under load: every picture is decoded, by new processes."""
    model = toy.model(toy.profile({"3g": {"1": 4}}), {"kind": "poisson", "rate_rps": 50})
    data = toy.scenario([model], partition="2x3g.20gb", preprocessing=toy.cpu(1, 2000.0))
    request = file_request("toy", photographs()["coffee"])
    with running(tmp_path, data) as server:
        (worker,) = workers_of(server)
        os.kill(worker, signal.SIGKILL)
        time.sleep(0.3)
        played = send(server.grpc_port, [request] * 5, [0.0] * 5, timeout_s=20)
        assert not played.errors, played.messages

        def kill() -> None:
            for pid in workers_of(server):
                os.kill(pid, signal.SIGKILL)

        played = send(server.grpc_port, [request] * 60, poisson(40, 1.5), during=kill, timeout_s=20)
        assert not played.errors, played.messages


def test_preprocessing_processes_end_with_a_killed_server(toy: Any, tmp_path: Path) -> None:
    """Kill -9 of the server: its workers go too."""
    model = toy.model(toy.profile({"3g": {"1": 4}}), {"kind": "poisson", "rate_rps": 50})
    data = toy.scenario([model], partition="2x3g.20gb", preprocessing=toy.cpu(2, 2000.0))
    with running(tmp_path, data) as server:
        workers = workers_of(server)
        assert len(workers) == 2
        server.stop(signal.SIGKILL)
        until = time.monotonic() + 10
        while any(
            Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers
        ):
            assert time.monotonic() < until
            time.sleep(0.1)


def test_clients_that_leave_at_once_leave_nothing_behind(images: Running) -> None:
    """Calls that are gone before their preprocessing begins give their places back: the server is not full after."""
    request = file_request("toy", photographs()["coffee"])
    for _ in range(3):
        send(images.grpc_port, [request] * 250, [0.0] * 250, timeout_s=0.02)
    time.sleep(1.0)
    played = send(images.grpc_port, [request] * 10, [0.05 * k for k in range(10)], timeout_s=10)
    assert not played.errors, played.messages


# TLS


def test_tls_is_spoken_when_asked_for(toy: Any, tmp_path: Path) -> None:
    """With a certificate only TLS gets in; without the authority's word, nobody."""
    trustme = pytest.importorskip("trustme")
    import grpc

    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(tmp_path / "cert.pem"), append=True)
    model = toy.model(toy.profile({"3g": {"1": 2}}), {"kind": "poisson", "rate_rps": 10})
    scenario = toy.scenario([model], partition="2x3g.20gb")
    options = ["--certificate", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")]
    with running(tmp_path, scenario, *options) as server:
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        played = send(server.grpc_port, [tensor_request("toy")] * 5, [0.0] * 5, credentials=trusted)
        assert len(played.latency_ms) == 5
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with urllib.request.urlopen(f"https://localhost:{server.http_port}/v2/health/ready", context=context) as answer:
            assert answer.status == 200
        with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
            urllib.request.urlopen(f"http://localhost:{server.http_port}/v2/health/ready", timeout=3)
        stranger = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
        for credentials in (stranger, None):
            target = address(server)
            channel = (
                grpc.secure_channel(target, credentials, options=(("grpc.ssl_target_name_override", "localhost"),))
                if credentials
                else grpc.insecure_channel(target)
            )
            with channel, pytest.raises(grpc.FutureTimeoutError):
                grpc.channel_ready_future(channel).result(timeout=1.5)
