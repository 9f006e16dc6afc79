"""Pinning: preprocessing has cores of its own, and everything else of the server keeps off them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from preba.errors import ScenarioError
from runtime.cores import bound_to, split_cores
from runtime.placement import other_cores


def test_workers_have_the_last_cores_and_the_rest_of_the_server_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those this process may use; one at least is left over, or that is an error."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 7})
    assert split_cores(1) == ((7,), (0, 2, 3))
    assert split_cores(3) == ((2, 3, 7), (0,))
    with pytest.raises(ScenarioError, match="4 workers need 5 cores"):
        split_cores(4)


def test_all_threads_are_bound_and_let_go_again() -> None:
    """Inside the block on one core, after it where they were before; no cores leave everything as it is."""
    before = os.sched_getaffinity(0)
    core = min(before)
    with bound_to({core}):
        threads = [int(each.name) for each in Path("/proc/self/task").iterdir()]
        assert {tuple(os.sched_getaffinity(thread)) for thread in threads} == {(core,)}
    assert os.sched_getaffinity(0) == before
    with bound_to(()):
        assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be split")
def test_only_preprocessing_that_is_pinned_takes_cores_away(toy: Any) -> None:
    """Without `pin`, and without preprocessing in front of the slices, everything may run anywhere."""
    model = toy.model(toy.profile({"1g": {"1": 10}}), {"kind": "poisson", "rate_rps": 10})
    data = toy.scenario([model], partition="7x1g.5gb", requests=10, preprocessing=toy.cpu(1, 1000.0))
    assert other_cores(toy.resolve(data)) == ()
    pinned = {"live": {"preprocessing": {"workers": 1, "pin": True}}}
    assert other_cores(toy.resolve({**data, **pinned})) == split_cores(1)[1]
    assert other_cores(toy.resolve({**data, **pinned, "preprocessing": {"kind": "none"}})) == ()
