"""A slice that runs an ONNX model under ONNX Runtime. Runs inside Triton's Python backend.

A request brings INPUT (the tensors themselves) or SLOTS: rows of the shared memory that preprocessing wrote, or, where
this process preprocesses too, of the shared memory that holds the encoded files.
"""

import json
import mmap
import os
import time

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

NUMBER_STEP = 4096


def as_tensor(name, array):
    """An output, as in emulated.py: NumPy 2's arrays go through DLPack, NumPy 1's must not."""
    numpy1 = np.__version__.startswith("1.")
    return pb_utils.Tensor(name, array) if numpy1 else pb_utils.Tensor.from_dlpack(name, array)


class TritonPythonModel:
    """Runs the model beside this file."""

    def initialize(self, args):
        """Opens the session and, if there is any, the shared memory."""
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "slice.json"), encoding="utf-8") as file:
            self.facts = json.load(file)
        if self.facts["cores"]:
            os.sched_setaffinity(0, self.facts["cores"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.facts["threads"]
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(self.facts["onnx"], options, providers=self._providers())
        if self.session.get_providers()[0] != self.facts["providers"][0]:
            # ONNX Runtime would go on with the CPU and only warn.
            raise RuntimeError(f"ONNX Runtime cannot use {self.facts['providers'][0]} here (onnxruntime-gpu has it)")
        self.name = self.session.get_inputs()[0].name
        self.outputs = [one.name for one in self.session.get_outputs()][:1]
        self.shape = self.facts["shape"]
        self.pool = self.preprocessor = None
        if self.facts["pool"]:
            with open(self.facts["pool"], "r+b") as file:
                self.memory = mmap.mmap(file.fileno(), 0)
            slots = np.frombuffer(self.memory, dtype=np.float32).reshape(-1, self.facts["slot_floats"])
            self.pool = slots[:, : int(np.prod(self.shape))] if not self.facts["preprocess"] else slots.view(np.uint8)
        if self.facts["preprocess"]:
            from accel.executors import build_preprocessor

            self.preprocessor = build_preprocessor(**self.facts["preprocess"])
        self.batches = 0
        self._run(np.zeros((1, *self.shape), dtype=np.float32))

    def _providers(self):
        """Execution providers; on a share of a GPU with the stream of its green context."""
        share = self.facts["share"]
        if not share:
            return self.facts["providers"]
        import ctypes
        import sys

        sys.path.insert(0, os.path.dirname(__file__))
        import green

        stream, count = green.partition(ctypes.CDLL("libcuda.so.1"), 0, share["parts"], share["first"], share["count"])
        pb_utils.Logger.log_info(f"this slice has {count} multiprocessors")
        return [("CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": str(stream)})]

    def _run(self, batch):
        return self.session.run(self.outputs, {self.name: batch})[0]

    def _preprocessed(self, places):
        """Tensors of encoded files, 0 for those that cannot be decoded, and which those are."""
        files = []
        for place in places:
            row = self.pool[place]
            files.append(row[8 : 8 + int(row[:8].view(np.int64)[0])].tobytes())
        found = np.zeros((len(places), *self.shape), dtype=np.float32)
        bad = np.zeros(len(places), dtype=np.int64)
        for row, tensor in enumerate(self.preprocessor.preprocess(files)):
            if isinstance(tensor, np.ndarray) and tensor.shape[-1] <= self.shape[-1]:
                found[row, ..., : tensor.shape[-1]] = tensor
            else:
                bad[row] = 1
        return found, bad

    def execute(self, requests):
        """One batch: all requests that Triton hands over together."""
        start_ns = time.monotonic_ns()
        parts, status, preprocess_ns = [], [], 0
        for one in requests:
            slots = pb_utils.get_input_tensor_by_name(one, "SLOTS")
            if slots is not None and self.preprocessor is not None:
                places = np.array(np.from_dlpack(slots)).reshape(-1)
                began_ns = time.monotonic_ns()
                tensors, bad = self._preprocessed(places)
                preprocess_ns += time.monotonic_ns() - began_ns
                parts.append(tensors)
                status.append(bad)
            elif slots is not None:
                places = np.array(np.from_dlpack(slots)).reshape(-1)
                parts.append(self.pool[places].reshape(-1, *self.shape))
            else:
                parts.append(np.from_dlpack(pb_utils.get_input_tensor_by_name(one, "INPUT")))
        answers = np.asarray(self._run(np.concatenate(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0])))
        answers = answers.reshape(len(answers), -1).astype(np.float32)
        place = self.facts["slice_index"]
        number = self.batches * NUMBER_STEP + place  # different from every other slice's
        stages = np.array([[start_ns, time.monotonic_ns(), number, len(requests), place]], dtype=np.int64)
        self.batches += 1
        responses = []
        first = 0
        for place, part in enumerate(parts):
            mine = answers[first : first + len(part)]
            first += len(part)
            outputs = [
                as_tensor("OUTPUT", np.array(mine)),
                as_tensor("PREBA", np.repeat(stages, len(part), axis=0)),
            ]
            if status:
                told = np.stack([np.full(len(part), preprocess_ns, dtype=np.int64), status[place]], axis=1)
                outputs.append(as_tensor("STATUS", told))
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
