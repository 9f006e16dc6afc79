"""An ONNX model for slices that compute, made on the spot: convolutions with fixed random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["write_convolutions"]


def write_convolutions(path: Path, widths: Sequence[int] = (32, 64, 128, 128)) -> None:
    """Strided 3 x 3 convolutions and a mean: float32[n, 3, 224, 224] to float32[n, widths[-1]].

    With the default widths some 300 million multiplications an image.

    Parameters
    ----------
    path : Path
    widths : sequence of int
        Channels after each convolution.

    Raises
    ------
    ImportError
        The ``onnx`` package is not installed.
    """
    import onnx

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    rng = np.random.default_rng(3)
    nodes, constants, before, channels = [], [], "x", 3
    for place, width in enumerate(widths):
        weights = (rng.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
        constants.append(onnx.numpy_helper.from_array(weights, f"w{place}"))
        nodes += [
            helper.make_node("Conv", [before, f"w{place}"], [f"c{place}"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{place}"], [f"r{place}"]),
        ]
        before, channels = f"r{place}", width
    nodes.append(helper.make_node("ReduceMean", [before], ["y"], axes=[2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes, "convolutions", [helper.make_tensor_value_info("x", kind, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("y", kind, ["n", channels])], constants,
    )  # fmt: skip
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    built.ir_version = 8
    onnx.save(built, path)
