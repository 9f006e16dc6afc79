"""A share of a GPU's multiprocessors for this process: a CUDA green context and a stream in it. CUDA driver 12.4+.

Copied beside model.py in model repositories. Everything is a call of the driver library, which is given, so that a
stand-in can take its place. Memory bandwidth and caches are not divided, and processes that share a GPU take turns
unless NVIDIA's MPS daemon runs.

Source: CUDA Driver API reference, module "Green Contexts".
"""

import ctypes

_SM = 1  # CU_DEV_RESOURCE_TYPE_SM
_DEFAULT_STREAM = 1  # CU_GREEN_CTX_DEFAULT_STREAM
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_MOST_GROUPS = 64


class Resource(ctypes.Structure):
    """``CUdevResource``: what there is to share; its inside is the driver's but for the number of multiprocessors."""

    _fields_ = [("kind", ctypes.c_int), ("inside", ctypes.c_ubyte * 92), ("sm_count", ctypes.c_uint),
                ("more", ctypes.c_ubyte * 44)]  # fmt: skip


class DriverError(RuntimeError):
    """The CUDA driver refused a call."""


def _call(cuda, name, *arguments):
    status = getattr(cuda, name)(*arguments)
    if status != 0:
        raise DriverError(f"{name} failed with CUDA error {status}")


def partition(cuda, device, parts, first, count):
    """Makes a green context of ``count`` of ``parts`` equal parts of a device, from part ``first`` on.

    Parameters
    ----------
    cuda : ctypes.CDLL
        libcuda.so.1.
    device : int
        Ordinal among the visible devices.
    parts, first, count : int

    Returns
    -------
    tuple of int
        Handle of a stream in it, and how many multiprocessors it has.
    """
    _call(cuda, "cuInit", 0)
    handle = ctypes.c_int()
    _call(cuda, "cuDeviceGet", ctypes.byref(handle), device)
    primary = ctypes.c_void_p()
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(primary), handle)
    _call(cuda, "cuCtxSetCurrent", primary)
    whole = Resource()
    _call(cuda, "cuDeviceGetDevResource", handle, ctypes.byref(whole), _SM)
    groups = (Resource * _MOST_GROUPS)()
    found = ctypes.c_uint(0)
    rest = Resource()
    each = whole.sm_count // parts
    while each > 0:
        found.value = parts
        _call(cuda, "cuDevSmResourceSplitByCount", groups, ctypes.byref(found), ctypes.byref(whole),
              ctypes.byref(rest), 0, each)  # fmt: skip
        if found.value >= parts:  # the driver rounds the size of a group up, which may leave too few of them
            break
        each -= 2
    if found.value < parts:
        raise DriverError(f"{whole.sm_count} multiprocessors cannot be cut into {parts} parts")
    mine = (Resource * count)(*[groups[place] for place in range(first, first + count)])
    description = ctypes.c_void_p()
    _call(cuda, "cuDevResourceGenerateDesc", ctypes.byref(description), mine, count)
    green = ctypes.c_void_p()
    _call(cuda, "cuGreenCtxCreate", ctypes.byref(green), description, handle, _DEFAULT_STREAM)
    stream = ctypes.c_void_p()
    _call(cuda, "cuGreenCtxStreamCreate", ctypes.byref(stream), green, _NON_BLOCKING, 0)
    return int(stream.value or 0), sum(one.sm_count for one in mine)
