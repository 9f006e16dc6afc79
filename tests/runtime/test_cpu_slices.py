"""Slices that really compute: an ONNX model under ONNX Runtime behind the front end; and profiles measured of them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from live_serving import CODE, file_request, needs_triton, running, send, stages
from pictures_and_speech import image_by_definition, photographs, speech, wav

from accel.executors import available_backends
from preba.profile import load_profile
from runtime.load.run import Target, play

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Channel means of an image, times 1, 2 and 3, plus the channel's number: an answer that can be checked."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    needs_triton()
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "weight"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["y"]),
    ]
    constants = [
        helper.make_tensor("weight", kind, [3], [1.0, 2.0, 3.0]),
        helper.make_tensor("bias", kind, [3], [0.0, 1.0, 2.0]),
    ]
    graph = helper.make_graph(
        nodes, "means", [helper.make_tensor_value_info("x", kind, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("y", kind, ["n", 3])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path = tmp_path_factory.mktemp("onnx") / "means.onnx"
    onnx.save(model, path)
    return path


def test_measured_profile_of_cpu_slices_feeds_the_simulator(toy: Any, onnx_model: Path, tmp_path: Path) -> None:
    """`preba profile model` runs the real model, writes a measured profile, and `preba simulate` reads it."""
    model = toy.model(toy.profile({"1g": {"1": 5, "4": 9}}), {"kind": "poisson", "rate_rps": 50})
    live = {"slices": {"kind": "cpu", "onnx": str(onnx_model)}}
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(toy.scenario([model], partition="7x1g.5gb", requests=200, live=live)))
    out = tmp_path / "measured-means.yaml"
    done = subprocess.run(
        [sys.executable, "-c", CODE, "profile", "model", str(path), "--batches", "1,4", "--repeats", "10", "--out",
         str(out), "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert [(point["batch"], point["count"]) for point in points] == [(1, 10), (4, 10)]
    assert all(0 < point["inside_ms"] <= point["median_ms"] for point in points)
    assert all(point["p10_ms"] <= point["median_ms"] <= point["p90_ms"] for point in points)
    profile = load_profile(str(out))
    assert profile.provenance.kind == "measured"
    assert profile.provenance.date is not None
    simulated = subprocess.run(
        [sys.executable, "-c", CODE, "simulate", str(path), "--set", f"models[0].profile={out}", "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert simulated.returncode == 0, simulated.stderr


def test_tensors_arrive_unharmed_in_real_models(toy: Any, onnx_model: Path) -> None:
    """What goes in as INPUT, and what lies in shared memory as SLOTS, comes out as the model's own arithmetic."""
    import asyncio

    from tritonclient.grpc import service_pb2 as pb

    from preba.serving import plan_servers
    from runtime.placement import place_slice
    from runtime.processes import Workplace
    from runtime.tensors import TensorPool
    from runtime.triton.install import find_triton

    model = toy.model(
        toy.profile({"1g": {"1": 5, "4": 9}}), {"kind": "poisson", "rate_rps": 50},
        batcher={"kind": "greedy", "batch_max": 4},
    )  # fmt: skip
    live = {"slices": {"kind": "cpu", "onnx": str(onnx_model)}}
    resolved = toy.resolve(toy.scenario([model], partition="7x1g.5gb", live=live))
    images = np.random.default_rng(5).standard_normal((4, 3, 224, 224)).astype(np.float32)
    expected = images.mean(axis=(2, 3)) * [1, 2, 3] + [0, 1, 2]

    async def ask() -> None:
        served = resolved.models[0]
        with Workplace() as workplace:
            pool = TensorPool.named(f"{workplace.prefix}tensors", 8, images[0].size)
            for slot, image in zip((6, 1, 3, 0), images, strict=True):
                pool.write(slot, image)
            one = place_slice(
                resolved, workplace, find_triton(), served, plan_servers(resolved, served, 0), 0, 0, pool, native=False
            )
            try:
                await one.start()
                for name, datatype, tensor in (
                    ("INPUT", "FP32", images),
                    ("SLOTS", "INT32", np.array([[6], [1], [3], [0]], dtype=np.int32)),
                ):
                    request = pb.ModelInferRequest(model_name=served.config.name)
                    request.inputs.add(name=name, datatype=datatype).shape[:] = tensor.shape
                    request.raw_input_contents.append(tensor.tobytes())
                    answer = await one.execute(request, 20.0)
                    contents = dict(zip((o.name for o in answer.outputs), answer.raw_output_contents, strict=True))
                    found = np.frombuffer(contents["OUTPUT"], dtype=np.float32).reshape(4, 3)
                    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            finally:
                await one.stop()

    asyncio.run(ask())


