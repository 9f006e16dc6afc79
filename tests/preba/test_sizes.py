"""Promises of input sizes and of the published distributions behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from scipy.interpolate import PchipInterpolator

from preba.data import config_folder
from preba.errors import FormatError, MissingFileError, TraceError
from preba.sizes import SizesConfig, draw_sizes
from preba.workloads import duration_distribution, interpolate, load_audio_workload, load_jpeg_workload

NS = 1_000_000_000
SUBSETS = sorted(load_audio_workload("librispeech").subsets)


def parse(data: dict[str, Any]) -> Any:
    return TypeAdapter(SizesConfig).validate_json(json.dumps(data))


def draw(data: dict[str, Any], count: int, seed: int = 3) -> np.ndarray:
    return draw_sizes(parse(data), rng=np.random.default_rng(seed), count=count)


def assert_mean(sizes: np.ndarray, mean: float) -> None:
    half = stats.norm.ppf(0.9995) * sizes.std(ddof=1) / math.sqrt(len(sizes))
    assert abs(sizes.mean() - mean) <= half


@pytest.mark.parametrize("subset", SUBSETS)
def test_librispeech_keeps_the_published_moments(subset: str) -> None:
    """Between its quantiles the distribution has the published mean and spread, as near as the docstring says."""
    workload = load_audio_workload("librispeech")
    distribution = duration_distribution(workload, subset)
    assert abs(distribution.mean() - workload.subsets[subset].mean_s) < 0.07
    assert abs(distribution.std() - workload.subsets[subset].std_s) < 0.05


@pytest.mark.parametrize("subset", ["test-clean", "train-other-500"])
def test_librispeech_lengths_have_the_published_quantiles(subset: str) -> None:
    """As many drawn lengths lie below each published quantile as its probability says."""
    workload = load_audio_workload("librispeech")
    lengths = draw({"kind": "librispeech", "subset": subset}, 200_000)
    assert lengths.dtype == np.int64
    table = workload.subsets[subset]
    for probability, quantile in zip(workload.probabilities[1:-1], table.quantiles_s[1:-1], strict=True):
        below = int((lengths <= quantile * NS).sum())
        assert stats.binomtest(below, len(lengths), probability).pvalue > 0.0005
    assert table.quantiles_s[0] * NS <= lengths.min()
    assert lengths.max() <= table.quantiles_s[-1] * NS
    assert_mean(lengths, parse({"kind": "librispeech", "subset": subset}).mean_size())


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.floats(0.01, 10.0), min_size=2, max_size=12),
    rises=st.lists(st.one_of(st.just(0.0), st.floats(0.001, 1000.0)), min_size=12, max_size=12),
)
def test_interpolation_is_monotone_and_meets_every_quantile(steps: list[float], rises: list[float]) -> None:
    """The interpolated quantile function never descends, meets its table, and is the known monotone cubic."""
    probabilities = np.concatenate(([0.0], np.cumsum(steps) / np.sum(steps)))
    probabilities[-1] = 1.0
    values = np.concatenate(([1.0], 1.0 + np.cumsum(rises[: len(steps)])))
    distribution = interpolate(probabilities, values)
    at = np.linspace(0, 1, 2001)
    curve = distribution.quantile(at)
    scale = values[-1]
    assert np.diff(curve).min() >= -1e-12 * scale
    assert np.abs(distribution.quantile(probabilities) - values).max() <= 1e-12 * scale
    assert np.abs(curve - PchipInterpolator(probabilities, values)(at)).max() <= 1e-9 * scale


def test_exact_moments_are_those_of_the_curve() -> None:
    """Mean and standard deviation without drawing equal those of a very fine grid over the curve."""
    distribution = duration_distribution(load_audio_workload("librispeech"), "dev-clean")
    grid = distribution.quantile((np.arange(2_000_000) + 0.5) / 2_000_000)
    assert distribution.mean() == pytest.approx(grid.mean(), rel=1e-6)
    assert distribution.std() == pytest.approx(grid.std(), rel=1e-5)


def test_imagenet_sizes_are_the_modelled_lognormal() -> None:
    """ImageNet's JPEGs are log-normal about 110 kB, and say that this is modelled."""
    sizes = draw({"kind": "jpeg", "dataset": "imagenet"}, 200_000)
    assert_mean(sizes, 110_000)
    assert stats.kstest((np.log(sizes) - (math.log(110_000) - 0.125)) / 0.5, "norm").pvalue > 0.001
    provenance = parse({"kind": "jpeg", "dataset": "imagenet"}).provenance()
    assert provenance.kind == "modelled"
    assert load_jpeg_workload("imagenet").mean_kb * 1000 == parse({"kind": "jpeg", "dataset": "imagenet"}).mean_size()


@pytest.mark.parametrize(
    ("data", "modality", "size"),
    [
        ({"kind": "constant", "jpeg_kb": 110}, "image", 110_000),
        ({"kind": "constant", "audio_s": 2.5}, "audio", 2_500_000_000),
        ({"kind": "constant", "tensor_kb": 602.112}, "tensor", 602_112),
    ],
)
def test_constant_sizes_are_constant(data: dict[str, Any], modality: str, size: int) -> None:
    """A constant size arrives in its unit and modality, unrounded."""
    assert parse(data).modality == modality
    assert set(draw(data, 5).tolist()) == {size}
    assert parse(data).mean_size() == size


