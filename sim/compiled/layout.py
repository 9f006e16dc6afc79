"""Where everything lies in the compiled engine's memory: the world's and the batchers' fields. Names only, no code.

One ``WORLD`` block holds a run; one ``BATCHER`` block per server holds that server's ``BatcherState``. Columns of
requests are masked: the whole trace in an ordinary run, a ring in a streamed one.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from preba.batching.state import OUT_COUNT, SCALAR_COUNT
from preba.trace_table import PARTS
from sim.compiled.memory import BlockType, Column, Fixed, Own, Place, Row

World: TypeAlias = Any
"""A ``WORLD`` block, in annotations of compiled functions."""
Batcher: TypeAlias = Any
"""A ``BATCHER`` block, which is a ``BatcherState`` to the batchers."""

# Indices into ``world.config``, which does not change during a run.
C_FRONTEND_NS = 0
C_TURNAROUND_NS = 1
C_RESPONSE_NS = 2
C_BALANCER = 3
C_RETRY = 4
C_OPEN_IDENTITY = 5  # 1: every request is of an open loop, so the k-th to arrive is request k
C_SHARED = 6  # 1: preprocessing on the models' own slices
C_SHARED_SLOWDOWN = 7  # index into config_f8
C_EVENTS = 8
C_SLICES = 9
C_SERVERS = 10
C_CLOSED = 11  # 1: some model is a closed loop
C_SPANS = 12  # 1: station spans are recorded
# of a streamed run
C_WARM_REQUESTS = 13  # requests before the window
C_SECTION_BY_TIME = 14
C_SECTION_SPAN = 15  # requests, or ns, that the sections of the run share
C_LARGEST_BATCH = 16
C_TURNAROUND_REQUEST_NS = 17
C_RESPONSE_REQUEST_NS = 18
C_OVERHEADS_VARY = 19  # 1: overheads are multiplied by the trace's factors
C_DISPATCH_NS = 20
C_TIMER_NS = 21
C_RESPONSE_NEXT_NS = 22
CONFIG_COUNT = 23

# Indices into ``world.clock``, which does.
K_NOW_NS = 0
K_HEAP = 1  # events in the heap
K_TIMERS = 2  # servers in the timer heap
K_NEXT_OPEN = 3
K_OPEN_END = 4
K_MORE_TO_COME = 5  # streaming: 1 while further arrivals have not been drawn
K_FINISHED = 6
K_PROGRESS_NS = 7
K_BATCHES = 8
K_SPANS = 9
K_OUTAGES = 10
K_FREE_BATCH = 11
K_LATEST_ALARM_NS = 12
K_ROWS = 13  # rows in the ring
K_HOMELESS = 14
K_FAULT = 15  # server + 1 whose plug-in handed out an impossible batch
K_WINDOW_NS = 16  # streamed: start of the window, -1 before the warm-up is over
K_WINDOW_END_NS = 17
K_LAST_ANSWER_NS = 18  # streamed: when the last request so far had its answer
CLOCK_COUNT = 19

# Why the event loop returned.
STATUS_DONE = 0
STATUS_PAUSED = 1
STATUS_ROWS_FULL = 2
STATUS_TRACE_NEEDED = 3
STATUS_FAULT = 4

OWNER_WORD = 7
"""Word of a row that holds request + 1 while the row is taken."""
HEAP_WORDS = 3  # time, order key, payload


_REQUEST_TRACE = Column(masked=True, constant=True)
_REQUEST_TRACE_I4 = Column("i4", masked=True, constant=True)
_OVERHEAD = Column("f8", masked=True, constant=True, stride=len(PARTS["overhead_factor"]))
_RECORD = Column(masked=True)
_RECORD_I4 = Column("i4", masked=True)
_TABLE = Column(constant=True)
_STATE = Column()

RECORD_COLUMNS = {
    "scheduled_ns": _RECORD,
    "preprocess_start_ns": _RECORD,
    "preprocess_end_ns": _RECORD,
    "preprocess_wait_ns": _RECORD,
    "enqueued_ns": _RECORD,
    "dispatched_ns": _RECORD,
    "execution_start_ns": _RECORD,
    "execution_end_ns": _RECORD,
    "slice_preprocess_ns": _RECORD,
    "completed_ns": _RECORD,
    "server_index": _RECORD_I4,
    "slice_index": _RECORD_I4,
    "batch_id": _RECORD,
    "batch_size": _RECORD_I4,
    "batch_units": _RECORD_I4,
    "outcome": _RECORD_I4,
    "attempts": _RECORD_I4,
}
"""Record columns that the engine writes; the others are the trace's own."""

