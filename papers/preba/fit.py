"""Fit what PREBA's paper leaves open to what it states, and write the fitted numbers into configs/.

Run ``python papers/preba/fit.py [--check]``. The free parameters, each with the facts that determine it, are in
``PARAMETERS`` below; facts come from numbers.csv, slice throughputs from simulation of the latency profiles
(papers/preba/make_profiles.py), and preprocessing capacities are analytic: the throughput of a design point is
the smaller of the two. papers/preba/compare.py simulates every design point whole, as the check on this.

The arithmetic of one design is in ``predict``; what is free in it is a ``Free``.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import make_profiles
import rig
from facts import Fact, load_facts
from figure_text import figure_block, set_figure

from preba.hardware import load_hardware
from preba.preprocessing import CpuPreprocessing, load_costs
from preba.preprocessing_costs import CpuCosts, DpuRates
from preba.profile import LatencyProfile, load_profile
from preba.profile_yaml import stale_files

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

JPEG_BYTES = make_profiles.IMAGE_BYTES - 224 * 224 * 3 * 4
"""Mean file of configs/workloads/imagenet-jpeg.yaml."""

FIXED_BATCHES = (1, 2, 4, 8, 16)
"""Base's batch for audio: what is tried."""

DOUBLINGS = (0, 1, 2, 3)
"""By how many doublings CitriNet is faster than the Conformers: what is tried."""

PARAMETERS = (
    ("CPU cost of a second of audio, one for three models", "cores_citrinet", "exact"),
    ("cores that sustain one A100, one for three vision models", "loss_sec3, loss_sec6, abstract_throughput", "fit"),
    ("DPU rate for audio", "pcie_citrinet, ablation_dpu, ablation_batching, ideal_share, abstract_throughput", "fit"),
    ("DPU rate for images", "pcie_mobilenet", "exact"),
    ("cores the serving software keeps busy", "cpu_power", "exact"),
    ("CitriNet's speed over the Conformers', a power of two", "abstract_throughput, loss_sec6, ablation_*", "choice"),
    ("Base's fixed batch for audio, a power of two", "ablation_dpu, ablation_batching", "choice"),
)
"""(parameter, ids of the facts that determine it, how)."""

FITTED = (
    "abstract_throughput",
    "loss_sec3",
    "loss_sec6",
    "ideal_share",
    "ablation_dpu",
    "ablation_batching",
    "pcie_citrinet",
)
"""Facts whose squared relative deviations are minimised."""


@dataclass(frozen=True)
class Setting:
    """What does not change during one fit: throughputs of slices, requests per second, and constants.

    Attributes
    ----------
    ideal : mapping of model to float
        Ideal, saturated.
    fixed : mapping of model to float
        Slices behind Base's batcher, preprocessing off, saturated.
    characterised : mapping of model to float
        Section 3: batches of Batch_knee, 2.5 s of audio.
    audio_s : float
        Mean length of LibriSpeech's utterances.
    cores, usable : float
    """

    ideal: Mapping[str, float]
    fixed: Mapping[str, float]
    characterised: Mapping[str, float]
    audio_s: float
    cores: float
    usable: float


@dataclass(frozen=True)
class Free:
    """The continuous parameters of a throughput prediction.

    Attributes
    ----------
    audio_core_s : float
        Core seconds per second of audio.
    image_core_s : mapping of model to float
        Core seconds per image.
    dpu_audio : float
        Seconds of audio that the DPU passes per second.
    dpu_images : float
        Images that the DPU passes per second.
    """

    audio_core_s: float
    image_core_s: Mapping[str, float]
    dpu_audio: float
    dpu_images: float


