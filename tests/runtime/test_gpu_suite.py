"""The GPU suite without a GPU: what cannot run says why, DALI's piece runs on CPU threads, results become profiles."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from accel.executors import available_backends
from preba.cli.main import VERBS
from preba.cli.validate_gpu import profiles_of, validate_gpu
from preba.errors import ScenarioError
from preba.knee import find_knee
from preba.profile import load_profile
from runtime.gpu.networks import NETWORKS
from runtime.gpu.pieces import PIECES, Settings, run_piece

FACTS = {"where": "a GPU of the tests", "date": "2026-11-21", "software": "none"}


def row(ms: float) -> dict[str, Any]:
    return {"median_ms": ms, "p10_ms": 0.99 * ms, "p90_ms": 1.02 * ms, "count": 50}


@pytest.mark.skipif(available_backends()["dali_gpu"] is None, reason="there is a GPU here")
def test_every_piece_says_why_it_cannot_run_and_the_suite_is_fine() -> None:
    """No failure, a reason each: a machine without a GPU is no error."""
    for name in PIECES:
        found = run_piece(name, Settings(budget_s=5))
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
    assert "--onnx names no model" in result.output
    live = json.loads((tmp_path / "live.json").read_text(encoding="utf-8"))
    assert live["skipped"]
    assert "not partitioned" in live["note"]
    wrong = CliRunner().invoke(application, ["--pieces", "model"])
    assert isinstance(wrong.exception, ScenarioError)
    assert "did you mean 'models'" in str(wrong.exception)
    gone = CliRunner().invoke(application, ["--pieces", "live", "--onnx", "/no/such.onnx", "--out", str(tmp_path)])
    assert "no such file" in gone.output


@pytest.mark.skipif(available_backends()["dali_cpu"] is not None, reason="DALI is not installed")
def test_preprocessing_piece_measures_dali_on_cpu_threads() -> None:
    """The same code as on a GPU: points by batch for images and audio, and several pipelines side by side."""
    found = run_piece("preprocessing", Settings(device="cpu", budget_s=6.0, batches=(1, 2)))
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


def test_networks_have_the_paper_s_knees() -> None:
    """PREBA, Fig. 6: eight times as large on the whole GPU as on a seventh."""
    for network in NETWORKS.values():
        if network.paper_knees:
            assert network.paper_knees["7"] == 8 * network.paper_knees["1"]
        assert network.shape(3, 10.0)[0] == 3
