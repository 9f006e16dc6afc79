"""Promises of accel.stations: which stations a config becomes, who visits them, and how long each visit takes."""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter

from accel.stations import Preprocessing, Station, build_preprocessing, station_capacity_rps
from preba.errors import ScenarioError, TraceError
from preba.knee import knee
from preba.preprocessing import AnyPreprocessing, PreprocessingConfig
from preba.profile import load_profile

ADAPTER: TypeAdapter[AnyPreprocessing] = TypeAdapter(PreprocessingConfig)
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Columns:
    """The columns of a trace that preprocessing reads."""

    model_index: NDArray[np.int32]
    jpeg_bytes: NDArray[np.int64]
    audio_ns: NDArray[np.int64]
    tensor_bytes: NDArray[np.int64]
    preprocess_factor: NDArray[np.float64]


@dataclass(frozen=True)
class Slice:
    """The facts of a slice that preprocessing reads."""

    profile: str = "1g.5gb"
    gpcs: int = 1
    jpeg_engines: int = 0
    model_index: int | None = 0
    role: str = "model"


@dataclass
class Rows:
    """Builds columns row by row."""

    rows: list[tuple[int, int, int, int, float]] = field(default_factory=list)

    def columns(self) -> Columns:
        model, jpeg, audio, tensor, factor = (list(column) for column in zip(*self.rows, strict=True))
        return Columns(
            np.array(model, dtype=np.int32),
            np.array(jpeg, dtype=np.int64),
            np.array(audio, dtype=np.int64),
            np.array(tensor, dtype=np.int64),
            np.array(factor),
        )


def images(count: int, *, jpeg_bytes: int = 110_000, factor: float = 1.0) -> Columns:
    return Rows([(0, jpeg_bytes, 0, 0, factor)] * count).columns()


def clips(count: int, *, seconds: float = 2.5) -> Columns:
    return Rows([(0, 0, round(seconds * SECOND_NS), 0, 1.0)] * count).columns()


def config(**keys: Any) -> AnyPreprocessing:
    return ADAPTER.validate_json(json.dumps(keys))


def play(preprocessing: Preprocessing, arrivals_ns: list[int], model: int = 0) -> list[int]:
    """When each request leaves its last station, all stations being FIFO pools: the recursion by hand."""
    ready = list(arrivals_ns)
    for index in preprocessing.routes[model]:
        station = preprocessing.stations[index]
        assert station.batch_max == 1
        free = [0] * station.units
        left = list(ready)
        for request in sorted(range(len(ready)), key=lambda r: (ready[r], r)):
            start = max(ready[request], heapq.heappop(free))
            heapq.heappush(free, start + int(station.occupancy_ns[request]))
            left[request] = start + int(station.latency_ns[request])
        ready = left
    return ready


def only(preprocessing: Preprocessing) -> Station:
    assert len(preprocessing.stations) == 1
    return preprocessing.stations[0]


def test_no_preprocessing_has_no_stations() -> None:
    """With kind none, requests visit nothing and nothing happens on the slices."""
    built = build_preprocessing(config(kind="none"), images(3), modalities=["image"])
    assert built == Preprocessing((), ((),), None, (False,), ())


def test_cpu_core_is_taken_longer_by_what_preprocessing_cannot_use() -> None:
    """Work of 900 us with 90 % of a core usable takes the core for 1000 us, times the request's own jitter."""
    cpu = config(kind="cpu", cores=32, usable_fraction=0.9, image={"fixed_us": 350, "per_100kb_us": 500})
    station = only(build_preprocessing(cpu, images(2, factor=1.5), modalities=["image"]))
    assert (station.kind, station.units, station.batch_max, station.launch_ns) == ("cpu", 32, 1, 0)
    assert station.occupancy_ns.tolist() == [1_500_000, 1_500_000]
    assert station.latency_ns.tolist() == station.occupancy_ns.tolist()


