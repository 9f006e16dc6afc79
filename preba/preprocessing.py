"""Preprocessing as a user writes it: the strict configs by ``kind``, and loading the cost profiles they name.

What a config means as stations for an engine is in accel.stations; no queueing, no arrays, no rounding here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from preba.data import config_folder
from preba.errors import ScenarioError
from preba.figures import figures_of, replace_figures
from preba.preprocessing_costs import (
    AudioCostOverride,
    CpuCosts,
    DaliCosts,
    DaliImageOverride,
    DpuAudioOptions,
    DpuImageOptions,
    DpuRates,
    HopOverride,
    ImageCostOverride,
)
from preba.strict import Provenance, StrictModel
from preba.strictfile import find_config, modified_ns, read_yaml, validate

__all__ = [
    "AnyPreprocessing",
    "CpuCosts",
    "CpuPreprocessing",
    "DaliCosts",
    "DaliSharedPreprocessing",
    "DaliSlicePreprocessing",
    "DpuPreprocessing",
    "DpuRates",
    "NoPreprocessing",
    "PreprocessingConfig",
    "accelerator_count",
    "cost_provenance",
    "inline_costs",
]


class NoPreprocessing(StrictModel):
    """Requests reach the batcher when they arrive (PREBA's "Ideal")."""

    kind: Literal["none"]


class CpuPreprocessing(StrictModel):
    """A first-come first-served pool of CPU cores.

    ``usable_fraction`` is the share of each core that preprocessing gets: with all cores busy, the
    utilisation shown stops there. Its default is where PREBA's Fig. 9 saturates (about 90 %).
    """

    kind: Literal["cpu"]
    cores: PositiveInt
    usable_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    cost: str | CpuCosts = "cpu-opencv-epyc"
    """A name in configs/preprocessing, a path, or the profile itself."""
    image: ImageCostOverride = ImageCostOverride()
    audio: AudioCostOverride = AudioCostOverride()
    transfer_per_100kb_us: NonNegativeFloat = 0.0
    """So much later for each 100 kB of an image: larger files take longer to reach a core, without keeping it."""
    transfer_per_audio_s_us: NonNegativeFloat = 0.0
    """The same for each second of audio."""
    rested_us: NonNegativeFloat = 0.0
    """A core that had nothing to do takes this much longer for its next input: cold caches, sleep states."""


class DpuPreprocessing(StrictModel):
    """An FPGA card that preprocesses one input at a time in parallel units, and its hop to the GPU."""

    kind: Literal["dpu"]
    rates: str | DpuRates = "preba-u55c"
    """A name in configs/preprocessing, a path, or the rates themselves."""
    image: DpuImageOptions = DpuImageOptions()
    audio: DpuAudioOptions = DpuAudioOptions()
    hop: HopOverride = HopOverride()


class DaliSlicePreprocessing(StrictModel):
    """DALI on slices of its own, of one profile: an idle slice takes all that waits, up to ``batch_max``."""

    kind: Literal["dali_slice"]
    slices: dict[str, PositiveInt] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """``{profile: count}``, or slice indices."""
    batch_max: PositiveInt = 32
    cost: str | DaliCosts = "dali-a100"
    hw_decoder_share: Annotated[float, Field(ge=0, le=1)] = 0.65
    """Share of the images sent to JPEG engines, if the slice has any (DALI's hw_decoder_load and default)."""
    launch_us: NonNegativeFloat | None = None
    image: DaliImageOverride = DaliImageOverride()
    audio: AudioCostOverride = AudioCostOverride()
    hop: HopOverride = HopOverride()

    @model_validator(mode="after")
    def _one_profile(self) -> DaliSlicePreprocessing:
        if isinstance(self.slices, dict) and len(self.slices) != 1:
            raise ValueError(f"slices: must name exactly one slice profile, got {sorted(self.slices)}")
        return self


class DaliSharedPreprocessing(StrictModel):
    """DALI in the model's own slices: each batch is preprocessed on its slice first, then executed there."""

    kind: Literal["dali_shared"]
    cost: str | DaliCosts = "dali-a100"
    hw_decoder_share: Annotated[float, Field(ge=0, le=1)] = 0.65
    interference: NonNegativeFloat = 0.1
    """By which fraction the execution itself gets slower. Nobody published a figure; 0.1 is an assumption."""
    launch_us: NonNegativeFloat | None = None
    image: DaliImageOverride = DaliImageOverride()
    audio: AudioCostOverride = AudioCostOverride()


CostsT = TypeVar("CostsT", bound=CpuCosts | DpuRates | DaliCosts)
AnyPreprocessing = (
    NoPreprocessing | CpuPreprocessing | DpuPreprocessing | DaliSlicePreprocessing | DaliSharedPreprocessing
)
PreprocessingConfig = Annotated[AnyPreprocessing, Field(discriminator="kind")]


def load_costs(kind: type[CostsT], name_or_path: str, *, folder: Path | None = None) -> CostsT:
    """Reads a cost profile.

    Parameters
    ----------
    kind : CpuCosts, DpuRates or DaliCosts
        What it should be.
    name_or_path : str
        A name in configs/preprocessing, or a path.
    folder : Path, optional
        Where relative paths are looked for first (the scenario's own folder).

    Raises
    ------
    MissingFileError
        There is no such file.
    FormatError
        It is not a profile of that kind, or a number lacks its provenance.
    """
    path = find_config(name_or_path, config_folder() / "preprocessing", what="preprocessing costs", beside=folder)
    return cast("CostsT", _parsed(kind, path, modified_ns(path)))  # type: ignore[arg-type]  # a class can be hashed


@functools.lru_cache(maxsize=64)  # sweeps read the same file thousands of times
def _parsed(kind: type[StrictModel], path: Path, _modified_ns: int) -> StrictModel:
    data, lines = read_yaml(path)
    return validate(kind, data, origin=str(path), lines=lines)


def inline_costs(config: AnyPreprocessing, *, folder: Path | None = None) -> AnyPreprocessing:
    """Replaces the name of a cost profile by the profile, with the scenario's own numbers in it.

    Parameters
    ----------
    config : a preprocessing config
    folder : Path, optional
        The scenario's folder.

    Returns
    -------
    the same kind of config
        Needs no file any more and means the same; applying this again changes nothing.
    """
    clear: dict[str, Any]
    if isinstance(config, CpuPreprocessing):
        costs = _load(CpuCosts, config.cost, folder)
        parts = {
            "image": _changed(costs.image, config.image, "image"),
            "audio": _changed(costs.audio, config.audio, "audio"),
        }
        clear = {"image": ImageCostOverride(), "audio": AudioCostOverride()}
        return config.model_copy(update={"cost": costs.model_copy(update=parts), **clear})
    if isinstance(config, DpuPreprocessing):
        rates = _load(DpuRates, config.rates, folder)
        parts = {
            "image": _changed(rates.image, config.image, "image"),
            "audio": _changed(rates.audio, config.audio, "audio"),
            "hop": _changed(rates.hop, config.hop, "hop"),
        }
        clear = {
            "image": DpuImageOptions(),
            "audio": DpuAudioOptions(design=config.audio.design),
            "hop": HopOverride(),
        }
        return config.model_copy(update={"rates": rates.model_copy(update=parts), **clear})
    if isinstance(config, DaliSlicePreprocessing | DaliSharedPreprocessing):
        dali = replace_figures(_load(DaliCosts, config.cost, folder), {"launch_us": config.launch_us})
        parts = {
            "image": _changed(dali.image, config.image, "image"),
            "audio": _changed(dali.audio, config.audio, "audio"),
        }
        clear = {"launch_us": None, "image": DaliImageOverride(), "audio": AudioCostOverride()}
        if isinstance(config, DaliSlicePreprocessing):
            parts["hop"] = _changed(dali.hop, config.hop, "hop")
            clear["hop"] = HopOverride()
        return config.model_copy(update={"cost": dali.model_copy(update=parts), **clear})
    return config


def _load(kind: type[CostsT], given: str | CostsT, folder: Path | None) -> CostsT:
    return load_costs(kind, given, folder=folder) if isinstance(given, str) else given


def _changed(costs: Any, override: StrictModel, what: str) -> Any:  # noqa: ANN401 - any section of a cost profile, or none
    """A section of a profile with the scenario's numbers; a section that is not there stays so."""
    changes = {name: getattr(override, name) for name in type(override).model_fields if name != "design"}
    if costs is not None:
        return replace_figures(costs, changes)
    for name, value in changes.items():
        if value is not None:
            raise ScenarioError(f"scenario.preprocessing.{what}.{name}: the profile has no {what} section")
    return None


def cost_provenance(config: AnyPreprocessing) -> tuple[tuple[str, Provenance], ...]:
    """Every number an inlined config rests on, with its provenance; empty for ``none``."""
    found: list[tuple[str, Provenance]] = []
    if isinstance(config, CpuPreprocessing) and isinstance(config.cost, CpuCosts):
        found += figures_of(config.cost, f"preprocessing costs {config.cost.name}")
        found.append(_option("usable_fraction", config, "PREBA, arXiv 2411.19114, Fig. 9 (near 90 %)"))
    elif isinstance(config, DpuPreprocessing) and isinstance(config.rates, DpuRates):
        found += figures_of(config.rates, f"preprocessing rates {config.rates.name}")
    elif isinstance(config, DaliSlicePreprocessing | DaliSharedPreprocessing) and isinstance(config.cost, DaliCosts):
        found += figures_of(config.cost, f"preprocessing costs {config.cost.name}")
        found.append(_option("hw_decoder_share", config, "DALI documentation: default of hw_decoder_load"))
        if isinstance(config, DaliSharedPreprocessing):
            found.append(_option("interference", config, None))
    return tuple(found)


def _option(
    name: str, config: CpuPreprocessing | DaliSlicePreprocessing | DaliSharedPreprocessing, source: str | None
) -> tuple[str, Provenance]:
    """Provenance of a plain number of a config: that of its default, or the scenario."""
    value = getattr(config, name)
    what = f"preprocessing.{name} = {value:g}"
    if value != type(config).model_fields[name].default:
        return what, Provenance(kind="modelled", source="set in the scenario")
    if source is None:
        return what, Provenance(
            kind="modelled",
            source="assumption: no published figure",
            notes="that there is a slow-down is reported in NVIDIA/DALI issue 4193",
        )
    return what, Provenance(kind="published", source=source)


def accelerator_count(config: AnyPreprocessing, modalities: Sequence[str]) -> int:
    """How many accelerator cards a server needs: one per modality that a DPU serves, as each is a build.

    Source
    ------
    PREBA, arXiv 2411.19114, section 4.2: separate image and audio builds.
    """
    if not isinstance(config, DpuPreprocessing):
        return 0
    return len({modality for modality in modalities if modality != "tensor"})
