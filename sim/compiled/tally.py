"""What a streamed run keeps of a request that is gone: counts, sums and histograms. Numba subset.

An ordinary run keeps records instead and is compiled without these functions.
"""

from __future__ import annotations

from preba.batching.state import SERVED
from preba.report.stream import (
    SECTIONS,
    T_BATCHING_NS,
    T_DONE,
    T_DONE_WITHIN,
    T_EXECUTION_NS,
    T_HOP_NS,
    T_KEPT,
    T_OUTCOME,
    T_PREPROCESS_NS,
    T_PREPROCESS_WAIT_NS,
    T_RESPONSE_NS,
    T_SLICE_PREPROCESS_NS,
    T_SLICE_QUEUE_NS,
    T_WITHIN,
    TALLY_COUNT,
)
from preba.statistics.histogram import bucket_of
from sim.compiled.layout import (
    C_LARGEST_BATCH,
    C_SECTION_BY_TIME,
    C_SECTION_SPAN,
    C_WARM_REQUESTS,
    K_LAST_ANSWER_NS,
    K_NOW_NS,
    K_WINDOW_END_NS,
    K_WINDOW_NS,
    World,
)

HISTOGRAM_BUCKETS = 44_032
"""``preba.statistics.histogram.BUCKETS``, as a constant that Numba sees."""


def count_arrived(world: World, request: int) -> None:
    """The first request after the warm-up opens the window, unless a time has."""
    if request == world.config[C_WARM_REQUESTS] and world.clock[K_WINDOW_NS] < 0:
        world.clock[K_WINDOW_NS] = world.clock[K_NOW_NS]


def count_finished(world: World, request: int) -> None:
    """A request's record is complete: adds it to everything that is kept."""
    model = world.trace_model[request]
    first = model * TALLY_COUNT
    outcome = world.outcome[request]
    world.tally[first + T_OUTCOME + outcome] += 1
    window_ns = world.clock[K_WINDOW_NS]
    done_ns = world.completed_ns[request]
    if done_ns > world.clock[K_LAST_ANSWER_NS]:
        world.clock[K_LAST_ANSWER_NS] = done_ns
    scheduled_ns = world.scheduled_ns[request]
    latency_ns = done_ns - scheduled_ns
    within = outcome == SERVED and latency_ns <= world.model_slo_ns[model]
    if window_ns >= 0 and done_ns >= window_ns and done_ns < world.clock[K_WINDOW_END_NS] and outcome == SERVED:
        world.tally[first + T_DONE] += 1
        if within:
            world.tally[first + T_DONE_WITHIN] += 1
    if window_ns < 0 or scheduled_ns < window_ns or request < world.config[C_WARM_REQUESTS]:
        return
    world.tally[first + T_KEPT] += 1
    if within:
        world.tally[first + T_WITHIN] += 1
    if outcome != SERVED:
        return
    section = request - world.config[C_WARM_REQUESTS]
    if world.config[C_SECTION_BY_TIME] == 1:
        section = scheduled_ns - window_ns
    section = min(section * SECTIONS // world.config[C_SECTION_SPAN], SECTIONS - 1)
    place = model * SECTIONS + section
    world.section_count[place] += 1
    world.section_latency_ns[place] += latency_ns
    world.histogram[place * HISTOGRAM_BUCKETS + bucket_of(latency_ns)] += 1
    wait_ns = world.preprocess_wait_ns[request]
    end_ns = world.preprocess_end_ns[request]
    start_ns = world.execution_start_ns[request]
    shared_ns = world.slice_preprocess_ns[request]
    world.tally[first + T_PREPROCESS_WAIT_NS] += wait_ns
    world.tally[first + T_PREPROCESS_NS] += end_ns - scheduled_ns - wait_ns
    world.tally[first + T_HOP_NS] += world.enqueued_ns[request] - end_ns
    world.tally[first + T_BATCHING_NS] += world.dispatched_ns[request] - world.enqueued_ns[request]
    world.tally[first + T_SLICE_QUEUE_NS] += start_ns - world.dispatched_ns[request]
    world.tally[first + T_SLICE_PREPROCESS_NS] += shared_ns
    world.tally[first + T_EXECUTION_NS] += world.execution_end_ns[request] - start_ns - shared_ns
    world.tally[first + T_RESPONSE_NS] += done_ns - world.execution_end_ns[request]
    world.size_count[model * (world.config[C_LARGEST_BATCH] + 1) + world.batch_size[request]] += 1


def inside_window(world: World, start_ns: int, end_ns: int) -> int:
    """How much of a span of time lies in the window."""
    if world.clock[K_WINDOW_NS] < 0:
        return 0
    return int(max(0, min(end_ns, world.clock[K_WINDOW_END_NS]) - max(start_ns, world.clock[K_WINDOW_NS])))


def count_executed(world: World, slice_index: int, start_ns: int, end_ns: int) -> None:
    """A slice has executed a batch."""
    world.slice_busy_ns[slice_index] += inside_window(world, start_ns, end_ns)


def count_worked(world: World, station: int, unit: int, start_ns: int, end_ns: int) -> None:
    """A preprocessing unit is taken for a while."""
    span_ns = inside_window(world, start_ns, end_ns)
    world.station_busy_ns[station] += span_ns
    world.unit_busy_ns[unit] += span_ns
