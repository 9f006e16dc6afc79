"""Files that other tools measured: read as those tools write them, and refused with a reason otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preba.errors import FormatError, MissingFileError
from preba.foreign.measured import merged, summary_of
from preba.foreign.perf_analyzer import export_records
from preba.foreign.read import read_measured

CSV = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
    "8,412.5,20,1980,4000,100,12800,100,0,18500,21000,22000,30100\n"
    "4,250.0,20,1980,2000,100,11800,100,0,15500,17000,18000,20100\n"
)
STATISTICS = {
    "model_stats": [
        {
            "name": "toy", "version": "1", "inference_count": 900, "execution_count": 200,
            "inference_stats": {
                "success": {"count": 900, "ns": 900 * 20_000_000},
                "fail": {"count": 0, "ns": 0},
                "queue": {"count": 900, "ns": 900 * 6_000_000},
                "compute_input": {"count": 900, "ns": 900 * 1_000_000},
                "compute_infer": {"count": 900, "ns": 900 * 12_000_000},
                "compute_output": {"count": 900, "ns": 900 * 500_000},
            },
            "batch_stats": [
                {"batch_size": 4, "compute_infer": {"count": 100, "ns": 1}},
                {"batch_size": 5, "compute_infer": {"count": 100, "ns": 1}},
            ],
        }
    ]
}  # fmt: skip
SUMMARY = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Scheduled samples per second : 200.34
Result is : VALID
  Performance constraints satisfied : Yes

================================================
Additional Stats
================================================
Completed samples per second    : 198.62

Min latency (ns)                : 20683000
Max latency (ns)                : 52100000
Mean latency (ns)               : 27600000
50.00 percentile latency (ns)   : 26500000
90.00 percentile latency (ns)   : 33000000
95.00 percentile latency (ns)   : 37000000
99.00 percentile latency (ns)   : 44000000
99.90 percentile latency (ns)   : 50500000
"""


