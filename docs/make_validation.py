"""Measures every comparison of docs/validation.md, and writes that page from what was measured.

python docs/make_validation.py measure [NAME ...]   runs live servers, two and a half hours; one JSON file a case
python docs/make_validation.py write                makes docs/validation.md of the JSON files
python docs/make_validation.py check                exit code 1 and a list where a limit is missed
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from preba.batching.replay import play as play_batcher
from preba.batching.triton_config import TritonBatcher
from preba.cli.calibrating import calibrate
from preba.cli.disturbances import DRIFT_MAX_PERCENT, STOLEN_MAX_PERCENT, most_stolen, restless
from preba.cli.served import served
from preba.cli.validate import with_measured
from preba.cli.validating import Compared, ValidationPlan, live_and_simulated, measured_slices
from preba.foreign.perf_analyzer import export_records
from preba.foreign.read import read_measured
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.load import load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Overheads, Run
from preba.trace_table import PARTS
from preba.units import ns_from_ms
from runtime.gpu.onnx_file import write_convolutions
from runtime.load.run import Played, Target, live_result, play
from runtime.profiling import this_machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from perf_analyzer import analysed, prepared

BY_PERF_ANALYZER = "triton-3-closed-loop-perf-analyzer"
FOLDER = Path(__file__).parent / "validation"
PAGE = Path(__file__).parent / "validation.md"
GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "triton-golden.json"
RUN_S = 32.0
LONGER = {
    "triton-1-delay-0": 7, "triton-1-delay-5": 4, "triton-1-delay-20": 4, "triton-1-delay-50": 2,
    "triton-1-preferred": 4, "triton-1-onoff": 22, "triton-1-reject": 4, "triton-1-delay-action": 10,
    "triton-1-priorities": 24, "triton-1-bounded": 45, "triton-1-overloaded": 8,
    "triton-3-delay-0": 4, "triton-3-delay-5": 3, "triton-3-onoff": 8, "triton-3-reject": 8,
    "triton-3-delay-action": 4, "triton-3-priorities": 6, "triton-3-bounded": 4, "triton-3-closed-loop": 3,
    "triton-7-delay-0": 2, "triton-7-preferred": 3, "triton-7-onoff": 5, "triton-7-onoff-busy": 6,
    "envoy-7-busy": 3, "preba-image": 3, "preba-image-dali": 3, "preba-audio": 2,
    "onnx-on-cpu": 4,
}  # fmt: skip
"""How many times as long cases run whose intervals are wider than their limits in so short a time: lost wake-ups are
rare and cost half a second, bursts are few, closed loops drift in and out of step with themselves."""
TRIES = 3
"""Where the host of a virtual machine takes too much of it, or the machine is another one in the run than it was in the
rehearsal; the calmest counts, whatever its errors."""
SECTION_S = 15.0
"""Rehearsal and run take turns of about so long: over such times this machine's software keeps its speed."""
WAKEUP_US = 300
"""Of Triton's batcher thread, about what the cases below measure."""
TIE_US = 1000
"""Vectors have arrivals at the very end of a delay, which count as within it: delays are longer by so much, on both
sides, for ways to a real batcher vary by some tenths of a millisecond."""
SENDING_MS = 1.0
"""Between two requests of a vector that are due at the same time: no client sends them at once."""
RACE_PERMILLE = 300
"""Share of batch ends at which Triton's batcher is first, as the cases measure it."""
RACED = 30
"""Draws of the race at the ends of batches, which the model makes of each vector as well."""
TURNAROUND_MS = 2.0
"""From one batch of a few requests to the next beyond its 200 ms, likewise: and at the very end of a batch."""
TABLE = {"1": 20, "2": 22, "4": 26, "8": 34}
PROVENANCE = {"kind": "modelled", "source": "made up for validation: 18 ms a batch and 2 ms an item"}
PARTITIONS = {1: "1x7g.40gb", 3: "3x2g.10gb", 7: "7x1g.5gb"}
SIZES = {1: "7g", 3: "2g", 7: "1g"}


