"""The networks that are measured: torchvision's three image models, and an audio encoder of Conformer's size.

Weights are random: time does not depend on them, and nothing has to be downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["NETWORKS", "Network", "build"]

FRAMES_PER_S = 100
MEL_BINS = 80


@dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes
    ----------
    name, modality : str
    make : callable
        Builds the module, given torch.
    paper_knees : dict of str to int
        PREBA's Batch_knee on one seventh and on the whole GPU, where the paper states it.
    """

    name: str
    modality: str
    make: Callable[[Any], Any]
    paper_knees: dict[str, int]

    def shape(self, batch: int, length_s: float) -> tuple[int, ...]:
        """Shape of a batch of inputs."""
        if self.modality == "image":
            return batch, 3, 224, 224
        return batch, MEL_BINS, round(length_s * FRAMES_PER_S)


def _torchvision(name: str) -> Callable[[Any], Any]:
    def make(_: Any) -> Any:  # noqa: ANN401 - torch has no types here
        return getattr(importlib.import_module("torchvision.models"), name)(weights=None)

    return make


def conformer_encoder(torch: Any, *, width: int = 176, heads: int = 4, layers: int = 16, kernel: int = 31) -> Any:  # noqa: ANN401
    """An encoder with the operations and the size of Conformer (S): [n, 80, frames] to [n, frames / 4, width].

    Twice a quarter of the frames by strided convolution, then blocks of half feed-forward, self-attention, gated
    depthwise convolution, half feed-forward. Relative positions are left out; they cost little.

    Source: Gulati et al., "Conformer", Interspeech 2020, table 1.
    """
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc,name-defined]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
            self.first = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
            self.last = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            self.spread = nn.Conv1d(width, 2 * width, 1)
            self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
            self.middle = nn.BatchNorm1d(width)
            self.gather = nn.Conv1d(width, width, 1)

        def forward(self, x: Any) -> Any:  # noqa: ANN401
            x = x + 0.5 * self.first(self.norms[0](x))
            y = self.norms[1](x)
            x = x + self.attention(y, y, y, need_weights=False)[0]
            y = nn.functional.glu(self.spread(self.norms[2](x).transpose(1, 2)), dim=1)
            x = x + self.gather(nn.functional.silu(self.middle(self.depthwise(y)))).transpose(1, 2)
            return self.norms[4](x + 0.5 * self.last(self.norms[3](x)))

    class Encoder(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.shrink = nn.Sequential(
                nn.Conv1d(MEL_BINS, width, 3, stride=2, padding=1), nn.SiLU(),
                nn.Conv1d(width, width, 3, stride=2, padding=1), nn.SiLU(),
            )  # fmt: skip
            self.blocks = nn.Sequential(*(Block() for _ in range(layers)))

        def forward(self, x: Any) -> Any:  # noqa: ANN401
            return self.blocks(self.shrink(x).transpose(1, 2))

    return Encoder()


NETWORKS = {
    network.name: network
    for network in (
        Network("mobilenet-v3-small", "image", _torchvision("mobilenet_v3_small"), {"1": 16, "7": 128}),
        Network("squeezenet1.1", "image", _torchvision("squeezenet1_1"), {"1": 4, "7": 32}),
        Network("swin-t", "image", _torchvision("swin_t"), {"1": 2, "7": 16}),
        Network("conformer-small", "audio", conformer_encoder, {}),
    )
}
"""By name. Knees: PREBA, arXiv 2411.19114, Fig. 6."""


def build(torch: Any, network: Network, *, device: str, half: bool) -> Any:  # noqa: ANN401 - torch has no types here
    """The module, ready to measure."""
    torch.manual_seed(0)
    module = network.make(torch).eval().to(device)
    return module.half() if half else module
