"""Triton's batcher against vectors worked out from the server's source and against a real server."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from preba.batching.replay import Played, play
from preba.batching.triton_config import TritonBatcher
from preba.units import NS_PER_MS, ns_from_ms

GOLDEN = Path(__file__).parents[2] / "data" / "triton-golden.json"


def batcher(**fields: Any) -> TritonBatcher:
    # The rules as they are read: no race is lost unless a test is about them.
    common = {"kind": "triton", "max_batch_size": 8, "quirks": {"batcher_first_permille": 0}}
    return TritonBatcher.model_validate_json(json.dumps({**common, **fields}))


def run(
    config: TritonBatcher,
    arrivals_ms: list[float],
    *,
    consumers: int = 1,
    units: int = 1,
    execution_ms: float = 10,
    consumed_ms: float | None = None,
    up_ms: float = 0,
) -> Played:
    state = config.to_settings().make_state(consumers=consumers, capacity=len(arrivals_ms))
    for request in range(len(arrivals_ms)):
        state.request_units[request] = units
    return play(
        state,
        [ns_from_ms(at) for at in arrivals_ms],
        ns_from_ms(execution_ms),
        consumed_ns=None if consumed_ms is None else ns_from_ms(consumed_ms),
        up_ns=ns_from_ms(up_ms),
    )


def starts(played: Played) -> list[tuple[float, int]]:
    return [(batch.start_ns / NS_PER_MS, batch.units) for batch in played.batches]


def every(step_ms: float, count: int) -> list[float]:
    return [round(step_ms * place, 6) for place in range(count)]


CLOSE = every(0.1, 20)
POLICY = {"default_queue_policy": {"default_timeout_us": 60_000_000}}
VECTORS: dict[str, tuple[dict[str, Any], list[float], dict[str, Any], list[tuple[float, int]]]] = {
    "A": ({}, CLOSE, {}, [(0, 1), (10, 8), (20, 8), (30, 3)]),
    "B": ({"preferred_batch_size": [4, 8]}, CLOSE, {}, [(0, 1), (10, 4), (20, 8), (30, 4), (40, 3)]),
    "B'": ({"preferred_batch_size": [4, 8], **POLICY}, CLOSE, {}, [(0, 1), (10, 8), (20, 8), (30, 3)]),
    "C": ({"preferred_batch_size": [4]}, CLOSE, {}, [(0, 1), (10, 4), (20, 4), (30, 4), (40, 4), (50, 3)]),
    "D": (
        {"preferred_batch_size": [4], "max_queue_delay_us": 5000},
        CLOSE,
        {},
        [(0.3, 4), (10.3, 5), (20.3, 4), (30.3, 7)],
    ),
    "D'": (
        {"preferred_batch_size": [4], "max_queue_delay_us": 50_000},
        every(0.1, 40),
        {},
        [(0.3, 4), *[(10.3 + 10 * turn, 5) for turn in range(6)], (70.3, 6)],
    ),
    "E": ({"max_queue_delay_us": 5000}, every(1, 3), {}, [(5, 3)]),
    "F": ({"max_queue_delay_us": 5000}, every(1, 20), {}, [(5, 6), (15, 6), (25, 6), (35, 2)]),
    "G": (
        {"max_queue_delay_us": 2000},
        every(1, 30),
        {},
        [(2, 3), (12, 3), (22, 8), (32, 3), (42, 6), (52, 7)],
    ),
    "J": ({}, CLOSE, {"consumers": 2}, [(0, 1), (0.1, 1), (10, 8), (10.1, 8), (20, 2)]),
    "K": ({}, every(0.1, 8), {"units": 3}, [(0, 3), (10, 6), (20, 6), (30, 6), (40, 3)]),
    "L": ({}, [0.0] * 20, {}, [(0, 1), (10, 8), (20, 8), (30, 3)]),
}


@pytest.mark.parametrize("name", VECTORS)
def test_triton_vector_matches_the_reading_of_the_source(name: str) -> None:
    """Every vector worked out from the server's source comes out batch for batch."""
    fields, arrivals, extra, expected = VECTORS[name]
    assert starts(run(batcher(**fields), arrivals, **extra)) == [(pytest.approx(at), size) for at, size in expected]


