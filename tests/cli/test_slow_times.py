"""Times at which all of a server's software is slow: found where there are any, and simulated as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from preba.cli.slow_times import narrowed, slow_times, slowness_note, with_preprocessing, with_share, with_slowness
from preba.jitter import EmpiricalJitter, GammaJitter
from preba.records import Records
from preba.scenario.schema import Overheads
from preba.slowness import Slowness
from preba.trace import stream
from sim.run import simulate

OWN = {"kind": "gamma", "cv": 0.3}


def series(cv: float, lasting: int = 3) -> Slowness:
    """Windows of 20 ms that are so different, always so many alike."""
    drawn = np.random.default_rng(3).gamma(1 / cv**2, cv**2, 2000)
    return Slowness(window_ms=20, factors=tuple(np.repeat(drawn, lasting)))


def server(toy: Any, *, slowness: Slowness | None, requests: int = 20_000) -> Records:
    """What seven slices behind Triton's batcher answer, whose software varies so."""
    batcher = {"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 2000}
    model = toy.model(toy.profile({"1g": {"1": 20, "8": 34}}), {"kind": "poisson", "rate_rps": 800}, batcher=batcher)
    overheads: dict[str, Any] = {"response_us": 1500.0, "response_request_us": 200.0, "response_jitter": OWN}
    if slowness is not None:
        overheads["slowness"] = slowness.model_dump()
    data = toy.scenario([model], partition="7x1g.5gb", server={"overheads": overheads}, requests=requests)
    return simulate(toy.resolve(data)).result.records


def spread(slowness: Slowness) -> float:
    """How far its windows are apart."""
    return float(np.std(slowness.factors) / np.mean(slowness.factors))


@pytest.mark.parametrize("cv", [0.2, 0.4])
def test_slow_times_are_found_as_far_apart_as_they_are(toy: Any, cv: float) -> None:
    """Not as far as windows of a few batches seem to be by chance, and in their order."""
    known = series(cv)
    records = server(toy, slowness=known)
    found = slow_times(records)
    assert found is not None
    assert found.window_ms == 20
    assert spread(found) == pytest.approx(cv, rel=0.15)
    factors = np.array(found.factors)
    assert np.corrcoef(factors[:-1], factors[1:])[0, 1] > 0.3  # three windows in a row are alike


def test_slices_that_vary_by_themselves_have_no_slow_times(toy: Any) -> None:
    """Nor have too few batches, or none."""
    records = server(toy, slowness=None)
    assert slow_times(records) is None
    slow = server(toy, slowness=series(0.4), requests=300)
    assert slow_times(slow) is None
    assert slow_times(records.select(np.zeros(len(records), dtype=np.bool_))) is None
    assert slowness_note(None) == ()


def test_a_moment_at_which_the_machine_stood_still_is_no_slow_time(toy: Any) -> None:
    """One stall of a tenth of a second changes the windows by little."""
    records = server(toy, slowness=series(0.2))
    stalled = (records.execution_end_ns > 3_000_000_000) & (records.execution_end_ns < 3_050_000_000)
    late = replace(records, completed_ns=records.completed_ns + np.where(stalled, 100_000_000, 0))
    before, after = slow_times(records), slow_times(late)
    assert before is not None
    assert after is not None
    assert spread(after) == pytest.approx(spread(before), rel=0.05)


def test_what_is_common_is_taken_from_what_varies_alone() -> None:
    """Overheads vary as far as before, with part of it in common; their means stay."""
    factors = tuple(np.random.default_rng(1).gamma(4.0, 0.25, 400).tolist())
    own = EmpiricalJitter(kind="empirical", factors=factors)
    before = Overheads(frontend_us=100, response_us=900, frontend_jitter=own, response_jitter=own)
    known = series(0.3)
    after = with_slowness(before, known)
    assert after.slowness.factors == known.factors
    # What does not vary feels nothing of it.
    assert after.turnaround_jitter is None
    assert after.slowness.shares == {"turnaround": 0.0, "response_next": 0.0}
    both = (1 + spread(known) ** 2) * (1 + after.response_jitter.factor_cv() ** 2) - 1
    assert both == pytest.approx(own.factor_cv() ** 2, rel=1e-6)
    assert np.mean(after.response_jitter.factors) == pytest.approx(np.mean(factors))
    assert with_slowness(before, None) == before
    steady = EmpiricalJitter(kind="empirical", factors=(0.99, 1.01))
    alike = with_slowness(before.model_copy(update={"response_jitter": steady}), known)
    assert alike.response_jitter.factor_cv() == pytest.approx(0.0, abs=2e-3)
    assert alike.slowness.share("response") * spread(known) == pytest.approx(steady.factor_cv(), rel=0.05)
    (said,) = slowness_note(known)
    assert said.startswith(f"all software is slow together at times: by {100 * spread(known):.0f} % ")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_how_much_a_part_feels_is_found(toy: Any, share: float) -> None:
    """Turnarounds that deviate so much of what the true series does, and by themselves.

    Chance in what few batches say of a window makes it smaller than it is.
    """
    known = series(0.4)
    told = known.model_copy(update={"shares": {"turnaround": share}})
    records = server(toy, slowness=told)
    found = slow_times(records)
    rows = np.unique(records.batch_id, return_index=True)[1]
    ended_ns = records.execution_end_ns[rows]
    # A batch's answers are as slow as the software was when its first request was due.
    begin = stream(7, 0, "slowness").integers(len(known.factors))
    windows = records.scheduled_ns[rows] // 20_000_000 + begin
    true = np.array(known.factors)[windows % len(known.factors)] / np.mean(known.factors)
    own = 1 + share * (true - 1) + 0.2 * np.random.default_rng(8).standard_normal(len(rows))
    seen = list(zip(ended_ns.tolist(), own.tolist(), strict=True))
    felt = with_share(found, records, "turnaround", seen)
    assert 0.6 * share - 0.05 < felt.share("turnaround") < share + 0.05
    assert felt.share("response") == 1.0
    assert f"the turnaround feels {felt.share('turnaround'):.2f} of it" in slowness_note(felt)[0]
    assert with_share(found, records, "turnaround", seen[:20]) == found
    assert with_share(None, records, "turnaround", seen) is None


@pytest.mark.parametrize("cv", [0.0, 0.15, 0.3])
def test_times_of_slow_preprocessing_are_found_beside_those_of_answers(toy: Any, cv: float) -> None:
    """As far apart as they are beyond what each input takes by itself, and in the windows of the answers."""
    records = server(toy, slowness=None)
    rng = np.random.default_rng(9)
    true = series(cv, lasting=1) if cv else None
    at_ns = records.scheduled_ns
    windows = (at_ns - records.execution_end_ns.min()).clip(0) // 20_000_000
    common = np.ones(len(at_ns)) if true is None else np.array(true.factors)[windows] / np.mean(true.factors)
    items = list(zip(at_ns.tolist(), (common * rng.gamma(25.0, 0.04, len(at_ns))).tolist(), strict=True))
    found = slow_times(records, items)
    if true is None:
        assert found is None
        return
    assert found is not None
    assert found.factor_cv() == 0.0
    assert found.preprocessing_cv() == pytest.approx(np.std([common[windows == w][0] for w in set(windows)]), rel=0.15)
    assert np.corrcoef(np.array(found.preprocessing)[windows], common)[0, 1] > 0.9
    own = EmpiricalJitter(kind="empirical", factors=tuple(np.random.default_rng(1).gamma(4.0, 0.25, 400).tolist()))
    left, felt = with_preprocessing({"image": own, "audio": None}, found)
    assert felt.preprocessing == pytest.approx(found.preprocessing, rel=0.01)
    both = (1 + found.preprocessing_cv() ** 2) * (1 + left["image"].factor_cv() ** 2) - 1
    assert both == pytest.approx(own.factor_cv() ** 2, rel=1e-6)
    assert left["audio"] is None
    assert with_preprocessing({"image": own}, None) == ({"image": own}, None)
    steady = EmpiricalJitter(kind="empirical", factors=(0.98, 1.02))
    left, felt = with_preprocessing({"image": own, "audio": steady}, found)
    assert felt.preprocessing_cv() == pytest.approx(0.02, rel=1e-6)
    assert left["audio"].factor_cv() == pytest.approx(0.0, abs=1e-6)
    both = (1 + 0.02**2) * (1 + left["image"].factor_cv() ** 2) - 1
    assert both == pytest.approx(own.factor_cv() ** 2, rel=1e-6)
    (said,) = slowness_note(found)
    assert said.startswith(f"preprocessing is slow for a while at times: by {100 * found.preprocessing_cv():.0f} % ")
    assert slow_times(records, items[:50]) is None


def test_narrowed_spread_keeps_its_mean() -> None:
    """Deviations of a measured spread are smaller, its mean is not; other kinds and none stay as they are."""
    own = EmpiricalJitter(kind="empirical", factors=(0.2, 0.4, 1.0, 1.7, 2.0))
    half = narrowed(own, 0.5)
    assert isinstance(half, EmpiricalJitter)
    assert half.factor_cv() == pytest.approx(0.5 * own.factor_cv())
    assert np.mean(half.factors) == pytest.approx(np.mean(own.factors))
    gamma = GammaJitter(kind="gamma", cv=0.3)
    assert narrowed(gamma, 0.5) is gamma
    assert narrowed(None, 0.5) is None
