"""What preprocessing costs in a live server, as a rehearsal shows it: a line, its bends, its spread."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.measure import line_through
from accel.work import beyond_line_us
from preba.cli.lines import Array, spread_of, steady_mean, without_stalls
from preba.cli.seen import Seen
from preba.cli.ways import (
    ALONE_MIN,
    before_batcher_us,
    between_items_us,
    waited_for_worker,
)
from preba.figures import Figure
from preba.jitter import JitterConfig
from preba.preprocessing import CpuPreprocessing, NoPreprocessing
from preba.preprocessing_costs import AudioCost, CpuCosts, ImageCost
from preba.records import Records
from runtime.placement import preprocessing_backend, worker_count
from runtime.profiling import this_machine

__all__ = ["Prepared", "preprocessing_of"]

BEND_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)
"""Quantiles of inputs' sizes between which their costs are averaged, those with enough inputs above them."""


@dataclass(frozen=True)
class Prepared:
    """How preprocessing was found to be.

    Attributes
    ----------
    section : CpuPreprocessing or None
        To simulate; ``None``: the scenario's own.
    before_us : float64[k]
        From schedule to batcher without preprocessing, of requests that waited for no worker.
    held_us : float
        What a worker takes from one input to the next, which is part of its cost.
    spread : mapping of str to jitter config or None
        By modality.
    notes : tuple of str
    items : sequence of (ns, factor)
        When each input was due, and how long it took relative to what is usual for its size.
    """

    section: CpuPreprocessing | None
    before_us: Array
    held_us: float
    spread: Mapping[str, JitterConfig | None]
    notes: tuple[str, ...]
    items: Sequence[tuple[int, float]] = ()


def preprocessing_of(seen: Seen) -> Prepared:
    """What preprocessing costs in the server, where it is done in front of the batcher."""
    resolved, records = seen.resolved, seen.records
    before_us, free = before_batcher_us(records)
    backend = preprocessing_backend(resolved)
    if backend == "none" or isinstance(resolved.scenario.preprocessing, NoPreprocessing):
        return Prepared(None, before_us[free], 0.0, {}, ())
    if not (records.preprocess_end_ns > records.preprocess_start_ns).any():
        said = "preprocessing inside the slices is not measured apart: the scenario's own costs are simulated"
        return Prepared(None, before_us[free], 0.0, {}, (said,))
    held_us = between_items_us(records)
    found = {
        modality: cost
        for modality, sizes, unit in (
            ("image", records.jpeg_bytes / 1e5, "jpeg_bytes"),
            ("audio", records.audio_ns / 1e9, "audio_ns"),
        )
        if (cost := item_cost(seen, modality, sizes, getattr(records, unit) > 0, held_us)) is not None
    }
    for cost in found.values():
        before_us = before_us - cost.later_us
    rested_us = 0.0
    if found:
        counts = [int(cost.mine.sum()) for cost in found.values()]
        rested_us = float(np.average([cost.rested_us for cost in found.values()], weights=counts))
    sections = {modality: cost.section for modality, cost in found.items()}
    section = CpuPreprocessing(
        kind="cpu",
        cores=worker_count(resolved),
        usable_fraction=1.0,
        cost=CpuCosts(kind="cpu", name="measured-live", description="Measured by preba validate.", **sections),
        transfer_per_100kb_us=found["image"].transfer_us if "image" in found else 0.0,
        transfer_per_audio_s_us=found["audio"].transfer_us if "audio" in found else 0.0,
        rested_us=rested_us,
    )
    notes = [f"{modality} preprocessing ({backend}) in the server: {cost.text}" for modality, cost in found.items()]
    notes.append(
        f"a preprocessing worker with a line takes {held_us:.0f} us from one input to the next: part of its cost, "
        f"not of what comes before the batcher; after a rest it takes {rested_us:.0f} us longer"
    )
    spread = {modality: cost.spread for modality, cost in found.items()}
    own_us = before_us[free]
    varies = without_stalls(own_us).var()
    if held_us > 0 and varies > 0:  # what varies from one input to the next varies here too, and is simulated
        left = max(1.0 - without_stalls(held_each_us(records, held_us)).var() / varies, 0.0)
        centre_us = steady_mean(own_us)
        own_us = centre_us + math.sqrt(left) * (own_us - centre_us)
    items = [item for cost in found.values() for item in cost.items]
    return Prepared(section, own_us, held_us, spread, tuple(notes), items)


@dataclass(frozen=True)
class ItemCost:
    """What inputs of one modality cost a worker.

    Attributes
    ----------
    section : ImageCost or AudioCost
    mine : bool[n]
        Which requests.
    transfer_us : float
        How much later a larger input reaches a worker, per 100 kB or second.
    later_us : float64[n]
        That, per request.
    rested_us : float
        How much longer a worker takes that had nothing to do.
    spread : jitter config or None
    text : str
    items : list of (ns, factor)
        When each one was due, and how long it took relative to the others of its size.
    """

    section: Any
    mine: NDArray[np.bool_]
    transfer_us: float
    later_us: Array
    rested_us: float
    spread: JitterConfig | None
    text: str
    items: list[tuple[int, float]]


