"""Partitions: slices at their places on one GPU, from whatever form a user wrote them in; rules live in geometry.py."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preba.errors import PartitionError
from preba.mig.catalogue import Device, SliceProfile
from preba.mig.geometry import Placed, additions, conflicts, driver_replay, over_capacity, solve, starts_of

__all__ = ["Partition", "Slice", "partition_items", "resolve_partition"]

ITEM = re.compile(
    r"(?:(?P<count>\d+)[x×*])?"
    r"(?P<profile>(?:nvidia\.com/)?(?:mig-)?\d+g(?:\.\d+gb)?(?:[+.-][a-z]+)*)"
    r"(?:@(?P<start>\d+))?",
    re.IGNORECASE,
)
SEPARATOR = re.compile(r"[,;]|\s+|\+(?=\d|mig-|nvidia|$|\+)", re.IGNORECASE)


@dataclass(frozen=True)
class Slice:
    """One MIG slice of a partition: a profile at a place, with what it holds (``None``: no source tells).

    ``start`` and ``size`` are steps of the memory axis; ``gpcs`` is the g of its name.
    """

    profile: str
    profile_id: int | None
    start: int
    size: int
    gpcs: int
    sms: int | None
    memory_mib: int | None
    copy_engines: int | None
    decoders: int | None
    jpeg_engines: int | None
    ofa_engines: int | None
    encoders: int | None
    resource_name: str

    @property
    def label(self) -> str:
        """``3g.20gb@4``."""
        return f"{self.profile}@{self.start}"


@dataclass(frozen=True)
class Partition:
    """A legal set of slices on one GPU, sorted by their place on the memory axis."""

    device: Device
    placed: tuple[Placed, ...]

    def __post_init__(self) -> None:
        """Refuse what the GPU does not allow.

        Raises
        ------
        PartitionError
            Naming the placements that clash.
        """
        broken = conflicts(self.device, self.placed)
        if broken:
            raise PartitionError(f"partition of {self.device.name}: {'; '.join(broken)}")
        ordered = tuple(sorted(self.placed, key=lambda each: each.start))
        object.__setattr__(self, "placed", ordered)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The slices with their facts, sorted by start."""
        return tuple(
            Slice(
                profile=each.profile.name,
                profile_id=each.profile.profile_id,
                start=each.start,
                size=each.size,
                gpcs=each.profile.g,
                sms=each.profile.sms,
                memory_mib=each.profile.memory_mib,
                copy_engines=each.profile.copy_engines,
                decoders=each.profile.decoders,
                jpeg_engines=each.profile.jpeg_engines,
                ofa_engines=each.profile.ofa_engines,
                encoders=each.profile.encoders,
                resource_name=each.profile.resource_name,
            )
            for each in self.placed
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many of each profile, largest first: what mig-parted calls ``mig-devices``."""
        number = Counter(each.profile.name for each in self.placed)
        return {p.name: number[p.name] for p in _largest_first(self.placed) if p.name in number}

    @property
    def name(self) -> str:
        """``4g.20gb+2g.10gb+1g.5gb``, ``7x1g.5gb``."""
        return "+".join(f"{n}x{name}" if n > 1 else name for name, n in self.counts.items())


def _largest_first(placed: Sequence[Placed]) -> tuple[SliceProfile, ...]:
    unique = dict.fromkeys(each.profile for each in placed)
    return tuple(sorted(unique, key=lambda p: (-p.g, -(p.size or 0), p.name)))


def resolve_partition(device: Device, spec: str | Mapping[str, int] | Sequence[str], *, where: str) -> Partition:
    """Turn any form of a partition into legal placements.

    Parameters
    ----------
    device : Device
    spec : str, mapping or sequence of str
        ``"7x1g.5gb"``; ``"4g.20gb+2g.10gb+1g.5gb"`` (``+``, ``,`` or blank between); ``{"3g.20gb": 2}``;
        ``["3g.20gb@4", "1g.5gb@0"]``. ``@4`` fixes the first memory slice; where it is missing, a place is
        searched for. Profiles may be named as `Device.profile` accepts.
    where : str
        Field path; the text of every error begins with it.

    Returns
    -------
    Partition

    Raises
    ------
    PartitionError
        When a profile is unknown, a count is not positive, or no legal placement exists; the message names the
        placements that clash, or the slice for which no room is left and what stands in its way.
    """
    key = spec if isinstance(spec, str) else tuple(spec.items()) if isinstance(spec, Mapping) else tuple(spec)
    return _resolved(device, key, where)


@functools.lru_cache(maxsize=64)  # sweeps ask for the same partition thousands of times
def _resolved(device: Device, key: str | tuple[tuple[str, int], ...] | tuple[str, ...], where: str) -> Partition:
    spec: Any = key
    if not isinstance(key, str) and any(isinstance(part, tuple) for part in key):
        spec = dict(key)  # type: ignore[arg-type]  # pairs, by construction
    items = partition_items(device, spec, where=where)
    fixed = tuple(Placed(profile, start) for profile, start in items if start is not None)
    free = [profile for profile, start in items if start is None]
    broken = conflicts(device, fixed) or over_capacity(device, [profile for profile, _ in items])
    if broken:
        raise PartitionError(f"{where}: {_text(spec)} does not fit {device.name}: {'; '.join(broken)}")
    answer = _as_a_driver_would(device, fixed, free) or solve(device, fixed, free)
    if answer is None:
        raise PartitionError(f"{where}: {_text(spec)} does not fit {device.name}: {_no_room(device, fixed, free)}")
    return Partition(device, answer)


def _as_a_driver_would(
    device: Device, fixed: Sequence[Placed], free: Sequence[SliceProfile]
) -> tuple[Placed, ...] | None:
    """Place as a driver does that is told no starts, larger slices first, unless that leaves less open."""
    best = None if fixed else solve(device, (), free)
    natural = driver_replay(device, sorted(free, key=lambda p: (-(p.size or 0), -p.g, p.name))) if best else None
    if best is None or natural is None:
        return None
    as_good = len(additions(device, natural, device.profiles)) == len(additions(device, best, device.profiles))
    return natural if as_good else None


def _text(spec: str | Mapping[str, int] | Sequence[str]) -> str:
    if isinstance(spec, str):
        return repr(spec)
    if isinstance(spec, Mapping):
        return "{" + ", ".join(f"{name}: {count}" for name, count in spec.items()) + "}"
    return "[" + ", ".join(spec) + "]"


def partition_items(
    device: Device, spec: str | Mapping[str, int] | Sequence[str], *, where: str
) -> list[tuple[SliceProfile, int | None]]:
    """Flatten a spec, as `resolve_partition` takes it, into one (profile, start or ``None``) per slice.

    Raises
    ------
    PartitionError
        When it cannot be read; whether it fits is not looked at.
    """
    items: list[tuple[SliceProfile, int | None]] = []
    if isinstance(spec, Mapping):
        for name, count in spec.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise PartitionError(f"{where}.{name}: must be a whole number >= 1, got {count!r}")
            items += [(device.profile(name, where=f"{where}.{name}"), None)] * count
    elif isinstance(spec, str):
        items += _parsed(device, spec, where=where)
    else:
        for index, text in enumerate(spec):
            if not isinstance(text, str):
                raise PartitionError(f"{where}[{index}]: must be text like 1g.5gb@0, got {text!r}")
            items += _parsed(device, text, where=f"{where}[{index}]")
    if not items:
        raise PartitionError(f"{where}: no slices; write for example 7x{device.profiles[0].name}")
    return items


def _parsed(device: Device, text: str, *, where: str) -> list[tuple[SliceProfile, int | None]]:
    """Read ``4g.20gb+2x1g.5gb@0``-like text; ``+`` separates only where no attribute (``+me``) follows."""
    if not text.strip():
        return []
    items: list[tuple[SliceProfile, int | None]] = []
    tight = re.sub(r"\s*([x×*@+,;])\s*", r"\1", text.strip())
    for part in SEPARATOR.split(tight):
        match = ITEM.fullmatch(part)
        if match is None:
            what = f"cannot read {part!r} in {text!r}" if part else f"a slice is missing in {text!r}"
            raise PartitionError(f"{where}: {what}; write 7x1g.5gb, 4g.20gb+2g.10gb or 3g.20gb@4")
        profile = device.profile(match["profile"], where=where)
        count = int(match["count"]) if match["count"] else 1
        start = int(match["start"]) if match["start"] else None
        if count < 1:
            raise PartitionError(f"{where}: {part!r}: the count must be >= 1")
        if start is not None and count > 1:
            raise PartitionError(f"{where}: {part!r}: {count} slices cannot all start at {start}")
        items += [(profile, start)] * count
    return items


def _no_room(device: Device, fixed: Sequence[Placed], free: Sequence[SliceProfile]) -> str:
    """Say which slice finds no room once the larger ones stand, and what stands in its way."""
    waiting = sorted(free, key=lambda profile: (-(profile.size or 0), -profile.g, profile.name))
    standing = tuple(sorted(fixed, key=lambda each: each.start))
    for index, profile in enumerate(waiting):
        more = solve(device, fixed, waiting[: index + 1])
        if more is not None:
            standing = more
            continue
        taken: dict[str, list[int]] = {}
        for start in starts_of(device, profile):
            clash = [each.label for each in standing if Placed(profile, start).overlaps(each)]
            taken.setdefault(" and ".join(clash) or "nothing, but a limit is reached", []).append(start)
        labels = ", ".join(each.label for each in standing)
        ways = "; ".join(f"start {', '.join(map(str, starts))}: {who}" for who, starts in taken.items())
        return f"beside {labels} there is no room for {profile.name} (in the way at {ways})"
    return "no legal placement exists"
