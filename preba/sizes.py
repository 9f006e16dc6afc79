"""Input sizes: what a scenario may say about how large requests are, and the drawing of the sizes.

An image is as large as its JPEG file, an utterance as long as it lasts, a tensor (already preprocessed) as
many bytes as it has. Published distributions are in configs/workloads, read by ``preba.workloads``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, model_validator

from preba.errors import TraceError
from preba.replay import NS_PER_UNIT, located, read_column, to_integers
from preba.strict import Provenance, StrictModel
from preba.units import NS_PER_S, ns_from_s
from preba.workloads import (
    QuantileDistribution,
    duration_distribution,
    load_audio_workload,
    load_jpeg_workload,
)

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

Modality = Literal["image", "audio", "tensor"]

BYTES_PER_KB = 1_000
"""A kB is 1000 bytes, in configs and tables alike."""

_BYTES_PER_UNIT = {"bytes": 1, "kb": BYTES_PER_KB, "mb": 1_000_000}


class ConstantSizes(StrictModel):
    """Every request is equally large; exactly one of the three sizes is given."""

    kind: Literal["constant"]
    jpeg_kb: PositiveFloat | None = None
    audio_s: PositiveFloat | None = None
    tensor_kb: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_of(self) -> ConstantSizes:
        if sum(size is not None for size in (self.jpeg_kb, self.audio_s, self.tensor_kb)) != 1:
            raise ValueError("give exactly one of jpeg_kb, audio_s and tensor_kb")
        return self

    @property
    def modality(self) -> Modality:
        """What the sizes are sizes of."""
        if self.audio_s is not None:
            return "audio"
        return "image" if self.jpeg_kb is not None else "tensor"

    def mean_size(self) -> float:
        """Mean in bytes, or ns of audio."""
        if self.audio_s is not None:
            return float(ns_from_s(self.audio_s))
        return float(_bytes(self.jpeg_kb or self.tensor_kb or 0.0))

    def provenance(self) -> Provenance | None:
        """Where the distribution comes from; ``None``: the scenario itself."""
        return None

    def draw(self, count: int, rng: np.random.Generator) -> Int64:  # noqa: ARG002 - the shape all kinds share
        """Sizes in bytes or ns of audio, int64[count]."""
        return np.full(count, round(self.mean_size()), dtype=np.int64)


class LibriSpeechSizes(StrictModel):
    """Lengths of LibriSpeech's utterances, from the published quantiles of one subset.

    ``subset`` is a key of configs/workloads/librispeech.yaml: ``test-clean``, ``dev-other``, ...
    """

    kind: Literal["librispeech"]
    subset: str

    @property
    def modality(self) -> Modality:
        """What the sizes are sizes of."""
        return "audio"

    def distribution(self) -> QuantileDistribution:
        """The distribution in seconds."""
        return duration_distribution(load_audio_workload("librispeech"), self.subset)

    def mean_size(self) -> float:
        """Mean, ns of audio."""
        return self.distribution().mean() * NS_PER_S

    def provenance(self) -> Provenance | None:
        """Where the distribution comes from."""
        return load_audio_workload("librispeech").provenance

    def draw(self, count: int, rng: np.random.Generator) -> Int64:
        """Lengths in ns of audio, int64[count]."""
        return _whole(self.distribution().quantile(rng.random(count)) * NS_PER_S)


class JpegSizes(StrictModel):
    """Sizes of a data set's JPEG files: ``imagenet`` reads configs/workloads/imagenet-jpeg.yaml."""

    kind: Literal["jpeg"]
    dataset: str

    @property
    def modality(self) -> Modality:
        """What the sizes are sizes of."""
        return "image"

    def mean_size(self) -> float:
        """Mean in bytes."""
        return load_jpeg_workload(self.dataset).mean_kb * BYTES_PER_KB

    def provenance(self) -> Provenance | None:
        """Where the distribution comes from."""
        return load_jpeg_workload(self.dataset).provenance

    def draw(self, count: int, rng: np.random.Generator) -> Int64:
        """Sizes in bytes, int64[count]."""
        workload = load_jpeg_workload(self.dataset)
        return _lognormal(workload.mean_kb * BYTES_PER_KB, workload.sigma, count, rng)


class LogNormalSizes(StrictModel):
    """Log-normal sizes by their mean (``mean_kb`` of JPEG, ``mean_s`` of audio) and the sigma of the log."""

    kind: Literal["lognormal"]
    mean_kb: PositiveFloat | None = None
    mean_s: PositiveFloat | None = None
    sigma: PositiveFloat

    @model_validator(mode="after")
    def _one_of(self) -> LogNormalSizes:
        if (self.mean_kb is None) == (self.mean_s is None):
            raise ValueError("give exactly one of mean_kb and mean_s")
        return self

    @property
    def modality(self) -> Modality:
        """What the sizes are sizes of."""
        return "image" if self.mean_kb is not None else "audio"

    def mean_size(self) -> float:
        """Mean in bytes, or ns of audio."""
        return self.mean_kb * BYTES_PER_KB if self.mean_kb is not None else (self.mean_s or 0.0) * NS_PER_S

    def provenance(self) -> Provenance | None:
        """Where the distribution comes from; ``None``: the scenario itself."""
        return None

    def draw(self, count: int, rng: np.random.Generator) -> Int64:
        """Sizes in bytes or ns of audio, int64[count]."""
        return _lognormal(self.mean_size(), self.sigma, count, rng)


