"""Balancers: each keeps its promise about which server it chooses, with servers out of service too."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.balancing import (
    BALANCER_CODES,
    LEAST_OUTSTANDING,
    POWER_OF_TWO,
    RANDOM,
    ROUND_ROBIN,
    choose_server,
    next_up,
    nth_up,
)
from preba.batching.state import NONE

LEVEL = 1e-4
"""Chance of turning down a balancer that is uniform."""

uniforms = st.floats(0.0, 1.0, exclude_max=True)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[int], list[int], int, float, float]:
    """Servers up, what is inside each, the last choice and two draws."""
    size = draw(st.integers(1, 8))
    up = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    load = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    return up, load, draw(st.integers(NONE, size - 1)), draw(uniforms), draw(uniforms)


def chi_square_limit(categories: int) -> float:
    """What chi-square exceeds with probability LEVEL, by Wilson and Hilferty's cube-root approximation."""
    degrees = categories - 1
    z = 3.719  # normal quantile at 1 - 1e-4
    return degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3


def chosen_counts(kind: int, up: list[int], load: list[int], *, count: int = 20_000) -> np.ndarray:
    draws = np.random.default_rng(5).random((count, 2)).tolist()
    memory = [NONE, sum(up)]
    return np.bincount([choose_server(kind, up, load, memory, *draw) for draw in draws], minlength=len(up))


@given(situation=situations(), kind=st.sampled_from(sorted(BALANCER_CODES.values())))
def test_balancer_chooses_a_server_in_service_and_remembers_it(
    situation: tuple[list[int], list[int], int, float, float], kind: int
) -> None:
    """Whatever the balancer, its choice is in service; with none in service it says so and remembers nothing."""
    up, load, last, first, second = situation
    memory = [last, sum(up)]
    chosen = choose_server(kind, up, load, memory, first, second)
    if sum(up) == 0:
        assert (chosen, memory) == (NONE, [last, 0])
    else:
        assert up[chosen] == 1
        assert memory == [chosen, sum(up)]


@given(situation=situations())
def test_round_robin_takes_the_next_in_service(situation: tuple[list[int], list[int], int, float, float]) -> None:
    """Round robin goes on from its last choice, skipping servers out of service, whatever their load."""
    up, load, last, first, second = situation
    size = len(up)
    alive = [(last + step) % size for step in range(1, size + 1) if up[(last + step) % size]]
    chosen = choose_server(ROUND_ROBIN, up, load, [last, sum(up)], first, second)
    assert chosen == (alive[0] if alive else NONE)


def test_round_robin_gives_everyone_the_same() -> None:
    """In any run of as many choices as there are servers each is chosen once."""
    memory = [NONE, 5]
    order = [choose_server(ROUND_ROBIN, [1] * 5, [0] * 5, memory, 0.5, 0.5) for _ in range(50)]
    assert order == [0, 1, 2, 3, 4] * 10


@given(situation=situations())
def test_least_outstanding_chooses_a_minimum(situation: tuple[list[int], list[int], int, float, float]) -> None:
    """No server in service has fewer requests inside; of equals it is the next after the last choice."""
    up, load, last, first, second = situation
    chosen = choose_server(LEAST_OUTSTANDING, up, load, [last, sum(up)], first, second)
    alive = [server for server in range(len(up)) if up[server]]
    if alive:
        fewest = min(load[server] for server in alive)
        equals = [server for server in alive if load[server] == fewest]
        assert chosen == min(equals, key=lambda server: (server - last - 1) % len(up))


@given(situation=situations())
def test_power_of_two_takes_the_shorter_of_two_different(
    situation: tuple[list[int], list[int], int, float, float],
) -> None:
    """The choice is the better of two different servers, so with two or more in service never the worst alone."""
    up, load, last, first, second = situation
    chosen = choose_server(POWER_OF_TWO, up, load, [last, sum(up)], first, second)
    alive = [server for server in range(len(up)) if up[server]]
    if len(alive) > 1:
        drawn = alive[int(first * len(alive))]
        others = [server for server in alive if server != drawn]
        other = others[int(second * len(others))]
        assert chosen == (other if load[other] < load[drawn] else drawn)


@pytest.mark.parametrize("kind", [RANDOM, POWER_OF_TWO])
@pytest.mark.parametrize("up", [[1] * 7, [1, 0, 1, 1, 0, 1, 1]])
def test_random_choice_is_uniform(kind: int, up: list[int]) -> None:
    """Among equally loaded servers in service every one is equally likely (chi-square at a level of 1e-4)."""
    counts = chosen_counts(kind, up, [3] * 7)
    alive = counts[np.array(up) == 1]
    expected = counts.sum() / len(alive)
    assert counts.sum() == alive.sum()
    assert float(np.sum((alive - expected) ** 2) / expected) < chi_square_limit(len(alive))


def test_power_of_two_chooses_by_rank() -> None:
    """With n servers of different load the k-th best wins 2(n - k) / (n(n - 1)) of the draws; the worst never."""
    counts = chosen_counts(POWER_OF_TWO, [1] * 5, [4, 3, 2, 1, 0])
    share = np.array([2 * (5 - rank) / 20 for rank in (5, 4, 3, 2, 1)])
    assert counts[0] == 0
    expected = counts.sum() * share[1:]
    assert float(np.sum((counts[1:] - expected) ** 2 / expected)) < chi_square_limit(4)


def test_uniformity_check_can_fail() -> None:
    """A balancer that never takes the last server is far outside the limit."""
    counts = chosen_counts(RANDOM, [1] * 6 + [0], [0] * 7)
    expected = counts.sum() / 7
    assert float(np.sum((counts - expected) ** 2) / expected) > chi_square_limit(7)


def test_servers_in_service_are_counted_and_cycled() -> None:
    """The helpers name servers in service only."""
    up = [0, 1, 0, 1]
    assert [nth_up(up, k) for k in range(3)] == [1, 3, NONE]
    assert [next_up(up, after) for after in range(-1, 4)] == [1, 1, 3, 3, 1]
    assert next_up([0, 0], 0) == NONE
