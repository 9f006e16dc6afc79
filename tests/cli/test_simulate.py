"""Promises of ``preba simulate``, ``demo`` and ``schema``, made by the installed command itself."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from preba.records import read_records

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "configs" / "scenarios"
PERCENTILES = ("mean", "p50", "p90", "p95", "p99", "p999")


def preba(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from preba.cli.main import run; run()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the scenario with several models, mixed slices and events."""
    folder = tmp_path_factory.mktemp("run") / "out"
    done = preba("simulate", SCENARIOS / "mixed-multi-model.yaml", "--out", folder, "--trace", folder.parent / "t.json")
    assert done.returncode == 0, done.stderr
    return folder


def test_json_holds_the_promised_keys() -> None:
    """``--json`` prints one object on stdout with every promised figure, each percentile with its interval."""
    done = preba("simulate", SCENARIOS / "preba-image-preba.yaml", "--json", "--set", "run.requests=6000")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    for key in ("engine", "requests", "refused", "throughput_rps", "batch_size", "utilization", "power_w",
                "energy_per_request_j", "cost_efficiency", "provenance"):  # fmt: skip
        assert key in summary
    for name in PERCENTILES:
        figure = summary["latency_ms"][name]
        assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1]
    stages = summary["stages_ms"]
    for name in ("preprocess_wait", "preprocess_service", "batching", "slice_queue", "execution", "hop"):
        assert set(stages[name]) >= {"mean", "p99"}
    assert summary["engine"] == "compiled"
    assert summary["requests"] == 6000
    assert set(summary["power_w"]) == {"cpu", "gpu", "accelerator", "total"}
    assert len(summary["utilization"]["slices"]) == 7
    assert any(entry["kind"] == "modelled" for entry in summary["provenance"])


def test_table_fits_eighty_columns_and_states_warmup(run_folder: Path) -> None:
    """The table on stdout is readable in a terminal of 80 columns and says what was cut as warm-up."""
    assert run_folder.is_dir()
    done = preba("simulate", SCENARIOS / "mixed-multi-model.yaml")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "warm-up" in done.stdout
    assert "modelled" in done.stdout


def test_out_folder_is_complete(run_folder: Path) -> None:
    """``--out`` writes records, station visits, traffic, resolved scenario, summary and one self-contained page."""
    names = {path.name for path in run_folder.iterdir()}
    assert names == {
        "records.parquet", "stations.parquet", "trace.parquet", "scenario.yaml", "summary.json", "report.html",
    }  # fmt: skip
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert 'href="http' not in page.replace('href="https://', "")
    records, metadata = read_records(run_folder / "records.parquet")
    assert metadata["engine"] == "compiled"
    assert len(records) == json.loads((run_folder / "summary.json").read_text())["requests"]


def test_resolved_scenario_reproduces_the_run_bit_for_bit(run_folder: Path, tmp_path: Path) -> None:
    """Running the written scenario again gives the same bytes of records, summary and trace."""
    done = preba("simulate", run_folder / "scenario.yaml", "--out", tmp_path / "again", "--trace", tmp_path / "t.json")
    assert done.returncode == 0, done.stderr
    for name in ("records.parquet", "stations.parquet", "trace.parquet", "scenario.yaml", "summary.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run_folder / name).read_bytes(), name
    assert (tmp_path / "t.json").read_bytes() == (run_folder.parent / "t.json").read_bytes()


def test_recorded_inputs_travel_with_the_run(tmp_path: Path) -> None:
    """A replayed file is copied into the run's folder, so that the folder alone reproduces it."""
    arrivals = tmp_path / "gaps.txt"
    arrivals.write_text("\n".join(str(900 + 37 * (i % 11)) for i in range(200)))
    text = (SCENARIOS / "preba-image-ideal.yaml").read_text()
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        text.replace(
            "arrivals: {kind: poisson, rate_rps: 4000}",
            "arrivals: {kind: replay, file: gaps.txt, format: perf_analyzer_intervals}",
        )
    )
    first = preba("simulate", scenario, "--set", "run.requests=3000", "--out", tmp_path / "a")
    assert first.returncode == 0, first.stderr
    arrivals.unlink()
    moved = (tmp_path / "a").rename(tmp_path / "elsewhere")
    again = preba("simulate", moved / "scenario.yaml", "--out", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "b" / "records.parquet").read_bytes() == (moved / "records.parquet").read_bytes()


