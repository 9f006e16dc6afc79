"""What ``preba validate`` reads out of runs: estimates recover what a simulation was told, from its records alone."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accel.work import audio_work_us
from preba.batching.state import REFUSED_TIMEOUT
from preba.batching.triton_config import TritonQuirks
from preba.cli.calibrating import calibrate, slowdown, slowed
from preba.cli.lines import line_by_size, shifted, spread_of, steady_mean
from preba.cli.races import overtakings
from preba.cli.rehearsing import rehearsal
from preba.cli.triton_threads import (
    Race,
    head_waits_us,
    lost_wakeups,
    wakeup,
    wakeup_by_ones,
    with_race,
    with_wakeup,
    without_wakeup,
)
from preba.cli.turnarounds import widened
from preba.cli.validating import hindsight_note, in_hindsight
from preba.cli.ways import Ready, answers_after_batch, execution_ratios, gaps_between_batches, way_under_load
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Overheads, Run
from runtime.load.run import Played
from sim.run import simulate

OVERHEADS = {
    "frontend_us": 700.0, "turnaround_us": 600.0, "turnaround_request_us": 200.0, "response_us": 900.0,
    "response_request_us": 150.0,
}  # fmt: skip
TABLE = {"1": 20, "8": 34}


def triton(toy: Any, slices: int, rate_rps: float, requests: int = 6000, **batcher: Any) -> ResolvedScenario:
    """A central Triton server that batches for itself."""
    partition, kind = {1: ("1x7g.40gb", "7g"), 7: ("7x1g.5gb", "1g")}[slices]
    model = toy.model(
        toy.profile({kind: TABLE}, modality="tensor"), {"kind": "poisson", "rate_rps": rate_rps},
        sizes={"kind": "constant", "tensor_kb": 1}, batcher={"kind": "triton", "max_batch_size": 8, **batcher},
    )  # fmt: skip
    server = {"topology": "central", "overheads": OVERHEADS}
    data = toy.scenario([model], partition=partition, requests=requests, server=server, live={"batching": "triton"})
    return toy.resolve(data)


def played(resolved: ResolvedScenario) -> Played:
    """A simulation in the place of a live run."""
    run = simulate(resolved, engine="compiled")
    return Played(run.result, run.trace, {}, (), ())


def told(resolved: ResolvedScenario, **quirks: Any) -> ResolvedScenario:
    """The scenario with other threads."""
    model = resolved.scenario.models[0]
    model = model.model_copy(update={"batcher": model.batcher.with_quirks(**quirks)})
    return resolve(resolved.scenario.model_copy(update={"models": (model,)}), folder=resolved.folder)


def test_lines_by_batch_size_give_back_turnaround_and_answers(toy: Any) -> None:
    """From a run's stamps alone: 600 us and 200 us a request between batches, 900 and 150 until the answer."""
    resolved = triton(toy, 1, 200.0)
    run = played(resolved)
    profiles = [resolved.models[0].execution]
    gap = line_by_size(gaps_between_batches(resolved, profiles, [run]))
    assert (gap.fixed_us, gap.per_request_us) == pytest.approx((600, 200), abs=2)
    answer = answers_after_batch(resolved, profiles, [run]).line
    assert (answer.fixed_us, answer.per_request_us) == pytest.approx((900, 150), abs=2)


def test_slices_that_are_slower_under_load_are_seen(toy: Any) -> None:
    """Executions of 1.2 times what the profile says: the factor is found, and the slowed profile says so too."""
    resolved = triton(toy, 1, 100.0)
    profile = resolved.models[0].execution
    quick = slowed(profile, 1 / 1.2)
    assert quick.latency_ns("7g.40gb", 3, None) == pytest.approx(profile.latency_ns("7g.40gb", 3, None) / 1.2, rel=1e-4)
    assert slowdown(execution_ratios(resolved, quick, 0, played(resolved))) == pytest.approx(1.2, rel=1e-3)
    few = triton(toy, 1, 100.0, requests=20)
    assert slowdown(execution_ratios(few, quick, 0, played(few))) == 1.0


