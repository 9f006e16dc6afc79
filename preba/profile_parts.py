"""The parts a latency profile is written in: tables, the closed form, interference, backend, memory.

Only their shape and what makes each one consistent lives here; `preba.profile` turns them into times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, model_validator

from preba.strict import Provenance, StrictModel

__all__ = [
    "Backend",
    "ClosedForm",
    "Interference",
    "LengthTable",
    "Memory",
    "Scaling",
    "SliceKey",
    "Table",
    "given",
    "gpcs_of",
]

T = TypeVar("T")

_KEY = r"^([1-9])g(\.\d+gb(\+[a-z.]+)*)?$|^full$"
_KEY_PATTERN = re.compile(_KEY)

SliceKey: TypeAlias = Annotated[str, StringConstraints(pattern=_KEY)]
"""A GPC count (``1g``), a full MIG name (``1g.5gb``, ``1g.10gb+me``) or ``full``: a GPU with MIG off."""

PositiveMs: TypeAlias = Annotated[float, Field(gt=0)]
BatchSize: TypeAlias = Annotated[int, Field(ge=1)]
Table: TypeAlias = dict[SliceKey, dict[BatchSize, PositiveMs]]
LengthTable: TypeAlias = dict[SliceKey, dict[PositiveMs, dict[BatchSize, PositiveMs]]]


def given(value: T | None) -> T:
    """Narrow a field that validation guarantees to be there."""
    if value is None:
        raise AssertionError("a profile that passed validation lacks a field it must have")
    return value


def gpcs_of(slice_key: str) -> int | None:
    """Count the GPCs a slice name stands for.

    Parameters
    ----------
    slice_key : str
        ``"2g"``, ``"2g.10gb"``, ``"1g.10gb+me"`` or ``"full"``.

    Returns
    -------
    int or None
        None for ``full`` (MIG off, so not a GPC count) and for anything that is no slice name.
    """
    match = _KEY_PATTERN.match(slice_key)
    return int(match.group(1)) if match and match.group(1) else None


class Interference(StrictModel):
    """Slowdown from busy neighbour slices of the same GPU.

    ``busy_neighbour_fraction`` f is the relative slowdown with every other slice busy; with only
    some of them busy the slowdown is taken as proportional (an assumption: the source measured the
    extreme only), so a batch takes ``tau * (1 + f * busy_neighbours / (slices - 1))``.

    Source: MLPerf Inference v1.0, NVIDIA, A100-80GB 1g.10gb, alone against six busy neighbours:
    throughput falls by 1.2-2.2 %.
    """

    busy_neighbour_fraction: Annotated[float, Field(ge=0, le=1)]
    provenance: Provenance

    @property
    def fraction_ppm(self) -> int:
        """The fraction in parts per million: engines compute with integers only."""
        return round(self.busy_neighbour_fraction * 1_000_000)

    def slowed_ns(self, latency_ns: int, *, busy_neighbours: int, slices: int) -> int:
        """Stretch an execution time by the neighbours that are busy when it starts.

        Parameters
        ----------
        latency_ns : int
            Execution time on an otherwise idle GPU.
        busy_neighbours : int
            Other slices of the same GPU that execute, 0 to ``slices - 1``.
        slices : int
            Slices on that GPU, this one included.

        Returns
        -------
        int
            ``latency_ns * (1 + f * busy_neighbours / (slices - 1))``, floored to a nanosecond in
            integer arithmetic so that every engine gets the same number.
        """
        if slices <= 1 or busy_neighbours <= 0:
            return latency_ns
        return latency_ns + latency_ns * self.fraction_ppm * busy_neighbours // ((slices - 1) * 1_000_000)


class Backend(StrictModel):
    """How the serving backend holds its instance while a batch runs.

    ``blocking``: until the outputs are ready (PyTorch, ONNX Runtime, Python, DALI). ``trt``: TensorRT
    gives its thread back once the inputs are consumed, ``input_consumed_fraction`` of the way
    through; ``trt-graph``: with CUDA graphs, only when compute ends; ``eager``: TensorRT's
    ``eager_batching``, up to three batches formed ahead.
    """

    kind: Literal["blocking", "trt", "trt-graph", "eager"] = "blocking"
    input_consumed_fraction: Annotated[float, Field(ge=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _fraction_needs_an_early_release(self) -> Self:
        if self.kind in ("blocking", "trt-graph") and self.input_consumed_fraction != 1.0:
            raise ValueError(
                f"input_consumed_fraction: {self.kind} releases nothing early, so it must be 1.0, "
                f"got {self.input_consumed_fraction}"
            )
        return self


class Memory(StrictModel):
    """GPU memory a batch needs: ``fixed_mib + batch * per_item_mib``."""

    fixed_mib: Annotated[float, Field(ge=0)]
    per_item_mib: Annotated[float, Field(ge=0)]
    provenance: Provenance

    def needed_mib(self, batch: int) -> float:
        """Return the memory of one batch, in MiB."""
        return self.fixed_mib + batch * self.per_item_mib


class Scaling(StrictModel):
    """Permission to derive slice sizes that were not measured; always ``modelled``.

    A slice of g GPCs takes ``max(floor_ms, tau_from(b) * (g_from / g) ** exponent)``: work shrinks
    with the slice's size, the launch-bound floor does not. Batches go up to those of ``from_slice``.
    """

    from_slice: SliceKey
    exponent: Annotated[float, Field(gt=0, le=1.5)]
    floor_ms: Annotated[float, Field(ge=0)]
    provenance: Provenance

    @model_validator(mode="after")
    def _is_a_model(self) -> Self:
        if self.provenance.kind != "modelled":
            raise ValueError(f"provenance.kind: a derived slice is modelled, got {self.provenance.kind!r}")
        if gpcs_of(self.from_slice) is None:
            raise ValueError(f"from_slice: needs a slice with a GPC count, got {self.from_slice!r}")
        return self


class ClosedForm(StrictModel):
    """``tau(b, len) = max(L, a(slice) * b * len / reference_length_s + c)`` in milliseconds.

    ``floor_ms`` (L) and ``offset_ms`` (c) hold for every slice or are listed per slice. The slope a
    is listed per slice, or is ``slope_1g_ms / g ** slope_exponent``. ``batch_max`` says which slices
    exist and how far each goes. Without ``reference_length_s`` the length does not matter; with it,
    ``length_range_s`` says for which lengths the form holds.
    """

    floor_ms: PositiveMs | dict[SliceKey, PositiveMs]
    offset_ms: float | dict[SliceKey, float] = 0.0
    slope_ms: dict[SliceKey, PositiveMs] | None = None
    slope_1g_ms: PositiveMs | None = None
    slope_exponent: Annotated[float, Field(gt=0, le=1.5)] | None = None
    reference_length_s: PositiveMs | None = None
    length_range_s: tuple[Annotated[float, Field(ge=0)], PositiveMs] | None = None
    batch_max: dict[SliceKey, BatchSize] = Field(min_length=1)

    @model_validator(mode="after")
    def _slope_is_given_once(self) -> Self:
        scaled = (self.slope_1g_ms is not None, self.slope_exponent is not None)
        if scaled[0] != scaled[1]:
            raise ValueError("slope_1g_ms and slope_exponent: give both or neither")
        if (self.slope_ms is not None) == scaled[0]:
            raise ValueError("slope_ms: give it, or slope_1g_ms with slope_exponent, but not both")
        if scaled[0]:
            odd = [key for key in self.batch_max if gpcs_of(key) is None]
            if odd:
                raise ValueError(f"batch_max.{odd[0]}: a scaled slope needs a GPC count; list slope_ms instead")
        for name in ("slope_ms", "floor_ms", "offset_ms"):
            listed = getattr(self, name)
            if isinstance(listed, dict) and listed.keys() != self.batch_max.keys():
                odd_keys = ", ".join(sorted(listed.keys() ^ self.batch_max.keys()))
                raise ValueError(f"{name}: must list the slices of batch_max; differs in {odd_keys}")
        return self

    @model_validator(mode="after")
    def _length_is_whole(self) -> Self:
        if (self.reference_length_s is None) != (self.length_range_s is None):
            raise ValueError("reference_length_s and length_range_s: give both or neither")
        if self.length_range_s is not None and not self.length_range_s[0] < self.length_range_s[1]:
            raise ValueError(f"length_range_s: must rise, got {list(self.length_range_s)}")
        return self

    def slope(self, slice_key: str) -> float:
        """Return the slope a of one listed slice, ms per item of the reference length."""
        if self.slope_ms is not None:
            return self.slope_ms[slice_key]
        gpcs = float(given(gpcs_of(slice_key)))
        shrink: float = gpcs ** given(self.slope_exponent)
        return given(self.slope_1g_ms) / shrink

    def latency_ms(self, slice_key: str, batch: NDArray[np.int64], length_s: float | None) -> NDArray[np.float64]:
        """Evaluate the form; ranges are the caller's business."""
        share = 1.0
        if self.reference_length_s is not None and length_s is not None:
            share = length_s / self.reference_length_s
        line = self.slope(slice_key) * share * batch + _of(self.offset_ms, slice_key)
        latency: NDArray[np.float64] = np.maximum(_of(self.floor_ms, slice_key), line)
        return latency


def _of(value: float | Mapping[str, float], slice_key: str) -> float:
    return value if isinstance(value, float | int) else value[slice_key]