def write(folder: Path, name: str, content: Any) -> Path:
    """A file of text, or of JSON."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_csv_row_of_the_scenario_s_load_is_read(tmp_path: Path) -> None:
    """Microseconds become milliseconds; the mean is the sum of the parts; another load names those there are."""
    path = write(tmp_path, "out.csv", CSV)
    found = read_measured(path, load=8)
    assert found.throughput_rps == 412.5
    assert found.latency_ms == {"p50": 18.5, "p90": 21.0, "p95": 22.0, "p99": 30.1, "mean": 19.0}
    assert found.stages_ms == {"batching": 4.0, "hop": 0.1, "execution": 12.8}
    with pytest.raises(FormatError, match="Concurrency 8, 4; the scenario's load is 3"):
        read_measured(path, load=3)
    with pytest.raises(FormatError, match="p50 latency"):
        read_measured(write(tmp_path, "bad.csv", CSV.replace("18500", "fast")), load=8)


def test_export_gives_every_request(tmp_path: Path) -> None:
    """Latency from the time stamp to the last response, in order of arrival, with intervals; failures are said."""
    rng = np.random.default_rng(1)
    requests = [
        {
            "timestamp": 1000 + 10**6 * k,
            "response_timestamps": [10**6 * k + 500, 10**6 * k + 1000 + 20_000_000 + int(n)],
        }
        for k, n in enumerate(rng.integers(0, 10**7, 4000))
    ]
    requests.reverse()
    requests.append({"timestamp": 5, "response_timestamps": []})
    data = {"experiments": [{"experiment": {"mode": "request_rate", "value": 1000}, "requests": requests}]}
    found = read_measured(write(tmp_path, "export.json", data))
    assert found.requests == 4000
    assert found.latencies_ns is not None
    assert found.latencies_ns.min() >= 20_000_000
    assert "1 requests" in found.notes[0]
    latency = summary_of(found)["latency_ms"]
    assert latency["mean"]["value"] == pytest.approx(25.0, abs=0.2)
    low, high = latency["p50"]["ci95"]
    assert low < 25.0 < high
    data["experiments"].append({"experiment": {"value": 5}, "requests": []})
    with pytest.raises(FormatError, match="load is 7"):
        read_measured(write(tmp_path, "two.json", data), load=7)


def emulated_export() -> dict[str, Any]:
    """Three requests of two batches of emulated slices, whose clock is 7,000 ns behind; the last sent comes first."""
    stamps = ([1000, 21_000, 5, 2, 0], [1000, 21_000, 5, 2, 0], [30_000, 50_000, 4097, 1, 1])
    requests = [
        {
            "timestamp": 7_500 + 100 * k,
            "response_timestamps": [7_000 + stamp[1] + 900],
            "response_outputs": [{"PREBA": stamp, "OUTPUT": 1.0}],
        }
        for k, stamp in enumerate(stamps)
    ]
    return {"experiments": [{"experiment": {"mode": "concurrency", "value": 3}, "requests": requests[::-1]}]}


def test_export_of_emulated_slices_holds_batches_and_records(tmp_path: Path) -> None:
    """Each batch counts once; the slices' stamps come to perf_analyzer's clock, from the first request on."""
    data = emulated_export()
    found = read_measured(write(tmp_path, "export.json", data))
    assert found.batch_histogram == {1: 1, 2: 1}
    assert summary_of(found)["batch_size"]["mean"] == 1.5
    records = export_records(data, origin="export.json", clock_ns=7_000)
    assert records.issued_ns.tolist() == [0, 100, 200]
    assert records.execution_start_ns.tolist() == [500, 500, 29_500]
    assert records.execution_end_ns.tolist() == [20_500, 20_500, 49_500]
    assert records.completed_ns.tolist() == [21_400, 21_400, 50_400]
    assert records.batch_id.tolist() == [5, 5, 4097]
    assert records.batch_size.tolist() == records.batch_units.tolist() == [2, 2, 1]
    assert records.slice_index.tolist() == [0, 0, 1]
    assert records.served.all()


@pytest.mark.parametrize(
    "outputs", [None, [], [{}], [{"PREBA": [1, 2, 3]}], [{"PREBA": "text"}], [{"PREBA": ["a"] * 5}], ["text"]]
)
def test_export_of_other_models_is_no_run_of_emulated_slices(tmp_path: Path, outputs: Any) -> None:
    """One answer without stamps: no batches are known, and records are refused; latencies are read as ever."""
    data = emulated_export()
    data["experiments"][0]["requests"][1]["response_outputs"] = outputs
    found = read_measured(write(tmp_path, "export.json", data))
    assert found.requests == 3
    assert found.batch_histogram == {}
    with pytest.raises(FormatError, match="no output PREBA"):
        export_records(data, origin="export.json", clock_ns=0)


def test_export_of_requests_with_several_units_gives_no_records() -> None:
    """perf_analyzer's -b: a batch of two requests has other units than two, and none are made up."""
    data = emulated_export()
    output = data["experiments"][0]["requests"][0]["response_outputs"][0]
    output["PREBA"] = output["PREBA"] * 2
    with pytest.raises(FormatError, match="-b"):
        export_records(data, origin="export.json", clock_ns=0)


def test_batches_of_an_export_go_before_those_of_statistics(tmp_path: Path) -> None:
    """Statistics count since the server's start: their sizes are not added to those of the run."""
    export = write(tmp_path, "export.json", emulated_export())
    both = merged([read_measured(export), read_measured(write(tmp_path, "stats.json", STATISTICS), model="toy")])
    assert both.batch_histogram == {1: 1, 2: 1}
    assert summary_of(both)["batch_size"]["mean"] == 1.5


def test_statistics_give_batches_and_stages(tmp_path: Path) -> None:
    """Means per request, executions by size, the mean batch; another model is refused by name."""
    path = write(tmp_path, "stats.json", STATISTICS)
    found = read_measured(path, model="toy")
    assert found.batch_mean == 4.5
    assert found.batch_histogram == {4: 100, 5: 100}
    assert found.stages_ms == {"batching": 6.0, "execution": 13.5}
    assert found.latency_ms["mean"] == 20.0
    with pytest.raises(FormatError, match="has toy"):
        read_measured(path, model="other")


