"""A GPU driver that exists in memory: the functions of `pynvml`, with MIG's rules behind them.

It speaks ctypes as the real library does, so that the border in runtime/nvml.py is tested as it stands. What it
enforces: placements, maxima, totals and engines of a catalogued device; privileges; nothing is removed that is in use
or not empty; a mode that waits for a reset. Every call is counted and any one of them can be made to fail.
"""

# ruff: noqa: N802 - the names are NVML's, the pointers ctypes'
from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

from preba.mig.catalogue import Device, SliceProfile
from preba.mig.geometry import Placed, admits

ENUM = {
    ("", 1): "1_SLICE", ("", 2): "2_SLICE", ("", 3): "3_SLICE", ("", 4): "4_SLICE", ("", 7): "7_SLICE",
    ("", 6): "6_SLICE", ("", 8): "8_SLICE", ("+me", 1): "1_SLICE_REV1", ("+me", 2): "2_SLICE_REV1",
    ("+gfx", 1): "1_SLICE_GFX", ("+gfx", 2): "2_SLICE_GFX", ("+gfx", 3): "3_SLICE_GFX", ("+gfx", 4): "4_SLICE_GFX",
    ("-me", 1): "1_SLICE_NO_ME", ("-me", 2): "2_SLICE_NO_ME", ("+me.all", 1): "1_SLICE_ALL_ME",
    ("+me.all", 2): "2_SLICE_ALL_ME",
}  # fmt: skip
COMPUTE_SLICES = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7, 5: 8, 6: 6}


@dataclass(eq=False)
class FakeCompute:
    """A compute instance of the fake."""

    number: int
    profile_id: int
    start: int
    size: int
    uuid: str
    pids: set[int] = field(default_factory=set)


@dataclass(eq=False)
class FakeInstance:
    """A GPU instance of the fake."""

    number: int
    placed: Placed
    compute: list[FakeCompute] = field(default_factory=list)


@dataclass(eq=False)
class FakeGpu:
    """One GPU of the fake; without a device it has no MIG."""

    device: Device | None
    mig: bool = True
    resets_at_once: bool = True
    tells_profiles_without_mig: bool = True
    pending: bool | None = None
    instances: list[FakeInstance] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)

    @property
    def layout(self) -> list[tuple[str, list[tuple[int, int, int]]]]:
        """What stands: labels, each with its compute instances."""
        return sorted(
            (each.placed.label, sorted((one.profile_id, one.start, one.size) for one in each.compute))
            for each in self.instances
        )


