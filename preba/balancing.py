"""Balancers: which of several equal servers a request goes to. Numba subset, no randomness of its own.

Randomness comes in as the request's own two uniform draws, so that any engine sends the same request to the same
place. A server that is out of service is never chosen.
"""

from __future__ import annotations

from preba.batching.state import NONE, Ints

ROUND_ROBIN = 0
RANDOM = 1
LEAST_OUTSTANDING = 2
POWER_OF_TWO = 3

M_LAST = 0
M_ALIVE = 1

BALANCER_CODES = {
    "round_robin": ROUND_ROBIN,
    "random": RANDOM,
    "least_outstanding": LEAST_OUTSTANDING,
    "power_of_two": POWER_OF_TWO,
}


def nth_up(up: Ints, count: int) -> int:
    """The ``count``-th (from 0) server in service, or ``NONE``."""
    for server in range(len(up)):
        if up[server] == 1:
            if count == 0:
                return server
            count -= 1
    return NONE


def nth_alive(up: Ints, alive: int, count: int) -> int:
    """``nth_up`` where ``alive`` servers are known to be in service: without a search while all are."""
    if alive == len(up):
        return count
    return nth_up(up, count)


def next_up(up: Ints, after: int) -> int:
    """The first server in service after ``after``, cyclically, or ``NONE``."""
    size = len(up)
    for step in range(1, size + 1):
        server = (after + step) % size
        if up[server] == 1:
            return server
    return NONE


def choose_server(kind: int, up: Ints, outstanding: Ints, memory: Ints, first_draw: float, second_draw: float) -> int:
    """Chooses a server for one request and remembers it.

    Parameters
    ----------
    kind : int
        ``ROUND_ROBIN``: the next in order. ``RANDOM``: uniform. ``LEAST_OUTSTANDING``: the fewest requests inside,
        ties going to the next in order after the last choice. ``POWER_OF_TWO``: of two different servers drawn at
        random the one with fewer requests inside, a tie going to the first drawn (Mitzenmacher 2001).
    up : sequence of int
        1 for each server in service.
    outstanding : sequence of int
        Requests inside each server.
    memory : sequence of int
        ``M_LAST``: the last choice, at first -1; written. ``M_ALIVE``: how many servers are in service; the driver's
        to keep, so that a choice among thousands need not count them.
    first_draw, second_draw : float
        The request's own uniforms in [0, 1).

    Returns
    -------
    int
        Index of the server, or ``NONE`` when all are out of service.
    """
    alive = memory[M_ALIVE]
    if alive == 0:
        return NONE
    if kind == RANDOM:
        chosen = nth_alive(up, alive, int(first_draw * alive))
    elif kind == POWER_OF_TWO:
        first = int(first_draw * alive)
        chosen = nth_alive(up, alive, first)
        if alive > 1:
            second = int(second_draw * (alive - 1))
            if second >= first:
                second += 1
            other = nth_alive(up, alive, second)
            if outstanding[other] < outstanding[chosen]:
                chosen = other
    else:
        chosen = next_up(up, memory[M_LAST])
        if kind == LEAST_OUTSTANDING:
            size = len(up)
            server = chosen
            for _ in range(1, size):
                server += 1
                if server == size:
                    server = 0
                if up[server] == 1 and outstanding[server] < outstanding[chosen]:
                    chosen = server
    memory[M_LAST] = chosen
    return chosen