def predict(setting: Setting, free: Free) -> dict[str, float]:
    """Work out the throughput facts of the paper from the parameters."""
    base, middle, full, loss3 = {}, {}, {}, {}
    for model in rig.MODELS:
        core_s = free.audio_core_s * setting.audio_s if model in rig.AUDIO else free.image_core_s[model]
        dpu = free.dpu_audio / setting.audio_s if model in rig.AUDIO else free.dpu_images
        base[model] = min(setting.cores * setting.usable / core_s, setting.fixed[model])
        middle[model] = min(dpu, setting.fixed[model])
        full[model] = min(dpu, setting.ideal[model])
        short_s = free.audio_core_s * rig.CHARACTERISED_S if model in rig.AUDIO else core_s
        loss3[model] = 1 - min(1.0, setting.cores * setting.usable / short_s / setting.characterised[model])
    shares = sorted(full[model] / setting.ideal[model] for model in rig.MODELS)
    sent = make_profiles.AUDIO_BYTES_PER_S_FLOAT32 * setting.audio_s
    return {
        "abstract_throughput": statistics.mean(full[m] / base[m] for m in rig.MODELS),
        "loss_sec3": 100 * statistics.mean(loss3.values()),
        "loss_sec6": 100 * statistics.mean(1 - base[m] / setting.ideal[m] for m in rig.MODELS),
        "ideal_share": 100 * shares[1],
        "ablation_dpu": statistics.mean(middle[m] / base[m] for m in rig.AUDIO),
        "ablation_batching": statistics.mean(full[m] / middle[m] for m in rig.AUDIO),
        "pcie_citrinet": full["citrinet"] * sent / 1e9,
        "pcie_mobilenet": full["mobilenet-v3-small"] * make_profiles.IMAGE_BYTES / 1e9,
        "cores_citrinet": setting.characterised["citrinet"] * free.audio_core_s * rig.CHARACTERISED_S / setting.usable,
    }


def deviation(fact: str, ours: float, facts: Mapping[str, Fact]) -> float:
    """Relative deviation from a fact; zero where a lower bound is kept."""
    stated = facts[fact].value
    off = ours / stated - 1
    return min(off, 0.0) if fact == "ideal_share" else off


def misfit(predicted: Mapping[str, float], facts: Mapping[str, Fact]) -> float:
    """Root mean square of the relative deviations from the fitted facts."""
    return math.sqrt(statistics.mean(deviation(fact, predicted[fact], facts) ** 2 for fact in FITTED))


def exact_audio_core_s(setting: Setting, facts: Mapping[str, Fact]) -> float:
    """Core seconds per second of audio for which CitriNet needs the stated number of cores."""
    rate = setting.characterised["citrinet"] * rig.CHARACTERISED_S
    return facts["cores_citrinet"].value * setting.usable / rate


def free_at(setting: Setting, facts: Mapping[str, Fact], *, cores: float, dpu_audio: float, shared: bool) -> Free:
    """Fill in the parameters; ``shared``: one cost per image (MobileNet's), else equal cores for each model."""
    rates = {m: setting.ideal["mobilenet-v3-small" if shared else m] for m in rig.VISION}
    return Free(
        audio_core_s=exact_audio_core_s(setting, facts),
        image_core_s={m: cores * setting.usable / rate for m, rate in rates.items()},
        dpu_audio=dpu_audio,
        dpu_images=facts["pcie_mobilenet"].value * 1e9 / make_profiles.IMAGE_BYTES,
    )


def fit(setting: Setting, facts: Mapping[str, Fact], *, shared: bool = False) -> tuple[float, float]:
    """Find (cores per A100, DPU rate in audio seconds per second) with the smallest misfit, on ever finer grids."""
    low, high = [math.log(32.0), math.log(1000.0)], [math.log(4000.0), math.log(40000.0)]
    best = (0.0, 0.0)
    for _ in range(6):
        grid = [[a + (b - a) * k / 40 for k in range(41)] for a, b in (low, high)]
        points = [(x, y) for x in grid[0] for y in grid[1]]
        best = min(points, key=lambda p: misfit(predict(setting, _at(setting, facts, p, shared=shared)), facts))
        steps = [axis[1] - axis[0] for axis in grid]
        low, high = ([centre - 2 * step, centre + 2 * step] for centre, step in zip(best, steps, strict=True))
    return math.exp(best[0]), math.exp(best[1])


