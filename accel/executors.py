"""Preprocessing as it is really done: the back ends by name, and which of them work on this machine.

What the same work costs in the simulator is in ``accel.work``; here nothing is timed and nothing is queued.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from accel.inputs import InputLimits
from preba.errors import InputError, MissingExtraError, ScenarioError, nearest

BACKENDS = ("cpu", "dali_cpu", "dali_gpu")
MODALITIES = ("image", "audio")
DALI_EXTRA = "nvidia-dali is not installed: pip install 'preba[dali]'"


class Preprocessor(Protocol):
    """Turns encoded inputs into a model's tensors."""

    @property
    def modality(self) -> str:
        """``image`` or ``audio``."""
        ...

    @property
    def backend(self) -> str:
        """One of ``BACKENDS``."""
        ...

    def preprocess(self, inputs: Sequence[bytes]) -> list[NDArray[Any] | InputError]:
        """One tensor or error per input, in order."""
        ...

    def close(self) -> None:
        """Gives back what is held."""
        ...


def build_preprocessor(
    modality: str,
    backend: str,
    *,
    dtype: str = "fp32",
    threads: int = 1,
    batch_max: int = 128,
    device_id: int | None = None,
    hw_decoder_share: float = 0.65,
    limits: InputLimits = InputLimits(),  # noqa: B008 - frozen
) -> Preprocessor:
    """Makes a preprocessor.

    Parameters
    ----------
    modality : str
        ``image``: JPEG to [3, 224, 224]. ``audio``: WAV to [80, frames], a frame every 10 ms.
    backend : str
        ``cpu`` (OpenCV; NumPy and SciPy), ``dali_cpu``, ``dali_gpu``.
    dtype : str
        ``fp32`` or ``fp16``.
    threads : int
        CPU threads of DALI's.
    batch_max : int
        Most inputs of one call that DALI takes at once; larger calls are cut.
    device_id : int, optional
        CUDA device of ``dali_gpu``; the first unless given.
    hw_decoder_share : float
        Share of the images that the hardware JPEG engines decode, where there are any (DALI's hw_decoder_load).
    limits : InputLimits

    Raises
    ------
    ScenarioError
        There is no such modality, back end or type.
    MissingExtraError
        The back end does not work here; the message says what is missing.
    """
    if modality not in MODALITIES:
        raise ScenarioError(f"modality {modality!r}: is not preprocessed{nearest(modality, MODALITIES)}")
    if backend not in BACKENDS:
        raise ScenarioError(f"preprocessing back end {backend!r}: is unknown{nearest(backend, BACKENDS)}")
    if dtype not in ("fp32", "fp16"):
        raise ScenarioError(f"dtype {dtype!r}: must be fp32 or fp16")
    missing = available_backends()[backend]
    if missing is not None:
        raise MissingExtraError(f"preprocessing back end {backend}: {missing}")
    if backend == "cpu":
        if modality == "image":
            from accel.image_cpu import CpuImages

            return CpuImages(dtype, limits)
        from accel.audio_cpu import CpuAudio

        return CpuAudio(dtype, limits)
    from accel.dali_pipelines import DaliOptions, DaliPreprocessor

    options = DaliOptions(dtype, threads, batch_max, device_id or 0, hw_decoder_share, backend == "dali_gpu")
    return DaliPreprocessor(modality, options, limits)


def available_backends() -> dict[str, str | None]:
    """Every back end, with ``None`` if it works here or else one sentence why it does not."""
    found: dict[str, str | None] = {}
    missing = [name for name in ("cv2", "scipy") if importlib.util.find_spec(name) is None]
    found["cpu"] = f"{' and '.join(missing)} missing: pip install 'preba[live]'" if missing else None
    has_dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None
    found["dali_cpu"] = None if has_dali else DALI_EXTRA
    found["dali_gpu"] = _why_no_gpu() if has_dali else DALI_EXTRA
    return found


def _why_no_gpu() -> str | None:
    from accel.dali_pipelines import cuda_missing

    return cuda_missing()
