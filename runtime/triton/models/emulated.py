"""A slice that does nothing but take its time: sleeps what its latency profile says for each batch.

Runs inside Triton's Python backend. Tensors come through DLPack only: the backend of this Triton version hands out
wrong values under NumPy 2 otherwise. Each row of INPUT is (audio length in s, factor on the time, 0, mark); only with
the mark are the first two believed, so that clients which know nothing of it may send anything.
"""

import contextlib
import fcntl
import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils

MARK = 1717.0
NUMBER_STEP = 4096
FINE_NS = 150_000
"""Slept this much less than asked, then in small steps: a sleep ends late, never early."""


def as_tensor(name, array):
    """An output. NumPy 2's arrays reach Triton 2.51 by DLPack only, NumPy 1's do not.

    There Triton gives the capsule another name than the one NumPy looks for when it goes, and the call never returns.
    """
    numpy1 = np.__version__.startswith("1.")
    return pb_utils.Tensor(name, array) if numpy1 else pb_utils.Tensor.from_dlpack(name, array)


def sleep_until(target_ns):
    """Returns at a moment of the monotonic clock, or as soon as possible after it."""
    while True:
        left_ns = target_ns - time.monotonic_ns()
        if left_ns <= 0:
            return
        time.sleep((left_ns - FINE_NS) / 1e9 if left_ns > 2 * FINE_NS else min(left_ns, 20_000) / 1e9)


@contextlib.contextmanager
def alone(lock):
    """Holds the slice: instances that share one execute one after another."""
    if lock is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_UN)


class TritonPythonModel:
    """Sleeps its table."""

    def initialize(self, args):
        """Reads the table beside this file."""
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "table.json"), encoding="utf-8") as file:
            table = json.load(file)
        self.times_ns = table["times_ns"]
        self.grid_s = table["grid_s"]
        self.slice_index = table["slice_index"]
        self.batches = 0
        self.lock = None
        if table["one_server"]:
            self.slice_index += int(args["model_instance_name"].rsplit("_", 1)[1])
        elif table["instances"] > 1:
            self.lock = open(os.path.join(folder, "table.json"), encoding="utf-8")  # closed with the process

    def execute(self, requests):
        """One batch: all requests that Triton hands over together."""
        called_ns = time.monotonic_ns()
        rows = [np.array(np.from_dlpack(pb_utils.get_input_tensor_by_name(one, "INPUT"))) for one in requests]
        units = sum(len(mine) for mine in rows)
        marked = [row for mine in rows for row in mine if row[3] == MARK]
        longest = 0
        if self.grid_s and marked:
            longest = int(np.ceil(max(float(row[0]) for row in marked) / self.grid_s - 1e-4))
        table = self.times_ns[min(max(longest, 0), len(self.times_ns) - 1)]
        factor = float(rows[0][0][1]) if rows[0][0][3] == MARK else 1.0
        with alone(self.lock):
            start_ns = time.monotonic_ns() if self.lock is not None else called_ns
            sleep_until(start_ns + int(table[min(units, len(table) - 1)] * factor))
            end_ns = time.monotonic_ns()
        number = self.batches * NUMBER_STEP + self.slice_index  # different from every other slice's
        stages = np.array([[start_ns, end_ns, number, len(requests), self.slice_index]], dtype=np.int64)
        self.batches += 1
        responses = []
        for mine in rows:
            outputs = [
                as_tensor("OUTPUT", np.array(mine[:, :1])),
                as_tensor("PREBA", np.repeat(stages, len(mine), axis=0)),
            ]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