def _at(setting: Setting, facts: Mapping[str, Fact], point: tuple[float, float], *, shared: bool) -> Free:
    cores, dpu_audio = (math.exp(value) for value in point)
    return free_at(setting, facts, cores=cores, dpu_audio=dpu_audio, shared=shared)


def software_cores(facts: Mapping[str, Fact], usable_cores: float) -> float:
    """Cores that the serving software must keep busy for the stated saving of CPU power at saturation.

    With all of the usable cores preprocessing the host is fully used; without, only the software's are.
    """
    host = load_hardware("preba-testbed").host
    left_w = host.max_w.value * (1 - facts["cpu_power"].value / 100)
    share = (left_w - host.idle_w.value) / (host.max_w.value - host.idle_w.value)
    cores = share * host.cores.value
    if usable_cores + cores < host.cores.value:
        raise RuntimeError("the host is not fully used by Base; the closed form above does not hold")
    return cores


def faster_citrinet(doublings: int) -> LatencyProfile:
    """CitriNet's profile with another number of doublings."""
    own = next(each for each in make_profiles.audio() if each.name == "citrinet")
    slope = own.slope_1g_ms * 2.0 ** (make_profiles.CITRINET_DOUBLINGS - doublings)
    return make_profiles.profile_of(replace(own, slope_1g_ms=slope), make_profiles.slope_exponent())


class Measured:
    """Slice throughputs by simulation, each found once.

    Parameters
    ----------
    requests : int
        Length of a saturation run.
    """

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._found: dict[tuple[object, ...], float] = {}

    def rate(self, model: str, profile: LatencyProfile, batch: int | None) -> float:
        """Saturated throughput without preprocessing: PREBA's batcher, or a fixed batch."""
        # Equal profiles under two names (the Conformers) need one simulation.
        key = (json.dumps(profile.closed_form.model_dump() if profile.closed_form else model), batch)
        if key not in self._found:
            batcher = None if batch is None else json.dumps(rig.fixed_batcher(profile, batch))
            point = rig.Point(model, "ideal", batcher=batcher)
            self._found[key] = rig.saturation(point, profile=profile, requests=self._requests)
        return self._found[key]

    def setting(self, doublings: int, audio_batch: int) -> Setting:
        """Everything that a fit rests on, for one choice of the discrete parameters."""
        profiles = {m: load_profile(rig.profile_name(m)) for m in rig.MODELS}
        profiles["citrinet"] = faster_citrinet(doublings)
        slices = int(load_facts()["slices_1g"].value)
        ideal = {m: self.rate(m, profiles[m], None) for m in rig.MODELS}
        scenario = rig.resolved(rig.Point("citrinet", "base")).scenario
        pool = scenario.preprocessing
        if not isinstance(pool, CpuPreprocessing):
            raise TypeError(f"preba-audio-base: preprocessing must be cpu, got {pool.kind}")
        return Setting(
            ideal=ideal,
            fixed={m: self.rate(m, profiles[m], audio_batch) if m in rig.AUDIO else ideal[m] for m in rig.MODELS},
            characterised={m: rig.characterised_rps(profiles[m], slices) for m in rig.MODELS},
            audio_s=rig.mean_audio_s(),
            cores=float(pool.cores),
            usable=float(pool.usable_fraction),
        )


SOURCE = "fitted to PREBA, arXiv 2411.19114, by papers/preba/fit.py"

CPU, CARD, MACHINE = (
    "preprocessing/preba-cpu-epyc7502.yaml",
    "preprocessing/preba-u55c.yaml",
    "hardware/preba-testbed.yaml",
)

Written = tuple[float, str]
"""A value and how it came about."""