SPAN_COLUMNS = {
    "span_station": Column("i4"),
    "span_unit": Column("i4"),
    "span_request": _STATE,
    "span_arrived_ns": _STATE,
    "span_start_ns": _STATE,
    "span_released_ns": _STATE,
    "span_end_ns": _STATE,
}

_WORLD: dict[str, Place] = {
    "config": _TABLE,
    "config_f8": Column("f8", constant=True),
    "clock": _STATE,
    # the trace
    "trace_scheduled_ns": _REQUEST_TRACE,
    "trace_model": _REQUEST_TRACE_I4,
    "trace_factor": Column("f8", masked=True, constant=True),
    "trace_frontend_factor": _OVERHEAD,
    "trace_turnaround_factor": _OVERHEAD,
    "trace_response_factor": _OVERHEAD,
    "trace_response_next_factor": _OVERHEAD,
    "trace_first_draw": Column("f8", masked=True, constant=True, stride=2),
    "trace_second_draw": Column("f8", masked=True, constant=True, stride=2),
    "trace_think_ns": _REQUEST_TRACE,
    "trace_length": _REQUEST_TRACE,
    "trace_slice_item_ns": _REQUEST_TRACE,
    "open_request": _TABLE,
    "closed_request": _TABLE,
    **RECORD_COLUMNS,
    **SPAN_COLUMNS,
    # one row per request in flight
    "row_link": Row(6),  # next in a station's queue, a batch, the parked or the homeless
    "row_owner": Row(OWNER_WORD),
    "row_step": Row(8),
    "row_joined_ns": Row(9),
    "row_response_ns": Row(9),  # once a batch has it, no station will ask when it joined
    "row_server": Row(10),
    "row_line_next": Row(16),
    "row_answered": Row(17),
    # per model
    "model_route": _TABLE,
    "model_route_length": _TABLE,
    "model_ingress_ns": _TABLE,
    "model_server": _TABLE,
    "model_servers": _TABLE,
    "model_outstanding": _TABLE,
    "model_backoff_ns": _TABLE,
    "model_slowdown_ppm": _TABLE,
    "model_backend": _TABLE,
    "model_consumed_permille": _TABLE,
    "model_consumed_ns": _TABLE,
    "model_table": _TABLE,
    "model_lengths": _TABLE,
    "model_batches": _TABLE,
    "model_uses_shared": _TABLE,
    "model_closed_next": _STATE,
    "model_closed_end": _TABLE,
    "model_parked_head": _STATE,
    "model_parked_tail": _STATE,
    "model_memory": _STATE,  # two words each: preba.balancing's memory
    "route_station": _TABLE,
    # per server
    "server_state": _TABLE,
    "server_model": _TABLE,
    "server_place": _TABLE,
    "server_consumer": _TABLE,
    "server_consumers": _TABLE,
    "server_credits": _TABLE,
    "server_keeps_order": _TABLE,
    "server_line_head": _STATE,
    "server_line_tail": _STATE,
    "server_answered_ns": _STATE,
    "server_armed_ns": _STATE,
    "server_alarm_ns": _STATE,
    "server_timer_place": _STATE,
    "server_up": _STATE,
    "server_load": _STATE,
    "server_touched": _STATE,
    "timer_server": _STATE,
    # per consumer, slice, GPU
    "consumer_slice": _TABLE,
    "consumer_server": _TABLE,
    "consumer_credits": _STATE,
    "slice_kind": _TABLE,
    "slice_gpu": _TABLE,
    "slice_launch_ns": _TABLE,
    "slice_factor": Column("f8", constant=True),
    "slice_stream_free_ns": _STATE,
    "slice_up": _STATE,
    "slice_epoch": _STATE,
    "slice_first_batch": _STATE,
    "slice_last_batch": _STATE,
    "slice_down_since_ns": _STATE,
    "gpu_first": _TABLE,
    "gpu_count": _TABLE,
    "gpu_slice": _TABLE,
    # stations and their units
    "station_is_hop": _TABLE,
    "station_first_unit": _TABLE,
    "station_launch_ns": _TABLE,
    "station_rested_ns": _TABLE,
    "station_batch_max": _TABLE,
    "station_occupancy": _TABLE,  # addresses
    "station_latency": _TABLE,
    "station_word": _TABLE,
    "station_words": _TABLE,
    "station_free": _STATE,
    "station_head": _STATE,
    "station_tail": _STATE,
    "free_units": _STATE,  # 32 units to a word
    "unit_station": _TABLE,
    # batches in execution
    "batch_id_of": _STATE,
    "batch_server": _STATE,
    "batch_consumer": _STATE,
    "batch_slice": _STATE,
    "batch_head": _STATE,
    "batch_epoch": _STATE,
    "batch_lost": _STATE,
    "batch_events": _STATE,  # events that still refer to it
    "batch_ready_with_end": _STATE,
    "batch_before": _STATE,
    "batch_after": _STATE,
    # events
    "heap": _STATE,
    "event_at_ns": _TABLE,
    "event_code": _TABLE,
    "event_slice": _TABLE,
    "outage_slice": _STATE,
    "outage_from_ns": _STATE,
    "outage_to_ns": _STATE,
    "homeless": _STATE,
    # what a streamed run keeps
    "model_slo_ns": _TABLE,
    "tally": _STATE,
    "section_count": _STATE,
    "section_latency_ns": _STATE,
    "histogram": _STATE,
    "size_count": _STATE,
    "slice_busy_ns": _STATE,
    "station_busy_ns": _STATE,
    "unit_busy_ns": _STATE,
}
WORLD = BlockType("world", _WORLD)