@pytest.mark.parametrize("backend", ["cpu", "dali_cpu"])
def test_slices_that_decode_themselves_answer_as_the_definition_says(
    toy: Any, onnx_model: Path, tmp_path: Path, backend: str
) -> None:
    """JPEGs go to the slice's process: the answer is that of the decoded picture, broken ones are refused."""
    missing = available_backends()[backend]
    if missing is not None:
        pytest.skip(f"{backend}: {missing}")
    model = toy.model(
        toy.profile({"3g": {"1": 5, "4": 9}}), {"kind": "poisson", "rate_rps": 50},
        batcher={"kind": "fixed", "batch_max": 4, "timeout_ms": 20},
    )  # fmt: skip
    live = {
        "slices": {"kind": "cpu", "onnx": str(onnx_model)},
        "preprocessing": {"backend": backend, "place": "slice"},
    }
    data = toy.scenario([model], partition="2x3g.20gb", preprocessing=toy.dali("dali_shared"), live=live)
    good = [content for content in photographs().values() if len(content) < 300_000]
    corrupt = good[0][: len(good[0]) // 3] + bytes(2000) + b"\xff\xd9"
    contents = [*good, corrupt, good[0][:500], *good]
    with running(tmp_path, data) as server:
        # The load generator asks the server what it takes, as any client would.
        found = play(toy.resolve({**data, "run": {"requests": 30}}), Target(f"127.0.0.1:{server.grpc_port}"))
        assert bool(found.result.records.served.all())
        assert (found.result.records.slice_preprocess_ns > 0).all()
        played = send(
            server.grpc_port, [file_request("toy", one) for one in contents], [0.004 * k for k in range(len(contents))],
            keep_answers=True,
        )  # fmt: skip
        code, _ = server.stop()
        assert not server.leftovers()
    assert code == 0
    assert set(played.errors) <= {"INVALID_ARGUMENT"}
    assert 1 <= played.errors["INVALID_ARGUMENT"] <= 2, "what follows damage may still be a picture, if a grey one"
    expected = [image_by_definition(one).mean(axis=(1, 2)) * [1, 2, 3] + [0, 1, 2] for one in good]
    answers = [np.frombuffer(one.raw_output_contents[0], dtype=np.float32) for one in played.answers]
    for right in expected:
        near = [answer for answer in answers if np.abs(answer - right).max() < 0.12]
        assert len(near) >= 2
    for answer in played.answers:
        stage = stages(answer)
        assert 0 < stage["slice_preprocess_ns"] < stage["execution_end_ns"] - stage["execution_start_ns"]


def test_recordings_reach_real_models_in_one_shape(toy: Any, tmp_path: Path) -> None:
    """Recordings of different lengths: every band of each lies where the model expects it, silence behind it."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    # The sum over time of every band, of the squares: silence behind a short recording adds nothing.
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("ReduceSum", ["square", "axes"], ["y"], keepdims=0),
    ]
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [2])
    graph = helper.make_graph(
        nodes, "energy", [helper.make_tensor_value_info("x", kind, ["n", 80, "t"])],
        [helper.make_tensor_value_info("y", kind, ["n", 80])], [axes],
    )  # fmt: skip
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    built.ir_version = 8
    onnx.save(built, tmp_path / "energy.onnx")
    model = toy.model(
        toy.audio_profile(["3g"]), {"kind": "poisson", "rate_rps": 20},
        batcher={"kind": "fixed", "batch_max": 4, "timeout_ms": 30}, sizes={"kind": "constant", "audio_s": 6.0},
    )  # fmt: skip
    for place in ("workers", "slice"):
        live = {
            "slices": {"kind": "cpu", "onnx": str(tmp_path / "energy.onnx")},
            "preprocessing": {"backend": "cpu", "place": place},
        }
        data = toy.scenario(
            [model], partition="2x3g.20gb", preprocessing=toy.cpu(1, 1000.0), live=live, requests=50
        )  # fmt: skip
        lengths = (0.5, 2.0, 6.0)
        sounds = [speech(seconds, 16_000, seed=k) for k, seconds in enumerate(lengths)]
        folder = tmp_path / place
        folder.mkdir()
        with running(folder, data) as server:
            played = send(
                server.grpc_port, [file_request("toy", wav(one, 16_000)) for one in sounds], [0.0] * 3,
                keep_answers=True,
            )  # fmt: skip
        assert not played.errors, played.messages
        # Features have mean 0 and standard deviation 1 in every band: their squares sum to the frames less one.
        energies = sorted(
            float(np.median(np.frombuffer(one.raw_output_contents[0], np.float32))) for one in played.answers
        )
        assert energies == pytest.approx([100 * seconds for seconds in lengths], rel=0.01)


@pytest.mark.parametrize(("kind", "says"), [("sm-partition", "libcuda"), ("gpu", "CUDAExecutionProvider")])
def test_slices_of_a_gpu_never_run_on_the_cpu_instead(
    toy: Any, onnx_model: Path, tmp_path: Path, kind: str, says: str
) -> None:
    """Without a GPU such a server does not start, and the reason is in what it says."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("there is a CUDA driver here")
    model = toy.model(toy.profile({"3g": {"1": 5}, "full": {"1": 5}}), {"kind": "poisson", "rate_rps": 5})
    partition = "full" if kind == "gpu" else "2x3g.20gb"
    data = toy.scenario([model], partition=partition, live={"slices": {"kind": kind, "onnx": str(onnx_model)}})
    with pytest.raises(AssertionError, match=says), running(tmp_path, data):
        pass
