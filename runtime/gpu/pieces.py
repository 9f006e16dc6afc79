"""The pieces of the GPU suite. Each returns plain data, or raises `Skipped` with the reason."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from accel.executors import available_backends, build_preprocessor
from accel.measure import MeasuringPlan, measure_costs
from preba.knee import find_knee
from runtime.gpu.networks import NETWORKS, Network, build
from runtime.gpu.timing import on_partition, time_steps
from runtime.load.payloads import synthesise_jpeg, synthesise_speech, wav_header

__all__ = ["PIECES", "Settings", "Skipped", "run_piece"]

PARTS = 7
SHARES = (1, 2, 3, 4, 7)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
UNPARTITIONED = "shares of the multiprocessors (CUDA green contexts): memory bandwidth and caches are not partitioned"


class Skipped(Exception):  # noqa: N818 - it is no error
    """A piece that cannot run here; its text is the reason."""


@dataclass(frozen=True)
class Settings:
    """How much is measured, and on what.

    Attributes
    ----------
    device : str
        ``cuda``, or ``cpu`` to try the suite itself.
    budget_s : float
        Time for the whole piece; it is divided among its points.
    batches : tuple of int
    networks : tuple of str
    seed : int
    """

    device: str = "cuda"
    budget_s: float = 120.0
    batches: tuple[int, ...] = BATCHES
    networks: tuple[str, ...] = tuple(NETWORKS)
    seed: int = 0


def _torch(settings: Settings) -> Any:  # noqa: ANN401 - a module without types
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torchvision")
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed") from error
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise Skipped("PyTorch finds no CUDA GPU here")
    return torch


def preprocessing(settings: Settings) -> dict[str, Any]:
    """DALI on the GPU, images and audio: by batch, JPEG engine share and parallel pipelines; nvJPEG beside it."""
    backend = "dali_gpu" if settings.device == "cuda" else "dali_cpu"
    missing = available_backends()[backend]
    if missing is not None:
        raise Skipped(f"{backend}: {missing}")
    rng = np.random.default_rng(settings.seed)
    images = [synthesise_jpeg(110_000, rng) for _ in range(16)]
    sounds = [synthesise_speech(160_000, rng) for _ in range(4)]
    recordings = [wav_header(len(one)) + one.astype("<i2").tobytes() for one in sounds]
    found: dict[str, Any] = {"backend": backend, "points": [], "streams": []}
    repeats = 20 if settings.budget_s > 30 else 5
    for share in (0.0, 0.5, 1.0) if backend == "dali_gpu" else (0.0,):
        plan = MeasuringPlan(backend, settings.batches, 3, repeats, share)
        found["points"] += [asdict(one) for one in measure_costs("image", [(110_000.0, images)], plan)]
    plan = MeasuringPlan(backend, settings.batches, 3, repeats, 0.0)
    found["points"] += [asdict(one) for one in measure_costs("audio", [(10.0, recordings)], plan)]
    for streams in (1, 2, 4, 8):
        rate = _parallel_rate(backend, images, streams, batch=max(settings.batches), seconds=settings.budget_s / 30)
        found["streams"].append({"pipelines": streams, "images_per_s": rate})
    found["yardstick"] = _nvjpeg(settings, images)
    return found


def _parallel_rate(backend: str, images: Sequence[bytes], streams: int, *, batch: int, seconds: float) -> float:
    """Images a second of several pipelines side by side."""
    workers = [build_preprocessor("image", backend, batch_max=batch) for _ in range(streams)]
    inputs = [images[k % len(images)] for k in range(batch)]
    done = [0] * streams
    until = 0.0

    def work(place: int) -> None:
        while time.perf_counter() < until:
            workers[place].preprocess(inputs)
            done[place] += batch

    for one in workers:
        one.preprocess(inputs)
    until = time.perf_counter() + seconds
    threads = [threading.Thread(target=work, args=(place,)) for place in range(streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - began
    for one in workers:
        one.close()
    return sum(done) / took_s


def _nvjpeg(settings: Settings, images: Sequence[bytes]) -> dict[str, Any]:
    """Torchvision's JPEG decoder on the same files, with resize, crop and normalisation."""
    try:
        torch = _torch(settings)
    except Skipped as reason:
        return {"skipped": str(reason)}
    decode = importlib.import_module("torchvision.io").decode_jpeg
    functional = importlib.import_module("torchvision.transforms.functional")
    found: dict[str, Any] = {"points": []}
    for batch in settings.batches:
        files = [torch.frombuffer(bytearray(images[k % len(images)]), dtype=torch.uint8) for k in range(batch)]

        def step(files: Any = files) -> None:  # noqa: ANN401 - tensors
            decoded = decode(files, device=settings.device)
            small = [functional.center_crop(functional.resize(one, [256], antialias=True), [224]) for one in decoded]
            batch_of = torch.stack(small).float() / 255
            functional.normalize(batch_of, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            if settings.device == "cuda":
                torch.cuda.synchronize()

        try:
            timing = time_steps(torch, step, device="cpu", budget_s=settings.budget_s / 60)
        except RuntimeError as error:
            return {"skipped": str(error).splitlines()[0]}
        found["points"].append({"batch": batch, **asdict(timing), "images_per_s": 1e3 * batch / timing.median_ms})
    return found


def models(settings: Settings) -> dict[str, Any]:
    """Latency of every network by batch, on the whole GPU and on shares of its multiprocessors, in half precision."""
    torch = _torch(settings)
    half = settings.device == "cuda"
    found: dict[str, Any] = {"precision": "fp16" if half else "fp32", "note": UNPARTITIONED, "networks": {}}
    points = len(settings.networks) * len(SHARES) * len(settings.batches)
    for name in settings.networks:
        network = NETWORKS[name]
        module = build(torch, network, device=settings.device, half=half)
        table: dict[str, Any] = {}
        for share in SHARES:
            with (
                on_partition(torch, PARTS, 0, share, device=settings.device) as multiprocessors,
                torch.inference_mode(),
            ):
                rows = {}
                for batch in settings.batches:
                    timing = _time(torch, network, module, batch, settings, settings.budget_s / points)
                    rows[batch] = asdict(timing)
                table[str(share)] = {"multiprocessors": multiprocessors, "batches": rows, **_knee(rows)}
        found["networks"][name] = {"modality": network.modality, "shares": table, "paper_knees": network.paper_knees}
        del module
    return found


def _time(torch: Any, network: Network, module: Any, batch: int, settings: Settings, budget_s: float) -> Any:  # noqa: ANN401
    dtype = torch.float16 if settings.device == "cuda" else torch.float32
    inputs = torch.randn(network.shape(batch, 10.0), device=settings.device, dtype=dtype)
    return time_steps(torch, lambda: module(inputs), device=settings.device, budget_s=budget_s)


def _knee(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    latency = {batch: float(row["median_ms"]) for batch, row in rows.items()}
    batch = find_knee(latency)
    return {"batch_knee": batch, "time_knee_ms": latency[batch]}


def interference(settings: Settings) -> dict[str, Any]:
    """One to seven shares at work at once: how much slower each gets."""
    torch = _torch(settings)
    half = settings.device == "cuda"
    found: dict[str, Any] = {"note": UNPARTITIONED, "networks": {}}
    seconds = settings.budget_s / (len(settings.networks) * PARTS)
    for name in settings.networks:
        network = NETWORKS[name]
        batch = network.paper_knees.get("1", 1)
        rows: list[dict[str, Any]] = []
        for active in range(1, PARTS + 1):
            rates = _rates_at_once(torch, network, active, batch, seconds, settings, half=half)
            rows.append({"active": active, "batches_per_s_each": rates})
        alone = rows[0]["batches_per_s_each"][0]
        for row in rows:
            row["slowdown"] = alone / float(np.mean(row["batches_per_s_each"])) - 1
        found["networks"][name] = {"batch": batch, "rows": rows}
    return found


def _rates_at_once(
    torch: Any,  # noqa: ANN401 - a module without types
    network: Network,
    active: int,
    batch: int,
    seconds: float,
    settings: Settings,
    *,
    half: bool,
) -> list[float]:
    """Batches a second of each of several shares that work side by side, each with a module of its own."""
    rates = [0.0] * active
    ready, go = threading.Barrier(active + 1), threading.Event()
    failures: list[BaseException] = []

    def work(place: int) -> None:
        try:
            module = build(torch, network, device=settings.device, half=half)
            dtype = torch.float16 if half else torch.float32
            with on_partition(torch, PARTS, place, 1, device=settings.device), torch.inference_mode():
                inputs = torch.randn(network.shape(batch, 10.0), device=settings.device, dtype=dtype)
                for _ in range(3):
                    module(inputs)
                _synchronise(torch, settings.device)
                ready.wait()
                go.wait()
                began, count = time.perf_counter(), 0
                while time.perf_counter() - began < seconds:
                    module(inputs)
                    _synchronise(torch, settings.device)
                    count += 1
                rates[place] = count / (time.perf_counter() - began)
        except BaseException as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(active)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
    except threading.BrokenBarrierError:
        raise failures[0] from None
    go.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return rates


def _synchronise(torch: Any, device: str) -> None:  # noqa: ANN401
    if device == "cuda":
        torch.cuda.current_stream().synchronize()


PIECES: Mapping[str, Callable[[Settings], dict[str, Any]]] = {
    "preprocessing": preprocessing,
    "models": models,
    "interference": interference,
}
"""By name, in order of worth."""


def run_piece(name: str, settings: Settings) -> dict[str, Any]:
    """Run a piece; a reason under ``skipped`` where it cannot, under ``failed`` where it broke."""
    began = time.monotonic()
    try:
        found = PIECES[name](settings)
    except Skipped as reason:
        found = {"skipped": str(reason)}
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"}
    return {"piece": name, "seconds": round(time.monotonic() - began, 1), **found}
