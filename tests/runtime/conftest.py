"""Makes the tests' own live client importable as ``live_serving``: test folders are no packages here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _importable(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_importable("live_serving", Path(__file__).with_name("serving.py"))
