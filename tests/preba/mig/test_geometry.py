"""Promises of the placement rules and of the search over them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preba.mig.catalogue import Device, device_names, load_device
from preba.mig.geometry import (
    Placed,
    additions,
    admits,
    conflicts,
    driver_replay,
    geometries,
    maximal_placements,
    solve,
)

A100 = load_device("A100-40GB")
A30 = load_device("A30")
RTX = load_device("RTX-PRO-6000")

SEVEN_SLICE = [name for name in device_names() if load_device(name).compute_slices == 7]


def named(device: Device, *names: str) -> list:
    """Profiles by name."""
    return [device.profile(name, where="test") for name in names]


@pytest.mark.parametrize("name", SEVEN_SLICE)
def test_seven_slice_gpu_has_19_maximal_placements_and_14_geometries(name: str) -> None:
    """1g, 2g, 3g, 4g and 7g make 19 maximal placements and 14 geometries; with the double-memory 1g 78 and 38."""
    device = load_device(name)
    plain, double = device.plain_profiles(), device.plain_profiles(double_memory=True)
    assert [profile.g for profile in plain] == [1, 2, 3, 4, 7]
    assert (len(maximal_placements(device, plain)), len(geometries(device, plain))) == (19, 14)
    assert (len(maximal_placements(device, double)), len(geometries(device, double))) == (78, 38)


def test_a30_has_5_maximal_placements_and_4_geometries() -> None:
    """The A30 can be cut in 4; 2+2; 2+1+1; 1+1+1+1, the third in two places."""
    plain = A30.plain_profiles()
    assert len(maximal_placements(A30, plain)) == 5
    sizes = [tuple(int(name[0]) for name in names) for names in geometries(A30, plain)]
    assert sizes == [(4,), (2, 2), (2, 1, 1), (1, 1, 1, 1)]


def test_a100_geometries_are_those_of_the_user_guide() -> None:
    """The fourteen multisets are the guide's: six left halves times three right halves, and the whole."""
    left = [(4,), (3,), (2, 2), (2, 1, 1), (1, 1, 1, 1)]
    right = [(3,), (2, 1), (1, 1, 1)]
    expected = {tuple(sorted(a + b, reverse=True)) for a in left for b in right} | {(7,)}
    found = {tuple(int(name[0]) for name in names) for names in geometries(A100, A100.plain_profiles())}
    assert found == expected
    assert len(found) == 14


def _brute_force(device: Device, profiles: list) -> set[frozenset[tuple[str, int]]]:
    """All maximal legal sets by trying every subset of spots: no cleverness to share a fault with."""
    spots = [Placed(p, s) for p in profiles for s in p.starts]
    legal = set()
    for size in range(1, device.compute_slices + 1):
        for chosen in itertools.combinations(spots, size):
            steps = [step for each in chosen for step in range(each.start, each.start + each.profile.size)]
            within_max = all(sum(c.profile == p for c in chosen) <= p.instances_max for p in profiles)
            if (
                len(steps) == len(set(steps))
                and sum(c.profile.g for c in chosen) <= device.compute_slices
                and within_max
            ):
                legal.add(frozenset((c.profile.name, c.start) for c in chosen))
    return {one for one in legal if not any(one < other for other in legal)}


def test_maximal_placements_agree_with_trying_every_subset() -> None:
    """The search finds exactly the maximal sets that brute force over all subsets of the A100's spots finds."""
    plain = list(A100.plain_profiles())
    found = {frozenset((e.profile.name, e.start) for e in placed) for placed in maximal_placements(A100, plain)}
    assert found == _brute_force(A100, plain)


def _altered(device: Device, name: str, **changes: object) -> Device:
    """A device none sells, on which one rule has to hold without help from the others."""
    profiles = tuple(profile.model_copy(update=changes) for profile in device.profiles)
    return device.model_copy(update={"name": name, "profiles": profiles})


ONE_OF_EACH = _altered(A100, "one of each", instances_max=1)
NO_ENGINES_KNOWN = _altered(
    A30,
    "no engines known",
    decoders=None,
    jpeg_engines=None,
    ofa_engines=None,
    encoders=None,
    instances_max=4,
)
ALL = [A100, A30, RTX, ONE_OF_EACH, NO_ENGINES_KNOWN]

SPOTS = {device.name: [Placed(p, s) for p in device.profiles for s in p.starts or ()] for device in ALL}


@settings(max_examples=200, deadline=None)
@given(data=st.data(), device=st.sampled_from(ALL))
def test_admits_and_conflicts_agree(data: st.DataObject, device: Device) -> None:
    """A slice is admitted beside a legal set exactly when the set with it breaks no rule."""
    spots = data.draw(st.lists(st.sampled_from(SPOTS[device.name]), max_size=12))
    placed: tuple[Placed, ...] = ()
    for spot in spots:
        legal = not conflicts(device, (*placed, spot))
        assert admits(device, placed, spot) == legal
        if legal:
            placed = (*placed, spot)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), device=st.sampled_from([A100, A30, RTX]))
