"""Promises of reading nvidia-smi's MIG listings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.errors import FormatError
from preba.mig.catalogue import device_names, load_device
from preba.mig.placement import resolve_partition
from preba.mig.smi import (
    closest_device,
    differences,
    mib_from_printed_gib,
    parse_lgip,
    parse_lgipp,
    read_listing,
)

CATALOGUE = [load_device(name) for name in device_names()]


@pytest.mark.parametrize(
    ("file", "name", "gpus"),
    [
        ("a30-driver-535.txt", "A30-24GB", [0]),
        ("h100-nvl-two-gpus.txt", "H100-NVL-94GB", [0, 1]),
        ("rtx-pro-6000-driver-610.txt", "RTX-PRO-6000-96GB", [0]),
    ],
)
def test_listing_agrees_with_the_catalogue(listings: Path, file: str, name: str, gpus: list[int]) -> None:
    """Narrow and wide tables with +me, +gfx, +me.all and -me are read whole and match the catalogue's figures."""
    found = read_listing((listings / file).read_text(encoding="utf-8"), origin=file)
    assert list(found) == gpus
    for device in found.values():
        known = closest_device(device, CATALOGUE)
        assert known is not None
        assert known.name == name
        assert differences(device, known) == ()
        assert device.placements == "measured"
        assert device.memory_slices == known.memory_slices


def test_listing_with_joined_lines_is_read_and_its_differences_named(listings: Path) -> None:
    """A table of 2020 whose lines were joined by copying is read; other memory and missing profiles are reported."""
    text = (listings / "a100-2020-joined-lines.txt").read_text(encoding="utf-8")
    device = read_listing(text, origin="x")[0]
    assert [profile.name for profile in device.profiles] == [
        "1g.5gb",
        "2g.10gb",
        "3g.20gb",
        "4g.20gb",
        "7g.40gb",
    ]
    known = closest_device(device, CATALOGUE)
    assert known is not None
    assert known.name == "A100-40GB"
    said = [str(difference) for difference in differences(device, known)]
    assert "1g.5gb: memory_mib 5069 here, 4864 in the catalogue" in said
    assert "1g.10gb: only in the catalogue" in said
    assert {d.field for d in differences(device, known)} == {"memory_mib", "profile"}


def test_listing_without_placements_plans_nothing_but_with_them_it_does(listings: Path) -> None:
    """-lgip and -lgipp together make a device that can be partitioned; without -lgipp placements stay unknown."""
    text = (listings / "a30-driver-535.txt").read_text(encoding="utf-8")
    whole = read_listing(text, origin="x")[0]
    assert resolve_partition(whole, "2g+1g.6gb+1g.6gb", where="t").name == "2g.12gb+2x1g.6gb"
    bare = read_listing(text[text.index("$ nvidia-smi mig -lgip\n") :], origin="x")[0]
    assert bare.placements == "unknown"
    assert {profile.starts for profile in bare.profiles} == {None}


def test_placements_are_read_alone(listings: Path) -> None:
    """-lgipp output by itself gives starts and size per profile id, in singular and plural."""
    text = (listings / "h100-nvl-two-gpus.txt").read_text(encoding="utf-8")
    found = parse_lgipp(text, origin="x")
    assert found[1][15] == ((0, 2, 4, 6), 2)
    assert found[0][0] == ((0,), 8)


def test_listing_with_other_figures_reports_each(listings: Path) -> None:
    """Every figure that differs from the catalogue is named with both values."""
    text = (listings / "a30-driver-535.txt").read_text(encoding="utf-8")
    text = text.replace("{0,2}:2", "{0}:2", 1).replace("28     2     0", "30     2     0", 1)
    device = read_listing(text, origin="x")[0]
    known = load_device("A30")
    assert [str(d) for d in differences(device, known)] == [
        "2g.12gb: sms 30 here, 28 in the catalogue",
        "2g.12gb: starts (0,) here, (0, 2) in the catalogue",
    ]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("GPU instance profiles", "GPU instances", "no table of GPU instance profiles"),
        ("CE    JPEG  OFA", "JPEG  CE    OFA", "columns are not the known ones"),
        (
            f"|{' ' * 61}2     1     1   |\n",
            "",
            "MIG 2g.12gb+me: the line with CE",
        ),
        ("4/4        5.81", "4-4        5.81", "5 profile rows, 4 of them readable"),
        ("MIG 1g.6gb+me ", "MIG 1g6gb     ", "MIG 1g6gb: not a profile name"),
        (
            "Profile ID 21 Placements",
            "Profile ID 22 Placements",
            "placements of profile ID 22",
        ),
        ("Profile ID 21 Placements: {0,1,2,3}:1", "Profile ID 21 Placements: 0,1,2,3:1", "cannot read"),
    ],
)
def test_listing_that_is_damaged_is_refused(listings: Path, before: str, after: str, message: str) -> None:
    """A damaged listing is one clear error, never a device with rows missing."""
    text = (listings / "a30-driver-535.txt").read_text(encoding="utf-8")
    assert before in text
    with pytest.raises(FormatError) as caught:
        read_listing(text.replace(before, after, 1), origin="file.txt")
    assert str(caught.value).startswith("file.txt: ")
    assert message in str(caught.value)


def test_listing_of_nothing_is_refused() -> None:
    """Empty text is no listing, of either kind."""
    with pytest.raises(FormatError, match="-lgip`"):
        parse_lgip("", origin="x")
    with pytest.raises(FormatError, match="-lgipp`"):
        parse_lgipp("", origin="x")


def test_listing_of_an_unknown_gpu_has_no_closest_device(listings: Path) -> None:
    """A GPU none of whose profiles is in the catalogue matches nothing."""
    text = (listings / "a30-driver-535.txt").read_text(encoding="utf-8").replace("gb", "99gb")
    assert closest_device(read_listing(text, origin="x")[0], CATALOGUE) is None


@given(steps=st.integers(min_value=1, max_value=5000))
def test_memory_printed_with_two_decimals_is_restored(steps: int) -> None:
    """Any multiple of 64 MiB printed as GiB with two decimals comes back exactly."""
    assert mib_from_printed_gib(f"{steps * 64 / 1024:.2f}") == steps * 64
