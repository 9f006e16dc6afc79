"""What passes between the moments that a live run records: ways, gaps and waits. Pure functions of records."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preba.batching.triton_config import TritonBatcher
from preba.cli.lines import Array, Line, line_by_size, relative, spread_of, steady_mean
from preba.cli.triton_threads import IDLE_NS, delay_ns
from preba.jitter import JitterConfig
from preba.profile import LatencyProfile
from preba.records import Records
from preba.scenario.resolve import ResolvedScenario
from preba.serving import plan_servers
from runtime.load.run import Played
from runtime.placement import is_native

__all__ = [
    "ALONE_MIN", "Answers", "Gap", "Ready", "after_preprocessing_us", "answers_after_batch", "before_batcher_us",
    "between", "between_items_us", "by_size", "each_gap", "execution_ratios", "gaps_between_batches",
    "timer_lateness_us", "waited_for_worker", "way_to_slice_us", "way_under_load",
]  # fmt: skip

ALONE_MIN = 30
TIMER_NS = 3_000_000
"""A batch that left so much after it was due was kept by something else than its timer."""


def before_batcher_us(records: Records) -> tuple[Array, NDArray[np.bool_]]:
    """What passes from schedule to batcher beyond preprocessing, and for which requests no worker was waited for."""
    work_ns = records.preprocess_end_ns - records.preprocess_start_ns
    before_us: Array = (records.enqueued_ns - records.scheduled_ns - work_ns) / 1e3
    order = np.argsort(records.issued_ns, kind="stable")
    ended_ns = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(records.preprocess_end_ns[order])[:-1]])
    free = np.empty(len(records), dtype=np.bool_)
    free[order] = ended_ns < records.issued_ns[order]
    return before_us, free | (work_ns == 0)


def waited_for_worker(records: Records) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which requests were there for a while when their worker ended its input before, and when that was."""
    worked = records.preprocess_end_ns > records.preprocess_start_ns
    ends = np.sort(records.preprocess_end_ns[worked])
    if len(ends) == 0:
        return worked, records.preprocess_end_ns
    before = np.searchsorted(ends, records.preprocess_start_ns, side="right") - 1
    ended_ns = ends[np.maximum(before, 0)]
    return worked & (before >= 0) & (records.issued_ns < ended_ns - IDLE_NS), ended_ns


def between_items_us(records: Records) -> float:
    """What a preprocessing worker takes from one input to the next while others wait for it."""
    waited, ended_ns = waited_for_worker(records)
    gaps = (records.preprocess_start_ns - ended_ns)[waited] / 1e3
    return steady_mean(gaps) if len(gaps) >= ALONE_MIN else 0.0


def after_preprocessing_us(records: Records) -> float:
    """From the end of an input's preprocessing to its batcher, the mean."""
    worked = records.preprocess_end_ns > records.preprocess_start_ns
    return steady_mean((records.enqueued_ns - records.preprocess_end_ns)[worked] / 1e3)


def timer_lateness_us(resolved: ResolvedScenario, records: Records) -> float:
    """How long after its delay the oldest request of a batch left that nothing else kept; the mean."""
    found: list[Array] = []
    for model in resolved.models:
        mine = records.select(records.model_index == model.index)
        plan = plan_servers(resolved, model, int(mine.audio_ns.max(initial=0)))[0].plan
        order = np.lexsort((mine.enqueued_ns, mine.batch_id))
        oldest = mine.select(order[np.unique(mine.batch_id[order], return_index=True)[1]])
        delay_ns = np.array(plan.bucket_delay_ns, dtype=np.int64)[plan.bucket_of(oldest.audio_ns)]
        newest_ns = np.zeros(int(mine.batch_id.max(initial=0)) + 1, dtype=np.int64)
        np.maximum.at(newest_ns, mine.batch_id, mine.enqueued_ns)
        due_ns = oldest.enqueued_ns + delay_ns
        late_ns = oldest.dispatched_ns - due_ns
        rang = (delay_ns > 0) & (newest_ns[oldest.batch_id] < due_ns)  # and no arrival sent it
        found.append(late_ns[rang & (late_ns >= 0) & (late_ns < TIMER_NS)] / 1e3)
    late_us = np.concatenate(found)
    return steady_mean(late_us) if len(late_us) >= ALONE_MIN else 0.0


