"""Compare rules for finding the knee on measured curves and write papers/preba/knee-rules.md.

Run ``python papers/preba/knee_rules.py [--check]``. Everything is computed from configs/profiles.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from preba.knee import DEFAULT_GAIN, doubling_grid, find_knee
from preba.profile import load_profile
from preba.profile_yaml import stale_files

HERE = Path(__file__).resolve().parent

Curve = Mapping[int, float]

Case = tuple[str, str]

LAUNCH_BOUND: tuple[Case, ...] = (
    *(("parvagpu-mobilenetv2", key) for key in ("1g", "2g", "3g", "4g", "7g")),
    *(("migprofiler-bert-base", key) for key in ("1g", "2g", "3g", "7g")),
    *((name, key) for name in ("parvagpu-densenet121", "parvagpu-resnet50") for key in ("1g", "7g")),
)
"""Measured; a small batch costs the launch floor, as in PREBA."""

COMPUTE_BOUND: tuple[Case, ...] = tuple(("parvagpu-vgg16", key) for key in ("1g", "7g"))
"""Measured; even one image fills a small slice, so there is hardly a floor."""

MODELLED: tuple[Case, ...] = tuple(
    (f"preba-{model}", key) for model in ("mobilenet-v3-small", "squeezenet1.1", "swin") for key in ("1g", "7g")
)

CASES = LAUNCH_BOUND + COMPUTE_BOUND + MODELLED


def within_floor(curve: Curve, *, share: float) -> int:
    """Return the largest batch whose latency is within a share of batch 1's."""
    return max(batch for batch, time in curve.items() if time <= curve[1] * (1 + share))


def power_peak(curve: Curve) -> int:
    """Return the batch with the largest throughput / latency (Kleinrock's power)."""
    return max(curve, key=lambda batch: batch / curve[batch] ** 2)


def chord_distance(curve: Curve, *, axis: Callable[[float], float]) -> int:
    """Return the batch farthest above the chord of the throughput curve, axes scaled to 0..1 (Kneedle)."""
    batches = sorted(curve)
    across = [axis(batch) for batch in batches]
    rates = [batch / curve[batch] for batch in batches]
    wide, high = across[-1] - across[0], max(rates) - min(rates)
    above = [(y - min(rates)) / high - (x - across[0]) / wide for x, y in zip(across, rates, strict=True)]
    return batches[above.index(max(above))]


def share_of_peak(curve: Curve, *, share: float) -> int:
    """Return the smallest batch that reaches a share of the largest throughput."""
    peak = max(batch / time for batch, time in curve.items())
    return min(batch for batch, time in curve.items() if batch / time >= share * peak)


RULES: dict[str, Callable[[Curve], int]] = {
    "each doubling gains >= 25 %": lambda curve: find_knee(curve, gain=DEFAULT_GAIN),
    "latency within 10 % of batch 1": lambda curve: within_floor(curve, share=0.1),
    "latency within 50 % of batch 1": lambda curve: within_floor(curve, share=0.5),
    "largest throughput / latency": power_peak,
    "farthest from chord, linear axis": lambda curve: chord_distance(curve, axis=float),
    "farthest from chord, log axis": lambda curve: chord_distance(curve, axis=math.log2),
    "80 % of peak throughput": lambda curve: share_of_peak(curve, share=0.8),
    "95 % of peak throughput": lambda curve: share_of_peak(curve, share=0.95),
}


def curve_of(name: str, slice_key: str) -> dict[int, float]:
    """Read one profile's latency on the doubling grid, milliseconds."""
    profile = load_profile(name)
    grid = doubling_grid(profile.batch_max(slice_key))
    return {batch: profile.latency_ns(slice_key, batch) / 1e6 for batch in grid}


def gain_interval(cases: tuple[Case, ...]) -> tuple[float, float]:
    """Find how far `gain` can move, in steps of 0.01, before any knee of these cases moves."""
    curves = [curve_of(*case) for case in cases]
    wanted = [find_knee(curve) for curve in curves]

    def same(hundredths: int) -> bool:
        return [find_knee(curve, gain=hundredths / 100) for curve in curves] == wanted

    low = high = round(100 * DEFAULT_GAIN)
    while low > 1 and same(low - 1):
        low -= 1
    while high < 99 and same(high + 1):
        high += 1
    return low / 100, high / 100


def render() -> str:
    """Compute the whole document."""
    curves = {case: curve_of(*case) for case in CASES}
    lines = [
        "# Which rule finds the knee",
        "",
        "Written by papers/preba/knee_rules.py from configs/profiles. Rows of `preba-` profiles were derived",
        "with the first rule: they show what other rules make of that shape, and are no evidence for it.",
        "",
        "| curve | slice | " + " | ".join(RULES) + " |",
        "|---|---|" + "---|" * len(RULES),
    ]
    lines += [
        f"| {name} | {key} | " + " | ".join(str(rule(curve)) for rule in RULES.values()) + " |"
        for (name, key), curve in curves.items()
    ]
    ratios = [
        "",
        "Ratio of the knee on 7g to that on 1g (PREBA states 8 for each of its three vision models):",
        "",
    ]
    ratios += ["| curve | " + " | ".join(RULES) + " |", "|---|" + "---|" * len(RULES)]
    for name in dict.fromkeys(name for name, _ in CASES):
        cells = [f"{rule(curves[name, '7g']) / rule(curves[name, '1g']):g}" for rule in RULES.values()]
        ratios.append(f"| {name} | " + " | ".join(cells) + " |")
    closing = ["", "How far the gain of the first rule can move, in steps of 1 %, before a knee moves:", ""]
    for text, cases in (
        ("the launch-bound measured curves (mobilenetv2, bert-base, densenet121, resnet50)", LAUNCH_BOUND),
        ("vgg16, which hardly has a floor", COMPUTE_BOUND),
        ("PREBA's vision models", MODELLED),
    ):
        low, high = gain_interval(cases)
        closing.append(f"* {text}: {low:.0%} to {high:.0%}")
    return "\n".join(lines + ratios + closing) + "\n"


def main(arguments: list[str]) -> int:
    """Write the document, or with ``--check`` only compare; return the exit status."""
    files, check = {"knee-rules.md": render()}, "--check" in arguments
    stale = stale_files(HERE, files)
    if not check:
        for name in stale:
            (HERE / name).write_text(files[name], encoding="utf-8")
    print(f"knee-rules.md: {'stale' if stale and check else 'up to date'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
