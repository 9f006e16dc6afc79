"""PREBA's six models and four design points as scenarios, and what is measured on them by simulation.

The scenarios are those of configs/scenarios with another model put in; no number of the paper is typed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preba.knee import knee
from preba.profile import LatencyProfile, load_profile
from preba.scenario.load import load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.units import ms_from_ns, ns_from_s
from sim.saturation import saturated_rps

SCENARIOS = Path(__file__).resolve().parents[2] / "configs" / "scenarios"

VISION = ("mobilenet-v3-small", "squeezenet1.1", "swin")
AUDIO = ("citrinet", "conformer-small", "conformer-default")
MODELS = VISION + AUDIO

DESIGNS = ("base", "base-dpu", "preba", "ideal")
"""32 CPU cores; the DPU alone; the DPU and PREBA's batcher; free preprocessing and PREBA's batcher."""

SMALL, LARGE = "7x1g.5gb", "1x7g.40gb"

CHARACTERISED_S = 2.5
"""Length of audio in the paper's section 3."""

AUDIO_FIXED_BATCH = 4
"""Base's batch for audio: of those papers/preba/fit.py tries, it meets the ablation best."""

COST_FILES = {"squeezenet1.1": "preba-cpu-squeezenet1.1", "swin": "preba-cpu-swin"}
"""Models whose CPU cost is not in preba-cpu-epyc7502, which holds MobileNet's and that of audio."""

Batcher = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One model in one design point.

    Attributes
    ----------
    model, design : str
    partition : str
    batcher : str or None
        JSON that replaces the batcher; None: the design's own for that model.
    audio_s : float or None
        One constant audio length in the place of LibriSpeech's.
    extra : tuple of str
        More ``path=value`` overrides.
    """

    model: str
    design: str
    partition: str = SMALL
    batcher: str | None = None
    audio_s: float | None = None
    extra: tuple[str, ...] = ()


def modality(model: str) -> str:
    """Tell the modality of one of the six models."""
    return "audio" if model in AUDIO else "image"


def profile_name(model: str) -> str:
    """Name the latency profile of a model."""
    return f"preba-{model}"


def time_knee_ms(profile: LatencyProfile, slice_key: str = "1g.5gb") -> float:
    """Time_knee of a profile; of audio at the length of section 3."""
    length = ns_from_s(CHARACTERISED_S) if profile.length_dependent else None
    return ms_from_ns(knee(profile, slice_key, length).latency_ns)


def fixed_batcher(profile: LatencyProfile, batch: int | None = None) -> Batcher:
    """Say what "without dynamic batching" means here: a fixed batch, or a time-out of Time_knee.

    Vision: Batch_knee of one slice. Audio: one batch for every length (no length buckets), ``batch`` or
    ``AUDIO_FIXED_BATCH``. A batch of 1 is no batching at all.
    """
    if batch is None:
        batch = AUDIO_FIXED_BATCH if profile.length_dependent else knee(profile, "1g.5gb").batch
    if batch == 1:
        return {"kind": "none"}
    return {"kind": "fixed", "batch_max": batch, "timeout_ms": time_knee_ms(profile)}


def resolved(point: Point, *, profile: LatencyProfile | None = None) -> ResolvedScenario:
    """Resolve a design point; with another profile in the place of the model's own, if given."""
    path = SCENARIOS / f"preba-{modality(point.model)}-{point.design}.yaml"
    own = profile or load_profile(profile_name(point.model))
    overrides = [
        f"name=preba-{point.model}-{point.design}",
        f"models[0].name={point.model}",
        f"models[0].profile={profile_name(point.model)}",
        f"gpus[0].partition={point.partition}",
    ]
    if point.batcher is not None:
        overrides.append(f"models[0].batcher={point.batcher}")
    elif point.design in ("base", "base-dpu"):
        overrides.append(f"models[0].batcher={json.dumps(fixed_batcher(own))}")
    if point.audio_s is not None and modality(point.model) == "audio":
        overrides.append(f'models[0].sizes={{"kind": "constant", "audio_s": {point.audio_s}}}')
    if point.design == "base" and point.model in COST_FILES:
        overrides.append(f"preprocessing.cost={COST_FILES[point.model]}")
    scenario = load_scenario(path, [*overrides, *point.extra])
    if profile is not None:
        served = scenario.models[0].model_copy(update={"profile": profile})
        scenario = scenario.model_copy(update={"models": (served,)})
    return resolve(scenario, folder=path.parent)


def saturation(point: Point, *, profile: LatencyProfile | None = None, requests: int = 8000) -> float:
    """Saturated throughput of a design point, requests per second, by simulation."""
    return saturated_rps(resolved(point, profile=profile), requests=requests)


def characterised_rps(profile: LatencyProfile, slices: int) -> float:
    """Throughput of section 3, preprocessing off: every slice runs batches of Batch_knee, audio of 2.5 s."""
    length = ns_from_s(CHARACTERISED_S) if profile.length_dependent else None
    found = knee(profile, "1g.5gb", length)
    return slices * found.batch * 1e9 / found.latency_ns


def mean_audio_s() -> float:
    """Mean length of the utterances that the audio scenarios draw, seconds."""
    return resolved(Point("citrinet", "preba")).scenario.models[0].sizes.mean_size() / 1e9
