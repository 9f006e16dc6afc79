"""The border to NVIDIA's management library: values in, values out, and the one place that knows NVML's errors.

The library is `pynvml` (package ``nvidia-ml-py``), or anything with its functions: tests hand in a GPU that exists in
memory only. What to change, and in which order, is `runtime.mig`'s.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from preba.errors import DriverError, MissingExtraError
from preba.mig.catalogue import SliceProfile

__all__ = ["ComputeInstance", "ComputeProfile", "GpuFacts", "GpuInstance", "MigDevice", "Nvml", "Process", "open_nvml"]

NO_DRIVER = (
    "no NVIDIA driver here ({why}), so there is no GPU to look at; preba mig list, plan and read work without one"
)
MEANINGS = {
    "NVML_ERROR_NO_PERMISSION": "the driver allows this to privileged users only: run the command again with sudo",
    "NVML_ERROR_IN_USE": (
        "it is in use: stop the processes on it (`sudo fuser -v /dev/nvidia*` lists them; monitoring agents and "
        "nvidia-persistenced count too)"
    ),
    "NVML_ERROR_INSUFFICIENT_RESOURCES": "the GPU has no room for it at that place",
    "NVML_ERROR_NOT_SUPPORTED": "this GPU or driver does not support it",
    "NVML_ERROR_RESET_REQUIRED": "the GPU has to be reset first: `sudo nvidia-smi --gpu-reset`",
    "NVML_ERROR_GPU_IS_LOST": "the GPU fell off the bus; `sudo nvidia-smi --gpu-reset` or a reboot may bring it back",
    "NVML_ERROR_FUNCTION_NOT_FOUND": "this driver is too old: MIG with placements needs release 470 or newer",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": (
        "the driver's library and its kernel module are of different versions; reboot, or reload the module"
    ),
    "NVML_ERROR_TIMEOUT": "the driver did not answer in time",
    "NVML_ERROR_NOT_FOUND": "there is no such thing (any more)",
}
GONE = ("NVML_ERROR_NOT_FOUND", "NVML_ERROR_INVALID_ARGUMENT")


class NvmlCallError(DriverError):
    """A call that NVML refused, with the name of its error code; what it means is in the text."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Process:
    """A process that holds memory of a GPU or of one of its MIG devices."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True)
class ComputeInstance:
    """A compute instance: part, or all, of a GPU instance's multiprocessors."""

    instance_id: int
    profile_id: int
    start: int
    size: int


@dataclass(frozen=True)
class ComputeProfile:
    """A kind of compute instance: its id and how many compute slices it takes."""

    profile_id: int
    slices: int


@dataclass(frozen=True)
class GpuInstance:
    """A GPU instance: a profile at a place of the memory axis, and the compute instances in it."""

    instance_id: int
    profile_id: int
    start: int
    size: int
    compute: tuple[ComputeInstance, ...]


@dataclass(frozen=True)
class MigDevice:
    """What a program can run on: a compute instance, with the UUID that ``CUDA_VISIBLE_DEVICES`` takes."""

    uuid: str
    name: str
    gpu_instance_id: int
    compute_instance_id: int
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class GpuFacts:
    """One GPU. ``mig_now`` and ``mig_pending`` are ``None`` where it has no MIG; pending takes effect at a reset."""

    index: int
    uuid: str
    name: str
    pci_device_id: str
    mig_now: bool | None
    mig_pending: bool | None


def open_nvml(library: Any = None) -> Nvml:  # noqa: ANN401 - a module, or what stands for it
    """Load the library and start it.

    Parameters
    ----------
    library : module, optional
        With the functions of `pynvml`; by default that.

    Raises
    ------
    MissingExtraError
        It is not installed.
    DriverError
        There is no driver, in one line.
    """
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except ModuleNotFoundError:
            raise MissingExtraError("this needs nvidia-ml-py: pip install 'preba[mig]'") from None
    nvml = Nvml(library)
    try:
        nvml.call("start NVML", "nvmlInit")
    except NvmlCallError as error:
        if error.code in {"NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_DRIVER_NOT_LOADED"}:
            why = "libnvidia-ml.so.1 is missing" if "LIBRARY" in error.code else "its kernel module is not loaded"
            raise DriverError(NO_DRIVER.format(why=why)) from None
        raise
    return nvml