def test_larger_files_reach_a_core_later_without_keeping_it() -> None:
    """100 us for each 100 kB: 110 kB leave 110 us later, the core is free as before; audio by its seconds."""
    keys = {"image": {"fixed_us": 350, "per_100kb_us": 500}, "audio": {"fixed_us": 100, "per_audio_s_us": 0}}
    plain = config(kind="cpu", cores=2, usable_fraction=1.0, **keys)
    later = config(
        kind="cpu", cores=2, usable_fraction=1.0, transfer_per_100kb_us=100, transfer_per_audio_s_us=40, **keys
    )  # fmt: skip
    for columns, modality, transfer_ns in ((images(3), "image", 110_000), (clips(3), "audio", 100_000)):
        before = build_preprocessing(plain, columns, modalities=[modality]).stations[0]
        after = build_preprocessing(later, columns, modalities=[modality]).stations[0]
        assert after.occupancy_ns.tolist() == before.occupancy_ns.tolist() == before.latency_ns.tolist()
        assert (after.latency_ns - before.latency_ns).tolist() == [transfer_ns] * 3


def test_cpu_utilization_saturates_at_the_usable_fraction() -> None:
    """However many requests wait, the share of all cores that does real work stops at the usable fraction."""
    cpu = config(kind="cpu", cores=4, usable_fraction=0.9, image={"fixed_us": 900, "per_100kb_us": 0})
    built = build_preprocessing(cpu, images(4000), modalities=["image"])
    end_ns = max(play(built, [0] * 4000))
    station = only(built)
    busy = station.occupancy_ns.sum() / (station.units * end_ns)
    assert busy == 1.0
    work_done = 4000 * 900_000 / (station.units * end_ns)
    assert work_done == pytest.approx(0.9, rel=1e-12)


def test_models_of_both_modalities_share_the_cores_and_tensors_pass_by() -> None:
    """Images and audio queue for the same cores; a model that takes tensors visits no station."""
    rows = Rows([(0, 100_000, 0, 1, 1.0), (1, 0, 2 * SECOND_NS, 1, 1.0), (2, 0, 0, 1, 1.0)])
    cpu = config(
        kind="cpu",
        cores=2,
        usable_fraction=1.0,
        image={"fixed_us": 1, "per_100kb_us": 2},
        audio={"fixed_us": 10, "per_audio_s_us": 20},
    )
    built = build_preprocessing(cpu, rows.columns(), modalities=["image", "audio", "tensor"])
    assert built.routes == ((0,), (0,), ())
    assert only(built).occupancy_ns.tolist() == [3_000, 50_000, 0]


def test_image_units_overlap_requests() -> None:
    """A pipelined DPU unit starts its next image after the interval, before the first one is out."""
    dpu = config(
        kind="dpu",
        image={"units": 1, "interval_fixed_us": 100, "interval_per_100kb_us": 0, "drain_us": 250},
        hop={"latency_us": 0, "bandwidth_gb_per_s": 1000},
    )
    built = build_preprocessing(dpu, images(3), modalities=["image"])
    assert [s.kind for s in built.stations] == ["dpu", "hop"]
    left = play(built, [0, 0, 0])
    hop_ns = 602
    assert left == [350_000 + hop_ns, 450_000 + hop_ns, 550_000 + hop_ns]


def test_two_audio_unit_types_beat_one_by_the_time_normalisation_takes() -> None:
    """Held for both steps, a unit passes 1/(m+z) clips; in tandem the same units pass 1/max(m, z) (Fig. 12b, c)."""
    mel, normalize, count = 100, 40, 500
    shared = {
        "mel_fixed_us": mel,
        "mel_per_audio_s_us": 0,
        "normalize_fixed_us": normalize,
        "normalize_per_audio_s_us": 0,
        "mel_units": 1,
    }
    tandem = config(kind="dpu", audio={"design": "two_types", "normalize_units": 1, **shared})
    single = config(kind="dpu", audio={"design": "one_type", **shared})
    ends = {
        name: max(play(build_preprocessing(c, clips(count), modalities=["audio"]), [0] * count))
        for name, c in (("tandem", tandem), ("single", single))
    }
    # The last clip of the tandem still passes normalise and the hop: a constant, not a rate.
    tail_us = (ends["tandem"] - count * mel * 1000) / 1000
    assert normalize <= tail_us < normalize + 40
    single_tail_us = (ends["single"] - count * (mel + normalize) * 1000) / 1000
    assert 0 <= single_tail_us < 40