@pytest.mark.parametrize("delay_us", [0, 5000])
@pytest.mark.parametrize("wakeup_us", [0, 300, 900])
def test_wakeup_of_the_batcher_is_seen_in_who_joins_whom(toy: Any, wakeup_us: int, delay_us: int) -> None:
    """Requests that meet idle slices: the share of successors that join tells how long the batcher takes."""
    plain = triton(toy, 7, 400.0, requests=20_000, max_queue_delay_us=delay_us)
    resolved = told(plain, batcher_wakeup_us=wakeup_us)
    records = played(resolved).result.records
    found = wakeup(resolved, records)
    assert found.pairs > 1000
    # A little short: the end of a batch wakes the batcher too, and what comes then is seen sooner.
    assert found.us == pytest.approx(wakeup_us, abs=60 + 0.05 * wakeup_us)
    waits = head_waits_us(resolved, records, 8)
    assert float(np.median(waits)) == pytest.approx(700 + wakeup_us, abs=2)
    batcher = with_wakeup(triton(toy, 7, 400.0).scenario.models[0].batcher, found)
    assert batcher.quirks.batcher_wakeup_us == round(found.us)


def closed_loop(toy: Any, front_us: float, **quirks: Any) -> ResolvedScenario:
    """Three slices and 24 clients whose answers come one after another."""
    model = toy.model(
        toy.profile({"2g": TABLE}, modality="tensor"), {"kind": "closed_loop", "outstanding": 24},
        sizes={"kind": "constant", "tensor_kb": 1},
        batcher={"kind": "triton", "max_batch_size": 8, "quirks": quirks},
    )  # fmt: skip
    overheads = {
        "frontend_us": front_us, "frontend_jitter": {"kind": "lognormal", "cv": 0.2},
        "turnaround_us": 880.0, "turnaround_request_us": 135.0, "turnaround_jitter": {"kind": "lognormal", "cv": 0.25},
        "response_us": 880.0, "response_request_us": 110.0, "response_jitter": {"kind": "lognormal", "cv": 0.25},
        "response_next_us": 100.0, "response_next_jitter": {"kind": "exponential"},
    }  # fmt: skip
    server = {"topology": "central", "overheads": overheads}
    data = toy.scenario([model], partition="3x2g.10gb", requests=60_000, server=server, live={"batching": "triton"})
    return toy.resolve(data)


@pytest.mark.parametrize("wakeup_us", [0, 100, 200])
def test_wakeup_in_a_closed_loop_is_seen_in_batches_of_one(toy: Any, wakeup_us: int) -> None:
    """Who sends with their answers shows it in how many requests go alone."""
    run = played(closed_loop(toy, 900.0, batcher_wakeup_us=wakeup_us, batcher_wakeup_varies=True))
    found = wakeup_by_ones(closed_loop(toy, 900.0 + wakeup_us), run.trace, run.result.records)
    assert found.us == pytest.approx(wakeup_us, abs=60)
    assert found.varies
    assert "have one request" in found.text


def test_closed_loop_is_calibrated_as_it_was_told(toy: Any) -> None:
    """Through everything: lines, spreads, and a wake-up whose mean and variance are not in the way any more."""
    known = closed_loop(toy, 900.0, batcher_wakeup_us=150, batcher_wakeup_varies=True)
    alone = known.scenario.models[0].arrivals.model_copy(update={"outstanding": 1})
    model = known.scenario.models[0].model_copy(update={"arrivals": alone})
    scenario = known.scenario.model_copy(update={"models": (model,), "run": Run(requests=2000, warmup_requests=0)})
    idle, run = played(resolve(scenario, folder=known.folder)), played(known)
    asked = closed_loop(toy, 900.0)
    found = calibrate(asked, [known.models[0].execution], idle, run, [played(triton(toy, 1, 220.0))])
    overheads, quirks = found.scenario.server.overheads, found.scenario.models[0].batcher.quirks
    assert quirks.batcher_wakeup_us == pytest.approx(150, abs=60)
    assert quirks.batcher_wakeup_varies
    assert overheads.frontend_us + quirks.batcher_wakeup_us == pytest.approx(1050, rel=0.03)
    way_us = overheads.frontend_us * overheads.frontend_jitter.factor_cv()
    assert way_us**2 + quirks.batcher_wakeup_us**2 == pytest.approx(180**2 + 150**2, rel=0.2)
    for size in (1, 8):
        assert overheads.turnaround_us + size * overheads.turnaround_request_us == pytest.approx(
            880 + size * 135, rel=0.08
        )
        assert overheads.response_us + size * overheads.response_request_us == pytest.approx(880 + size * 110, rel=0.05)
    assert overheads.response_next_us == pytest.approx(100, rel=0.05)