def test_solve_finds_a_way_whenever_there_is_one(data: st.DataObject, device: Device) -> None:
    """Slices taken out of a legal set can always be placed again, beside any of them left where they were."""
    every = data.draw(st.sampled_from(maximal_placements(device, device.plain_profiles(double_memory=True))))
    kept = data.draw(st.lists(st.sampled_from(every), unique=True))
    free = [each.profile for each in every if each not in kept]
    found = solve(device, kept, free)
    assert found is not None
    assert not conflicts(device, found)
    assert set(kept) <= set(found)
    assert sorted(e.profile.name for e in found) == sorted(e.profile.name for e in every)


def test_solve_keeps_the_right_half_for_a_lone_3g() -> None:
    """A 3g goes where it strands no compute slice."""
    found = solve(A100, (), named(A100, "3g"))
    assert found is not None
    assert [each.start for each in found] == [4]


def test_solve_finds_nothing_where_nothing_is() -> None:
    """With a 3g fixed in the left half there is no room for 2g and two 1g."""
    left = Placed(A100.profile("3g", where="t"), 0)
    assert solve(A100, [left], named(A100, "2g", "1g.5gb", "1g.5gb")) is None


@pytest.mark.parametrize(
    ("device", "names", "starts"),
    [
        (A100, ["1g.5gb", "2g.10gb", "4g.20gb"], [6, 4, 0]),  # MIG User Guide, -cgi 19,14,5
        (A30, ["1g.6gb", "1g.6gb", "2g.12gb"], [0, 1, 2]),  # driver 535.183.01
        (RTX, ["1g.24gb"] * 4, [0, 3, 6, 9]),  # driver 610.43.02
        (RTX, ["2g.48gb", "1g.24gb", "1g.24gb"], [0, 6, 9]),  # driver 610.43.02
    ],
)
def test_modelled_driver_places_as_published_listings_show(device: Device, names: list[str], starts: list[int]) -> None:
    """Told no starts, the modelled driver lands where nvidia-smi mig -lgi showed real ones to land."""
    placed = driver_replay(device, named(device, *names))
    assert placed is not None
    assert [each.start for each in placed] == starts


def test_modelled_driver_needs_the_3g_first_in_3_2_1_1() -> None:
    """Of the orders of 3g+2g+1g+1g exactly those that begin with the 3g work, as the MIG User Guide says."""
    profiles = named(A100, "3g", "2g", "1g.5gb", "1g.5gb")
    works = {order for order in itertools.permutations(profiles) if driver_replay(A100, order) is not None}
    assert works == {order for order in itertools.permutations(profiles) if order[0].g == 3}


def test_conflicts_name_both_placements_and_the_memory_they_fight_over() -> None:
    """An overlap names both slices with their starts and the memory slices in question."""
    placed = [Placed(A100.profile("3g", where="t"), 4), Placed(A100.profile("2g", where="t"), 4)]
    assert conflicts(A100, placed) == ["3g.20gb@4 overlaps 2g.10gb@4: both need memory slices 4-5"]


def test_media_extensions_of_any_kind_go_to_one_slice() -> None:
    """1g+me and 2g+me of the A30 exclude each other although each alone is allowed."""
    first, second = (
        Placed(A30.profile("1g.6gb+me", where="t"), 0),
        Placed(A30.profile("2g.12gb+me", where="t"), 2),
    )
    assert not conflicts(A30, [first])
    assert not conflicts(A30, [second])
    assert conflicts(A30, [first, second]) == ["1g.6gb+me and 2g.12gb+me: only one slice can have the media extensions"]


def test_profile_is_used_no_oftener_than_its_maximum() -> None:
    """Where room would allow more, the profile's maximum still holds."""
    maximal = maximal_placements(ONE_OF_EACH, ONE_OF_EACH.plain_profiles())
    assert all(len({e.profile.name for e in placed}) == len(placed) for placed in maximal)
    twice = [Placed(ONE_OF_EACH.profile("2g", where="t"), start) for start in (0, 2)]
    assert conflicts(ONE_OF_EACH, twice) == ["2 of 2g.10gb, at most 1 fit"]


def test_media_extensions_are_single_even_where_no_engines_are_known() -> None:
    """The rule on +me does not lean on engine counts, which some devices lack."""
    first, second = (
        Placed(NO_ENGINES_KNOWN.profile(n, where="t"), s) for n, s in (("1g.6gb+me", 0), ("2g.12gb+me", 2))
    )
    assert not admits(NO_ENGINES_KNOWN, [first], second)
    assert len(conflicts(NO_ENGINES_KNOWN, [first, second])) == 1


def test_all_media_engines_leave_only_slices_without_any_beside() -> None:
    """Next to a +me.all slice only -me profiles are offered."""
    taken = [Placed(RTX.profile("1g.24gb+me.all", where="t"), 0)]
    assert {each.profile.attributes for each in additions(RTX, taken, RTX.profiles)} == {("-me",)}