def test_normalisation_waits_for_the_whole_mel_output() -> None:
    """A lone clip takes mel time plus normalise time plus hop, in both designs: the barrier hides nothing."""
    keys = {
        "mel_fixed_us": 70,
        "mel_per_audio_s_us": 0,
        "normalize_fixed_us": 30,
        "normalize_per_audio_s_us": 0,
    }
    hop = {"latency_us": 5, "bandwidth_gb_per_s": 80}
    for design in ("two_types", "one_type"):
        dpu = config(kind="dpu", audio={"design": design, **keys}, hop=hop)
        built = build_preprocessing(dpu, clips(1), modalities=["audio"])
        assert play(built, [0]) == [70_000 + 30_000 + 5_000 + 1_000]


def test_hop_bandwidth_is_shared() -> None:
    """Tensors cross one after the other at full bandwidth; the latency of one overlaps the next."""
    dpu = config(
        kind="dpu",
        image={"units": 8, "interval_fixed_us": 0, "interval_per_100kb_us": 0, "drain_us": 0},
        hop={"latency_us": 30, "bandwidth_gb_per_s": 32},
    )
    built = build_preprocessing(dpu, images(4), modalities=["image"])
    assert play(built, [0] * 4) == [30_000 + 18_816 * n for n in range(1, 5)]


def test_hop_carries_what_preprocessing_makes_of_an_input() -> None:
    """A drawn trace knows file sizes and lengths only; the link is held for the tensor made of them."""
    hop = {"latency_us": 0, "bandwidth_gb_per_s": 1, "image_bytes": 1_000, "audio_bytes_per_s": 2_000}
    rows = Rows([(0, 90_000, 0, 0, 1.0), (0, 180_000, 0, 0, 1.0), (1, 0, 3 * SECOND_NS, 0, 1.0)])
    built = build_preprocessing(config(kind="dpu", hop=hop), rows.columns(), modalities=["image", "audio"])
    assert built.stations[-1].kind == "hop"
    assert built.stations[-1].occupancy_ns.tolist() == [1_000, 1_000, 6_000]


def test_default_dpu_rates_are_those_implied_by_the_papers_traffic() -> None:
    """The shipped rates pass what 6.13 and 0.9 GB/s carry, inputs of 110 kB and of 64 kB/s counted in."""
    built = build_preprocessing(config(kind="dpu"), images(10), modalities=["image"])
    units, hop = station_capacity_rps(built, np.zeros(10, dtype=np.int32))
    assert units.visits_rps * (602_112 + 110_000) == pytest.approx(6.13e9, rel=1e-3)
    assert hop.visits_rps == pytest.approx(32e9 / 602_112, rel=1e-3)
    built = build_preprocessing(config(kind="dpu"), clips(10), modalities=["audio"])
    mel, normalize, hop = station_capacity_rps(built, np.zeros(10, dtype=np.int32))
    assert mel.visits_rps * 2.5 * (32_000 + 64_000) == pytest.approx(0.9e9, rel=0.02)
    assert normalize.visits_rps > mel.visits_rps
    assert hop.visits_rps == pytest.approx(32e9 / 80_000, rel=1e-3)


def test_prebas_cpu_needs_393_cores_for_its_ideal_clip_rate() -> None:
    """The fitted baseline cost gives back what it was fitted to: 393 cores sustain CitriNet at its knee."""
    cpu = config(kind="cpu", cores=393, cost="preba-cpu-epyc7502")
    built = build_preprocessing(cpu, clips(10), modalities=["audio"])
    (station,) = station_capacity_rps(built, np.zeros(10, dtype=np.int32))
    found = knee(load_profile("preba-citrinet"), "1g.5gb", 2_500_000_000)
    assert station.visits_rps == pytest.approx(7 * found.batch * 1e9 / found.latency_ns, rel=1e-3)