BACKENDS = {
    "T1": (every(2, 20), {}, [(0, 1, 0), (10, 5, 10), (20, 5, 20), (30, 5, 30), (40, 4, 40)]),
    "T2": (
        every(2, 20),
        {"consumed_ms": 1},
        [(0, 1, 0), (2, 1, 10), (11, 4, 20), (21, 5, 30), (31, 5, 40), (41, 4, 50)],
    ),
    "T3": (CLOSE, {"consumed_ms": 1}, [(0, 1, 0), (1, 8, 10), (11, 8, 20), (21, 3, 30)]),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_triton_backend_vector_forms_batches_when_the_instance_returns(name: str) -> None:
    """A backend that returns once the input is consumed makes the server form batches an execution earlier."""
    arrivals, extra, expected = BACKENDS[name]
    played = run(batcher(), arrivals, **extra)
    found = [(batch.formed_ns / NS_PER_MS, batch.units, batch.start_ns / NS_PER_MS) for batch in played.batches]
    assert found == expected


RECORDED = json.loads(GOLDEN.read_text())["vectors"]
STANZAS: dict[str, dict[str, Any]] = {
    "A": {},
    "B": {"preferred_batch_size": [4, 8]},
    "Bq": {"preferred_batch_size": [4, 8], **POLICY},
    "C": {"preferred_batch_size": [4]},
    "D": {"preferred_batch_size": [4], "max_queue_delay_us": 100_000},
    "Dl": {"preferred_batch_size": [4], "max_queue_delay_us": 1_000_000},
    "E": {"max_queue_delay_us": 100_000},
    "F": {"max_queue_delay_us": 100_000},
    "G": {"max_queue_delay_us": 40_000},
    "J": {},
    "K": {},
    "L": {},
    "T1": {},
}


def recorded_sizes(name: str) -> list[int]:
    return [size for _, size in RECORDED[name]["real_server"]]


def replayed(name: str, *, execution_ms: float, shift_ms: dict[int, float] | None = None, up_ms: float = 0) -> Played:
    vector = RECORDED[name]
    config = batcher(max_batch_size=vector["max_batch"], server_version="2.51", **STANZAS[name])
    arrivals = [at + (shift_ms or {}).get(place, 0) for place, at in enumerate(vector["arrivals_ms"])]
    return run(
        config,
        arrivals,
        consumers=vector["instances"],
        units=vector["units_per_request"],
        execution_ms=execution_ms,
        up_ms=up_ms,
    )


def measured_execution_ms(name: str) -> float:
    """Median time from one batch start to the next on a busy instance, turn-around included."""
    begin = [at for at, _ in RECORDED[name]["real_server"]]
    steps = [later - earlier for earlier, later in itertools.pairwise(begin) if later - earlier > 100]
    return statistics.median(steps) if steps else 200.0


@pytest.mark.parametrize("name", STANZAS)
def test_triton_recorded_reading_is_reproduced(name: str) -> None:
    """The reading of the source that accompanies the recordings comes out batch for batch."""
    found = starts(replayed(name, execution_ms=200))
    expected = [tuple(row) for row in RECORDED[name]["source_reading"]]
    assert found == expected


@pytest.mark.parametrize("name", sorted(set(STANZAS) - {"A", "G", "J"}))
def test_triton_real_server_batches_are_reproduced(name: str) -> None:
    """With the measured time per batch the model forms the batches that a real server 2.51.0 formed."""
    found = replayed(name, execution_ms=measured_execution_ms(name))
    assert [batch.units for batch in found.batches] == recorded_sizes(name)


def test_triton_real_server_first_batch_holds_what_arrives_before_the_backend_thread_wakes() -> None:
    """Vector A's recording differs by a wake-up: with the backend thread 3 ms late the model gives its batches."""
    assert [batch.units for batch in replayed("A", execution_ms=200, up_ms=3).batches] == recorded_sizes("A")


def test_triton_real_server_recording_j_lacks_one_single_request_batch() -> None:
    """Vector J's recording holds 19 of 20 requests; it is the model's result less one batch of one request."""
    sizes = [batch.units for batch in replayed("J", execution_ms=200).batches]
    assert sum(recorded_sizes("J")) == len(RECORDED["J"]["arrivals_ms"]) - 1
    sizes.remove(1)
    assert sizes == recorded_sizes("J")


def test_triton_real_server_vector_g_follows_from_one_late_arrival() -> None:
    """Vector G hangs on ties: every third arrival coincides with the end of the delay.

    One arrival that loses its tie by 0.1 ms, at the measured time per batch, turns the reading into the recording:
    the payload that then misses it is left two short, is topped up as soon as six more wait, and a later one is
    frozen by a merge that does not fit and merged at the next dispatch. No rule differs between the server and the
    source read, and their files do not either.
    """
    execution_ms = measured_execution_ms("G")
    assert [batch.units for batch in replayed("G", execution_ms=execution_ms).batches] == [3, 3, 8, 3, 6, 7]
    late = replayed("G", execution_ms=execution_ms, shift_ms={5: 0.1})
    assert [batch.units for batch in late.batches] == recorded_sizes("G")
