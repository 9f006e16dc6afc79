"""A sweep's folder: what it is about, and one line of JSON per finished run, appended as it finishes.

A line is complete when its newline is there: what a kill cut short is forgotten when the sweep is resumed, everything
else is kept. Nothing is ever rewritten while runs are under way.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preba.errors import OutputError

PLAN = "sweep.json"
RUNS = "runs.jsonl"


class SweepStore:
    """The finished runs of one sweep.

    Parameters
    ----------
    folder : Path
        Created if needed.
    plan : mapping
        What the sweep is about: plain JSON values. A folder with another plan is refused.

    Raises
    ------
    OutputError
        The folder holds something else, cannot be written, or another process works in it.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self.lines: dict[int, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_plan(plan)
            self._file = (folder / RUNS).open("ab", buffering=0)  # what fails to be written is not tried again
            self._lock()
            self._read()
        except OSError as error:
            raise self._error(error) from error

    def _lock(self) -> None:
        """Keeps a second sweep out of this folder; the system takes the lock back with the process."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise OutputError(f"--out {self.folder}: another sweep is at work in this folder") from error

    def _error(self, error: OSError) -> OutputError:
        reason = error.strerror or str(error)
        return OutputError(
            f"--out {self.folder}: cannot be written: {reason}; the {len(self.lines)} runs finished so far are kept, "
            "and the same command goes on from there"
        )

    def _check_plan(self, plan: Mapping[str, Any]) -> None:
        path = self.folder / PLAN
        text = json.dumps(plan, indent=2) + "\n"
        if not path.exists():
            if any(self.folder.iterdir()):
                raise OutputError(f"--out {self.folder}: is not empty and holds no sweep; give another folder")
            temporary = path.with_suffix(".tmp")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OutputError(f"--out {self.folder}: {PLAN} cannot be read; give another folder") from error
        different = [name for name in plan if known.get(name) != json.loads(json.dumps(plan[name]))]
        if different:
            raise OutputError(
                f"--out {self.folder}: holds another sweep ({', '.join(different)} differ); give another folder, or "
                "remove this one"
            )

    def _read(self) -> None:
        path = self.folder / RUNS
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for row in content[:whole].splitlines():
            entry = json.loads(row)
            self.lines[int(entry["run"])] = entry["line"]
        if whole < len(content):  # a kill cut the last line short
            with path.open("r+b") as file:
                file.truncate(whole)

    def add(self, finished: list[tuple[int, dict[str, Any]]]) -> None:
        """Appends finished runs, all of them or none.

        Raises
        ------
        OutputError
            The disk is full or gone; what was appended before is kept.
        """
        rows = "".join(json.dumps({"run": number, "line": line}) + "\n" for number, line in finished)
        start = self._file.tell()
        try:
            left = memoryview(rows.encode())
            while left:  # a nearly full disk takes a part
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._cut(start)
            raise self._error(error) from error
        self.lines.update(dict(finished))

    def _cut(self, length: int) -> None:
        """Takes back what of a failed append has reached the disk."""
        try:
            os.truncate(self.folder / RUNS, length)
        except OSError:
            return  # a line without its end is forgotten when the sweep is resumed

    def close(self) -> None:
        """Closes the file of finished runs."""
        try:
            self._file.close()
        except OSError as error:
            raise self._error(error) from error