def test_dali_slices_are_the_units_of_a_batch_station() -> None:
    """DALI on three 1g slices: three units, a launch per batch, items in proportion to the slice, then a hop."""
    slices = [Slice(), *[Slice(role="preprocessing", model_index=None)] * 3, Slice()]
    dali = config(
        kind="dali_slice",
        slices={"1g.5gb": 3},
        batch_max=16,
        launch_us=500,
        image={"fixed_us": 1000, "per_100kb_us": 0},
    )
    built = build_preprocessing(dali, images(2), modalities=["image"], slices=slices)
    station, hop = built.stations
    assert (station.kind, station.units, station.batch_max) == ("dali", 3, 16)
    assert station.slice_indices == (1, 2, 3)
    assert station.launch_ns == 500_000
    assert station.occupancy_ns.tolist() == [1_000_000, 1_000_000]
    assert hop.kind == "hop"
    assert built.routes == ((0, 1),)


@pytest.mark.parametrize(
    ("cost", "profile", "gpcs", "engines", "expected"),
    [
        # A100: no engine below 7g but in one +me slice: the SMs decode, at 1/GPCs of the work.
        ("dali-a100", "2g.10gb", 2, 0, 1 / 2),
        # The +me slice: the engine (4.667 GPCs) decodes 65 %, one GPC the rest: 0.35 * 0.8 + 0.2 = 0.48.
        ("dali-a100", "1g.5gb+me", 1, 1, 0.48),
        # Hopper 2g: two engines of 0.535 GPCs: 0.65 * 0.8 / 1.07 = 0.486, slower than its SMs' 0.24.
        ("dali-hopper", "2g.20gb", 2, 2, 0.65 * 0.8 / 1.07),
    ],
)
def test_jpeg_engines_of_the_slice_decide_where_decoding_runs(
    cost: str, profile: str, gpcs: int, engines: int, expected: float
) -> None:
    """The same pipeline uses engines where the MIG profile has them, and SMs where it has none."""
    unit = Slice(profile=profile, gpcs=gpcs, jpeg_engines=engines)
    dali = config(kind="dali_shared", cost=cost)
    built = build_preprocessing(dali, images(1), modalities=["image"], slices=[unit])
    assert built.shared is not None
    assert built.shared.slice_factor[0] == pytest.approx(expected, rel=1e-12)


def test_dali_a100_reproduces_the_published_rates() -> None:
    """A whole A100 decodes 6000 img/s on SMs, 5000 on its engine, and close to 7000 with 75 % on the engine."""
    whole = Slice(profile="7g.40gb", gpcs=7, jpeg_engines=1)
    rates = {}
    for share in (0.0, 0.75, 1.0):
        dali = config(kind="dali_shared", hw_decoder_share=share)
        shared = build_preprocessing(dali, images(1), modalities=["image"], slices=[whole]).shared
        assert shared is not None
        rates[share] = 1e9 / (shared.item_ns[0] * shared.slice_factor[0])
    assert rates[0.0] == pytest.approx(6000, rel=1e-3)
    assert rates[1.0] == pytest.approx(5000, rel=1e-3)
    assert rates[0.75] == pytest.approx(7000, rel=0.06)


def test_dali_in_the_models_slices_slows_them_and_only_models_that_need_it() -> None:
    """Sharing adds a launch and items per slice and slows the execution by the interference; tensors are spared."""
    rows = Rows([(0, 100_000, 0, 1, 2.0), (1, 0, 0, 1, 2.0)])
    dali = config(
        kind="dali_shared",
        interference=0.25,
        launch_us=300,
        image={"fixed_us": 100, "per_100kb_us": 400},
    )
    slices = [Slice(gpcs=2), Slice(gpcs=3, model_index=1), Slice(role="unused", model_index=None)]
    built = build_preprocessing(dali, rows.columns(), modalities=["image", "tensor"], slices=slices)
    assert built.stations == ()
    assert built.uses_shared == (True, False)
    assert built.shared is not None
    assert built.shared.launch_ns.tolist() == [300_000] * 3
    assert built.shared.item_ns.tolist() == [1_000_000, 0]
    assert built.shared.slice_factor.tolist() == [0.5, 1.0, 1.0]
    assert built.shared.execution_slowdown == 1.25


