"""A trace in consecutive pieces: the same requests as ``preba.trace`` draws at once, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from preba.arrivals import ArrivalStream, RateChange
from preba.errors import TraceError
from preba.trace import StreamSpec, draw_columns, model_streams
from preba.trace_table import Trace, merge

__all__ = ["draw_chunks"]


class _ModelSource:
    """One model's requests that have been drawn but not handed on."""

    def __init__(
        self, spec: StreamSpec, *, seed: int, model: tuple[int, int], rate_changes: Sequence[RateChange]
    ) -> None:
        self.spec = spec
        self.seed = seed
        self.model = model
        self.rngs = model_streams(seed, model[0])
        self.arrivals = ArrivalStream(
            spec.arrivals,
            rng=self.rngs["arrivals"],
            state_rng=self.rngs["arrival_states"],
            rate_changes=rate_changes,
        )
        self.ended = False
        self.drawn = self._draw(0)

    def _draw(self, count: int) -> Trace:
        scheduled = self.arrivals.draw(count) if count else np.empty(0, dtype=np.int64)
        return draw_columns(self.spec, scheduled, rngs=self.rngs, seed=self.seed, model=self.model)

    def extend(self, count: int) -> None:
        """Draws ``count`` more requests."""
        more = self._draw(count)
        self.ended = len(more) < count
        self.drawn = joined([self.drawn, more])

    @property
    def last_ns(self) -> int:
        """Up to when everything has been drawn (exclusive); -1 before the first request."""
        return int(self.drawn.scheduled_ns[-1]) if len(self.drawn) else -1

    def take(self, before_ns: int | None) -> Trace:
        """Hands on what comes before a moment, or everything."""
        count = len(self.drawn)
        if before_ns is not None:
            count = int(np.searchsorted(self.drawn.scheduled_ns, before_ns, side="left"))
        taken = self.drawn.rows(0, count)
        self.drawn = self.drawn.rows(count, len(self.drawn))
        return taken


def joined(traces: Sequence[Trace]) -> Trace:
    """Traces of one model, one after the other."""
    some = [trace for trace in traces if len(trace)]
    return merge(some) if some else traces[0]


def draw_chunks(
    specs: Sequence[StreamSpec],
    *,
    seed: int,
    requests: int | None,
    duration_ns: int | None,
    rate_changes: Sequence[RateChange] = (),
    chunk: int = 1 << 16,
) -> Iterator[Trace]:
    """Draws a trace piece by piece.

    Parameters
    ----------
    specs : sequence of StreamSpec
        One per model; open loops only.
    seed : int
    requests, duration_ns : int or None
        Exactly one: after how many requests, or before which moment, to stop.
    rate_changes : sequence of RateChange
    chunk : int
        About how many requests a piece has; never more.

    Yields
    ------
    Trace
        Put together, the pieces are what ``preba.trace.draw_trace`` draws, to the last bit.

    Raises
    ------
    UnsupportedError
        A model is a closed loop or replays a recording.
    TraceError
        The rate goes to 0 for good before so many requests have come.
    """
    sources = [
        _ModelSource(
            spec,
            seed=seed,
            model=(index, len(specs)),
            rate_changes=[change for change in rate_changes if change.model_index in (None, index)],
        )
        for index, spec in enumerate(specs)
    ]
    left = requests
    while left is None or left > 0:
        piece = _next_piece(sources, chunk)
        if piece is None:
            if left is not None:
                raise TraceError(f"arrivals: {requests} requests asked, only {(requests or 0) - left} come")
            return
        if left is not None:
            piece = piece.rows(0, left)
            left -= len(piece)
        if duration_ns is not None:
            inside = int(np.searchsorted(piece.scheduled_ns, duration_ns, side="left"))
            if inside < len(piece):
                if inside:
                    yield piece.rows(0, inside)
                return
        for start in range(0, len(piece), chunk):
            yield piece.rows(start, start + chunk)


def _next_piece(sources: Sequence[_ModelSource], chunk: int) -> Trace | None:
    """The next requests of all models in order of time; None when there are no more."""
    while True:
        open_sources = [source for source in sources if not source.ended]
        if not open_sources:
            rest = [source.take(None) for source in sources if len(source.drawn)]
            return merge(rest) if rest else None
        # The model that has been drawn least far decides up to when everything is known.
        behind = min(open_sources, key=lambda source: source.last_ns)
        behind.extend(max(chunk // len(sources), 1))
        if len(sources) == 1:
            piece = sources[0].take(None)
            if len(piece):
                return piece
            continue
        open_sources = [source for source in sources if not source.ended]
        before_ns = min(source.last_ns for source in open_sources) if open_sources else None
        if before_ns is not None and before_ns < 0:
            continue
        taken = [piece for source in sources if len(piece := source.take(before_ns))]
        if taken:
            return merge(taken)
