"""The formulas and balancers that engines share compile as they stand (law 1, law 6)."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from preba import balancing
from sim import service

numba = pytest.importorskip("numba", reason="numba (a development dependency) is not installed")


def compiled(module: Any) -> dict[str, Any]:
    """Every function of a module, jitted unchanged."""
    from numba.extending import register_jitable

    functions = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    for function in functions:
        register_jitable(function)
    return {function.__name__: numba.njit(function) for function in functions}


@pytest.mark.slow
def test_compiled_service_formulas_give_the_same_integers() -> None:
    """Execution, preprocessing and release times are equal, to the nanosecond, interpreted and compiled."""
    jitted = compiled(service)
    rng = np.random.default_rng(3)
    for _ in range(500):
        table, busy, neighbours = int(rng.integers(1, 10**9)), int(rng.integers(0, 7)), int(rng.integers(0, 7))
        factor, ppm = float(rng.lognormal(0, 0.3)), int(rng.integers(0, 200_000))
        arguments = (table, factor, ppm, min(busy, neighbours), neighbours)
        assert jitted["execution_ns"](*arguments) == service.execution_ns(*arguments)
        shared = (int(rng.integers(0, 10**7)), table, factor)
        assert jitted["slice_preprocess_ns"](*shared) == service.slice_preprocess_ns(*shared)
        for backend in service.BACKEND_CODES.values():
            moment = (backend, table, table + 10**6, int(rng.integers(0, 2 * 10**6)))
            assert jitted["ready_ns"](*moment) == service.ready_ns(*moment)


@pytest.mark.slow
def test_compiled_balancers_choose_alike() -> None:
    """Every balancer chooses the same server, and remembers the same, interpreted and compiled."""
    jitted = compiled(balancing)
    rng = np.random.default_rng(4)
    for kind in balancing.BALANCER_CODES.values():
        memory, remembered = [-1, 0], np.array([-1, 0], dtype=np.int64)
        for _ in range(300):
            up, load = rng.integers(0, 2, 5), rng.integers(0, 9, 5)
            memory[1] = remembered[1] = up.sum()
            draws = (float(rng.random()), float(rng.random()))
            plain = balancing.choose_server(kind, up.tolist(), load.tolist(), memory, *draws)
            assert jitted["choose_server"](kind, up, load, remembered, *draws) == plain
            assert memory[0] == remembered[0]
