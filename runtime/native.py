"""Health and metrics of a server whose slices batch for themselves: theirs, put together."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Mapping

from runtime.slices import AnySlice, NullSlice

__all__ = ["SlicesBehindEnvoy"]

PATIENCE_S = 2.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>.+)")


class SlicesBehindEnvoy:
    """What the HTTP interface asks.

    Parameters
    ----------
    slices : mapping of int to AnySlice
    """

    def __init__(self, slices: Mapping[int, AnySlice]) -> None:
        self._slices = slices

    @property
    def ready(self) -> bool:
        """Whether any slice is in service."""
        return any(one.is_up for one in self._slices.values())

    async def metrics(self) -> bytes:
        """Every slice's own metrics, each sample with the slice's name, and which slices are up."""
        texts = await asyncio.gather(*(asyncio.to_thread(_metrics_of, one) for one in self._slices.values()))
        families: dict[str, list[str]] = {}
        heads: dict[str, list[str]] = {}
        for one, text in zip(self._slices.values(), texts, strict=True):
            for line in text.splitlines():
                if line.startswith("# "):
                    name = line.split(" ", 3)[2]
                    if line not in heads.setdefault(name, []):
                        heads[name].append(line)
                    continue
                sample = _SAMPLE.fullmatch(line)
                if sample is not None:
                    labels = f"{sample['labels']}," if sample["labels"] else ""
                    families.setdefault(sample["name"], []).append(
                        f'{sample["name"]}{{{labels}slice="{one.name}"}} {sample["value"]}'
                    )
        lines = []
        for name, samples in families.items():
            lines += [*heads.get(name, []), *samples]
        lines += ["# HELP preba_slice_up 1 while a slice is in service", "# TYPE preba_slice_up gauge"]
        lines += [f'preba_slice_up{{slice="{one.name}"}} {int(one.is_up)}' for one in self._slices.values()]
        return ("\n".join(lines) + "\n").encode()


def _metrics_of(one: AnySlice) -> str:
    """A slice's metrics as text; nothing from one that does not answer."""
    if isinstance(one, NullSlice) or not one.is_up:
        return ""
    try:
        with _DIRECT.open(f"http://127.0.0.1:{one.triton.metrics_port}/metrics", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode("utf-8", errors="replace"))
    except OSError:
        return ""