def tensor_case(slices: int, load: float, batcher: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A scenario of plain tensors at a share of what full batches carry."""
    capacity = slices * 8 / 0.034
    arrivals = {"kind": "poisson", "rate_rps": round(load * capacity, 1)}
    model = {
        "name": "emulated",
        "profile": {
            "name": "emulated", "model": "emulated", "modality": "tensor", "device": "A100-40GB", "precision": "fp16",
            "framework": "none", "provenance": PROVENANCE, "table": {SIZES[slices]: TABLE},
        },
        "sizes": {"kind": "constant", "tensor_kb": 1}, "batcher": batcher, "arrivals": arrivals,
        **fields.pop("model", {}),
    }  # fmt: skip
    requests = round(RUN_S * load * capacity)
    return {
        "preba": 1, "name": "", "seed": 5, "run": {"requests": requests},
        "gpus": [{"device": "A100-40GB", "partition": PARTITIONS[slices]}], "models": [model], **fields,
    }  # fmt: skip


def triton_case(slices: int, load: float, *, model: dict[str, Any] | None = None, **batcher: Any) -> dict[str, Any]:
    """One real Triton server with so many instances that batches for itself."""
    policy = {"kind": "triton", "max_batch_size": 8, **batcher}
    return tensor_case(
        slices, load, policy, server={"topology": "central"}, live={"batching": "triton"}, model=model or {}
    )


def delay(ms: float) -> dict[str, int]:
    """A queue delay of Triton's."""
    return {"max_queue_delay_us": round(1000 * ms)}


def on_off(rate_on_rps: float) -> dict[str, Any]:
    """Traffic that comes in bursts of a tenth of a second, and pauses between."""
    return {"arrivals": {"kind": "onoff", "rate_on_rps": rate_on_rps, "mean_on_s": 0.1, "mean_off_s": 0.075}}


def behind_envoy(load: float) -> dict[str, Any]:
    """Seven servers of one instance, in turns."""
    return tensor_case(
        7, load, {"kind": "triton", "max_batch_size": 8, **delay(5)},
        server={"topology": "per_slice", "balancer": "round_robin"},
    )  # fmt: skip


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name to (group, scenario)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for slices in (1, 3, 7):
        for wait in (0, 5, 20, 50):
            found[f"triton-{slices}-delay-{wait}"] = (
                "triton",
                triton_case(slices, 0.6 if wait == 0 else 0.5, **delay(wait)),
            )
    found["triton-1-preferred"] = ("triton", triton_case(1, 0.5, preferred_batch_size=[4], **delay(20)))
    found["triton-3-preferred"] = ("triton", triton_case(3, 0.5, preferred_batch_size=[4, 8], **delay(20)))
    found["triton-7-preferred"] = ("triton", triton_case(7, 0.5, preferred_batch_size=[4, 8], **delay(20)))
    reject = {"timeout_action": "REJECT", "default_timeout_us": 60_000}
    postpone = {"timeout_action": "DELAY", "default_timeout_us": 30_000}
    levels = {"priority_levels": 2, "default_priority_level": 2}
    shares = {"priority_shares": {1: 0.3, 2: 0.7}}
    for slices in (1, 3):
        load, most = (0.7, 16) if slices == 1 else (1.2, 8 * slices)
        bound = {"max_queue_size": most}
        found[f"triton-{slices}-bounded"] = ("triton", triton_case(slices, load, default_queue_policy=bound))
        found[f"triton-{slices}-reject"] = ("triton", triton_case(slices, 1.1, default_queue_policy=reject))
        found[f"triton-{slices}-delay-action"] = ("triton", triton_case(slices, 0.6, default_queue_policy=postpone))
        found[f"triton-{slices}-priorities"] = ("triton", triton_case(slices, 0.7, model=shares, **levels))
    overloaded = triton_case(1, 1.2, default_queue_policy={"max_queue_size": 8})
    found["triton-1-overloaded"] = ("triton", overloaded)
    for slices, rate_on_rps in ((1, 200.0), (3, 600.0), (7, 1000.0)):
        found[f"triton-{slices}-onoff"] = ("triton", triton_case(slices, 0.5, model=on_off(rate_on_rps), **delay(5)))
    # What slices take between their batches on two cores leaves bursts no room: all that is slow is in the tail.
    found["triton-7-onoff-busy"] = ("triton", triton_case(7, 0.5, model=on_off(1200.0), **delay(5)))
    found["envoy-7-round-robin"] = ("triton", behind_envoy(0.5))
    # With its slices busy 93 % of the time, which shows what a machine's drift from minute to minute makes of them.
    found["envoy-7-busy"] = ("triton", behind_envoy(0.7))
    loop = {"arrivals": {"kind": "closed_loop", "outstanding": 24}}
    found["triton-3-closed-loop"] = ("triton", triton_case(3, 0.7, model=loop))
    fixed = tensor_case(7, 0.15, {"kind": "fixed", "batch_max": 8, "timeout_ms": 15})
    found["front-end-fixed"] = ("pipeline", fixed)
    found["preba-image"] = ("pipeline", preba_image("cpu"))
    found["preba-image-dali"] = ("pipeline", preba_image("dali_cpu"))
    found["preba-audio"] = ("pipeline", preba_audio())
    found["onnx-on-cpu"] = ("pipeline", onnx_on_cpu())
    for name, factor in LONGER.items():
        found[name][1]["run"]["requests"] *= factor
    return found


def preba_image(backend: str) -> dict[str, Any]:
    """JPEGs, a core for preprocessing alone, PREBA's batcher, seven emulated slices."""
    data = tensor_case(7, 0.03, {"kind": "preba"})
    data["run"]["requests"] *= 2
    model = data["models"][0]
    model["profile"] |= {"modality": "image"}
    model["sizes"] = {"kind": "jpeg", "dataset": "imagenet"}
    data["preprocessing"] = {"kind": "cpu", "cores": 1, "usable_fraction": 1.0, "cost": "cpu-opencv-epyc"}
    data["live"] = {"preprocessing": {"backend": backend, "workers": 1, "pin": True}}
    data["validation"] = {"p99_percent": 8.0}
    return data


def preba_audio() -> dict[str, Any]:
    """Speech of LibriSpeech's lengths, a core for preprocessing alone, PREBA's batcher in 2.5 s buckets."""
    data = tensor_case(7, 0.015, {"kind": "preba"})
    data["run"]["requests"] *= 4
    model = data["models"][0]
    lengths = [0.1, *(2.5 * k for k in range(1, 15))]
    model["profile"] |= {
        "modality": "audio",
        "table": None,
        "table_by_length_s": {"1g": {s: {b: round(18 + 0.4 * s * b, 2) for b in (1, 2, 4, 8)} for s in lengths}},
    }
    model["sizes"] = {"kind": "librispeech", "subset": "test-clean"}
    data["preprocessing"] = {"kind": "cpu", "cores": 1, "usable_fraction": 1.0, "cost": "cpu-opencv-epyc"}
    data["live"] = {"preprocessing": {"backend": "cpu", "workers": 1, "pin": True}}
    data["validation"] = {"p99_percent": 8.0}
    return data


def onnx_on_cpu() -> dict[str, Any]:
    """JPEGs through a real convolutional network under ONNX Runtime on one pinned core."""
    data = tensor_case(1, 0.05, {"kind": "fixed", "batch_max": 4, "timeout_ms": 20})
    data["run"] = {"requests": 700}
    model = data["models"][0]
    model["profile"] |= {"modality": "image"}
    model["sizes"] = {"kind": "jpeg", "dataset": "imagenet"}
    data["preprocessing"] = {"kind": "cpu", "cores": 1, "usable_fraction": 1.0, "cost": "cpu-opencv-epyc"}
    network = Path(tempfile.gettempdir()) / "preba-validation-network.onnx"
    data["live"] = {
        "slices": {"kind": "cpu", "onnx": str(network)},
        "preprocessing": {"backend": "cpu", "workers": 1, "place": "workers"},
    }
    data["validation"] = {"p99_percent": 8.0}
    return data


def load(name: str, data: dict[str, Any]) -> ResolvedScenario:
    """Validates a scenario as if a user had written it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**data, "name": name}), encoding="utf-8")
        return resolve(load_scenario(path), folder=path.parent)


def measure(names: list[str]) -> None:
    """Runs cases and writes what came of each."""
    FOLDER.mkdir(exist_ok=True)
    every = cases()
    write_convolutions(Path(every["onnx-on-cpu"][1]["live"]["slices"]["onnx"]))
    for name in names or [*every, BY_PERF_ANALYZER, "golden"]:
        print(name, flush=True)
        if name == BY_PERF_ANALYZER:
            write(name, by_perf_analyzer(every["triton-3-closed-loop"][1]))
            continue
        if name == "golden":
            write(name, {"vectors": golden(), **facts()})
            continue
        group, data = every[name]
        resolved = load(name, data)
        plan = ValidationPlan(fresh=3, repeats=10 if name == "preba-audio" else 30, sections=sections_for(resolved))
        tries: list[Compared] = []
        for _ in range(TRIES):
            tries.append(live_and_simulated(resolved, plan, lambda _: None))
            if restless(tries[-1].stolen_percent, tries[-1].drift) <= 1:
                break
        compared = min(tries, key=lambda each: restless(each.stolen_percent, each.drift))
        found = compared.found.as_json()
        write(
            name,
            {
                "group": group, **facts(),
                "requests": len(compared.played.result.records), "sections": plan.sections,
                "notes": list(compared.notes),
                "quirks": quirks_of(compared.calibrated),
                "overheads": overheads_of(compared.calibrated.scenario.server.overheads),
                "stolen_percent": compared.stolen_percent, "drift": compared.drift and asdict(compared.drift), **found,
            },
        )  # fmt: skip
        for row in compared.found.rows:
            print(f"  {row.metric:14} {_text(row.error_percent)} {row.verdict}", flush=True)


def sections_for(resolved: ResolvedScenario) -> int:
    """In how many turns a case and its rehearsal are played; closed loops in one piece."""
    rate_rps = sum(model.config.arrivals.mean_rate_rps() or 0.0 for model in resolved.models)
    seconds = (resolved.scenario.run.requests or 0) / rate_rps if rate_rps else 0.0
    return max(round(seconds / SECTION_S), 1)


def by_perf_analyzer(data: dict[str, Any]) -> dict[str, Any]:
    """The closed loop driven by NVIDIA's own client, beside the simulation of it.

    The ways to and from that client are its own: one request at a time and the rehearsal are its runs too, read from
    its profile exports, which hold what the emulated slices say of each request's batch.
    """
    resolved = load(BY_PERF_ANALYZER, data)
    profiles, busy = measured_slices(resolved, ValidationPlan(), lambda _: None)
    clients = int(data["models"][0]["arrivals"]["outstanding"])
    with tempfile.TemporaryDirectory() as name, served(resolved) as url:
        folder = Path(name)
        program = prepared(folder)
        if program is None:
            sys.exit("perf_analyzer is not unpacked in this environment (`make test` does it)")
        common = ("-m", "emulated", "-u", url, "--percentile", "99", "--max-threads", str(clients))
        runs: list[tuple[Path, Path]] = []
        for place, (level, seconds) in enumerate(((1, 6), (clients, 90), (clients, 96))):
            table, export = folder / f"{place}.csv", folder / f"{place}.json"
            window = ("--measurement-interval", str(1000 * seconds // 3), "--stability-percentage", "999")
            analysed(
                program, *common, *window, "--concurrency-range", str(level), "-f", str(table),
                "--profile-export-file", str(export), timeout_s=2 * seconds + 60,
            )  # fmt: skip
            runs.append((table, export))
        clock_ns = time.time_ns() - time.monotonic_ns()
        idle, rehearsed = (exported(resolved, *files, clock_ns) for files in runs[:2])
        calibration = calibrate(resolved, profiles, idle, rehearsed, busy)
        theirs = resolve(calibration.scenario, folder=resolved.folder)
        found, notes = with_measured(theirs, runs[2], 5)
        requests = read_measured(runs[2][1]).requests
    return {
        "group": "triton", **facts(), "requests": requests,
        "notes": [*calibration.notes, *(note.replace(name, "") for note in notes)], "quirks": quirks_of(theirs),
        "overheads": overheads_of(theirs.scenario.server.overheads), **found.as_json(),
    }  # fmt: skip


def facts() -> dict[str, str]:
    """Where and when."""
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    return {"where": this_machine(), "python": platform.python_version(), "date": today}


def exported(resolved: ResolvedScenario, table: Path, export: Path, clock_ns: int) -> Played:
    """A run of perf_analyzer's in the place of one of our own."""
    said = json.loads(export.read_text(encoding="utf-8"))
    records = export_records(said, origin=str(export), clock_ns=clock_ns)
    scenario = resolved.scenario.model_copy(update={"run": Run(requests=len(records), warmup_requests=0)})
    with table.open(encoding="utf-8", newline="") as file:
        queue_us = float(next(csv.DictReader(file))["Server Queue"])
    trace = draw_scenario_trace(resolve(scenario, folder=resolved.folder))
    return Played(live_result(resolved, records), trace, {}, (), (), queue_us)


def overheads_of(overheads: Overheads) -> dict[str, Any]:
    """Overheads in microseconds, and the coefficient of variation of what varies."""
    found = {name: value for name, value in overheads.model_dump().items() if isinstance(value, float)}
    varies = {
        name: round(jitter.factor_cv(), 3) for name in PARTS["overhead_factor"]
        if (jitter := getattr(overheads, f"{name}_jitter")) is not None
    }  # fmt: skip
    if overheads.slowness is not None:
        common = {"slowness": overheads.slowness.factor_cv(), "preprocessing": overheads.slowness.preprocessing_cv()}
        varies |= {name: round(cv, 3) for name, cv in common.items() if cv > 0}
    return {**found, "varies": varies}


def quirks_of(resolved: ResolvedScenario) -> dict[str, Any]:
    """How Triton's threads were found to behave."""
    batcher = resolved.models[0].config.batcher
    return batcher.quirks.model_dump() if isinstance(batcher, TritonBatcher) else {}


def write(name: str, data: dict[str, Any]) -> None:
    """One file, numbers cut to six digits."""
    (FOLDER / f"{name}.json").write_text(json.dumps(_short(data), indent=1) + "\n", encoding="utf-8")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list | tuple) else value


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f} %"