@pytest.mark.parametrize(
    ("data", "law"),
    [
        ({"kind": "uniform", "low_s": 1, "high_s": 4}, stats.uniform(1e9, 3e9)),
        ({"kind": "lognormal", "mean_s": 6, "sigma": 0.6}, stats.lognorm(0.6, scale=6e9 * math.exp(-0.18))),
        (
            {"kind": "lognormal", "mean_kb": 80, "sigma": 0.3},
            stats.lognorm(0.3, scale=8e4 * math.exp(-0.045)),
        ),
    ],
)
def test_drawn_sizes_follow_the_named_law(data: dict[str, Any], law: Any) -> None:
    """Uniform and log-normal sizes have the distribution and the mean they say."""
    sizes = draw(data, 50_000)
    assert stats.kstest(sizes, law.cdf).pvalue > 0.001
    assert parse(data).mean_size() == pytest.approx(law.mean(), rel=1e-12)


def test_listed_sizes_are_sampled_or_taken_in_order(tmp_path: Path) -> None:
    """A list of sizes is drawn from with equal chances, or played in its order over and over."""
    file = tmp_path / "sizes.csv"
    file.write_text("name,kilobytes\na,1.5\nb,20\nc,0.003\n")
    data = {"kind": "empirical", "file": str(file), "column": "kilobytes", "unit": "kb"}
    assert draw({**data, "order": "in_order"}, 7).tolist() == [1500, 20000, 3, 1500, 20000, 3, 1500]
    counts = np.unique(draw(data, 30_000), return_counts=True)
    assert counts[0].tolist() == [3, 1500, 20000]
    assert stats.chisquare(counts[1]).pvalue > 0.001
    assert parse(data).modality == "image"
    assert parse({**data, "tensor": True}).modality == "tensor"
    assert parse(data).mean_size() == pytest.approx(21503 / 3)


def test_listed_lengths_come_from_parquet_too(tmp_path: Path) -> None:
    """A Parquet column of seconds becomes nanoseconds of audio."""
    file = tmp_path / "lengths.parquet"
    pq.write_table(pa.table({"duration": [1.25, 3.0], "speaker": ["x", "y"]}), file)
    data = {"kind": "empirical", "file": file.name, "column": "duration", "unit": "s", "order": "in_order"}
    config = parse(data).located(tmp_path)
    assert config.modality == "audio"
    assert config.read().tolist() == [1_250_000_000, 3_000_000_000]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("kb\n12\ntwelve\n", FormatError, r"sizes\.csv:3: expected a number.*'twelve'"),
        ("kb\n12\n0\n", TraceError, r"sizes\.csv:3: a size must be > 0"),
        ("kb\n", TraceError, "lists no sizes"),
    ],
)
def test_bad_lists_of_sizes_name_the_line(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    """A wrong line in a list of sizes is named with its value."""
    file = tmp_path / "sizes.csv"
    file.write_text(text)
    with pytest.raises(error, match=message):
        draw({"kind": "empirical", "file": str(file), "unit": "kb"}, 5)


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    """A misspelt subset, data set or file is answered with the nearest known name."""
    with pytest.raises(FormatError, match="did you mean 'test-clean'"):
        draw({"kind": "librispeech", "subset": "test-claen"}, 1)
    with pytest.raises(MissingFileError, match="imagenet-jpeg"):
        draw({"kind": "jpeg", "dataset": "imagnet"}, 1)
    (tmp_path / "sizes.csv").write_text("1\n")
    with pytest.raises(MissingFileError, match=r"did you mean 'sizes\.csv'"):
        parse({"kind": "empirical", "file": "size.csv", "unit": "kb"}).located(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "constant"},
        {"kind": "constant", "jpeg_kb": 1, "audio_s": 1},
        {"kind": "constant", "jpeg_kb": 0},
        {"kind": "uniform", "low_s": 3, "high_s": 2},
        {"kind": "lognormal", "sigma": 1},
        {"kind": "lognormal", "mean_kb": 1, "mean_s": 1, "sigma": 1},
        {"kind": "empirical", "file": "x.csv", "unit": "s", "tensor": True},
        {"kind": "empirical", "file": "x.csv", "unit": "minutes"},
    ],
)
def test_senseless_sizes_are_refused(data: dict[str, Any]) -> None:
    """Sizes that are no sizes, or two at once, do not load."""
    with pytest.raises(ValidationError):
        parse(data)


def test_every_workload_file_says_where_it_comes_from() -> None:
    """Each file in configs/workloads loads strictly and carries provenance."""
    files = sorted((config_folder() / "workloads").glob("*.yaml"))
    assert {"imagenet-jpeg", "librispeech"} <= {file.stem for file in files}
    assert load_audio_workload("librispeech").provenance.kind == "published"
    assert len(load_jpeg_workload("imagenet").provenance.source) > 40
