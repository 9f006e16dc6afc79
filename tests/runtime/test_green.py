"""Cutting a GPU into shares of multiprocessors, against a stand-in for the CUDA driver that keeps count."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import runtime.triton.models as models

GREEN = Path(str(models.__file__)).with_name("green.py")


@pytest.fixture(scope="module")
def green() -> Any:
    """The file as the Python backend imports it: from where it was copied to."""
    spec = importlib.util.spec_from_file_location("green_for_tests", GREEN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["green_for_tests"] = module
    spec.loader.exec_module(module)
    return module


class Driver:
    """A GPU of so many multiprocessors whose groups come in multiples of ``granularity``."""

    def __init__(self, multiprocessors: int, granularity: int = 8, *, fails: str = "") -> None:
        self.multiprocessors = multiprocessors
        self.granularity = granularity
        self.fails = fails
        self.calls: list[str] = []
        self.described: list[int] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.fails:
                return 999
            action = getattr(type(self), f"_{name}", None)
            return 0 if action is None else int(action(self, *arguments))

        return call

    def _cuDeviceGetDevResource(self, _: Any, resource: Any, kind: int) -> int:  # noqa: N802 - the driver's name
        assert kind == 1
        resource._obj.sm_count = self.multiprocessors
        return 0

    def _cuDevSmResourceSplitByCount(  # noqa: N802 - the driver's name
        self, groups: Any, found: Any, whole: Any, rest: Any, flags: int, least: int
    ) -> int:
        assert flags == 0
        size = -(-least // self.granularity) * self.granularity
        found._obj.value = min(found._obj.value, whole._obj.sm_count // size)
        for place in range(found._obj.value):
            groups[place].sm_count = size
            groups[place].inside[0] = place
        rest._obj.sm_count = whole._obj.sm_count - size * found._obj.value
        return 0

    def _cuDevResourceGenerateDesc(self, _: Any, mine: Any, count: int) -> int:  # noqa: N802 - the driver's name
        self.described = [mine[place].inside[0] for place in range(count)]
        return 0

    def _cuGreenCtxStreamCreate(self, stream: Any, *_: Any) -> int:  # noqa: N802 - the driver's name
        stream._obj.value = 4242
        return 0


def test_shares_are_disjoint_and_add_up(green: Any) -> None:
    """Seven slices of one part each get seven different groups; a slice of three parts gets three of them."""
    assert ctypes.sizeof(green.Resource) == 144  # what the driver copies
    taken = []
    for first in range(7):
        driver = Driver(132)
        assert green.partition(driver, 0, 7, first, 1) == (4242, 16)
        taken += driver.described
    assert taken == list(range(7))
    driver = Driver(132)
    assert green.partition(driver, 0, 7, 2, 3) == (4242, 48)
    assert driver.described == [2, 3, 4]
    assert driver.calls[0] == "cuInit"


def test_a_refusal_of_the_driver_is_named(green: Any) -> None:
    """Which call failed and with which error is in the message; too small a GPU is told so."""
    with pytest.raises(green.DriverError, match="cuGreenCtxCreate failed with CUDA error 999"):
        green.partition(Driver(132, fails="cuGreenCtxCreate"), 0, 7, 0, 1)
    with pytest.raises(green.DriverError, match="4 multiprocessors cannot be cut into 7 parts"):
        green.partition(Driver(4, granularity=2), 0, 7, 0, 1)
