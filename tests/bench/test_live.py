"""What the live server itself costs, beside a client that talks to Triton directly. Prints; asserts no time.

Run by ``make bench``; ``PREBA_SOAK_S`` sets how long the soak lasts (600 s unless told otherwise).
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.bench
pytest.importorskip("tritonclient.grpc", reason="the live extra is not installed")


async def _closed_loop(port: int, model: str, clients: int, seconds: float) -> tuple[float, Any]:
    """Requests per second and latencies in ms of so many clients that never pause."""
    from grpc import aio
    from live_serving import INFER, tensor_request
    from tritonclient.grpc import service_pb2 as pb

    latency_ms: list[float] = []
    async with aio.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.enable_http_proxy", 0),)) as channel:
        call = channel.unary_unary(
            INFER, request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )  # fmt: skip
        request = tensor_request(model)
        await call(request)
        until = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until:
                began = time.monotonic()
                await call(request)
                latency_ms.append((time.monotonic() - began) * 1e3)

        await asyncio.gather(*(client() for _ in range(clients)))
    return len(latency_ms) / seconds, np.array(latency_ms)


def test_front_end_beside_triton(toy: Any, tmp_path: Path) -> None:
    """Null slices behind the front end, and a model that does nothing in Triton, by the same client in turns."""
    from live_serving import poisson, running, send, tensor_request

    model = toy.model(
        toy.profile({"1g": {"1": 0.001, "8": 0.001}}), {"kind": "poisson", "rate_rps": 1},
        batcher={"kind": "greedy", "batch_max": 8},
    )  # fmt: skip
    null = toy.scenario([model], partition="7x1g.5gb", live={"slices": {"kind": "emulated", "null": True}})
    direct = toy.scenario(
        [{**model, "batcher": {"kind": "triton", "max_batch_size": 8}, "slices": [0]}],
        partition="7x1g.5gb", server={"topology": "per_slice"},
    )  # fmt: skip
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with running(tmp_path / "a", null) as ours, running(tmp_path / "b", direct) as other:
        triton_port = other.triton_ports()[0]
        rows = {"front end, null slices": ours.grpc_port, "Triton directly": triton_port}
        print()
        best = {}
        for clients in (1, 16, 64):
            for name, port in rows.items():
                found = [asyncio.run(_closed_loop(port, "toy", clients, 2.0)) for _ in range(3)]
                rate, latency_ms = sorted(found, key=lambda one: one[0])[1]
                best[name] = max(best.get(name, 0.0), rate)
                print(f"{clients:3} clients  {name:24} {rate:7.0f} req/s  p50 {np.median(latency_ms):6.2f} ms  "
                      f"p99 {np.percentile(latency_ms, 99):6.2f} ms")  # fmt: skip
        print(f"rate of the front end over Triton's: {best['front end, null slices'] / best['Triton directly']:.0%}")
        half = 0.5 * min(best.values())
        middle = {}
        gc.collect()
        gc.freeze()
        gc.disable()  # a search for garbage in this client, of some 20 ms, would be the 99th percentile
        turns = {name: [] for name in rows}  # type: dict[str, list[tuple[float, float]]]
        for turn in range(5):
            times = poisson(half, 5.0, seed=turn)
            for name, port in rows.items():
                played = send(port, [tensor_request("toy")] * len(times), times)
                assert not played.errors
                turns[name].append(tuple(np.percentile(played.latency_ms, [50, 99])))
        gc.enable()
        gc.unfreeze()
        for name, found in turns.items():
            p50, p99 = middle[name] = np.median(found, axis=0)
            print(f"half load ({half:.0f} req/s)  {name:24} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms (medians of 5 runs)")
        p50, p99 = middle["front end, null slices"] - middle["Triton directly"]
        print(f"added by the front end: p50 {p50:+.2f} ms, p99 {p99:+.2f} ms")


def test_soak(toy: Any, tmp_path: Path) -> None:
    """Ten minutes at 80 % load: memory and shared memory at the start, in the middle and at the end."""
    from live_serving import poisson, running, send, tensor_request

    seconds = float(os.environ.get("PREBA_SOAK_S", "600"))
    model = toy.model(
        toy.profile({"1g": {"1": 20, "8": 48}}), {"kind": "poisson", "rate_rps": 1},
        batcher={"kind": "fixed", "batch_max": 8, "timeout_ms": 5},
    )  # fmt: skip
    rate_rps = 0.8 * 7 * 8 / 0.0495
    with running(tmp_path, toy.scenario([model], partition="7x1g.5gb")) as server:
        print()
        for turn in range(10):
            times = poisson(rate_rps, seconds / 10, seed=turn)
            played = send(server.grpc_port, [tensor_request("toy")] * len(times), times)
            p50, p99 = np.percentile(played.latency_ms, [50, 99])
            print(
                f"{(turn + 1) * seconds / 10:5.0f} s: server {_resident_mb(server.process.pid):5.0f} MB, "
                f"slices {sum(_resident_mb(pid) for pid in server.slice_processes().values()):5.0f} MB, "
                f"{len(server.leftovers())} pieces of shared memory, {played.goodput_rps:.0f} req/s, "
                f"p50 {p50:.1f} p99 {p99:.1f} ms, errors {dict(played.errors)}"
            )
    print(f"left at the end: {server.leftovers()}; this test's own peak {resource.getrusage(0).ru_maxrss // 1024} MB")


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")