class FakeNvml:
    """Stands for the module `pynvml`.

    Parameters
    ----------
    gpus : FakeGpu
    privileged : bool
    fail_at : int, optional
        The call, counted from 0, that fails once with `fail_with`.
    fail_from : int, optional
        All calls from this one on fail.
    """

    def __init__(self, *gpus: FakeGpu, privileged: bool = True) -> None:
        self.gpus = gpus
        self.privileged = privileged
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.fail_from: int | None = None
        self.fail_only: str | None = None
        self.fail_with = pynvml.NVML_ERROR_UNKNOWN
        self._numbers = itertools.count(1)
        self._objects: dict[int, Any] = {}
        for name in dir(pynvml):
            if name.startswith(("NVML_", "c_nvml", "NVMLError")):
                setattr(self, name, getattr(pynvml, name))

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("nvml"):
            return found

        def counted(*arguments: Any) -> Any:
            number = len(self.calls)
            self.calls.append(name)
            if number == self.fail_at or (self.fail_from is not None and number >= self.fail_from):
                raise pynvml.NVMLError(self.fail_with)
            if self.fail_only == name:
                raise pynvml.NVMLError(self.fail_with)
            return found(*arguments)

        return counted

    # handles

    def _pointer(self, kind: Any, thing: Any) -> Any:
        number = next((key for key, known in self._objects.items() if known is thing), None)
        if number is None:
            number = 0x1000 + 16 * len(self._objects)
            self._objects[number] = thing
        return ctypes.cast(ctypes.c_void_p(number), kind)

    def _thing(self, pointer: Any, kind: type) -> Any:
        thing = self._objects.get(ctypes.cast(pointer, ctypes.c_void_p).value or 0)
        alive = isinstance(thing, kind) and (
            not isinstance(thing, FakeInstance) or any(thing in gpu.instances for gpu in self.gpus)
        )
        if not alive:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return thing

    def _gpu(self, pointer: Any) -> FakeGpu:
        return self._thing(pointer, FakeGpu)

    def _need(self, holds: bool, error: int) -> None:
        if not holds:
            raise pynvml.NVMLError(error)

    def _need_privilege(self) -> None:
        self._need(self.privileged, pynvml.NVML_ERROR_NO_PERMISSION)

    # the machine

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.0-fake"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        self._need(index < len(self.gpus), pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self._pointer(pynvml.c_nvmlDevice_t, self.gpus[index])

    def nvmlDeviceGetUUID(self, pointer: Any) -> str:
        thing = self._thing(pointer, object)
        if isinstance(thing, FakeCompute):
            return thing.uuid
        return f"GPU-{self.gpus.index(thing):04d}"

    def nvmlDeviceGetName(self, pointer: Any) -> str:
        thing = self._thing(pointer, object)
        if isinstance(thing, FakeCompute):
            gpu, instance = self._home(thing)
            part = "" if thing.size == instance.placed.profile.g else f"{thing.size}c."
            return f"{gpu.device.product} MIG {part}{instance.placed.profile.name}"
        return thing.device.product if thing.device else "Quadro P400"

    def nvmlDeviceGetPciInfo(self, pointer: Any) -> Any:
        device = self._gpu(pointer).device
        number = int(device.pci_device_ids[0], 16) if device and device.pci_device_ids else 0x1CB3
        return SimpleNamespace(pciDeviceId=number << 16 | 0x10DE)

    def nvmlDeviceGetMigMode(self, pointer: Any) -> list[int]:
        gpu = self._gpu(pointer)
        self._need(gpu.device is not None, pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(gpu.mig), int(gpu.mig if gpu.pending is None else gpu.pending)]

    def nvmlDeviceSetMigMode(self, pointer: Any, mode: int) -> int:
        gpu = self._gpu(pointer)
        self._need(gpu.device is not None, pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._need_privilege()
        self._need(not gpu.instances, pynvml.NVML_ERROR_IN_USE)
        if bool(mode) == gpu.mig:
            gpu.pending = None
            return 0
        if gpu.pids or not gpu.resets_at_once:
            gpu.pending = bool(mode)
            return pynvml.NVML_ERROR_IN_USE if gpu.pids else 0
        gpu.mig, gpu.pending = bool(mode), None
        return 0

    # profiles

    def _profile(self, gpu: FakeGpu, number: int) -> tuple[SliceProfile, int]:
        for place, profile in enumerate(gpu.device.profiles if gpu.device else ()):
            profile_id = 200 + place if profile.profile_id is None else profile.profile_id
            if number == profile_id:
                return profile, profile_id
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def nvmlDeviceGetGpuInstanceProfileInfo(self, pointer: Any, number: int, _version: int = 2) -> Any:
        gpu = self._gpu(pointer)
        self._need(gpu.device is not None, pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._need(gpu.mig or gpu.tells_profiles_without_mig, pynvml.NVML_ERROR_NOT_SUPPORTED)
        for place, profile in enumerate(gpu.device.profiles):
            kind = ENUM["".join(profile.attributes), profile.g]
            double = not profile.attributes and any(
                other.g == profile.g and not other.attributes and (other.size or 0) < (profile.size or 0)
                for other in gpu.device.profiles
            )
            kind = f"{profile.g}_SLICE_REV2" if double else kind
            if getattr(pynvml, f"NVML_GPU_INSTANCE_PROFILE_{kind}") != number:
                continue
            info = pynvml.c_nvmlGpuInstanceProfileInfo_v2_t()
            info.id = 200 + place if profile.profile_id is None else profile.profile_id
            info.sliceCount, info.instanceCount = profile.g, profile.instances_max
            info.multiprocessorCount, info.memorySizeMB = profile.sms or 0, profile.memory_mib or 0
            # Where no source tells a number, the driver in memory has one engine per compute slice.
            info.copyEngineCount, info.decoderCount = (
                profile.g if each is None else each for each in (profile.copy_engines, profile.decoders)
            )
            info.encoderCount, info.jpegCount, info.ofaCount = (
                profile.g if each is None else each
                for each in (profile.encoders, profile.jpeg_engines, profile.ofa_engines)
            )
            info.name = f"MIG {profile.name}".encode()
            return info
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetGpuInstancePossiblePlacements(self, pointer: Any, number: int, rows: Any, count: Any) -> int:
        profile, _ = self._profile(self._gpu(pointer), number)
        if rows is not None:
            for place, start in enumerate(profile.starts):
                rows[place].start, rows[place].size = start, profile.size
        count._obj.value = len(profile.starts)
        return 0

    # GPU instances

    def nvmlDeviceGetGpuInstances(self, pointer: Any, number: int, rows: Any, count: Any) -> int:
        gpu = self._gpu(pointer)
        self._need_privilege()
        profile, _ = self._profile(gpu, number)
        found = [each for each in gpu.instances if each.placed.profile == profile]
        for place, each in enumerate(found):
            rows[place] = self._pointer(pynvml.c_nvmlGpuInstance_t, each)
        count._obj.value = len(found)
        return 0

    def nvmlDeviceGetGpuInstanceById(self, pointer: Any, number: int) -> Any:
        self._need_privilege()
        for each in self._gpu(pointer).instances:
            if each.number == number:
                return self._pointer(pynvml.c_nvmlGpuInstance_t, each)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlGpuInstanceGetInfo(self, pointer: Any) -> Any:
        instance = self._thing(pointer, FakeInstance)
        gpu = next(gpu for gpu in self.gpus if instance in gpu.instances)
        info = pynvml.c_nvmlGpuInstanceInfo_t()
        place = gpu.device.profiles.index(instance.placed.profile)
        profile_id = instance.placed.profile.profile_id
        info.id, info.profileId = instance.number, 200 + place if profile_id is None else profile_id
        info.placement.start, info.placement.size = instance.placed.start, instance.placed.size
        return info

    def nvmlDeviceCreateGpuInstanceWithPlacement(self, pointer: Any, number: int, place: Any) -> Any:
        gpu = self._gpu(pointer)
        self._need_privilege()
        self._need(gpu.mig, pynvml.NVML_ERROR_NOT_SUPPORTED)
        profile, _ = self._profile(gpu, number)
        placed = Placed(profile, place._obj.start)
        self._need(place._obj.size == profile.size, pynvml.NVML_ERROR_INVALID_ARGUMENT)
        standing = [each.placed for each in gpu.instances]
        self._need(admits(gpu.device, standing, placed), pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)
        instance = FakeInstance(next(self._numbers), placed)
        gpu.instances.append(instance)
        return self._pointer(pynvml.c_nvmlGpuInstance_t, instance)

    def nvmlGpuInstanceDestroy(self, pointer: Any) -> int:
        self._need_privilege()
        instance = self._thing(pointer, FakeInstance)
        self._need(not instance.compute, pynvml.NVML_ERROR_IN_USE)
        next(gpu for gpu in self.gpus if instance in gpu.instances).instances.remove(instance)
        return 0

    # compute instances

    def nvmlGpuInstanceGetComputeInstanceProfileInfo(
        self, pointer: Any, number: int, _engines: int, _version: int = 2
    ) -> Any:
        instance = self._thing(pointer, FakeInstance)
        slices = COMPUTE_SLICES.get(number)
        fits = slices is not None and slices <= instance.placed.profile.g
        self._need(fits, pynvml.NVML_ERROR_NOT_SUPPORTED)
        info = pynvml.c_nvmlComputeInstanceProfileInfo_t()
        info.id, info.sliceCount = number, slices
        info.instanceCount = instance.placed.profile.g // slices
        return info

    def nvmlGpuInstanceGetComputeInstances(self, pointer: Any, number: int, rows: Any, count: Any) -> int:
        self._need_privilege()
        found = [each for each in self._thing(pointer, FakeInstance).compute if each.profile_id == number]
        for place, each in enumerate(found):
            rows[place] = self._pointer(pynvml.c_nvmlComputeInstance_t, each)
        count._obj.value = len(found)
        return 0

    def nvmlGpuInstanceGetComputeInstanceById(self, pointer: Any, number: int) -> Any:
        self._need_privilege()
        for each in self._thing(pointer, FakeInstance).compute:
            if each.number == number:
                return self._pointer(pynvml.c_nvmlComputeInstance_t, each)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlComputeInstanceGetInfo(self, pointer: Any) -> Any:
        each = self._thing(pointer, FakeCompute)
        info = pynvml.c_nvmlComputeInstanceInfo_t()
        info.id, info.profileId = each.number, each.profile_id
        info.placement.start, info.placement.size = each.start, each.size
        return info

    def nvmlGpuInstanceCreateComputeInstance(self, pointer: Any, number: int) -> Any:
        g = self._thing(pointer, FakeInstance).placed.profile.g
        for start in range(g - COMPUTE_SLICES[number] + 1):
            try:
                return self._create_compute(pointer, number, start)
            except pynvml.NVMLError as error:
                if error.value != pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES:
                    raise
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)

    def nvmlGpuInstanceCreateComputeInstanceWithPlacement(self, pointer: Any, number: int, place: Any) -> Any:
        return self._create_compute(pointer, number, place._obj.start)

    def _create_compute(self, pointer: Any, number: int, start: int) -> Any:
        self._need_privilege()
        instance = self._thing(pointer, FakeInstance)
        size = COMPUTE_SLICES[number]
        free = all(start + size <= each.start or each.start + each.size <= start for each in instance.compute)
        fits = free and start + size <= instance.placed.profile.g
        self._need(fits, pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)
        used = {each.number for each in instance.compute}
        lowest = next(one for one in itertools.count() if one not in used)
        made = FakeCompute(lowest, number, start, size, f"MIG-{next(self._numbers):08d}")
        instance.compute.append(made)
        return self._pointer(pynvml.c_nvmlComputeInstance_t, made)

    def nvmlComputeInstanceDestroy(self, pointer: Any) -> int:
        self._need_privilege()
        each = self._thing(pointer, FakeCompute)
        self._need(not each.pids, pynvml.NVML_ERROR_IN_USE)
        self._home(each)[1].compute.remove(each)
        return 0

    # MIG devices

    def _home(self, compute: FakeCompute) -> tuple[FakeGpu, FakeInstance]:
        for gpu in self.gpus:
            for instance in gpu.instances:
                if compute in instance.compute:
                    return gpu, instance
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

    def nvmlDeviceGetMaxMigDeviceCount(self, pointer: Any) -> int:
        device = self._gpu(pointer).device
        return device.compute_slices if device else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, pointer: Any, index: int) -> Any:
        devices = [each for instance in self._gpu(pointer).instances for each in instance.compute]
        self._need(index < len(devices), pynvml.NVML_ERROR_NOT_FOUND)
        return self._pointer(pynvml.c_nvmlDevice_t, devices[index])

    def nvmlDeviceGetGpuInstanceId(self, pointer: Any) -> int:
        return self._home(self._thing(pointer, FakeCompute))[1].number

    def nvmlDeviceGetComputeInstanceId(self, pointer: Any) -> int:
        return self._thing(pointer, FakeCompute).number

    def nvmlDeviceGetComputeRunningProcesses(self, pointer: Any) -> list[Any]:
        thing = self._thing(pointer, object)
        return [SimpleNamespace(pid=pid, usedGpuMemory=1 << 30) for pid in sorted(thing.pids)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, pointer: Any) -> list[Any]:
        self._need(isinstance(self._thing(pointer, object), FakeGpu), pynvml.NVML_ERROR_NOT_SUPPORTED)
        return []
