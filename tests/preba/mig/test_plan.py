"""Promises of plans: their commands, replayed on a driver, make the partition and take it away again."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from preba.mig.catalogue import load_device
from preba.mig.geometry import maximal_placements
from preba.mig.placement import Partition, resolve_partition
from preba.mig.plan import plan_partition

A100 = load_device("A100-40GB")

REPLAYED = ["A100-40GB", "H100-SXM5-80GB", "A30", "RTX-PRO-6000", "RTX-PRO-4500"]


def plan_of(spec: str, device: str = "A100-40GB"):  # noqa: ANN201 - a test's helper
    """Plan a partition written as text."""
    return plan_partition(resolve_partition(load_device(device), spec, where="t"))


@pytest.mark.parametrize("name", REPLAYED)
def test_plan_of_every_maximal_placement_lands_on_it(name: str, driver_of: Callable) -> None:
    """The create command, and the one without starts where given, bring a driver to exactly the placements planned."""
    device = load_device(name)
    for placed in maximal_placements(device, device.plain_profiles(double_memory=True)):
        partition = Partition(device, placed)
        plan = plan_partition(partition)
        wanted = sorted((each.profile, each.start) for each in partition.slices)
        for create in filter(None, (plan.create, plan.create_in_order)):
            driver = driver_of(device)
            for command in (plan.enable, create, plan.inspect):
                driver.run(command)
            assert sorted(driver.instances) == wanted, create
            for command in plan.remove:
                driver.run(command)
            assert not driver.instances
            assert not driver.enabled


@pytest.mark.parametrize("name", REPLAYED)
def test_plan_of_every_geometry_needs_no_starts(name: str, driver_of: Callable) -> None:
    """Asked for by counts alone, every geometry has an order that needs no placement specifiers."""
    device = load_device(name)
    for placed in maximal_placements(device, device.plain_profiles(double_memory=True)):
        names = "+".join(each.profile.name for each in placed)
        plan = plan_partition(resolve_partition(device, names, where="t"))
        assert plan.create_in_order is not None, names
        driver = driver_of(device)
        driver.run(plan.enable)
        driver.run(plan.create_in_order)
        assert sorted(n for n, _ in driver.instances) == sorted(each.profile.name for each in placed)


def test_driver_stand_in_refuses_what_real_ones_refuse(driver_of: Callable) -> None:
    """The stand-in is no pushover: a full GPU, a wrong start and teardown in the wrong order all fail on it."""
    driver = driver_of(A100)
    with pytest.raises(AssertionError, match="MIG mode is off"):
        driver.run("sudo nvidia-smi mig -i 0 -cgi 9 -C")
    driver.run("sudo nvidia-smi -i 0 -mig 1")
    driver.run("sudo nvidia-smi mig -i 0 -cgi 14,19,19 -C")
    with pytest.raises(AssertionError, match="insufficient"):
        driver.run("sudo nvidia-smi mig -i 0 -cgi 9,9 -C")
    with pytest.raises(AssertionError, match="cannot be placed"):
        driver.run("sudo nvidia-smi mig -i 0 -cgi 19:4 -C")
    with pytest.raises(AssertionError, match="in use by another client"):
        driver.run("sudo nvidia-smi mig -i 0 -dgi")


def test_plan_of_3_2_1_1_creates_the_3g_first() -> None:
    """The order the MIG User Guide asks for comes out of the search, with exact commands."""
    plan = plan_of("1g.5gb+1g.5gb+2g.10gb+3g.20gb")
    assert [each.label for each in plan.order] == ["3g.20gb@4", "2g.10gb@0", "1g.5gb@2", "1g.5gb@3"]
    assert plan.create == "sudo nvidia-smi mig -i 0 -cgi 9:4,14:0,19:2,19:3 -C"
    assert plan.create_in_order == "sudo nvidia-smi mig -i 0 -cgi 9,14,19,19 -C"
    assert plan.enable == "sudo nvidia-smi -i 0 -mig 1"
    assert plan.remove == (
        "sudo nvidia-smi mig -i 0 -dci",
        "sudo nvidia-smi mig -i 0 -dgi",
        "sudo nvidia-smi -i 0 -mig 0",
    )


def test_plan_says_that_a_3g_on_the_left_strands_a_compute_slice() -> None:
    """3g at 0 loses one compute slice, the plan says where and which placement would not, and gives the start."""
    plan = plan_of("3g.20gb@0")
    assert plan.leftover.free_compute_slices == 4
    assert plan.leftover.stranded_compute_slices == 1
    assert plan.create_in_order is None
    assert any("lost under 3g.20gb@0" in note and "fewer are lost with 3g.20gb@4" in note for note in plan.notes)
    assert plan_of("3g.20gb@4").leftover.stranded_compute_slices == 0


def test_plan_tells_what_is_left_and_what_still_fits() -> None:
    """Free slices are counted, and every profile that still fits is listed with its free starts."""
    left = plan_of("4g.20gb+1g.5gb@4").leftover
    assert (left.free_compute_slices, left.free_memory_slices) == (2, (5, 6, 7))
    assert left.fits == {"1g.5gb": (5, 6), "1g.5gb+me": (5, 6), "1g.10gb": (6,)}
    full = plan_of("7x1g.5gb").leftover
    assert (full.free_compute_slices, full.free_memory_slices, full.fits) == (0, (7,), {})
    assert full.stranded_memory_slices == 1


def test_plan_counts_stranded_compute_under_double_memory_slices() -> None:
    """Four double-memory 1g slices leave three compute slices that nothing can use."""
    assert plan_of("4x1g.10gb").leftover.stranded_compute_slices == 3


def test_plan_warns_where_jpeg_cannot_be_decoded_in_hardware() -> None:
    """On an A100 mix every slice lacks a JPEG engine; on an H100 none does."""
    assert any("no hardware JPEG decoder in 2g.10gb, 3g.20gb" in n for n in plan_of("3g@4+2g@0").notes)
    assert not any("JPEG" in note for note in plan_of("3g+2g+1g.10gb", "H100-SXM5-80GB").notes)
    assert any("no source tells how many JPEG engines" in note for note in plan_of("3g", "B200-180GB").notes)


def test_plan_for_modelled_placements_leaves_the_starts_to_the_driver_and_says_so() -> None:
    """Where placements were never seen printed, no start is claimed and the reader is sent to -lgipp."""
    plan = plan_of("2x1g.24gb", "RTX-PRO-5000")
    assert plan.create == "sudo nvidia-smi mig -i 0 -cgi 1g.24gb,1g.24gb -C"
    assert any("modelled" in note and "-lgipp" in note for note in plan.notes)


def test_plan_names_kubernetes_resources() -> None:
    """``+`` becomes ``.`` in resource names and slices of one kind are counted together."""
    plan = plan_of("1g.5gb+me@6,2x1g.5gb,2g")
    assert plan.kubernetes == {
        "nvidia.com/mig-1g.5gb.me": 1,
        "nvidia.com/mig-1g.5gb": 2,
        "nvidia.com/mig-2g.10gb": 1,
    }


def test_plan_for_another_gpu_of_the_node_names_it_in_every_command() -> None:
    """The GPU index stands in every command, so that no other GPU is touched."""
    plan = plan_partition(resolve_partition(A100, "7g", where="t"), gpu_index=3)
    assert all(" -i 3 " in command for command in (plan.enable, plan.create, plan.inspect, *plan.remove))


def test_plan_as_json_is_plain_data() -> None:
    """The JSON form survives a round through json and holds the commands and slices."""
    data = plan_of("3g+3g").as_json()
    assert json.loads(json.dumps(data)) == data
    assert [each["start"] for each in data["slices"]] == [0, 4]
    assert data["commands"]["create"].endswith("-cgi 9:4,9:0 -C")
    assert data["provenance"]["kind"] == "published"
