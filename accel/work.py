"""Cost formulas of preprocessing, vectorised: work per request in microseconds, and what a slice makes of it.

Nothing here knows of queues, routes or engines; ``to_ns`` is the one place where work becomes integer time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from preba.preprocessing_costs import AudioCost, DaliImageCost, HopCost, ImageCost
from preba.units import NS_PER_S, NS_PER_US

__all__ = [
    "audio_seconds",
    "audio_work_us",
    "bent_us",
    "beyond_line_us",
    "hop_ns",
    "image_work_us",
    "linear_us",
    "size_100kb",
    "slice_audio_factor",
    "slice_image_factor",
    "to_ns",
]

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

BYTES_PER_100KB = 100_000


def to_ns(work_us: Float64) -> Int64:
    """Microseconds to integer nanoseconds, rounded to the nearest (ties to even)."""
    return np.rint(work_us * NS_PER_US).astype(np.int64)


def size_100kb(jpeg_bytes: Int64) -> Float64:
    """File sizes in units of 100,000 bytes, float64[n]."""
    return jpeg_bytes / BYTES_PER_100KB


def audio_seconds(audio_ns: Int64) -> Float64:
    """Audio lengths in seconds, float64[n]."""
    return audio_ns / NS_PER_S


def linear_us(fixed_us: float, per_unit_us: float, units: Float64) -> Float64:
    """``fixed_us + per_unit_us * units``, float64[n]."""
    return fixed_us + per_unit_us * units


def bent_us(line_us: Float64, bends: Sequence[tuple[float, float]], units: Float64) -> Float64:
    """A line with its bends, never negative, float64[n]."""
    found: Float64 = np.maximum(line_us + beyond_line_us(bends, units), 0.0) if bends else line_us
    return found


def beyond_line_us(bends: Sequence[tuple[float, float]], units: Float64) -> Float64:
    """How far bends are from their line at some sizes, float64[n]."""
    sizes, beyond_us = np.array(bends, dtype=np.float64).T
    found: Float64 = np.interp(units, sizes, beyond_us)
    return found


def image_work_us(cost: ImageCost, jpeg_bytes: Int64) -> Float64:
    """Work of images by file size, in microseconds, float64[n]."""
    sizes = size_100kb(jpeg_bytes)
    return bent_us(linear_us(cost.fixed_us.value, cost.per_100kb_us.value, sizes), cost.bends, sizes)


def audio_work_us(cost: AudioCost, audio_ns: Int64) -> Float64:
    """Work of utterances by length, in microseconds, float64[n]."""
    seconds = audio_seconds(audio_ns)
    return bent_us(linear_us(cost.fixed_us.value, cost.per_audio_s_us.value, seconds), cost.bends, seconds)


def slice_image_factor(cost: DaliImageCost, *, gpcs: int, jpeg_engines: int, hw_decoder_share: float) -> float:
    """Time of an image on a slice over its work on one GPC without a JPEG engine.

    The engines decode their share of the images while the SMs decode the others and resize, crop and
    normalise all of them; the slower of the two paces the batch. Without engines the SMs do everything,
    whatever the share.

    Parameters
    ----------
    cost : DaliImageCost
    gpcs : int
        GPCs of the slice.
    jpeg_engines : int
        JPEG engines of the slice; none on most A100 slices, one per GPC on Hopper.
    hw_decoder_share : float
        Share of the images sent to engines, 0..1.

    Returns
    -------
    float
    """
    decode = cost.decode_fraction.value
    if jpeg_engines == 0:
        return 1.0 / gpcs
    engines = hw_decoder_share * decode / (jpeg_engines * cost.engine_gpcs.value)
    sms = ((1.0 - hw_decoder_share) * decode + (1.0 - decode)) / gpcs
    return max(engines, sms)


def slice_audio_factor(*, gpcs: int) -> float:
    """Time of an utterance on a slice over its work on one GPC."""
    return 1.0 / gpcs


def hop_ns(cost: HopCost, tensor_bytes: Float64) -> tuple[Int64, Int64]:
    """How long each tensor takes the link, and when it has arrived.

    Parameters
    ----------
    cost : HopCost
    tensor_bytes : float64[n]
        What preprocessing hands to the model, per request.

    Returns
    -------
    occupancy_ns, latency_ns : int64[n]
        Bytes over bandwidth (bytes per ns are GB/s), and that plus the latency, which does not hold the link.
    """
    occupancy_ns = np.rint(tensor_bytes / cost.bandwidth_gb_per_s.value).astype(np.int64)
    return occupancy_ns, occupancy_ns + round(cost.latency_us.value * NS_PER_US)
