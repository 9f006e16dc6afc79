"""The recursion behind the structural fast path: one FIFO station, then one batcher. Numba subset, no event list.

In a FIFO pool a heap of release times pops completions in order of time, so the batcher's input comes out sorted. The
batcher is then one decision per batch: it leaves at the first *occasion* (an arrival, a consumer that gets ready, the
alarm) at which a consumer is idle and the batch is full or due. Occasions of one moment come in the order of
``sim.order``: consumers first, by number, then arrivals, then the alarm.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

from sim.compiled.memory import choose, lowest_bit
from sim.service import execution_ns, slice_preprocess_ns

Array: TypeAlias = NDArray[Any]

# Indices into the integer settings of ``form_batches``.
B_FULL = 0  # waiting requests at which a batch is full
B_TAKE = 1  # requests it takes at most
B_UNITS = 2  # batch units of each request
B_DELAY_NS = 3
B_BY_AGE = 4  # 1: of the idle consumers the one that is idle longest, 0: the one of lowest rank
B_TURNAROUND_NS = 5
B_RESPONSE_NS = 6
B_SLOWDOWN_PPM = 7
B_SHARED = 8
B_LENGTHS = 9  # 1: execution times depend on the requests' lengths
B_TURNAROUND_REQUEST_NS = 10
B_RESPONSE_REQUEST_NS = 11
B_RESPONSE_NEXT_NS = 12
B_COUNT = 13

DONE = 0
ZERO_SERVICE = 1
"""A batch took no time at all, for which the recursion is not made."""
NOT_PLAYED = 1
"""What ``pass_quickly`` answers where only ``pass_station`` can tell."""
QUICK_UNITS = 64
"""As many units as fit the bits of a word."""
SWAPS = 1024
"""Groups of simultaneous leavers ``pass_quickly`` remembers."""
_NEVER = 1 << 62


def pass_station(
    scheduled_ns: Array,
    occupancy_ns: Array,
    launch_ns: int,
    units: int,
    shift: int,
    memory: Array,
    start_ns: Array,
    end_ns: Array,
    wait_ns: Array,
    unit_index: Array,
    left_ns: Array,
    left: Array,
) -> None:
    """Plays a FIFO pool; writes when each request starts and ends, and who left when, in order (time, request).

    ``memory`` has three rows of ``units`` + 1: a heap of (release time << shift) | unit, the request on each unit, and
    the free units, 32 to a word.
    """
    heap, owner, free = memory[0], memory[1], memory[2]
    low = (1 << shift) - 1
    size = 0
    free_count = units
    for unit in range(units):
        free[unit >> 5] |= 1 << (unit & 31)
    out = 0
    for request in range(len(scheduled_ns)):
        arrived_ns = scheduled_ns[request]
        while size > 0 and (heap[0] >> shift) <= arrived_ns:
            key = heap[0]
            unit = key & low
            out = leave(left_ns, left, out, key >> shift, owner[unit])
            free[unit >> 5] |= 1 << (unit & 31)
            free_count += 1
            size -= 1
            sink(heap, size, heap[size])
        began_ns = arrived_ns
        if free_count > 0:
            free_count -= 1
            word = 0
            while free[word] == 0:
                word += 1
            bits = free[word]
            bit = lowest_bit(bits)
            free[word] = bits & (bits - 1)
            unit = word * 32 + bit
            finished_ns = began_ns + launch_ns + occupancy_ns[request]
            rise(heap, size, (finished_ns << shift) | unit)
            size += 1
        else:
            unit = heap[0] & low
            began_ns = heap[0] >> shift
            out = leave(left_ns, left, out, began_ns, owner[unit])
            finished_ns = began_ns + launch_ns + occupancy_ns[request]
            sink(heap, size, (finished_ns << shift) | unit)
        owner[unit] = request
        start_ns[request] = began_ns
        end_ns[request] = finished_ns
        wait_ns[request] = began_ns - arrived_ns
        unit_index[request] = unit
    while size > 0:
        key = heap[0]
        out = leave(left_ns, left, out, key >> shift, owner[key & low])
        size -= 1
        sink(heap, size, heap[size])


def pass_quickly(
    scheduled_ns: Array,
    occupancy_ns: Array,
    launch_ns: int,
    units: int,
    shift: int,
    tree: Array,
    swapped: Array,
    start_ns: Array,
    end_ns: Array,
    wait_ns: Array,
    unit_index: Array,
    left_ns: Array,
    left: Array,
) -> int:
    """``pass_station`` for up to ``QUICK_UNITS`` units and no work of zero length, without branches that guess wrong.

    In a FIFO pool request ``r`` starts when it comes or when the (r - units)-th leaves, whichever is later: times need
    no unit. Units follow in a second pass over both orders. ``tree`` has two rows: a tournament of (end << shift) |
    place with its leaves from 1 << shift on, and the request at each place. The last elements of ``left_ns`` and
    ``left``, which starts with zeros, are beyond the requests.
    """
    count = len(scheduled_ns)
    game, owner = tree[0], tree[1]
    leaves = 1 << shift
    for place in range(2 * leaves):
        game[place] = _NEVER
    for request in range(min(units, count)):
        end_ns[request] = scheduled_ns[request] + launch_ns + occupancy_ns[request]
        if end_ns[request] == scheduled_ns[request]:
            return NOT_PLAYED
        start_ns[request] = scheduled_ns[request]
        wait_ns[request] = 0
        owner[request] = request
        game[leaves + request] = (end_ns[request] << shift) | request
    for place in range(leaves - 1, 0, -1):
        game[place] = min(game[2 * place], game[2 * place + 1])
    first = game[1]
    out = 0
    # The second pass: who starts next, how many have left, free units, where several get free at once.
    turn = (0, 0, -1 if units == QUICK_UNITS else (1 << units) - 1, -1)
    settled = -1
    swaps = 0
    for request in range(units, count):
        place = first & (leaves - 1)
        free_ns = first >> shift
        out = leave(left_ns, left, out, free_ns, owner[place])
        arrived_ns = scheduled_ns[request]
        began_ns = max(arrived_ns, free_ns)
        finished_ns = began_ns + launch_ns + occupancy_ns[request]
        if finished_ns == began_ns:
            return NOT_PLAYED
        owner[place] = request
        start_ns[request] = began_ns
        end_ns[request] = finished_ns
        wait_ns[request] = began_ns - arrived_ns
        first = play(game, leaves + place, (finished_ns << shift) | place)
        turn = step(scheduled_ns, free_ns, settled, turn, unit_index, left_ns, left)
        turn = step(scheduled_ns, free_ns, settled, turn, unit_index, left_ns, left)
        if turn[3] >= 0 and turn[3] != settled:
            settled = turn[3]
            swaps = settle(settled, swaps, swapped, unit_index, left_ns, left)
    while out < count:
        place = first & (leaves - 1)
        out = leave(left_ns, left, out, first >> shift, owner[place])
        first = play(game, leaves + place, _NEVER)
    left_ns[count] = _NEVER
    left[count] = 0
    while turn[0] < count:
        turn = step(scheduled_ns, _NEVER + 1, settled, turn, unit_index, left_ns, left)
        if turn[3] >= 0 and turn[3] != settled:
            settled = turn[3]
            swaps = settle(settled, swaps, swapped, unit_index, left_ns, left)
    if swaps > len(swapped):
        return NOT_PLAYED
    for swap in range(swaps):
        sort_leavers(left_ns, left, swapped[swap], unit_index, 0)
    return DONE


def step(
    scheduled_ns: Array,
    known_ns: int,
    settled: int,
    turn: tuple[int, int, int, int],
    unit_index: Array,
    left_ns: Array,
    left: Array,
) -> tuple[int, int, int, int]:
    """Somebody leaves or gets a unit, if that is before ``known_ns``.

    A request gets the free unit of lowest number, or that of the one whose leaving it waited for. Where several leave
    at that moment nothing happens before they are ``settled``; the last element says so.
    """
    request, gone, free, _ = turn
    arrived_ns, leaves_ns = scheduled_ns[request], left_ns[gone]
    known = max(arrived_ns, leaves_ns) < known_ns
    starts = leaves_ns > arrived_ns
    takes_over = starts & (free == 0)
    together = known & takes_over & (leaves_ns == left_ns[gone + 1]) & (gone != settled)
    goes_on = known & (not together)
    unit = choose(starts & (free != 0), lowest_bit(free), unit_index[left[gone]])
    unit_index[request] = unit
    free ^= choose(goes_on & (not takes_over), 1 << unit, 0)
    return (
        request + (goes_on & starts),
        gone + (goes_on & ((not starts) | takes_over)),
        free,
        choose(together, gone, -1),
    )


def settle(gone: int, swaps: int, swapped: Array, unit_index: Array, left_ns: Array, left: Array) -> int:
    """Sorts those who leave together by unit and notes where they are; returns how many such groups there are."""
    sort_leavers(left_ns, left, gone, unit_index, 1)
    if 0 < swaps <= len(swapped) and left_ns[swapped[swaps - 1]] == left_ns[gone]:
        return swaps
    if swaps < len(swapped):
        swapped[swaps] = gone
    return swaps + 1


def play(game: Array, place: int, key: int) -> int:
    """Puts a key on a leaf of a tournament; returns the least key of all."""
    game[place] = key
    while place > 1:
        key = min(key, game[place ^ 1])
        place >>= 1
        game[place] = key
    return key


def sort_leavers(left_ns: Array, left: Array, first: int, unit_index: Array, by_unit: int) -> None:
    """Sorts those who leave at one moment by unit, or by number."""
    end = first + 1
    while left_ns[end] == left_ns[first]:
        mine = left[end]
        key = unit_index[mine] if by_unit == 1 else mine
        place = end
        while place > first:
            other = left[place - 1]
            if (unit_index[other] if by_unit == 1 else other) < key:
                break
            left[place] = other
            place -= 1
        left[place] = mine
        end += 1


def leave(left_ns: Array, left: Array, out: int, at_ns: int, request: int) -> int:
    """Notes that a request left; among those of one moment by number."""
    place = out
    while place > 0 and left_ns[place - 1] == at_ns and left[place - 1] > request:
        left_ns[place] = at_ns
        left[place] = left[place - 1]
        place -= 1
    left_ns[place] = at_ns
    left[place] = request
    return out + 1


def rise(heap: Array, place: int, key: int) -> None:
    """Adds a key to a heap of ``place`` keys."""
    while place > 0:
        parent = (place - 1) >> 1
        if heap[parent] <= key:
            break
        heap[place] = heap[parent]
        place = parent
    heap[place] = key


def sink(heap: Array, size: int, key: int) -> None:
    """Replaces the first of ``size`` keys; does nothing to an empty heap."""
    place = 0
    child = 1
    heap[size] = _NEVER
    while child < size:
        child += heap[child + 1] < heap[child]
        if key <= heap[child]:
            break
        heap[place] = heap[child]
        place = child
        child = 2 * place + 1
    heap[place] = key


def best_idle(ready_ns: Array, rank: Array, now_ns: int, turn: int, by_age: int) -> int:
    """The idle consumer to serve; of those that get ready at this very moment only those up to ``turn`` are."""
    best = -1
    best_key = 0
    for consumer in range(len(ready_ns)):
        if ready_ns[consumer] < now_ns or (ready_ns[consumer] == now_ns and consumer <= turn):
            key = rank[consumer]
            if by_age == 1:
                key = ready_ns[consumer]
            if best < 0 or key < best_key:
                best = consumer
                best_key = key
    return best


def first_ready(ready_ns: Array) -> int:
    """The consumer that gets ready first."""
    first = 0
    for consumer in range(1, len(ready_ns)):
        if ready_ns[consumer] < ready_ns[first]:
            first = consumer
    return first


def ready_exactly(ready_ns: Array, at_ns: int) -> int:
    """The first consumer that gets ready at a moment, or -1."""
    for consumer in range(len(ready_ns)):
        if ready_ns[consumer] == at_ns:
            return consumer
    return -1


def form_batches(
    came_ns: Array,
    came: Array,
    setting: Array,
    consumers: Array,
    slices: Array,
    reals: Array,
    gpu_slice: Array,
    table: Array,
    kind_row: Array,
    factor: Array,
    length: Array,
    item_ns: Array,
    starts_ns: Array,
    ends_ns: Array,
    done_ns: Array,
    preprocess_ns: Array,
    slice_index: Array,
    batch_id: Array,
    batch_size: Array,
) -> int:
    """Forms and executes all batches of the requests that come to one batcher, in order.

    ``consumers`` has rows rank, slice, ready time; ``slices`` rows GPU, first and count in ``gpu_slice``, stream free
    time, launch time; ``reals`` rows slice factor and (first element) the slowdown beside preprocessing.
    """
    count = len(came_ns)
    rank, its_slice, ready_ns = consumers[0], consumers[1], consumers[2]
    everybody = len(ready_ns)
    full, take, delay_ns = setting[B_FULL], setting[B_TAKE], setting[B_DELAY_NS]
    head = 0
    batch = 0
    seen = 0
    now_ns = 0
    turn = everybody
    while head < count:
        if head == seen:
            now_ns = came_ns[head]
            seen += 1
            turn = everybody
        consumer = best_idle(ready_ns, rank, now_ns, turn, setting[B_BY_AGE])
        if consumer < 0:
            # Nobody is idle: the next occasion that matters is the first consumer to get ready.
            turn = first_ready(ready_ns)
            now_ns = ready_ns[turn]
            while seen < count and came_ns[seen] < now_ns:
                seen += 1
            continue
        due_ns = came_ns[head] + delay_ns
        if seen - head < full and now_ns < due_ns:
            while seen < count and seen - head < full and came_ns[seen] < due_ns:
                seen += 1
            if seen - head >= full:
                now_ns = came_ns[seen - 1]
                turn = everybody
            else:
                now_ns = due_ns
                turn = ready_exactly(ready_ns, due_ns)
                if turn < 0:
                    turn = everybody
                    if seen < count and came_ns[seen] == due_ns:
                        seen += 1
            consumer = best_idle(ready_ns, rank, now_ns, turn, setting[B_BY_AGE])
        taken = min(seen - head, take)
        slice_ = its_slice[consumer]
        first = came[head]
        batch_factor = factor[first]
        shared_ns = 0
        if setting[B_SHARED] == 1:
            items_ns = 0
            for place in range(head, head + taken):
                items_ns += item_ns[came[place]]
            shared_ns = slice_preprocess_ns(slices[4, slice_], items_ns, reals[0, slice_])
            batch_factor *= reals[1, 0]
        longest = 0
        if setting[B_LENGTHS] == 1:
            for place in range(head, head + taken):
                longest = max(longest, length[came[place]])
        gpu = slices[0, slice_]
        busy = 0
        if setting[B_SLOWDOWN_PPM] > 0:
            for place in range(slices[1, gpu], slices[1, gpu] + slices[2, gpu]):
                other = gpu_slice[place]
                if other != slice_ and slices[3, other] > now_ns:
                    busy += 1
        table_ns = table[kind_row[slice_], longest, taken * setting[B_UNITS]]
        end_ns = now_ns + shared_ns
        end_ns += execution_ns(table_ns, batch_factor, setting[B_SLOWDOWN_PPM], busy, slices[2, gpu] - 1)
        if end_ns == now_ns:
            return ZERO_SERVICE
        slices[3, slice_] = end_ns
        ready_ns[consumer] = end_ns + setting[B_TURNAROUND_NS] + taken * setting[B_TURNAROUND_REQUEST_NS]
        for place in range(head, head + taken):
            request = came[place]
            starts_ns[request] = now_ns
            ends_ns[request] = end_ns
            slice_index[request] = slice_
            batch_id[request] = batch
            batch_size[request] = taken
        response_ns = setting[B_RESPONSE_NS] + taken * setting[B_RESPONSE_REQUEST_NS]
        if response_ns + setting[B_RESPONSE_NEXT_NS] > 0:
            for place in range(head, head + taken):
                done_ns[came[place]] = end_ns + response_ns + (place - head) * setting[B_RESPONSE_NEXT_NS]
        if setting[B_SHARED] == 1:
            for place in range(head, head + taken):
                preprocess_ns[came[place]] = shared_ns
        head += taken
        batch += 1
    return DONE