# golden vectors


def golden() -> list[dict[str, Any]]:
    """Plays the recorded vectors to a real server again, and to the model: batches in order, sizes and starts."""
    found = []
    for name, vector in json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"].items():
        policy = policy_of(vector)
        times: list[float] = []
        for each in vector["arrivals_ms"]:
            times.append(max(float(each), times[-1] + SENDING_MS if times else 0.0))
        model = model_batches(policy, vector, times)
        raced = [sizes_of(model_batches(policy, vector, times, seed)) for seed in range(1, RACED + 1)]
        others = [list(each) for each in sorted({tuple(one) for one in raced} - {tuple(sizes_of(model))})]
        runs = [real_batches(name, policy, vector, times) for _ in range(3)]
        found.append({"name": name, "batching": vector["batching"], "model": model, "raced": others, "real": runs})
        same = sum(sizes_of(run) == sizes_of(model) for run in runs)
        like = sum(sizes_of(run) in others for run in runs)
        print(f"  {name}: {same} of {len(runs)} runs have the model's batches, {like} those of a race", flush=True)
    return found


def sizes_of(batches: list[Any]) -> list[int]:
    """Units of each batch."""
    return [int(size) for _, size in batches]


def policy_of(vector: dict[str, Any]) -> TritonBatcher:
    """The batcher a vector's text configures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.pbtxt"
        path.write_text(f"name: 'v'\nmax_batch_size: {vector['max_batch']}\n{vector['batching']}\n", encoding="utf-8")
        policy = TritonBatcher.model_validate({"kind": "triton", "config_pbtxt": str(path)})
    delay_us = policy.max_queue_delay_us
    return policy.model_copy(update={"max_queue_delay_us": delay_us + TIE_US}) if delay_us else policy


def model_batches(
    policy: TritonBatcher, vector: dict[str, Any], times: list[float], race: int = 0
) -> list[tuple[float, int]]:
    """(start ms, units) of every batch, by the batcher alone; ``race`` draws who is first at the ends of batches."""
    first = {"batcher_first_permille": RACE_PERMILLE if race else 0, "batcher_first_seed": race}
    policy = policy.with_quirks(**first, batcher_wakeup_us=WAKEUP_US)
    state = policy.to_settings().make_state(consumers=vector["instances"], capacity=len(times))
    for request in range(len(times)):
        state.request_units[request] = vector["units_per_request"]
    played = play_batcher(state, [ns_from_ms(at) for at in times], ns_from_ms(200.0 + TURNAROUND_MS))
    return [(batch.start_ns / 1e6, batch.units) for batch in played.batches]


def real_batches(
    name: str, policy: TritonBatcher, vector: dict[str, Any], times: list[float]
) -> list[tuple[float, int]]:
    """(start ms, units) of every batch, by a real server that sleeps 200 ms a batch."""
    slices = vector["instances"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "times.csv"
        last = times[-1] + 100_000
        file.write_text("ms\n" + "\n".join(str(at) for at in [*times, last]) + "\n", encoding="utf-8")
        partition = {1: "1x7g.40gb", 2: "2x3g.20gb"}[slices]
        data = triton_case(1, 0.1)
        data |= {"gpus": [{"device": "A100-40GB", "partition": partition}], "run": {"requests": len(times)}}
        model = data["models"][0]
        model["profile"]["table"] = {"7g" if slices == 1 else "3g": {"1": 200, "8": 200}}
        model["batcher"] = json.loads(policy.model_dump_json())
        model["batch_units"] = vector["units_per_request"]
        model["arrivals"] = {"kind": "replay", "file": str(file), "format": "csv", "column": "ms", "unit": "ms"}
        resolved = load(f"golden-{name}", data)
        with served(resolved) as url:
            played = play(resolved, Target(url), warmup_requests=3)
    records = played.result.records
    batches: dict[int, list[float]] = {}
    for row in range(len(records)):
        entry = batches.setdefault(int(records.batch_id[row]), [records.execution_start_ns[row] / 1e6, 0])
        entry[1] += vector["units_per_request"]
    return sorted((round(start, 2), int(units)) for start, units in batches.values())


def check() -> None:
    """Ends with exit code 1 where a figure is beyond its limit or a golden vector came out otherwise in every run."""
    wrong = []
    for path in sorted(FOLDER.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        judged = [(row["metric"], row["error_percent"], row["verdict"]) for row in data.get("rows", ())]
        judged += [(row["label"], row["of_latency_percent"], row["verdict"]) for row in data.get("judged_stages", ())]
        wrong += [f"{path.stem}: {what} {_text(error)}" for what, error, verdict in judged if verdict == "missed"]
        for vector in data.get("vectors", ()):
            allowed = [sizes_of(vector["model"]), *vector["raced"]]
            if all(sizes_of(run) not in allowed for run in vector["real"]):
                wrong.append(f"{path.stem}: vector {vector['name']}")
    if wrong:
        sys.exit("\n".join(wrong))


# the page


TITLES = {
    "triton": "Triton's own batcher, on a real server",
    "pipeline": "The front end, preprocessing and PREBA's batcher",
}
METRICS = ("throughput", "mean batch", "latency mean", "latency p50", "latency p90", "latency p95", "latency p99")
INTRODUCTION = """# How true the simulator is