def element(name: str) -> str:
    """Element type of a column of the world."""
    place = WORLD.places[name]
    if not isinstance(place, Column):
        raise TypeError(f"{name} is no column")
    return str(place.element)


BATCHER_SCALAR = 1
BATCHER_OUT = BATCHER_SCALAR + SCALAR_COUNT
BATCHER_OWN = BATCHER_OUT + OUT_COUNT
"""First word of a batcher's own fields: after its shape's address, its scalars and what it hands out."""

_BATCHER: dict[str, Place] = {
    "setting": _TABLE,
    "scalar": Fixed(BATCHER_SCALAR, SCALAR_COUNT),
    "preferred": _TABLE,
    "bucket_batch_max": _TABLE,
    "bucket_delay_ns": _TABLE,
    "bucket_emitted_ns": Own(),
    "consumer_up": Own(),
    "consumer_idle": Own(),
    "consumer_idle_since_ns": Own(),
    "consumer_rank": _TABLE,
    "consumer_batch_max": _TABLE,
    "consumer_load": Own(),
    "queue_head": Own(),
    "queue_tail": Own(),
    "queue_count": Own(),
    "queue_units": Own(),
    "formed_head": Own(),
    "formed_tail": Own(),
    "request_units": _REQUEST_TRACE_I4,
    "request_bucket": _REQUEST_TRACE,
    "request_priority": _REQUEST_TRACE_I4,
    "request_shape": _REQUEST_TRACE,
    "request_timeout_ns": _REQUEST_TRACE,
    "request_next": Row(0),
    "request_enqueued_ns": Row(1),
    "payload_tail": Row(2),
    "payload_count": Row(3),
    "payload_units": Row(4),
    "payload_oldest_ns": Row(5),
    "request_deadline_ns": Row(11),
    "request_outcome": Row(12),
    "payload_formed_ns": Row(13),
    "payload_flag": Row(14),
    "payload_next": Row(15),
    "out": Fixed(BATCHER_OUT, OUT_COUNT),
    "out_request": Own(),
    "policy": _TABLE,
    "consumer_asking": Own(),
    "consumer_stage": Own(),
    "consumer_staged": Own(),
    "resource_used": Own(),
}
BATCHER = BlockType("batcher", _BATCHER)
