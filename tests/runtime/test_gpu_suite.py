"""The GPU suite without a GPU: what cannot run says why, DALI's piece runs on CPU threads, results become profiles."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import FakeGpu, FakeNvml
from typer.testing import CliRunner

from accel.executors import available_backends
from preba.cli.main import VERBS
from preba.cli.validate_gpu import profiles_of, validate_gpu
from preba.errors import MissingFileError, ScenarioError
from preba.knee import find_knee
from preba.mig.catalogue import load_device
from preba.profile import load_profile
from runtime.gpu.mig import Cut, interference_on_mig, mig_cut, models_on_mig
from runtime.gpu.networks import NETWORKS
from runtime.gpu.pieces import PIECES, UNPARTITIONED, Settings, believed_rows, run_piece
from runtime.gpu.timing import Timing, as_graph, time_steps
from runtime.mig import carry_out, plan_change, read_gpus, wanted_layout
from runtime.nvml import open_nvml

FACTS = {"where": "a GPU of the tests", "date": "2026-11-21", "software": "none"}


def row(ms: float) -> dict[str, Any]:
    return {"median_ms": ms, "p10_ms": 0.99 * ms, "p90_ms": 1.02 * ms, "count": 50, "launched": "graph"}


@pytest.mark.skipif(available_backends()["dali_gpu"] is None, reason="there is a GPU here")
def test_every_piece_says_why_it_cannot_run_and_the_suite_is_fine() -> None:
    """No failure, a reason each: a machine without a GPU is no error."""
    for name in PIECES:
        found = run_piece(PIECES[name], name, Settings(budget_s=5))
        if "skipped" not in found:
            assert importlib.util.find_spec("torch") is not None
            continue
        assert any(word in found["skipped"] for word in ("CUDA", "torch", "nvidia-dali"))


def test_command_writes_a_file_for_every_piece(tmp_path: Path) -> None:
    """Skipped pieces leave their reason in their file; an unknown piece is named; a missing model too."""
    import typer

    application = typer.Typer()
    application.command()(validate_gpu)
    assert "validate-gpu" in VERBS
    result = CliRunner().invoke(application, ["--pieces", "live,models", "--out", str(tmp_path), "--budget-s", "5"])
    assert result.exit_code == 0, result.output
    live = json.loads((tmp_path / "live.json").read_text(encoding="utf-8"))
    assert "onnx" in live["skipped"].lower()
    assert "not partitioned" in live["note"]
    wrong = CliRunner().invoke(application, ["--pieces", "model"])
    assert isinstance(wrong.exception, ScenarioError)
    assert "did you mean 'models'" in str(wrong.exception)
    gone = CliRunner().invoke(application, ["--pieces", "live", "--onnx", "/no/such.onnx", "--out", str(tmp_path)])
    assert isinstance(gone.exception, MissingFileError)
    assert str(gone.exception) == "--onnx /no/such.onnx: no such file"


@pytest.mark.skipif(available_backends()["dali_cpu"] is not None, reason="DALI is not installed")
def test_preprocessing_piece_measures_dali_on_cpu_threads() -> None:
    """The same code as on a GPU: points by batch for images and audio, and several pipelines side by side."""
    found = run_piece(PIECES["preprocessing"], "preprocessing", Settings(device="cpu", budget_s=6.0, batches=(1, 2)))
    assert "failed" not in found, found
    assert {(point["modality"], point["batch"]) for point in found["points"]} == {
        (modality, batch) for modality in ("image", "audio") for batch in (1, 2)
    }
    assert all(point["median_us"] > 0 for point in found["points"])
    assert [entry["pipelines"] for entry in found["streams"]] == [1, 2, 4, 8]
    assert all(entry["images_per_s"] > 0 for entry in found["streams"])


def test_measured_models_become_profiles_that_load(tmp_path: Path) -> None:
    """Shares of seven are slices, the whole GPU is `full`; audio has its length; the note on memory is in each."""
    batches = {1: 2.0, 2: 2.1, 4: 2.3, 8: 4.1, 16: 8.0}
    shares = {
        str(share): {
            "multiprocessors": 18 * share,
            "batches": {str(batch): row(ms * 7 / share) for batch, ms in batches.items()},
        }
        for share in (1, 2, 3, 4, 7)
    }
    result = {
        "precision": "fp16",
        "note": UNPARTITIONED,
        "networks": {
            name: {"modality": NETWORKS[name].modality, "shares": shares, "paper_knees": {}}
            for name in ("swin-t", "conformer-small")
        },
    }
    files = profiles_of(result, FACTS)
    assert sorted(files) == ["measured-conformer-small.yaml", "measured-swin-t.yaml"]
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        profile = load_profile(str(tmp_path / name))
        assert set(profile.slices) == {"1g", "2g", "3g", "4g", "full"}
        assert profile.provenance.kind == "measured"
        assert "not partitioned" in str(profile.provenance.notes)
        length_ns = 10_000_000_000 if profile.modality == "audio" else None
        assert profile.latency_ns("full", 8, length_ns) == 4_100_000
        assert profile.latency_ns("1g", 8, length_ns) == 28_700_000
    assert find_knee(dict(batches)) == 4


class FakeCuda:
    """What timing needs of ``torch.cuda``: a clock that launches and kernels advance, and capture."""

    def __init__(self, *, captures: bool) -> None:
        self.captures = captures
        self.now_ms = 0.0
        self.recording: list[float] | None = None
        self.cuda = self

    def kernel(self, ms: float, launch_ms: float) -> None:
        if self.recording is not None:
            self.recording.append(ms)
        else:
            self.now_ms += max(ms, launch_ms)

    def current_stream(self) -> FakeCuda:
        return self

    def synchronize(self) -> None:
        assert self.recording is None, "synchronised while capturing"

    def CUDAGraph(self) -> Any:  # noqa: N802 - torch's name
        graph = type("Graph", (), {})()
        graph.kernels = []
        graph.replay = lambda: setattr(self, "now_ms", self.now_ms + sum(graph.kernels))
        return graph

    @contextlib.contextmanager
    def graph(self, graph: Any, *, stream: FakeCuda, capture_error_mode: str) -> Iterator[None]:
        assert (stream, capture_error_mode) == (self, "thread_local")
        self.recording = graph.kernels
        try:
            yield
        finally:
            self.recording = None
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")

    def Event(self, *, enable_timing: bool) -> Any:  # noqa: N802 - torch's name
        assert enable_timing
        event = type("Event", (), {"at_ms": 0.0})()
        event.record = lambda stream: setattr(event, "at_ms", stream.now_ms)
        event.synchronize = lambda: None
        event.elapsed_time = lambda other: other.at_ms - event.at_ms
        return event


def test_graph_is_timed_without_its_launches() -> None:
    """Ten kernels of 0.01 ms take 0.5 ms when each is launched, 0.1 ms as a graph; what cannot be captured is eager."""
    fake = FakeCuda(captures=True)

    def step() -> None:
        for _ in range(10):
            fake.kernel(0.01, launch_ms=0.05)

    assert time_steps(fake, step, device="cuda", budget_s=0.01).median_ms == pytest.approx(0.5)
    replay = as_graph(fake, step, device="cuda")
    assert replay is not None
    assert time_steps(fake, replay, device="cuda", budget_s=0.01).median_ms == pytest.approx(0.1)
    fake.captures = False
    assert as_graph(fake, step, device="cuda") is None
    assert as_graph(fake, step, device="cpu") is None


def test_graphs_that_leave_their_share_are_not_believed() -> None:
    """A large batch fills its share however it is launched: a graph four times as fast ran on more than the share."""
    eager = {1: Timing(2.0, 1.9, 2.1, 9), 64: Timing(40.0, 39.0, 41.0, 9)}
    stays = {1: Timing(0.5, 0.4, 0.6, 9), 64: Timing(39.0, 38.0, 40.0, 9)}
    leaves = {1: Timing(0.4, 0.3, 0.5, 9), 64: Timing(10.0, 9.0, 11.0, 9)}
    rows = believed_rows(eager, stays, whole=False)
    assert [(row["launched"], row["median_ms"], row["eager_median_ms"]) for row in rows.values()] == [
        ("graph", 0.5, 2.0),
        ("graph", 39.0, 40.0),
    ]
    assert [row["median_ms"] for row in believed_rows(eager, leaves, whole=False).values()] == [2.0, 40.0]
    assert [row["median_ms"] for row in believed_rows(eager, leaves, whole=True).values()] == [0.4, 10.0]
    assert [row["launched"] for row in believed_rows(eager, {1: stays[1]}, whole=True).values()] == ["graph", "eager"]


def test_networks_have_the_paper_s_knees() -> None:
    """PREBA, Fig. 6: eight times as large on the whole GPU as on a seventh."""
    for network in NETWORKS.values():
        if network.paper_knees:
            assert network.paper_knees["7"] == 8 * network.paper_knees["1"]
        assert network.shape(3, 10.0)[0] == 3


FAKE_TORCH = Path(__file__).parents[1] / "helpers" / "fake_torch"
CUT = Cut("A100-40GB", (("1g.5gb", "MIG-a"), ("1g.5gb", "MIG-b"), ("2g.10gb", "MIG-slow")))
SMALL = Settings(device="cpu", budget_s=1.0, batches=(1, 2), networks=("squeezenet1.1",))


@pytest.fixture
def torch_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fake PyTorch in the place of one that may be installed."""
    names = ("torch", "torchvision", "torchvision.models")
    before = {name: sys.modules.pop(name, None) for name in names}
    monkeypatch.syspath_prepend(str(FAKE_TORCH))
    yield importlib.import_module("torch")
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def test_mig_devices_that_are_there_are_found_and_left_alone() -> None:
    """A GPU that is cut gives its slices, the most frequent profile first; one that is not gives none."""
    device = load_device("A100-40GB")
    assert mig_cut(lambda: open_nvml(FakeNvml(FakeGpu(device, mig=False)))) is None
    gpu = FakeGpu(device)
    uncut = mig_cut(lambda: open_nvml(FakeNvml(gpu)))
    assert uncut is not None
    said = run_piece(partial(models_on_mig, cut=uncut), "models", SMALL)["skipped"]
    assert "no MIG device that is a whole slice" in said
    with open_nvml(FakeNvml(gpu)) as nvml:
        wanted = wanted_layout(device, "2g.10gb+1g.5gb+1g.5gb", where="here")
        carry_out(nvml, [plan_change(read_gpus(nvml)[0], wanted)])
    before = gpu.layout
    found = mig_cut(lambda: open_nvml(FakeNvml(gpu)))
    assert found is not None
    assert found.device == "A100-40GB"
    assert {profile: len(uuids) for profile, uuids in found.kinds.items()} == {"1g.5gb": 2, "2g.10gb": 1}
    assert next(iter(found.kinds)) == "1g.5gb"
    assert gpu.layout == before