Written by `python docs/make_validation.py write` from the runs in [validation/](validation); no number is typed in.
`python docs/make_validation.py measure` repeats them (three hours on two cores, no GPU), `preba validate` does
one scenario of your own.

Each case runs a live server whose slices are real Triton processes that sleep 18 ms a batch and 2 ms an item (audio:
18 ms and 0.4 ms for each second of the batch; `onnx-on-cpu` computes a real network). What the simulation needs is
measured in runs of their own ([validate.md](validate.md)): profiles, preprocessing, the ways to and from the batcher,
what passes between two batches of a slice, how Triton's threads behave. Then the case's trace is played and the very
same trace is simulated, five times with draws of what varies inside the server. An error is simulated minus measured,
in percent of the measured value; in brackets half its 95 % interval, from leaving out each twentieth of the requests
in turn: both runs had the same arrivals, so that what those happened to be is in both (of perf_analyzer's run half
the interval of the measured figure). Rehearsal and run of cases with so many *turns* were cut into as many pieces and
took turns, about {section:g} s of the run each; a rehearsal has 120 s at most. *Hindsight*, where it is known, has
the errors of a simulation with what was measured in the compared run itself: an error that is gone there came of a
rehearsal that differed from the run. Where it was measured, it also says how much slower the machine's software was
in the run, from the ends of batches to their first answers. A case is repeated up to twice where that is more than
{drift:g} % for certain, or where the host of this virtual machine took more than {stolen:g} % of it; the calmest run
counts, whatever its errors. Cases with an interval wider than its limit were run again, longer, and the longer run
counts where it was calm. What a run measured of itself is known less well than its error: arrivals that are random do
not come at the same rate in another run.

