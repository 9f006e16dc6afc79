"""Which Triton server release has which batching rule or fault; a table of facts, no rules.

Source: the release branches rYY.MM of triton-inference-server/core that contain the named change. Between r24.10
(server 2.51) and commit 73aad7c (9 June 2026) the files that decide batching are the same but for the ordering
change, so those two versions batch alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from preba.errors import ScenarioError, nearest

SOURCE_2026_06 = "source-2026-06"
"""The source this model was read from: core commit 73aad7c."""

OLDEST = "2.30"
LATEST = "2.71"

_FIRST = 23 * 12 + 1  # 23.01 is 2.30; one minor version a month since
_LAST = 26 * 12 + 6
_MINOR_AT_FIRST = 30


@dataclass(frozen=True)
class TritonRelease:
    """What a server release does.

    Attributes
    ----------
    prefetch_off_with_policy : bool
        Queue policies and priorities form batches only for an idle instance (core change 237, in r23.08).
    prompt_reject : bool
        Expired requests are rejected every 500 ms while no slot is free (core change 333, in r24.03).
    lost_wakeup : bool
        A batcher waiting for an idle instance can miss its return until the 500 ms tick (since r24.03; the older
        waits of r23.12 to r24.02 have no tick and are not modelled).
    counter_drift : bool
        Server issue 8870, core change 509: not fixed in any release listed here.
    ordering_regression : bool
        preserve_ordering orders by completion (core change 449, in r25.09; core change 520 repairs it).
    """

    prefetch_off_with_policy: bool
    prompt_reject: bool
    lost_wakeup: bool
    counter_drift: bool
    ordering_regression: bool


def _month(text: str) -> int | None:
    if text == SOURCE_2026_06:
        return _LAST
    found = re.fullmatch(r"(\d\d?)\.(\d\d)(?:\.\d+)?", text)
    if found is None:
        return None
    major, minor = int(found[1]), int(found[2])
    if major == 2:
        return _FIRST + minor - _MINOR_AT_FIRST
    return major * 12 + minor if 1 <= minor <= 12 else None


def triton_release(version: str) -> TritonRelease:
    """Looks a server version up.

    Parameters
    ----------
    version : str
        ``2.51`` or ``2.51.0`` (server), ``24.10`` (container) or ``source-2026-06``.

    Returns
    -------
    TritonRelease

    Raises
    ------
    ScenarioError
        Not a version, or one whose batching has not been read.
    """
    month = _month(version)
    if month is None:
        hint = nearest(version, [SOURCE_2026_06, LATEST, OLDEST])
        raise ScenarioError(f"server_version: {version!r} is neither 2.NN, YY.MM nor a source name{hint}")
    if not _FIRST <= month <= _LAST:
        raise ScenarioError(f"server_version: known are {OLDEST} (23.01) to {LATEST} (26.06), got {version!r}")
    return TritonRelease(
        prefetch_off_with_policy=month >= 23 * 12 + 8,
        prompt_reject=month >= 24 * 12 + 3,
        lost_wakeup=month >= 24 * 12 + 3,
        counter_drift=month >= 23 * 12 + 8,
        ordering_regression=month >= 25 * 12 + 9,
    )
