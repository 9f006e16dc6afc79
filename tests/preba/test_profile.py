"""LatencyProfile: what loads, what it answers, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from preba.errors import MissingFileError, ProfileError, ProfileRangeError
from preba.profile import LatencyProfile, load_profile, profile_from_dict
from preba.profile_parts import Interference
from preba.profile_yaml import profile_to_yaml
from preba.strict import Provenance
from preba.units import ns_from_ms, ns_from_s

SOURCE = {"kind": "modelled", "source": "numbers made up for a test"}


def plain(**changes: object) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": "tiny",
        "model": "net",
        "modality": "image",
        "device": "A100-40GB",
        "precision": "fp32",
        "framework": "PyTorch",
        "provenance": SOURCE,
        "table": {"1g": {"1": 4.0, "2": 5.0, "8": 17.0}, "2g": {"1": 4.0, "4": 4.5}},
    }
    return {key: value for key, value in (data | changes).items() if value is not None}


def audio(**changes: object) -> dict[str, Any]:
    table = {"1g": {"5": {"1": 10, "2": 20, "4": 40}, "15": {"1": 30, "2": 50}}}
    return plain(modality="audio", table=None, **({"table_by_length_s": table} | changes))


def closed(**changes: object) -> dict[str, Any]:
    form: dict[str, Any] = {
        "floor_ms": 10.0,
        "slope_1g_ms": 2.0,
        "slope_exponent": 1.0,
        "batch_max": {"1g": 32, "2g": 64},
    }
    return plain(table=None, closed_form={k: v for k, v in (form | changes).items() if v is not None})


tables = st.dictionaries(st.integers(2, 64), st.floats(0.01, 1e4, allow_nan=False), max_size=8).flatmap(
    lambda rest: st.floats(0.01, 1e4).map(lambda first: {1: first, **rest})
)


def test_batch_between_points_is_linear() -> None:
    """Between two tabulated batches the time lies on the straight line through them."""
    profile = profile_from_dict(plain())
    assert profile.latency_ns("1g", 5) == ns_from_ms(11.0)
    assert profile.latency_ns("1g", 2) == ns_from_ms(5.0)


def test_times_are_rounded_to_the_nearest_nanosecond() -> None:
    """A time between two nanoseconds goes to the nearer one, and never to 0."""
    profile = profile_from_dict(plain(table={"1g": {"1": 1.0000007, "2": 1.0000012, "3": 1e-8}}))
    assert [profile.latency_ns("1g", batch) for batch in (1, 2, 3)] == [1_000_001, 1_000_001, 1]


@given(tables)
def test_table_repeats_what_single_questions_answer(points: dict[int, float]) -> None:
    """Entry [s, l, b] of the dense table is latency_ns(s, b), lies between its neighbours; entry 0 is 0."""
    profile = profile_from_dict(plain(table={"1g": {str(b): t for b, t in points.items()}}))
    table = profile.table_ns(["1g", "1g.5gb"], None, max(points))
    assert table.dtype == np.int64
    assert table.shape == (2, 1, max(points) + 1)
    assert (table[:, :, 0] == 0).all()
    known = sorted(points)
    for batch in range(1, max(points) + 1):
        answer = profile.latency_ns("1g", batch)
        assert (table[:, 0, batch] == answer).all()
        below = max(each for each in known if each <= batch)
        above = min(each for each in known if each >= batch)
        low, high = sorted((points[below], points[above]))
        assert ns_from_ms(low) - 1 <= answer <= ns_from_ms(high) + 1


@pytest.mark.parametrize(("slice_key", "batch"), [("1g", 9), ("1g", 0), ("1g", -1), ("2g.10gb", 5)])
def test_batch_outside_the_table_is_refused(slice_key: str, batch: int) -> None:
    """Nothing is extrapolated: the error names the slice, the batch and the range."""
    profile = profile_from_dict(plain())
    with pytest.raises(ProfileRangeError, match=rf"batch {batch} on slice {slice_key} is outside 1\.\.(8|4)"):
        profile.latency_ns(slice_key, batch)


def test_unlisted_slice_is_refused() -> None:
    """A slice size that was not measured is an error unless the file allows scaling."""
    with pytest.raises(ProfileRangeError, match=r"'7g.40gb' is not in it; it holds 1g, 2g"):
        profile_from_dict(plain()).latency_ns("7g.40gb", 1)


def test_exact_slice_name_beats_the_gpc_count() -> None:
    """1g.10gb finds its own entry; 1g.5gb and 1g.5gb+me fall back to 1g; a c-prefixed name finds nothing."""
    profile = profile_from_dict(plain(table={"1g": {"1": 4.0}, "1g.10gb": {"1": 3.0}}))
    assert profile.latency_ns("1g.10gb", 1) == ns_from_ms(3.0)
    assert profile.latency_ns("1g.10gb+me", 1) == ns_from_ms(3.0)
    assert profile.latency_ns("1g.5gb+me", 1) == ns_from_ms(4.0)
    assert profile.knows("1g")
    assert not profile.knows("1c.2g.10gb")


def test_whole_gpu_is_not_a_7g_slice() -> None:
    """An entry for a GPU with MIG off does not answer for 7g."""
    profile = profile_from_dict(plain(table={"full": {"1": 1.0}}))
    assert profile.latency_ns("full", 1) == ns_from_ms(1.0)
    assert not profile.knows("7g.40gb")


def test_scaling_derives_a_slice_and_says_so() -> None:
    """With scaling a missing slice takes max(floor, tau * (g_from/g)**e), and its provenance is modelled."""
    published = {"kind": "published", "source": "a table somewhere"}
    scaling = {"from_slice": "1g", "exponent": 1.0, "floor_ms": 3.0, "provenance": SOURCE}
    profile = profile_from_dict(plain(provenance=published, scaling=scaling))
    assert profile.latency_ns("4g.20gb", 8) == ns_from_ms(17.0 / 4)
    assert profile.latency_ns("4g.20gb", 1) == ns_from_ms(3.0)
    assert profile.provenance_of("4g.20gb").kind == "modelled"
    assert profile.provenance_of("1g.5gb").kind == "published"
    assert profile.latency_ns("2g", 4) == ns_from_ms(4.5)


def test_scaling_must_be_marked_modelled() -> None:
    """A derived slice cannot be called published."""
    scaling = {
        "from_slice": "1g",
        "exponent": 1.0,
        "floor_ms": 3.0,
        "provenance": {"kind": "published", "source": "a table somewhere"},
    }
    with pytest.raises(ProfileError, match=r"scaling.provenance.kind: a derived slice is modelled"):
        profile_from_dict(plain(scaling=scaling))


def test_length_between_points_is_linear() -> None:
    """Between two tabulated lengths the time is linear, at each batch."""
    profile = profile_from_dict(audio())
    assert profile.latency_ns("1g", 2, ns_from_s(10)) == ns_from_ms(35.0)
    assert profile.latency_ns("1g", 2, ns_from_s(15)) == ns_from_ms(50.0)
    assert profile.latency_ns("1g", 3, ns_from_s(5)) == ns_from_ms(30.0)


def test_longer_input_may_end_at_a_smaller_batch() -> None:
    """Where the longer neighbour stops at batch 2, so do the lengths between: batch 4 is refused there."""
    profile = profile_from_dict(audio())
    assert profile.batch_max("1g", ns_from_s(5)) == 4
    assert profile.batch_max("1g", ns_from_s(6)) == 2
    assert profile.batch_max("1g") == 2
    with pytest.raises(ProfileRangeError, match=r"batch 4 on slice 1g is outside 1..2 for inputs of 6 s"):
        profile.latency_ns("1g", 4, ns_from_s(6))


@pytest.mark.parametrize("length_s", [4.9, 15.1, 0.0])
def test_length_outside_the_table_is_refused(length_s: float) -> None:
    """Lengths are not extrapolated either."""
    with pytest.raises(ProfileRangeError, match=r"is outside 5\.\.15 s"):
        profile_from_dict(audio()).latency_ns("1g", 1, ns_from_s(length_s))


def test_audio_without_a_length_is_refused() -> None:
    """A profile that depends on length does not guess one."""
    with pytest.raises(ProfileError, match="give a length"):
        profile_from_dict(audio()).latency_ns("1g", 1)


def test_dense_table_by_length_and_absent_batches() -> None:
    """The dense table has a column per edge; batches a slice cannot run are an error or a value asked for."""
    profile = profile_from_dict(audio())
    edges = [ns_from_s(5), ns_from_s(10)]
    with pytest.raises(ProfileRangeError, match=r"batch 4 on slice 1g is outside 1..2"):
        profile.table_ns(["1g"], edges, 4)
    table = profile.table_ns(["1g"], edges, 4, absent_ns=-1)
    assert table[0, 0].tolist() == [0, *map(ns_from_ms, (10.0, 20.0, 30.0, 40.0))]
    assert table[0, 1].tolist() == [0, ns_from_ms(20.0), ns_from_ms(35.0), -1, -1]


def test_image_profile_repeats_itself_over_lengths() -> None:
    """Length edges do not matter to a model without lengths."""
    table = profile_from_dict(plain()).table_ns(["1g"], [1, 2, 3], 8)
    assert table.shape == (1, 3, 9)
    assert (table == table[:, :1]).all()


@given(
    floor=st.floats(0.1, 100),
    slope=st.floats(0.01, 10),
    offset=st.floats(-5, 5),
    batch=st.integers(1, 64),
    length_s=st.floats(0.5, 30),
)
def test_closed_form_is_its_formula(floor: float, slope: float, offset: float, batch: int, length_s: float) -> None:
    """Tau = max(L, a/g**e * b * len/ref + c), rounded to a nanosecond."""
    form = {
        "floor_ms": floor,
        "slope_1g_ms": slope,
        "slope_exponent": 0.9,
        "offset_ms": offset,
        "batch_max": {"1g": 64, "7g": 64},
        "reference_length_s": 2.5,
        "length_range_s": [0.1, 40.0],
    }
    profile = profile_from_dict(plain(table=None, modality="audio", closed_form=form))
    length_ns = ns_from_s(length_s)
    for key, gpcs in (("1g.5gb", 1), ("7g.40gb", 7)):
        expected = max(floor, slope / gpcs**0.9 * batch * (length_ns / 1e9) / 2.5 + offset)
        assert abs(profile.latency_ns(key, batch, length_ns) - expected * 1e6) <= 1


def test_closed_form_knows_only_its_slices() -> None:
    """batch_max says which slices exist, even when the slope could be scaled to any."""
    profile = profile_from_dict(closed())
    assert profile.slices == ("1g", "2g")
    with pytest.raises(ProfileRangeError, match="'3g'"):
        profile.latency_ns("3g", 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (plain(provenance=None), "provenance: missing; a profile must say where its numbers come from"),
        (plain(provenance={"kind": "published"}), "provenance.source: missing"),
        (plain(provenance={"kind": "guessed", "source": "nowhere at all"}), "provenance.kind: .*'measured'"),
        (plain(tabel={}), "tabel: unknown key; did you mean 'table'?"),
        (plain(backend={"kind": "trt", "input_consumed": 1}), "did you mean 'input_consumed_fraction'"),
        (plain(table={"1g": {"2": 3.0}}), "table.1g: must start at batch 1, got .2."),
        (plain(table={"1g": {"1": None}}), "table.1g.1: .*number, got None"),
        (plain(table={"1g": {"1": -3.0}}), "table.1g.1: .*greater than 0, got -3"),
        (plain(table={"1g": {"1": "4 ms"}}), "table.1g.1: .*number, got '4 ms'"),
        (plain(table={"1g": {"1": float("inf")}}), "table.1g.1: "),
        (plain(table={"1gb": {"1": 3.0}}), "table.1gb: "),
        (plain(table={}), "table: no slice is listed"),
        (plain(closed_form={"floor_ms": 1, "batch_max": {"1g": 1}}), "slope_ms: give it"),
        (plain(modality="audio"), "modality: an audio profile must depend on length"),
        (plain(table=None), "exactly one must hold the times, got none"),
        (plain(jitter={"kind": "lognormal"}), "jitter.cv: missing"),
        (plain(jitter={"kind": "gauss"}), "jitter.kind: .gauss. is not known.*lognormal"),
        (closed(slope_ms={"1g": 1.0}), "closed_form.slope_ms: give it, or slope_1g_ms"),
        (closed(slope_1g_ms=None), "slope_1g_ms and slope_exponent: give both or neither"),
        (
            closed(floor_ms={"1g": 1.0}),
            "closed_form.floor_ms: must list the slices of batch_max; differs in 2g",
        ),
        (closed(reference_length_s=2.5), "reference_length_s and length_range_s: give both or neither"),
        (closed(batch_max={"1g": 0}), "closed_form.batch_max.1g: .*got 0"),
        (["not", "a", "mapping"], "a profile is a mapping, got list"),
    ],
)
def test_bad_profile_gets_one_clear_error(data: object, message: str) -> None:
    """Every way a profile can be wrong names the field, the value and what is allowed."""
    with pytest.raises(ProfileError, match=message):
        profile_from_dict(data)


def test_hole_inside_the_grid_is_an_error() -> None:
    """A batch listed for one length and skipped by another, below the other's end, is a hole."""
    table = {"1g": {"5": {"1": 10, "2": 20, "4": 40}, "15": {"1": 30, "4": 90}}}
    with pytest.raises(ProfileError, match=r"table_by_length_s.1g.15: batch 2 is missing"):
        profile_from_dict(audio(table_by_length_s=table))