def test_wakeup_that_a_scenario_says_itself_is_kept(toy: Any) -> None:
    """It is taken off the way, and neither its mean nor whether it varies is changed."""
    for varies in (True, False):
        known = closed_loop(toy, 900.0, batcher_wakeup_us=250, batcher_wakeup_varies=varies)
        run = played(known)
        found = calibrate(known, [known.models[0].execution], run, run, [played(triton(toy, 1, 220.0))])
        quirks = found.scenario.models[0].batcher.quirks
        assert (quirks.batcher_wakeup_us, quirks.batcher_wakeup_varies) == (250, varies)
        assert any("as the scenario says" in note for note in found.notes)


@pytest.mark.parametrize("varies", [True, False])
def test_wakeup_that_varies_is_told_from_one_that_does_not(toy: Any, *, varies: bool) -> None:
    """By the spread of the ways that contain it, which is then not in the way's own jitter."""
    known = told(triton(toy, 7, 400.0, requests=20_000), batcher_wakeup_us=400, batcher_wakeup_varies=varies)
    run = played(known)
    found = wakeup(known, run.result.records)
    assert found.us == pytest.approx(400, abs=80)
    assert found.varies == varies
    waits = head_waits_us(known, run.result.records, 8)
    own = without_wakeup(waits, found)
    assert own.mean() == pytest.approx(waits.mean() - found.us)
    assert own.std() < 120


def test_wakeup_is_not_made_up_from_a_few_requests(toy: Any) -> None:
    """A busy server shows too few requests that meet an idle slice, and that is said."""
    resolved = told(triton(toy, 1, 220.0, requests=500), batcher_wakeup_us=500)
    found = wakeup(resolved, played(resolved).result.records)
    assert found.us == 0
    assert "too few" in found.text


@pytest.mark.parametrize("permille", [0, 250])
def test_lost_wakeups_are_counted_where_nothing_else_wakes_the_batcher(toy: Any, permille: int) -> None:
    """Ends of batches followed by silence: the next batch starts at once, or it does not."""
    policy = {"default_queue_policy": {"max_queue_size": 100}}
    resolved = told(triton(toy, 1, 160.0, requests=20_000, **policy), batcher_first_permille=permille)
    records = played(resolved).result.records
    found = lost_wakeups(resolved, records, lambda size: 600_000 + 200_000 * size)
    assert found.permille == pytest.approx(permille, abs=60)
    batcher = triton(toy, 1, 160.0, **policy).scenario.models[0].batcher
    assert with_race(batcher, found).batcher_first_permille() == found.permille
    told_itself = batcher.with_quirks(batcher_first_permille=9)
    assert with_race(told_itself, found).batcher_first_permille() == 9
    assert with_race(batcher, Race(None, "")) == batcher


@pytest.mark.parametrize("permille", [0, 150, 400])
def test_overtakings_are_told_from_the_requests_left_behind(toy: Any, permille: int) -> None:
    """The share lies between those of two simulations of the same trace."""
    plain = triton(toy, 1, 118.0, requests=8000, max_queue_delay_us=5000)
    run = played(told(plain, batcher_first_permille=permille))
    found = overtakings(plain, run.trace, run.result.records, 8)
    assert found.permille == pytest.approx(permille, abs=60)


def test_overtakings_that_make_no_difference_are_not_estimated(toy: Any) -> None:
    """A slice that is never behind leaves nobody waiting."""
    plain = triton(toy, 7, 40.0, requests=1000, max_queue_delay_us=5000)
    run = played(plain)
    assert overtakings(plain, run.trace, run.result.records, 8).permille is None


def test_calibration_gives_back_the_scenario_that_was_run(toy: Any) -> None:
    """All of it together: overheads and threads of a known server are found within a few percent."""
    known = told(triton(toy, 1, 118.0, requests=8000, max_queue_delay_us=5000), batcher_first_permille=150)
    model = known.scenario.models[0]
    plain = model.model_copy(update={"batcher": model.batcher.model_copy(update={"quirks": TritonQuirks()})})
    server = known.scenario.server.model_copy(update={"overheads": Overheads()})
    asked = resolve(known.scenario.model_copy(update={"server": server, "models": (plain,)}), folder=known.folder)
    run = played(known)
    found = calibrate(asked, [known.models[0].execution], run, run, [run])
    over, quirks = found.scenario.server.overheads, found.scenario.models[0].batcher.quirks
    for name, value in OVERHEADS.items():
        assert getattr(over, name) == pytest.approx(value, rel=0.05), name
    assert quirks.batcher_first_permille == pytest.approx(150, abs=60)
    assert any("overtakes" in note for note in found.notes)


