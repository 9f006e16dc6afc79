"""What the GPU suite needs of PyTorch on a CPU: tensors that know their shape, and nothing to compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

float16, float32 = "float16", "float32"


class cuda:  # noqa: N801 - a module of torch's
    """No GPU."""

    @staticmethod
    def is_available() -> bool:
        """There is none."""
        return False


@dataclass(frozen=True)
class Tensor:
    """Only a shape."""

    shape: tuple[int, ...]


def randn(shape: tuple[int, ...], *, device: str, dtype: str) -> Tensor:  # noqa: ARG001 - torch's arguments
    """A tensor."""
    return Tensor(shape)


def manual_seed(seed: int) -> None:
    """Nothing is drawn."""


@contextlib.contextmanager
def inference_mode() -> Iterator[None]:
    """Nothing would be recorded anyway."""
    yield
