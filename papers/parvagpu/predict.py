"""Predict ParvaGPU's larger slices from its smallest, and print the throughput beside the published one.

Run ``python papers/parvagpu/predict.py [--check]``. Writes comparison.md. The 1-GPC row of each model is taken; the
rest is ``max(tau(1), tau(b) / g)``: work shrinks with the slice, the time of a batch of one does not.
"""

# ruff: noqa: E501 - lines of the page it writes
from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from preba.profile import profile_from_dict

HERE = Path(__file__).resolve().parent
SIZES = (2, 3, 4, 7)
DOUBTFUL = {("densenet169", "3", "128"), ("densenet169", "4", "128")}
"""Rows that README.md explains and the profile leaves out."""


def predicted_rate(model: str, rates: dict[str, dict[str, float]], g: int, batch: int) -> float | None:
    """Inferences per second on g GPCs, from the 1-GPC row; None beyond its batches."""
    one = {int(size): 1000 * int(size) / rate for size, rate in rates["1"].items()}
    if batch > max(one):
        return None
    profile = profile_from_dict(
        {
            "name": f"scaled-{model}", "model": model, "modality": "image", "device": "A100-80GB", "precision": "fp32",
            "framework": "PyTorch",
            "provenance": {"kind": "published", "source": "ParvaGPU, prof_data, the row of one GPC"},
            "table": {"1g": one},
            "scaling": {
                "from_slice": "1g", "exponent": 1.0, "floor_ms": one[min(one)],
                "provenance": {"kind": "modelled", "source": "assumption: all but the launch shrinks with the slice"},
            },
        },
        origin=model,
    )  # fmt: skip
    return batch / (profile.latency_ns(f"{g}g", batch) / 1e9)


def errors() -> dict[str, dict[int, list[float]]]:
    """Per model and GPCs the signed errors in percent, a batch each."""
    found: dict[str, dict[int, list[float]]] = {}
    for model, rates in json.loads((HERE / "throughput.json").read_text(encoding="utf-8")).items():
        for g in SIZES:
            for batch, rate in rates[str(g)].items():
                ours = predicted_rate(model, rates, g, int(batch))
                if ours is not None and (model, str(g), batch) not in DOUBTFUL:
                    found.setdefault(model, {}).setdefault(g, []).append(100 * (ours / rate - 1))
    return found


def render() -> str:
    """The page."""
    lines = [
        "# Larger slices, predicted from one GPC",
        "",
        "Written by `python papers/parvagpu/predict.py`: throughput on g GPCs as `max(tau(1), tau(b) / g)` from the row of",
        "one GPC, against the published row. Signed errors in percent over the batches: median, and the worst.",
        "",
        "| model | " + " | ".join(f"{g} GPCs" for g in SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    every = errors()
    for model, sizes in every.items():
        cells = [f"{statistics.median(sizes[g]):+.0f} (worst {max(sizes[g], key=abs):+.0f})" for g in SIZES]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    middle = {g: [error for sizes in every.values() for error in sizes[g]] for g in SIZES}
    cells = [f"{statistics.median(middle[g]):+.0f}" for g in SIZES]
    lines.append(f"| median of all | {' | '.join(cells)} |")
    near = sorted(model for model, sizes in every.items() if all(abs(statistics.median(sizes[g])) <= 10 for g in SIZES))
    far = sorted(set(every) - set(near))
    lines += [
        "",
        f"Within 10 % on every size, by the median over batches: {', '.join(near)}.",
        f"Not: {', '.join(far)}.",
        "BERT's larger slices are limited by something other than compute (README.md); a batch of one of VGG is not bound",
        "by its launch on one GPC, so that it, too, gets faster with the slice. A slice size that was not measured is a",
        "guess: preba derives one only where a profile says so (`scaling`), and reports it as modelled.",
    ]
    return "\n".join(lines) + "\n"


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
