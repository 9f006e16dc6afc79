"""How late an instance is back that Triton's batcher has overtaken, found again from simulations that know it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preba.cli.calibrating import calibrate
from preba.cli.lines import Line
from preba.cli.races import late_return, left_behind, overtakings, stood_still
from preba.cli.redrawn import other_luck
from preba.cli.triton_threads import with_overheads, with_share_of_races
from preba.jitter import LogNormalJitter
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


def varied(resolved: ResolvedScenario, cv: float) -> ResolvedScenario:
    """The same with ways to the batcher that vary."""
    overheads = resolved.scenario.server.overheads
    jitter = LogNormalJitter(kind="lognormal", cv=cv) if cv else None
    changed = with_overheads(resolved.scenario, overheads.model_copy(update={"frontend_jitter": jitter}))
    return resolve(changed, folder=resolved.folder)


@pytest.mark.parametrize(("slices", "rate_rps", "cv"), [(1, 160.0, 0.0), (1, 160.0, 0.5), (3, 420.0, 0.0)])
@pytest.mark.parametrize("late_us", [0, 900])
def test_late_return_of_overtaken_instances_is_found_again(
    toy: Any, slices: int, rate_rps: float, cv: float, late_us: int
) -> None:
    """Arrivals before it leave the slice standing: as often as in the simulation with that time."""
    run = played(varied(server(toy, slices, rate_rps, **overtaken(280, late_us)), cv))
    plain = varied(server(toy, slices, rate_rps, **overtaken(280)), cv)
    found = late_return(plain, run.trace, run.result.records, usual_ns=USUAL.of, way_ns=700_000)
    assert found.us == pytest.approx(late_us, abs=200)
    assert (f"{found.us} us later" if late_us else "as far as chance lets see") in found.text


@pytest.mark.parametrize(
    ("requests", "permille", "why"), [(30_000, 0, "makes no difference"), (500, 280, "too few requests")]
)
def test_late_return_is_none_where_nothing_tells(toy: Any, requests: int, permille: int, why: str) -> None:
    """No instance is overtaken, or too few arrivals come about when one is due: the report says so."""
    plain = server(toy, 1, 160.0, requests=requests, **overtaken(permille))
    run = played(plain)
    found = late_return(plain, run.trace, run.result.records, usual_ns=USUAL.of, way_ns=700_000)
    assert found.us == 0
    assert why in found.text


def test_instances_stand_still_only_where_a_wakeup_was_lost(toy: Any) -> None:
    """Without lost wake-ups none does; with them some do, the more the later instances are back."""
    shares = []
    for permille, late_us in ((0, 0), (280, 0), (280, 1500)):
        known = server(toy, 1, 160.0, **overtaken(permille, late_us))
        ends, still = stood_still(known, played(known).result.records, USUAL.of, 700_000)
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
    there = with_overheads(plain.scenario, varying.model_copy(update={"frontend_us": 0.0}))
    known = resolve(there, folder=plain.folder)
    records = with_share_of_races(known, replace(sent, scheduled_ns=come_ns), 150).result.records
    records = replace(records, issued_ns=sent.scheduled_ns, scheduled_ns=sent.scheduled_ns)
    found = overtakings(plain, sent, records, 8)
    if tells:
        assert found.permille == pytest.approx(150, abs=60)
        return
    missed, tries = left_behind(known, records, 8)
    always, more = left_behind(known, with_share_of_races(plain, sent, 1000).result.records, 8)
    assert missed / tries < always / more  # taken by itself that would mean that the batcher is first every time
    assert found.permille is None
    assert "on their way" in found.text


def test_calibration_finds_it_and_leaves_what_the_scenario_says(toy: Any) -> None:
    """The calibrated scenario has the found time, beside the way and the turnaround, or the one it has been told."""
    known = server(toy, 1, 160.0, **overtaken(280, 900))
    run, busy = played(known), played(server(toy, 1, 220.0))
    profiles = [known.models[0].execution]
    calibrated = calibrate(server(toy, 1, 160.0, **LEVELS), profiles, run, run, [busy])
    quirks = calibrated.scenario.models[0].batcher.quirks
    assert quirks.batcher_first_late_us == pytest.approx(900, abs=200)
    assert quirks.batcher_first_permille == pytest.approx(280, abs=40)
    assert any("has overtaken is back" in note for note in calibrated.notes)
    told = {**LEVELS, "quirks": {"batcher_first_late_us": 300}}
    calibrated = calibrate(server(toy, 1, 160.0, **told), profiles, run, run, [busy])
    assert calibrated.scenario.models[0].batcher.quirks.batcher_first_late_us == 300
    assert any("300 us later than others, as the scenario says" in note for note in calibrated.notes)
