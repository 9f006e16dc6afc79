"""Promises of partitions and of the forms they may be written in."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preba.errors import PartitionError
from preba.mig.catalogue import Device, device_names, load_device
from preba.mig.geometry import Placed, conflicts, maximal_placements
from preba.mig.placement import Partition, resolve_partition

A100 = load_device("A100-40GB")
DEVICES = [load_device(name) for name in device_names()]
WHERE = "scenario.gpus[0].partition"

MAXIMAL = {device.name: maximal_placements(device, device.plain_profiles(double_memory=True)) for device in DEVICES}


def labels(spec: object, device: Device = A100) -> list[str]:
    """Placements a spec resolves to."""
    return [each.label for each in resolve_partition(device, spec, where=WHERE).slices]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("7x1g.5gb", [f"1g.5gb@{start}" for start in range(7)]),
        ("7 x 1g.5gb", [f"1g.5gb@{start}" for start in range(7)]),
        ({"1g.5gb": 7}, [f"1g.5gb@{start}" for start in range(7)]),
        (["1g.5gb"] * 7, [f"1g.5gb@{start}" for start in range(7)]),
        ("4g.20gb+3g.20gb", ["4g.20gb@0", "3g.20gb@4"]),
        ("3g.20gb, 4g.20gb", ["4g.20gb@0", "3g.20gb@4"]),
        ("4g 3g", ["4g.20gb@0", "3g.20gb@4"]),
        ("1g.5gb+me+2g.10gb", ["2g.10gb@4", "1g.5gb+me@6"]),
        ("2g.10gb+1g.5gb+me", ["2g.10gb@4", "1g.5gb+me@6"]),
        (["3g.20gb@4", "1g.5gb@0"], ["1g.5gb@0", "3g.20gb@4"]),
        ("3g.20gb@0+3g.20gb", ["3g.20gb@0", "3g.20gb@4"]),
        (("3g.20gb@4", "2x1g.5gb"), ["1g.5gb@0", "1g.5gb@1", "3g.20gb@4"]),
        ("7g.40gb", ["7g.40gb@0"]),
    ],
)
def test_partition_form_is_understood(spec: object, expected: list[str]) -> None:
    """Counts, sums, lists, mappings and explicit placements all resolve to the slices they say."""
    assert labels(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("3g.20gb@4,2g.10gb@4", "3g.20gb@4 overlaps 2g.10gb@4: both need memory slices 4-5"),
        ("4g.20gb@0,1g.5gb@3", "4g.20gb@0 overlaps 1g.5gb@3: both need memory slice 3"),
        ("2g.10gb@1", "2g.10gb@1 cannot start there; 2g.10gb starts at 0, 2, 4"),
        ("4g.20gb@4", "4g.20gb starts at 0"),
        ("4g+4g", "2 of 4g.20gb, at most 1 fit"),
        ("4x2g", "2+2+2+2 = 8 compute slices, A100-40GB has 7"),
        ("3g+3g+1g.10gb", "4+4+2 = 10 memory slices, A100-40GB has 8"),
        ("2x1g.5gb+me", "only one slice can have the media extensions"),
        ("3g@0,2g,1g.5gb,1g.5gb", "beside 3g.20gb@0, 2g.10gb@4, 1g.5gb@6 there is no room for 1g.5gb"),
        ("3g@0,2g,1g.5gb,1g.5gb", "start 0, 1, 2, 3: 3g.20gb@0; start 4, 5: 2g.10gb@4; start 6: 1g.5gb@6"),
        ("2g.11gb", "has no profile '2g.11gb'; did you mean '2g.10gb'?"),
        ("1g", "could be 1g.5gb or 1g.10gb"),
        ("7x1g.5gb+", "a slice is missing in '7x1g.5gb+'"),
        ("7y1g.5gb", "cannot read '7y1g.5gb'"),
        ("0x1g.5gb", "the count must be >= 1"),
        ("2x2g@0", "2 slices cannot all start at 0"),
        ("", "no slices; write for example"),
        ({}, "no slices"),
        ({"1g.5gb": 0}, ".1g.5gb: must be a whole number >= 1, got 0"),
        ({"1g.5gb": True}, "must be a whole number >= 1, got True"),
        ({"1g.5gb": 2.5}, "must be a whole number >= 1, got 2.5"),
        ({"9g.90gb": 1}, ".9g.90gb: A100-40GB has no profile '9g.90gb'"),
        (["1g.5gb", 3], "[1]: must be text like 1g.5gb@0, got 3"),
    ],
)
def test_partition_that_cannot_be_says_why(spec: object, message: str) -> None:
    """Every refusal begins with the field path and names what clashes or cannot be read."""
    with pytest.raises(PartitionError) as caught:
        labels(spec)
    assert str(caught.value).startswith(WHERE)
    assert message in str(caught.value)


def test_partition_for_a_device_without_known_placements_is_refused() -> None:
    """Where no source tells the placements, the way to find them is named instead of guessing."""
    blind = A100.model_copy(
        update={"profiles": tuple(p.model_copy(update={"starts": None, "size": None}) for p in A100.profiles)}
    )
    with pytest.raises(PartitionError, match="-lgipp"):
        resolve_partition(blind, "1g.5gb", where=WHERE)


def test_partition_built_by_hand_is_checked_too() -> None:
    """A Partition cannot be constructed around clashing placements."""
    with pytest.raises(PartitionError, match="overlaps"):
        Partition(A100, (Placed(A100.profile("3g", where="t"), 0), Placed(A100.profile("4g", where="t"), 0)))


def test_slice_tells_its_engines_memory_and_sms() -> None:
    """A slice carries the facts of its profile; on an A100 only the +me slice can decode JPEG in hardware."""
    first, second = resolve_partition(A100, "2g@4,1g.5gb+me@0", where=WHERE).slices
    assert (first.profile, first.sms, first.memory_mib, first.jpeg_engines, first.gpcs) == (
        "1g.5gb+me",
        14,
        4864,
        1,
        1,
    )
    assert (second.profile, second.sms, second.decoders, second.jpeg_engines) == ("2g.10gb", 28, 1, 0)
    assert first.resource_name == "nvidia.com/mig-1g.5gb.me"
    h100 = resolve_partition(load_device("H100-SXM5-80GB"), "3g+2g+1g.10gb+1g.10gb", where=WHERE)
    assert sorted(each.jpeg_engines or 0 for each in h100.slices) == [1, 1, 2, 3]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), device=st.sampled_from(DEVICES))
def test_partition_of_any_legal_set_resolves_from_every_form(data: st.DataObject, device: Device) -> None:
    """Any part of any legal set resolves from counts, sum and placements, and comes out legal and complete."""
    whole = data.draw(st.sampled_from(MAXIMAL[device.name]))
    part = data.draw(st.lists(st.sampled_from(whole), min_size=1, unique=True))
    counts = Counter(each.profile.name for each in part)
    explicit = resolve_partition(device, [each.label for each in part], where=WHERE)
    assert {each.label for each in explicit.slices} == {each.label for each in part}
    by_counts = resolve_partition(device, dict(counts), where=WHERE)
    by_sum = resolve_partition(device, "+".join(each.profile.name for each in part), where=WHERE)
    by_name = resolve_partition(device, by_counts.name, where=WHERE)
    assert by_counts == by_sum == by_name
    assert by_counts.counts == dict(counts)
    assert not conflicts(device, by_counts.placed)
    assert [each.start for each in by_counts.slices] == sorted(each.start for each in by_counts.slices)