def item_cost(seen: Seen, modality: str, sizes: Array, sized: NDArray[np.bool_], held_us: float) -> ItemCost | None:
    """A line through the costs of one modality's inputs, and what they deviate from it; ``None`` without any."""
    records = seen.records
    kinds = [model.index for model in seen.resolved.models if model.profile.modality == modality]
    mine = np.isin(records.model_index, kinds) & sized
    if mine.sum() < 2:
        return None
    took_us = (records.preprocess_end_ns - records.preprocess_start_ns)[mine] / 1e3
    before_us, free = before_batcher_us(records)
    later_us, transfer_us = np.zeros(len(records)), 0.0
    if (mine & free).sum() >= ALONE_MIN:
        transfer_us = max(line_through(sizes[mine & free], before_us[mine & free], relative=False).slope_us, 0.0)
        later_us[mine] = transfer_us * sizes[mine]
    line = line_through(sizes[mine], took_us, relative=False)
    residual_us = took_us - line.fixed_us - line.slope_us * sizes[mine]
    bends = bends_of(sizes[mine], residual_us)
    if bends:
        residual_us = residual_us - beyond_line_us(bends, sizes[mine])
    in_line, rested, rested_us = waited_for_worker(records)[0][mine], free[mine], 0.0
    if min(in_line.sum(), rested.sum()) >= ALONE_MIN:
        rested_us = max(steady_mean(residual_us[rested]) - steady_mean(residual_us[in_line]), 0.0)
    if not bends:
        rested_us = min(rested_us, (line.fixed_us + held_us) / max(float(rested.mean()), 1e-9))
    fixed_us = line.fixed_us - rested_us * float(rested.mean())
    residual_us = residual_us - rested_us * (rested - float(rested.mean()))
    text = f"line through {int(mine.sum())} requests; standard deviation from it {float(residual_us.std()):.0f} us"
    facts = {
        "kind": "measured",
        "source": f"preba validate: {len(records)} requests of a rehearsal through the live server",
        "where": this_machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "notes": text,
    }
    kind: type[ImageCost] | type[AudioCost] = ImageCost if modality == "image" else AudioCost
    slope, unit = ("per_100kb_us", "100 kB") if modality == "image" else ("per_audio_s_us", "second of audio")
    below_us = min(fixed_us + held_us, 0.0)  # of a cost that bends upwards; a fixed part is not negative
    bends = tuple((size, us + below_us) for size, us in bends)
    values = {"fixed_us": fixed_us + held_us - below_us, slope: line.slope_us}
    figures = {name: Figure.model_validate({"value": value, **facts}) for name, value in values.items()}
    section = kind.model_validate({**figures, "bends": bends})
    expected_us = np.maximum(took_us - residual_us + held_us, 1.0)
    said = f"{fixed_us + held_us:.0f} us and {line.slope_us:.0f} us per {unit}; {text}"
    factors = (took_us + held_each_us(records, held_us)[mine]) / expected_us
    items = list(zip(records.scheduled_ns[mine].tolist(), factors.tolist(), strict=True))
    return ItemCost(section, mine, transfer_us, later_us, rested_us, spread_of(factors), said, items)


def held_each_us(records: Records, held_us: float) -> Array:
    """What the worker takes from one input to the next, for each: its own where it had a line, others' in turn."""
    waited, ended_ns = waited_for_worker(records)
    found = np.full(len(records), held_us)
    gaps_us = (records.preprocess_start_ns - ended_ns)[waited] / 1e3
    if held_us > 0 and len(gaps_us) > 0:
        found[waited] = gaps_us
        found[~waited] = np.resize(gaps_us, int((~waited).sum()))
    return found


def bends_of(sizes: Array, residual_us: Array) -> tuple[tuple[float, float], ...]:
    """How far costs are from their line, by size; the mean over all is nought. Without enough inputs, a mere line."""
    levels = [level for level in BEND_LEVELS if level == 1.0 or round((1.0 - level) * len(sizes)) >= ALONE_MIN]
    edges = np.quantile(sizes, levels)
    group = np.clip(np.searchsorted(edges, sizes, side="right") - 1, 0, len(edges) - 2)
    found = [(float(sizes[group == k].mean()), steady_mean(residual_us[group == k]))
             for k in range(len(edges) - 1) if (group == k).sum() >= ALONE_MIN]  # fmt: skip
    knots = [size for size, _ in found]
    if len(found) < 3 or any(after <= before for before, after in itertools.pairwise(knots)):
        return ()
    beyond_us = np.array([us for _, us in found])
    beyond_us += float((residual_us - np.interp(sizes, knots, beyond_us)).mean())
    return tuple((round(size, 6), round(float(us), 3)) for size, us in zip(knots, beyond_us, strict=True))
