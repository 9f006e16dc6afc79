"""``preba validate-gpu``: everything that only a GPU can tell, in pieces, with data and profiles as the result."""

from __future__ import annotations

import datetime as dt
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from preba.cli.progress import stderr_console
from preba.cli.validating import ValidationPlan, live_and_simulated
from preba.errors import OutputError, PrebaError, ScenarioError, nearest
from preba.profile import profile_from_dict
from preba.profile_yaml import profile_to_yaml
from preba.scenario.resolve import resolve
from preba.scenario.schema import Scenario
from runtime.gpu.networks import NETWORKS
from runtime.gpu.pieces import PARTS, PIECES, UNPARTITIONED, Settings, run_piece
from runtime.profiling import installed_versions, this_machine

LIVE = "live"
TOTAL_S = 480.0
"""What all pieces together may take, so that the whole stays below nine minutes."""
SHARES_OF_TIME = {"preprocessing": 0.25, "models": 0.35, "interference": 0.15, LIVE: 0.25}


def validate_gpu(
    *,
    pieces: Annotated[
        str, typer.Option(help=f"Which, comma separated: {', '.join(SHARES_OF_TIME)}; default: all.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for JSON and profiles.")] = Path("out/gpu"),
    budget_s: Annotated[float, typer.Option(min=5, help="Seconds for all pieces together.")] = TOTAL_S,
    onnx: Annotated[Path | None, typer.Option(help="ONNX model for the live piece ([n, 3, 224, 224] in).")] = None,
    try_on_cpu: Annotated[
        bool, typer.Option("--try-on-cpu", help="Try the suite itself without a GPU; its figures mean nothing.")
    ] = False,
) -> None:
    """Measure preprocessing, models, interference and the live pipeline on this machine's GPU, and write profiles.

    A piece that cannot run here is skipped with its reason. Nothing is downloaded and no setting of the GPU is changed.
    """
    wanted = [one.strip() for one in pieces.split(",") if one.strip()] or list(SHARES_OF_TIME)
    for one in wanted:
        if one not in SHARES_OF_TIME:
            raise ScenarioError(f"--pieces: no piece {one!r}{nearest(one, SHARES_OF_TIME)}")
    console = stderr_console()
    found = []
    for one in wanted:
        console.print(f"{one} ...", markup=False)
        seconds = budget_s * SHARES_OF_TIME[one] / sum(SHARES_OF_TIME[each] for each in wanted)
        settings = Settings(device="cpu" if try_on_cpu else "cuda", budget_s=seconds)
        if try_on_cpu:
            settings = Settings(device="cpu", budget_s=seconds, batches=(1, 2), networks=("squeezenet1.1",))
        result = live(onnx, seconds) if one == LIVE else run_piece(one, settings)
        found.append(result)
        said = result.get("skipped") or result.get("failed")
        typer.echo(f"{one:14} {result['seconds']:7.1f} s  {'done' if said is None else said}")
    _write(out, found, real=not try_on_cpu)
    console.print(f"results: {out}", markup=False)
    if any("failed" in result for result in found):
        raise typer.Exit(1)


def live(onnx: Path | None, seconds: float) -> dict[str, Any]:
    """PREBA's pipeline on seven shares of the GPU, with CPU and with DALI preprocessing, against its simulation."""
    began = time.monotonic()
    found: dict[str, Any] = {"piece": LIVE, "seconds": 0.0, "note": UNPARTITIONED}
    reason = _why_not_live(onnx)
    if reason is not None:
        return {**found, "skipped": reason}
    runs: dict[str, Any] = {}
    try:
        for backend in ("cpu", "dali_gpu"):
            scenario = _pipeline(str(onnx), backend, seconds / 4)
            resolved = resolve(scenario, folder=Path())
            runs[backend] = live_and_simulated(resolved, ValidationPlan(fresh=0), lambda _: None).found.as_json()
    except PrebaError as error:
        found["failed"] = f"{type(error).__name__}: {error}"
    return {**found, "runs": runs, "seconds": round(time.monotonic() - began, 1)}


def _why_not_live(onnx: Path | None) -> str | None:
    if onnx is None:
        return "--onnx names no model"
    if not onnx.is_file():
        return f"{onnx}: no such file"
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime is not installed"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "ONNX Runtime has no CUDAExecutionProvider here (onnxruntime-gpu has it)"
    return None


