"""What a process of ours may do to start quickly and a library may not: it changes the whole process."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

GC_THRESHOLD = 200_000
"""Objects made between two searches for garbage: a start makes some 500,000 that last, and Python searches every
700. Measured: 7 % of the time of a short run."""


def spare_garbage_collection() -> None:
    """Searches for garbage more rarely, for the rest of the process."""
    gc.set_threshold(GC_THRESHOLD)


def load_numba_without_scipy() -> None:
    """Loads what Numba needs of NumPy's functions, and keeps it from importing SciPy for them.

    Numba looks for SciPy's BLAS when it first compiles or loads anything, 0.15 s where SciPy is installed, of which an
    engine that multiplies no matrices has no use. Matrix products cannot be compiled in this process afterwards;
    SciPy itself can be imported as ever.
    """
    hidden = "scipy" not in sys.modules
    modules: dict[str, Any] = sys.modules  # an entry of None stands for a module that cannot be imported
    if hidden:
        modules["scipy"] = None
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        if hidden:
            del modules["scipy"]
