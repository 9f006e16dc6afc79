"""An alarm that rings on time: asyncio's own timers are rounded up to whole milliseconds on Linux.

A timerfd of the kernel is read like a socket; it rings within some tens of microseconds while the loop is not busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable

from preba.units import NS_PER_S

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_ABSOLUTE = 1


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


_LIBC = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """Calls a function at a moment of the monotonic clock.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    ring : callable
        Called without arguments, in the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._number = _LIBC.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._number < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._number, self._read)

    def _read(self) -> None:
        try:
            os.read(self._number, 8)
        except BlockingIOError:
            return  # it was set anew meanwhile
        self._ring()

    def set(self, at_ns: int | None) -> None:
        """Sets the alarm to ``time.monotonic_ns() == at_ns``, at once if that has passed; ``None`` switches it off."""
        if self._number < 0:
            return
        value = _Time(0, 0) if at_ns is None else _Time(*divmod(max(at_ns, 1), NS_PER_S))
        setting = _Setting(_Time(0, 0), value)
        _LIBC.timerfd_settime(self._number, _ABSOLUTE, ctypes.byref(setting), None)

    def close(self) -> None:
        """Gives the timer back."""
        if self._number >= 0:
            with contextlib.suppress(RuntimeError):
                self._loop.remove_reader(self._number)
            os.close(self._number)
            self._number = -1
