"""Where the compiled engine meets the batchers: blocks by address, and the brain's functions. No policy here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from preba.batching import brain
from preba.batching.state import (
    KIND_PLUGIN,
    NEVER,
    NONE,
    O_COUNT,
    O_UNITS,
    REFUSED_QUEUE_FULL,
    S_BATCH_MAX,
    S_KIND,
    S_PLUGIN_NUMBER,
)
from sim.compiled.layout import BATCHER, WORLD, Batcher
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
def column_mask(typingctx: Any, world: Any) -> Any:  # noqa: ANN401, ARG001
    """The mask that turns a request into its place in a column."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ANN401, ARG001
        shape = load_word(builder, args[0], constant=True)
        place = builder.add(shape, ir.Constant(ir.IntType(64), SHAPE_COLUMN_MASK * WORD))
        return load_word(builder, place, constant=True)

    return signature(types.int64, world), codegen


# -- what a variant of the engine puts in for a user's own policies: never executed as written here -------------------


def plugin_enqueue(number: int, state: Batcher, now_ns: int, request: int) -> int:  # noqa: ARG001
    """``enqueue`` of plug-in ``number``."""
    return REFUSED_QUEUE_FULL


def plugin_take_batch(number: int, state: Batcher, now_ns: int) -> int:  # noqa: ARG001
    """``take_batch`` of plug-in ``number``."""
    return NONE


def plugin_due_ns(number: int, state: Batcher) -> int:  # noqa: ARG001
    """``due_ns`` of plug-in ``number``."""
    return NEVER


def plugin_advance(number: int, state: Batcher, now_ns: int) -> None:
    """``advance`` of plug-in ``number``."""


def plugin_consumer_idle(number: int, state: Batcher, now_ns: int, consumer: int) -> None:
    """``consumer_idle`` of plug-in ``number``."""


def plugin_consumer_lost(number: int, state: Batcher, now_ns: int, consumer: int) -> None:
    """``consumer_lost`` of plug-in ``number``."""


PLUGIN_HOOKS: Mapping[str, Callable[..., Any]] = {
    "enqueue": plugin_enqueue,
    "take_batch": plugin_take_batch,
    "due_ns": plugin_due_ns,
    "advance": plugin_advance,
    "consumer_idle": plugin_consumer_idle,
    "consumer_lost": plugin_consumer_lost,
}


# -- the brain, or a plug-in behind the common bookkeeping (preba.batching.plugin.PluginBrain) -----------------------


def is_plugin(state: Batcher) -> bool:
    """Whether a batcher's policy is a user's own."""
    return bool(state.setting[S_KIND] == KIND_PLUGIN)


def enqueue(state: Batcher, now_ns: int, request: int) -> int:
    """Offers a request to a batcher."""
    if is_plugin(state):
        return plugin_enqueue(state.setting[S_PLUGIN_NUMBER], state, now_ns, request)
    return brain.enqueue(state, now_ns, request)


def consumer_up(state: Batcher, now_ns: int, consumer: int) -> None:
    """A consumer enters service."""
    was_down = state.consumer_up[consumer] == 0
    brain.consumer_up(state, now_ns, consumer)
    if was_down and is_plugin(state):
        plugin_consumer_idle(state.setting[S_PLUGIN_NUMBER], state, now_ns, consumer)


def consumer_idle(state: Batcher, now_ns: int, consumer: int) -> None:
    """A consumer asks for its next batch."""
    if is_plugin(state):
        if state.consumer_idle[consumer] == 0 and state.consumer_up[consumer] == 1:
            brain.consumer_idle(state, now_ns, consumer)
            plugin_consumer_idle(state.setting[S_PLUGIN_NUMBER], state, now_ns, consumer)
    else:
        brain.consumer_idle(state, now_ns, consumer)


def consumer_lost(state: Batcher, now_ns: int, consumer: int) -> None:
    """A consumer leaves service."""
    was_up = state.consumer_up[consumer] == 1
    brain.consumer_lost(state, now_ns, consumer)
    if was_up and is_plugin(state):
        plugin_consumer_lost(state.setting[S_PLUGIN_NUMBER], state, now_ns, consumer)


def advance(state: Batcher, now_ns: int) -> None:
    """Lets time pass."""
    if is_plugin(state):
        plugin_advance(state.setting[S_PLUGIN_NUMBER], state, now_ns)
    else:
        brain.advance(state, now_ns)


def take_batch(state: Batcher, now_ns: int) -> int:
    """Hands out the next batch."""
    if is_plugin(state):
        return plugin_take_batch(state.setting[S_PLUGIN_NUMBER], state, now_ns)
    return brain.take_batch(state, now_ns)


def impossible(state: Batcher, consumer: int) -> bool:
    """Whether a plug-in handed out what cannot be: memory would be overwritten if it were believed."""
    if consumer < 0 or consumer >= len(state.consumer_idle) or state.consumer_idle[consumer] == 1:
        return True
    count, units = state.out[O_COUNT], state.out[O_UNITS]
    return bool(count < 1 or count > len(state.out_request) or units < 1 or units > state.setting[S_BATCH_MAX])


def take_refused(state: Batcher) -> int:
    """Hands back the next request refused later."""
    return brain.take_refused(state)


def take_waiting(state: Batcher) -> int:
    """Gives back one request that nobody has started on."""
    return brain.take_waiting(state)


def due_ns(state: Batcher) -> int:
    """When to advance next."""
    if is_plugin(state):
        return plugin_due_ns(state.setting[S_PLUGIN_NUMBER], state)
    return brain.due_ns(state)
