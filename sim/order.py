"""The one written order of simultaneous events (law 3); every engine imports it and adds nothing.

Events happen in the order of (time, rank, id). The rank says what kind of event it is: completions come before
arrivals, arrivals before timers. The id is the slice, consumer, unit, request or server concerned. What an event
causes without delay happens inside it, before the next event.
"""

from __future__ import annotations

RANK_EXECUTION_END = 0
"""A batch leaves its slice; id: batch."""
RANK_CONSUMER_READY = 1
"""A slice (or a backend thread of it) can take its next batch; id: consumer."""
RANK_SCENARIO = 2
"""A slice fails or returns; id: position in the scenario's event list."""
RANK_UNIT_RELEASE = 3
"""A preprocessing unit is free again; id: unit, counted over all stations."""
RANK_STATION_LEAVE = 4
"""A request leaves a preprocessing station or reaches the batcher; id: request."""
RANK_ARRIVAL = 5
"""A request arrives; id: request."""
RANK_TIMER = 6
"""A batcher is due; id: server."""

ID_BITS = 48


def order_key(rank: int, identity: int) -> int:
    """One integer that sorts like (rank, id); ids stay below 2**48."""
    return (rank << ID_BITS) | identity
