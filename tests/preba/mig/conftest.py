"""A stateful stand-in for a driver that obeys ``nvidia-smi`` command lines, written apart from preba's own rules."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from preba.mig.catalogue import Device

LISTINGS = Path(__file__).parent / "listings"


class SimulatedDriver:
    """Keeps which memory slice belongs to whom; refuses what a driver refuses.

    Told no start, it takes the one after which most (profile, start) pairs stay free, as real drivers were seen to
    do, counted here on the occupancy itself.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.enabled = False
        self.owner: list[str | None] = [None] * (device.memory_slices or 0)
        self.instances: list[tuple[str, int]] = []
        self.with_compute = False

    def run(self, command: str) -> None:
        words = command.removeprefix("sudo ").split()
        assert words[0] == "nvidia-smi"
        if "-mig" in words:
            assert not self.instances, "MIG mode cannot change while instances exist"
            self.enabled = words[words.index("-mig") + 1] == "1"
        elif "-cgi" in words:
            assert self.enabled, "MIG mode is off"
            assert "-C" in words, "instances without compute instances run nothing"
            for wanted in words[words.index("-cgi") + 1].split(","):
                self._create(wanted)
            self.with_compute = True
        elif "-dci" in words:
            self.with_compute = False
        elif "-dgi" in words:
            assert not self.with_compute, "in use by another client"
            self.instances.clear()
            self.owner = [None] * len(self.owner)
        else:
            assert "-lgi" in words

    def _create(self, wanted: str) -> None:
        selector, _, start_text = wanted.partition(":")
        (profile,) = [p for p in self.device.profiles if selector in {str(p.profile_id), p.name}]
        starts = self._starts(profile.name)
        assert starts, f"insufficient resources for {wanted}"
        start = int(start_text) if start_text else max(starts, key=lambda s: (self._open_after(profile.name, s), -s))
        assert start in starts, f"{wanted} cannot be placed"
        self._hold(profile.name, start)

    def _hold(self, name: str, start: int) -> None:
        size = self._profile(name).size or 0
        for step in range(start, start + size):
            assert self.owner[step] is None
            self.owner[step] = name
        self.instances.append((name, start))

    def _profile(self, name: str):  # noqa: ANN202 - a test's helper
        return next(p for p in self.device.profiles if p.name == name)

    def _starts(self, name: str) -> list[int]:
        profile = self._profile(name)
        mine = [self._profile(other) for other, _ in self.instances]
        if sum(p.g for p in mine) + profile.g > self.device.compute_slices:
            return []
        if sum(p.name == name for p in mine) >= profile.instances_max:
            return []
        extended = "+me" in name
        if extended and any("+me" in p.name for p in mine):
            return []
        whole = next(
            p
            for p in self.device.profiles
            if re.fullmatch(r"\d+g\.\d+gb", p.name) and p.g == self.device.compute_slices
        )
        for engine in ("decoders", "jpeg_engines", "ofa_engines", "encoders"):
            total = getattr(whole, engine)
            held = sum(getattr(p, engine) or 0 for p in mine) + (getattr(profile, engine) or 0)
            if total is not None and held > total:
                return []
        size = profile.size or 0
        return [s for s in profile.starts or () if not any(self.owner[s : s + size])]

    def _open_after(self, name: str, start: int) -> int:
        later = SimulatedDriver(self.device)
        later.owner = list(self.owner)
        later.instances = list(self.instances)
        later._hold(name, start)
        return sum(len(later._starts(p.name)) for p in self.device.profiles)


@pytest.fixture
def driver_of() -> Callable[[Device], SimulatedDriver]:
    """Makes a driver with MIG mode off and nothing created."""
    return SimulatedDriver


@pytest.fixture
def listings() -> Path:
    """Folder of nvidia-smi listings; the first line of each says where its figures come from."""
    return LISTINGS
