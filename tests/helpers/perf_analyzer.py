"""NVIDIA's perf_analyzer from the tritonclient wheel, made to run: it lacks two libraries that another wheel has."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


def prepared(folder: Path) -> Path | None:
    """Puts the program and its libraries into a folder; ``None`` where `make test` has not unpacked it."""
    found = sorted(Path(sys.prefix).glob("tritonclient-*/*.data/data/bin/perf_analyzer"))
    places = [place / "nvidia_pytriton.libs" for place in map(Path, site.getsitepackages())]
    sources = {name: next((one for at in places for one in at.glob(glob)), None) for name, glob in LIBRARIES.items()}
    if not found or None in sources.values():
        return None
    for name, source in sources.items():
        assert source is not None
        (folder / name).symlink_to(source)
    program = folder / "perf_analyzer"
    shutil.copy(found[0], program)
    program.chmod(0o755)
    return program


def analysed(program: Path, *options: str, timeout_s: float = 120) -> str:
    """Runs it over gRPC and gives back what it printed."""
    ended = subprocess.run(
        [str(program), "-i", "grpc", *options], env=os.environ | {"LD_LIBRARY_PATH": str(program.parent)},
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
