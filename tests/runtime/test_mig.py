"""Cutting GPUs through NVML: every layout of every catalogued device, with failures, against a driver in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pynvml
import pytest
import yaml
from fake_nvml import FakeGpu, FakeNvml
from typer.testing import CliRunner, Result

from preba.cli.mig_live import mig_app
from preba.errors import DriverError, PartitionError
from preba.mig.catalogue import Device, device_names, load_device
from preba.mig.geometry import Placed, maximal_placements
from runtime.mig import (
    Wanted,
    WantedSlice,
    carry_out,
    difference,
    mig_device_uuids,
    plan_change,
    read_gpus,
    wanted_as_it_is,
    wanted_layout,
)
from runtime.nvml import Nvml, open_nvml

DEVICES = [name for name in device_names() if load_device(name).memory_slices is not None]
A100 = load_device("A100-40GB")


def exactly(placed: Sequence[Placed]) -> Wanted:
    """Want these places."""
    return Wanted(mig=True, slices=tuple(WantedSlice(each.profile.name, each.start) for each in placed))


def apply(nvml: Nvml, wanted: Wanted | str) -> None:
    """Read, plan and carry out on the only GPU."""
    (state,) = read_gpus(nvml)
    if isinstance(wanted, str):
        assert state.device is not None
        wanted = wanted_layout(state.device, wanted, where="layout")
    carry_out(nvml, [plan_change(state, wanted)])


def labels(gpu: FakeGpu) -> list[str]:
    """What stands on the fake."""
    return [label for label, _ in gpu.layout]


# every layout


@pytest.mark.parametrize("name", DEVICES)
def test_every_layout_of_a_device_is_applied_and_none_twice(name: str) -> None:
    """From each maximal layout to the next: what is wanted stands, whole; applied again, no changing call is made."""
    device = load_device(name)
    gpu = FakeGpu(device)
    fake = FakeNvml(gpu)
    nvml = open_nvml(fake)
    for placed in maximal_placements(device, device.profiles):
        apply(nvml, exactly(placed))
        assert labels(gpu) == sorted(each.label for each in placed)
        assert all(len(each.compute) == 1 and each.compute[0].size == each.placed.profile.g for each in gpu.instances)
        numbers = [each.number for each in gpu.instances]
        (state,) = read_gpus(nvml)
        assert plan_change(state, exactly(placed)).is_empty
        apply(nvml, exactly(placed))
        assert [each.number for each in gpu.instances] == numbers


def _failing_transitions(device: Device, every: int, step: int = 1) -> None:
    """From each layout to the next, once per call of the way there, that call failing."""
    layouts = maximal_placements(device, device.profiles)
    for number in range(0, len(layouts) - 1, every):
        before, after = layouts[number], layouts[(number + 1 + every // 2) % len(layouts)]
        gpu = FakeGpu(device)
        fake = FakeNvml(gpu)
        nvml = open_nvml(fake)
        apply(nvml, exactly(before))
        stood = gpu.layout
        (state,) = read_gpus(nvml)
        change = plan_change(state, exactly(after))
        fake.calls.clear()
        carry_out(nvml, [change])
        arrived, calls = gpu.layout, len(fake.calls)
        apply(nvml, exactly(before))
        for failing in range(number % step, calls, step):
            (state,) = read_gpus(nvml)
            change = plan_change(state, exactly(after))
            fake.calls.clear()
            fake.fail_at = failing
            with pytest.raises(DriverError, match="as it was before"):
                carry_out(nvml, [change])
            assert gpu.layout == stood, fake.calls[failing]
            fake.fail_at = None
        assert arrived == sorted(
            (each.label, arrived[k][1]) for k, each in enumerate(sorted(after, key=lambda e: e.label))
        )


@pytest.mark.parametrize("name", DEVICES)
def test_failure_at_any_call_brings_the_old_layout_back(name: str) -> None:
    """Whichever call of a change fails, the GPU stands as before, and the message says so."""
    device = load_device(name)
    layouts = len(maximal_placements(device, device.profiles))
    if name == "A30-24GB":  # a small one: every call of three changes
        _failing_transitions(device, every=layouts // 3)
    else:
        _failing_transitions(device, every=layouts // 3, step=11)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", DEVICES)
def test_failure_at_any_call_of_every_layout_brings_the_old_one_back(name: str) -> None:
    """The same for each and every layout of the device."""
    _failing_transitions(load_device(name), every=1)


def test_driver_that_keeps_failing_is_reported_with_what_is_left_to_do() -> None:
    """When putting the old layout back fails too, both failures and the way on are named."""
    gpu = FakeGpu(A100)
    fake = FakeNvml(gpu)
    nvml = open_nvml(fake)
    apply(nvml, "7x1g.5gb")
    (state,) = read_gpus(nvml)
    change = plan_change(state, wanted_layout(A100, "4g.20gb+3g.20gb", where="x"))
    fake.fail_only, fake.fail_with = "nvmlDeviceCreateGpuInstanceWithPlacement", pynvml.NVML_ERROR_GPU_IS_LOST
    with pytest.raises(DriverError, match="old layout back failed too") as caught:
        carry_out(nvml, [change])
    assert "create 1g.5gb@0" in str(caught.value)
    assert "fell off the bus" in str(caught.value)
    fake.fail_only = None
    (state,) = read_gpus(nvml)
    carry_out(nvml, [plan_change(state, wanted_as_it_is(change.state))])
    assert labels(gpu) == [f"1g.5gb@{start}" for start in range(7)]


# the least disturbance


def test_slices_both_layouts_have_are_left_alone() -> None:
    """A 3g that is wanted too keeps its instance and its UUID."""
    gpu = FakeGpu(A100)
    nvml = open_nvml(FakeNvml(gpu))
    apply(nvml, "4g.20gb@0,3g.20gb@4")
    stays = next(each for each in gpu.instances if each.placed.label == "3g.20gb@4")
    uuid = stays.compute[0].uuid
    apply(nvml, "2x2g.10gb+3g.20gb")
    assert labels(gpu) == ["2g.10gb@0", "2g.10gb@2", "3g.20gb@4"]
    assert stays in gpu.instances
    assert stays.compute[0].uuid == uuid


def test_busy_slices_are_the_ones_that_stay() -> None:
    """Where one of two must go, the one in use stays."""
    for busy, left in ((0, "3g.20gb@0"), (1, "3g.20gb@4")):
        gpu = FakeGpu(A100)
        nvml = open_nvml(FakeNvml(gpu))
        apply(nvml, "2x3g.20gb")
        sorted(gpu.instances, key=lambda each: each.placed.start)[busy].compute[0].pids.add(4242)
        apply(nvml, "3g.20gb")
        assert labels(gpu) == [left]


def test_slice_in_use_is_never_removed() -> None:
    """The refusal names slice and process, and nothing is touched."""
    gpu = FakeGpu(A100)
    fake = FakeNvml(gpu)
    nvml = open_nvml(fake)
    apply(nvml, "7x1g.5gb")
    gpu.instances[2].compute[0].pids.add(4242424)
    stood = gpu.layout
    fake.calls.clear()
    with pytest.raises(DriverError, match=r"1g\.5gb@2 of GPU 0 is used by 4242424\. Nothing was changed"):
        apply(nvml, "7g.40gb")
    assert gpu.layout == stood
    assert not [call for call in fake.calls if "Destroy" in call or "Create" in call]


def test_process_that_appears_meanwhile_brings_the_old_layout_back() -> None:
    """The driver's own refusal, halfway, undoes what was done."""
    gpu = FakeGpu(A100)
    nvml = open_nvml(FakeNvml(gpu))
    apply(nvml, "7x1g.5gb")
    stood = gpu.layout
    (state,) = read_gpus(nvml)
    change = plan_change(state, wanted_layout(A100, "7g.40gb", where="x"))
    gpu.instances[5].compute[0].pids.add(99)
    with pytest.raises(DriverError, match=r"in use.*as it was before"):
        carry_out(nvml, [change])
    assert gpu.layout == stood