def test_hindsight_takes_the_run_in_the_place_of_its_rehearsal(toy: Any) -> None:
    """Between the two the way became 500 us longer; a run that served nothing tells nothing."""
    rehearsed = triton(toy, 1, 60.0, requests=8000, max_queue_delay_us=5000)
    slower = rehearsed.scenario.server.overheads.model_copy(update={"frontend_us": OVERHEADS["frontend_us"] + 500})
    server = rehearsed.scenario.server.model_copy(update={"overheads": slower})
    run = played(resolve(rehearsed.scenario.model_copy(update={"server": server}), folder=rehearsed.folder))
    before, profiles = played(rehearsed), [rehearsed.models[0].execution]
    calibrated = calibrate(rehearsed, profiles, before, before, [before]).scenario
    found = in_hindsight(rehearsed, profiles, before, run, [before])
    assert calibrated.server.overheads.frontend_us == pytest.approx(OVERHEADS["frontend_us"], rel=0.05)
    assert found.scenario.server.overheads.frontend_us == pytest.approx(OVERHEADS["frontend_us"] + 500, rel=0.05)
    note = hindsight_note(resolve(calibrated, folder=rehearsed.folder), found)
    assert re.match(r"in the run itself: to the batcher 1[12]\d\d us \(rehearsal [67]\d\d\); between", note)
    records = run.result.records
    refused = replace(records, outcome=np.full_like(records.outcome, REFUSED_TIMEOUT))
    nothing = replace(run, result=replace(run.result, records=refused))
    assert in_hindsight(rehearsed, profiles, before, nothing, [before]) is None


@pytest.mark.parametrize(("wider", "lost"), [(1.0, 0.0), (1.8, 0.0), (1.8, 0.2)])
def test_gaps_without_lost_wakeups_follow_from_the_quick_ones(wider: float, lost: float) -> None:
    """Under the load gaps are twice as long and vary more than of slices kept busy; some are longer by 20 ms."""
    rng = np.random.default_rng(3)
    shape = rng.gamma(12.0, 1 / 12.0, 4000)
    kept_busy = {size: list((600 + 200 * size) * shape[:1000]) for size in (1, 8)}
    line = line_by_size(kept_busy)
    under = 4400 * np.maximum(1 + wider * (rng.gamma(12.0, 1 / 12.0, 4000) - 1), 0)
    seen = {8: list(under + 20_000 * (rng.random(4000) < lost))}
    usual = shifted(line, seen, lambda values: float(np.percentile(values, 35)))
    found, spread = widened(kept_busy, line, seen, usual)
    assert found.of(8) / 1e3 == pytest.approx(4400, rel=0.03 + 0.5 * lost)
    assert spread.factor_cv() == pytest.approx(wider / math.sqrt(12), rel=0.1 + lost)
    if lost:
        assert found.of(8) / 1e3 < 0.7 * np.mean(seen[8])  # 4 ms more on average


def test_calibration_says_that_it_saw_no_gaps(toy: Any) -> None:
    """A slice that nobody ever waits for has no turnaround to be seen."""
    calm = toy.resolve(toy.scenario([toy.model(toy.profile({"1g": TABLE}), {"kind": "poisson", "rate_rps": 2})],
                                    partition="7x1g.5gb", requests=200))  # fmt: skip
    run = played(calm)
    notes = calibrate(calm, [calm.models[0].execution], run, run, []).notes
    assert "between two batches of a busy slice: too few were seen, nothing beyond the profile is simulated" in notes


def test_spreads_of_overheads_are_found(toy: Any) -> None:
    """Coefficients of variation of 0.6, 0.2 and 0.4 come back, each at its own place."""
    plain = triton(toy, 7, 100.0, requests=8000)
    told_cv = {"frontend": 0.6, "turnaround": 0.2, "response": 0.4}
    jitters = {f"{name}_jitter": {"kind": "lognormal", "cv": cv} for name, cv in told_cv.items()}
    overheads = Overheads.model_validate({**OVERHEADS, **jitters})
    server = plain.scenario.server.model_copy(update={"overheads": overheads})
    known = resolve(plain.scenario.model_copy(update={"server": server}), folder=plain.folder)
    run, busy = played(known), triton(toy, 1, 220.0, requests=8000)
    server = busy.scenario.server.model_copy(update={"overheads": overheads})
    busy = resolve(busy.scenario.model_copy(update={"server": server}), folder=busy.folder)
    found = calibrate(known, [known.models[0].execution], run, run, [played(busy)]).scenario.server.overheads
    for name, cv in told_cv.items():
        assert getattr(found, f"{name}_jitter").factor_cv() == pytest.approx(cv, rel=0.25), name


