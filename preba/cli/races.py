"""A race inside Triton, measured: at the end of a batch the batcher may run before the backend thread is back.

The backend thread wakes the batcher and returns for its next batch. If the batcher is the faster one it either adds
late arrivals to the batch that goes next or, with a queue policy, sees no idle instance and sleeps on. It depends on the
machine how often, so it is measured there: one slice, requests at chosen times, one try each period.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preba.arrival_kinds import ReplayArrivals
from preba.batching.triton_config import QueuePolicy, TritonBatcher
from preba.cli.served import served
from preba.records import Records
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Gpu, Run
from runtime.load.run import Target, play
from runtime.placement import is_native

__all__ = ["Race", "batcher_first", "with_race"]

TIME_S = 20.0
TRIES = (40, 300)
PERIODS = 3.4
"""Executions of the first batch from one try to the next: what went wrong in one is over by then."""
DELAY = 0.25
TOGETHER = 3
"""Requests in the batch that ends.

Times in executions of that batch. Without a policy it waits for the delay and ends at 1.25; one more request, at 0.3,
is in the payload queue from 0.55; the last, at 0.75, waits behind it, and only a batcher that is first adds it. With a
policy one request runs and one waits.
"""


@dataclass(frozen=True)
class Race:
    """How often the batcher was first."""

    first: int
    tries: int
    policy: bool

    @property
    def permille(self) -> int:
        """Share in 1/1000."""
        return round(1000 * self.first / self.tries) if self.tries else 0

    def text(self) -> str:
        """A sentence for the report."""
        what = "a lost wake-up" if self.policy else "late arrivals join the batch that goes next"
        return (
            f"Triton's batcher ran before the backend thread was back at {self.first} of {self.tries} batch ends "
            f"({self.permille / 10:g} %, one slice, a run of its own): {what}"
        )


def with_race(batcher: Any, race: Race) -> Any:  # noqa: ANN401 - any policy of the union
    """The batcher with the share that was measured, unless it has its own."""
    if not isinstance(batcher, TritonBatcher) or batcher.quirks.batcher_first_permille is not None:
        return batcher
    quirks = batcher.quirks.model_copy(update={"batcher_first_permille": race.permille})
    return batcher.model_copy(update={"quirks": quirks})


def batcher_first(resolved: ResolvedScenario, limit: int, say: Callable[[str], None]) -> Race | None:
    """Measures it where it makes a difference: Triton batches, and either delays or has a queue policy.

    Parameters
    ----------
    resolved : ResolvedScenario
    limit : int
        Largest batch.
    say : callable
        Is told what is going on.

    Returns
    -------
    Race or None
    """
    batcher = resolved.models[0].config.batcher
    if not is_native(resolved) or not isinstance(batcher, TritonBatcher) or not batcher.dynamic_batching or limit < 2:
        return None
    policy = not batcher.prefetching
    if not policy and batcher.max_queue_delay_us == 0:
        return None
    say("measuring how often Triton's batcher overtakes a slice that comes back")
    model = resolved.models[0]
    first = resolved.slices[model.slice_indices[0]]
    together = 1 if policy else min(TOGETHER, limit - 1)
    batch_ms = model.execution.latency_ns(first.profile, together, None) / 1e6
    tries = int(np.clip(TIME_S * 1e3 / (PERIODS * batch_ms), *TRIES))
    places = [0.0, 0.5] if policy else [*(0.002 * number for number in range(together)), 0.3, 0.75]
    times_ms = [(PERIODS * number + place) * batch_ms for number in range(tries) for place in places]
    with tempfile.TemporaryDirectory(prefix="preba-race-") as name:
        file = Path(name) / "times.csv"
        lines = [f"{at:.4f}" for at in [*times_ms, times_ms[-1] + 1e5]]
        file.write_text("\n".join(["ms", *lines, ""]), encoding="utf-8")
        probe = _probe(resolved, file, batch_ms, limit, policy=policy, requests=len(times_ms))
        with served(probe) as url:
            records = play(probe, Target(url), warmup_requests=3).result.records
    return count_races(records, len(places), batch_ms, policy=policy)


def _probe(
    resolved: ResolvedScenario, file: Path, batch_ms: float, limit: int, *, policy: bool, requests: int
) -> ResolvedScenario:
    scenario, model = resolved.scenario, resolved.models[0]
    first = resolved.slices[model.slice_indices[0]]
    whole = first.profile == "full"
    gpu = Gpu(device=resolved.gpu_devices[first.gpu_index], partition="full" if whole else {first.profile: 1})
    batcher = TritonBatcher(
        kind="triton", max_batch_size=limit, max_queue_delay_us=0 if policy else round(1e3 * DELAY * batch_ms),
        default_queue_policy=QueuePolicy(max_queue_size=requests if policy else 0),
    )  # fmt: skip
    arrivals = ReplayArrivals(kind="replay", file=str(file), format="csv", column="ms", unit="ms")
    fields = {"batcher": batcher, "arrivals": arrivals, "priority_shares": None, "timeout_ms": 0.0, "slices": "all"}
    update = {
        "gpus": (gpu,), "models": (model.config.model_copy(update=fields),), "events": (),
        "run": Run(requests=requests, warmup_requests=0),
    }  # fmt: skip
    return resolve(scenario.model_copy(update=update), folder=resolved.folder)


def count_races(records: Records, per_try: int, batch_ms: float, *, policy: bool) -> Race:
    """Counts who was first in each try.

    Parameters
    ----------
    records : Records
        Of the probe, `per_try` requests a try, in order of arrival.
    per_try : int
    batch_ms : float
        Execution of the batch that ends.
    policy : bool
        The batcher has a queue policy.
    """
    first = tries = 0
    batch, start_ns, end_ns = records.batch_id, records.execution_start_ns, records.execution_end_ns
    for row in range(0, len(records) - per_try + 1, per_try):
        rows = slice(row, row + per_try)
        if not records.served[rows].all():
            continue
        before, late = row + per_try - 2, row + per_try - 1
        if batch[row] == batch[before if not policy else late]:
            continue
        tries += 1
        if policy:
            first += int(start_ns[late] - end_ns[before] > DELAY * batch_ms * 1e6)
        else:
            first += int(batch[before] == batch[late])
    return Race(first, tries, policy)
