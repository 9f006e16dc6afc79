"""Which kind of measured file a file is, and reading it."""

from __future__ import annotations

import json
from pathlib import Path

from preba.errors import FormatError, MissingFileError
from preba.foreign import loadgen, perf_analyzer, triton
from preba.foreign.measured import Measured

__all__ = ["KINDS", "read_measured"]

KINDS = (
    "perf_analyzer CSV, perf_analyzer profile-export JSON, Triton statistics JSON, Triton trace JSON, LoadGen summary, "
    "LoadGen detail log"
)


def read_measured(path: Path, *, model: str | None = None, load: float | None = None) -> Measured:
    """Read a measured run, whatever tool wrote it.

    Parameters
    ----------
    path : pathlib.Path
    model : str, optional
        The scenario's model, where a file has several.
    load : float, optional
        The scenario's concurrency or rate, where a file has several runs.

    Raises
    ------
    MissingFileError
        There is no such file.
    FormatError
        It is none of ``KINDS``, or broken.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"--measured {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise FormatError(f"--measured {path}: not a text file ({problem})") from None
    origin = str(path)
    if perf_analyzer.looks_like_csv(text):
        return perf_analyzer.read_csv(text, origin=origin, load=load)
    if loadgen.looks_like_summary(text):
        return loadgen.read_summary(text, origin=origin)
    if loadgen.looks_like_detail(text):
        return loadgen.read_detail(text, origin=origin)
    if text.lstrip()[:1] in {"{", "["}:
        try:
            data = json.loads(text)
        except ValueError as problem:
            raise FormatError(f"{origin}: not JSON: {problem}") from None
        if perf_analyzer.looks_like_export(data):
            return perf_analyzer.read_export(data, origin=origin, load=load)
        if triton.looks_like_statistics(data):
            return triton.read_statistics(data, origin=origin, model=model)
        if triton.looks_like_trace(data):
            return triton.read_trace(data, origin=origin, model=model)
    raise FormatError(f"{origin}: not a measured run that preba reads: {KINDS}")