def test_interrupt_halfway_brings_the_old_layout_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C counts as a failed step."""
    gpu = FakeGpu(A100)
    nvml = open_nvml(FakeNvml(gpu))
    apply(nvml, "7x1g.5gb")
    stood, create = gpu.layout, nvml.create_gpu_instance
    (state,) = read_gpus(nvml)
    change = plan_change(state, wanted_layout(A100, "2x3g.20gb", where="x"))

    def once(*_: Any) -> int:
        monkeypatch.setattr(nvml, "create_gpu_instance", create)
        raise KeyboardInterrupt

    monkeypatch.setattr(nvml, "create_gpu_instance", once)
    with pytest.raises(KeyboardInterrupt):
        carry_out(nvml, [change])
    assert gpu.layout == stood


def test_all_gpus_go_back_when_one_fails() -> None:
    """A change of two GPUs is one change."""
    gpus = FakeGpu(A100), FakeGpu(A100)
    fake = FakeNvml(*gpus)
    nvml = open_nvml(fake)
    wanted = wanted_layout(A100, "7x1g.5gb", where="x")
    changes = [plan_change(state, wanted) for state in read_gpus(nvml)]
    gpus[1].device = None
    with pytest.raises(DriverError):
        carry_out(nvml, changes)
    assert gpus[0].layout == []


def test_compute_instances_of_ones_own_survive_a_failed_change() -> None:
    """A 3g cut into three compute instances comes back cut into three."""
    gpu = FakeGpu(A100)
    fake = FakeNvml(gpu)
    nvml = open_nvml(fake)
    apply(nvml, "4g.20gb@0,3g.20gb@4")
    three = next(each for each in gpu.instances if each.placed.start == 4)
    nvml.destroy_compute_instance(0, three.number, 0)
    for start in range(3):
        nvml.create_compute_instance(0, three.number, 0, (start, 1))
    stood = gpu.layout
    (state,) = read_gpus(nvml)
    assert not next(each for each in state.slices or () if each.placed.start == 4).is_whole
    change = plan_change(state, wanted_layout(A100, "7x1g.5gb", where="x"))
    fake.fail_with, at = pynvml.NVML_ERROR_UNKNOWN, len(fake.calls)
    fake.fail_at = at + 60
    with pytest.raises(DriverError, match="as it was before"):
        carry_out(nvml, [change])
    assert gpu.layout == stood
    assert difference(read_gpus(nvml)[0], wanted_layout(A100, "4g.20gb@0,3g.20gb@4", where="x"))


# modes


@pytest.mark.parametrize("tells", [True, False])
def test_mode_is_switched_on_and_the_layout_created(tells: bool) -> None:
    """Also where the driver tells its profiles only afterwards: the catalogue plans, the driver confirms."""
    gpu = FakeGpu(A100, mig=False, tells_profiles_without_mig=tells)
    nvml = open_nvml(FakeNvml(gpu))
    apply(nvml, "2x3g.20gb")
    assert gpu.mig
    assert labels(gpu) == ["3g.20gb@0", "3g.20gb@4"]
    apply(nvml, Wanted(mig=False))
    assert not gpu.mig
    assert not gpu.instances


def test_mode_that_waits_for_a_reset_is_taken_back_and_explained() -> None:
    """Nothing stays pending; the message has the commands."""
    gpu = FakeGpu(A100, mig=False, resets_at_once=False)
    nvml = open_nvml(FakeNvml(gpu))
    with pytest.raises(DriverError, match="--gpu-reset -i 0"):
        apply(nvml, "7x1g.5gb")
    assert not gpu.mig
    assert not gpu.pending


def test_failure_after_the_mode_switch_switches_it_back() -> None:
    """The old layout includes the mode."""
    gpu = FakeGpu(A100, mig=False)
    fake = FakeNvml(gpu)
    nvml = open_nvml(fake)
    fake.fail_only = "nvmlDeviceCreateGpuInstanceWithPlacement"
    with pytest.raises(DriverError, match="as it was before"):
        apply(nvml, "7x1g.5gb")
    assert not gpu.mig


def test_catalogue_that_is_wrong_about_a_device_is_found_out_after_the_switch() -> None:
    """A driver that tells other placements once MIG is on: back to off, and said."""
    wide = tuple(each.model_copy(update={"starts": (0,)}) if each.name == "3g.20gb" else each for each in A100.profiles)
    gpu = FakeGpu(A100.model_copy(update={"profiles": wide}), mig=False, tells_profiles_without_mig=False)
    nvml = open_nvml(FakeNvml(gpu))
    with pytest.raises(DriverError, match="tells other placements"):
        apply(nvml, "2x3g.20gb")
    assert not gpu.mig


# privileges and errors


def test_unprivileged_user_sees_devices_and_is_told_about_sudo() -> None:
    """UUIDs and counts can be read; places and changes cannot."""
    gpu = FakeGpu(A100)
    fake = FakeNvml(gpu)
    nvml = open_nvml(fake)
    apply(nvml, "3g.20gb+2g.10gb")
    fake.privileged = False
    (state,) = read_gpus(nvml)
    assert state.slices is None
    assert dict(state.counts) == {"3g.20gb": 1, "2g.10gb": 1}
    assert not difference(state, wanted_layout(A100, "2g.10gb+3g.20gb", where="x"))
    assert difference(state, wanted_layout(A100, "2x2g.10gb", where="x")) == [
        "1 of 2g.10gb, wanted 2", "1 of 3g.20gb, wanted 0",
    ]  # fmt: skip
    with pytest.raises(DriverError, match="sudo"):
        plan_change(state, wanted_layout(A100, "7x1g.5gb", where="x"))
    with pytest.raises(DriverError, match="sudo"):
        difference(state, wanted_layout(A100, "3g.20gb@4", where="x"))


def test_permission_that_is_missing_only_for_changes_is_said_plainly() -> None:
    """The first changing call is refused: nothing changed, and the command that helps is named."""
    gpu = FakeGpu(A100)
    fake = FakeNvml(gpu)
    nvml = open_nvml(fake)
    (state,) = read_gpus(nvml)
    fake.fail_only = "nvmlDeviceCreateGpuInstanceWithPlacement"
    fake.fail_with = pynvml.NVML_ERROR_NO_PERMISSION
    with pytest.raises(DriverError, match="privileged users only: run the command again with sudo"):
        carry_out(nvml, [plan_change(state, wanted_layout(A100, "7x1g.5gb", where="x"))])


def test_layout_that_does_not_fit_is_refused_before_any_change() -> None:
    """The rules of preba.mig speak, with the slices that clash."""
    nvml = open_nvml(FakeNvml(FakeGpu(A100)))
    with pytest.raises(PartitionError, match=r"layout: .*4g\.20gb"):
        apply(nvml, "2x4g.20gb")


def test_gpu_without_mig_is_left_out_and_refuses_to_be_cut() -> None:
    """It is listed, and says what it is."""
    nvml = open_nvml(FakeNvml(FakeGpu(None)))
    (state,) = read_gpus(nvml)
    assert state.facts.mig_now is None
    with pytest.raises(DriverError, match=r"GPU 0 \(Quadro P400\) has no MIG"):
        plan_change(state, Wanted(mig=True, slices=(WantedSlice("1g.5gb"),)))


def test_missing_driver_is_one_line() -> None:
    """The real library on a machine without a driver; the fake's own failure stands in where there is one."""
    fake = FakeNvml()
    fake.fail_only, fake.fail_with = "nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    with pytest.raises(DriverError, match="no NVIDIA driver here") as caught:
        open_nvml(fake)
    assert "\n" not in str(caught.value)


