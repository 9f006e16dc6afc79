"""The yardsticks of the speed comparison give preba's answers: what is compared is the same work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.reference import run_reference

NEEDS = {
    "SimPy, idiomatic": "simpy",
    "SimPy, one event": "simpy",
    "SimPy, callbacks": "simpy",
    "salabim": "salabim",
    "Ciw, no batching": "ciw",
}


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.parametrize(("rate_rps", "cores"), [(2000, 16), (5500, 40)])
def test_other_simulator_gives_the_same_answer(
    toy: Any, yardsticks: Any, name: str, rate_rps: float, cores: int
) -> None:
    """Every request is done at the same nanosecond, in a batch of the same size, on the same slice."""
    pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} (for benchmarks) is not installed")
    batching = "no batching" not in name
    if not batching:
        rate_rps, cores = 1500, 16  # within what seven slices carry without batches
    case = yardsticks.setting(toy, 1500, rate_rps=rate_rps, cores=cores, batching=batching)
    records = run_reference(case.model)[0]
    answer = yardsticks.by_name[name](case, 1500)
    assert np.array_equal(answer.completed_ns, records.completed_ns)
    if batching:
        assert np.array_equal(answer.batch_size, records.batch_size)
        assert np.array_equal(answer.slice_index, records.slice_index)


@pytest.mark.parametrize(("rate_rps", "cores"), [(2000, 16), (5500, 40)])
def test_event_loop_in_c_gives_the_same_answer(
    toy: Any, yardsticks: Any, c_loop: Any, rate_rps: float, cores: int
) -> None:
    """The hand-written loop agrees, with all columns and with six."""
    case = yardsticks.setting(toy, 4000, rate_rps=rate_rps, cores=cores)
    records = run_reference(case.model)[0]
    for lean in (False, True):
        answer = c_loop(case, 4000, lean=lean)
        assert np.array_equal(answer.completed_ns, records.completed_ns)
        assert np.array_equal(answer.batch_size, records.batch_size)
        assert np.array_equal(answer.slice_index, records.slice_index)