class UniformSizes(StrictModel):
    """Audio of any length between two, all equally likely."""

    kind: Literal["uniform"]
    low_s: PositiveFloat
    high_s: PositiveFloat

    @model_validator(mode="after")
    def _ascends(self) -> UniformSizes:
        if self.high_s < self.low_s:
            raise ValueError(f"high_s: must be >= low_s ({self.low_s}), got {self.high_s}")
        return self

    @property
    def modality(self) -> Modality:
        """What the sizes are sizes of."""
        return "audio"

    def mean_size(self) -> float:
        """Mean, ns of audio."""
        return 0.5 * (self.low_s + self.high_s) * NS_PER_S

    def provenance(self) -> Provenance | None:
        """Where the distribution comes from; ``None``: the scenario itself."""
        return None

    def draw(self, count: int, rng: np.random.Generator) -> Int64:
        """Lengths in ns of audio, int64[count]."""
        return _whole((self.low_s + (self.high_s - self.low_s) * rng.random(count)) * NS_PER_S)


class EmpiricalSizes(StrictModel):
    """Sizes listed in a CSV or Parquet file, drawn with replacement or taken in order, over and over."""

    kind: Literal["empirical"]
    file: Annotated[str, Field(min_length=1)]
    column: str | None = None
    """May be left out where there is only one."""
    unit: Literal["bytes", "kb", "mb", "ns", "us", "ms", "s"]
    """A unit of time means audio; of bytes, JPEG images unless ``tensor`` is set."""
    tensor: bool = False
    order: Literal["sample", "in_order"] = "sample"

    @model_validator(mode="after")
    def _bytes_of_tensor(self) -> EmpiricalSizes:
        if self.tensor and self.unit not in _BYTES_PER_UNIT:
            raise ValueError(f"tensor: needs a unit of bytes, kb or mb, got {self.unit!r}")
        return self

    def located(self, folder: Path) -> EmpiricalSizes:
        """The same with the file's path made absolute, relative paths counted from ``folder``."""
        return self.model_copy(update={"file": str(located(self.file, folder))})

    @property
    def modality(self) -> Modality:
        """What the sizes are sizes of."""
        if self.unit not in _BYTES_PER_UNIT:
            return "audio"
        return "tensor" if self.tensor else "image"

    def read(self) -> Int64:
        """The listed sizes in bytes or ns of audio, int64[k].

        Raises
        ------
        MissingFileError, FormatError
            There is no such file, or a line of it cannot be read.
        TraceError
            It is empty or lists a size that is not positive.
        """
        path = Path(self.file)
        column = read_column(path, self.column)
        per_unit = {**_BYTES_PER_UNIT, **NS_PER_UNIT}[self.unit]
        sizes = to_integers(path, column, per_unit=per_unit)
        if len(sizes) == 0:
            raise TraceError(f"{path}: lists no sizes")
        wrong = np.flatnonzero(sizes <= 0)
        if len(wrong):
            index = int(wrong[0])
            raise TraceError(f"{column.where(path, index)}: a size must be > 0, got {column.cells[index]!r}")
        return sizes

    def mean_size(self) -> float:
        """Mean in bytes, or ns of audio (reads the file)."""
        return float(self.read().mean())

    def provenance(self) -> Provenance | None:
        """Where the distribution comes from; ``None``: the file the scenario names."""
        return None

    def draw(self, count: int, rng: np.random.Generator) -> Int64:
        """Sizes in bytes or ns of audio, int64[count]."""
        sizes = self.read()
        if self.order == "in_order":
            return np.resize(sizes, count)
        return sizes[rng.integers(0, len(sizes), size=count)]


SizesConfig = Annotated[
    ConstantSizes | LibriSpeechSizes | JpegSizes | LogNormalSizes | UniformSizes | EmpiricalSizes,
    Field(discriminator="kind"),
]


def draw_sizes(config: SizesConfig, *, rng: np.random.Generator, count: int) -> Int64:
    """Draws one size per request; a larger count only adds sizes behind those of a smaller one.

    Parameters
    ----------
    config : SizesConfig
        Its ``modality`` says what the sizes are.
    rng : numpy.random.Generator
    count : int

    Returns
    -------
    int64[count]
        Bytes (image, tensor) or ns of audio, all >= 1.
    """
    return config.draw(count, rng)


def _bytes(size_kb: float) -> int:
    return max(round(size_kb * BYTES_PER_KB), 1)


def _whole(sizes: Float64) -> Int64:
    """To the nearest integer, and never nothing at all."""
    return np.maximum(np.rint(sizes), 1.0).astype(np.int64)


def _lognormal(mean: float, sigma: float, count: int, rng: np.random.Generator) -> Int64:
    return _whole(np.exp(rng.standard_normal(count) * sigma + (math.log(mean) - 0.5 * sigma**2)))