def way_under_load(resolved: ResolvedScenario, idle: Played, rehearsed: Played, wakeup_us: float = 0.0) -> float | None:
    """The ways to the server's queue and from it to the slice under the load, in microseconds, the mean.

    What passes from schedule to execution, without the time that the server's statistics count as waiting in its queue
    but for what a lone request waits there too, beyond the batcher's delay and its wake-up; ``None`` where the server
    counts nothing. Of several servers only the first is asked, so that its slice's requests are what is compared.
    """
    records = rehearsed.result.records.select(rehearsed.result.records.served)
    if resolved.scenario.server.topology == "per_slice":
        records = records.select(records.slice_index == resolved.models[0].slice_indices[0])
    batcher = resolved.models[0].config.batcher
    if rehearsed.queue_us is None or idle.queue_us is None or len(records) == 0:
        return None
    alone_us = idle.queue_us - (delay_ns(batcher) / 1e3 if isinstance(batcher, TritonBatcher) else 0.0)
    way_us = float((records.execution_start_ns - records.scheduled_ns).mean()) / 1e3 - rehearsed.queue_us
    return way_us + max(alone_us - wakeup_us, 0.0)


def way_to_slice_us(records: Records, alone: Records) -> float:
    """The mean way from the batcher to an idle slice: under the load, or else of requests one at a time."""
    ways = ways_to_slice_us(records)
    if len(ways) < ALONE_MIN:
        ways = ways_to_slice_us(alone)
    return steady_mean(ways) if len(ways) else 0.0


def ways_to_slice_us(records: Records) -> Array:
    """From the batcher to the start of the execution, of each batch whose slice had nothing else to do."""
    found = []
    rows = np.unique(records.batch_id, return_index=True)[1]
    for index in np.unique(records.slice_index[rows]):
        own = rows[records.slice_index[rows] == index]
        own = own[np.argsort(records.execution_start_ns[own], kind="stable")]
        before_ns = np.concatenate([[0], records.execution_end_ns[own][:-1] + IDLE_NS])
        idle = before_ns < records.dispatched_ns[own]
        found.append((records.execution_start_ns - records.dispatched_ns)[own[idle]] / 1e3)
    return np.concatenate(found) if found else np.empty(0)


def execution_ratios(resolved: ResolvedScenario, profile: LatencyProfile, model: int, rehearsed: Played) -> Array:
    """How long each batch of a model took, divided by what the profile says of it."""
    records = rehearsed.result.records
    records = records.select(records.served & (records.model_index == model))
    rows = np.unique(records.batch_id, return_index=True)[1]
    took_ns = records.execution_end_ns - records.execution_start_ns
    expected_ns = _expected_ns(resolved, [profile] * len(resolved.models), records)
    ratios: Array = (took_ns / np.maximum(expected_ns, 1))[rows]
    return ratios


@dataclass(frozen=True)
class Ready:
    """When a batch waits for nothing but a slice.

    Attributes
    ----------
    delay_ns : int
        So long after its oldest request came.
    complete : frozenset of int
        With its last request, if it has so many units then.
    way_ns : int
        Either with so much more for the way to the batcher.
    """

    delay_ns: int = 0
    complete: frozenset[int] = frozenset()
    way_ns: int = 0

    def at_ns(
        self, oldest_ns: NDArray[np.int64], newest_ns: NDArray[np.int64], units: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        """Of batches whose first and last request came then."""
        found = oldest_ns + self.delay_ns
        whole = np.isin(units, list(self.complete))
        return np.where(whole, np.minimum(found, newest_ns), found) + self.way_ns


AT_ONCE = Ready()


def gaps_between_batches(
    resolved: ResolvedScenario,
    profiles: Sequence[LatencyProfile] | None,
    runs: Sequence[Played],
    ready: Ready = AT_ONCE,
) -> dict[int, list[float]]:
    """What slices took from one batch to the next beyond its profile, in microseconds by the size of the first.

    Only where the next was ready at the end of the first. Without profiles, beyond what the batch itself took: how gaps
    vary, without how executions do.
    """
    return by_size(gap for played in runs for gap in each_gap(resolved, profiles, played, ready))


@dataclass(frozen=True)
class Gap:
    """What a slice took from one batch to the next, beyond what was expected of the first, although requests waited."""

    ended_ns: int
    slice_index: int
    size: int
    us: float


def by_size(gaps: Iterable[Gap]) -> dict[int, list[float]]:
    """Gaps in microseconds by the size of the batch before them."""
    found: dict[int, list[float]] = {}
    for gap in gaps:
        found.setdefault(gap.size, []).append(gap.us)
    return found


def each_gap(
    resolved: ResolvedScenario, profiles: Sequence[LatencyProfile] | None, played: Played, ready: Ready = AT_ONCE
) -> Iterator[Gap]:
    """The same one by one, slice by slice."""
    records = played.result.records.select(played.result.records.served)
    numbers, rows, place = np.unique(records.batch_id, return_index=True, return_inverse=True)
    oldest_ns = np.full(len(numbers), np.iinfo(np.int64).max)
    np.minimum.at(oldest_ns, place, records.enqueued_ns)
    newest_ns = np.zeros(len(numbers), dtype=np.int64)
    np.maximum.at(newest_ns, place, records.enqueued_ns)
    ready_ns = ready.at_ns(oldest_ns, newest_ns, records.batch_units[rows])
    expected_ns = _taken_ns(records) if profiles is None else _expected_ns(resolved, profiles, records)
    for slice_index in np.unique(records.slice_index[rows]):
        mine = np.flatnonzero(records.slice_index[rows] == slice_index)
        mine = mine[np.argsort(records.execution_start_ns[rows[mine]], kind="stable")]
        for first, after in itertools.pairwise(mine[2:-1]):
            row = int(rows[first])
            if ready_ns[after] > records.execution_end_ns[row]:
                continue  # the slice had nothing to do
            between_ns = int(records.execution_start_ns[rows[after]] - records.execution_start_ns[row])
            ended_ns, size = int(records.execution_end_ns[row]), int(records.batch_size[row])
            yield Gap(ended_ns, int(slice_index), size, (between_ns - int(expected_ns[row])) / 1e3)


def between(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], played: Played) -> list[float]:
    """What slices took from one batch to the next although requests waited, in microseconds."""
    found = gaps_between_batches(resolved, profiles, [played], Ready(way_ns=IDLE_NS))
    return [gap for gaps in found.values() for gap in gaps]


