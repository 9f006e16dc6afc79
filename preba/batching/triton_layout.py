"""Where Triton's settings, running values and policy table lie inside a ``BatcherState``; no rules."""

from __future__ import annotations

from preba.batching.state import S_POLICY_FIRST, V_POLICY_FIRST

# Settings. S_RESOURCES (S_POLICY_FIRST itself) is named in state.py because it sizes an array.
S_DYNAMIC = S_POLICY_FIRST + 1  # 0: no dynamic_batching stanza, every request is a payload of its own
S_PREFETCH = S_POLICY_FIRST + 2  # 1: payloads may wait, up to twice the number of instances
S_LEVELS = S_POLICY_FIRST + 3  # priority levels; 0 = one queue
S_DEFAULT_LEVEL = S_POLICY_FIRST + 4
S_EQUAL_SHAPE = S_POLICY_FIRST + 5  # 1: only requests of equal shape share a batch
S_RATE_LIMITED = S_POLICY_FIRST + 6
S_COUNTER_DRIFT = S_POLICY_FIRST + 7  # 1: server bug 8870
S_BATCHER_FIRST_PERMILLE = S_POLICY_FIRST + 8
S_BATCHER_FIRST_SEED = S_POLICY_FIRST + 9
S_SWEEP = S_POLICY_FIRST + 10  # 1: expired requests are rejected while no slot is free (24.03 and later)
S_INSTANCES = S_POLICY_FIRST + 11  # consumers per device; consumer c is instance c // devices of device c % devices
S_WAKE_NS = S_POLICY_FIRST + 13  # the batcher runs so long after it is notified
S_WAKE_VARIES = S_POLICY_FIRST + 14  # 1: exponential about that mean, 0: always as long
S_BATCHER_FIRST_LATE_NS = S_POLICY_FIRST + 15  # a slot that the batcher was not told of is not seen for so long
S_INSTANCES_PER_CONSUMER = S_POLICY_FIRST + 12  # model instances one backend thread serves

# Running values. The four that do not start from 0 are named in state.py.
V_STALE = V_POLICY_FIRST + 4  # 1: the current payload has been taken (or frozen) for execution
V_SATURATED = V_POLICY_FIRST + 5  # 1: nothing more may be added to the current payload
V_NEXT_PREFERRED = V_POLICY_FIRST + 6  # units that must be queued before an arrival wakes the batcher
V_QUEUED_UNITS = V_POLICY_FIRST + 7  # the server's own count, which refusals leave too high
V_BLOCKED = V_POLICY_FIRST + 8  # 1: the batcher sleeps until a slot is free; 0: until notified or due
V_SWEEP_NS = V_POLICY_FIRST + 9  # next 500 ms tick when blocked
V_NOTIFIED = V_POLICY_FIRST + 10  # 1: the batcher has been notified and has not run yet
V_MISSED = V_POLICY_FIRST + 11  # 1: a slot is free but the batcher was not told
V_ASKING = V_POLICY_FIRST + 12  # the server's count of waiting consumers
V_QUEUE_LENGTH = V_POLICY_FIRST + 13  # payloads any instance may take
V_DEADLINES = V_POLICY_FIRST + 14  # waiting requests that a sweep could reject
V_RETURNS = V_POLICY_FIRST + 15  # times a consumer came back while requests waited
V_WAKE_NS = V_POLICY_FIRST + 27  # when a batcher that has been notified will run, 0 = it has not been
V_AWAKE = V_POLICY_FIRST + 28  # 1: that time has come
V_WAKES = V_POLICY_FIRST + 29  # wake-ups so far
V_IDLING = V_POLICY_FIRST + 26  # 1: the batcher went to sleep because nothing waited
V_BACK_NS = V_POLICY_FIRST + 30  # with V_MISSED: from when on that slot is seen, if it is the only one

# The cursor: how far the last scan of the waiting requests came.
V_CURSOR_VALID = V_POLICY_FIRST + 16
V_CURSOR_LEVEL = V_POLICY_FIRST + 17  # index of the level
V_CURSOR_DELAYED = V_POLICY_FIRST + 18  # 1: within the level's delayed requests
V_CURSOR_LAST = V_POLICY_FIRST + 19  # last request passed on that list, NONE at its start
V_CURSOR_COUNT = V_POLICY_FIRST + 20  # requests passed
V_CURSOR_UNITS = V_POLICY_FIRST + 21
V_CURSOR_OLDEST_NS = V_POLICY_FIRST + 22
V_CURSOR_DEADLINE_NS = V_POLICY_FIRST + 23  # earliest among those passed, NEVER if none has one
V_CURSOR_SHAPE = V_POLICY_FIRST + 24  # of the first request of a new batch
V_CLOSED = V_POLICY_FIRST + 25  # 1: the payload about to be opened ends at a request of another shape

# Policy table: first POLICY_ROW values per level ..
POLICY_ROW = 4
P_DELAY_ACTION = 0  # 1: an expired request moves behind the live ones; 0: it is rejected
P_TIMEOUT_NS = 1
P_OVERRIDE = 2  # 1: a request may shorten its timeout
P_QUEUE_MAX = 3
# .. then, for a rate limiter with R resources: R rows (pool size, 1 if shared by all devices), and per
# instance of a device a row (priority, need of resource 0, .., need of resource R - 1).

# Stages of an instance in the rate limiter.
STAGE_ABSENT = 0
STAGE_AVAILABLE = 1
STAGE_STAGED = 2
STAGE_ALLOCATED = 3

# payload_flag
PAYLOAD_CLOSED = 1  # ended by a request of another shape: never merged

TICK_NS = 500_000_000
"""Longest sleep of a batcher that waits for requests or for a slot (core, dynamic_batch_scheduler.cc)."""
