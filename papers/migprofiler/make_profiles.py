"""Write configs/profiles/migprofiler-*.yaml from the throughput that MIGProfiler's plots are labelled with.

Run ``python papers/migprofiler/make_profiles.py [--check]``. The figures are in throughput.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from preba.profile import LatencyProfile, profile_from_dict
from preba.profile_yaml import profile_to_yaml, stale_files

HERE = Path(__file__).resolve().parent
PROFILES = HERE.parent.parent / "configs" / "profiles"

MODELS = {
    "bert-base": "bert-base-multilingual-cased",
    "distiluse": "distiluse-base-multilingual-cased-v1",
    "MiniLM-L12": "paraphrase-multilingual-MiniLM-L12-v2",
    "mpnet": "paraphrase-multilingual-mpnet-base-v2",
    "resnet50": "resnet50",
    "vision_transformer": "vit-b-16",
}
VISION = frozenset({"resnet50", "vision_transformer"})
SOURCE = (
    "MIGProfiler, https://github.com/HuaizhengZhang/MIGProfiler, labels of the throughput plots at commit "
    "47b4cbf4, one slice at a time; time = batch / throughput"
)


def published() -> dict[str, dict[str, dict[int, float]]]:
    """Read model -> GPCs -> batch -> items per second."""
    data = json.loads((HERE / "throughput.json").read_text())
    return {
        model: {gpcs: dict(zip(data["batch"], rates, strict=True)) for gpcs, rates in data[model].items()}
        for model in MODELS
    }


def profile_of(model: str, by_gpcs: dict[str, dict[int, float]]) -> LatencyProfile:
    """Turn one model's throughput into a profile."""
    vision = model in VISION
    return profile_from_dict(
        {
            "name": f"migprofiler-{model.lower().replace('_', '-')}",
            "model": MODELS[model],
            "modality": "image" if vision else "tensor",
            "device": "A100-80GB" if vision else "A100-40GB",
            "precision": "fp32 (PyTorch defaults)",
            "framework": "PyTorch",
            "provenance": {
                "kind": "published",
                "source": SOURCE,
                "notes": "Labels are whole numbers: up to 1 % of rounding at the lowest rates."
                + ("" if vision else " Sequence length 64."),
            },
            "table": {
                f"{gpcs}g": {str(batch): 1000 * batch / rate for batch, rate in rates.items()}
                for gpcs, rates in by_gpcs.items()
            },
        },
        origin=f"papers/migprofiler/throughput.json {model}",
    )


def generate() -> dict[str, str]:
    """Return file name -> text for every profile."""
    header = "Written by papers/migprofiler/make_profiles.py: change that, not this.\nmilliseconds per batch"
    profiles = [profile_of(model, by_gpcs) for model, by_gpcs in sorted(published().items())]
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