@dataclass(frozen=True)
class Answers:
    """How the answers of a batch come to the client.

    Attributes
    ----------
    line : Line
        From the end of the batch to the first of them, so that the mean of all is right.
    next_us : float
        From one to the next.
    spread, next_spread : jitter config or None
        How both vary.
    """

    line: Line
    next_us: float
    spread: JitterConfig | None
    next_spread: JitterConfig | None


def answers_after_batch(
    resolved: ResolvedScenario,
    profiles: Sequence[LatencyProfile],
    runs: Sequence[Played],
    dispatch_us: float = 0.0,
) -> Answers:
    """How long after the end of its batch an answer is with the client, and how that varies.

    What the way to the slice differs from its mean is part of it. The second answer is further from the first than the
    others are from one another: the first is taken to be as early as the mean of a batch's answers says.
    """
    native = is_native(resolved)
    firsts: dict[int, list[float]] = {}
    means: list[tuple[int, int, float]] = []
    gaps: list[Array] = []
    for played in runs:
        records = played.result.records.select(played.result.records.served)
        begin_ns = records.execution_start_ns if native else records.dispatched_ns
        expected_ns = _expected_ns(resolved, profiles, records)
        after_us = (records.completed_ns - begin_ns - expected_ns) / 1e3 - dispatch_us
        order = np.lexsort((after_us, records.batch_id))
        is_first = np.diff(records.batch_id[order], prepend=-1) != 0
        first = np.flatnonzero(is_first)
        count = np.diff(np.append(first, len(order)))
        mean_us = np.add.reduceat(after_us[order], first) / count
        size = records.batch_size[order][first]
        own_us = (after_us + (expected_ns - _taken_ns(records)) / 1e3)[order][first]
        means += zip(size.tolist(), count.tolist(), mean_us.tolist(), strict=True)
        for each, us in zip(size.tolist(), own_us.tolist(), strict=True):
            firsts.setdefault(each, []).append(us)
        gaps.append(np.diff(after_us[order], prepend=0.0)[~is_first])
    between_us = np.concatenate(gaps)
    next_us = steady_mean(between_us) if len(between_us) >= ALONE_MIN else 0.0
    as_mean: dict[int, list[float]] = {}
    for each, answers, us in means:
        as_mean.setdefault(each, []).append(us - next_us * (answers - 1) / 2)
    next_spread = spread_of(between_us / next_us) if next_us > 0 else None
    spread = spread_of(relative(firsts, line_by_size(firsts)))
    return Answers(line_by_size(as_mean), next_us, spread, next_spread)


def _taken_ns(records: Records) -> NDArray[np.int64]:
    return records.execution_end_ns - records.execution_start_ns


def _expected_ns(resolved: ResolvedScenario, profiles: Sequence[LatencyProfile], records: Records) -> NDArray[np.int64]:
    """What the profiles say of the batches that requests were in, for each request."""
    rows, place = np.unique(records.batch_id, return_index=True, return_inverse=True)[1:]
    longest_ns = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(longest_ns, place, records.audio_ns)
    expected_ns = np.empty(len(rows), dtype=np.int64)
    for batch, row in enumerate(rows):
        model = resolved.models[int(records.model_index[row])]
        length_ns = int(longest_ns[batch]) if model.profile.modality == "audio" else None
        kind = resolved.slices[int(records.slice_index[row])].profile
        units = max(int(records.batch_units[row]), 1)
        expected_ns[batch] = profiles[model.index].latency_ns(kind, units, length_ns)
    return expected_ns[place]