def test_trace_has_a_track_per_unit_and_slice(run_folder: Path, tmp_path: Path) -> None:
    """The Perfetto trace names a track per CPU core and slice, and counts every queue; ``.gz`` is compressed."""
    trace = json.loads((run_folder.parent / "t.json").read_text())
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert sum(name.startswith("cpu ") for name in names) == 24
    assert sum(name.startswith("gpu0/") for name in names) == 4
    counters = {e["name"] for e in trace["traceEvents"] if e["ph"] == "C"}
    assert "batcher" in counters
    packed = tmp_path / "t.json.gz"
    options = ("--set", "run.requests=2000", "--trace", packed)
    done = preba("simulate", SCENARIOS / "flower-demo.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(gzip.decompress(packed.read_bytes()))["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.yaml"], "no such file"),
        (["flower-demo.yaml", "--set", "models[0].arrivals.outstandng=3"], "did you mean 'outstanding'"),
        (["flower-demo.yaml", "--set", "models[0].batcher.kind=tritn"], "did you mean 'triton'"),
        (["preba-image-preba.yaml", "--set", "models[0].arrivals.rate_rps=-5"], "greater than 0, got -5"),
        (["preba-image-preba.yaml", "--set", "models[0].arrivals.rate_rps=50ms"], "valid number, got '50ms'"),
        (["preba-image-preba.yaml", "--set", "gpus[0].partition=8x1g.5gb"], "at most 7 fit"),
        (["preba-image-preba.yaml", "--set", "gpus[0].partition=[3g.20gb@4,2g.10gb@4]"], "2g.10gb@4"),
        (["preba-image-preba.yaml", "--set", "models[0].profile=preba-mobilenet-v3-smal"], "did you mean"),
        (["preba-image-base.yaml", "--set", "models[0].batcher.batch_max=512"], "larger than profile"),
        (["preba-image-base.yaml", "--engine", "turbo"], "not an engine"),
        (["preba-image-base.yaml", "--set", "models[0].sizes={kind: constant, audio_s: 3}"], "takes image"),
        (["flower-demo.yaml", "--set", "run={duration_s: 5}"], "give run.requests"),
        (["flower-demo.yaml", "--set", "nonsense"], "expected path=value"),
        (["mixed-multi-model.yaml", "--set", "models[1].slices=all"], "with one model only"),
        (["mixed-multi-model.yaml", "--set", "models[1].slices=[0, 1]"], "already taken"),
        (["mixed-multi-model.yaml", "--set", "events[0].slice=9"], "there is no slice 9"),
    ],
)
def test_bad_input_is_one_clear_error_and_nothing_is_written(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    """Wrong input gives exit code 2, one line on stderr that says what to mend, and no output at all."""
    done = preba("simulate", SCENARIOS / arguments[0], *arguments[1:], "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("error:") == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_profile_without_provenance_does_not_load(tmp_path: Path) -> None:
    """A latency profile that does not say where its numbers come from is refused."""
    profile = (ROOT / "configs" / "profiles" / "parvagpu-resnet50.yaml").read_text()
    start = profile.index("provenance:")
    end = next(i for i in range(start + 1, len(profile)) if profile[i - 1] == "\n" and not profile[i].isspace())
    (tmp_path / "mine.yaml").write_text(profile[:start] + profile[end:])
    scenario = tmp_path / "s.yaml"
    scenario.write_text((SCENARIOS / "flower-demo.yaml").read_text().replace("parvagpu-resnet50", "mine.yaml"))
    done = preba("simulate", scenario)
    assert done.returncode == 2
    assert "provenance: missing" in done.stderr


def test_overload_names_the_bottleneck_and_its_capacity() -> None:
    """A scenario without a steady state runs, and says so with the stage that saturates and what it can do."""
    options = ("--set", "models[0].arrivals.rate_rps=3000", "--set", "run.requests=4000")
    done = preba("simulate", SCENARIOS / "preba-image-base.yaml", *options, "--json")
    assert done.returncode == 0, done.stderr
    warning = json.loads(done.stdout)["warnings"][0]
    assert "no steady state" in warning
    assert "preprocessing (cpu)" in warning
    assert "/s capacity" in warning


def test_unwritable_folder_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    """A file where the folder should be is an error, and the file survives."""
    target = tmp_path / "file"
    target.write_text("mine")
    done = preba("simulate", SCENARIOS / "flower-demo.yaml", "--set", "run.requests=2000", "--out", target)
    assert done.returncode == 2
    assert "is a file" in done.stderr
    assert target.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_long_runs_report_progress_on_stderr() -> None:
    """A run of more than a second says on stderr how far it is, and stdout stays clean."""
    long = ("--set", "run.requests=120000", "--engine", "reference")
    done = preba("simulate", SCENARIOS / "preba-audio-preba.yaml", *long, "--json")
    assert done.returncode == 0, done.stderr
    assert "of 120,000 requests" in done.stderr
    json.loads(done.stdout)


def test_schema_accepts_every_shipped_scenario_key(tmp_path: Path) -> None:
    """``preba schema`` writes a JSON Schema that names every top-level key of the shipped scenarios."""
    done = preba("schema", "--out", tmp_path / "schema.json")
    assert done.returncode == 0, done.stderr
    schema = json.loads((tmp_path / "schema.json").read_text())
    for key in ("gpus", "models", "server", "preprocessing", "events", "run", "hardware"):
        assert key in schema["properties"]


def test_schema_that_cannot_be_written_is_one_error() -> None:
    """``preba schema --out`` into a folder that is not there is one line and exit code 2."""
    done = preba("schema", "--out", "/nonexistent/schema.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out /nonexistent/schema.json")


@pytest.mark.parametrize(
    ("arguments", "code", "where", "expected"),
    [
        (["--version"], 0, "stdout", "preba "),
        (["--help"], 0, "stdout", "simulate"),
        ([], 2, "stderr", "Usage"),
        (["simulat"], 2, "stderr", "Did you mean 'simulate'?"),
        (["simulate"], 2, "stderr", "Missing argument"),
        (["simulate", "x.yaml", "--nope"], 2, "stderr", "No such option"),
    ],
)
def test_usage_is_explained_without_a_traceback(arguments: list[str], code: int, where: str, expected: str) -> None:
    """Version, help and wrong usage end with the promised exit code and a message, never a traceback."""
    done = preba(*arguments)
    assert done.returncode == code
    assert expected in getattr(done, where)
    assert "Traceback" not in done.stderr


def test_demo_prints_one_table_per_modality_and_a_page(tmp_path: Path) -> None:
    """``preba demo`` compares all design points and writes a page that links their reports."""
    done = preba("demo", "--out", tmp_path, "--requests", "2000")
    assert done.returncode == 0, done.stderr
    for label in ("CPU 1g", "DPU 1g", "PREBA 1g", "ideal 1g", "CPU 7g", "PREBA 7g", "ideal 7g"):
        assert done.stdout.count(label) >= 2
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    links = ["preba-image-preba-7x1g.5gb/report.html", "preba-audio-ideal-1x7g.40gb/report.html"]
    for link in links:
        assert link in page
        assert (tmp_path / link).is_file()