def test_models_on_mig_devices_each_in_a_process_that_sees_only_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row of times for each profile, which become a profile under the names of the slices."""
    monkeypatch.setenv("PYTHONPATH", f"{FAKE_TORCH}:{Path(__file__).parents[2]}")
    found = models_on_mig(SMALL, CUT)
    shares = found["networks"]["squeezenet1.1"]["shares"]
    assert set(shares) == {"1g.5gb", "2g.10gb"}
    assert shares["1g.5gb"]["batches"]["2"]["median_ms"] >= 2.0
    assert shares["2g.10gb"]["batches"]["2"]["median_ms"] >= 40.0  # only there does the fake sleep so long
    assert "MIG" in found["note"]
    ((name, text),) = profiles_of(found, FACTS).items()
    (tmp_path / name).write_text(text, encoding="utf-8")
    profile = load_profile(str(tmp_path / name))
    assert profile.latency_ns("2g.10gb", 2, None) >= 40_000_000


def test_interference_on_mig_devices_starts_them_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One, then both of the most frequent profile; a child that cannot says why."""
    monkeypatch.setenv("PYTHONPATH", f"{FAKE_TORCH}:{Path(__file__).parents[2]}")
    found = interference_on_mig(SMALL, CUT)["networks"]["squeezenet1.1"]
    assert found["launched"] == ["eager"]
    assert [len(row["batches_per_s_each"]) for row in found["rows"]] == [1, 2]
    assert found["rows"][0]["slowdown"] == 0
    assert all(rate > 0 for row in found["rows"] for rate in row["batches_per_s_each"])
    on_gpu = Settings(networks=("squeezenet1.1",))
    gone = run_piece(partial(interference_on_mig, cut=CUT), "interference", on_gpu)
    assert gone["skipped"] == "PyTorch finds no CUDA GPU here"