def test_scenario_slices_find_their_mig_devices() -> None:
    """By profile, each a device of its own; a GPU that is cut otherwise is told the command."""
    nvml = open_nvml(FakeNvml(FakeGpu(A100, mig=False), FakeGpu(A100)))
    states = read_gpus(nvml)
    wanted = wanted_layout(A100, "3g.20gb+2x1g.5gb", where="x")
    carry_out(nvml, [plan_change(states[1], wanted)])
    states = read_gpus(nvml)
    found = mig_device_uuids(states, [(0, "1g.5gb"), (0, "3g.20gb"), (0, "1g.5gb")])
    names = {each.uuid: each.name for each in states[1].mig_devices}
    assert [names[uuid].split()[-1] for uuid in found] == ["1g.5gb", "3g.20gb", "1g.5gb"]
    assert len(set(found)) == 3
    with pytest.raises(DriverError, match=r"mig apply 1g\.5gb\+1g\.5gb\+1g\.5gb"):
        mig_device_uuids(states, [(0, "1g.5gb")] * 3)


# the commands


class Machine:
    """A machine with fake GPUs and its command line."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, *gpus: FakeGpu) -> None:
        self.fake = FakeNvml(*gpus)
        patch.setitem(sys.modules, "pynvml", self.fake)  # type: ignore[misc]  # it has the module's functions
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))

    def __call__(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(mig_app, list(arguments))
        assert result.exit_code == code, (result.output, result.exception)
        return result


def test_apply_prints_its_plan_and_changes_nothing_without_yes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plan names every step; with --yes they are done, and what was there can be brought back."""
    gpu = FakeGpu(A100)
    preba = Machine(monkeypatch, tmp_path, gpu)
    preba("apply", "7x1g.5gb", "--yes")
    said = preba("apply", "4g.20gb@0,3g.20gb@4").output
    assert "remove 1g.5gb@6" in said
    assert "create 4g.20gb@0" in said
    assert "add --yes" in said
    assert labels(gpu) == [f"1g.5gb@{start}" for start in range(7)]
    said = preba("apply", "4g.20gb@0,3g.20gb@4", "--yes").output
    assert labels(gpu) == ["3g.20gb@4", "4g.20gb@0"]
    assert "MIG-" in said
    assert "nothing to do" in preba("apply", "4g.20gb@0,3g.20gb@4", "--yes").output
    preba("restore")
    assert labels(gpu) == ["3g.20gb@4", "4g.20gb@0"]
    preba("restore", "--yes")
    assert labels(gpu) == [f"1g.5gb@{start}" for start in range(7)]


