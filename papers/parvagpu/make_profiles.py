"""Write configs/profiles/parvagpu-*.yaml from the throughput the ParvaGPU artifact publishes.

Run ``python papers/parvagpu/make_profiles.py [--check]``. The figures are in throughput.json, none is here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from preba.profile import LatencyProfile, profile_from_dict
from preba.profile_yaml import profile_to_yaml, stale_files

HERE = Path(__file__).resolve().parent
PROFILES = HERE.parent.parent / "configs" / "profiles"

TEXT_MODELS = frozenset({"bert"})

LEFT_OUT = frozenset({("densenet169", "3", "128"), ("densenet169", "4", "128")})
"""Rows that contradict their neighbours: README.md says how."""

SOURCE = (
    "Lee et al., ParvaGPU, SC 2024, artifact https://github.com/MunQ-Lee/ParvaGPU_SC24 (MIT licence), "
    "prof_data/{model}.csv at commit 32d48905, rows with one process per slice; time = batch / throughput"
)
NOTES = {
    "": "Each step copies pageable float32 tensors from the host; gradients were not switched off.",
    "bert": "BERT-large at sequence length 128; 7g is not limited by compute: compare no slices by it.",
    "mobilenetv2": "The 7g plateau near 4,000/s is partly bound by host copies.",
    "densenet169": "Batch 128 on 3g and 4g is left out: those rows contradict their neighbours.",
}


def published() -> dict[str, dict[str, dict[str, float]]]:
    """Read model -> GPCs -> batch -> inferences per second, without the rows left out."""
    data: dict[str, dict[str, dict[str, float]]] = json.loads((HERE / "throughput.json").read_text())
    return {
        model: {
            gpcs: {batch: rate for batch, rate in rates.items() if (model, gpcs, batch) not in LEFT_OUT}
            for gpcs, rates in by_gpcs.items()
        }
        for model, by_gpcs in data.items()
    }


def profile_of(model: str, by_gpcs: dict[str, dict[str, float]]) -> LatencyProfile:
    """Turn one model's throughput into a profile."""
    return profile_from_dict(
        {
            "name": f"parvagpu-{model}",
            "model": "bert-large-seq128" if model == "bert" else model,
            "modality": "tensor" if model in TEXT_MODELS else "image",
            "device": "A100-80GB",
            "precision": "fp32 (PyTorch defaults, TF32 allowed)",
            "framework": "PyTorch, NGC 21.11",
            "provenance": {
                "kind": "published",
                "source": SOURCE.format(model=model),
                "notes": " ".join(filter(None, (NOTES[""], NOTES.get(model)))),
            },
            "table": {
                f"{gpcs}g": {batch: 1000 * int(batch) / rate for batch, rate in rates.items()}
                for gpcs, rates in by_gpcs.items()
            },
        },
        origin=f"papers/parvagpu/throughput.json {model}",
    )


def generate() -> dict[str, str]:
    """Return file name -> text for every profile."""
    header = "Written by papers/parvagpu/make_profiles.py: change that, not this.\nmilliseconds per batch"
    return {
        f"parvagpu-{model}.yaml": profile_to_yaml(profile_of(model, by_gpcs), header=header)
        for model, by_gpcs in sorted(published().items())
    }


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
