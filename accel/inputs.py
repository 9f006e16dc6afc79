"""What requests carry, looked at before anything is decoded: kind, dimensions, length, and the limits on them.

Only headers are read here; a file that claims too much is refused before memory is taken for it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preba.errors import InputError

RESIZED_SIDE = 256
"""Shorter side after resizing, for the limit on slivers: the longer one grows with it."""
RATIO_MAX = 1000
"""Largest part of the fraction between a sample rate and 16 kHz; filters are as long as that."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_TARGET_HZ = 16_000
_LONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})


@dataclass(frozen=True)
class InputLimits:
    """The largest inputs that are accepted.

    Attributes
    ----------
    scans : int
        Of a progressive image: each takes a decoder over the whole picture.
    file_bytes : int
    pixels : int
        Width times height: a small file may claim to be a huge image.
    audio_s : float
    channels : int
    rate_hz_min, rate_hz_max : int
        Sample rates.
    """

    scans: int = 100
    file_bytes: int = 32 << 20
    pixels: int = 64_000_000
    audio_s: float = 60.0
    channels: int = 8
    rate_hz_min: int = 4_000
    rate_hz_max: int = 192_000


def check_jpeg(content: bytes, limits: InputLimits) -> tuple[int, int]:
    """Reads a JPEG's header.

    Parameters
    ----------
    content : bytes
    limits : InputLimits

    Returns
    -------
    tuple of int
        Width and height in pixels.

    Raises
    ------
    InputError
        It is no JPEG, too large, or ends before its end.

    Source
    ------
    ITU-T T.81, annex B.
    """
    if len(content) > limits.file_bytes:
        raise InputError(f"the image has {len(content)} bytes, at most {limits.file_bytes} are accepted")
    if content[:2] != b"\xff\xd8":
        raise InputError("the image is no JPEG file")
    width, height = _jpeg_size(content)
    if width == 0 or height == 0:
        raise InputError(f"the image has {width} x {height} pixels")
    if width * height > limits.pixels:
        raise InputError(f"the image has {width} x {height} pixels, at most {limits.pixels} are accepted")
    ratio = max(width, height) / min(width, height)
    if ratio * RESIZED_SIDE**2 > limits.pixels:
        raise InputError(f"the image has {width} x {height} pixels: too narrow to be resized")
    if content.count(b"\xff\xda") > limits.scans:
        raise InputError(f"the image has more than {limits.scans} scans")
    if b"\xff\xd9" not in content[-1024:]:  # some writers add padding after the end
        raise InputError("the image is truncated: its end is missing")
    return width, height


def _jpeg_size(content: bytes) -> tuple[int, int]:
    place = 2
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            raise InputError("the image is corrupt: a marker is missing in its header")
        marker = content[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker in _LONE_MARKERS:
            place += 2
            continue
        (length,) = struct.unpack_from(">H", content, place + 2)
        if marker in _FRAMES:
            if length < 8 or place + 9 > len(content):
                break
            height, width = struct.unpack_from(">HH", content, place + 5)
            return width, height
        if marker == 0xDA or length < 2:
            break
        place += 2 + length
    raise InputError("the image is corrupt or truncated: its header says no size")


@dataclass(frozen=True)
class WavFile:
    """A WAV file's facts and samples.

    Attributes
    ----------
    rate_hz : int
    samples : float32[n]
        Channels averaged, full scale is 1.
    """

    rate_hz: int
    samples: NDArray[np.float32]

    @property
    def length_s(self) -> float:
        """Duration."""
        return len(self.samples) / self.rate_hz


def read_wav(content: bytes, limits: InputLimits) -> WavFile:
    """Reads a WAV file: PCM of 8, 16, 24 or 32 bits, or 32- or 64-bit floats, any number of channels.

    Parameters
    ----------
    content : bytes
    limits : InputLimits

    Raises
    ------
    InputError
        It is no WAV file, malformed, empty, or beyond a limit.
    """
    if len(content) > limits.file_bytes:
        raise InputError(f"the recording has {len(content)} bytes, at most {limits.file_bytes} are accepted")
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise InputError("the recording is no WAV file")
    form: tuple[int, int, int, int] | None = None
    place = 12
    while place + 8 <= len(content):
        name = content[place : place + 4]
        (size,) = struct.unpack_from("<I", content, place + 4)
        body = place + 8
        if name == b"fmt ":
            form = _form(content, body, size, limits)
        elif name == b"data":
            if form is None:
                raise InputError("the recording is malformed: its samples come before their format")
            if body + size > len(content):
                raise InputError(
                    f"the recording is truncated: it says {size} bytes of samples, {len(content) - body} follow"
                )
            return _samples(content[body : body + size], form, limits)
        place = body + size + (size & 1)
    raise InputError("the recording is malformed: it holds no samples")


def _form(content: bytes, place: int, size: int, limits: InputLimits) -> tuple[int, int, int, int]:
    """Kind, channels, rate and bits of the samples."""
    if size < 16 or place + size > len(content):
        raise InputError("the recording is malformed: its format is cut short")
    kind, channels, rate_hz, _, block, bits = struct.unpack_from("<HHIIHH", content, place)
    if kind == _EXTENSIBLE and size >= 40:
        (kind,) = struct.unpack_from("<H", content, place + 24)
    if (kind, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise InputError(f"the recording's samples (format {kind}, {bits} bits) are not supported; PCM and floats are")
    if not 1 <= channels <= limits.channels:
        raise InputError(f"the recording has {channels} channels, 1 to {limits.channels} are accepted")
    if not limits.rate_hz_min <= rate_hz <= limits.rate_hz_max:
        raise InputError(
            f"the recording's rate is {rate_hz} Hz, {limits.rate_hz_min} to {limits.rate_hz_max} are accepted"
        )
    if max(rate_hz, _TARGET_HZ) // math.gcd(rate_hz, _TARGET_HZ) > RATIO_MAX:
        raise InputError(f"the recording's rate of {rate_hz} Hz is too odd to be resampled to {_TARGET_HZ}")
    if block != channels * bits // 8:
        raise InputError(f"the recording is malformed: a block of {block} bytes for {channels} x {bits} bits")
    return kind, channels, rate_hz, bits


def _samples(data: bytes, form: tuple[int, int, int, int], limits: InputLimits) -> WavFile:
    kind, channels, rate_hz, bits = form
    block = channels * bits // 8
    count = len(data) // block
    if count == 0:
        raise InputError("the recording is empty")
    if count > limits.audio_s * rate_hz:
        raise InputError(f"the recording lasts {count / rate_hz:.1f} s, at most {limits.audio_s:g} s are accepted")
    data = data[: count * block]
    if kind == _FLOAT:
        values = np.frombuffer(data, dtype=f"<f{bits // 8}").astype(np.float32)
        if not np.isfinite(values).all():
            raise InputError("the recording holds samples that are no numbers")
    elif bits == 8:
        values = (np.frombuffer(data, dtype=np.uint8).astype(np.float32) - 128.0) / 128.0
    elif bits == 24:
        raw = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3).astype(np.int32)
        whole = (raw[:, 0] << 8 | raw[:, 1] << 16 | raw[:, 2] << 24) >> 8
        values = whole.astype(np.float32) / float(1 << 23)
    else:
        values = np.frombuffer(data, dtype=f"<i{bits // 8}").astype(np.float32) / float(1 << (bits - 1))
    if channels > 1:
        values = values.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return WavFile(rate_hz, values)
