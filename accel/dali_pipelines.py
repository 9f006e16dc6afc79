"""NVIDIA DALI: the same preprocessing as pipelines, on CPU threads or on a GPU. The only module that imports it.

The two placements share every operator but the decoder's device, so what is tested on CPUs is what runs on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.audio_cpu import BANDS, HOP, LOG_GUARD, POINTS, PRE_EMPHASIS, RATE_HZ, WINDOW, at_16_khz, normalised
from accel.image_cpu import CROP, MEAN, SHORTER_SIDE, STD
from accel.inputs import InputLimits, WavFile, check_jpeg, read_wav
from preba.errors import InputError, ServerError


@dataclass(frozen=True)
class DaliOptions:
    """How DALI is set up.

    Attributes
    ----------
    dtype : str
    threads, batch_max, device_id : int
    hw_decoder_share : float
    on_gpu : bool
    """

    dtype: str
    threads: int
    batch_max: int
    device_id: int
    hw_decoder_share: float
    on_gpu: bool


def cuda_missing() -> str | None:
    """Why there is no GPU for DALI here, or ``None``."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no CUDA driver here (libcuda.so.1)"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the CUDA driver finds no GPU here"
    return None


class DaliPreprocessor:
    """Preprocesses inputs in DALI pipelines; not for several threads at once.

    Parameters
    ----------
    modality : str
    options : DaliOptions
    limits : InputLimits
    """

    def __init__(self, modality: str, options: DaliOptions, limits: InputLimits) -> None:
        self.modality = modality
        self.backend = "dali_gpu" if options.on_gpu else "dali_cpu"
        self._options = options
        self._limits = limits
        self._pipeline = _image_pipeline(options) if modality == "image" else _audio_pipeline(options)

    def preprocess(self, inputs: Sequence[bytes]) -> list[NDArray[Any] | InputError]:
        """Preprocesses the inputs, ``batch_max`` at a time; a broken one gives its error and harms no other.

        Returns
        -------
        list of float32 or float16 [3, 224, 224] or [80, frames], or InputError
        """
        found: list[NDArray[Any] | InputError] = [InputError("not looked at")] * len(inputs)
        good: list[tuple[int, NDArray[Any]]] = []
        for place, content in enumerate(inputs):
            try:
                good.append((place, self._source(content)))
            except InputError as error:
                found[place] = error
        for first in range(0, len(good), self._options.batch_max):
            part = good[first : first + self._options.batch_max]
            for (place, _), tensor in zip(part, self._run([source for _, source in part]), strict=True):
                found[place] = tensor
        return found

    def _source(self, content: bytes) -> NDArray[Any]:
        """What goes into the pipeline: an encoded image, or a rate and samples."""
        if self.modality == "image":
            check_jpeg(content, self._limits)
            return np.frombuffer(content, dtype=np.uint8)
        recording = read_wav(content, self._limits)
        if len(recording.samples) * RATE_HZ < POINTS * recording.rate_hz:
            raise InputError("the recording is too short: 32 ms are needed")
        # DALI's resampler removes nothing above the new Nyquist frequency: a 12 kHz tone at 48 kHz comes out at 4 kHz
        # at full strength (measured with 2.4.0). So it only gets rates it has to raise.
        if recording.rate_hz > RATE_HZ:
            recording = WavFile(RATE_HZ, at_16_khz(recording))
        return np.concatenate([np.array([recording.rate_hz], dtype=np.float32), recording.samples])

    def _run(self, sources: list[NDArray[Any]]) -> list[NDArray[Any] | InputError]:
        try:
            return self._batch(sources)
        except RuntimeError as error:
            if len(sources) == 1:
                return [InputError(f"the input cannot be decoded: {_first_line(error)}")]
        # One broken input fails a whole batch in DALI, and the pipeline with it: each is tried alone.
        self._pipeline = _image_pipeline(self._options) if self.modality == "image" else _audio_pipeline(self._options)
        found: list[NDArray[Any] | InputError] = []
        for source in sources:
            found += self._run([source])
            if isinstance(found[-1], InputError):
                self._pipeline = (
                    _image_pipeline(self._options) if self.modality == "image" else _audio_pipeline(self._options)
                )
        return found

    def _batch(self, sources: list[NDArray[Any]]) -> list[NDArray[Any] | InputError]:
        pipeline = self._pipeline
        if self.modality == "audio":
            pipeline.feed_input("rate", [source[:1] for source in sources])
            sources = [source[1:] for source in sources]
        pipeline.feed_input("input", sources)
        (output,) = pipeline.run()
        if hasattr(output, "as_cpu"):
            output = output.as_cpu()
        dtype = np.float16 if self._options.dtype == "fp16" else np.float32
        tensors = [np.array(output.at(place)) for place in range(len(sources))]
        if self.modality == "audio":
            tensors = [normalised(tensor) for tensor in tensors]
        return [np.ascontiguousarray(tensor, dtype=dtype) for tensor in tensors]

    def close(self) -> None:
        """Gives the pipeline back."""
        self._pipeline = None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "unknown"


