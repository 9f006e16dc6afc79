"""Speech preprocessing on one CPU core: decode, 16 kHz, pre-emphasis, 80-band log-mel, normalised per utterance.

Resampling by a windowed sinc; frames of 25 ms (Hann) every 10 ms, centred, the edges reflected; 512-point power
spectrum; Slaney's mel scale with bands of equal area; natural logarithm of the power plus 2^-24; every band to mean 0
and standard deviation 1 over the utterance.

Source: the defaults of NVIDIA NeMo's AudioToMelSpectrogramPreprocessor, on which PREBA's audio models were trained;
mel scale: M. Slaney, Auditory Toolbox, 1998.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal, sparse

from accel.inputs import InputLimits, WavFile, read_wav
from preba.errors import InputError

RATE_HZ = 16_000
PRE_EMPHASIS = 0.97
WINDOW = 400
HOP = 160
POINTS = 512
BANDS = 80
LOBES = 16
LOG_GUARD = 2.0**-24
STD_GUARD = 1e-5

Float32 = NDArray[np.float32]


def _mel(frequency_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear to 1 kHz, logarithmic above."""
    linear = frequency_hz * 3.0 / 200.0
    return np.where(
        frequency_hz < 1000.0, linear, 15.0 + np.log(np.maximum(frequency_hz, 1.0) / 1000.0) * 27.0 / math.log(6.4)
    )


def _frequency_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * math.log(6.4) / 27.0))


@functools.cache
def mel_filters() -> Float32:
    """The filter bank, float32[80, 257]: triangles on the mel scale, each of area 1 over frequency in Hz."""
    lowest, highest = _mel(np.array([0.0, RATE_HZ / 2.0]))
    edges_hz = _frequency_hz(np.linspace(float(lowest), float(highest), BANDS + 2))
    bins_hz = np.linspace(0.0, RATE_HZ / 2.0, POINTS // 2 + 1)
    filters = np.zeros((BANDS, len(bins_hz)))
    for band in range(BANDS):
        low, middle, high = edges_hz[band : band + 3]
        rising, falling = (bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)
        filters[band] = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)
    return filters.astype(np.float32)


@functools.lru_cache(maxsize=32)
def resampling_filter(up: int, down: int) -> Float32:
    """A sinc of 16 lobes under a Hann window, cut off at the lower of the two Nyquist frequencies: DALI's default.

    Returns
    -------
    float32[2 * 16 * max(up, down) + 1]
        Taps at ``up`` times the input's rate, of sum 1.
    """
    step = max(up, down)
    place = np.arange(-LOBES * step, LOBES * step + 1) / step
    taps = np.sinc(place) * (0.5 + 0.5 * np.cos(np.pi * place / LOBES))
    return np.asarray(taps / taps.sum(), dtype=np.float32)


def at_16_khz(recording: WavFile) -> Float32:
    """A recording's samples at 16 kHz, without what lies above the lower Nyquist frequency."""
    if recording.rate_hz == RATE_HZ:
        return recording.samples
    common = math.gcd(RATE_HZ, recording.rate_hz)
    up, down = RATE_HZ // common, recording.rate_hz // common
    return np.asarray(
        signal.resample_poly(recording.samples, up, down, window=resampling_filter(up, down)), dtype=np.float32
    )


def frame_count(samples: int) -> int:
    """Frames of so many samples at 16 kHz."""
    return 1 + samples // HOP


class CpuAudio:
    """Preprocesses recordings; one instance may be used by several threads.

    Parameters
    ----------
    dtype : str
        ``fp32`` or ``fp16``.
    limits : InputLimits
    """

    modality = "audio"
    backend = "cpu"

    def __init__(self, dtype: str, limits: InputLimits) -> None:
        self._dtype = np.float16 if dtype == "fp16" else np.float32
        self._limits = limits
        # 500 of its 20,560 entries are not zero. A dense product is no faster and wakes BLAS's threads, which spin on
        # cores that were given to others.
        self._filters = sparse.csr_matrix(mel_filters())
        self._window = signal.get_window("hann", WINDOW).astype(np.float32)

    def preprocess(self, inputs: Sequence[bytes]) -> list[NDArray[Any] | InputError]:
        """Preprocesses each input; a broken one gives its error and harms no other.

        Returns
        -------
        list of float32 or float16 [80, frames], or InputError
        """
        found: list[NDArray[Any] | InputError] = []
        for content in inputs:
            try:
                found.append(self._one(content))
            except InputError as error:
                found.append(error)
        return found

    def _one(self, content: bytes) -> NDArray[Any]:
        samples = at_16_khz(read_wav(content, self._limits))
        if len(samples) < POINTS:
            raise InputError(f"the recording is too short: {1000 * len(samples) / RATE_HZ:.0f} ms, 32 ms are needed")
        emphasised = np.empty_like(samples)
        emphasised[0] = samples[0]
        np.subtract(samples[1:], PRE_EMPHASIS * samples[:-1], out=emphasised[1:])
        padded = np.pad(emphasised, WINDOW // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * self._window
        spectrum = fft.rfft(frames, POINTS, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
        logarithm = np.log(self._filters @ power.T + np.float32(LOG_GUARD))
        return np.ascontiguousarray(normalised(logarithm), dtype=self._dtype)

    def close(self) -> None:
        """Nothing is held."""


def normalised(bands: Float32) -> Float32:
    """Every band, [80, frames], to mean 0 and standard deviation 1 (of a sample) over the utterance."""
    # In double precision: a silent band's rounding errors would be divided by the guard.
    mean = bands.mean(axis=1, keepdims=True, dtype=np.float64)
    centred = (bands - mean).astype(np.float32)
    count = bands.shape[1]
    std = np.sqrt(np.einsum("bf,bf->b", centred, centred) / (count - 1)) if count > 1 else np.zeros(len(bands))
    return np.asarray(centred / (std[:, np.newaxis] + STD_GUARD), dtype=np.float32)
