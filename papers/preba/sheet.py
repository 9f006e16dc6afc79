"""The comparison itself: results of experiments.py against facts of numbers.csv, one row per fact. Pure functions."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import experiments as ex
import make_profiles
import rig
from facts import Fact
from rig import Point

from preba.knee import knee
from preba.profile import load_profile
from preba.units import ms_from_ns, ns_from_s

PROFILE = "profile"
"""The latency profiles were derived from the fact (make_profiles.py)."""
FITTED = "fitted"
"""fit.py minimised the deviation from the fact; several facts share few parameters."""
EXACT = "met"
"""A parameter of its own was solved for the fact in fit.py."""
INPUT = "input"
"""The fact is an input of the model."""
CHOSEN = "chosen"
"""An assumed figure (a price) was picked so that this comes out roughly."""
PREDICTED = "predicted"
"""Nothing was chosen with the fact in view."""

STATUSES = {
    PROFILE: "the latency profiles were derived from it",
    FITTED: "fit.py minimised the deviation; several facts share few parameters",
    EXACT: "fit.py solved one parameter for it",
    INPUT: "an input of the model",
    CHOSEN: "assumed prices were picked with it in view",
    PREDICTED: "nothing was chosen with it in view",
}

LOWER_BOUNDS = ("ideal_share",)
"""Facts that say "more than"."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One fact beside our value.

    Attributes
    ----------
    item : str
        Group it is shown in.
    fact : Fact
    ours : float or str
        A number where the fact is one.
    status : str
        A key of ``STATUSES``.
    note : str
    half_width : float or None
        Of the 95 % interval, where one is known.
    """

    item: str
    fact: Fact
    ours: float | str
    status: str
    note: str = ""
    half_width: float | None = None

    @property
    def off(self) -> float | None:
        """Ours minus the paper's, in its unit; None where the fact is no number."""
        return self.ours - self.fact.value if isinstance(self.ours, float) else None


@dataclass(frozen=True)
class Results:
    """Everything that was simulated.

    Attributes
    ----------
    rates : mapping of Point to float
        Saturated throughput.
    runs : mapping of str to summary
    one_bucket : mapping of model to int
        Requests whose answer times differ.
    greedy : list of dict
    """

    rates: Mapping[Point, float]
    runs: Mapping[str, Json]
    one_bucket: Mapping[str, int]
    greedy: list[Json]

    def rate(self, model: str, design: str, where: str = rig.SMALL) -> float:
        """Saturated throughput of a design point as it stands."""
        return self.rates[Point(model, design, where)]

    def tail_ms(self, model: str, design: str, load: float) -> tuple[float, float]:
        """p95 at a share of Base's throughput, and the half-width of its interval."""
        return _with_half(self.runs[f"tail/{model}/{design}/{load:g}"]["latency_ms"]["p95"])

    def share(self, model: str, load: float) -> float:
        """Preprocessing share of Base's mean latency, waiting included, in per cent."""
        stages = self.runs[f"tail/{model}/base/{load:g}"]["stages_ms"]
        before = stages["preprocess_wait"]["mean"] + stages["preprocess_service"]["mean"]
        return float(100 * before / stages["total"]["mean"])


def _with_half(figure: Json) -> tuple[float, float]:
    low, high = figure["ci95"] or (math.nan, math.nan)
    return float(figure["value"]), (high - low) / 2


def mean_over(models: Iterable[str], of: Callable[[str], float]) -> float:
    """Arithmetic mean over models, as the paper's averages are taken to be."""
    return statistics.mean(of(model) for model in models)