def test_assert_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """0 when it agrees, 1 with the difference when not."""
    preba = Machine(monkeypatch, tmp_path, FakeGpu(A100))
    preba("apply", "2x3g.20gb", "--yes")
    assert "as asked" in preba("assert", "2x3g.20gb").output
    wrong = preba("assert", "7x1g.5gb", code=1).output
    assert "3g.20gb@0 should not be there" in wrong
    assert "1g.5gb@0 is missing" in wrong
    assert json.loads(preba("assert", "7x1g.5gb", "--json", code=1).output)["agrees"] is False


def test_mode_needs_its_own_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--yes alone never resets a GPU."""
    gpu = FakeGpu(A100, mig=False)
    preba = Machine(monkeypatch, tmp_path, gpu)
    result = preba("apply", "7x1g.5gb", "--yes", code=1)
    assert "--change-mode" in str(result.exception)
    assert not gpu.mig
    preba("apply", "7x1g.5gb", "--yes", "--change-mode")
    assert gpu.mig


def test_mig_parted_files_go_in_and_come_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What export writes, apply and assert read; entries choose their GPUs by index and PCI id."""
    gpus = FakeGpu(A100), FakeGpu(A100, mig=False), FakeGpu(load_device("H100-SXM5-80GB")), FakeGpu(None)
    preba = Machine(monkeypatch, tmp_path, *gpus)
    file = tmp_path / "node.yaml"
    file.write_text(
        "version: v1\nmig-configs:\n  mixed:\n"
        "    - {device-filter: '0x20B010DE', devices: [0], mig-enabled: true, mig-devices: {3g.20gb: 1, 1g.5gb: 3}}\n"
        "    - {device-filter: '0x20B010DE', devices: [1], mig-enabled: false}\n"
        "    - {device-filter: '0x233010DE', devices: all, mig-enabled: true, mig-devices: {7g.80gb: 1}}\n",
        encoding="utf-8",
    )
    preba("apply", f"{file}:mixed", "--yes")
    assert [label.split("@")[0] for label in labels(gpus[0])] == ["1g.5gb"] * 3 + ["3g.20gb"]
    assert labels(gpus[2]) == ["7g.80gb@0"]
    preba("assert", f"{file}:mixed")
    exported = tmp_path / "now.yaml"
    preba("export", str(exported))
    entries = yaml.safe_load(exported.read_text(encoding="utf-8"))["mig-configs"]["current"]
    assert [entry["devices"] for entry in entries] == [[0], [1], [2]]
    assert entries[0]["mig-devices"] == {"1g.5gb": 3, "3g.20gb": 1}
    preba("assert", f"{exported}:current")
    exact = tmp_path / "now.json"
    preba("export", str(exact))
    stood = [gpu.layout for gpu in gpus]
    preba("apply", "none", "--gpu", "all", "--yes", "--change-mode")
    assert labels(gpus[0]) == []
    preba("restore", str(exact), "--yes", "--change-mode")
    assert [gpu.layout for gpu in gpus] == stood
    assert not gpus[1].mig


