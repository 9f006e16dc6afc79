"""The one check every sample passes; nothing statistical."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from preba.errors import TraceError


def checked_sample(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The values as a one-dimensional float64 array.

    Raises
    ------
    TraceError
        They are not one-dimensional or not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise TraceError(f"values: must have one dimension, got {sample.ndim}")
    # The sum is not finite when a value is not (or on overflow): far cheaper than a mask of the whole.
    if not math.isfinite(float(sample.sum())):
        raise TraceError("values: must be finite numbers")
    return sample