def _pipeline(onnx: str, backend: str, seconds: float) -> Scenario:
    """JPEGs, PREBA's batcher, seven shares; the table only plans the batches, the times are measured."""
    rate_rps = 200.0
    table = {"1g": {batch: 4.0 + 0.5 * batch for batch in (1, 2, 4, 8, 16)}}
    profile = {
        "name": "planned", "model": "planned", "modality": "image", "device": "A100-40GB", "precision": "fp32",
        "framework": "ONNX Runtime", "table": table,
        "provenance": {"kind": "modelled", "source": "assumption: what batches are planned with"},
    }  # fmt: skip
    data = {
        "preba": 1, "name": f"gpu-{backend}", "run": {"requests": round(rate_rps * seconds)},
        "gpus": [{"device": "A100-40GB", "partition": "7x1g.5gb"}],
        "preprocessing": {"kind": "cpu", "cores": 2, "usable_fraction": 1.0},
        "models": [
            {
                "name": "model", "profile": profile, "sizes": {"kind": "jpeg", "dataset": "imagenet"},
                "batcher": {"kind": "preba"}, "arrivals": {"kind": "poisson", "rate_rps": rate_rps},
            }
        ],
        "live": {
            "slices": {"kind": "sm-partition", "onnx": onnx},
            "preprocessing": {"backend": backend, "workers": 2},
        },
        "validation": {"throughput_percent": 3.0, "p99_percent": 10.0},
    }  # fmt: skip
    return Scenario.model_validate_json(json.dumps(data))


def _write(out: Path, found: list[dict[str, Any]], *, real: bool) -> None:
    facts = {
        "where": f"{this_machine()}; {_gpu()}",
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "software": installed_versions(["torch", "torchvision", "nvidia-dali-cuda130", "onnxruntime-gpu", "numpy"]),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for result in found:
            text = json.dumps({**facts, **result}, indent=1, allow_nan=False) + "\n"
            (out / f"{result['piece']}.json").write_text(text, encoding="utf-8")
            if result["piece"] == "models" and "networks" in result and real:
                for name, text in profiles_of(result, facts).items():
                    (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written: {error.strerror or error}") from error


def profiles_of(result: dict[str, Any], facts: dict[str, str]) -> dict[str, str]:
    """Latency profiles of what the models piece measured: file name to YAML; shares of seven are named as slices."""
    files = {}
    for name, network in result["networks"].items():
        shares = {
            "full" if share == str(PARTS) else f"{share}g": {
                int(batch): round(row["median_ms"], 4) for batch, row in entry["batches"].items()
            }
            for share, entry in network["shares"].items()
        }
        spread = max(
            (row["p90_ms"] - row["p10_ms"]) / row["median_ms"]
            for entry in network["shares"].values()
            for row in entry["batches"].values()
        )
        audio = network["modality"] == "audio"
        data = {
            "name": f"measured-{name}", "model": name, "modality": network["modality"], "device": facts["where"],
            "precision": result["precision"], "framework": f"PyTorch eager ({facts['software']})",
            "provenance": {
                "kind": "measured", "source": "preba validate-gpu, CUDA events, medians", "where": facts["where"],
                "date": facts["date"],
                "notes": f"1g to 4g: {UNPARTITIONED}; widest spread (p90 - p10) / median: {spread:.2f}",
            },
            "table_by_length_s" if audio else "table": (
                {slice_: {10.0: row} for slice_, row in shares.items()} if audio else shares
            ),
        }  # fmt: skip
        profile = profile_from_dict(data, origin="measured on a GPU")
        files[f"{profile.name}.yaml"] = profile_to_yaml(profile, header="Written by preba validate-gpu.")
    return files


def _gpu() -> str:
    try:
        from runtime.nvml import open_nvml

        with open_nvml() as nvml:
            return ", ".join(f"{one.name} (driver {nvml.driver_version()})" for one in nvml.gpus()) or "no GPU"
    except PrebaError:
        return "no NVIDIA driver"


__all__ = ["NETWORKS", "PIECES", "profiles_of", "validate_gpu"]
