"""LatencyProfile: how long a batch executes on one slice, as a table or a closed form.

Files are read through `load_profile`; engines read the dense integer table of `LatencyProfile.table_ns`.
No queueing, no batching rule and no file format of anybody else belongs here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from preba.data import config_folder
from preba.errors import ProfileError, ProfileRangeError
from preba.jitter import JitterConfig, NoJitter
from preba.profile_parts import (
    Backend,
    ClosedForm,
    Interference,
    LengthTable,
    Memory,
    Scaling,
    Table,
    given,
    gpcs_of,
)
from preba.strict import Provenance, StrictModel
from preba.strictfile import Lines, find_config, modified_ns, read_yaml, validate
from preba.units import NS_PER_MS, NS_PER_S

__all__ = ["LatencyProfile", "load_profile", "profile_from_dict"]

Part = Literal["batch_max", "exponent", "floor", "interference", "jitter", "length", "offset", "slope", "table"]


class LatencyProfile(StrictModel):
    """Execution time of a batch of one model on one slice of one GPU family.

    Exactly one of `table` (slice -> batch -> ms), `table_by_length_s` (slice -> audio length ->
    batch -> ms) and `closed_form` holds the times. Between tabulated batches and lengths the time
    is linear; outside them a question is an error, never an extrapolation.

    Slices are named by GPC count (``1g``); a full MIG name (``1g.5gb``) finds its own entry if
    there is one, else that of its GPC count.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    model: Annotated[str, Field(min_length=1)]
    modality: Literal["image", "audio", "tensor"]
    device: Annotated[str, Field(min_length=1)]
    precision: Annotated[str, Field(min_length=1)]
    framework: Annotated[str, Field(min_length=1)]
    provenance: Provenance
    parts: dict[Part, Provenance] = Field(default_factory=dict)
    table: Table | None = None
    table_by_length_s: LengthTable | None = None
    closed_form: ClosedForm | None = None
    scaling: Scaling | None = None
    jitter: JitterConfig = NoJitter(kind="none")
    interference: Interference | None = None
    backend: Backend = Backend()
    memory: Memory | None = None

    @model_validator(mode="after")
    def _times_are_given_once(self) -> Self:
        given = [name for name in ("table", "table_by_length_s", "closed_form") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "table, table_by_length_s, closed_form: exactly one must hold the times, "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.scaling is not None and self.scaling.from_slice not in self._listed:
            raise ValueError(
                f"scaling.from_slice: {self.scaling.from_slice!r} is not a slice of this profile "
                f"({', '.join(self._listed)})"
            )
        if self.length_dependent != (self.modality == "audio"):
            raise ValueError(
                "modality: an audio profile must depend on length (table_by_length_s, or closed_form with "
                "reference_length_s), and only an audio profile may"
            )
        return self

    @model_validator(mode="after")
    def _tables_have_no_hole(self) -> Self:
        for slice_key, batches in (self.table or {}).items():
            _check_batches(f"table.{slice_key}", batches)
        for slice_key, by_length in (self.table_by_length_s or {}).items():
            if not by_length:
                raise ValueError(f"table_by_length_s.{slice_key}: no length is listed")
            everything = sorted({batch for batches in by_length.values() for batch in batches})
            for length_s, batches in by_length.items():
                field = f"table_by_length_s.{slice_key}.{length_s:g}"
                _check_batches(field, batches)
                missing = [b for b in everything if b <= max(batches) and b not in batches]
                if missing:
                    raise ValueError(
                        f"{field}: batch {missing[0]} is missing although other lengths list it and "
                        f"{max(batches)} is listed here; a profile must not have holes"
                    )
        for empty in ("table", "table_by_length_s"):
            if getattr(self, empty) == {}:
                raise ValueError(f"{empty}: no slice is listed")
        return self

    @property
    def _listed(self) -> tuple[str, ...]:
        """Slices whose times are written in the file."""
        if self.closed_form is not None:
            return tuple(self.closed_form.batch_max)
        return tuple(self.table or self.table_by_length_s or ())

    @property
    def slices(self) -> tuple[str, ...]:
        """Slice keys written in the file; `scaling` may derive more."""
        return self._listed

    @property
    def length_dependent(self) -> bool:
        """Whether a time depends on the input's length (audio)."""
        if self.closed_form is not None:
            return self.closed_form.reference_length_s is not None
        return self.table_by_length_s is not None

    def knows(self, slice_key: str) -> bool:
        """Whether the profile answers for this slice."""
        return self._find(slice_key) is not None

    def provenance_of(self, slice_key: str) -> Provenance:
        """Return where this slice's times come from: the file's provenance, or that of `scaling`."""
        entry = self._entry(slice_key)
        if entry in self._listed and _matches(slice_key, entry):
            return self.provenance
        return given(self.scaling).provenance

    def batch_max(self, slice_key: str, length_ns: int | None = None) -> int:
        """Return the largest batch this slice can be asked for.

        Parameters
        ----------
        slice_key : str
            ``"1g"`` or a full MIG name.
        length_ns : int, optional
            Length of the longest input; without it, a batch that every length of the profile allows.

        Raises
        ------
        ProfileRangeError
            For a slice or length outside the profile.
        """
        entry = self._entry(slice_key)
        if self.closed_form is not None:
            if length_ns is not None:
                self._length_s(slice_key, length_ns)
            return self.closed_form.batch_max[entry]
        if self.table is not None:
            return max(self.table[entry])
        by_length = given(self.table_by_length_s)[entry]
        if length_ns is None:
            return min(max(batches) for batches in by_length.values())
        low, high = _bracket(sorted(by_length), given(self._length_s(slice_key, length_ns)))
        return min(max(by_length[low]), max(by_length[high]))

    def latency_ns(self, slice_key: str, batch: int, length_ns: int | None = None) -> int:
        """Execution time of one batch on an otherwise idle GPU, without jitter.

        Parameters
        ----------
        slice_key : str
            ``"1g"`` or a full MIG name.
        batch : int
            Items in the batch, at least 1.
        length_ns : int, optional
            Length of the longest input; needed when the profile depends on it, else ignored.

        Returns
        -------
        int
            Nanoseconds.

        Raises
        ------
        ProfileRangeError
            For a slice, batch or length outside the profile; names the range.
        """
        limit = self.batch_max(slice_key, length_ns)
        if not 1 <= batch <= limit:
            raise ProfileRangeError(
                f"profile {self.name!r}: batch {batch} on slice {slice_key} is outside 1..{limit}{self._at(length_ns)}"
            )
        return int(self._latencies_ns(slice_key, np.array([batch], dtype=np.int64), length_ns)[0])

    def table_ns(
        self,
        slice_keys: Sequence[str],
        length_edges_ns: Sequence[int] | None,
        batch_max: int,
        *,
        absent_ns: int | None = None,
    ) -> NDArray[np.int64]:
        """Build the dense table both engines read.

        Parameters
        ----------
        slice_keys : sequence of str
            One per row.
        length_edges_ns : sequence of int or None
            One length per column, at which the time is taken (the upper edge of a length bucket).
            None gives one column, for profiles that do not depend on length; a profile that does not
            repeats itself in every column.
        batch_max : int
            Largest batch.
        absent_ns : int, optional
            Value for batches that a slice cannot run (mixed slice sizes); without it they are an error.

        Returns
        -------
        ndarray of int64, shape (slice, length, batch_max + 1)
            Nanoseconds, indexed by batch; entry 0 is unused and 0. Equal to `latency_ns` entry by entry.

        Raises
        ------
        ProfileRangeError
            When a slice, length or batch is outside the profile.
        """
        if batch_max < 1:
            raise ProfileRangeError(f"profile {self.name!r}: batch_max must be >= 1, got {batch_max}")
        lengths: Sequence[int | None] = [None] if length_edges_ns is None else list(length_edges_ns)
        table = np.zeros((len(slice_keys), len(lengths), batch_max + 1), dtype=np.int64)
        for row, slice_key in enumerate(slice_keys):
            for column, length_ns in enumerate(lengths):
                limit = self.batch_max(slice_key, length_ns)
                if batch_max > limit and absent_ns is None:
                    raise ProfileRangeError(
                        f"profile {self.name!r}: batch {batch_max} on slice {slice_key} is outside 1..{limit}"
                        f"{self._at(length_ns)}"
                    )
                batches = np.arange(1, min(batch_max, limit) + 1, dtype=np.int64)
                table[row, column, 1 : batches.size + 1] = self._latencies_ns(slice_key, batches, length_ns)
                if absent_ns is not None:
                    table[row, column, batches.size + 1 :] = absent_ns
        return table

    def _find(self, slice_key: str) -> str | None:
        """Which written entry answers for a slice: its own, its GPC count's, or the one it is scaled from."""
        gpcs = gpcs_of(slice_key)
        for candidate in (slice_key, slice_key.partition("+")[0], f"{gpcs}g"):
            if candidate in self._listed:
                return candidate
        if self.scaling is not None and gpcs is not None:
            return self.scaling.from_slice
        return None

    def _entry(self, slice_key: str) -> str:
        entry = self._find(slice_key)
        if entry is None:
            raise ProfileRangeError(
                f"profile {self.name!r}: slice {slice_key!r} is not in it; it holds {', '.join(self._listed)}"
                + ("" if self.scaling else " and has no scaling section to derive others")
            )
        return entry

    def _at(self, length_ns: int | None) -> str:
        if length_ns is None or not self.length_dependent:
            return ""
        return f" for inputs of {length_ns / NS_PER_S:g} s"

    def _length_s(self, slice_key: str, length_ns: int | None) -> float | None:
        """Convert and range-check a length; None where the profile does not depend on it."""
        if not self.length_dependent:
            return None
        if length_ns is None:
            raise ProfileError(f"profile {self.name!r}: times depend on audio length; give a length")
        length_s = length_ns / NS_PER_S
        if self.closed_form is not None and self.closed_form.length_range_s is not None:
            low, high = self.closed_form.length_range_s
        else:
            lengths = sorted((self.table_by_length_s or {})[self._entry(slice_key)])
            low, high = lengths[0], lengths[-1]
        if not low <= length_s <= high:
            raise ProfileRangeError(
                f"profile {self.name!r}: length {length_s:g} s on slice {slice_key} is outside {low:g}..{high:g} s"
            )
        return length_s

    def _latencies_ns(self, slice_key: str, batches: NDArray[np.int64], length_ns: int | None) -> NDArray[np.int64]:
        """Times of batches already known to be in range."""
        entry = self._entry(slice_key)
        length_s = self._length_s(slice_key, length_ns)
        if self.closed_form is not None:
            latency_ms = self.closed_form.latency_ms(entry, batches, length_s)
        elif self.table is not None:
            latency_ms = _interpolate(self.table[entry], batches)
        else:
            by_length, length_s = given(self.table_by_length_s)[entry], given(length_s)
            low, high = _bracket(sorted(by_length), length_s)
            latency_ms = _interpolate(by_length[low], batches)
            if high > low:
                share = (length_s - low) / (high - low)
                latency_ms = latency_ms * (1.0 - share) + _interpolate(by_length[high], batches) * share
        if self.scaling is not None and not _matches(slice_key, entry):
            factor = (given(gpcs_of(entry)) / given(gpcs_of(slice_key))) ** self.scaling.exponent
            latency_ms = np.maximum(self.scaling.floor_ms, latency_ms * factor)
        return np.maximum(1, np.rint(latency_ms * NS_PER_MS)).astype(np.int64)


def _matches(slice_key: str, entry: str) -> bool:
    """Whether an entry was written for this slice (not borrowed through scaling)."""
    return entry in (slice_key, slice_key.partition("+")[0], f"{gpcs_of(slice_key)}g")


def _check_batches(field: str, batches: Mapping[int, float]) -> None:
    if 1 not in batches:
        raise ValueError(f"{field}: must start at batch 1, got {sorted(batches) or 'nothing'}")


def _interpolate(points: Mapping[int, float], batches: NDArray[np.int64]) -> NDArray[np.float64]:
    """Piecewise-linear time between tabulated batches, ms."""
    known = sorted(points)
    return np.interp(batches, known, [points[batch] for batch in known])


def _bracket(lengths: Sequence[float], length_s: float) -> tuple[float, float]:
    """Neighbouring tabulated lengths around one that lies within them."""
    high = next(each for each in lengths if each >= length_s)
    if high == length_s:
        return high, high
    return lengths[lengths.index(high) - 1], high


def profile_from_dict(data: object, *, origin: str = "profile", lines: Lines | None = None) -> LatencyProfile:
    """Validate plain data (from YAML, JSON or a test) as a profile.

    Parameters
    ----------
    data : object
        The mapping.
    origin : str
        File or field it came from, for the message.
    lines : mapping, optional
        Line of each field in that file.

    Raises
    ------
    ProfileError
        With the field path, what is wrong and where.
    """
    if not isinstance(data, Mapping):
        raise ProfileError(f"{origin}: a profile is a mapping, got {type(data).__name__}")
    if not data.get("provenance"):
        raise ProfileError(
            f"provenance: missing; a profile must say where its numbers come from "
            f"(kind: measured, published or modelled, and source) ({origin})"
        )
    return validate(LatencyProfile, data, origin=origin, lines=lines, error=ProfileError)


def load_profile(name_or_path: str | Path) -> LatencyProfile:
    """Read a profile by name (``preba-citrinet``, from configs/profiles) or by path.

    Raises
    ------
    MissingFileError
        When there is none; suggests the nearest name.
    ProfileError
        When the file is not a whole, consistent profile with provenance.
    """
    path = find_config(name_or_path, config_folder() / "profiles", what="profile")
    return _parsed(path, modified_ns(path))


@functools.lru_cache(maxsize=64)  # sweeps read the same file thousands of times
def _parsed(path: Path, _modified_ns: int) -> LatencyProfile:
    data, lines = read_yaml(path, error=ProfileError)
    return profile_from_dict(data, origin=str(path), lines=lines)
