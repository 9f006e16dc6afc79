"""The GPU suite on MIG devices that are there already: CUDA gives a process one of them, so each has its own process.

A child reads one JSON request a line and answers each with one line (``python -m runtime.gpu.mig``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from preba.errors import PrebaError
from runtime.gpu.networks import NETWORKS
from runtime.gpu.pieces import PARTS, PIECES, Settings, Skipped, prepared_step, rate_of, torch_for
from runtime.gpu.timing import on_partition
from runtime.mig import read_gpus
from runtime.nvml import Nvml, open_nvml

__all__ = ["NOTE", "Cut", "interference_on_mig", "mig_cut", "models_on_mig", "preprocessing_on_mig"]

NOTE = "MIG devices, as they were found"


@dataclass(frozen=True)
class Cut:
    """How the first GPU with MIG on is cut.

    Attributes
    ----------
    device : str
        Its name in preba's catalogue, or the driver's.
    slices : tuple of (profile, UUID)
        The MIG devices that are whole slices; empty where MIG is on and nobody has cut the GPU.
    """

    device: str
    slices: tuple[tuple[str, str], ...]

    @property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """UUIDs by profile, the most frequent one first."""
        found: dict[str, list[str]] = {}
        for profile, uuid in self.slices:
            found.setdefault(profile, []).append(uuid)
        return {name: tuple(found[name]) for name in sorted(found, key=lambda name: -len(found[name]))}


def mig_cut(opened: Callable[[], Nvml] = open_nvml) -> Cut | None:
    """What MIG devices there are; ``None`` where MIG is off, or without a driver. Nothing is changed."""
    try:
        with opened() as nvml:
            states = read_gpus(nvml)
    except PrebaError:
        return None
    for state in states:
        whole = [(each.name.partition("MIG ")[2], each.uuid) for each in state.mig_devices]
        slices = tuple((profile, uuid) for profile, uuid in whole if "c." not in profile)
        if state.facts.mig_now:
            return Cut(state.facts.name if state.device is None else state.device.name, slices)
    return None


def preprocessing_on_mig(settings: Settings, cut: Cut) -> dict[str, Any]:
    """DALI and nvJPEG on the first slice, in a process of its own: it keeps no memory there when it ends."""
    with children(first_of(cut)) as (child,):
        return child.ask({"piece": "preprocessing", "settings": asdict(settings)})


def first_of(cut: Cut) -> tuple[str, ...]:
    """The UUID of the first slice.

    Raises
    ------
    Skipped
        There is none.
    """
    if not cut.slices:
        raise Skipped("MIG is on, and there is no MIG device that is a whole slice (`preba mig apply` makes some)")
    return (cut.slices[0][1],)


def models_on_mig(settings: Settings, cut: Cut) -> dict[str, Any]:
    """Latency of every network by batch on one slice of each profile.

    Parameters
    ----------
    settings : Settings
    cut : Cut

    Raises
    ------
    Skipped
        A child says why it cannot.
    """
    first_of(cut)
    each_s = settings.budget_s / len(cut.kinds)
    asked = {**asdict(settings), "budget_s": each_s, "shares": (PARTS,)}
    found: dict[str, Any] = {}
    for profile, uuids in cut.kinds.items():
        with children(uuids[:1]) as (child,):
            answer = child.ask({"piece": "models", "settings": asked})
        found = found or {**answer, "note": f"{NOTE} on {cut.device}", "networks": {}}
        for name, network in answer["networks"].items():
            mine = found["networks"].setdefault(name, {**network, "shares": {}})
            mine["shares"][profile] = network["shares"][str(PARTS)]
    return found


def interference_on_mig(settings: Settings, cut: Cut) -> dict[str, Any]:
    """One to all slices of the most frequent profile at work at once: how much slower each gets."""
    first_of(cut)
    profile, uuids = next(iter(cut.kinds.items()))
    found: dict[str, Any] = {"note": f"{NOTE}: {profile} on {cut.device}", "networks": {}}
    seconds = settings.budget_s / (2 * len(settings.networks) * len(uuids))
    with children(uuids) as started:
        for name in settings.networks:
            batch = NETWORKS[name].paper_knees.get("1", 1)
            ready = asked_together(started, {"prepare": name, "batch": batch, "device": settings.device})
            rows: list[dict[str, Any]] = []
            for active in range(1, len(uuids) + 1):
                rates = [answer["rate"] for answer in asked_together(started[:active], {"rate_s": seconds})]
                rows.append({"active": active, "batches_per_s_each": rates})
            alone = rows[0]["batches_per_s_each"][0]
            for row in rows:
                row["slowdown"] = alone / float(np.mean(row["batches_per_s_each"])) - 1
            launched = sorted({answer["launched"] for answer in ready})
            found["networks"][name] = {"batch": batch, "launched": launched, "rows": rows}
    return found


# children


class Child:
    """A process that sees one MIG device."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def send(self, request: Mapping[str, Any]) -> None:
        """Sends a request."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its answer says that it is gone

    def answer(self) -> dict[str, Any]:
        """The next answer.

        Raises
        ------
        Skipped
            It says that it cannot.
        RuntimeError
            It failed.
        """
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process on a MIG device ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "skipped" in found:
            raise Skipped(found["skipped"])
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request and its answer."""
        self.send(request)
        return self.answer()


def asked_together(children: Sequence[Child], request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same request to all of them at once."""
    for child in children:
        child.send(request)
    return [child.answer() for child in children]


@contextmanager
def children(uuids: Sequence[str]) -> Iterator[list[Child]]:
    """One process for each MIG device, which end with the block."""
    with ExitStack() as stack:
        started = []
        for uuid in uuids:
            process = subprocess.Popen(
                [sys.executable, "-m", "runtime.gpu.mig"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid},
            )  # fmt: skip
            stack.callback(_end, process)
            started.append(Child(process))
        yield started


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):  # what it did not read
            if pipe is not None:
                pipe.close()
    process.wait()


class Served:
    """What a child does with its requests."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._torch: Any = None
        self._step: Callable[[], object] | None = None
        self._settings = Settings()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Does what a request asks for."""
        if "piece" in request:
            asked: dict[str, Any] = dict(request["settings"])
            lists = {name: tuple(value) for name, value in asked.items() if isinstance(value, list)}
            return PIECES[request["piece"]](Settings(**{**asked, **lists}))
        if "prepare" in request:
            if self._torch is None:
                self._settings = Settings(device=request["device"])
                self._torch = torch_for(self._settings)
                whole = on_partition(self._torch, PARTS, 0, PARTS, device=self._settings.device)
                self._stack.enter_context(whole)
            network = NETWORKS[request["prepare"]]
            self._step, launched = prepared_step(self._torch, network, request["batch"], self._settings)
            return {"launched": launched}
        if self._step is None:
            raise RuntimeError("nothing is prepared")
        return {"rate": rate_of(self._torch, self._step, request["rate_s"], self._settings.device)}


def serve() -> None:
    """Answers requests from standard input until it ends; nothing else may write to standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with ExitStack() as stack:
        served = Served(stack)
        for line in sys.stdin:
            try:
                found = served.answer(json.loads(line))
            except Skipped as reason:
                found = {"skipped": str(reason)}
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(found) + "\n")
            answers.flush()


if __name__ == "__main__":
    serve()