def test_trace_gives_latencies_and_the_queue(tmp_path: Path) -> None:
    """Time stamps of one request may be in several entries, as Triton writes them."""
    entries = []
    for number in range(50):
        start = 10**7 * number
        entries.append({"id": number, "model_name": "toy", "timestamps": [{"name": "REQUEST_START", "ns": start}]})
        entries.append({"id": number, "timestamps": [{"name": "QUEUE_START", "ns": start + 1000}]})
        later = [("COMPUTE_START", 2_001_000), ("COMPUTE_END", 12_001_000), ("REQUEST_END", 12_500_000)]
        entries.append({"id": number, "timestamps": [{"name": name, "ns": start + ns} for name, ns in later]})
    found = read_measured(write(tmp_path, "trace.json", entries), model="toy")
    assert found.requests == 50
    assert found.latencies_ns is not None
    assert (found.latencies_ns == 12_500_000).all()
    assert found.stages_ms == {"batching": 2.0, "execution": 10.0}
    with pytest.raises(FormatError, match="no request of model other"):
        read_measured(write(tmp_path, "trace.json", entries), model="other")


def test_loadgen_summary_and_detail_say_the_same(tmp_path: Path) -> None:
    """Rate, mean and percentiles from either; an invalid run is said to be one."""
    lines = [
        ':::MLLOG {"key": "loadgen_version", "value": "6.0", "time_ms": 0.0, "namespace": "mlperf::logging"}',
        *(
            f':::MLLOG {{"key": "{key}", "value": {value}, "time_ms": 1.0, "namespace": "mlperf::logging"}}'
            for key, value in (
                ("result_validity", '"INVALID"'), ("result_completed_samples_per_sec", 198.62),
                ("result_mean_latency_ns", 27600000), ("result_50.00_percentile_latency_ns", 26500000),
                ("result_90.00_percentile_latency_ns", 33000000), ("result_95.00_percentile_latency_ns", 37000000),
                ("result_99.00_percentile_latency_ns", 44000000), ("result_99.90_percentile_latency_ns", 50500000),
            )
        ),
    ]  # fmt: skip
    summary = read_measured(write(tmp_path, "mlperf_log_summary.txt", SUMMARY))
    detail = read_measured(write(tmp_path, "mlperf_log_detail.txt", "\n".join(lines)))
    assert summary.throughput_rps == detail.throughput_rps == 198.62
    assert summary.latency_ms == detail.latency_ms
    assert summary.latency_ms["p99"] == 44.0
    assert summary.notes == ()
    assert "INVALID" in detail.notes[0]
    with pytest.raises(FormatError, match="did not end"):
        read_measured(write(tmp_path, "short.txt", lines[0]))
    with pytest.raises(FormatError, match=r":2: not a line"):
        read_measured(write(tmp_path, "cut.txt", f"{lines[0]}\n:::MLLOG {{"))


def test_several_files_make_one_run(tmp_path: Path) -> None:
    """The client's latencies, the server's batches; what two say, the first is taken for."""
    files = [
        read_measured(write(tmp_path, "out.csv", CSV), load=8),
        read_measured(write(tmp_path, "stats.json", STATISTICS), model="toy"),
    ]
    assert merged(files[::-1]).latency_ms == merged(files).latency_ms  # whatever their order
    summary = summary_of(merged(files[::-1]))
    assert summary["latency_ms"]["mean"]["value"] == 19.0
    assert summary["batch_size"]["mean"] == 4.5
    assert summary["batch_size"]["histogram"] == {"4": 100, "5": 100}
    stages = {name: entry["mean"] for name, entry in summary["stages_ms"].items()}
    assert stages["execution"] == 12.8
    assert sum(value for name, value in stages.items() if name != "total") == pytest.approx(stages["total"])


@pytest.mark.parametrize("content", ["", "hello", "{", '{"a": 1}', "[1, 2]", "a,b\n1,2\n"])
def test_other_files_are_refused_with_what_is_read(content: str, tmp_path: Path) -> None:
    """The message lists the kinds of files that would do."""
    with pytest.raises(FormatError, match=r"LoadGen detail log|not JSON"):
        read_measured(write(tmp_path, "file", content))


def test_missing_and_binary_files_are_said_to_be_so(tmp_path: Path) -> None:
    """No file, and bytes that are no text."""
    with pytest.raises(MissingFileError, match="no such file"):
        read_measured(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(FormatError, match="not a text file"):
        read_measured(tmp_path / "binary")
