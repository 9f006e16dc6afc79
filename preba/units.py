"""The one place where times in configs and printed tables (_ms, _s) meet times inside (_ns, int64)."""

from __future__ import annotations

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

NEVER_NS = (1 << 63) - 1
"""A due time that never comes (the largest int64)."""


def ns_from_ms(value_ms: float) -> int:
    """Milliseconds from a config to integer nanoseconds, rounded to the nearest."""
    return round(value_ms * NS_PER_MS)


def ns_from_us(value_us: float) -> int:
    """Microseconds from a config to integer nanoseconds, rounded to the nearest."""
    return round(value_us * NS_PER_US)


def ns_from_s(value_s: float) -> int:
    """Seconds from a config to integer nanoseconds, rounded to the nearest."""
    return round(value_s * NS_PER_S)


def ms_from_ns(value_ns: float) -> float:
    """Nanoseconds to milliseconds, for tables and JSON only."""
    return value_ns / NS_PER_MS


def s_from_ns(value_ns: float) -> float:
    """Nanoseconds to seconds, for tables and JSON only."""
    return value_ns / NS_PER_S
