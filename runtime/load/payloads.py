"""Files for requests to carry: JPEGs and WAVs of the traced sizes, made from the seed, or a user's own.

Made before the run and kept in memory; a request's file is put together from shared parts only when it is sent.
No network here.
"""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from preba.errors import FormatError, MissingFileError
from preba.units import NS_PER_S

Int64 = NDArray[np.int64]
Parts = tuple[bytes | memoryview, ...]

TEMPLATES_MAX = 64
"""Distinct images per model; sizes between two of them are reached by padding the smaller one."""

BYTES_PER_PIXEL = 0.6
"""Of a photograph: ImageNet's mean file of 110 kB over its mean image of 0.18 megapixels."""

JPEG_QUALITY = 90
CLOSE_ENOUGH = 0.97
"""An image may be this part of the size it was made for, the rest is padding."""

NOISE_MAX = 120.0
SEARCH_STEPS = 9
SMALLEST_SIDE = 8

COMMENT_MAX = 65_533
"""Bytes of text that one JPEG comment segment holds."""

SAMPLE_RATE_HZ = 16_000
WAV_HEADER_BYTES = 44
HARMONICS = 14
SPARE_S = 4
"""The master recording is so much longer than the longest request, so that requests start at different places."""

FOLDER_BYTES_MAX = 2_000_000_000
"""A folder of the user's own files is held in memory; beyond this it is taken for a mistake."""


class Corpus(Protocol):
    """The files of one model's requests."""

    @property
    def jpeg_bytes(self) -> Int64:
        """Size of each request's image file, int64[n]; 0 where it is none."""
        ...

    @property
    def audio_ns(self) -> Int64:
        """Length of each request's recording, int64[n]; 0 where it is none."""
        ...

    def parts(self, place: int) -> Parts:
        """The file of the model's ``place``-th request, in pieces that only need to be joined."""
        ...


@dataclass(frozen=True)
class JpegCorpus:
    """Synthetic photographs whose files are as large as the trace says, to the byte.

    There are at most ``TEMPLATES_MAX`` images, their sizes spaced evenly on a logarithmic scale. A request gets the
    largest that fits, and comment segments, which a decoder skips, for the rest. A file smaller than the smallest
    image that JPEG can hold is sent as that image (``oversized`` counts them).
    """

    templates: tuple[bytes, ...]
    template_of: NDArray[np.intp]
    jpeg_bytes: Int64
    oversized: int

    @property
    def audio_ns(self) -> Int64:
        """Images have no length."""
        return np.zeros(len(self.jpeg_bytes), dtype=np.int64)

    @property
    def padding_share_max(self) -> float:
        """The largest part of any file that is padding."""
        sizes = np.array([len(template) for template in self.templates], dtype=np.int64)
        return float((1.0 - sizes[self.template_of] / self.jpeg_bytes).max(initial=0.0))

    def parts(self, place: int) -> Parts:
        """The image, its padding behind the two bytes that open every JPEG file."""
        template = memoryview(self.templates[self.template_of[place]])
        missing = int(self.jpeg_bytes[place]) - len(template)
        return (template[:2], jpeg_padding(missing), template[2:]) if missing else (template,)


def jpeg_padding(count: int) -> bytes:
    """So many bytes that a decoder skips in front of a marker: comment segments, and fill bytes where none fits."""
    found: list[bytes] = []
    while count >= 4:  # a segment takes four bytes without any text
        text = min(count - 4, COMMENT_MAX)
        found.append(b"\xff\xfe" + struct.pack(">H", text + 2) + b"\0" * text)
        count -= text + 4
    return b"".join([*found, b"\xff" * count])


def jpeg_corpus(jpeg_bytes: Int64, rng: np.random.Generator) -> JpegCorpus:
    """Makes images for requests of these sizes.

    Parameters
    ----------
    jpeg_bytes : int64[n]
    rng : numpy.random.Generator
    """
    low, high = int(jpeg_bytes.min(initial=1 << 40)), int(jpeg_bytes.max(initial=1))
    low = max(min(low, high), 1)
    spread = np.log(high / low)
    scaled = np.log(np.maximum(jpeg_bytes, 1) / low) / spread * TEMPLATES_MAX if spread > 0 else 0.0 * jpeg_bytes
    # Rounding must not choose an image larger than the file: the margin is far below a byte of any file in memory.
    level = np.clip(np.floor(scaled + 1e-9).astype(np.int64), 0, TEMPLATES_MAX - 1)
    used, template_of = np.unique(level, return_inverse=True)
    targets = [int(low * np.exp(spread * int(step) / TEMPLATES_MAX)) for step in used]
    templates = tuple(synthesise_jpeg(max(target, 1), rng) for target in targets)
    smallest = np.array([len(template) for template in templates], dtype=np.int64)[template_of]
    return JpegCorpus(
        templates=templates,
        template_of=template_of.astype(np.intp),
        jpeg_bytes=np.maximum(jpeg_bytes, smallest),
        oversized=int((smallest > jpeg_bytes).sum()),
    )