def test_answers_come_one_after_another(toy: Any) -> None:
    """From the stamps alone: 900 us and 150 us a request to the first, 90 us to each next, and how both vary."""
    plain = triton(toy, 1, 200.0, requests=8000)
    told = {
        "response_jitter": {"kind": "lognormal", "cv": 0.3},
        "response_next_us": 90.0, "response_next_jitter": {"kind": "exponential"},
    }  # fmt: skip
    server = plain.scenario.server.model_copy(update={"overheads": Overheads.model_validate({**OVERHEADS, **told})})
    known = resolve(plain.scenario.model_copy(update={"server": server}), folder=plain.folder)
    found = answers_after_batch(known, [known.models[0].execution], [played(known)])
    assert (found.line.fixed_us, found.line.per_request_us) == pytest.approx((900, 150), rel=0.1)
    assert found.next_us == pytest.approx(90, rel=0.05)
    assert found.spread is not None
    assert found.next_spread is not None
    assert found.spread.factor_cv() == pytest.approx(0.3, rel=0.1)
    assert found.next_spread.factor_cv() == pytest.approx(1.0, rel=0.1)


def test_answers_of_a_batch_are_right_on_average_where_the_second_one_is_late(toy: Any) -> None:
    """A second answer 300 us further from the first than the others from one another: the mean of each size is kept."""
    known = triton(toy, 1, 200.0, requests=8000)
    run = played(known)
    records = run.result.records
    order = np.argsort(records.batch_id, kind="stable")
    first = np.flatnonzero(np.diff(records.batch_id[order], prepend=-1) != 0)
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    later_ns = np.empty(len(records), dtype=np.int64)
    later_ns[order] = np.where(place == 0, 0, 300_000 + 60_000 * place)
    late = replace(records, completed_ns=records.completed_ns + later_ns)
    found = answers_after_batch(
        known, [known.models[0].execution], [replace(run, result=replace(run.result, records=late))]
    )
    for size in (2, 4, 8):
        mine = late.batch_size == size
        measured_us = (late.completed_ns - late.execution_end_ns)[mine].mean() / 1e3
        told_us = found.line.of(size) / 1e3 + found.next_us * (size - 1) / 2
        assert told_us == pytest.approx(measured_us, rel=0.05), size


def test_turnaround_of_slices_that_overtake_one_another_is_found(toy: Any) -> None:
    """With seven slices the quick ones get the batches that wait: what is seen is too short, what is found is not."""
    plain = triton(toy, 7, 950.0, requests=15_000)
    overheads = Overheads.model_validate({**OVERHEADS, "turnaround_jitter": {"kind": "lognormal", "cv": 0.6}})
    server = plain.scenario.server.model_copy(update={"overheads": overheads})
    known = resolve(plain.scenario.model_copy(update={"server": server}), folder=plain.folder)
    run, busy = played(known), played(triton(toy, 1, 220.0, requests=4000))
    profiles = [known.models[0].execution]
    gaps = gaps_between_batches(known, profiles, [run], Ready(way_ns=2_000_000))
    seen = np.mean([gap / (600 + 200 * size) for size, each in gaps.items() for gap in each])
    found = calibrate(known, profiles, run, run, [busy]).scenario.server.overheads
    assert seen < 0.93
    for size, rel in ((1, 0.1), (4, 0.08), (8, 0.08)):
        turnaround_us = found.turnaround_us + size * found.turnaround_request_us
        assert turnaround_us == pytest.approx(600 + size * 200, rel=rel), size