def rows(results: Results, facts: Mapping[str, Fact]) -> list[Row]:
    """Every reproducible fact beside ours, in the order of the target sheet."""
    return [
        *_knees(results, facts),
        *_time_knee(facts),
        *_cpu(results, facts),
        *_dpu(results, facts),
        *_ablation(results, facts),
        *_power(results, facts),
        *_policy(results, facts),
    ]


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _knees(results: Results, facts: Mapping[str, Fact]) -> list[Row]:
    item = "1. Batch_knee and slices"
    names = {"mobilenet": "mobilenet-v3-small", "squeezenet": "squeezenet1.1", "swin": "swin"}
    found: list[Row] = []
    batches: dict[str, dict[str, int]] = {"1g": {}, "7g": {}}
    for key, by_model in batches.items():
        for short, model in names.items():
            by_model[model] = knee(load_profile(rig.profile_name(model)), key).batch
            found.append(Row(item, facts[f"knee_{key}_{short}"], float(by_model[model]), PROFILE))
    ratio = mean_over(rig.VISION, lambda m: batches["7g"][m] / batches["1g"][m])
    found.append(Row(item, facts["knee_ratio"], ratio, PROFILE))
    wins = [m for m in rig.MODELS if results.rate(m, "ideal") > results.rate(m, "ideal", rig.LARGE)]
    note = f"{len(wins)} of {len(rig.MODELS)} models, saturated"
    found.append(Row(item, facts["small_slices_win"], _yes(len(wins) == len(rig.MODELS)), PROFILE, note))
    three = rig.resolved(Point("swin", "ideal", "3x2g.10gb"))
    used = sum(unit.gpcs for unit in three.slices)
    lost = 100 * (1 - used / max(device.compute_slices for device in three.gpu_devices))
    found.append(Row(item, facts["ceiling_2g"], lost, PREDICTED, "from the device's geometry"))
    shorter = [
        m
        for m in rig.MODELS
        if results.runs[f"batching/{m}/{rig.SMALL}"]["stages_ms"]["batching"]["mean"]
        < results.runs[f"batching/{m}/{rig.LARGE}"]["stages_ms"]["batching"]["mean"]
    ]
    note = f"{len(shorter)} of {len(rig.MODELS)} models, at 70 % of the slower geometry"
    found.append(Row(item, facts["batching_time_small"], _yes(len(shorter) == len(rig.MODELS)), PREDICTED, note))
    return found


def _time_knee(facts: Mapping[str, Fact]) -> list[Row]:
    item = "2. Time_knee of audio"
    times: list[float] = []
    falls = True
    for model in rig.AUDIO:
        profile = load_profile(rig.profile_name(model))
        found = [knee(profile, "1g", ns_from_s(length)) for length in make_profiles.PROBED_LENGTHS_S]
        times += [ms_from_ns(each.latency_ns) for each in found]
        falls &= all(a.batch > b.batch for a, b in itertools.pairwise(found))
    slices = facts["slices_1g"].value
    note = f"{min(times):.1f} to {max(times):.1f} ms over 5, 15 and 25 s"
    mean = statistics.mean(times)
    return [
        Row(item, facts["time_knee_audio"], mean, PROFILE, note),
        Row(item, facts["knee_falls"], _yes(falls), PROFILE),
        Row(item, facts["time_queue"], mean / slices, PROFILE),
    ]


def _cpu(results: Results, facts: Mapping[str, Fact]) -> list[Row]:
    item = "3. Preprocessing on 32 CPU cores"

    def loss3(model: str) -> float:
        base, ideal = (results.rates[ex.characterised_point(model, d)] for d in ("base", "ideal"))
        return 100 * (1 - base / ideal)

    short = results.rates[ex.characterised_point("citrinet", "ideal")]
    per_core = results.rates[ex.characterised_point("citrinet", "base")] / facts["cpu_cores"].value
    plateau = [
        100 * run["utilization"]["preprocessing"]["cpu"] * results.rate(m, "base") / run["throughput_rps"]["value"]
        for m in rig.MODELS
        for run in [results.runs[f"power/{m}/base"]]
    ]
    servers = {
        m: next(n for n in ex.SERVERS if results.rates[ex.server_point(m, n)] > 0.95 * results.rate(m, "base"))
        for m in ("mobilenet-v3-small", "citrinet")
    }
    note = "reached with " + ", ".join(f"{n} servers of {m}" for m, n in servers.items())
    shares = {m: results.share(m, ex.TAIL_LOAD) for m in ("squeezenet1.1", "conformer-default")}
    spread = {
        m: f"{min(results.share(m, load) for load in ex.LOADS):.0f} to "
        f"{max(results.share(m, load) for load in ex.LOADS):.0f} % over the loads tried"
        for m in shares
    }
    loss6 = mean_over(rig.MODELS, lambda m: 100 * (1 - results.rate(m, "base") / results.rate(m, "ideal")))
    return [
        Row(item, facts["loss_sec3"], mean_over(rig.MODELS, loss3), FITTED),
        Row(item, facts["loss_sec6"], loss6, FITTED),
        Row(item, facts["cores_citrinet"], short / per_core, EXACT),
        Row(item, facts["cpu_plateau"], statistics.mean(plateau), INPUT, note),
        Row(item, facts["share_squeezenet"], shares["squeezenet1.1"], PREDICTED, spread["squeezenet1.1"]),
        Row(item, facts["share_conformer"], shares["conformer-default"], PREDICTED, spread["conformer-default"]),
    ]


