"""Policies from users' own files: equal in both engines, equal to a built-in one that says the same, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preba.errors import FormatError, MissingFileError, PrebaError, ScenarioError
from preba.records import Records
from preba.scenario.load import load_scenario
from preba.scenario.resolve import resolve
from sim.run import simulate

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
FIXED = """
from preba.batching.late import late_enqueue
from preba.batching.queues import best_idle_consumer, hand_out, payload_add, payload_open, queue_pop
from preba.batching.state import NEVER, NONE, S_BATCH_MAX, S_PLUGIN_FIRST, V_IDLE, V_WAITING

SETTINGS = ("timeout_ns",)


def enqueue(state, now_ns, request):
    return late_enqueue(state, now_ns, request)


def take_batch(state, now_ns):
    if state.scalar[V_WAITING] == 0 or state.scalar[V_IDLE] == 0:
        return NONE
    if state.queue_units[0] < state.setting[S_BATCH_MAX] and now_ns < due_ns(state):
        return NONE
    payload = payload_open(state, queue_pop(state, 0))
    while state.queue_head[0] != NONE and state.payload_units[payload] < state.setting[S_BATCH_MAX]:
        payload_add(state, payload, queue_pop(state, 0))
    consumer = best_idle_consumer(state)
    hand_out(state, consumer, payload, now_ns)
    return consumer


def due_ns(state):
    if state.scalar[V_WAITING] == 0 or state.scalar[V_IDLE] == 0:
        return NEVER
    return state.request_enqueued_ns[state.queue_head[0]] + state.setting[S_PLUGIN_FIRST]
"""
HOOKS = """
from preba.batching.late import late_due_ns, late_enqueue, late_take_batch
from preba.batching.state import V_PLUGIN_FIRST


def enqueue(state, now_ns, request):
    if state.scalar[V_PLUGIN_FIRST] + 2 * state.scalar[V_PLUGIN_FIRST + 1] + state.scalar[V_PLUGIN_FIRST + 2] >= 60:
        return 1
    return late_enqueue(state, now_ns, request)


def take_batch(state, now_ns):
    return late_take_batch(state, now_ns)


def due_ns(state):
    return late_due_ns(state)


def advance(state, now_ns):
    state.scalar[V_PLUGIN_FIRST] += 1


def consumer_idle(state, now_ns, consumer):
    state.scalar[V_PLUGIN_FIRST + 1] += consumer


def consumer_lost(state, now_ns, consumer):
    state.scalar[V_PLUGIN_FIRST + 2] += 1
