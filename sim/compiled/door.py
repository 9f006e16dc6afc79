"""Where the compiled engine meets the batchers: blocks by address, and the brain's functions. No policy here."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from preba.batching import brain
from sim.compiled.layout import BATCHER, WORLD, Batcher, World
from sim.compiled.memory import SHAPE_COLUMN_MASK, WORD, load_word


@intrinsic
def world_at(typingctx: Any, address: Any) -> Any:  # noqa: ANN401, ARG001
    """The world at an address."""
    return signature(WORLD, types.int64), lambda context, builder, sig, args: args[0]  # noqa: ARG005


@intrinsic
def batcher_at(typingctx: Any, address: Any) -> Any:  # noqa: ANN401, ARG001
    """The batcher at an address."""
    return signature(BATCHER, types.int64), lambda context, builder, sig, args: args[0]  # noqa: ARG005


@intrinsic
def column_mask(typingctx: Any, world: World) -> Any:  # noqa: ANN401, ARG001
    """The mask that turns a request into its place in a column."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401, ARG001
        shape = load_word(builder, args[0], constant=True)
        place = builder.add(shape, ir.Constant(ir.IntType(64), SHAPE_COLUMN_MASK * WORD))
        return load_word(builder, place, constant=True)

    return signature(types.int64, world), codegen


def enqueue(state: Batcher, now_ns: int, request: int) -> int:
    """Offers a request to a batcher."""
    return brain.enqueue(state, now_ns, request)


def consumer_up(state: Batcher, now_ns: int, consumer: int) -> None:
    """A consumer enters service."""
    brain.consumer_up(state, now_ns, consumer)


def consumer_idle(state: Batcher, now_ns: int, consumer: int) -> None:
    """A consumer asks for its next batch."""
    brain.consumer_idle(state, now_ns, consumer)


def consumer_lost(state: Batcher, now_ns: int, consumer: int) -> None:
    """A consumer leaves service."""
    brain.consumer_lost(state, now_ns, consumer)


def advance(state: Batcher, now_ns: int) -> None:
    """Lets time pass."""
    brain.advance(state, now_ns)


def take_batch(state: Batcher, now_ns: int) -> int:
    """Hands out the next batch."""
    return brain.take_batch(state, now_ns)


def take_refused(state: Batcher) -> int:
    """Hands back the next request refused later."""
    return brain.take_refused(state)


def take_waiting(state: Batcher) -> int:
    """Gives back one request that nobody has started on."""
    return brain.take_waiting(state)


def due_ns(state: Batcher) -> int:
    """When to advance next."""
    return brain.due_ns(state)


def finished(world: World, request: int) -> None:
    """A request's record is complete: a streamed run counts it."""
