"""Sweeps: every point once, whatever the executor and however often it is killed, on the same random numbers."""

from __future__ import annotations

import json
import math
import resource
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from preba.errors import OutputError, PrebaError, ScenarioError, UnsupportedError
from preba.report.sweep import pareto, render_sweep_html, write_tables
from sim.sweep.run import Sweep, plan_sweep, rows_of, run_sweep
from sim.sweep.store import RUNS, SweepStore
from sim.vary import parse_axis

SCENARIO = Path(__file__).resolve().parents[2] / "configs" / "scenarios" / "preba-image-base.yaml"
RATES = "models[0].arrivals.rate_rps=300,600,900"


def plan(*vary: str, requests: int = 800, **options: Any) -> Sweep:
    axes = [parse_axis(text) for text in vary or (RATES,)]
    return plan_sweep(SCENARIO, axes, overrides=[f"run.requests={requests}"], **options)


def done(sweep: Sweep, folder: Path, executor: Executor | None = None) -> list[dict[str, Any]]:
    store = SweepStore(folder, sweep.plan())
    with executor or ThreadPoolExecutor(2) as pool:
        run_sweep(sweep, store, pool, workers=2)
    store.close()
    return rows_of(sweep, store)


def test_sweep_has_one_row_per_point_with_its_values_and_figures(tmp_path: Path) -> None:
    """Rows come in the order of the points; a higher rate gives a higher throughput."""
    rows = done(plan(RATES, "models[0].batcher={kind: none},{kind: greedy}"), tmp_path)
    assert [row["models[0].arrivals.rate_rps"] for row in rows] == [300, 300, 600, 600, 900, 900]
    assert [row["models[0].batcher"] for row in rows[:2]] == ["{kind: none}", "{kind: greedy}"]
    assert all(row["error"] is None and row["served"] == 800 for row in rows)
    assert rows[1]["throughput_rps"] < rows[3]["throughput_rps"] < rows[5]["throughput_rps"]


def test_points_share_their_random_numbers(tmp_path: Path) -> None:
    """A point that changes nothing a request depends on gives the same figures: common random numbers."""
    rows = done(plan("models[0].slo_p99_ms=10,20,30"), tmp_path)
    assert len({row["latency_p99_ms"] for row in rows}) == 1
    assert len({row["within_slo_share"] for row in rows}) > 1


def test_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    """Of a run cut short in the middle of a line every whole line is kept and the rest is run: nothing twice."""
    sweep = plan(replications=2)
    whole = done(sweep, tmp_path / "whole")
    folder = tmp_path / "killed"
    done(sweep, folder)
    lines = (folder / RUNS).read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    (folder / RUNS).write_bytes(b"".join(lines[:3]) + lines[3][:25])
    calls: list[int] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, function: Any, task: Any, /, *args: Any, **kwargs: Any) -> Any:
            calls.extend(number for number, _ in task.runs)
            return super().submit(function, task, *args, **kwargs)

    again = done(sweep, folder, Counting(2))
    kept = {json.loads(line)["run"] for line in lines[:3]}
    assert sorted(calls) == sorted(set(range(6)) - kept)
    assert again == whole
    assert len((folder / RUNS).read_bytes().splitlines()) == 6


def test_replications_give_means_and_intervals(tmp_path: Path) -> None:
    """With replications figures are means over seeds, and intervals are t intervals over them."""
    folder = tmp_path / "r"
    sweep = plan("preprocessing.cores=64", replications=3)
    row = done(sweep, folder)[0]
    lines = [json.loads(line)["line"] for line in (folder / RUNS).read_text().splitlines()]
    values = [line["latency_mean_ms"] for line in lines]
    mean = sum(values) / 3
    half = 4.302652729911275 * math.sqrt(sum((v - mean) ** 2 for v in values) / 2) / math.sqrt(3)
    assert len(set(values)) == 3
    assert row["latency_mean_ms"] == pytest.approx(mean)
    assert row["latency_mean_ms_low"] == pytest.approx(mean - half)
    assert row["latency_mean_ms_high"] == pytest.approx(mean + half)