def test_executions_vary_as_they_do_in_the_rehearsal(toy: Any) -> None:
    """Slices that sleep take longer now and then, too: on average as well, not only in the middle."""
    plain = triton(toy, 1, 150.0, requests=8000)
    model = plain.scenario.models[0]
    factors = {"kind": "empirical", "factors": (*[1.0] * 19, 1.2)}
    varied = type(model).model_validate({**model.model_dump(), "execution_jitter": factors})
    known = resolve(plain.scenario.model_copy(update={"models": (varied,)}), folder=plain.folder)
    profiles = [plain.models[0].execution]
    run = played(known)
    calibrated = calibrate(plain, profiles, run, run, [run])
    found = calibrated.scenario.models[0]
    assert slowdown(execution_ratios(plain, profiles[0], 0, run)) == pytest.approx(1.0, abs=0.003)
    assert found.execution_jitter is not None
    assert found.execution_jitter.factor_cv() == pytest.approx(np.std([1.0] * 19 + [1.2]) / 1.01, rel=0.15)
    overheads = calibrated.scenario.server.overheads
    for spread in (overheads.turnaround_jitter, overheads.response_jitter):
        assert spread is None or spread.factor_cv() < 0.01  # neither varies by itself


def test_spread_leaves_out_a_machine_that_stood_still_and_few_values() -> None:
    """A hundred quantiles of mean 1; a second among milliseconds does not count, and ten values are no spread."""
    usual = np.random.default_rng(2).gamma(16.0, 1 / 16.0, 4000)
    found = spread_of(np.append(usual, [500.0] * 20))
    assert found is not None
    assert found.factor_cv() == pytest.approx(0.25, rel=0.05)
    assert len(found.factors) == 100
    assert spread_of(usual[:10]) is None
    assert spread_of([]) is None


def test_way_under_load_is_what_the_queue_does_not_explain(toy: Any) -> None:
    """20 ms until execution of which 5 are queue, but for the 1 ms that a lone request waits there beyond its delay."""
    resolved = triton(toy, 1, 100.0, requests=50, max_queue_delay_us=2000)
    run = played(resolved)
    records = run.result.records

    def after(wait_ms: float, queue_us: float | None) -> Played:
        start_ns = records.scheduled_ns + round(1e6 * wait_ms)
        result = replace(run.result, records=replace(records, execution_start_ns=start_ns))
        return Played(result, run.trace, {}, (), (), queue_us)

    assert way_under_load(resolved, after(4.0, 3000.0), after(20.0, 5000.0)) == pytest.approx(16_000)
    assert way_under_load(resolved, after(4.0, 1000.0), after(20.0, 5000.0)) == pytest.approx(15_000)
    # A wake-up that is simulated itself is in the queue's time already, however long it is under the load.
    assert way_under_load(resolved, after(4.0, 3000.0), after(20.0, 5000.0), 400.0) == pytest.approx(15_600)
    assert way_under_load(resolved, after(4.0, 3000.0), after(20.0, 5000.0), 2500.0) == pytest.approx(15_000)
    assert way_under_load(resolved, after(4.0, None), after(20.0, 5000.0)) is None


def test_way_under_load_of_several_servers_is_that_of_the_first(toy: Any) -> None:
    """Statistics come from one server, so that the requests of others are not compared with them."""
    model = toy.model(toy.profile({"1g": TABLE}), {"kind": "poisson", "rate_rps": 100}, batcher={"kind": "greedy"})
    data = toy.scenario([model], partition="7x1g.5gb", requests=700, server={"topology": "per_slice"})
    resolved = toy.resolve(data)
    run = played(resolved)
    records = run.result.records
    wait_ns = np.where(records.slice_index == 0, 3_000_000, 50_000_000)
    result = replace(run.result, records=replace(records, execution_start_ns=records.scheduled_ns + wait_ns))
    seen = Played(result, run.trace, {}, (), (), 1000.0)
    assert way_under_load(resolved, replace(seen, queue_us=0.0), seen) == pytest.approx(2000)


@pytest.mark.parametrize("permille", [0, 300])
def test_lost_wakeups_behind_a_full_queue_are_found(toy: Any, permille: int) -> None:
    """Where arrivals never cease, how long slices are left alone tells the share."""
    data = triton(toy, 7, 2000.0, requests=20_000, default_queue_policy={"max_queue_size": 56})
    known = told(data, batcher_first_permille=permille)
    run, busy = played(known), played(triton(toy, 1, 220.0, requests=4000))
    found = calibrate(data, [data.models[0].execution], run, run, [busy])
    quirks = found.scenario.models[0].batcher.quirks
    assert quirks.batcher_first_permille == pytest.approx(permille, abs=80)
    assert found.scenario.server.overheads.turnaround_us == pytest.approx(600, abs=60)