def generate(setting: Setting, facts: Mapping[str, Fact], cores: float, dpu_audio: float) -> dict[str, str]:
    """Write the fitted numbers into the text of the config files they belong to; file name -> text."""
    free = free_at(setting, facts, cores=cores, dpu_audio=dpu_audio, shared=False)
    images = {model: _image_figures(setting, free, cores, model) for model in rig.VISION}
    figures = {
        CPU: {
            **{f"image.{name}": figure for name, figure in images["mobilenet-v3-small"].items()},
            "audio.per_audio_s_us": _audio_figure(setting, free, facts),
        },
        CARD: _card_figures(free),
        MACHINE: {
            "host.software_cores": (
                software_cores(facts, setting.cores * setting.usable),
                "with preprocessing off the host, CPU power falls by the stated 35.4 % (section 6.2) at saturation",
            )
        },
    }
    files: dict[str, str] = {}
    for name, changes in figures.items():
        files[name] = (CONFIGS / name).read_text(encoding="utf-8")
        for path, (value, notes) in changes.items():
            files[name] = set_figure(files[name], path, _digits(value), source=SOURCE, notes=notes)
    for model, name in rig.COST_FILES.items():
        blocks = [
            figure_block(key, _digits(v), source=SOURCE, notes=notes) for key, (v, notes) in images[model].items()
        ]
        files[f"preprocessing/{name}.yaml"] = (
            "# Written by papers/preba/fit.py: change that, not this.\n"
            f"kind: cpu\nname: {name}\n"
            f"description: Image preprocessing of PREBA's baseline server with {model}, one EPYC 7502 core.\n"
            "image:\n" + "".join(blocks)
        )
    return files


def _image_figures(setting: Setting, free: Free, cores: float, model: str) -> dict[str, Written]:
    """Divide the work of an image into fixed and per byte as library code divides it."""
    library = load_costs(CpuCosts, "cpu-opencv-epyc").image
    if library is None:
        raise RuntimeError("cpu-opencv-epyc has no image section")
    per_100kb_us = library.per_100kb_us.value * JPEG_BYTES / 1e5
    fixed = library.fixed_us.value / (library.fixed_us.value + per_100kb_us)
    work_us = 1e6 * free.image_core_s[model]
    notes = (
        f"work of a {JPEG_BYTES / 1000:.0f} kB image = {setting.usable:g} * {cores:.4g} cores / "
        f"{setting.ideal[model]:.4g} images/s = {work_us / 1000:.4g} ms: {cores:.4g} cores sustain one A100, the same "
        "for the three vision models (sections 3.3, 6.1); divided into fixed and per byte as in cpu-opencv-epyc"
    )
    return {"fixed_us": (fixed * work_us, notes), "per_100kb_us": ((1 - fixed) * work_us / JPEG_BYTES * 1e5, notes)}


def _audio_figure(setting: Setting, free: Free, facts: Mapping[str, Fact]) -> Written:
    cores = facts["cores_citrinet"].text
    notes = (
        f"{cores} cores sustain CitriNet (section 3.3): {setting.usable:g} * {cores} cores / "
        f"({setting.characterised['citrinet']:.5g} clips/s * 2.5 s); the same for the Conformers, whose preprocessing "
        "is the same"
    )
    return 1e6 * free.audio_core_s, notes


def _card_figures(free: Free) -> dict[str, Written]:
    rates = load_costs(DpuRates, "preba-u55c")
    if rates.audio is None or rates.image is None:
        raise RuntimeError("preba-u55c lacks a section")
    mel, image = rates.audio.mel_units.value, rates.image.units.value
    mel_us = mel * 1e6 / free.dpu_audio
    return {
        "audio.mel_per_audio_s_us": (
            mel_us,
            (
                f"{mel} units / {free.dpu_audio:.4g} seconds of audio per second, a compromise between 0.9 GB/s of "
                "PCIe traffic with CitriNet (section 4.2) and the ratios of sections 6.1 and 6.4"
            ),
        ),
        "audio.normalize_per_audio_s_us": (
            0.4 * mel_us,
            (
                "assumed 0.4 of the mel time, so that mel is the bottleneck of the tandem: mean, variance and "
                "normalisation each pass over 80 x 100 values per second of audio; with both steps in one unit "
                "(one_type) throughput is 1 / 1.4 of the tandem's"
            ),
        ),
        "image.interval_per_100kb_us": (
            image * 1e6 / free.dpu_images / JPEG_BYTES * 1e5,
            (
                f"{image} units / {free.dpu_images:.5g} images/s, which 6.13 GB/s of PCIe traffic with MobileNet "
                "(section 4.2) imply at 0.60 MB of float32 tensor out and 0.11 MB of JPEG in"
            ),
        ),
    }