def test_capacity_counts_requests_that_pass_by() -> None:
    """A station that one request in four visits saturates at four times its own rate of visits."""
    rows = Rows([(0, 100_000, 0, 1, 1.0), *[(1, 0, 0, 1, 1.0)] * 3])
    cpu = config(kind="cpu", cores=2, usable_fraction=1.0, image={"fixed_us": 1000, "per_100kb_us": 0})
    columns = rows.columns()
    built = build_preprocessing(cpu, columns, modalities=["image", "tensor"])
    (capacity,) = station_capacity_rps(built, columns.model_index)
    assert capacity.visits_rps == 2000
    assert capacity.requests_rps == 8000


def test_capacity_of_a_batch_station_spreads_the_launch() -> None:
    """Full batches of 4 with 1 ms launch and 1 ms per item: one unit passes 800 per second."""
    unit = Slice(role="preprocessing", model_index=None)
    dali = config(
        kind="dali_slice",
        slices=[0],
        batch_max=4,
        launch_us=1000,
        image={"fixed_us": 1000, "per_100kb_us": 0},
    )
    built = build_preprocessing(dali, images(1), modalities=["image"], slices=[unit])
    assert station_capacity_rps(built, np.zeros(1, dtype=np.int32))[0].visits_rps == pytest.approx(800)


def test_every_number_used_has_its_provenance() -> None:
    """The provenance names each number with its value; one written in the scenario says so."""
    cpu = config(kind="cpu", cores=1, image={"fixed_us": 5})
    found = dict(build_preprocessing(cpu, images(1), modalities=["image"]).provenance)
    assert found["preprocessing costs cpu-opencv-epyc.image.fixed_us = 5"].source == "set in the scenario"
    per_byte = found["preprocessing costs cpu-opencv-epyc.image.per_100kb_us = 1009"]
    assert "2605.08731" in per_byte.source
    assert found["preprocessing.usable_fraction = 0.9"].kind == "published"


def test_mixed_dali_slices_are_refused() -> None:
    """DALI's own slices must be alike, as its units are; the message names the profiles."""
    slices = [Slice(role="preprocessing"), Slice(profile="2g.10gb", gpcs=2, role="preprocessing")]
    dali = config(kind="dali_slice", slices=[0, 1])
    with pytest.raises(ScenarioError, match=r"slices of one profile.*1g\.5gb, 2g\.10gb"):
        build_preprocessing(dali, images(1), modalities=["image"], slices=slices)


def test_one_dali_pipeline_serves_one_modality() -> None:
    """Images and audio cannot share the batches of one DALI pipeline; the message says what to use."""
    rows = Rows([(0, 1, 0, 1, 1.0), (1, 0, 1, 1, 1.0)])
    dali = config(kind="dali_slice", slices=[0])
    with pytest.raises(ScenarioError, match="image and audio; use dali_shared or cpu"):
        build_preprocessing(dali, rows.columns(), modalities=["image", "audio"], slices=[Slice(role="preprocessing")])


def test_request_without_a_size_is_refused() -> None:
    """An image of zero bytes would be preprocessed for almost nothing; it is an error naming the request."""
    with pytest.raises(TraceError, match=r"request 0 \(model 0\) has jpeg_bytes = 0"):
        build_preprocessing(config(kind="cpu", cores=1), clips(1), modalities=["image"])


def test_unknown_modality_is_refused() -> None:
    """A modality that no station knows is an error that lists the known ones."""
    with pytest.raises(ScenarioError, match=r"models\[0\]: modality 'video' is not one of image, audio"):
        build_preprocessing(config(kind="none"), images(1), modalities=["video"])


def test_station_refuses_times_that_make_no_sense() -> None:
    """A station whose requests leave before they release their unit, or whose batches overlap, cannot exist."""
    one, two = np.array([1]), np.array([2])
    with pytest.raises(ValueError, match="no latency below its occupancy"):
        Station("x", "dpu", 1, 1.0, 1, 0, two, one)
    with pytest.raises(ValueError, match="cannot overlap"):
        Station("x", "dali", 1, 1.0, 2, 0, one, two)
    with pytest.raises(ValueError, match="'gpu' is not one of"):
        Station("x", "gpu", 1, 1.0, 1, 0, one, one)
