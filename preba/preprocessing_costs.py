"""What preprocessing costs: the profiles in configs/preprocessing, and the plain numbers that replace theirs.

Throughout, 100 kB are 100,000 bytes, and costs are microseconds of one core, one unit or one GPC. Which
profile a scenario uses is in preba.preprocessing; formulas over a trace are in accel.work.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from preba.figures import Count, Figure, PositiveFigure
from preba.strict import StrictModel

__all__ = [
    "AudioCost",
    "AudioCostOverride",
    "CpuCosts",
    "DaliCosts",
    "DaliImageCost",
    "DaliImageOverride",
    "DpuAudioOptions",
    "DpuAudioRates",
    "DpuImageOptions",
    "DpuImageRates",
    "DpuRates",
    "HopCost",
    "HopOverride",
    "ImageCost",
    "ImageCostOverride",
]


class _BentLine(StrictModel):
    """A line in an input's size, and how far the work is from it at some sizes."""

    bends: tuple[tuple[NonNegativeFloat, float], ...] = ()
    """(size, microseconds beyond the line): straight between them, as at the nearest one beyond. Sizes rise and are in
    the unit of the line's slope; measured together with the line."""

    @field_validator("bends")
    @classmethod
    def _sizes_rise(cls, bends: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(after[0] <= before[0] for before, after in itertools.pairwise(bends)):
            raise ValueError(f"sizes must rise, got {[size for size, _ in bends]}")
        return bends


class ImageCost(_BentLine):
    """Work of one image: ``fixed_us + per_100kb_us * bytes / 100 kB``, and bends by size in 100 kB."""

    fixed_us: Figure
    per_100kb_us: Figure


class AudioCost(_BentLine):
    """Work of one utterance: ``fixed_us + per_audio_s_us * seconds of audio``, and bends by seconds."""

    fixed_us: Figure
    per_audio_s_us: Figure


class CpuCosts(StrictModel):
    """A CPU cost profile: the work of one core that is wholly ours, per request."""

    kind: Literal["cpu"]
    name: str = Field(min_length=1)
    description: str = ""
    image: ImageCost | None = None
    audio: AudioCost | None = None


class DaliImageCost(ImageCost):
    """Work of one image on one GPC that has no JPEG engine, and what an engine takes off it."""

    decode_fraction: Figure
    """Share of that work which is decoding, 0..1; taken to be the same for every image."""
    engine_gpcs: PositiveFigure
    """One JPEG engine decodes as fast as the SMs of this many GPCs."""

    @model_validator(mode="after")
    def _fraction(self) -> DaliImageCost:
        if self.decode_fraction.value > 1:
            raise ValueError(f"decode_fraction: must be <= 1, got {self.decode_fraction.value}")
        return self


class HopCost(StrictModel):
    """Moving a tensor over PCIe into the model's slice: ``latency_us + bytes / bandwidth``.

    ``image_bytes`` and ``audio_bytes_per_s`` are the size of what preprocessing makes of an image, whatever its
    file's size, and of one second of audio.
    """

    latency_us: Figure
    bandwidth_gb_per_s: PositiveFigure
    image_bytes: Figure
    audio_bytes_per_s: Figure


class DaliCosts(StrictModel):
    """A DALI cost profile: a fixed cost per batch, work per item on one GPC, and the hop out of its slice."""

    kind: Literal["dali"]
    name: str = Field(min_length=1)
    description: str = ""
    launch_us: Figure
    image: DaliImageCost | None = None
    audio: AudioCost | None = None
    hop: HopCost


class DpuImageRates(StrictModel):
    """The image unit: Decode, Resize, Crop and Normalise in one pipeline.

    A unit accepts the next image after the interval ``interval_fixed_us + interval_per_100kb_us * bytes /
    100 kB`` (its slowest step) and hands one out ``drain_us`` after it has taken it in.
    """

    units: Count
    interval_fixed_us: Figure
    interval_per_100kb_us: Figure
    drain_us: Figure


class DpuAudioRates(StrictModel):
    """The audio units: (i) Resample and Mel, (ii) Normalise, which needs the whole output of (i)."""

    mel_units: Count
    normalize_units: Count
    mel_fixed_us: Figure
    mel_per_audio_s_us: Figure
    normalize_fixed_us: Figure
    normalize_per_audio_s_us: Figure


class DpuRates(StrictModel):
    """Rates of an FPGA preprocessing card, one build per modality."""

    kind: Literal["dpu"]
    name: str = Field(min_length=1)
    description: str = ""
    image: DpuImageRates | None = None
    audio: DpuAudioRates | None = None
    hop: HopCost


class ImageCostOverride(StrictModel):
    """Numbers that replace those of the cost profile."""

    fixed_us: NonNegativeFloat | None = None
    per_100kb_us: NonNegativeFloat | None = None


class DaliImageOverride(ImageCostOverride):
    """Numbers that replace those of the DALI cost profile."""

    decode_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    engine_gpcs: PositiveFloat | None = None


class AudioCostOverride(StrictModel):
    """Numbers that replace those of the cost profile."""

    fixed_us: NonNegativeFloat | None = None
    per_audio_s_us: NonNegativeFloat | None = None


class HopOverride(StrictModel):
    """Numbers that replace those of the profile's hop."""

    latency_us: NonNegativeFloat | None = None
    bandwidth_gb_per_s: PositiveFloat | None = None
    image_bytes: NonNegativeFloat | None = None
    audio_bytes_per_s: NonNegativeFloat | None = None


class DpuImageOptions(StrictModel):
    """The image unit: numbers that replace those of the rates file."""

    units: PositiveInt | None = None
    interval_fixed_us: NonNegativeFloat | None = None
    interval_per_100kb_us: NonNegativeFloat | None = None
    drain_us: NonNegativeFloat | None = None


class DpuAudioOptions(StrictModel):
    """The audio design, and numbers that replace those of the rates file.

    ``two_types``: both unit types in tandem. ``one_type``: ``mel_units`` units that do both steps, each held
    for a whole request, the stall of PREBA's Fig. 12b.
    """

    design: Literal["two_types", "one_type"] = "two_types"
    mel_units: PositiveInt | None = None
    normalize_units: PositiveInt | None = None
    mel_fixed_us: NonNegativeFloat | None = None
    mel_per_audio_s_us: NonNegativeFloat | None = None
    normalize_fixed_us: NonNegativeFloat | None = None
    normalize_per_audio_s_us: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _units(self) -> DpuAudioOptions:
        if self.design == "one_type" and self.normalize_units is not None:
            raise ValueError("normalize_units: means nothing with design one_type; mel_units counts the units")
        return self
