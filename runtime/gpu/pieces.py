"""The pieces of the GPU suite. Each returns plain data, or raises `Skipped` with the reason."""

from __future__ import annotations

import contextlib
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
from runtime.gpu.timing import Timing, as_graph, on_partition, time_steps
from runtime.load.payloads import synthesise_jpeg, synthesise_speech, wav_header

__all__ = ["PARTS", "PIECES", "Settings", "Skipped", "prepared_step", "rate_of", "run_piece", "torch_for"]

PARTS = 7
SHARES = (1, 2, 3, 4, 7)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
GRAPH_SHARE = 0.7
"""A large batch is bound by the GPU however it is launched: a graph that takes less of its time has left the share."""
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
    shares : tuple of int
        Sevenths of the GPU.
    seed : int
    """

    device: str = "cuda"
    budget_s: float = 120.0
    batches: tuple[int, ...] = BATCHES
    networks: tuple[str, ...] = tuple(NETWORKS)
    shares: tuple[int, ...] = SHARES
    seed: int = 0


def torch_for(settings: Settings) -> Any:  # noqa: ANN401 - a module without types
    """PyTorch, with torchvision beside it.

    Raises
    ------
    Skipped
        One of them is not installed, or finds no GPU.
    """
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
        torch = torch_for(settings)
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
    torch = torch_for(settings)
    half = settings.device == "cuda"
    found: dict[str, Any] = {"precision": "fp16" if half else "fp32", "note": UNPARTITIONED, "networks": {}}
    points = len(settings.networks) * len(settings.shares) * len(settings.batches)
    for name in settings.networks:
        network = NETWORKS[name]
        module = build(torch, network, device=settings.device, half=half)
        table: dict[str, Any] = {}
        for share in settings.shares:
            with (
                on_partition(torch, PARTS, 0, share, device=settings.device) as multiprocessors,
                torch.inference_mode(),
            ):
                eager, graphs = _time(torch, network, module, settings, settings.budget_s / points)
                rows = believed_rows(eager, graphs, whole=share == PARTS)
                table[str(share)] = {"multiprocessors": multiprocessors, "batches": rows, **_knee(rows)}
                left_out = [batch for batch in settings.batches if batch not in rows]
                if left_out:
                    table[str(share)]["out_of_memory"] = left_out
        found["networks"][name] = {"modality": network.modality, "shares": table, "paper_knees": network.paper_knees}
        del module
    return found


def _time(
    torch: Any,  # noqa: ANN401 - a module without types
    network: Network,
    module: Any,  # noqa: ANN401
    settings: Settings,
    budget_s: float,
) -> tuple[dict[int, Timing], dict[int, Timing]]:
    """Every batch kernel by kernel, and those that can be captured as CUDA graphs; half of the time for each.

    Batches for which memory does not suffice are left out, the smallest excepted.
    """
    eager: dict[int, Timing] = {}
    graphs: dict[int, Timing] = {}
    for batch in settings.batches:
        try:
            inputs = inputs_of(torch, network, batch, settings)

            def step(inputs: Any = inputs) -> Any:  # noqa: ANN401 - tensors
                return module(inputs)

            eager[batch] = time_steps(torch, step, device=settings.device, budget_s=budget_s / 2)
            replay = as_graph(torch, step, device=settings.device)
            if replay is not None:
                graphs[batch] = time_steps(torch, replay, device=settings.device, budget_s=budget_s / 2)
        except RuntimeError as error:  # PyTorch's own is one
            if "out of memory" not in str(error).lower() or not eager:
                raise
            break
    return eager, graphs


def inputs_of(torch: Any, network: Network, batch: int, settings: Settings) -> Any:  # noqa: ANN401 - tensors
    """A batch of random inputs, in half precision on a GPU; recordings of 10 s."""
    dtype = torch.float16 if settings.device == "cuda" else torch.float32
    return torch.randn(network.shape(batch, 10.0), device=settings.device, dtype=dtype)


def believed_rows(
    eager: Mapping[int, Timing], graphs: Mapping[int, Timing], *, whole: bool
) -> dict[int, dict[str, Any]]:
    """One row a batch: of its graph, unless graphs do not stay on their share of the GPU; the eager median beside it.

    Parameters
    ----------
    eager, graphs : mapping of int to Timing
        By batch.
    whole : bool
        The whole GPU, which no graph can leave.
    """
    largest = max(eager)
    believed = whole or (largest in graphs and graphs[largest].median_ms >= GRAPH_SHARE * eager[largest].median_ms)
    rows = {}
    for batch, timing in eager.items():
        launched = "graph" if believed and batch in graphs else "eager"
        chosen = graphs[batch] if launched == "graph" else timing
        rows[batch] = {**asdict(chosen), "launched": launched, "eager_median_ms": timing.median_ms}
    return rows


def _knee(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    latency = {batch: float(row["median_ms"]) for batch, row in rows.items()}
    batch = find_knee(latency)
    return {"batch_knee": batch, "time_knee_ms": latency[batch]}


def interference(settings: Settings) -> dict[str, Any]:
    """One to seven shares at work at once: how much slower each gets."""
    torch = torch_for(settings)
    found: dict[str, Any] = {"note": UNPARTITIONED, "networks": {}}
    seconds = settings.budget_s / (len(settings.networks) * PARTS)
    for name in settings.networks:
        network = NETWORKS[name]
        batch = network.paper_knees.get("1", 1)
        rows: list[dict[str, Any]] = []
        for active in range(1, PARTS + 1):
            rates, launched = _rates_at_once(torch, network, active, batch, seconds, settings)
            rows.append({"active": active, "batches_per_s_each": rates, "launched": launched})
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
) -> tuple[list[float], list[str]]:
    """Batches a second of each of several shares that work side by side, each with a module of its own, and how.

    Graphs where they can be captured: threads of one process stand in each other's way when they launch kernels.
    """
    rates, launched = [0.0] * active, ["eager"] * active
    capturing = threading.Lock()
    ready, go = threading.Barrier(active + 1), threading.Event()
    failures: list[BaseException] = []

    def work(place: int) -> None:
        try:
            with contextlib.ExitStack() as stack:
                with capturing:  # a capture must not see the device synchronised, or cut, by another one
                    if failures:
                        return
                    stack.enter_context(on_partition(torch, PARTS, place, 1, device=settings.device))
                    stack.enter_context(torch.inference_mode())
                    step, launched[place] = prepared_step(torch, network, batch, settings)
                ready.wait()
                go.wait()
                rates[place] = rate_of(torch, step, seconds, settings.device)
        except BaseException as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(active)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
    except threading.BrokenBarrierError:
        for thread in threads:
            thread.join()
        raise failures[0] from None
    go.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return rates, sorted(set(launched))


def prepared_step(
    torch: Any,  # noqa: ANN401 - a module without types
    network: Network,
    batch: int,
    settings: Settings,
) -> tuple[Callable[[], object], str]:
    """One batch through a network, warmed up, on the current stream; and whether as a graph or kernel by kernel."""
    module = build(torch, network, device=settings.device, half=settings.device == "cuda")
    inputs = inputs_of(torch, network, batch, settings)

    def step() -> object:
        with torch.inference_mode():
            return module(inputs)

    for _ in range(3):
        step()
    _synchronise(torch, settings.device)
    replay = as_graph(torch, step, device=settings.device)
    chosen = replay or step
    chosen()
    _synchronise(torch, settings.device)
    return chosen, "eager" if replay is None else "graph"


def rate_of(torch: Any, step: Callable[[], object], seconds: float, device: str) -> float:  # noqa: ANN401
    """How often a second a step is done, one after another."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        _synchronise(torch, device)
        count += 1
    return count / (time.perf_counter() - began)


def _synchronise(torch: Any, device: str) -> None:  # noqa: ANN401
    if device == "cuda":
        torch.cuda.current_stream().synchronize()


PIECES: Mapping[str, Callable[[Settings], dict[str, Any]]] = {
    "preprocessing": preprocessing,
    "models": models,
    "interference": interference,
}
"""By name, in order of worth."""


def run_piece(piece: Callable[[Settings], dict[str, Any]], name: str, settings: Settings) -> dict[str, Any]:
    """Run a piece; a reason under ``skipped`` where it cannot, under ``failed`` where it broke."""
    began = time.monotonic()
    try:
        found = piece(settings)
    except Skipped as reason:
        found = {"skipped": str(reason)}
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"}
    return {"piece": name, "seconds": round(time.monotonic() - began, 1), **found}