def test_child_that_dies_is_reported_with_its_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether it dies before or after the request is written."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = run_piece(partial(models_on_mig, cut=CUT), "models", SMALL)
    assert found["failed"] == "RuntimeError: the process on a MIG device ended with 3"


def test_batches_that_do_not_fit_are_left_out(torch_stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others keep their times; with none left it is a failure."""
    plain = torch_stand_in.randn

    def short_of_memory(shape: tuple[int, ...], **fields: Any) -> Any:
        if shape[0] > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return plain(shape, **fields)

    monkeypatch.setattr(torch_stand_in, "randn", short_of_memory)
    found = run_piece(PIECES["models"], "models", SMALL)["networks"]["squeezenet1.1"]["shares"]["7"]
    assert list(found["batches"]) == [1]
    assert found["out_of_memory"] == [2]


@pytest.mark.usefixtures("torch_stand_in")
def test_pieces_run_whole_without_a_gpu() -> None:
    """The pieces of networks do on a CPU what they do on a GPU, shares apart."""
    found = run_piece(PIECES["models"], "models", SMALL)
    assert set(found["networks"]["squeezenet1.1"]["shares"]) == {"1", "2", "3", "4", "7"}
    assert found["networks"]["squeezenet1.1"]["shares"]["7"]["batch_knee"] in (1, 2)
    rows = run_piece(PIECES["interference"], "interference", SMALL)["networks"]["squeezenet1.1"]["rows"]
    assert [len(row["batches_per_s_each"]) for row in rows] == [1, 2, 3, 4, 5, 6, 7]
