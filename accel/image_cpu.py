"""Image preprocessing on one CPU core with OpenCV: decode, shorter side to 256, centre crop 224, normalise, NCHW.

Downscaling averages over areas, which stays within 0.04 (mean of absolute differences, in normalised units) of the
antialiased bilinear filter that DALI and torchvision use; tests/accel/test_executors.py measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from accel.inputs import InputLimits, check_jpeg
from preba.errors import InputError

SHORTER_SIDE = 256
CROP = 224
MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's channels (R, G, B), full scale 1. Source: torchvision's documentation of its pretrained models."""
STD = (0.229, 0.224, 0.225)


def resized_size(width: int, height: int) -> tuple[int, int]:
    """Width and height after the shorter side has become ``SHORTER_SIDE``."""
    scale = SHORTER_SIDE / min(width, height)
    return max(round(width * scale), SHORTER_SIDE), max(round(height * scale), SHORTER_SIDE)


class CpuImages:
    """Preprocesses images; one instance may be used by several threads.

    Parameters
    ----------
    dtype : str
        ``fp32`` or ``fp16``.
    limits : InputLimits
    """

    modality = "image"
    backend = "cpu"

    def __init__(self, dtype: str, limits: InputLimits) -> None:
        self._dtype = np.float16 if dtype == "fp16" else np.float32
        self._limits = limits
        self._scale = np.array([1 / (255 * std) for std in STD], dtype=np.float32)
        self._shift = np.array([-mean / std for mean, std in zip(MEAN, STD, strict=True)], dtype=np.float32)
        cv2.setNumThreads(0)  # one core per call: cores are given out by whoever calls

    def preprocess(self, inputs: Sequence[bytes]) -> list[NDArray[Any] | InputError]:
        """Preprocesses each input; a broken one gives its error and harms no other.

        Returns
        -------
        list of float32 or float16 [3, 224, 224], or InputError
        """
        found: list[NDArray[Any] | InputError] = []
        for content in inputs:
            try:
                found.append(self._one(content))
            except InputError as error:
                found.append(error)
        return found

    def _one(self, content: bytes) -> NDArray[Any]:
        check_jpeg(content, self._limits)
        try:
            pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise InputError(f"the image cannot be decoded: {error.err}") from error
        if pixels is None:
            raise InputError("the image cannot be decoded")
        height, width = pixels.shape[:2]
        size = resized_size(width, height)
        smaller = min(height, width) > SHORTER_SIDE
        try:
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
        except cv2.error as error:
            raise InputError(f"the image cannot be resized: {error.err}") from error
        left, top = (size[0] - CROP) // 2, (size[1] - CROP) // 2
        crop = pixels[top : top + CROP, left : left + CROP, ::-1].astype(np.float32)
        crop *= self._scale
        crop += self._shift
        return np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=self._dtype)

    def close(self) -> None:
        """Nothing is held."""