"""


def policy(folder: Path, text: str, **fields: Any) -> dict[str, Any]:
    path = folder / "policy.py"
    path.write_text(text)
    return {"kind": "plugin", "file": str(path), "batch_max": 4, **fields}


def scenario(toy: Any, *batchers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    models = [
        toy.model(
            toy.profile(toy.image_table),
            {"kind": "poisson", "rate_rps": 900},
            name=f"m{place}",
            batcher=batcher,
            slices=[2 * place, 2 * place + 1],
        )
        for place, batcher in enumerate(batchers)
    ]
    return toy.scenario(models, **{"requests": 600, "partition": "7x1g.5gb", **fields})


def records(toy: Any, data: dict[str, Any], engine: str) -> Records:
    return toy.run(data, engine=engine).result.records


def alike(one: Records, other: Records) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


def test_example_policy_runs_alike_in_both_engines() -> None:
    """The example in docs/ gives the same records interpreted and compiled, and batches under load."""
    resolved = resolve(load_scenario(EXAMPLES / "slack.yaml", ["run.requests=4000"]), folder=EXAMPLES)
    runs = [simulate(resolved, engine=engine).result.records for engine in ("reference", "compiled")]
    assert alike(*runs)
    assert runs[0].served.all()
    assert 2 < runs[0].batch_size.mean() <= 8


@pytest.mark.slow
def test_two_policies_of_ones_own_serve_side_by_side(toy: Any, tmp_path: Path) -> None:
    """Two models with different plug-ins, and slices that fail, are played alike by both engines; hooks are told."""
    (tmp_path / "a").mkdir()
    first = policy(tmp_path / "a", FIXED, settings={"timeout_ms": 3})
    second = policy(tmp_path, HOOKS)
    events = [{"kind": "slice_fails", "at_s": 0.05, "slice": 2}, {"kind": "slice_returns", "at_s": 0.1, "slice": 2}]
    data = scenario(toy, first, second, events=events)
    interpreted, compiled = (records(toy, data, engine) for engine in ("reference", "compiled"))
    assert alike(interpreted, compiled)
    refused = interpreted.outcome == 1
    assert refused.any(), "the second policy's hooks were not told enough to refuse"
    assert not refused[interpreted.model_index == 0].any()


def test_policy_that_says_what_a_built_in_one_says_decides_alike(toy: Any, tmp_path: Path) -> None:
    """A plug-in that calls the functions of ``fixed`` gives the records of ``fixed``."""
    own = records(toy, scenario(toy, policy(tmp_path, FIXED, settings={"timeout_ms": 3})), "reference")
    built_in = {"kind": "fixed", "batch_max": 4, "timeout_ms": 3.0}
    assert alike(own, records(toy, scenario(toy, built_in), "compiled"))


def test_changed_policy_is_compiled_again(toy: Any, tmp_path: Path) -> None:
    """Editing the file changes what the compiled engine does, whatever is cached."""
    batcher = policy(tmp_path, FIXED, settings={"timeout_ms": 3})
    before = records(toy, scenario(toy, batcher), "compiled")
    policy(tmp_path, FIXED.replace("+ state.setting[S_PLUGIN_FIRST]", "+ 0"))
    after = records(toy, scenario(toy, batcher), "compiled")
    assert not alike(before, after)
    assert alike(after, records(toy, scenario(toy, batcher), "reference"))


@pytest.mark.parametrize(
    ("change", "fields", "error", "message"),
    [
        (("def due_ns", "def due_nss"), {}, FormatError, "defines no function due_ns"),
        (("take_batch(state, now_ns)", "take_batch(state)"), {}, FormatError, r"must take \(state, now_ns\)"),
        (("return consumer", "return ("), {}, FormatError, r"policy\.py:23: "),
        (("from preba", "import nothing_of_the_kind\nfrom preba"), {}, FormatError, "fails when executed"),
        (("", ""), {"settings": {"timeout": 1}}, ScenarioError, "no setting 'timeout'"),
        (("", ""), {"settings": {}}, ScenarioError, "needs timeout_ns"),
        (("", ""), {"settings": {"timeout_ns": 0.5}}, ScenarioError, "must be an integer"),
        (("", ""), {"settings": {"timeout_ns": 5, "timeout_us": 5}}, ScenarioError, "given twice"),
        (("", ""), {"file": "/nowhere/policy.py"}, MissingFileError, "no such file"),
        (("", ""), {"batch_max": 99}, ScenarioError, "larger than profile"),
    ],
)
def test_policy_file_that_cannot_be_is_one_clear_error(
    toy: Any, tmp_path: Path, change: tuple[str, str], fields: dict[str, Any], error: type[PrebaError], message: str
) -> None:
    """What is missing or wrong in a policy's file or its settings is said with the file's name."""
    batcher = policy(tmp_path, FIXED.replace(*change, 1), **{"settings": {"timeout_ms": 3}, **fields})
    with pytest.raises(error, match=message):
        records(toy, scenario(toy, batcher), "reference")


@pytest.mark.parametrize("engine", ["reference", "compiled"])
def test_policy_that_hands_out_an_impossible_batch_is_stopped(toy: Any, tmp_path: Path, engine: str) -> None:
    """A consumer that does not exist is an error that names the file, in both engines, not a corrupted memory."""
    text = FIXED.replace("return consumer", "return consumer + 7")
    with pytest.raises(FormatError, match=r"policy\.py: take_batch"):
        records(toy, scenario(toy, policy(tmp_path, text, settings={"timeout_ms": 3})), engine)