def _digits(value: float) -> float:
    """Four digits: the facts have no more than three."""
    return float(f"{value:.4g}")


def _print_choices(measured: Measured, facts: Mapping[str, Fact]) -> None:
    print("\nDiscrete choices: root mean square deviation from the fitted facts, each refitted")
    print("CitriNet faster by |" + "".join(f" fixed batch {b:>2} |" for b in FIXED_BATCHES))
    for doublings in DOUBLINGS:
        cells = []
        for batch in FIXED_BATCHES:
            setting = measured.setting(doublings, batch)
            cores, dpu = fit(setting, facts)
            free = free_at(setting, facts, cores=cores, dpu_audio=dpu, shared=False)
            cells.append(f"{misfit(predict(setting, free), facts):>14.1%} |")
        chosen = "  <- chosen" if doublings == make_profiles.CITRINET_DOUBLINGS else ""
        print(f"{2**doublings:>17}x |" + "".join(cells) + chosen)
    print(f"chosen batch: {rig.AUDIO_FIXED_BATCH}")


def _print_residuals(predicted: Mapping[str, float], shared: Mapping[str, float], facts: Mapping[str, Fact]) -> None:
    print("\nResiduals (analytic; compare.py simulates)")
    print(f"{'fact':<22}{'stated':>9}{'ours':>9}{'off':>8}   {'one cost per image':>18}{'off':>9}")
    for fact, ours in predicted.items():
        how = "" if fact in FITTED else "  (exact)"
        bound = ">=" if fact == "ideal_share" else ""
        print(
            f"{fact:<22}{bound + facts[fact].text:>9}{ours:>9.2f}{deviation(fact, ours, facts):>+8.1%}"
            f"   {shared[fact]:>18.2f}{deviation(fact, shared[fact], facts):>+9.1%}{how}"
        )
    print(f"root mean square of the fitted ones: {misfit(predicted, facts):.1%}; {misfit(shared, facts):.1%}")


def main(arguments: list[str]) -> int:
    """Fit, print, and write what changed, or with ``--check`` only name it; return the exit status."""
    facts, measured, check = load_facts(), Measured(requests=6000), "--check" in arguments
    setting = measured.setting(make_profiles.CITRINET_DOUBLINGS, rig.AUDIO_FIXED_BATCH)
    cores, dpu_audio = fit(setting, facts)
    files = generate(setting, facts, cores, dpu_audio)
    stale = stale_files(CONFIGS, files)
    if not check:
        for name in stale:
            (CONFIGS / name).write_text(files[name], encoding="utf-8")
        print(f"{len(PARAMETERS)} free parameters, {len(FITTED)} facts fitted + 3 met exactly")
        for what, determined_by, how in PARAMETERS:
            print(f"  {how:<7}{what}: {determined_by}")
        free = free_at(setting, facts, cores=cores, dpu_audio=dpu_audio, shared=False)
        one = fit(setting, facts, shared=True)
        alike = free_at(setting, facts, cores=one[0], dpu_audio=one[1], shared=True)
        print(
            f"\nvision: {cores:.1f} cores per A100; audio: {1000 * free.audio_core_s:.2f} ms of a core per second; "
            f"DPU: {dpu_audio:.0f} s of audio per second, {free.dpu_images:.0f} images/s"
        )
        _print_residuals(predict(setting, free), predict(setting, alike), facts)
        _print_choices(measured, facts)
    print(f"\n{len(files)} files, {len(stale)} {'stale' if check else 'written'}: {', '.join(stale) or '-'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
