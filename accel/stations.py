"""From a preprocessing config and a trace to stations: which there are, who visits them and how long.

What a station is, is in accel.station (and importable from here); costs are looked up through
preba.preprocessing; formulas are in accel.work. Nothing here queues or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from accel import work
from accel.station import (
    Preprocessing,
    SlicePreprocessing,
    Station,
    StationCapacity,
    station_capacity_rps,
)
from preba.errors import ScenarioError, TraceError
from preba.preprocessing import (
    AnyPreprocessing,
    CpuPreprocessing,
    DaliSharedPreprocessing,
    DaliSlicePreprocessing,
    DpuPreprocessing,
    cost_provenance,
    inline_costs,
)
from preba.preprocessing_costs import (
    CpuCosts,
    DaliCosts,
    DpuAudioRates,
    DpuImageRates,
    DpuRates,
    HopCost,
)
from preba.units import ns_from_us

__all__ = [
    "MODALITIES",
    "Preprocessing",
    "SliceLike",
    "SlicePreprocessing",
    "Station",
    "StationCapacity",
    "TraceColumns",
    "build_preprocessing",
    "station_capacity_rps",
]

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Float64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

MODALITIES = ("image", "audio", "tensor")
"""What a model takes in; a tensor arrives preprocessed."""


class TraceColumns(Protocol):
    """The columns of a trace that preprocessing depends on, all of length n."""

    @property
    def model_index(self) -> Int32: ...  # noqa: D102
    @property
    def jpeg_bytes(self) -> Int64: ...  # noqa: D102
    @property
    def audio_ns(self) -> Int64: ...  # noqa: D102
    @property
    def preprocess_factor(self) -> Float64: ...  # noqa: D102


class SliceLike(Protocol):
    """What preprocessing depends on of a slice."""

    @property
    def profile(self) -> str: ...  # noqa: D102
    @property
    def gpcs(self) -> int: ...  # noqa: D102
    @property
    def jpeg_engines(self) -> int: ...  # noqa: D102
    @property
    def model_index(self) -> int | None: ...  # noqa: D102
    @property
    def role(self) -> str: ...  # noqa: D102


SectionT = TypeVar("SectionT")


@dataclass(frozen=True)
class _Inputs:
    """A trace by modality."""

    trace: TraceColumns
    modalities: tuple[str, ...]
    images: Mask
    audios: Mask

    @property
    def needed(self) -> tuple[str, ...]:
        """The modalities that need preprocessing, in the order of MODALITIES."""
        return tuple(m for m in MODALITIES[:2] if m in self.modalities)

    def by_modality(self, image_us: Float64 | None, audio_us: Float64 | None) -> Float64:
        """Work per request with its jitter: the one or the other formula, 0 for tensors."""
        total = np.zeros(len(self.images))
        if image_us is not None:
            total[self.images] = image_us[self.images]
        if audio_us is not None:
            total[self.audios] = audio_us[self.audios]
        return total * self.trace.preprocess_factor


def build_preprocessing(
    config: AnyPreprocessing,
    trace: TraceColumns,
    *,
    modalities: Sequence[str],
    slices: Sequence[SliceLike] = (),
    folder: Path | None = None,
) -> Preprocessing:
    """Turns a config into stations for one trace.

    Parameters
    ----------
    config : preprocessing config
    trace : TraceColumns
    modalities : sequence of str
        Per model: ``image``, ``audio`` or ``tensor``. Models that take tensors visit no station.
    slices : sequence of SliceLike
        The server's slices; needed by the DALI kinds.
    folder : Path, optional
        Where relative paths of cost profiles start from.

    Returns
    -------
    Preprocessing

    Raises
    ------
    ScenarioError
        The cost profile lacks a modality, or the slices do not suit DALI.
    TraceError
        A request has no input size.
    MissingFileError, FormatError
        The cost profile cannot be read.
    """
    inputs = _inputs(trace, modalities)
    config = inline_costs(config, folder=folder)
    stations: list[Station] = []
    routes: dict[str, tuple[int, ...]] = {}
    shared: SlicePreprocessing | None = None
    if inputs.needed:
        if isinstance(config, CpuPreprocessing):
            stations = [_cpu(config, inputs)]
            routes = dict.fromkeys(inputs.needed, (0,))
        elif isinstance(config, DpuPreprocessing):
            stations, routes = _dpu(config, inputs)
        elif isinstance(config, DaliSlicePreprocessing):
            stations = _dali_slice(config, inputs, slices)
            routes = dict.fromkeys(inputs.needed, (0, 1))
        elif isinstance(config, DaliSharedPreprocessing):
            shared = _dali_shared(config, inputs, slices)
    return Preprocessing(
        stations=tuple(stations),
        routes=tuple(routes.get(modality, ()) for modality in modalities),
        shared=shared,
        uses_shared=tuple(shared is not None and modality != "tensor" for modality in modalities),
        provenance=cost_provenance(config) if inputs.needed else (),
    )


def _inputs(trace: TraceColumns, modalities: Sequence[str]) -> _Inputs:
    for index, modality in enumerate(modalities):
        if modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            raise ScenarioError(f"models[{index}]: modality {modality!r} is not one of {known}")
    kinds = np.array([MODALITIES.index(modality) for modality in modalities], dtype=np.int64)
    of_request = kinds[trace.model_index]
    images, audios = of_request == 0, of_request == 1
    for what, rows, sizes in (("jpeg_bytes", images, trace.jpeg_bytes), ("audio_ns", audios, trace.audio_ns)):
        missing = np.flatnonzero(rows & (sizes <= 0))
        if len(missing):
            raise TraceError(
                f"trace: request {missing[0]} (model {trace.model_index[missing[0]]}) has {what} = "
                f"{sizes[missing[0]]}; its model's inputs need a size"
            )
    return _Inputs(trace, tuple(modalities), images, audios)


def _section(section: SectionT | None, modality: str, profile: str, field: str) -> SectionT:
    if section is None:
        raise ScenarioError(f"scenario.preprocessing.{field}: profile {profile!r} has no {modality} section")
    return section


def _cpu(config: CpuPreprocessing, inputs: _Inputs) -> Station:
    """A pool of cores. A core gives preprocessing only its usable share, so each request takes it longer."""
    costs = config.cost
    assert isinstance(costs, CpuCosts)  # noqa: S101 - inlined before
    image_us = audio_us = None
    if "image" in inputs.needed:
        cost = _section(costs.image, "image", costs.name, "cost")
        image_us = work.image_work_us(cost, inputs.trace.jpeg_bytes)
    if "audio" in inputs.needed:
        audio_cost = _section(costs.audio, "audio", costs.name, "cost")
        audio_us = work.audio_work_us(audio_cost, inputs.trace.audio_ns)
    taken_ns = work.to_ns(inputs.by_modality(image_us, audio_us) / config.usable_fraction)
    latency_ns = taken_ns
    if config.transfer_per_100kb_us or config.transfer_per_audio_s_us:
        images_us = work.size_100kb(inputs.trace.jpeg_bytes) * config.transfer_per_100kb_us
        audios_us = work.audio_seconds(inputs.trace.audio_ns) * config.transfer_per_audio_s_us
        latency_ns = taken_ns + work.to_ns(np.where(inputs.images, images_us, np.where(inputs.audios, audios_us, 0.0)))
    rested_ns = ns_from_us(config.rested_us)
    return Station("cpu", "cpu", config.cores, config.usable_fraction, 1, 0, taken_ns, latency_ns, rested_ns=rested_ns)


def _dpu(config: DpuPreprocessing, inputs: _Inputs) -> tuple[list[Station], dict[str, tuple[int, ...]]]:
    """Image units, audio units, and one hop that both builds share."""
    rates = config.rates
    assert isinstance(rates, DpuRates)  # noqa: S101 - inlined before
    stations: list[Station] = []
    routes: dict[str, tuple[int, ...]] = {}
    if "image" in inputs.needed:
        stations.append(_image_units(_section(rates.image, "image", rates.name, "rates"), inputs))
        routes["image"] = (0,)
    if "audio" in inputs.needed:
        first = len(stations)
        audio = _section(rates.audio, "audio", rates.name, "rates")
        stations += _audio_units(audio, config.audio.design, inputs)
        routes["audio"] = tuple(range(first, len(stations)))
    hop = len(stations)
    stations.append(_hop(rates.hop, inputs))
    return stations, {modality: (*route, hop) for modality, route in routes.items()}


def _dpu_station(name: str, units: int, taken_us: Float64, extra_us: Float64 | None = None) -> Station:
    taken_ns = work.to_ns(taken_us)
    latency_ns = taken_ns if extra_us is None else taken_ns + work.to_ns(extra_us)
    return Station(name, "dpu", units, 1.0, 1, 0, taken_ns, latency_ns)


def _image_units(rates: DpuImageRates, inputs: _Inputs) -> Station:
    """Pipelined units: a second image enters while the first one drains (PREBA Fig. 12a)."""
    interval_us = work.linear_us(
        rates.interval_fixed_us.value,
        rates.interval_per_100kb_us.value,
        work.size_100kb(inputs.trace.jpeg_bytes),
    )
    drain_us = np.full(len(interval_us), rates.drain_us.value)
    return _dpu_station(
        "dpu image",
        rates.units.value,
        inputs.by_modality(interval_us, None),
        inputs.by_modality(drain_us, None),
    )


def _audio_units(rates: DpuAudioRates, design: str, inputs: _Inputs) -> list[Station]:
    """Mel, then normalise, which needs its whole input (PREBA Fig. 12c); or both in one unit (12b)."""
    seconds = work.audio_seconds(inputs.trace.audio_ns)
    mel_us = inputs.by_modality(None, work.linear_us(rates.mel_fixed_us.value, rates.mel_per_audio_s_us.value, seconds))
    normalize_us = inputs.by_modality(
        None, work.linear_us(rates.normalize_fixed_us.value, rates.normalize_per_audio_s_us.value, seconds)
    )
    if design == "one_type":
        return [_dpu_station("dpu audio", rates.mel_units.value, mel_us + normalize_us)]
    return [
        _dpu_station("dpu mel", rates.mel_units.value, mel_us),
        _dpu_station("dpu normalize", rates.normalize_units.value, normalize_us),
    ]


def _hop(cost: HopCost, inputs: _Inputs) -> Station:
    """The link to the GPU: one at a time at full bandwidth, the latency overlapping the next transfer."""
    seconds = work.audio_seconds(inputs.trace.audio_ns)
    made_bytes = np.where(inputs.images, cost.image_bytes.value, 0.0)
    made_bytes[inputs.audios] = cost.audio_bytes_per_s.value * seconds[inputs.audios]
    occupancy_ns, latency_ns = work.hop_ns(cost, made_bytes)
    return Station("hop", "hop", 1, 1.0, 1, 0, occupancy_ns, latency_ns)


def _dali_item_us(costs: DaliCosts, inputs: _Inputs) -> Float64:
    """Work of each request on one GPC without JPEG engines, with its jitter."""
    image_us = audio_us = None
    if "image" in inputs.needed:
        image = _section(costs.image, "image", costs.name, "cost")
        image_us = work.image_work_us(image, inputs.trace.jpeg_bytes)
    if "audio" in inputs.needed:
        audio = _section(costs.audio, "audio", costs.name, "cost")
        audio_us = work.audio_work_us(audio, inputs.trace.audio_ns)
    return inputs.by_modality(image_us, audio_us)


def _slice_factor(costs: DaliCosts, modality: str, unit: SliceLike, hw_decoder_share: float) -> float:
    if modality == "image":
        return work.slice_image_factor(
            _section(costs.image, "image", costs.name, "cost"),
            gpcs=unit.gpcs,
            jpeg_engines=unit.jpeg_engines,
            hw_decoder_share=hw_decoder_share,
        )
    return work.slice_audio_factor(gpcs=unit.gpcs)


def _dali_slice(config: DaliSlicePreprocessing, inputs: _Inputs, slices: Sequence[SliceLike]) -> list[Station]:
    """Slices of DALI's own, and the hop to the model's slice (MIG slices share no memory)."""
    costs = config.cost
    assert isinstance(costs, DaliCosts)  # noqa: S101 - inlined before
    if len(inputs.needed) > 1:
        raise ScenarioError(
            "scenario.preprocessing: dali_slice runs one pipeline, but the models need "
            f"{' and '.join(inputs.needed)}; use dali_shared or cpu"
        )
    mine = tuple(index for index, unit in enumerate(slices) if unit.role == "preprocessing")
    profiles = sorted({slices[index].profile for index in mine})
    if len(profiles) != 1:
        got = f"of different profiles ({', '.join(profiles)})" if profiles else "none"
        raise ScenarioError(f"scenario.preprocessing.slices: needs slices of one profile, got {got}")
    factor = _slice_factor(costs, inputs.needed[0], slices[mine[0]], config.hw_decoder_share)
    taken_ns = work.to_ns(_dali_item_us(costs, inputs) * factor)
    dali = Station(
        name="dali",
        kind="dali",
        units=len(mine),
        usable_fraction=1.0,
        batch_max=config.batch_max,
        launch_ns=ns_from_us(costs.launch_us.value),
        occupancy_ns=taken_ns,
        latency_ns=taken_ns,
        slice_indices=mine,
    )
    return [dali, _hop(costs.hop, inputs)]


def _dali_shared(config: DaliSharedPreprocessing, inputs: _Inputs, slices: Sequence[SliceLike]) -> SlicePreprocessing:
    """DALI in the model's slices; a slice without JPEG engines decodes on the SMs the model wants too."""
    costs = config.cost
    assert isinstance(costs, DaliCosts)  # noqa: S101 - inlined before
    factors = np.ones(len(slices))
    for index, unit in enumerate(slices):
        modality = "tensor" if unit.model_index is None else inputs.modalities[unit.model_index]
        if modality != "tensor":
            factors[index] = _slice_factor(costs, modality, unit, config.hw_decoder_share)
    return SlicePreprocessing(
        launch_ns=np.full(len(slices), ns_from_us(costs.launch_us.value), dtype=np.int64),
        item_ns=work.to_ns(_dali_item_us(costs, inputs)),
        slice_factor=factors,
        execution_slowdown=1.0 + config.interference,
    )
