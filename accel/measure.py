"""What preprocessing costs on this machine: latency and work per input, and the line through them that simulate reads.

Work is processor time of one core (CPU back ends) or time of one GPC (DALI on a GPU); latency is what one input alone
waits. Inputs come from the caller; nothing is written here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.executors import Preprocessor, build_preprocessor
from preba.errors import InputError, ProfileError
from preba.figures import Figure, PositiveFigure
from preba.preprocessing import load_costs
from preba.preprocessing_costs import AudioCost, CpuCosts, DaliCosts, DaliImageCost, ImageCost

__all__ = ["CostLine", "CostPoint", "MeasuringPlan", "cpu_costs", "dali_costs", "line_through", "measure_costs"]

SIZE_UNIT = {"image": 100_000.0, "audio": 1.0}
"""A cost line's slope is per 100 kB of a file, or per second of audio."""


@dataclass(frozen=True)
class MeasuringPlan:
    """What is measured.

    Attributes
    ----------
    backend : str
    batches : tuple of int
        Inputs per call; 1 is always among them.
    warmup, repeats : int
        Calls thrown away, and calls measured, per point.
    hw_decoder_share : float
        Of a GPU's JPEG engines.
    device_id : int
    """

    backend: str
    batches: tuple[int, ...] = (1,)
    warmup: int = 5
    repeats: int = 40
    hw_decoder_share: float = 0.65
    device_id: int = 0


@dataclass(frozen=True)
class CostPoint:
    """One measured point; times are per call of ``batch`` inputs in microseconds, ``inputs_per_s`` per core or GPU.

    ``size`` is the mean input's: bytes of an image, seconds of audio.
    """

    modality: str
    backend: str
    hw_decoder_share: float | None
    size: float
    batch: int
    count: int
    median_us: float
    p10_us: float
    p90_us: float
    cpu_us: float

    @property
    def work_us(self) -> float:
        """Work of one input: processor time where the processor does it, else time."""
        return (self.median_us if self.backend == "dali_gpu" else self.cpu_us) / self.batch

    @property
    def inputs_per_s(self) -> float:
        """Inputs in a second, one after another, on one core or GPU."""
        return 1e6 / self.work_us


@dataclass(frozen=True)
class CostLine:
    """``fixed_us + slope_us * size``, and the largest relative distance of a point from it."""

    fixed_us: float
    slope_us: float
    worst: float


@contextmanager
def one_core() -> Iterator[int]:
    """Keeps this process on one of its cores."""
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