def test_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    """Results of different sweeps are never mixed, and a folder with other things in it is left alone."""
    done(plan(), tmp_path / "one")
    with pytest.raises(OutputError, match=r"another sweep \(scenario"):
        SweepStore(tmp_path / "one", plan(requests=900).plan())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="holds no sweep"):
        SweepStore(tmp_path / "mine", plan().plan())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_full_disk_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a line cannot be written the error says so, whole lines stay, and the sweep goes on later."""
    sweep = plan()
    store = SweepStore(tmp_path, sweep.plan())
    written = store._file.write
    count = 0

    def full(data: bytes) -> int:
        nonlocal count
        count += 1
        if count > 1:
            written(data[:20])
            store._file.flush()
            raise OSError(28, "No space left on device")
        return written(data)

    monkeypatch.setattr(store, "_file", type("Full", (), {
        "write": staticmethod(full), "tell": store._file.tell, "flush": store._file.flush,
        "fileno": store._file.fileno, "close": store._file.close,
    }))  # fmt: skip
    with ThreadPoolExecutor(1) as pool, pytest.raises(OutputError, match=r"No space left on device.*are kept"):
        run_sweep(sweep, store, pool, workers=1)
    store.close()
    assert len((tmp_path / RUNS).read_bytes().splitlines()) == 1
    assert all(row["error"] is None for row in done(sweep, tmp_path))


def test_line_that_only_half_fits_on_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """The rest of a line is not written later either, when closing the file finds room again."""
    store = SweepStore(tmp_path, {"a": 1})
    store.add([(0, {"x": 1})])
    before = (tmp_path / RUNS).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
    try:
        with pytest.raises(OutputError, match="1 runs finished so far are kept"):
            store.add([(1, {"x": "b" * 200}), (2, {"x": 2})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    store.close()
    assert (tmp_path / RUNS).read_bytes() == before
    again = SweepStore(tmp_path, {"a": 1})
    again.close()
    assert again.lines == {0: {"x": 1}}


def test_two_sweeps_cannot_share_a_folder(tmp_path: Path) -> None:
    """A second sweep in a folder where one is at work is refused, so that no run is done twice."""
    store = SweepStore(tmp_path, {"a": 1})
    with pytest.raises(OutputError, match="another sweep is at work"):
        SweepStore(tmp_path, {"a": 1})
    store.close()
    SweepStore(tmp_path, {"a": 1}).close()


def test_worker_that_is_killed_is_an_error_and_finished_runs_are_kept(tmp_path: Path) -> None:
    """A broken executor is said in one line; the same sweep goes on from the runs before."""
    sweep = plan()

    class Breaking(ThreadPoolExecutor):
        submitted = 0

        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.submitted += 1
            if self.submitted > 1:
                raise BrokenExecutor("a process was terminated abruptly.")
            return super().submit(function, *args, **kwargs)

    store = SweepStore(tmp_path, sweep.plan())
    with Breaking(1) as pool, pytest.raises(UnsupportedError, match="same command goes on"):
        run_sweep(sweep, store, pool, workers=1)
    store.close()
    assert all(row["error"] is None for row in done(sweep, tmp_path))


def test_replications_of_a_seed_axis_are_refused() -> None:
    """All replications of a point with a given seed would be the same run, and their interval a lie."""
    with pytest.raises(ScenarioError, match="seed of its own"):
        plan("seed=1,2", replications=2)


def test_every_point_of_a_zip_is_checked_before_anything_runs() -> None:
    """A pair that makes no scenario is found although the first pair does."""
    with pytest.raises(PrebaError, match="rate_rps"):
        plan("models[0].arrivals.rate_rps=300,fast", "preprocessing.cores=8,16", mode="zip")


def test_point_that_fails_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    """A combination that makes no scenario is an error in its row; the next time it is tried again."""
    batcher = "models[0].batcher={kind: fixed, batch_max: 4, timeout_ms: 1},{kind: none}"
    rows = done(plan(batcher, "models[0].batch_units=1,3"), tmp_path)
    assert [row["error"] is None for row in rows] == [True, True, True, False]
    assert "batch_units" in rows[3]["error"]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("models[0].arrivals.rate_rp=5", r"rate_rp.*rate_rps"),
        ("models[3].name=a", r"--vary models\[3\].name: 3 is not in that list"),
        ("models[0].arrivals.rate_rps=fast", "rate_rps"),
        ("models[0].profile=preba-mobilnet-v3-small", "did you mean"),
    ],
)
def test_axis_that_makes_no_scenario_is_found_before_anything_runs(vary: str, message: str) -> None:
    """Wrong paths and values are found at once, with the nearest path or name."""
    with pytest.raises(PrebaError, match=message):
        plan(vary)
    with pytest.raises(ScenarioError, match="replications"):
        plan(replications=0)


def test_tables_and_page_hold_every_point(tmp_path: Path) -> None:
    """CSV and Parquet have one row per point, types kept; the page shows plots and the same points."""
    sweep = plan(RATES, "models[0].batcher={kind: none},{kind: greedy}")
    rows = done(sweep, tmp_path)
    write_tables(tmp_path, rows, sweep.paths)
    table = pq.read_table(tmp_path / "sweep.parquet").to_pylist()
    assert len(table) == len((tmp_path / "sweep.csv").read_text().splitlines()) - 1 == 6
    assert table[2]["models[0].arrivals.rate_rps"] == 600
    assert table[2]["latency_p99_ms"] == rows[2]["latency_p99_ms"]
    html = render_sweep_html(rows, sweep.paths, title="Sweep of <x>", facts=["six points"])
    assert "Sweep of &lt;x&gt;" in html
    assert html.count("<img") == 5  # p99 and throughput along the rate, three fronts
    assert html.count("<tr>") >= 6


def test_pareto_front_has_those_that_nobody_beats() -> None:
    """A point stays when none is at least as good in both and better in one."""
    points = [(10.0, 5.0), (20.0, 9.0), (15.0, 9.0), (20.0, 12.0), (5.0, 4.0)]
    assert pareto(points, more_is_better=True) == [1, 0, 4]
    assert pareto(points, more_is_better=False) == [4]


@pytest.mark.slow
def test_sweep_runs_on_a_dask_cluster(tmp_path: Path) -> None:
    """A real scheduler and worker give the rows that threads give."""
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    sweep = plan()
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="tcp"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        rows = done(sweep, tmp_path / "dask", client.get_executor())
    assert rows == done(sweep, tmp_path / "threads")
