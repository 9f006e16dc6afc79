"""A batching policy from a user's own file: reading it, checking it, and the door through which a driver uses it.

The file is plain Python over ``BatcherState``, in the subset Numba compiles, so that every engine runs it as it stands
(docs/plugins.md). It defines

* ``SETTINGS``: names of its integer settings, found at ``state.setting[S_PLUGIN_FIRST + place]``;
* ``enqueue(state, now_ns, request) -> int``, ``take_batch(state, now_ns) -> int``, ``due_ns(state) -> int``;
* if it likes ``advance(state, now_ns)``, ``consumer_idle(state, now_ns, consumer)`` and
  ``consumer_lost(state, now_ns, consumer)``, which are told after the common bookkeeping has been done.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from preba.batching import brain
from preba.batching.state import (
    NONE,
    O_CONSUMER,
    O_COUNT,
    O_UNITS,
    S_BATCH_MAX,
    S_PLUGIN_FIRST,
    SETTING_COUNT,
    BatcherState,
)
from preba.errors import FormatError, MissingFileError, ScenarioError, nearest

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "enqueue": ("state", "now_ns", "request"),
    "take_batch": ("state", "now_ns"),
    "due_ns": ("state",),
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "advance": ("state", "now_ns"),
    "consumer_idle": ("state", "now_ns", "consumer"),
    "consumer_lost": ("state", "now_ns", "consumer"),
}
HOOKS: Mapping[str, tuple[str, ...]] = {**REQUIRED, **OPTIONAL}
MOST_SETTINGS = SETTING_COUNT - S_PLUGIN_FIRST
_NS = {"_ns": 1.0, "_us": 1e3, "_ms": 1e6, "_s": 1e9}


@dataclass(frozen=True)
class Plugin:
    """A policy read from a file.

    Attributes
    ----------
    path : Path
    source : str
        The file's text: two plug-ins of equal text are the same policy.
    settings : tuple of str
        Names of its settings, in order.
    functions : mapping of str to callable
        Its hooks by name; optional ones may be missing.
    module : ModuleType
        The executed file.
    """

    path: Path
    source: str
    settings: tuple[str, ...]
    functions: Mapping[str, Callable[..., Any]] = field(compare=False)
    module: ModuleType = field(compare=False)

    def setting_values(self, given: Mapping[str, float], where: str) -> tuple[int, ...]:
        """The integers for ``SETTINGS``; a setting ``x_ns`` may be given as ``x_us``, ``x_ms`` or ``x_s``.

        Raises
        ------
        ScenarioError
            A setting is unknown, missing, given twice or no integer.
        """
        values: dict[str, int] = {}
        for name, value in given.items():
            target, number = self._named(name, value)
            if target is None:
                raise ScenarioError(
                    f"{where}.settings: {self.path.name} has no setting {name!r}{nearest(name, self.settings)}"
                )
            if target in values:
                raise ScenarioError(f"{where}.settings: {target!r} is given twice")
            if number != int(number):
                raise ScenarioError(f"{where}.settings.{name}: must be an integer, got {value}")
            values[target] = int(number)
        missing = [name for name in self.settings if name not in values]
        if missing:
            raise ScenarioError(f"{where}.settings: {self.path.name} needs {', '.join(missing)}")
        return tuple(values[name] for name in self.settings)

    def _named(self, name: str, value: float) -> tuple[str | None, float]:
        if name in self.settings:
            return name, value
        for ending, factor in _NS.items():
            if name.endswith(ending) and name.removesuffix(ending) + "_ns" in self.settings:
                return name.removesuffix(ending) + "_ns", round(value * factor)
        return None, value


def load_plugin(path: Path) -> Plugin:
    """Executes a policy's file and checks what it defines.

    Raises
    ------
    MissingFileError
        There is no such file.
    FormatError
        It is no Python, fails when executed, lacks a function or has one of another signature.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(f"plug-in {str(path)!r}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from error
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 - the user asked for this file by name
    except SyntaxError as error:
        raise FormatError(f"{path}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        raise FormatError(f"{path}: fails when executed: {type(error).__name__}: {error}") from error
    settings = getattr(module, "SETTINGS", ())
    if not isinstance(settings, tuple | list) or not all(isinstance(name, str) for name in settings):
        raise FormatError(f"{path}: SETTINGS must be a tuple of names")
    if len(settings) > MOST_SETTINGS:
        raise FormatError(f"{path}: SETTINGS: at most {MOST_SETTINGS} names, got {len(settings)}")
    return Plugin(path, source, tuple(settings), _functions(path, module), module)


def _functions(path: Path, module: ModuleType) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    own = [name for name, value in vars(module).items() if inspect.isfunction(value)]
    for name, parameters in HOOKS.items():
        function = vars(module).get(name)
        if function is None and name in OPTIONAL:
            continue
        if not inspect.isfunction(function):
            raise FormatError(f"{path}: defines no function {name}{nearest(name, own)}")
        given = tuple(inspect.signature(function).parameters)
        if given != parameters:
            raise FormatError(
                f"{path}:{function.__code__.co_firstlineno}: {name} must take ({', '.join(parameters)}), "
                f"it takes ({', '.join(given)})"
            )
        found[name] = function
    return found


class PluginBrain:
    """A plug-in behind the same functions as ``preba.batching.brain``; checks every batch it hands out.

    Parameters
    ----------
    plugin : Plugin
    """

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.hooks = plugin.functions

    def enqueue(self, state: BatcherState, now_ns: int, request: int) -> int:
        """Offers a request; see ``brain.enqueue``."""
        return int(self.hooks["enqueue"](state, now_ns, request))

    def consumer_up(self, state: BatcherState, now_ns: int, consumer: int) -> None:
        """A consumer enters service, idle."""
        if state.consumer_up[consumer] == 0:
            brain.consumer_up(state, now_ns, consumer)
            self._tell("consumer_idle", state, now_ns, consumer)

    def consumer_idle(self, state: BatcherState, now_ns: int, consumer: int) -> None:
        """A consumer in service asks for its next batch."""
        if state.consumer_idle[consumer] == 0 and state.consumer_up[consumer] == 1:
            brain.consumer_idle(state, now_ns, consumer)
            self._tell("consumer_idle", state, now_ns, consumer)

    def consumer_lost(self, state: BatcherState, now_ns: int, consumer: int) -> None:
        """A consumer leaves service."""
        if state.consumer_up[consumer] == 1:
            brain.consumer_lost(state, now_ns, consumer)
            self._tell("consumer_lost", state, now_ns, consumer)

    def advance(self, state: BatcherState, now_ns: int) -> None:
        """Lets time pass."""
        if "advance" in self.hooks:
            self.hooks["advance"](state, now_ns)

    def take_batch(self, state: BatcherState, now_ns: int) -> int:
        """Hands out the next batch that may start now, or ``NONE``.

        Raises
        ------
        FormatError
            The policy returned a consumer that was not idle, or a batch that cannot be.
        """
        idle = [consumer for consumer in range(len(state.consumer_idle)) if state.consumer_idle[consumer] == 1]
        consumer = int(self.hooks["take_batch"](state, now_ns))
        if consumer == NONE:
            return NONE
        count, units = state.out[O_COUNT], state.out[O_UNITS]
        wrong = None
        if consumer not in idle or state.out[O_CONSUMER] != consumer:
            wrong = f"handed a batch to consumer {consumer}, which is not idle"
        elif state.consumer_idle[consumer] == 1:
            wrong = f"left consumer {consumer} idle though it has a batch (hand_out marks it busy)"
        elif not 1 <= count <= len(state.out_request) or not 1 <= units <= state.setting[S_BATCH_MAX]:
            wrong = f"handed out {count} requests of {units} units; a batch has 1 to {state.setting[S_BATCH_MAX]} units"
        if wrong is not None:
            raise FormatError(f"{self.plugin.path}: take_batch {wrong}")
        return consumer

    def take_refused(self, state: BatcherState) -> int:
        """Hands back the next request refused after it had been taken in, or ``NONE``."""
        return brain.take_refused(state)

    def due_ns(self, state: BatcherState) -> int:
        """When ``advance`` must be called next."""
        return int(self.hooks["due_ns"](state))

    def take_waiting(self, state: BatcherState) -> int:
        """Gives back one request that no consumer has started on, or ``NONE``."""
        return brain.take_waiting(state)

    def _tell(self, hook: str, state: BatcherState, now_ns: int, consumer: int) -> None:
        if hook in self.hooks:
            self.hooks[hook](state, now_ns, consumer)
