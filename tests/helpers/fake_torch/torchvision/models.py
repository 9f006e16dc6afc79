"""Networks that sleep: a millisecond an input, twenty on the MIG device that is called slow."""

from __future__ import annotations

import os
import time
from typing import Any


class Network:
    """Stands for a module."""

    def eval(self) -> Network:
        """As it is."""
        return self

    def to(self, device: str) -> Network:  # noqa: ARG002 - torch's argument
        """Everywhere."""
        return self

    def __call__(self, inputs: Any) -> None:
        slow = "slow" in os.environ.get("CUDA_VISIBLE_DEVICES", "")
        time.sleep(1e-3 * inputs.shape[0] * (20 if slow else 1))


def squeezenet1_1(weights: None) -> Network:  # noqa: ARG001 - torchvision's argument
    """The only one."""
    return Network()