def test_error_carries_file_and_line(tmp_path: Path) -> None:
    """A complaint about a file says which line to mend."""
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(plain(table={"1g": {1: 4.0, 2: -1.0}}), sort_keys=False))
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "2: -1.0" in text)
    with pytest.raises(ProfileError, match=rf"table.1g.2: .*broken.yaml:{line}\)"):
        load_profile(file)


def test_repeated_key_and_broken_yaml_are_errors(tmp_path: Path) -> None:
    """YAML that says a thing twice, or is no YAML, does not load."""
    file = tmp_path / "twice.yaml"
    file.write_text("name: a\nmodel: b\nname: c\n")
    with pytest.raises(ProfileError, match=r"name: given twice \(.*twice.yaml:3\)"):
        load_profile(file)
    file.write_text("name: [a\nmodel: b\n")
    with pytest.raises(ProfileError, match=r"twice.yaml:2"):
        load_profile(file)


def test_misspelt_profile_name_gets_a_suggestion() -> None:
    """A name that is nearly right is answered with the right one; a missing path is named."""
    with pytest.raises(MissingFileError, match="did you mean 'preba-citrinet'"):
        load_profile("preba-citrinnet")
    with pytest.raises(MissingFileError, match=r"no/such/file.yaml"):
        load_profile("no/such/file.yaml")


