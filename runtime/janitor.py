"""A process that outlives a killed server: it ends what the server started and removes what that left behind.

Started with a pipe on its standard input. Lines ``+<process group>`` and ``-<process group>`` say what runs, a line
``shm <prefix>`` which shared memory is the server's, a line ``dir <path>`` which temporary folder; when the pipe closes
for whatever reason, everything still listed is ended and removed. Imports nothing of preba, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory


def remove_shared_memory(prefix: str) -> list[str]:
    """Removes the shared memory whose name starts with a prefix.

    Parameters
    ----------
    prefix : str
        Not empty.

    Returns
    -------
    list of str
        Names of what was removed.
    """
    removed = []
    for path in sorted(SHARED_MEMORY.glob(f"{prefix}*")):
        with contextlib.suppress(OSError):
            path.unlink()
            removed.append(path.name)
    return removed


def end_group(group: int) -> None:
    """Kills a process group, if there still is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def main() -> None:
    """Reads what runs until the server is gone, then cleans up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal's interrupt is for the server
    groups: set[int] = set()
    prefixes: set[str] = set()
    folders: set[str] = set()
    for line in sys.stdin:
        word = line.strip()
        if word.startswith("+"):
            groups.add(int(word[1:]))
        elif word.startswith("-"):
            groups.discard(int(word[1:]))
        elif word.startswith("shm "):
            prefixes.add(word[4:])
        elif word.startswith("dir "):
            folders.add(word[4:])
    for group in groups:
        end_group(group)
    for prefix in prefixes:
        if prefix:
            remove_shared_memory(prefix)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
