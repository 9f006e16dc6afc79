"""Every error preba raises on purpose; no logic lives here.

::

    PrebaError
    ├── ScenarioError       (ValueError)           a scenario field is wrong
    ├── MissingFileError    (FileNotFoundError)    a named file is not there
    ├── FormatError         (ValueError)           a foreign file cannot be read as what it claims to be
    ├── ProfileError        (ValueError)           a latency profile is incomplete or has no provenance
    │   └── ProfileRangeError (LookupError)        a question outside the profile's table
    ├── PartitionError      (ValueError)           a MIG partition that no GPU allows
    ├── TraceError          (ValueError)           a trace or its arrival file makes no sense
    ├── UnsupportedError    (NotImplementedError)  an engine is asked for what it does not do
    ├── InputError          (ValueError)           a request's own input is broken or beyond a limit
    ├── ServerError         (RuntimeError)         a live server cannot be started, reached or used
    ├── DriverError         (RuntimeError)         a GPU's driver is missing, refuses or fails
    ├── MissingExtraError   (ImportError)          an optional dependency is not installed
    └── OutputError         (OSError)              results could not be written

Each refines the built-in it resembles. A message holds the field path, the value and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DriverError",
    "FormatError",
    "InputError",
    "MissingExtraError",
    "MissingFileError",
    "OutputError",
    "PartitionError",
    "PrebaError",
    "ProfileError",
    "ProfileRangeError",
    "ScenarioError",
    "ServerError",
    "TraceError",
    "UnsupportedError",
    "nearest",
]


class PrebaError(Exception):
    """Root of every error raised on purpose; its text is meant for the user."""


class ScenarioError(PrebaError, ValueError):
    """A scenario field is unknown, missing, of the wrong type or out of range."""


class MissingFileError(PrebaError, FileNotFoundError):
    """A file the user named does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FormatError(PrebaError, ValueError):
    """A file is not what it claims to be: config.pbtxt, mig-parted YAML, a CSV, nvidia-smi text."""


class ProfileError(PrebaError, ValueError):
    """A latency profile has a hole, contradicts itself or carries no provenance."""


class ProfileRangeError(ProfileError, LookupError):
    """A profile is asked for a slice, length or batch size outside its table."""


class PartitionError(PrebaError, ValueError):
    """A partition that the device's placement rules do not allow."""


class TraceError(PrebaError, ValueError):
    """A trace, or the file it is replayed from, is empty, unordered or otherwise senseless."""


class UnsupportedError(PrebaError, NotImplementedError):
    """The chosen engine does not model something the scenario asks for; the message names it."""


class InputError(PrebaError, ValueError):
    """The input of one request is corrupt, truncated or beyond a limit; nothing else is wrong."""


class ServerError(PrebaError, RuntimeError):
    """A live server, or a process it needs, cannot be started, reached or used; the message says what to do."""


class DriverError(PrebaError, RuntimeError):
    """A GPU's driver is missing, refuses what is asked, or fails; the message says what would help."""


class MissingExtraError(PrebaError, ImportError):
    """A feature needs an optional dependency; the message says which extra installs it."""


class OutputError(PrebaError, OSError):
    """Results could not be written; nothing half-written is left behind."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name closest to a misspelt one.

    Parameters
    ----------
    name : str
        What the user wrote.
    known : iterable of str
        The names that would have been accepted.

    Returns
    -------
    str
        ``"; did you mean 'x'?"``, or the accepted names when nothing is close.
    """
    candidates = sorted(known)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(candidates)}" if candidates else ""
