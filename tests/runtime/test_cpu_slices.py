"""Slices that really compute: an ONNX model under ONNX Runtime behind the front end; and profiles measured of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from live_serving import CODE, needs_triton

from preba.profile import load_profile

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
