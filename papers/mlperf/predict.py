"""Predict MLPerf's many-slice results from its single-slice ones, and print them beside the published figures.

Run ``python papers/mlperf/predict.py [--check]``. Writes comparison.md. Figures come from numbers.csv, predictions from
the simulator: every slice is kept busy with full batches of the profile measured on one slice.
"""

# ruff: noqa: E501 - lines of the page it writes
from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from make_profiles import profile_of, published

from preba.profile import LatencyProfile, profile_from_dict
from preba.scenario.resolve import resolve
from preba.scenario.schema import Scenario
from sim.saturation import saturated_rps

HERE = Path(__file__).resolve().parent
ROUND, DEVICE = "v1.0", "A100-80GB"
MODELS = ("bert-large-99", "ssd-resnet34", "3d-unet-99")
"""Those of which the eight-GPU run with 56 slices was published."""
WITH_POINTS = ("bert-large-99",)
"""Published at two batch sizes, so that a profile goes through them; of the others only the Offline rate is known."""
SLICES_PER_GPU, GPUS = 7, 8


def single_slice(model: str, *, neighbours: bool) -> LatencyProfile:
    """The profile of one slice, with or without the published loss to busy neighbours."""
    if model in WITH_POINTS:
        found = profile_of(ROUND, model)
        return found if neighbours else found.model_copy(update={"interference": None})
    facts = published()
    alone = facts[ROUND, model, "1g", "Offline", "throughput"]
    busy = facts[ROUND, model, "1g", "OfflineBusyNeighbours", "throughput"]
    source = f"MLPerf Inference {ROUND}, NVIDIA, Offline on one 1g.10gb"
    data: dict[str, Any] = {
        "name": f"mlperf-{model}", "model": model, "modality": "tensor", "device": DEVICE, "precision": "int8",
        "framework": "TensorRT", "provenance": {"kind": "published", "source": source},
        "table": {"1g": {1: 1000 / alone}},
    }  # fmt: skip
    if neighbours:
        data["interference"] = {
            "busy_neighbour_fraction": alone / busy - 1, "provenance": {"kind": "published", "source": source},
        }  # fmt: skip
    return profile_from_dict(data, origin=f"numbers.csv {model}")


def rate(profile: LatencyProfile, partition: str, gpus: int) -> float:
    """Simulated inferences per second with more waiting than can be served."""
    key = "full" if partition == "full" else "1g"
    batch = profile.batch_max(key)
    units = gpus * (1 if partition == "full" else int(partition.partition("x")[0]))
    times_ms = profile.latency_ns(key, batch) / 1e6
    scenario = Scenario.model_validate_json(
        json.dumps({
            "preba": 1, "name": "offline", "run": {"requests": 40 * batch * units},
            "gpus": [{"device": DEVICE, "partition": partition, "count": gpus}],
            "models": [
                {
                    "name": "model", "profile": profile.model_dump(mode="json", exclude_defaults=True), "sizes": {"kind": "constant", "tensor_kb": 1.0},
                    "batcher": {"kind": "greedy", "batch_max": batch},
                    "arrivals": {"kind": "poisson", "rate_rps": 2e3 * batch * units / times_ms},
                }
            ],
        })
    )  # fmt: skip
    return saturated_rps(resolve(scenario, folder=HERE), requests=40 * batch * units)


def rows() -> list[tuple[str, str, float, float, str]]:
    """(model, figure, predicted, published, how) of every comparison."""
    facts = published()
    triton = {model: value for (round_, model, value) in _all_slices() if round_ == ROUND}
    found = []
    for model in MODELS:
        whole = facts[ROUND, model, "full", "Offline", "throughput"]
        alone, busy = (single_slice(model, neighbours=one) for one in (False, True))
        one = rate(alone, "1x1g.10gb", 1)
        seven = rate(busy, f"{SLICES_PER_GPU}x1g.10gb", 1)
        all_ = rate(busy, f"{SLICES_PER_GPU}x1g.10gb", GPUS)
        measured = triton[model]
        found += [
            (model, "1 slice alone, /s", one, facts[ROUND, model, "1g", "Offline", "throughput"], "given"),
            (model, "1 of 7 busy slices, /s", seven / SLICES_PER_GPU,
             facts[ROUND, model, "1g", "OfflineBusyNeighbours", "throughput"], "given"),
            (model, "1 of 56 busy slices, /s", all_ / SLICES_PER_GPU / GPUS, measured, "predicted"),
            (model, "56 slices of 8 GPUs, /s", all_, measured * SLICES_PER_GPU * GPUS, "predicted"),
            (model, "7 slices against the whole GPU", seven / whole, SLICES_PER_GPU * measured / whole, "predicted"),
            (model, "56 slices against 8 whole GPUs", all_ / (GPUS * whole),
             SLICES_PER_GPU * measured / whole, "predicted"),
        ]  # fmt: skip
    return found


def _all_slices() -> list[tuple[str, str, float]]:
    with (HERE / "numbers.csv").open(newline="") as file:
        return [
            (row["round"], row["model"], float(row["value"]))
            for row in csv.DictReader(file)
            if row["scenario"] == "OfflineAll56Slices"
        ]


def render() -> str:
    """The page."""
    lines = [
        "# Many slices, predicted from one",
        "",
        "Written by `python papers/mlperf/predict.py`. MLPerf Inference v1.0, NVIDIA, A100 80 GB, 1g.10gb. *Given* rows",
        "went into the profile (throughput of one slice, alone and beside six busy ones) and check that the simulator gives",
        "them back; *predicted* rows did not. The 56-slice run used Triton, the others TensorRT alone; the per-slice share",
        "of that run stands for seven slices too, as no run with seven equal slices was published.",
        "",
        "| model | figure | predicted | published | error | |",
        "|---|---|---|---|---|---|",
    ]
    for model, figure, ours, theirs, how in rows():
        error = 100 * (ours / theirs - 1)
        lines.append(f"| {model} | {figure} | {_text(ours)} | {_text(theirs)} | {error:+.1f} % | {how} |")
    lines += [
        "",
        "The simulator knows one cause of loss, busy neighbours on the same GPU, as published with other models on them: the",
        "isolation figures go in, and whatever does not follow from one slice beside six is the error of the prediction. The",
        "predicted rows of a model put one prediction in several published ways. What more BERT loses on 56 slices the",
        "published figures do not explain: one host feeds all of them, and Triton stands between.",
    ]
    return "\n".join(lines) + "\n"


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is as it would be written (exit code 1 if not)."""
    path = HERE / "comparison.md"
    text = render()
    if "--check" in arguments:
        return int(not path.is_file() or path.read_text(encoding="utf-8") != text)
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