def test_rehearsal_is_short_has_other_draws_and_no_events(toy: Any, tmp_path: Path) -> None:
    """Never the run that is compared: another seed, at most two minutes, no failing slices."""
    resolved = triton(toy, 7, 400.0, requests=100_000)
    other = rehearsal(resolved).scenario
    assert other.seed != resolved.scenario.seed
    assert other.run.requests == 48_000
    assert other.events == ()
    times = toy.arrivals_at(tmp_path, [1.0, 2.0, 3.0])
    few = toy.scenario([toy.model(toy.profile({"1g": TABLE}), times)], partition="7x1g.5gb", requests=3)
    assert rehearsal(toy.resolve(few)).scenario.run.requests == 3


def test_line_by_size_keeps_the_mean_where_a_part_would_be_negative() -> None:
    """Falling means give their mean; an intercept below zero gives the line through the origin."""
    falling = line_by_size({1: [500.0] * 20, 8: [300.0] * 20})
    assert (falling.fixed_us, falling.per_request_us) == pytest.approx((400, 0))
    steep = line_by_size({1: [50.0] * 20, 4: [400.0] * 20, 8: [900.0] * 20})
    assert steep.fixed_us == 0
    assert steep.per_request_us == pytest.approx((50 + 4 * 400 + 8 * 900) / (1 + 16 + 64))
    assert line_by_size({4: [100.0] * 3}).values == 0


def test_a_machine_that_stood_still_for_a_moment_does_not_count() -> None:
    """A few answers of a second among those of some milliseconds change nothing; an honest tail does."""
    usual = np.random.default_rng(1).gamma(4.0, 0.7, 5000)
    assert steady_mean(usual) == pytest.approx(usual.mean(), rel=1e-3)
    assert steady_mean(np.append(usual, [1000.0] * 200)) == pytest.approx(usual.mean(), rel=0.01)


def test_preprocessing_under_load_gives_back_what_it_costs_on_average(toy: Any) -> None:
    """Costs with a spread of 0.3: the mean is not lost in the fit, and the spread is found."""
    model = toy.model(
        toy.profile({"1g": TABLE}), {"kind": "poisson", "rate_rps": 60}, sizes={"kind": "jpeg", "dataset": "imagenet"},
        preprocess_jitter={"kind": "lognormal", "cv": 0.3},
    )  # fmt: skip
    cost = {"kind": "cpu", "name": "toy", "image": {"fixed_us": toy.figure(2000.0), "per_100kb_us": toy.figure(1500.0)}}
    preprocessing = {"kind": "cpu", "cores": 1, "usable_fraction": 1.0, "cost": cost}
    known = toy.resolve(toy.scenario([model], partition="7x1g.5gb", requests=6000, preprocessing=preprocessing))
    run = played(known)
    found = calibrate(known, [known.models[0].execution], run, run, [run]).scenario
    image = found.preprocessing.cost.image
    sizes = run.trace.jpeg_bytes / 1e5
    told_us, found_us = 2000 + 1500 * sizes.mean(), image.fixed_us.value + image.per_100kb_us.value * sizes.mean()
    assert found_us == pytest.approx(told_us, rel=0.02)


def test_what_a_worker_takes_between_two_inputs_varies_with_them(toy: Any) -> None:
    """Alternately 0.5 and 2.5 ms of an input's time pass before it: inputs as a whole vary no more than they did."""
    sizes = {"kind": "jpeg", "dataset": "imagenet"}
    model = toy.model(toy.profile({"1g": TABLE}), {"kind": "poisson", "rate_rps": 150}, sizes=sizes)
    cost = {"kind": "cpu", "name": "toy", "image": {"fixed_us": toy.figure(6000.0), "per_100kb_us": toy.figure(0.0)}}
    preprocessing = {"kind": "cpu", "cores": 1, "usable_fraction": 1.0, "cost": cost}
    known = toy.resolve(toy.scenario([model], partition="7x1g.5gb", requests=6000, preprocessing=preprocessing))
    run = played(known)
    records = run.result.records
    between_ns = np.where(np.arange(len(records)) % 2, 2_500_000, 500_000)
    late = replace(records, preprocess_start_ns=records.preprocess_start_ns + between_ns)
    run = replace(run, result=replace(run.result, records=late))
    found = calibrate(known, [known.models[0].execution], run, run, [run]).scenario
    assert found.preprocessing.cost.image.fixed_us.value == pytest.approx(6000, rel=0.02)
    spread = found.models[0].preprocess_jitter
    assert spread is None or spread.factor_cv() < 0.1  # 1 of 6 ms would be 0.17