def test_machine_with_several_gpus_wants_to_be_told_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU is cut by accident."""
    gpus = FakeGpu(A100), FakeGpu(A100)
    preba = Machine(monkeypatch, tmp_path, *gpus)
    assert "--gpu 0, or --gpu all" in str(preba("apply", "7x1g.5gb", "--yes", code=1).exception)
    preba("apply", "7x1g.5gb", "--gpu", "1", "--yes")
    assert labels(gpus[0]) == []
    assert len(labels(gpus[1])) == 7
    assert "there is no GPU 5" in str(preba("apply", "7x1g.5gb", "--gpu", "5", code=1).exception)


def test_show_names_what_a_user_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Places, UUIDs for CUDA_VISIBLE_DEVICES, processes, what still fits; the same as JSON."""
    gpu = FakeGpu(A100)
    preba = Machine(monkeypatch, tmp_path, gpu, FakeGpu(None))
    preba("apply", "3g.20gb@4", "--gpu", "0", "--yes")
    gpu.instances[0].compute[0].pids.add(4242424)
    said = preba("show").output
    for part in ("4:4", "3g.20gb", gpu.instances[0].compute[0].uuid, "4242424", "4g.20gb at 0", "no MIG"):
        assert part in said
    data = json.loads(preba("show", "--json", "--profiles").output)
    assert data["gpus"][0]["slices"][0]["start"] == 4
    assert data["gpus"][0]["mig_devices"][0]["uuid"] == gpu.instances[0].compute[0].uuid
    assert len(data["gpus"][0]["profiles"]) == len(A100.profiles)
    assert data["gpus"][1]["mig"] is None
    preba.fake.privileged = False
    assert "use sudo" in preba("show", "--gpu", "0").output


def test_layout_of_another_machine_is_not_restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A UUID that is not here stops it before anything else."""
    preba = Machine(monkeypatch, tmp_path, FakeGpu(A100))
    file = tmp_path / "other.json"
    preba("export", str(file))
    file.write_text(file.read_text(encoding="utf-8").replace("GPU-0000", "GPU-9999"), encoding="utf-8")
    assert "another machine" in str(preba("restore", str(file), "--yes", code=1).exception)
    file.write_text('{"format": "preba-mig-layout", "gpu": []}', encoding="utf-8")
    assert "gpu" in str(preba("restore", str(file), code=1).exception)
    assert "no such file" in str(preba("restore", str(tmp_path / "none.json"), code=1).exception)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "empty"))
    assert "no layout was kept" in str(preba("restore", code=1).exception)


def test_nothing_is_changed_when_the_old_layout_cannot_be_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A full or forbidden disk stops apply before its first step."""
    gpu = FakeGpu(A100)
    preba = Machine(monkeypatch, tmp_path, gpu)
    (tmp_path / "state").write_text("a file where a folder should be", encoding="utf-8")
    assert "cannot keep the layout" in str(preba("apply", "7x1g.5gb", "--yes", code=1).exception)
    assert labels(gpu) == []
