"""How late an instance is back that Triton's batcher has overtaken, found again from simulations that know it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preba.cli.calibrating import calibrate
from preba.cli.late_returns import late_return, returning_late, stood_still
from preba.cli.lines import Line
from preba.cli.redrawn import other_luck
from preba.cli.triton_threads import overtakings, with_overheads
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Overheads
from runtime.load.run import Played
from sim.run import simulate

OVERHEADS = {
    "frontend_us": 700.0, "turnaround_us": 600.0, "turnaround_request_us": 200.0, "response_us": 900.0,
    "turnaround_jitter": {"kind": "lognormal", "cv": 0.2},
}  # fmt: skip
USUAL = Line(600.0, 200.0, 0)
LEVELS = {"priority_levels": 2, "default_priority_level": 2}


def server(toy: Any, slices: int, rate_rps: float, requests: int = 30_000, **batcher: Any) -> ResolvedScenario:
    """A central Triton server with priorities, which waits for instances before it forms batches."""
    partition, kind = {1: ("1x7g.40gb", "7g"), 3: ("3x1g.5gb", "1g"), 7: ("7x1g.5gb", "1g")}[slices]
    arrivals: dict[str, Any] = {"kind": "poisson", "rate_rps": rate_rps}
    if slices == 7:
        arrivals = {"kind": "onoff", "rate_on_rps": rate_rps, "mean_on_s": 0.1, "mean_off_s": 0.075}
    model = toy.model(
        toy.profile({kind: {"1": 20, "8": 34}}, modality="tensor"), arrivals,
        sizes={"kind": "constant", "tensor_kb": 1}, batcher={"kind": "triton", "max_batch_size": 8, **batcher},
    )  # fmt: skip
    told = {"topology": "central", "overheads": OVERHEADS}
    data = toy.scenario([model], partition=partition, requests=requests, server=told, live={"batching": "triton"})
    return toy.resolve(data)


def overtaken(permille: int, late_us: int | None = None) -> dict[str, Any]:
    """Priorities, and a batcher that overtakes so many of a thousand threads, which are then so late."""
    quirks = {"batcher_first_permille": permille}
    return {**LEVELS, "quirks": quirks if late_us is None else {**quirks, "batcher_first_late_us": late_us}}


def played(resolved: ResolvedScenario, draw: int = 7) -> Played:
    """A simulation in the place of a live run, with luck of its own."""
    run = simulate(resolve(other_luck(resolved.scenario, draw), folder=resolved.folder), engine="compiled")
    return Played(run.result, run.trace, {}, (), ())


@pytest.mark.parametrize(("slices", "rate_rps"), [(1, 160.0), (3, 420.0)])
@pytest.mark.parametrize("late_us", [0, 900])
def test_late_return_of_overtaken_instances_is_found_again(
    toy: Any, slices: int, rate_rps: float, late_us: int
) -> None:
    """Arrivals before it leave the slice standing: as often as in the simulation with that time."""
    run = played(server(toy, slices, rate_rps, **overtaken(280, late_us)))
    plain = server(toy, slices, rate_rps, **overtaken(280))
    found = late_return(plain, run.trace, run.result.records, USUAL.of, 700_000)
    assert found is not None
    assert found.us == pytest.approx(late_us, abs=200)
    assert f"{found.us} us later" in found.text


def test_late_return_is_unknown_where_no_instance_is_overtaken_or_too_few_arrivals_tell(toy: Any) -> None:
    """Then nothing is said of it."""
    plain = server(toy, 1, 160.0, **overtaken(0))
    run = played(plain)
    assert late_return(plain, run.trace, run.result.records, USUAL.of, 700_000) is None
    few = server(toy, 1, 160.0, requests=500, **overtaken(280))
    run = played(few)
    assert late_return(few, run.trace, run.result.records, USUAL.of, 700_000) is None


def test_instances_stand_still_only_where_a_wakeup_was_lost(toy: Any) -> None:
    """Without lost wake-ups none does; with them some do, the more the later instances are back."""
    shares = []
    for permille, late_us in ((0, 0), (280, 0), (280, 1500)):
        ends, still = stood_still(
            played(server(toy, 1, 160.0, **overtaken(permille, late_us))).result.records, USUAL.of, 700_000
        )
        assert ends > 500
        shares.append(still / ends)
    assert shares[0] == 0.0
    assert 0.0 < shares[1] < shares[2]
    assert shares[2] == pytest.approx(0.28 * 0.5, abs=0.06)


@pytest.mark.parametrize(("slices", "rate_rps", "tells"), [(3, 400.0, True), (7, 1500.0, False)])
def test_ways_on_which_nobody_overtakes_are_not_taken_for_races(
    toy: Any, slices: int, rate_rps: float, tells: bool
) -> None:
    """Requests that come in the order in which they were sent miss fewer batches, whoever is first."""
    jitter = {"kind": "lognormal", "cv": 0.8}
    plain = server(toy, slices, rate_rps, max_queue_delay_us=5000)
    varying = Overheads.model_validate({**OVERHEADS, "frontend_us": 2500.0, "frontend_jitter": jitter})
    plain = resolve(with_overheads(plain.scenario, varying), folder=plain.folder)
    sent = draw_scenario_trace(plain)
    come_ns = np.sort(sent.scheduled_ns + (2_500_000 * sent.overhead_factor[:, 0]).astype(np.int64))
    model = plain.scenario.models[0]
    model = model.model_copy(update={"batcher": model.batcher.with_quirks(batcher_first_permille=150)})
    there = with_overheads(plain.scenario, varying.model_copy(update={"frontend_us": 0.0}))
    known = resolve(there.model_copy(update={"models": (model,)}), folder=plain.folder)
    records = simulate(known, trace=replace(sent, scheduled_ns=come_ns)).result.records
    records = replace(records, issued_ns=sent.scheduled_ns, scheduled_ns=sent.scheduled_ns)
    found = overtakings(plain, sent, records, 8)
    if tells:
        assert found.permille == pytest.approx(150, abs=60)
    else:
        assert found.permille is None
        assert "on their way" in found.text


def test_calibration_finds_it_and_leaves_what_the_scenario_says(toy: Any) -> None:
    """The calibrated scenario has the found time, beside the way and the turnaround."""
    known = server(toy, 1, 160.0, **overtaken(280, 900))
    run, busy = played(known), played(server(toy, 1, 220.0))
    profiles = [known.models[0].execution]
    calibrated = calibrate(server(toy, 1, 160.0, **LEVELS), profiles, run, run, [busy])
    quirks = calibrated.scenario.models[0].batcher.quirks
    assert quirks.batcher_first_late_us == pytest.approx(900, abs=250)
    assert quirks.batcher_first_permille == pytest.approx(280, abs=40)
    assert any("has overtaken is back" in note for note in calibrated.notes)
    assert returning_late(known.scenario, 5) == known.scenario
