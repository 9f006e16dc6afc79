"""``preba validate-gpu``: everything that only a GPU can tell, in pieces, with data and profiles as the result."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from accel.executors import available_backends
from preba.cli.progress import stderr_console
from preba.cli.validating import ValidationPlan, live_and_simulated
from preba.errors import MissingFileError, OutputError, PrebaError, ScenarioError, nearest
from preba.mig.catalogue import device_names
from preba.profile import profile_from_dict
from preba.profile_yaml import profile_to_yaml
from preba.scenario.resolve import resolve
from preba.scenario.schema import Scenario
from runtime.gpu.mig import NOTE as MIG_NOTE
from runtime.gpu.mig import Cut, interference_on_mig, mig_cut, models_on_mig, preprocessing_on_mig
from runtime.gpu.networks import NETWORKS
from runtime.gpu.onnx_file import write_convolutions
from runtime.gpu.pieces import PARTS, PIECES, UNPARTITIONED, Settings, run_piece
from runtime.profiling import installed_versions, this_machine
from runtime.triton.install import find_triton

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
    onnx: Annotated[
        Path | None,
        typer.Option(help="ONNX model for the live piece ([n, 3, 224, 224] in); default: one made on the spot."),
    ] = None,
    try_on_cpu: Annotated[
        bool, typer.Option("--try-on-cpu", help="Try the suite itself without a GPU; its figures mean nothing.")
    ] = False,
) -> None:
    """Measure preprocessing, models, interference and the live pipeline on this machine's GPU, and write profiles.

    A piece that cannot run here is skipped with its reason. Nothing is downloaded and no setting of the GPU is changed;
    where MIG is on already, its devices are measured instead of shares of the multiprocessors.
    """
    wanted = [one.strip() for one in pieces.split(",") if one.strip()] or list(SHARES_OF_TIME)
    for one in wanted:
        if one not in SHARES_OF_TIME:
            raise ScenarioError(f"--pieces: no piece {one!r}{nearest(one, SHARES_OF_TIME)}")
    if onnx is not None and not onnx.is_file():
        raise MissingFileError(f"--onnx {onnx}: no such file")
    console = stderr_console()
    cut = None if try_on_cpu else mig_cut()
    bed = Bed("cpu") if try_on_cpu else Bed("sm-partition") if cut is None else Bed("mig", cut)
    found = []
    for one in wanted:
        console.print(f"{one} ...", markup=False)
        seconds = budget_s * SHARES_OF_TIME[one] / sum(SHARES_OF_TIME[each] for each in wanted)
        settings = Settings(device="cpu" if try_on_cpu else "cuda", budget_s=seconds)
        if try_on_cpu:
            settings = Settings(device="cpu", budget_s=seconds, batches=(1, 2), networks=("squeezenet1.1",))
        result = live(onnx, seconds, bed) if one == LIVE else run_piece(bed.pieces[one], one, settings)
        found.append(result)
        said = result.get("skipped") or result.get("failed")
        typer.echo(f"{one:14} {result['seconds']:7.1f} s  {'done' if said is None else said}")
    _write(out, found, real=not try_on_cpu)
    console.print(f"results: {out}", markup=False)
    if any("failed" in result for result in found):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Bed:
    """Where pieces run: shares of a GPU's multiprocessors, the MIG devices that are there, or CPU cores to try it.

    Attributes
    ----------
    kind : str
        ``sm-partition``, ``mig`` or ``cpu``.
    cut : Cut or None
        Of MIG.
    """

    kind: str
    cut: Cut | None = None

    @property
    def pieces(self) -> Mapping[str, Callable[[Settings], dict[str, Any]]]:
        """By name."""
        if self.cut is None:
            return PIECES
        on_mig = {
            "preprocessing": preprocessing_on_mig, "models": models_on_mig, "interference": interference_on_mig,
        }  # fmt: skip
        return {**PIECES, **{name: partial(piece, cut=self.cut) for name, piece in on_mig.items()}}

    @property
    def gpu(self) -> dict[str, Any]:
        """The GPU of the live scenario; shares are named as the slices of an A100, whose sevenths they are."""
        if self.cut is None:
            return {"device": "A100-40GB", "partition": "7x1g.5gb"}
        return {"device": self.cut.device, "partition": {name: len(uuids) for name, uuids in self.cut.kinds.items()}}

    @property
    def backends(self) -> tuple[str, str]:
        """Of preprocessing: on CPU cores, and with DALI."""
        return ("cpu", "dali_cpu") if self.kind == "cpu" else ("cpu", "dali_gpu")

    @property
    def rate_rps(self) -> float:
        """Of the live scenario."""
        return 10.0 if self.kind == "cpu" else 200.0

    @property
    def note(self) -> str:
        """What is and is not partitioned."""
        return {"cpu": "tried on CPU cores", "mig": MIG_NOTE}.get(self.kind, UNPARTITIONED)


def live(onnx: Path | None, seconds: float, bed: Bed) -> dict[str, Any]:
    """PREBA's pipeline on all slices, with CPU and with DALI preprocessing, against its simulation.

    Without a model of the user's own one is made on the spot.
    """
    began = time.monotonic()
    found: dict[str, Any] = {"piece": LIVE, "seconds": 0.0, "note": bed.note}
    reason = _why_not_live(onnx, bed)
    if reason is not None:
        return {**found, "skipped": reason}
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="preba-gpu-") as folder:
        if onnx is None:
            onnx = Path(folder) / "convolutions.onnx"
            write_convolutions(onnx, (32, 64) if bed.kind == "cpu" else (64, 128, 256, 512, 512))
        for backend in bed.backends:
            missing = available_backends()[backend]
            if missing is not None:
                runs[backend] = {"skipped": missing}
                continue
            try:
                resolved = resolve(_pipeline(str(onnx.resolve()), backend, seconds / 8, bed), folder=Path())
                plan = ValidationPlan(fresh=0, repeats=10, busy_batches=20)
                runs[backend] = live_and_simulated(resolved, plan, lambda _: None).found.as_json()
            except PrebaError as error:
                runs[backend] = {"failed": f"{type(error).__name__}: {error}"}
    failed = [f"{backend}: {run['failed']}" for backend, run in runs.items() if "failed" in run]
    if failed:
        found["failed"] = "; ".join(failed)
    return {**found, "runs": runs, "seconds": round(time.monotonic() - began, 1)}


def _why_not_live(onnx: Path | None, bed: Bed) -> str | None:
    if onnx is None and importlib.util.find_spec("onnx") is None:
        return "onnx is not installed, which makes a model, and --onnx names none"
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime is not installed"
    if bed.kind != "cpu" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "ONNX Runtime has no CUDAExecutionProvider here (onnxruntime-gpu has it)"
    if bed.cut is not None and not bed.cut.slices:
        return "MIG is on, and there is no MIG device that is a whole slice"
    if bed.cut is not None and bed.cut.device not in device_names():
        return f"{bed.cut.device}: not in the catalogue of `preba mig list`, so that no scenario can name it"
    try:
        find_triton()
    except PrebaError as error:
        return str(error)
    return None


def _pipeline(onnx: str, backend: str, seconds: float, bed: Bed) -> Scenario:
    """JPEGs, PREBA's batcher, all slices; the table only plans the batches, the times are measured."""
    rate_rps, gpu = bed.rate_rps, bed.gpu
    kinds = {"1g": 1.0} if bed.cut is None else {name: float(name.partition("g.")[0]) for name in bed.cut.kinds}
    table = {name: {batch: (4.0 + 0.5 * batch) / g for batch in (1, 2, 4, 8, 16)} for name, g in kinds.items()}
    profile = {
        "name": "planned", "model": "planned", "modality": "image", "device": gpu["device"], "precision": "fp32",
        "framework": "ONNX Runtime", "table": table,
        "provenance": {"kind": "modelled", "source": "assumption: what batches are planned with"},
    }  # fmt: skip
    data = {
        "preba": 1, "name": f"gpu-{backend}", "run": {"requests": round(rate_rps * seconds)},
        "gpus": [gpu],
        "preprocessing": {"kind": "cpu", "cores": 2, "usable_fraction": 1.0},
        "models": [
            {
                "name": "model", "profile": profile, "sizes": {"kind": "jpeg", "dataset": "imagenet"},
                "batcher": {"kind": "preba"}, "arrivals": {"kind": "poisson", "rate_rps": rate_rps},
            }
        ],
        "live": {
            "slices": {"kind": bed.kind, "onnx": onnx},
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
            _slice_name(share): {int(batch): round(row["median_ms"], 4) for batch, row in entry["batches"].items()}
            for share, entry in network["shares"].items()
        }
        rows = [row for entry in network["shares"].values() for row in entry["batches"].values()]
        launched = " and ".join(sorted({row["launched"] for row in rows}))
        spread = max((row["p90_ms"] - row["p10_ms"]) / row["median_ms"] for row in rows)
        audio = network["modality"] == "audio"
        data = {
            "name": f"measured-{name}", "model": name, "modality": network["modality"], "device": facts["where"],
            "precision": result["precision"], "framework": f"PyTorch {launched} ({facts['software']})",
            "provenance": {
                "kind": "measured", "source": "preba validate-gpu, CUDA events, medians", "where": facts["where"],
                "date": facts["date"],
                "notes": f"{result['note']}; widest spread (p90 - p10) / median: {spread:.2f}",
            },
            "table_by_length_s" if audio else "table": (
                {slice_: {10.0: row} for slice_, row in shares.items()} if audio else shares
            ),
        }  # fmt: skip
        profile = profile_from_dict(data, origin="measured on a GPU")
        files[f"{profile.name}.yaml"] = profile_to_yaml(profile, header="Written by preba validate-gpu.")
    return files


def _slice_name(share: str) -> str:
    """Sevenths are named as slices; MIG devices have their names."""
    if not share.isdigit():
        return share
    return "full" if share == str(PARTS) else f"{share}g"


def _gpu() -> str:
    try:
        from runtime.nvml import open_nvml

        with open_nvml() as nvml:
            return ", ".join(f"{one.name} (driver {nvml.driver_version()})" for one in nvml.gpus()) or "no GPU"
    except PrebaError:
        return "no NVIDIA driver"


__all__ = ["NETWORKS", "PIECES", "profiles_of", "validate_gpu"]
