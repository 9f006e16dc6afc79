"""The batcher in a live server, and the log of everything that entered its decisions.

``LiveBatcher`` is a host of ``preba.batching`` (law 1) and nothing more: it adds no rule. Every input goes to the log
before the batcher sees it and every decision after, so ``replay`` can put the same inputs into a fresh batcher and
compare.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from preba.batchers import BatcherPlan
from preba.batching.plugin import load_plugin
from preba.batching.state import NEVER, NONE, O_COUNT, O_FORMED_NS, O_UNITS, SERVED, BatcherState
from preba.errors import FormatError, MissingFileError, OutputError
from preba.serving import ServerModel


@dataclass(frozen=True)
class Dispatch:
    """A batch the batcher hands to a consumer."""

    consumer: int
    slots: tuple[int, ...]
    units: int
    formed_ns: int


class DecisionLog:
    """A file of JSON lines: what each batcher of a server is, what it was told and what it decided.

    Parameters
    ----------
    path : Path

    Raises
    ------
    OutputError
        It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] | None = path.open("w", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error

    def write(self, entry: Sequence[Any]) -> None:
        """Adds a line; a full disk ends the log, not the server."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        except OSError:
            self._file = None

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class LiveBatcher:
    """One batcher, driven by a live server.

    Parameters
    ----------
    number : int
        Of this batcher in its server.
    server : ServerModel
    capacity : int
        Request slots.
    log : DecisionLog, optional
    """

    def __init__(self, number: int, server: ServerModel, capacity: int, log: DecisionLog | None = None) -> None:
        self.number = number
        self.state: BatcherState = server.new_state(capacity)
        self.brain = server.plan.brain
        self._log = log
        if log is not None:
            log.write(["server", number, capacity, _as_plain(server)])

    def _note(self, name: str, *values: int) -> None:
        if self._log is not None:
            self._log.write([name, self.number, *values])

    def enqueue(
        self,
        now_ns: int,
        slot: int,
        *,
        units: int = 1,
        bucket: int = 0,
        priority: int = 0,
        shape: int = 0,
        timeout_ns: int = 0,
    ) -> int:
        """Offers a request; returns an outcome of ``preba.batching.state``."""
        self._note("enqueue", now_ns, slot, units, bucket, priority, shape, timeout_ns)
        state = self.state
        state.request_units[slot] = units
        state.request_bucket[slot] = bucket
        state.request_priority[slot] = priority
        state.request_shape[slot] = shape
        state.request_timeout_ns[slot] = timeout_ns
        outcome = int(self.brain.enqueue(state, now_ns, slot))
        if outcome != SERVED:
            self._note("turned_away", slot, outcome)
        return outcome

    def up(self, now_ns: int, consumer: int) -> None:
        """A consumer enters service."""
        self._note("up", now_ns, consumer)
        self.brain.consumer_up(self.state, now_ns, consumer)

    def idle(self, now_ns: int, consumer: int) -> None:
        """A consumer asks for its next batch."""
        self._note("idle", now_ns, consumer)
        self.brain.consumer_idle(self.state, now_ns, consumer)

    def lost(self, now_ns: int, consumer: int) -> None:
        """A consumer leaves service."""
        self._note("lost", now_ns, consumer)
        self.brain.consumer_lost(self.state, now_ns, consumer)

    def advance(self, now_ns: int) -> None:
        """Lets time pass."""
        self._note("advance", now_ns)
        self.brain.advance(self.state, now_ns)

    def pump(self, now_ns: int) -> tuple[list[Dispatch], list[tuple[int, int]]]:
        """All batches that may start now, and requests refused after they had been taken in, as (slot, outcome)."""
        self._note("pump", now_ns)
        state, brain = self.state, self.brain
        started: list[Dispatch] = []
        while (consumer := int(brain.take_batch(state, now_ns))) != NONE:
            slots = tuple(int(state.out_request[place]) for place in range(state.out[O_COUNT]))
            started.append(Dispatch(consumer, slots, int(state.out[O_UNITS]), int(state.out[O_FORMED_NS])))
            self._note("dispatch", consumer, started[-1].units, started[-1].formed_ns, *slots)
        refused: list[tuple[int, int]] = []
        while (slot := int(brain.take_refused(state))) != NONE:
            refused.append((slot, int(state.request_outcome[slot])))
            self._note("refused", *refused[-1])
        return started, refused

    def waiting(self) -> list[int]:
        """Takes out all requests that no consumer has started on."""
        self._note("empty")
        found: list[int] = []
        while True:
            slot = int(self.brain.take_waiting(self.state))
            if slot == NONE:
                return found
            self._note("taken_out", slot)
            found.append(slot)

    def due_ns(self) -> int | None:
        """When ``advance`` must be called if nothing else happens; ``None`` if never."""
        due_ns = int(self.brain.due_ns(self.state))
        return None if due_ns == NEVER else due_ns


def _as_plain(server: ServerModel) -> dict[str, Any]:
    plain = {field.name: getattr(server, field.name) for field in dataclasses.fields(server) if field.name != "plan"}
    plan = {field.name: getattr(server.plan, field.name) for field in dataclasses.fields(BatcherPlan)}
    plugin = plan.pop("plugin")
    return {**plain, "plan": plan, "plugin": None if plugin is None else str(plugin.path)}


def _from_plain(plain: dict[str, Any]) -> ServerModel:
    plan = _with_tuples(plain["plan"])
    plan["plugin"] = None if plain["plugin"] is None else load_plugin(Path(plain["plugin"]))
    rest = {name: value for name, value in plain.items() if name not in ("plan", "plugin")}
    return ServerModel(plan=BatcherPlan(**plan), **_with_tuples(rest))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


INPUTS = frozenset({"enqueue", "up", "idle", "lost", "advance", "pump", "empty"})


@dataclass(frozen=True)
class Replayed:
    """What came of replaying a log.

    Attributes
    ----------
    inputs, decisions : int
        How many of each the log holds.
    difference : str or None
        The first decision that a fresh batcher takes differently.
    """

    inputs: int
    decisions: int
    difference: str | None


class _Recorder:
    """Stands in for a log and keeps what a replayed batcher writes."""

    def __init__(self) -> None:
        self.entries: list[list[Any]] = []

    def write(self, entry: Sequence[Any]) -> None:
        self.entries.append(list(entry))


def replay(path: Path) -> Replayed:
    """Puts the inputs of a log into fresh batchers and compares their decisions with the log's.

    Parameters
    ----------
    path : Path

    Raises
    ------
    MissingFileError
        There is no such file.
    FormatError
        It is no decision log.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return _replay(path, file)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise FormatError(f"{path}: is no decision log: {error}") from error


def _replay(path: Path, lines: Iterable[str]) -> Replayed:
    batchers: dict[int, LiveBatcher] = {}
    recorder = _Recorder()
    expected: list[list[Any]] = []
    inputs = decisions = 0
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break  # the server was killed while it wrote this line
        entry = json.loads(line)
        if entry[0] in INPUTS or entry[0] == "server":
            if recorder.entries != expected:
                return Replayed(inputs, decisions, f"{path}:{number - 1}: {_first(expected, recorder.entries)}")
            recorder.entries, expected = [], []
        if entry[0] == "server":
            batchers[entry[1]] = LiveBatcher(
                entry[1],
                _from_plain(entry[3]),
                entry[2],
                recorder,  # type: ignore[arg-type]  # it writes, too
            )
            recorder.entries = []
        elif entry[0] in INPUTS:
            inputs += 1
            _apply(batchers[entry[1]], entry)
            recorder.entries = [one for one in recorder.entries if one[0] not in INPUTS]
        else:
            decisions += 1
            expected.append(entry)
    if recorder.entries[: len(expected)] != expected:
        return Replayed(inputs, decisions, f"{path}: {_first(expected, recorder.entries)}")
    return Replayed(inputs, decisions, None)


def _first(expected: Sequence[Any], found: Sequence[Any]) -> str:
    for one, other in zip(expected, found, strict=False):
        if one != other:
            return f"the log says {one}, a fresh batcher {other}"
    return f"the log holds {len(expected)} decisions here, a fresh batcher takes {len(found)}"


def _apply(batcher: LiveBatcher, entry: Sequence[Any]) -> None:
    name, values = entry[0], entry[2:]
    if name == "enqueue":
        now_ns, slot, units, bucket, priority, shape, timeout_ns = values
        batcher.enqueue(now_ns, slot, units=units, bucket=bucket, priority=priority, shape=shape, timeout_ns=timeout_ns)
    elif name == "pump":
        batcher.pump(values[0])
    elif name == "empty":
        batcher.waiting()
    elif name == "advance":
        batcher.advance(values[0])
    else:
        getattr(batcher, name)(values[0], values[1])
