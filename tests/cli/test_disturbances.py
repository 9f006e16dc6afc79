"""What is said of a machine that was not the same in a rehearsal and in the run."""

from __future__ import annotations

from typing import Any

import pytest

from preba.cli.disturbances import (
    DRIFT_MAX_PERCENT,
    STOLEN_MAX_PERCENT,
    drift_note,
    drift_percent,
    drift_warning,
    restless,
    stolen_note,
    stolen_warning,
)
from preba.records import Records
from sim.run import simulate


def records(toy: Any, *, response_us: float, rate_rps: float = 800.0, requests: int = 3000) -> Records:
    """Of a server whose answers leave so long after the ends of batches, which varies."""
    batcher = {"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 5000}
    model = toy.model(
        toy.profile({"1g": {"1": 20, "8": 34}}), {"kind": "poisson", "rate_rps": rate_rps}, batcher=batcher
    )
    overheads = {"response_us": response_us, "response_request_us": 50.0, "response_next_us": 40.0}
    overheads["response_jitter"] = {"kind": "gamma", "cv": 0.5}
    data = toy.scenario([model], partition="7x1g.5gb", server={"overheads": overheads}, requests=requests)
    return simulate(toy.resolve(data)).result.records


def test_what_the_host_took_is_said_only_if_it_took_any() -> None:
    """A machine of its own has no such note, nor one that does not say; much of it asks for another measurement."""
    assert stolen_note(()) == stolen_note((0.0, 0.0)) == ()
    (said,) = stolen_note((0.234, 0.0))
    assert said == "the host took 0.23 % of this machine's CPU time during the rehearsal and 0.00 % during the run"
    assert stolen_warning((0.234, 0.0)) == stolen_warning(()) == ()
    (warned,) = stolen_warning((0.0, 1.23))
    assert "took up to 1.2 % of its CPU time" in warned


@pytest.mark.parametrize("rate_rps", [800.0, 400.0])
def test_drift_is_that_of_the_software_whatever_the_load(toy: Any, rate_rps: float) -> None:
    """Answers a quarter later than in the rehearsal; with other batch sizes all the same."""
    rehearsed = records(toy, response_us=1000.0)
    assert drift_percent(rehearsed, rehearsed) == pytest.approx(0.0)
    same = drift_percent(rehearsed, records(toy, response_us=1000.0, rate_rps=rate_rps))
    slower = drift_percent(rehearsed, records(toy, response_us=1300.0, rate_rps=rate_rps))
    assert same == pytest.approx(0.0, abs=4.0)
    assert slower == pytest.approx(25.0, abs=4.0)  # 300 of 1000 and some 50 a request


def test_drift_is_unknown_with_too_few_batches(toy: Any) -> None:
    """Nothing is said rather than something random."""
    assert drift_percent(records(toy, response_us=900.0, requests=60), records(toy, response_us=900.0)) is None
    assert drift_note(None) == drift_warning(None) == ()


def test_much_drift_asks_for_another_measurement() -> None:
    """In both directions; a little is a note."""
    assert drift_note(3.21) == ("from the end of a batch to its first answer the run took +3.2 % beyond the rehearsal",)
    assert drift_warning(DRIFT_MAX_PERCENT) == ()
    (slower,), (faster,) = drift_warning(18.2), drift_warning(-18.2)
    assert "18 % slower in the run" in slower
    assert "18 % faster in the run" in faster


def test_the_calmest_is_the_one_with_least_of_what_disturbs_most() -> None:
    """Time that the host took and drift count alike, each by what is too much."""
    assert restless((), None) == 0.0
    assert restless((0.0, STOLEN_MAX_PERCENT), None) == restless((0.0, 0.0), -DRIFT_MAX_PERCENT) == 1.0
    assert restless((0.1, 0.2), 20.0) > restless((0.9, 0.0), 3.0) > restless((0.4, 0.4), -9.0)