def synthesise_jpeg(target_bytes: int, rng: np.random.Generator) -> bytes:
    """A photograph-like JPEG of at most so many bytes, and of 97 % of them at least where that is possible.

    Parameters
    ----------
    target_bytes : int
    rng : numpy.random.Generator
    """
    pixels = max(target_bytes / BYTES_PER_PIXEL, SMALLEST_SIDE**2)
    while True:
        width = max(SMALLEST_SIDE, round((pixels * 4 / 3) ** 0.5))
        height = max(SMALLEST_SIDE, round(pixels / width))
        scene, grain = _scene(height, width, rng), rng.standard_normal((height, width, 1), dtype=np.float32)
        best = _encode(scene)
        if len(best) <= target_bytes or width * height == SMALLEST_SIDE**2:
            break
        pixels = max(pixels / 2, SMALLEST_SIDE**2)
    low, high = 0.0, NOISE_MAX
    for _ in range(SEARCH_STEPS):
        if CLOSE_ENOUGH * target_bytes <= len(best):
            break
        noise = 0.5 * (low + high)
        tried = _encode(scene + noise * grain)
        if len(tried) > target_bytes:
            high = noise
        else:
            low, best = noise, max(best, tried, key=len)
    return best


def _scene(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Colours that vary over large distances more than over small ones, as in photographs."""
    from PIL import Image  # only who makes images needs it

    scene = np.full((height, width, 3), 128.0, dtype=np.float32)
    for cells, contrast in ((4, 48.0), (16, 20.0), (64, 10.0)):
        coarse = (128.0 + contrast * rng.standard_normal((cells, cells, 3))).clip(0, 255).astype(np.uint8)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        scene += np.asarray(fine, dtype=np.float32) - 128.0
    return scene


def _encode(pixels: NDArray[np.float32]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


@dataclass(frozen=True)
class WavCorpus:
    """Speech-like recordings, 16 kHz mono 16-bit, each as long as the trace says to within half a sample.

    All are cut from one master recording, each request's from a place of its own.
    """

    master: memoryview
    first_sample: Int64
    samples: Int64
    audio_ns: Int64

    @property
    def jpeg_bytes(self) -> Int64:
        """Recordings are no images."""
        return np.zeros(len(self.audio_ns), dtype=np.int64)

    def parts(self, place: int) -> Parts:
        """The header and a cut of the master."""
        first, count = int(self.first_sample[place]), int(self.samples[place])
        return wav_header(count), self.master[2 * first : 2 * (first + count)]


def wav_header(samples: int) -> bytes:
    """The 44 bytes in front of so many samples, 16 kHz mono PCM16."""
    size = 2 * samples
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", size + WAV_HEADER_BYTES - 8, b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16,
        b"data", size,
    )  # fmt: skip


def wav_corpus(audio_ns: Int64, rng: np.random.Generator) -> WavCorpus:
    """Makes recordings for requests of these lengths.

    Parameters
    ----------
    audio_ns : int64[n]
    rng : numpy.random.Generator
    """
    samples = np.maximum((audio_ns * SAMPLE_RATE_HZ + NS_PER_S // 2) // NS_PER_S, 1)
    spare = SPARE_S * SAMPLE_RATE_HZ
    master = synthesise_speech(int(samples.max(initial=1)) + spare, rng)
    return WavCorpus(
        master=memoryview(master.astype("<i2").tobytes()),
        first_sample=rng.integers(0, spare, len(audio_ns)),
        samples=samples,
        audio_ns=audio_ns,
    )


def synthesise_speech(samples: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """Something with the rhythm and the spectrum of speech: gliding harmonics in syllables, and breath.

    Parameters
    ----------
    samples : int
    rng : numpy.random.Generator
    """
    time_s = np.arange(samples) / SAMPLE_RATE_HZ
    syllables = max(2, int(4.2 * time_s[-1]) + 2)  # spoken English has about four a second
    knots = np.linspace(0.0, time_s[-1] + 1e-9, syllables)
    pitch_hz = np.interp(time_s, knots, rng.uniform(95.0, 190.0, syllables))
    loudness = np.interp(time_s, knots, rng.uniform(0.05, 1.0, syllables))
    phase = 2.0 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    sound = np.zeros(samples)
    for harmonic in range(1, HARMONICS + 1):
        vowel = np.interp(time_s, knots, rng.uniform(0.1, 1.0, syllables))
        sound += vowel / harmonic * np.sin(harmonic * phase)
    sound = loudness * (sound + 0.1 * rng.standard_normal(samples))
    peak = float(np.abs(sound).max(initial=1e-9))
    return (sound * (28_000.0 / peak)).astype(np.int16)


@dataclass(frozen=True)
class FileCorpus:
    """A user's own files, given to requests at random; their sizes take the place of the traced ones."""

    files: tuple[bytes, ...]
    file_of: NDArray[np.intp]
    jpeg_bytes: Int64
    audio_ns: Int64

    def parts(self, place: int) -> Parts:
        """The file."""
        return (self.files[self.file_of[place]],)


def file_corpus(folder: Path, modality: str, count: int, rng: np.random.Generator) -> FileCorpus:
    """Reads a folder's images or recordings and gives every request one of them.

    Parameters
    ----------
    folder : Path
        Searched for ``*.jpg`` and ``*.jpeg``, or ``*.wav``, by ``modality``; subfolders are not.
    modality : str
        ``image`` or ``audio``.
    count : int
        Of requests.
    rng : numpy.random.Generator

    Raises
    ------
    MissingFileError
        There is no such folder, or no such file in it.
    FormatError
        A file is not what its name says, or they do not fit into memory.
    """
    found = own_files(folder, modality)
    files = tuple(data for _, data in found)
    file_of = rng.integers(0, len(files), count).astype(np.intp)
    nothing = np.zeros(count, dtype=np.int64)
    if modality == "image":
        sizes = np.array([len(data) for data in files], dtype=np.int64)
        return FileCorpus(files, file_of, sizes[file_of], nothing)
    lengths = np.array([round(length_s * NS_PER_S) for length_s, _ in found], dtype=np.int64)
    return FileCorpus(files, file_of, nothing, lengths[file_of])


def own_files(folder: Path, modality: str) -> list[tuple[float, bytes]]:
    """Reads a folder's images or recordings.

    Parameters
    ----------
    folder : Path
        Searched for ``*.jpg`` and ``*.jpeg``, or ``*.wav``, by ``modality``; subfolders are not.
    modality : str
        ``image`` or ``audio``.

    Returns
    -------
    list of (float, bytes)
        Per file its bytes in number, or its seconds, and its content; by name.

    Raises
    ------
    MissingFileError
        There is no such folder, or no such file in it.
    FormatError
        A file is not what its name says, or they do not fit into memory.
    """
    endings = (".jpg", ".jpeg") if modality == "image" else (".wav",)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
    if not paths:
        raise MissingFileError(f"{folder}: holds no {' or '.join('*' + ending for ending in endings)}")
    total = sum(path.stat().st_size for path in paths)
    if total > FOLDER_BYTES_MAX:
        raise FormatError(
            f"{folder}: {total / 1e9:.1f} GB of files are kept in memory; at most {FOLDER_BYTES_MAX / 1e9:.0f} GB: "
            "use a folder with fewer of them"
        )
    found = []
    for path in paths:
        data = path.read_bytes()
        if modality == "image" and not data.startswith(b"\xff\xd8"):
            raise FormatError(f"{path}: not a JPEG file")
        found.append((float(len(data)) if modality == "image" else _wav_ns(path, data) / NS_PER_S, data))
    return found


def _wav_ns(path: Path, data: bytes) -> int:
    try:
        with wave.open(io.BytesIO(data)) as recording:
            return int(recording.getnframes() * NS_PER_S // recording.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError) as error:
        raise FormatError(f"{path}: not a WAV file: {error}") from error


@dataclass(frozen=True)
class TensorCorpus:
    """Requests that arrive preprocessed: four numbers stand for the tensor."""

    count: int

    @property
    def jpeg_bytes(self) -> Int64:
        """No image."""
        return np.zeros(self.count, dtype=np.int64)

    @property
    def audio_ns(self) -> Int64:
        """No recording."""
        return np.zeros(self.count, dtype=np.int64)

    def parts(self, place: int) -> Parts:
        """Sixteen bytes."""
        return (struct.pack("<4f", 0.0, 1.0, 2.0, float(place % 1024)),)


def make_corpus(
    modality: str, sizes: Int64, *, seed: Sequence[int], folder: Path | None = None
) -> JpegCorpus | WavCorpus | FileCorpus | TensorCorpus:
    """The files of one model's requests.

    Parameters
    ----------
    modality : str
        ``image``, ``audio`` or ``tensor``.
    sizes : int64[n]
        As traced: bytes of the file, nanoseconds of audio or bytes of the tensor.
    seed : sequence of int
        The same seed gives the same files.
    folder : Path, optional
        With the user's own files.

    Raises
    ------
    MissingFileError, FormatError
        See ``file_corpus``.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seed))))
    if modality == "tensor":
        return TensorCorpus(len(sizes))
    if folder is not None:
        return file_corpus(folder, modality, len(sizes), rng)
    return jpeg_corpus(sizes, rng) if modality == "image" else wav_corpus(sizes, rng)
