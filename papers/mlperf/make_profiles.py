"""Write configs/profiles/mlperf-*.yaml: closed forms through the two points MLPerf publishes per slice.

Run ``python papers/mlperf/make_profiles.py [--check]``. No figure is typed in here; they are in numbers.csv.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from preba.profile import LatencyProfile, profile_from_dict
from preba.profile_yaml import profile_to_yaml, stale_files

HERE = Path(__file__).resolve().parent
PROFILES = HERE.parent.parent / "configs" / "profiles"

WANTED = (
    ("v0.7", "resnet50"),
    ("v0.7", "ssd-mobilenet"),
    ("v0.7", "ssd-resnet34"),
    ("v0.7", "bert-large-99"),
    ("v1.0", "resnet50"),
    ("v1.0", "ssd-mobilenet"),
    ("v1.0", "bert-large-99"),
)
"""Rounds and models with both points on the slice and on the whole GPU; README.md says why not the rest."""


def published() -> dict[tuple[str, str, str, str, str], float]:
    """Read (round, model, slice, scenario, metric) -> value; TensorRT harness only."""
    with (HERE / "numbers.csv").open(newline="") as file:
        return {
            (row["round"], row["model"], row["slice"], row["scenario"], row["metric"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["harness"] == "TensorRT"
        }


def profile_of(mlperf_round: str, model: str) -> LatencyProfile:
    """Lay a closed form through the published points of one model."""
    facts = published()
    statistic = "latency_mean" if mlperf_round == "v0.7" else "latency_p50"
    floor_ms: dict[str, float] = {}
    slope_ms: dict[str, float] = {}
    offset_ms: dict[str, float] = {}
    batch_max: dict[str, int] = {}
    for key in ("1g", "full"):
        one_ms = facts[mlperf_round, model, key, "SingleStream", statistic]
        batch = int(facts[mlperf_round, model, key, "Offline", "batch"])
        many_ms = 1000 * batch / facts[mlperf_round, model, key, "Offline", "throughput"]
        floor_ms[key], batch_max[key] = one_ms, batch
        slope_ms[key] = (many_ms - one_ms) / (batch - 1)
        offset_ms[key] = one_ms - slope_ms[key]
    data = {
        "name": f"mlperf-{mlperf_round}-{model}",
        "model": model,
        "modality": "tensor",
        "device": "A100-40GB" if mlperf_round == "v0.7" else "A100-80GB",
        "precision": "int8",
        "framework": "TensorRT, NVIDIA's MLPerf harness",
        "provenance": {
            "kind": "modelled",
            "source": f"MLPerf Inference {mlperf_round}, closed division, NVIDIA "
            f"(https://github.com/mlcommons/inference_results_{mlperf_round}); papers/mlperf/numbers.csv",
            "notes": "Two points per slice are published, batch 1 and batch_max; the straight line between "
            "them is assumed. Inputs are preprocessed tensors. Not an MLPerf result.",
        },
        "parts": _parts(statistic),
        "closed_form": {
            "floor_ms": floor_ms,
            "slope_ms": slope_ms,
            "offset_ms": offset_ms,
            "batch_max": batch_max,
        },
        "backend": {"kind": "trt", "input_consumed_fraction": 1.0},
    }
    busy = facts.get((mlperf_round, model, "1g", "OfflineBusyNeighbours", "throughput"))
    if busy is not None:
        alone = facts[mlperf_round, model, "1g", "Offline", "throughput"]
        data["interference"] = {
            "busy_neighbour_fraction": alone / busy - 1,
            "provenance": {
                "kind": "published",
                "source": f"MLPerf Inference {mlperf_round}, Offline on 1g.10gb: {alone:g}/s alone, "
                f"{busy:g}/s with the six other slices at work",
            },
        }
    return profile_from_dict(data, origin=f"papers/mlperf/numbers.csv {model}")


def _parts(statistic: str) -> dict[str, dict[str, str]]:
    word = "mean" if statistic == "latency_mean" else "median"
    return {
        "floor": {
            "kind": "published",
            "source": f"SingleStream {word} latency, the time of batch 1",
        },
        "batch_max": {
            "kind": "published",
            "source": "gpu_batch_size of the Offline configuration",
        },
        "slope": {
            "kind": "modelled",
            "source": "Line from batch 1 to batch_max, timed as batch_max / published Offline rate",
        },
        "offset": {
            "kind": "modelled",
            "source": "Same line: SingleStream latency minus one slope",
        },
    }


def generate() -> dict[str, str]:
    """Return file name -> text for every profile."""
    header = "Written by papers/mlperf/make_profiles.py: change that, not this."
    profiles = [profile_of(mlperf_round, model) for mlperf_round, model in WANTED]
    return {f"{profile.name}.yaml": profile_to_yaml(profile, header=header) for profile in profiles}


def main(arguments: list[str]) -> int:
    """Write what is stale, or with ``--check`` only name it; return the exit status."""
    files, check = generate(), "--check" in arguments
    stale = stale_files(PROFILES, files)
    if not check:
        for name in stale:
            (PROFILES / name).write_text(files[name], encoding="utf-8")
    print(f"{len(files)} profiles, {len(stale)} {'stale' if check else 'written'}: {', '.join(stale) or '-'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
