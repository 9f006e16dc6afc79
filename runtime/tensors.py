"""Shared memory for preprocessed tensors: one slot per request inside the server, written once, read by its slice.

Workers and slices map the same file in /dev/shm; only slot numbers travel between them.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preba.errors import ServerError
from runtime.janitor import SHARED_MEMORY

Float32 = NDArray[np.float32]


class TensorPool:
    """``slots`` rows of ``slot_floats`` float32 in shared memory.

    Parameters
    ----------
    path : Path
        In /dev/shm.
    slots, slot_floats : int
        Both given: create it. Otherwise open the one that is there.
    """

    def __init__(self, path: Path, slots: int = 0, slot_floats: int = 0) -> None:
        self.path = path
        if slots:
            with path.open("wb") as file:
                file.truncate(slots * slot_floats * 4)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.slot_floats = slot_floats

    @staticmethod
    def named(name: str, slots: int, slot_floats: int) -> TensorPool:
        """Creates a pool under a name.

        Raises
        ------
        ServerError
            There is too little shared memory for it: a process that writes beyond it would be killed.
        """
        wanted, there = slots * slot_floats * 4, os.statvfs(SHARED_MEMORY)
        if wanted > there.f_bavail * there.f_frsize:
            raise ServerError(
                f"{SHARED_MEMORY} has {there.f_bavail * there.f_frsize >> 20} MiB left, {wanted >> 20} are needed: "
                "lower live.requests_max, or give more (docker: --shm-size)"
            )
        return TensorPool(SHARED_MEMORY / name, slots, slot_floats)

    def write(self, slot: int, tensor: NDArray[np.floating]) -> None:
        """Writes a tensor into a slot; the rest of the slot keeps what was there."""
        flat = np.frombuffer(self._map, dtype=np.float32, count=tensor.size, offset=slot * self.slot_floats * 4)
        np.copyto(flat, tensor.reshape(-1), casting="same_kind")

    @property
    def slot_bytes(self) -> int:
        """Largest file that `write_file` takes."""
        return self.slot_floats * 4 - 8

    def write_file(self, slot: int, content: bytes) -> None:
        """Writes an encoded file into a slot, its length (int64) in front."""
        place = slot * self.slot_floats * 4
        self._map[place : place + 8] = len(content).to_bytes(8, "little")
        self._map[place + 8 : place + 8 + len(content)] = content

    def remove(self) -> None:
        """Removes the file; those who have it mapped keep it until they end."""
        self.path.unlink(missing_ok=True)