def _built(pipeline: Any) -> Any:  # noqa: ANN401 - DALI's, without types
    try:
        pipeline.build()
    except RuntimeError as error:
        raise ServerError(f"DALI cannot be set up: {_first_line(error)}") from error
    return pipeline


def _pipeline_of(options: DaliOptions) -> Any:  # noqa: ANN401 - DALI's, without types
    from nvidia.dali import Pipeline

    return Pipeline(
        batch_size=options.batch_max,
        num_threads=options.threads,
        device_id=options.device_id if options.on_gpu else None,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )


def _operators() -> tuple[Any, Any]:
    """DALI's functions and types: looked up by name, as its stubs lack some and its versions differ."""
    return importlib.import_module("nvidia.dali.fn"), importlib.import_module("nvidia.dali.types")


def _image_pipeline(options: DaliOptions) -> Any:  # noqa: ANN401 - DALI's, without types
    fn, types = _operators()
    pipeline = _pipeline_of(options)
    with pipeline:
        encoded = fn.external_source(name="input", ndim=1, dtype=types.UINT8)
        more = {"hw_decoder_load": options.hw_decoder_share} if options.on_gpu else {}
        pixels = fn.decoders.image(encoded, device="mixed" if options.on_gpu else "cpu", output_type=types.RGB, **more)
        pixels = fn.resize(pixels, resize_shorter=SHORTER_SIDE, interp_type=types.INTERP_LINEAR, antialias=True)
        tensor = fn.crop_mirror_normalize(
            pixels,
            crop=(CROP, CROP),
            mean=[255 * mean for mean in MEAN],
            std=[255 * std for std in STD],
            rounding="truncate",
            output_layout="CHW",
            dtype=types.FLOAT,
        )
        pipeline.set_outputs(tensor)
    return _built(pipeline)


def _audio_pipeline(options: DaliOptions) -> Any:  # noqa: ANN401 - DALI's, without types
    fn, types = _operators()
    pipeline = _pipeline_of(options)
    with pipeline:
        samples = fn.external_source(name="input", ndim=1, dtype=types.FLOAT)
        rate_hz = fn.external_source(name="rate", ndim=1, dtype=types.FLOAT)
        resample = fn.audio_resample if hasattr(fn, "audio_resample") else fn.experimental.audio_resample
        samples = resample(samples, in_rate=fn.squeeze(rate_hz, axes=[0]), out_rate=float(RATE_HZ), quality=50.0)
        if options.on_gpu:
            samples = samples.gpu()
        samples = fn.preemphasis_filter(samples, preemph_coeff=PRE_EMPHASIS, border="zero")
        power = fn.spectrogram(
            samples, nfft=POINTS, window_length=WINDOW, window_step=HOP, power=2, window_fn=_hann(),
            center_windows=True, reflect_padding=True,
        )  # fmt: skip
        bands = fn.mel_filter_bank(
            power, sample_rate=float(RATE_HZ), nfilter=BANDS, freq_low=0.0, freq_high=RATE_HZ / 2.0,
            mel_formula="slaney", normalize=True,
        )  # fmt: skip
        tensor = fn.to_decibels(bands + LOG_GUARD, multiplier=math.log(10.0), reference=1.0, cutoff_db=-1e3)
        pipeline.set_outputs(tensor)
    return _built(pipeline)


def _hann() -> list[float]:
    return [float(0.5 - 0.5 * math.cos(2 * math.pi * place / WINDOW)) for place in range(WINDOW)]


__all__ = ["DaliOptions", "DaliPreprocessor", "cuda_missing"]
