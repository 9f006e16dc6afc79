"""Real photographs, made-up speech, and a plain definition of both pipelines that shares no code with any back end."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]


def photographs() -> dict[str, bytes]:
    """JPEG files that scikit-learn and scikit-image bring along, and three PNGs of theirs saved as JPEG."""
    import skimage
    import sklearn

    found = {}
    for folder in (Path(sklearn.__file__).parent / "datasets" / "images", Path(skimage.__file__).parent / "data"):
        for path in sorted(folder.glob("*.jpg")):
            found[path.name] = path.read_bytes()
    for name in ("astronaut", "chelsea", "coffee"):
        picture = Image.open(Path(skimage.__file__).parent / "data" / f"{name}.png").convert("RGB")
        found[name] = jpeg(picture, quality=92)
    return found


def jpeg(picture: Image.Image, **options: int | bool) -> bytes:
    """A picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def image_by_definition(content: bytes) -> Floats:
    """Decode, antialiased bilinear to a shorter side of 256, centre 224, normalise; float64[3, 224, 224]."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    scale = 256 / min(picture.size)
    width, height = (max(round(side * scale), 256) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - 224) // 2, (height - 224) // 2
    pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), dtype=np.float64) / 255
    return (pixels.transpose(2, 0, 1) - np.array([[[0.485]], [[0.456]], [[0.406]]])) / np.array(
        [[[0.229]], [[0.224]], [[0.225]]]
    )


def speech(seconds: float, rate_hz: int, seed: int = 0) -> Floats:
    """Harmonics of a gliding voice in syllables, with breath; float64, peak 0.5."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 3 * time_s)) / rate_hz
    sound = np.zeros(len(time_s))
    for harmonic in range(1, int(0.45 * rate_hz / 150)):
        sound += np.sin(harmonic * phase) / harmonic
    sound *= 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time_s)
    return np.asarray(0.5 * sound / np.abs(sound).max() + 0.005 * rng.standard_normal(len(time_s)))


def wav(channels: Floats, rate_hz: int, *, bits: int = 16, kind: int = 1, extensible: bool = False) -> bytes:
    """A WAV file, written by hand: samples float64[n] or [n, channels] with full scale 1."""
    samples = channels[:, np.newaxis] if channels.ndim == 1 else channels
    count = samples.shape[1]
    if kind == 3:
        body = samples.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        body = (np.round(samples * 127) + 128).astype(np.uint8).tobytes()
    elif bits == 24:
        whole = np.round(samples * (2**23 - 1)).astype("<i4")
        body = whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        body = np.round(samples * (2 ** (bits - 1) - 1)).astype(f"<i{bits // 8}").tobytes()
    block = count * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, count, rate_hz, rate_hz * block, block, bits)
    if extensible:
        form += struct.pack("<HHIH14s", 22, bits, 0, kind, b"\0" * 14)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def audio_by_definition(samples: Floats) -> Floats:
    """Pre-emphasis, frame by frame a Hann window and a power spectrum, mel triangles, log, normalised; at 16 kHz."""
    emphasised = np.array([samples[k] - (0.97 * samples[k - 1] if k else 0.0) for k in range(len(samples))])
    padded = np.concatenate([emphasised[200:0:-1], emphasised, emphasised[-2:-202:-1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.array(
        [
            np.abs(np.fft.rfft(padded[start : start + 400] * window, 512)) ** 2
            for start in range(0, len(samples) + 1, 160)
        ]
    )

    def to_mel(hertz: float) -> float:
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)

    def to_hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    edges = [to_hertz(to_mel(8000.0) * k / 81) for k in range(82)]
    bands = np.zeros((80, len(power)))
    for band in range(80):
        low, middle, high = edges[band : band + 3]
        for point in range(257):
            hertz = point * 16000 / 512
            if low < hertz < high:
                height = (hertz - low) / (middle - low) if hertz < middle else (high - hertz) / (high - middle)
                bands[band] += power[:, point] * height * 2 / (high - low)
    logarithm = np.log(bands + 2.0**-24)
    mean = logarithm.mean(axis=1, keepdims=True)
    return np.asarray((logarithm - mean) / (logarithm.std(axis=1, ddof=1, keepdims=True) + 1e-5))
