"""Same scenario, same records: determinism of the engine, and what may not disturb what (laws 4 and 6)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preba.records import Records, column_names, write_records
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.dump import scenario_yaml
from preba.scenario.load import load_scenario
from preba.scenario.resolve import resolve
from preba.trace import Trace
from sim.run import simulate

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "scenarios").glob("*.yaml"))
SHORT = "run={requests: 300}"
TABLE = {"1g": {"1": 4, "8": 12}}
POISSON = {"kind": "poisson", "rate_rps": 900.0}


def base(toy: Any, **fields: Any) -> dict[str, Any]:
    """Seven slices behind a balancer, with everything that can be random being random."""
    model = toy.model(
        toy.profile(TABLE),
        POISSON,
        sizes={"kind": "lognormal", "mean_kb": 100, "sigma": 0.5},
        batcher={"kind": "fixed", "batch_max": 4, "timeout_ms": 3.0},
        execution_jitter={"kind": "gamma", "cv": 0.4},
        preprocess_jitter={"kind": "lognormal", "cv": 0.4},
    )
    server = {"topology": "per_slice", "balancer": "power_of_two"}
    common = {"server": server, "preprocessing": toy.cpu(8, 2000), "partition": "7x1g.5gb"}
    return toy.scenario([model], **{**common, **fields})


def parquet(records: Records, path: Path) -> bytes:
    write_records(path, records, {"engine": "reference"})
    return path.read_bytes()


def test_engine_gives_byte_identical_records_for_the_same_scenario(toy: Any, tmp_path: Path) -> None:
    """Two runs of one scenario and seed write the same bytes."""
    first, second = (toy.run(base(toy)).result.records for _ in range(2))
    assert parquet(first, tmp_path / "a.parquet") == parquet(second, tmp_path / "b.parquet")


def test_engine_gives_other_records_for_another_seed(toy: Any, tmp_path: Path) -> None:
    """Another seed draws another trace and gives other records."""
    first, second = (toy.run(base(toy, seed=seed)).result.records for seed in (7, 8))
    assert parquet(first, tmp_path / "a.parquet") != parquet(second, tmp_path / "b.parquet")
    assert not np.array_equal(first.scheduled_ns, second.scheduled_ns)


def test_engine_does_not_notice_whether_progress_is_watched(toy: Any) -> None:
    """Reporting progress changes nothing."""
    seen: list[tuple[int, int]] = []
    data = base(toy, requests=5000)
    watched = toy.run(data, progress=lambda done, total: seen.append((done, total))).result.records
    assert watched.equals(toy.run(data).result.records)
    assert seen == [(2000, 5000), (4000, 5000)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolved_scenario_run_again_reproduces_every_record(path: Path, tmp_path: Path) -> None:
    """The resolved scenario, written out and read from another folder, reproduces the run bit for bit."""
    resolved = resolve(load_scenario(path, [SHORT]), folder=path.parent)
    written = tmp_path / "scenario.yaml"
    written.write_text(scenario_yaml(resolved.scenario))
    again = resolve(load_scenario(written), folder=tmp_path)
    assert again.scenario == resolved.scenario
    first, second = simulate(resolved).result, simulate(again).result
    assert first.records.equals(second.records)
    assert first.spans.equals(second.spans)
    assert first.records.served.any()


def test_trace_given_to_the_engine_is_what_it_plays(toy: Any) -> None:
    """Playing a trace that was drawn before gives the same records as drawing it anew."""
    resolved = toy.resolve(base(toy))
    trace = draw_scenario_trace(resolved)
    assert simulate(resolved, trace=trace).result.records.equals(simulate(resolved).result.records)


DRAWN = [name for name in Trace.__dataclass_fields__ if name not in ("outstanding", "refusal_backoff_ns", "seed")]


def same_draws(first: Trace, second: Trace) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in DRAWN)


def _batcher(data: dict[str, Any]) -> None:
    data["models"][0]["batcher"] = {"kind": "triton", "max_batch_size": 8, "max_queue_delay_us": 500}


def _topology(data: dict[str, Any]) -> None:
    data["server"] = {"topology": "central", "overheads": {"frontend_us": 50}}


def _profile(data: dict[str, Any]) -> None:
    data["models"][0]["profile"]["table"] = {"1g": {"1": 5, "8": 20}}


def _partition(data: dict[str, Any]) -> None:
    data["gpus"][0]["partition"] = "3x1g.5gb"


def _preprocessing(data: dict[str, Any]) -> None:
    data["preprocessing"] = {"kind": "none"}


def _failure(data: dict[str, Any]) -> None:
    data["events"] = [{"kind": "slice_fails", "at_s": 0.1, "slice": 0}]


@pytest.mark.parametrize("change", [_batcher, _topology, _profile, _partition, _preprocessing, _failure])
def test_trace_stays_the_same_whatever_serves_it(toy: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Changing the server (batcher, slices, preprocessing, failures) changes no request, only what becomes of it."""
    data = base(toy)
    before = toy.resolve(data)
    change(data)
    after = toy.resolve(data)
    assert same_draws(draw_scenario_trace(before), draw_scenario_trace(after))
    assert not simulate(before).result.records.equals(simulate(after).result.records)


def test_trace_of_a_model_does_not_depend_on_models_behind_it(toy: Any) -> None:
    """Adding a model leaves every request of the first as it was."""
    alone = base(toy, run={"duration_s": 1.0})
    alone["models"][0]["slices"] = [0, 1, 2]
    other = toy.model(toy.profile(TABLE), POISSON, name="other", slices=[3, 4])
    both = {**alone, "models": [alone["models"][0], other]}
    one, two = (draw_scenario_trace(toy.resolve(data)) for data in (alone, both))
    first = two.model_index == 0
    assert 0 < first.sum() < len(two)
    for name in DRAWN:
        assert np.array_equal(getattr(one, name), getattr(two, name)[first]), name


def test_models_that_share_nothing_do_not_see_each_other(toy: Any) -> None:
    """Without shared preprocessing the first model's records are the same with and without a second model."""
    alone = base(toy, run={"duration_s": 1.0}, preprocessing={"kind": "none"})
    alone["models"][0]["slices"] = [0, 1, 2]
    other = toy.model(toy.profile(TABLE), POISSON, name="other", slices=[3, 4])
    one = toy.run(alone).result.records
    two = toy.run({**alone, "models": [alone["models"][0], other]}).result.records
    kept = two.select(two.model_index == 0)
    for name in set(column_names()) - {"request_id", "batch_id"}:
        assert np.array_equal(getattr(one, name), getattr(kept, name)), name