Loads are 50 to 60 % of what full batches carry, 70 % with priorities, with a bounded queue of one instance, in closed
loops and in `envoy-7-busy`, 110 % where requests are refused for their age, 120 % in `triton-3-bounded` and
`triton-1-overloaded`. Bursts have 85 % with one and three instances, 61 % with seven and 73 % in `triton-7-onoff-busy`,
where this machine needs 4 to 7 ms from batch to batch and the batches of bursts are not all full: no room is left.
PREBA's pipelines have 1.5 to 3 %: one core preprocesses no more.
"""
CLOSING = """## What is modelled and what is not

| | |
|---|---|
| batching, queueing, priorities, time-outs, balancing | exactly: the same batcher, or Triton's, checked here |
| execution | the measured profile, scaled to what it takes under the load, and how it varies there |
| overheads | where they happen, lines in the batch's size and their spread, under the load |
| what overheads have in common | the answers of a batch; times at which all software is slow, as in the rehearsal |
| preprocessing | its cost by size, how it varies, and times at which it is slow, as in the rehearsal |
| Triton's threads | a wake-up time, a share of races and what they cost, measured under the load |
| contention for this machine's two cores | in those means; in PREBA's pipelines preprocessing has a core pinned away |
| contention that holds up several requests at once | as far as windows of 20 ms show it, not their queueing |
| software's queue for cores that are 60 % busy and more | not: `triton-7-onoff-busy` shows what it costs |
| how fast the machine itself is | as in the rehearsal; how much slower its software was in the run is in *hindsight* |
| the load generator's own lag | its mean, in the way to the batcher; it is a column of the measured records |
| GPU: memory bandwidth, clocks, PCIe | not measured yet: no GPU was at hand |
"""


def write_page() -> None:
    """Writes docs/validation.md."""
    every = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
    wanted = [*cases(), BY_PERF_ANALYZER]
    missing = [name for name in [*wanted, "golden"] if name not in every]
    if missing:
        sys.exit(f"not measured yet: {', '.join(missing)}")
    lines = [INTRODUCTION.format(drift=DRIFT_MAX_PERCENT, stolen=STOLEN_MAX_PERCENT, section=SECTION_S)]
    for group, title in TITLES.items():
        mine = {name: every[name] for name in wanted if name in every and every[name].get("group") == group}
        if mine:
            lines += [f"## {title}\n", *_table(mine), "", LEGEND, *_wide(mine), *_unexplained(mine), ""]
    if "golden" in every:
        lines += _golden_lines(every["golden"]["vectors"])
    dates = sorted({data["date"] for data in every.values()})
    where: dict[str, list[str]] = {}
    for name, data in every.items():
        where.setdefault(data["where"], []).append(name)
    *fewer, (most, _) = sorted(where.items(), key=lambda each: len(each[1]))
    machines = [f"{machine} ({', '.join(names)})" for machine, names in fewer]
    machines.append(f"{most} (all others)" if fewer else most)
    lines += [CLOSING, f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))} on {'; '.join(machines)}."]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _table(every: dict[str, Any]) -> list[str]:
    lines = ["| case | requests | " + " | ".join(METRICS) + " |", "|---|---|" + "---|" * len(METRICS)]
    for name, data in every.items():
        rows = {row["metric"]: row for row in data["rows"]}
        lines.append(
            f"| {name} | {_count(data['requests'])} | " + " | ".join(_cell(rows[one]) for one in METRICS) + " |"
        )
    return lines


def _wide(every: dict[str, Any]) -> list[str]:
    """Which errors are known less well than their limit is wide."""
    found = [
        f"`{name}` ({', '.join(metrics)})"
        for name, data in every.items()
        if (metrics := [
            str(row["metric"]).removeprefix("latency ")
            for row in data["rows"]
            if row["metric"] in METRICS and (_half(row) or 0.0) > (row["limit_percent"] or math.inf)
        ])
    ]  # fmt: skip
    return [f"Intervals are wider than the limit in {'; '.join(found)}.\n"] if found else []


def _count(requests: int | None) -> str:
    return "–" if requests is None else f"{requests:,}"


def _cell(row: dict[str, Any]) -> str:
    if row["error_percent"] is None:
        return "–"
    half = _half(row)
    around = "" if half is None else f" (±{half:.1f})"
    text = f"{row['error_percent']:+.1f}{around}"
    return {"missed": f"**{text}**", "unsure": f"_{text}_"}.get(row["verdict"], text)


def _half(row: dict[str, Any]) -> float | None:
    """Half the interval of an error, in percent; of the measured figure where that of the error is not known."""
    half, interval = row.get("error_half_percent"), row["measured_ci95"]
    if half is None and interval is not None and row["measured"]:
        half = 50 * (interval[1] - interval[0]) / row["measured"]
    return None if half is None else float(half)


def _unexplained(every: dict[str, Any]) -> list[str]:
    heads = (
        "case", "unexplained ms", "stages, % of the mean latency", "batches of another size",
        "in a batch of the same size", "hindsight", "us, batches of b (coefficient of variation)",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, data in every.items():
        same = data["per_request"] or {}
        over = data["overheads"]
        stages = [
            f"{'**' if row['verdict'] == 'missed' else ''}{SHORT[row['label']]} {row['of_latency_percent']:+.1f}"
            f"{'**' if row['verdict'] == 'missed' else ''}"
            for row in data["judged_stages"]
        ]
        apart = next((row for row in data["rows"] if row["metric"] == "batch sizes apart"), None)
        lines.append(
            f"| {name} | {data['unexplained_ms']:+.2f} | {', '.join(stages) or '–'} | "
            f"{'–' if apart is None else _cell(apart) + ' %'} | "
            f"{same.get('same_batch_percent', 0):.0f} % of requests | {_hindsight(data)} | "
            f"{over.get('ingress_us', 0.0) + over['frontend_us']:.0f}{_cv(over, 'frontend')} "
            f"before, {over['response_us']:.0f} + {over['response_request_us']:.0f} b{_cv(over, 'response')} after"
            f"{_next(over)}, "
            f"{over['turnaround_us']:.0f} + {over['turnaround_request_us']:.0f} b{_cv(over, 'turnaround')} between"
            f"{_common(over)}"
            f"{_front_end(over)}"
            f"{_threads(data)} |"
        )
    return lines


LEGEND = """In bold: beyond the limit (1, 2, 2, 2, 3, 3, 5 %; p99 of pipelines 8 %) and further than its interval. In
italics: beyond the limit, within its interval of it: neither proven nor disproven.
"""
SHORT = {
    "preprocessing and its line": "preprocessing", "the way to the batcher": "way", "batching": "batching",
    "waiting for a slice": "slice", "the way to the slice, batching": "to the slice", "on the slice": "execution",
    "response": "response",
}  # fmt: skip
"""What the page calls stages that are judged together."""


def _hindsight(data: dict[str, Any]) -> str:
    """The errors of mean and tail with what the run itself said, what disturbed it, and how far its machine drifted."""
    errors = {row["metric"]: row.get("hindsight_error_percent") for row in data["rows"]}
    found = {name: errors[f"latency {name}"] for name in ("mean", "p99")}
    said = [f"{name} {error:+.1f} %" for name, error in found.items() if error is not None]
    took = most_stolen(data.get("stolen_percent", ()))
    if took > STOLEN_MAX_PERCENT:
        said.append(f"the host took {took:.1f} %")
    if (sections := data.get("sections", 1)) > 1:
        said.append(f"{sections} turns")
    if (drift := data.get("drift")) is not None:
        said.append(f"software {drift['percent']:+.0f} % (±{drift['half_percent']:.0f})")
    return ", ".join(said) or "–"


def _cv(overheads: dict[str, Any], part: str) -> str:
    found = overheads.get("varies", {}).get(part)
    return "" if found is None else f" ({found:.1f})"


def _common(overheads: dict[str, Any]) -> str:
    """How far all of them are slow together, and how far preprocessing is."""
    varies = overheads.get("varies", {})
    said = {"slowness": "all together", "preprocessing": "preprocessing together"}
    return "".join(f"; {text} ({varies[name]:.1f})" for name, text in said.items() if name in varies)


def _next(overheads: dict[str, Any]) -> str:
    """How far apart the answers of a batch are."""
    between_us = overheads.get("response_next_us", 0.0)
    return f", each next {between_us:.0f}{_cv(overheads, 'response_next')}" if between_us else ""


def _front_end(overheads: dict[str, Any]) -> str:
    """What only preba's own front end shows."""
    if not overheads.get("dispatch_us"):
        return ""
    return f"; {overheads['dispatch_us']:.0f} to the slice; timer {overheads['timer_us']:.0f} late"


