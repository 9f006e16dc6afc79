"""How much of a virtual machine's CPU time its host gives to others, as the kernel counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CpuTicks", "cpu_ticks", "stolen_percent"]

STOLEN = 7
"""Place of the ticks that a hypervisor gave to others among those of /proc/stat (proc(5)); the two after it are parts
of the first two."""


@dataclass(frozen=True)
class CpuTicks:
    """What all cores of this machine have done since it was started, in the kernel's ticks.

    Attributes
    ----------
    every : int
    stolen : int
        The machine had work then, and its host did something else.
    """

    every: int
    stolen: int


def cpu_ticks(path: Path = Path("/proc/stat")) -> CpuTicks | None:
    """Reads them; ``None`` where the system does not say."""
    try:
        name, *words = path.read_text(encoding="ascii").partition("\n")[0].split()
        ticks = [int(word) for word in words[: STOLEN + 1]]
    except (OSError, ValueError):
        return None
    return CpuTicks(sum(ticks), ticks[STOLEN]) if name == "cpu" and len(ticks) > STOLEN else None


def stolen_percent(before: CpuTicks | None, after: CpuTicks | None) -> float | None:
    """Share of the cores' time that the host gave to others meanwhile."""
    if before is None or after is None or after.every <= before.every:
        return None
    return 100.0 * (after.stolen - before.stolen) / (after.every - before.every)