def test_config_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PREBA_CONFIGS says where names are looked up."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.yaml").write_text(yaml.safe_dump(plain(name="mine")))
    monkeypatch.setenv("PREBA_CONFIGS", str(tmp_path))
    assert load_profile("mine").name == "mine"
    monkeypatch.setenv("PREBA_CONFIGS", str(tmp_path / "nowhere"))
    with pytest.raises(MissingFileError, match="PREBA_CONFIGS"):
        load_profile("mine")


@pytest.mark.parametrize("data", [plain(), audio(), closed(), closed(slope_exponent=0.947)])
def test_written_profile_reads_back(data: dict[str, Any], tmp_path: Path) -> None:
    """Writing and reading gives the same profile back."""
    profile = profile_from_dict(data)
    file = tmp_path / "again.yaml"
    file.write_text(profile_to_yaml(profile, header="a comment"))
    assert load_profile(file) == profile


def test_every_shipped_profile_loads() -> None:
    """Each file in configs/profiles is whole, has provenance and is called what it is named."""
    files = sorted((Path(__file__).parents[2] / "configs" / "profiles").glob("*.yaml"))
    assert len(files) >= 30
    for file in files:
        profile = load_profile(file)
        assert profile.name == file.stem
        assert isinstance(profile, LatencyProfile)
        assert profile.provenance.source


@given(st.integers(0, 10**12), st.integers(0, 6), st.floats(0, 1))
def test_interference_grows_with_busy_neighbours(latency_ns: int, busy: int, fraction: float) -> None:
    """No busy neighbour costs nothing, all of them cost f, and each one more never speeds a batch up."""
    interference = Interference(
        busy_neighbour_fraction=fraction, provenance=Provenance(kind="modelled", source="a test's own")
    )
    slowed = [interference.slowed_ns(latency_ns, busy_neighbours=n, slices=7) for n in range(7)]
    assert slowed[0] == latency_ns
    assert slowed == sorted(slowed)
    assert abs(slowed[6] - latency_ns * (1 + fraction)) <= 1 + latency_ns * 1e-6
    assert interference.slowed_ns(latency_ns, busy_neighbours=busy, slices=1) == latency_ns
