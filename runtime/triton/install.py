"""Where a Triton server is on this machine, and the environment it needs. Nothing is started here.

Looked for in this order: ``$PREBA_TRITON`` (a folder with ``bin/tritonserver`` and ``backends``, as in NVIDIA's
container), the wheel nvidia-pytriton, ``/opt/tritonserver``.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preba.errors import MissingExtraError, ServerError

EXTRA = "install it with: pip install 'preba[live]'"
CONTAINER = Path("/opt/tritonserver")


@dataclass(frozen=True)
class TritonInstall:
    """A Triton server that can be started.

    Attributes
    ----------
    binary : Path
    backend : Path
        Folder of the Python backend.
    stub : Path or None
        The stub for this Python, where it does not lie in ``backend``.
    libraries : tuple of Path
        Folders of shared libraries it needs.
    source : str
        Where it is from, for reports.
    """

    binary: Path
    backend: Path
    stub: Path | None
    libraries: tuple[Path, ...]
    source: str

    def backends(self, folder: Path) -> Path:
        """Puts the Python backend with the stub for this Python into a folder; returns the folder.

        Parameters
        ----------
        folder : Path
            Created.
        """
        target = folder / "backends" / "python"
        if not target.exists():
            shutil.copytree(self.backend, target)
            if self.stub is not None:
                shutil.copy2(self.stub, target / self.stub.name)
        return target.parent

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment variables of a server process: its libraries, and this Python for its models."""
        found = dict(os.environ)
        paths = [str(path) for path in self.libraries]
        # The stub is linked to libpython; a libpython of another build fails in strange ways.
        library_folder = sysconfig.get_config_var("LIBDIR")
        if library_folder:
            paths.append(str(library_folder))
        if found.get("LD_LIBRARY_PATH"):
            paths.append(found["LD_LIBRARY_PATH"])
        found["LD_LIBRARY_PATH"] = ":".join(paths)
        found["PATH"] = f"{Path(sys.executable).parent}:{found.get('PATH', '')}"
        found.pop("PYTHONHOME", None)
        found.update(extra or {})
        return found


def find_triton() -> TritonInstall:
    """Finds a Triton server.

    Raises
    ------
    MissingExtraError
        There is none.
    ServerError
        The one that ``$PREBA_TRITON`` names is none, or has no stub for this Python.
    """
    named = os.environ.get("PREBA_TRITON")
    if named:
        return _folder(Path(named), f"$PREBA_TRITON = {named}")
    spec = importlib.util.find_spec("pytriton")
    if spec is not None and spec.submodule_search_locations:
        return _wheel(Path(next(iter(spec.submodule_search_locations))))
    if (CONTAINER / "bin" / "tritonserver").exists():
        return _folder(CONTAINER, str(CONTAINER))
    raise MissingExtraError(f"there is no Triton server here; {EXTRA}")


def _folder(root: Path, source: str) -> TritonInstall:
    binary, backend = root / "bin" / "tritonserver", root / "backends" / "python"
    for needed in (binary, backend):
        if not needed.exists():
            raise ServerError(f"{source}: has no {needed.relative_to(root)}")
    return TritonInstall(binary, backend, None, (root / "lib",), source)


def _wheel(package: Path) -> TritonInstall:
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        there = sorted(path.name for path in (root / "python_backend_stubs").glob("*"))
        raise ServerError(f"nvidia-pytriton has no stub for Python {version}; it has {', '.join(there)}")
    glibc = platform.libc_ver()[1]
    if glibc and tuple(map(int, glibc.split(".")[:2])) < (2, 35):
        raise ServerError(f"nvidia-pytriton's server needs glibc 2.35, this system has {glibc}")
    libraries = (package.parent / "nvidia_pytriton.libs",)
    return TritonInstall(
        root / "bin" / "tritonserver", root / "backends" / "python", stub, libraries, "nvidia-pytriton"
    )