def tail_ratio(results: Results, load: float) -> tuple[float, float]:
    """Mean over models of Base's p95 over PREBA's, and the half-width that their intervals give it."""
    ratios, variances = [], []
    for model in rig.MODELS:
        (base, base_half), (own, own_half) = (results.tail_ms(model, d, load) for d in ("base", "preba"))
        ratios.append(base / own)
        variances.append((base / own) ** 2 * ((base_half / base) ** 2 + (own_half / own) ** 2))
    return statistics.mean(ratios), math.sqrt(sum(variances)) / len(ratios)


def _dpu(results: Results, facts: Mapping[str, Fact]) -> list[Row]:
    item = "4. DPU"
    gain = mean_over(rig.MODELS, lambda m: results.rate(m, "preba") / results.rate(m, "base"))
    shares = {m: 100 * results.rate(m, "preba") / results.rate(m, "ideal") for m in rig.MODELS}
    lowest, second = sorted(shares, key=lambda m: shares[m])[:2]
    tail, half = tail_ratio(results, ex.TAIL_LOAD)
    tails = ", ".join(f"{tail_ratio(results, load)[0]:.1f} at {load:.0%}" for load in ex.LOADS)
    audio_bytes = make_profiles.AUDIO_BYTES_PER_S_FLOAT32 * rig.mean_audio_s()
    pcie = results.rate("mobilenet-v3-small", "preba") * make_profiles.IMAGE_BYTES / 1e9
    hops = [1000 * results.runs[f"power/{m}/preba"]["stages_ms"]["hop"]["mean"] for m in rig.MODELS]
    return [
        Row(item, facts["abstract_throughput"], gain, FITTED),
        Row(
            item,
            facts["ideal_share"],
            shares[second],
            FITTED,
            f"a lower bound; the second lowest of six ({second}); the lowest is {lowest}, {shares[lowest]:.0f} %",
        ),
        Row(
            item,
            facts["abstract_tail"],
            tail,
            PREDICTED,
            f"of Base's throughput: {tails}",
            half if math.isfinite(half) else None,
        ),
        Row(item, facts["pcie_mobilenet"], pcie, EXACT, "float32 tensor out and 110 kB JPEG in"),
        Row(
            item,
            facts["pcie_citrinet"],
            results.rate("citrinet", "preba") * audio_bytes / 1e9,
            FITTED,
            "32 kB/s of float32 mel out and 64 kB/s of float32 audio in",
        ),
        Row(
            item, facts["dpu_hop"], f"{min(hops):.0f} to {max(hops):.0f}", INPUT, "mean of each model, near saturation"
        ),
    ]


def ablation(results: Results, batch: int) -> tuple[float, float]:
    """Base+DPU over Base and PREBA over Base+DPU, means over the audio models, for a fixed batch."""
    base = {m: results.rates[ex.ablation_point(m, "base", batch)] for m in rig.AUDIO}
    middle = {m: results.rates[ex.ablation_point(m, "base-dpu", batch)] for m in rig.AUDIO}
    return (
        mean_over(rig.AUDIO, lambda m: middle[m] / base[m]),
        mean_over(rig.AUDIO, lambda m: results.rate(m, "preba") / middle[m]),
    )