def measure_costs(
    modality: str,
    inputs: Sequence[tuple[float, Sequence[bytes]]],
    plan: MeasuringPlan,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> tuple[CostPoint, ...]:
    """Measures every size at every batch, one call at a time, on one core.

    Parameters
    ----------
    modality : str
        ``image`` or ``audio``.
    inputs : sequence of (float, sequence of bytes)
        Per point the size and several inputs of about that size, used in turn.
    plan : MeasuringPlan
    progress : function of two int, optional
        Called with the points done and all of them.

    Returns
    -------
    tuple of CostPoint

    Raises
    ------
    ProfileError
        An input cannot be preprocessed.
    MissingExtraError
        The back end does not work here.
    """
    found = []
    batches = sorted({1, *plan.batches})
    with one_core():
        work = build_preprocessor(
            modality,
            plan.backend,
            threads=1,
            batch_max=max(batches),
            device_id=plan.device_id,
            hw_decoder_share=plan.hw_decoder_share,
        )
        try:
            for size, files in inputs:
                for batch in batches:
                    found.append(_point(work, size, files, batch, plan))
                    progress(len(found), len(inputs) * len(batches))
        finally:
            work.close()
    return tuple(found)


def _point(work: Preprocessor, size: float, files: Sequence[bytes], batch: int, plan: MeasuringPlan) -> CostPoint:
    wall_us, cpu_us = [], []
    place = 0
    for turn in range(plan.warmup + plan.repeats):
        chosen = [files[(place + k) % len(files)] for k in range(batch)]
        place += batch
        began_ns, used_ns = time.perf_counter_ns(), time.process_time_ns()
        answers: list[NDArray[Any] | InputError] = work.preprocess(chosen)
        took_ns, spent_ns = time.perf_counter_ns() - began_ns, time.process_time_ns() - used_ns
        for answer in answers:
            if isinstance(answer, InputError):
                raise ProfileError(f"an input of size {size:g} cannot be measured: {answer}")
        if turn >= plan.warmup:
            wall_us.append(took_ns / 1e3)
            cpu_us.append(spent_ns / 1e3)
    low, middle, high = np.percentile(wall_us, [10, 50, 90])
    return CostPoint(
        modality=work.modality,
        backend=work.backend,
        hw_decoder_share=plan.hw_decoder_share if work.backend == "dali_gpu" and work.modality == "image" else None,
        size=size,
        batch=batch,
        count=plan.repeats,
        median_us=float(middle),
        p10_us=float(low),
        p90_us=float(high),
        cpu_us=float(np.median(cpu_us)),
    )


def line_through(
    sizes: Sequence[float] | NDArray[np.float64],
    values: Sequence[float] | NDArray[np.float64],
    *,
    relative: bool = True,
) -> CostLine:
    """The straight line with the smallest squared errors, neither part of it negative.

    Parameters
    ----------
    sizes, values : sequence of float, or float64[n]
        At least one point; a single one gives a constant.
    relative : bool
        Errors in parts of each value, for medians of very different sizes; otherwise as they are, which keeps the mean
        of single noisy values.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    if len(np.unique(x)) < 2:
        fixed, slope = float(y.mean()), 0.0
    else:
        weights = 1.0 / y if relative else np.ones(len(y))
        columns = np.stack([weights, x * weights], axis=1)
        fixed, slope = (float(v) for v in np.linalg.lstsq(columns, y * weights, rcond=None)[0])
        if slope < 0:
            fixed, slope = float(y.mean()), 0.0
        elif fixed < 0:
            fixed, slope = 0.0, float((y / x).mean() if relative else (x * y).sum() / (x * x).sum())
    worst = float(np.abs((fixed + slope * x)[y > 0] / y[y > 0] - 1.0).max(initial=0.0))
    return CostLine(fixed, slope, worst)


def _figures(line: CostLine, names: tuple[str, str], facts: dict[str, str]) -> dict[str, Figure]:
    notes = f"{facts['notes']}; no point is further than {100 * line.worst:.1f} % from the line"
    values = (line.fixed_us, line.slope_us)
    return {
        name: Figure(
            value=round(value, 3), kind="measured", source=facts["source"], where=facts["where"], date=facts["date"],
            notes=notes,
        )
        for name, value in zip(names, values, strict=True)
    }  # fmt: skip


NAMES = {"image": ("fixed_us", "per_100kb_us"), "audio": ("fixed_us", "per_audio_s_us")}


def cpu_costs(name: str, points: Sequence[CostPoint], facts: dict[str, str]) -> CpuCosts:
    """Puts points of a CPU back end, at batch 1, into a cost profile.

    Parameters
    ----------
    name : str
    points : sequence of CostPoint
    facts : dict of str
        ``source``, ``where``, ``date`` and ``notes`` of the measurement.
    """
    sections: dict[str, Any] = {}
    for modality, kind in (("image", ImageCost), ("audio", AudioCost)):
        mine = [point for point in points if point.modality == modality and point.batch == 1]
        if mine:
            line = line_through([point.size / SIZE_UNIT[modality] for point in mine], [point.work_us for point in mine])
            sections[modality] = kind.model_validate(_figures(line, NAMES[modality], facts))
    return CpuCosts(kind="cpu", name=name, description="Measured by preba profile preprocessing.", **sections)


def dali_costs(
    name: str, points: Sequence[CostPoint], facts: dict[str, str], *, gpcs: int, jpeg_engines: int
) -> DaliCosts:
    """Puts points of DALI on a GPU into a cost profile: per batch, and per input on one GPC without JPEG engines.

    A call of b inputs takes ``launch + b * work / gpcs``. Work without engines is measured with ``hw_decoder_share``
    0; what an engine adds is told by the points with share 1, if there are any, and else taken from ``dali-a100``
    with the provenance it has there. So are the hop's figures, which no preprocessing can tell.

    Parameters
    ----------
    name : str
    points : sequence of CostPoint
        Of several batches.
    facts : dict of str
    gpcs, jpeg_engines : int
        Of the GPU or slice it was measured on.

    Raises
    ------
    ProfileError
        Too few batches or sizes to tell the parts from each other.
    """
    published = load_costs(DaliCosts, "dali-a100")
    launches: list[float] = []
    sections: dict[str, Any] = {}
    for modality in ("image", "audio"):
        mine = [point for point in points if point.modality == modality and (point.hw_decoder_share or 0.0) == 0.0]
        if not mine:
            continue
        if len({point.batch for point in mine}) < 2:
            raise ProfileError(f"{modality}: two or more batches without JPEG engines are needed, for example 1,8,32")
        sizes, works = [], []
        for size in sorted({point.size for point in mine}):
            rows = [point for point in mine if point.size == size]
            per_batch = line_through([point.batch for point in rows], [point.median_us for point in rows])
            launches.append(per_batch.fixed_us)
            sizes.append(size / SIZE_UNIT[modality])
            works.append(per_batch.slope_us * gpcs)
        figures = _figures(line_through(sizes, works), NAMES[modality], facts)
        if modality == "audio":
            sections[modality] = AudioCost.model_validate(figures)
            continue
        engines = _engines(points, mine, facts, gpcs, jpeg_engines)
        assumed = published.image
        if engines is None and assumed is None:
            raise ProfileError("image: no figures of JPEG engines")
        decode, engine = engines or (assumed.decode_fraction, assumed.engine_gpcs)  # type: ignore[union-attr]
        sections["image"] = DaliImageCost.model_validate({**figures, "decode_fraction": decode, "engine_gpcs": engine})
    if not launches:
        raise ProfileError("no points without JPEG engines (hw_decoder_share 0)")
    launch = Figure(
        value=round(float(np.median(launches)), 3), kind="measured", source=facts["source"], where=facts["where"],
        date=facts["date"], notes=f"{facts['notes']}; what a call takes beyond its inputs, median over sizes",
    )  # fmt: skip
    return DaliCosts(
        kind="dali", name=name, description="Measured by preba profile preprocessing.", launch_us=launch,
        hop=published.hop, **sections,
    )  # fmt: skip


def _engines(
    points: Sequence[CostPoint], plain: Sequence[CostPoint], facts: dict[str, str], gpcs: int, jpeg_engines: int
) -> tuple[Figure, PositiveFigure] | None:
    """How much of an image's work the engines take, and how fast they are, at the largest batch both were measured.

    With all images on the engines, what is left on the SMs is at most the whole time: the decode fraction is a lower
    bound where the engines, not the rest, are the bottleneck.
    """
    with_engines = [point for point in points if point.modality == "image" and point.hw_decoder_share == 1.0]
    pairs = [
        (one, other) for one in with_engines for other in plain if (one.size, one.batch) == (other.size, other.batch)
    ]
    if not pairs:
        return None
    one, other = max(pairs, key=lambda pair: (pair[0].batch, pair[0].size))
    saved = max(0.0, 1.0 - one.work_us / other.work_us)
    published = load_costs(DaliCosts, "dali-a100")
    decode = saved if saved > 0 or published.image is None else published.image.decode_fraction.value
    decode_gpc_us = decode * other.work_us * gpcs
    notes = (
        f"{facts['notes']}; batches of {one.batch} images of {one.size / 1000:.0f} kB: {1e6 / other.work_us:.0f} a "
        f"second without engines, {1e6 / one.work_us:.0f} on them alone"
    )
    common = {"kind": "measured", "source": facts["source"], "where": facts["where"], "date": facts["date"]}
    return (
        Figure.model_validate({**common, "value": round(decode, 4), "notes": notes}),
        PositiveFigure.model_validate(
            {**common, "value": round(decode_gpc_us / one.work_us / max(jpeg_engines, 1), 4), "notes": notes}
        ),
    )