def test_every_part_of_the_way_through_the_front_end_is_found(toy: Any) -> None:
    """Before and after preprocessing, a core that has rested, a late timer, the way to the slice, the turnaround."""
    sizes = {"kind": "jpeg", "dataset": "imagenet"}
    fixed = {"kind": "fixed", "batch_max": 8, "timeout_ms": 5.0}
    model = toy.model(toy.profile({"1g": TABLE}), {"kind": "poisson", "rate_rps": 150}, sizes=sizes, batcher=fixed)
    cost = {"kind": "cpu", "name": "toy", "image": {"fixed_us": toy.figure(2000.0), "per_100kb_us": toy.figure(1500.0)}}
    preprocessing = {"kind": "cpu", "cores": 1, "usable_fraction": 1.0, "cost": cost, "rested_us": 400.0}
    told_us = {
        "ingress_us": 700.0, "frontend_us": 200.0, "timer_us": 90.0, "dispatch_us": 350.0, "turnaround_us": 600.0,
        "response_us": 900.0,
    }  # fmt: skip
    data = toy.scenario([model], partition="7x1g.5gb", requests=6000, preprocessing=preprocessing)
    known = toy.resolve({**data, "server": {"overheads": told_us}})
    one = {**model, "arrivals": {"kind": "closed_loop", "outstanding": 64}, "batcher": {"kind": "greedy"}}
    busy = toy.scenario([one], partition="7x1g.5gb", requests=4000, server={"overheads": told_us})
    run = played(known)
    found = calibrate(known, [known.models[0].execution], run, run, [played(toy.resolve(busy))]).scenario
    for name, value in told_us.items():
        assert getattr(found.server.overheads, name) == pytest.approx(value, rel=0.03), name
    assert found.preprocessing.rested_us == pytest.approx(400, rel=0.03)
    image = found.preprocessing.cost.image
    assert (image.fixed_us.value, image.per_100kb_us.value) == pytest.approx((2000, 1500), rel=0.03)


@pytest.mark.parametrize(("requests", "longest_s"), [(6000, 28), (1000, 22)])
def test_costs_that_bend_are_found(toy: Any, requests: int, longest_s: int) -> None:
    """Speech that costs the square of its length: at every length within a few percent, where a line is far off."""
    sizes = {"kind": "librispeech", "subset": "test-clean"}
    profile = toy.audio_profile(["1g"])
    profile["closed_form"]["length_range_s"] = [0.0, 40.0]
    model = toy.model(profile, {"kind": "poisson", "rate_rps": 40}, sizes=sizes)
    bends = [[length, 40.0 * length**2] for length in range(1, 36)]
    audio = {"fixed_us": toy.figure(500.0), "per_audio_s_us": toy.figure(0.0), "bends": bends}
    preprocessing = {
        "kind": "cpu", "cores": 4, "usable_fraction": 1.0, "cost": {"kind": "cpu", "name": "toy", "audio": audio},
    }  # fmt: skip
    known = toy.resolve(toy.scenario([model], partition="7x1g.5gb", requests=requests, preprocessing=preprocessing))
    run = played(known)
    found = calibrate(known, [known.models[0].execution], run, run, [run]).scenario.preprocessing.cost.audio
    lengths_s = np.array([3, 6, 9, 12, 15, longest_s], dtype=np.int64)
    lengths_ns = lengths_s * 1_000_000_000
    expected_us = 500 + 40 * lengths_s**2
    assert audio_work_us(found, lengths_ns) == pytest.approx(expected_us, rel=0.08)
    line_us = found.fixed_us.value + found.per_audio_s_us.value * lengths_s
    assert abs(line_us / expected_us - 1).max() > 0.3


def test_slices_of_preprocessing_stay_free_in_the_calibrated_scenario(toy: Any) -> None:
    """What is measured replaces the station, not the partition: the models keep the slices they had."""
    model = toy.model(toy.profile({"1g": TABLE}), {"kind": "poisson", "rate_rps": 60})
    data = toy.scenario(
        [model], partition="7x1g.5gb", requests=400, preprocessing=toy.dali("dali_slice", slices={"1g.5gb": 1})
    )
    known = toy.resolve({**data, "live": {"preprocessing": {"backend": "cpu"}}})
    run = played(known)
    found = calibrate(known, [known.models[0].execution], run, run, [run]).scenario
    calibrated = resolve(found, folder=known.folder)
    assert calibrated.models[0].slice_indices == known.models[0].slice_indices
    assert len(known.models[0].slice_indices) == 6