class Nvml:
    """NVML, started; a context manager that shuts it down."""

    def __init__(self, library: Any) -> None:  # noqa: ANN401 - a module, or what stands for it
        self._library = library
        names = (name for name in dir(library) if name.startswith("NVML_ERROR_"))
        self._codes = {getattr(library, name): name for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(NvmlCallError):
            self.call("shut NVML down", "nvmlShutdown")

    def call(self, what: str, function: str, *arguments: Any) -> Any:  # noqa: ANN401 - NVML's own
        """Call one function of the library; `what` begins the message of an error."""
        try:
            return getattr(self._library, function)(*arguments)
        except self._library.NVMLError as error:
            code = self._code(error)
            raise NvmlCallError(f"cannot {what}: {MEANINGS.get(code, str(error))} ({code})", code) from error

    def _code(self, error: Exception) -> str:
        value = getattr(error, "value", None)
        return self._codes.get(value, f"NVML error {value}")

    # what there is

    def driver_version(self) -> str:
        """The driver's release, such as ``570.86.15``."""
        return str(self.call("ask for the driver's version", "nvmlSystemGetDriverVersion"))

    def gpus(self) -> tuple[GpuFacts, ...]:
        """Every GPU of the machine."""
        count = self.call("count the GPUs", "nvmlDeviceGetCount")
        return tuple(self._gpu(index) for index in range(count))

    def _handle(self, index: int) -> Any:  # noqa: ANN401 - an opaque pointer
        return self.call(f"open GPU {index}", "nvmlDeviceGetHandleByIndex", index)

    def _gpu(self, index: int) -> GpuFacts:
        handle = self._handle(index)
        mode: list[bool | None]
        try:
            mode = [bool(each) for each in self.call("read the MIG mode", "nvmlDeviceGetMigMode", handle)]
        except NvmlCallError as error:
            if error.code != "NVML_ERROR_NOT_SUPPORTED":
                raise
            mode = [None, None]
        pci = self.call(f"ask GPU {index} for its PCI id", "nvmlDeviceGetPciInfo", handle)
        return GpuFacts(
            index=index,
            uuid=_text(self.call(f"ask GPU {index} for its UUID", "nvmlDeviceGetUUID", handle)),
            name=_text(self.call(f"ask GPU {index} for its name", "nvmlDeviceGetName", handle)),
            pci_device_id=f"0x{(pci.pciDeviceId >> 16) & 0xFFFF:04X}",
            mig_now=mode[0],
            mig_pending=mode[1],
        )

    def profiles(self, index: int) -> tuple[SliceProfile, ...]:
        """The GPU instance profiles a GPU offers, with their placements, largest first.

        Returns
        -------
        tuple of SliceProfile
            Empty where the driver tells none, as some do before MIG mode is on.
        """
        handle, found = self._handle(index), []
        for number in range(self._library.NVML_GPU_INSTANCE_PROFILE_COUNT):
            try:
                info = self.call(
                    "read a GPU instance profile", "nvmlDeviceGetGpuInstanceProfileInfo", handle, number, 2
                )
            except NvmlCallError as error:
                if error.code in {"NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_INVALID_ARGUMENT", "NVML_ERROR_NOT_FOUND"}:
                    continue
                raise
            name = _text(info.name).removeprefix("MIG ").strip()
            starts, size = self._placements(handle, name, info.id)
            found.append(
                SliceProfile(
                    name=name,
                    profile_id=info.id,
                    g=info.sliceCount,
                    sms=info.multiprocessorCount or None,
                    memory_mib=info.memorySizeMB or None,
                    instances_max=info.instanceCount,
                    copy_engines=info.copyEngineCount,
                    decoders=info.decoderCount,
                    jpeg_engines=info.jpegCount,
                    ofa_engines=info.ofaCount,
                    encoders=info.encoderCount,
                    starts=starts,
                    size=size,
                )
            )
        return tuple(sorted(found, key=lambda each: (-each.g, -(each.memory_mib or 0), each.name)))

    def _placements(self, handle: Any, name: str, profile_id: int) -> tuple[tuple[int, ...] | None, int | None]:  # noqa: ANN401
        function, what = "nvmlDeviceGetGpuInstancePossiblePlacements", f"ask for the placements of {name}"
        count = ctypes.c_uint(0)
        try:
            self.call(what, function, handle, profile_id, None, ctypes.byref(count))
            rows = (self._library.c_nvmlGpuInstancePlacement_t * max(count.value, 1))()
            self.call(what, function, handle, profile_id, rows, ctypes.byref(count))
        except NvmlCallError as error:
            if error.code == "NVML_ERROR_NOT_SUPPORTED":
                return None, None
            raise
        places = sorted({(rows[k].start, rows[k].size) for k in range(count.value)})
        if not places or len({size for _, size in places}) != 1:
            return None, None
        return tuple(start for start, _ in places), places[0][1]

    def gpu_instances(self, index: int, profiles: tuple[SliceProfile, ...]) -> tuple[GpuInstance, ...]:
        """The GPU instances that exist, by start; privileged users only."""
        handle, found = self._handle(index), []
        for profile in profiles:
            pointers = self._instances(
                f"list the {profile.name} instances of GPU {index}", "nvmlDeviceGetGpuInstances", handle,
                profile.profile_id, self._library.c_nvmlGpuInstance_t, profile.instances_max,
            )  # fmt: skip
            for pointer in pointers:
                info = self.call("read a GPU instance", "nvmlGpuInstanceGetInfo", pointer)
                found.append(
                    GpuInstance(
                        instance_id=info.id,
                        profile_id=info.profileId,
                        start=info.placement.start,
                        size=info.placement.size,
                        compute=self._compute_instances(pointer, info.id),
                    )
                )
        return tuple(sorted(found, key=lambda each: each.start))

    def _instances(  # opaque pointers and ctypes' types have no better type
        self,
        what: str,
        function: str,
        parent: Any,  # noqa: ANN401
        profile_id: int | None,
        pointer: Any,  # noqa: ANN401
        most: int,
    ) -> list[Any]:
        rows = (pointer * max(most, 1))()
        count = ctypes.c_uint(most)
        self.call(what, function, parent, profile_id, rows, ctypes.byref(count))
        return [rows[k] for k in range(count.value)]

    def _compute_kinds(self, pointer: Any) -> Iterator[Any]:  # noqa: ANN401 - an opaque pointer
        for number in range(self._library.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            try:
                yield self.call(
                    "read a compute instance profile", "nvmlGpuInstanceGetComputeInstanceProfileInfo", pointer, number,
                    self._library.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED, 1,
                )  # fmt: skip
            except NvmlCallError as error:
                if error.code not in {
                    "NVML_ERROR_NOT_SUPPORTED",
                    "NVML_ERROR_INVALID_ARGUMENT",
                    "NVML_ERROR_NOT_FOUND",
                }:
                    raise

    def _compute_instances(self, pointer: Any, instance_id: int) -> tuple[ComputeInstance, ...]:  # noqa: ANN401
        found = []
        for kind in self._compute_kinds(pointer):
            for each in self._instances(
                f"list the compute instances of GPU instance {instance_id}", "nvmlGpuInstanceGetComputeInstances",
                pointer, kind.id, self._library.c_nvmlComputeInstance_t, kind.instanceCount,
            ):  # fmt: skip
                info = self.call("read a compute instance", "nvmlComputeInstanceGetInfo", each)
                found.append(ComputeInstance(info.id, info.profileId, info.placement.start, info.placement.size))
        return tuple(sorted(set(found), key=lambda each: each.instance_id))

    def mig_devices(self, index: int) -> tuple[MigDevice, ...]:
        """The MIG devices of a GPU, with what runs on them; any user may ask."""
        handle, found = self._handle(index), []
        for number in range(self.call("count the MIG devices", "nvmlDeviceGetMaxMigDeviceCount", handle)):
            try:
                device = self.call("open a MIG device", "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            except NvmlCallError as error:
                if error.code in GONE:
                    continue
                raise
            ask: Callable[..., Any] = self.call
            found.append(
                MigDevice(
                    uuid=_text(ask("ask a MIG device for its UUID", "nvmlDeviceGetUUID", device)),
                    name=_text(ask("ask a MIG device for its name", "nvmlDeviceGetName", device)),
                    gpu_instance_id=ask("ask for a GPU instance's id", "nvmlDeviceGetGpuInstanceId", device),
                    compute_instance_id=ask(
                        "ask for a compute instance's id", "nvmlDeviceGetComputeInstanceId", device
                    ),
                    processes=self._processes(device),
                )
            )
        return tuple(found)

    def processes(self, index: int) -> tuple[Process, ...]:
        """What runs on a GPU that is not cut."""
        return self._processes(self._handle(index))

    def _processes(self, device: Any) -> tuple[Process, ...]:  # noqa: ANN401 - an opaque pointer
        found: dict[int, Process] = {}
        for function in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
            try:
                rows = self.call("list processes", function, device)
            except NvmlCallError as error:
                if error.code == "NVML_ERROR_NOT_SUPPORTED":  # graphics processes of a MIG device
                    continue
                raise
            for row in rows:
                found[row.pid] = Process(row.pid, row.usedGpuMemory)
        return tuple(found[pid] for pid in sorted(found))

    # what changes it

    def set_mig_mode(self, index: int, *, on: bool) -> None:
        """Switch MIG mode; a GPU that has to be reset first keeps the old one, pending."""
        what = f"switch MIG mode {'on' if on else 'off'} on GPU {index}"
        status = self.call(what, "nvmlDeviceSetMigMode", self._handle(index), int(on))
        if status != self._library.NVML_SUCCESS:
            code = self._code(self._library.NVMLError(status))
            raise NvmlCallError(f"cannot {what}: {MEANINGS.get(code, code)} ({code})", code)

    def create_gpu_instance(self, index: int, profile: SliceProfile, start: int) -> int:
        """Create a GPU instance at a place; its id."""
        place = self._library.c_nvmlGpuInstancePlacement_t(start, profile.size)
        pointer = self.call(
            f"create {profile.name}@{start} on GPU {index}", "nvmlDeviceCreateGpuInstanceWithPlacement",
            self._handle(index), profile.profile_id, ctypes.byref(place),
        )  # fmt: skip
        return int(self.call("read the new GPU instance", "nvmlGpuInstanceGetInfo", pointer).id)

    def destroy_gpu_instance(self, index: int, instance_id: int) -> None:
        """Remove a GPU instance that holds no compute instance."""
        what = f"remove GPU instance {instance_id} of GPU {index}"
        self.call(what, "nvmlGpuInstanceDestroy", self._instance(index, instance_id))

    def _instance(self, index: int, instance_id: int) -> Any:  # noqa: ANN401 - an opaque pointer
        what = f"open GPU instance {instance_id} of GPU {index}"
        return self.call(what, "nvmlDeviceGetGpuInstanceById", self._handle(index), instance_id)

    def compute_profiles(self, index: int, instance_id: int) -> tuple[ComputeProfile, ...]:
        """The kinds of compute instance a GPU instance may hold."""
        kinds = self._compute_kinds(self._instance(index, instance_id))
        return tuple(ComputeProfile(kind.id, kind.sliceCount) for kind in kinds)

    def create_compute_instance(
        self, index: int, instance_id: int, profile_id: int, place: tuple[int, int] | None = None
    ) -> None:
        """Create a compute instance, at a start and size in its GPU instance or where the driver puts it."""
        what = f"create the compute instance of GPU instance {instance_id} of GPU {index}"
        pointer = self._instance(index, instance_id)
        if place is None:
            self.call(what, "nvmlGpuInstanceCreateComputeInstance", pointer, profile_id)
            return
        where = ctypes.byref(self._library.c_nvmlComputeInstancePlacement_t(*place))
        self.call(what, "nvmlGpuInstanceCreateComputeInstanceWithPlacement", pointer, profile_id, where)

    def destroy_compute_instance(self, index: int, instance_id: int, compute_id: int) -> None:
        """Remove a compute instance."""
        what = f"remove compute instance {compute_id} of GPU instance {instance_id} of GPU {index}"
        instance = self._instance(index, instance_id)
        pointer = self.call(what, "nvmlGpuInstanceGetComputeInstanceById", instance, compute_id)
        self.call(what, "nvmlComputeInstanceDestroy", pointer)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