def _threads(data: dict[str, Any]) -> str:
    quirks = data.get("quirks", {})
    text = f"; wake-up {quirks['batcher_wakeup_us']}" if quirks.get("batcher_wakeup_us") else ""
    share = quirks.get("batcher_first_permille")
    if share is None:
        return text
    late_us = quirks.get("batcher_first_late_us")
    return f"{text}; batcher first {share / 10:g} %" + (f", threads then back {late_us} late" if late_us else "")


GOLDEN_TEXT = """Arrivals at fixed times (a millisecond apart where the vector has them at once), 200 ms a batch, three
runs each on a real server. Vectors have arrivals at the very end of a delay, which count as within it: delays are a
millisecond longer than written, on both sides, for ways to a real batcher vary by tenths of one. Batches in order, by
their units. "After a race": equal to what the model makes of the vector when the batcher is first at some ends of
batches."""


def _golden_lines(vectors: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Vectors of Triton's batcher",
        "",
        GOLDEN_TEXT,
        "",
        "| vector | configuration | the model's batches | a real server's | equal |",
        "|---|---|---|---|---|",
    ]
    for vector in vectors:
        model, runs = sizes_of(vector["model"]), [sizes_of(run) for run in vector["real"]]
        shown = sorted({", ".join(map(str, run)) for run in runs})
        text = vector["batching"].replace("dynamic_batching", "").strip(" {}") or "defaults"
        equal, like = sum(run == model for run in runs), sum(run in vector["raced"] for run in runs)
        verdict = f"{equal} of {len(runs)}" + (f", {like} after a race" if like else "")
        cells = (vector["name"], text, ", ".join(map(str, model)), "; or ".join(shown), verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
    elif sys.argv[1:2] == ["write"]:
        write_page()
    elif sys.argv[1:2] == ["check"]:
        check()
    else:
        sys.exit(__doc__)