def _ablation(results: Results, facts: Mapping[str, Fact]) -> list[Row]:
    item = "5. Audio ablation"
    dpu, batching = ablation(results, rig.AUDIO_FIXED_BATCH)
    total = mean_over(rig.AUDIO, lambda m: results.rate(m, "preba") / results.rate(m, "base"))
    note = f"Base and Base+DPU in fixed batches of {rig.AUDIO_FIXED_BATCH}, the size chosen by fit.py"
    return [
        Row(item, facts["ablation_dpu"], dpu, FITTED, note),
        Row(item, facts["ablation_batching"], batching, FITTED, note),
        Row(item, facts["audio_total"], total, FITTED, "mean of the products"),
    ]


def _power(results: Results, facts: Mapping[str, Fact]) -> list[Row]:
    item = "6. Power and cost"

    def ratio(model: str, of: Callable[[Json], float]) -> float:
        base, own = (results.runs[f"power/{model}/{d}"] for d in ("base", "preba"))
        return of(own) / of(base)

    def cost(run: Json) -> float:
        return float(run["cost_efficiency"]["capex_usd"] + run["cost_efficiency"]["opex_usd"])

    load = f"each at {ex.POWER_LOAD:.0%} of its own saturation"
    worse = [m for m in rig.MODELS if ratio(m, lambda r: r["cost_efficiency"]["requests_per_usd"]) <= 1]
    return [
        Row(
            item,
            facts["cpu_power"],
            mean_over(rig.MODELS, lambda m: 100 * (1 - ratio(m, lambda r: r["power_w"]["cpu"]))),
            EXACT,
            load,
        ),
        Row(
            item,
            facts["gpu_power_audio"],
            mean_over(rig.AUDIO, lambda m: ratio(m, lambda r: r["power_w"]["gpu"])),
            PREDICTED,
            "a busy slice draws the same for a small batch as for a large one here",
        ),
        Row(
            item,
            facts["system_power"],
            mean_over(rig.MODELS, lambda m: ratio(m, lambda r: r["power_w"]["total"])),
            PREDICTED,
        ),
        Row(
            item,
            facts["abstract_energy"],
            mean_over(rig.MODELS, lambda m: 1 / ratio(m, lambda r: r["energy_per_request_j"])),
            PREDICTED,
            load,
        ),
        Row(item, facts["system_cost"], mean_over(rig.MODELS, lambda m: ratio(m, cost)), CHOSEN, "prices assumed"),
        Row(
            item,
            facts["abstract_cost"],
            mean_over(rig.MODELS, lambda m: ratio(m, lambda r: r["cost_efficiency"]["requests_per_usd"])),
            CHOSEN,
            f"worse for {', '.join(worse)}" if worse else "better for every model",
        ),
    ]


def _policy(results: Results, facts: Mapping[str, Fact]) -> list[Row]:
    item = "7.-9. The policy itself"
    best: dict[str, float] = {}
    apart: dict[str, bool] = {}
    for model in ("mobilenet-v3-small", "conformer-small"):
        tails = {f: _with_half(results.runs[f"queue/{model}/{f:g}"]["latency_ms"]["p95"]) for f in ex.QUEUE_FACTORS}
        best[model] = min(tails, key=lambda f: tails[f][0])
        (own, own_half), (low, low_half) = tails[1.0], tails[best[model]]
        apart[model] = own - low > own_half + low_half
    note = f"lowest p95 at {ex.QUEUE_LOAD:.0%} load: " + ", ".join(
        f"x{f:g} ({m}{'' if f == 1 or apart[m] else ', within the uncertainty of x1'})" for m, f in best.items()
    )
    differ = sum(results.one_bucket.values())
    inside = [each["ours"]["ci95"][0] <= each["exact_ms"] <= each["ours"]["ci95"][1] for each in results.greedy]
    loads = ", ".join(f"{each['load']:g}" for each in results.greedy)
    return [
        Row(item, facts["queue_optimum"], _yes(not any(apart.values())), PREDICTED, note),
        Row(
            item,
            facts["one_bucket"],
            _yes(differ == 0),
            PREDICTED,
            f"{differ} requests answered at another time than with Batch_max and a time-out (three vision models)",
        ),
        Row(
            item,
            facts["greedy_limit"],
            _yes(all(inside)),
            PREDICTED,
            f"exact mean inside the 95 % interval at loads {loads}: {sum(inside)} of {len(inside)}",
        ),
    ]
