"""Promises of the device catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest

import preba.data
from preba.errors import FormatError, MissingFileError, PartitionError
from preba.mig.catalogue import device_names, load_device

DEVICES = [
    "A100-40GB",
    "A100-80GB",
    "A30-24GB",
    "B200-180GB",
    "B300",
    "GB200",
    "GH200-144GB",
    "GH200-96GB",
    "H100-NVL-94GB",
    "H100-PCIe-80GB",
    "H100-SXM5-80GB",
    "H200-141GB",
    "RTX-PRO-4500-32GB",
    "RTX-PRO-5000-48GB",
    "RTX-PRO-6000-96GB",
]


def test_catalogue_holds_every_device() -> None:
    """The catalogue names exactly the devices that public sources describe."""
    assert list(device_names()) == sorted(DEVICES)


@pytest.mark.parametrize("name", DEVICES)
def test_device_loads_with_sources_and_owns_up_to_what_it_lacks(name: str) -> None:
    """Every device loads, names its sources, and every unknown or modelled figure stands among its doubts."""
    device = load_device(name)
    assert device.name == name
    assert device.sources
    assert device.provenance.source
    kinds = {doubt.kind for doubt in device.doubts}
    unknown = any(
        getattr(profile, field) is None
        for profile in device.profiles
        for field in (
            "profile_id",
            "sms",
            "memory_mib",
            "decoders",
            "jpeg_engines",
            "ofa_engines",
            "encoders",
        )
    )
    assert ("unknown" in kinds) == unknown
    assert any(d.about.startswith("starts and size") and d.kind == "modelled" for d in device.doubts) == (
        device.placements == "modelled"
    )


@pytest.mark.parametrize("name", DEVICES)
def test_device_offers_itself_whole_and_never_more_than_it_has(name: str) -> None:
    """One profile holds the whole memory axis and all compute; no profile fits less often than its maximum says."""
    device = load_device(name)
    whole = [p for p in device.profiles if p.g == device.compute_slices and not p.attributes]
    assert [p.size for p in whole] == [device.memory_slices]
    for profile in device.profiles:
        assert profile.starts is not None
        assert profile.size is not None
        assert profile.instances_max <= len(profile.starts)
        assert profile.sms is None or device.sms_total is None or profile.sms <= device.sms_total


def test_device_whose_known_figures_drivers_print_says_the_same() -> None:
    """Figures that mock tables in circulation get wrong are those of driver listings here."""
    h100 = {p.name: p for p in load_device("H100-SXM5-80GB").profiles}
    assert (h100["3g.40gb"].sms, h100["3g.40gb"].size, h100["3g.40gb"].jpeg_engines) == (60, 4, 3)
    assert (h100["1g.20gb"].sms, h100["7g.80gb"].sms) == (26, 132)
    assert {p.name: p.sms for p in load_device("H100-PCIe-80GB").profiles}["3g.40gb"] == 46
    a100 = load_device("A100-40GB")
    assert [p.name for p in a100.profiles if p.jpeg_engines] == ["1g.5gb+me", "7g.40gb"]
    assert {p.name: p.memory_mib for p in a100.profiles}["1g.5gb"] == 4864


def test_device_conflict_between_sources_is_recorded_not_settled_silently() -> None:
    """Where two sources differ, the reading not used is kept with its source."""
    doubts = load_device("A100-80GB").doubts
    (decoders,) = [doubt for doubt in doubts if "decoders of 1g.10gb" in doubt.about]
    assert decoders.used == "0"
    assert [(other.value, "go-nvml" in other.source) for other in decoders.others] == [("1", True)]


@pytest.mark.parametrize("written", ["a100-40gb", "A100-40GB", "A100-40gb"])
def test_device_name_in_any_case_is_found(written: str) -> None:
    """Upper and lower case make no difference."""
    assert load_device(written).name == "A100-40GB"


def test_device_alias_is_found_and_hashes_alike() -> None:
    """A30 means the only A30 there is, and two loads are the same value."""
    assert load_device("A30") == load_device("A30-24GB")
    assert len({load_device("A30"), load_device("A30-24GB")}) == 1


def test_device_misspelt_name_suggests_the_nearest() -> None:
    """A name that is not there is answered with the nearest one."""
    with pytest.raises(MissingFileError, match="did you mean 'H100-NVL-94GB'"):
        load_device("H100-NVL-96GB")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("2g", "2g.10gb"),
        ("1g.5gb+me", "1g.5gb+me"),
        ("1g.5gb.me", "1g.5gb+me"),
        ("mig-1g.5gb.me", "1g.5gb+me"),
        ("nvidia.com/mig-3g.20gb", "3g.20gb"),
        ("7G.40GB", "7g.40gb"),
    ],
)
def test_profile_friendly_names_are_understood(written: str, name: str) -> None:
    """Short, Kubernetes and upper-case forms all find their profile."""
    assert load_device("A100-40GB").profile(written, where="x").name == name


def test_profile_short_name_that_could_be_two_is_refused() -> None:
    """1g on an A100 could be 1g.5gb or 1g.10gb: the message says so instead of choosing."""
    with pytest.raises(PartitionError, match=r"^field: '1g' could be 1g\.5gb or 1g\.10gb on A100-40GB"):
        load_device("A100-40GB").profile("1g", where="field")


def test_profile_name_under_another_driver_is_understood() -> None:
    """The GB200's smallest profile has two names in the field; both find it."""
    device = load_device("GB200")
    assert device.profile("1g.24gb", where="x") == device.profile("1g.23gb", where="x")


def _changed(tmp_path: Path, before: str, after: str) -> Path:
    text = (Path(__file__).parents[3] / "configs/devices/A30-24GB.yaml").read_text(encoding="utf-8")
    assert before in text
    path = tmp_path / "device.yaml"
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("memory_slices: 4", "memory_slice: 4", "memory_slice: unknown key; did you mean 'memory_slices'"),
        ("sms_total: 56\n", "", "sms_total: missing"),
        ("starts: [0, 2], size: 2", "starts: [0, 3], size: 2", "2g.12gb ends at 5, memory_slices is 4"),
        ("profile_id: 21", "profile_id: 14", "profile_ids used twice: 14"),
        ("g: 2, sms: 28", "g: 3, sms: 28", "contradicts the name '2g.12gb'"),
        ("name: 1g.6gb+me", "name: 1g.6gb", "names used twice: 1g.6gb"),
        ("starts: [0, 2], size: 2", "starts: null, size: 2", "size without starts"),
        ("instances_max: 4", "instances_max: 4.5", "instances_max"),
        ("kind: published", "kind: guessed", "kind"),
    ],
)
def test_device_file_that_is_wrong_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    """A wrong device file is one clear error that names the field and the file."""
    path = _changed(tmp_path, before, after)
    with pytest.raises(FormatError) as caught:
        load_device(path)
    assert message in str(caught.value)
    assert "device.yaml" in str(caught.value)


def test_device_file_that_is_absent_is_refused(tmp_path: Path) -> None:
    """A path that leads nowhere is an error that names it."""
    with pytest.raises(MissingFileError, match=r"nowhere\.yaml"):
        load_device(tmp_path / "nowhere.yaml")


def test_engine_totals_are_those_of_the_whole_gpu_or_unknown() -> None:
    """A device's engines are counted on the profile that holds all of it, and unknown where that one's are."""
    assert load_device("A30").engine_totals() == {
        "decoders": 4,
        "jpeg_engines": 1,
        "ofa_engines": 1,
        "encoders": 0,
    }
    assert set(load_device("B300").engine_totals().values()) == {None}


def test_catalogue_elsewhere_is_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PREBA_CONFIGS points the catalogue at another folder of the same form."""
    (tmp_path / "devices").mkdir()
    _changed(tmp_path, "name: A30-24GB", "name: MINE").rename(tmp_path / "devices" / "MINE.yaml")
    monkeypatch.setenv("PREBA_CONFIGS", str(tmp_path))
    assert device_names() == ("MINE",)
    assert load_device("mine").name == "MINE"
    monkeypatch.setenv("PREBA_CONFIGS", str(tmp_path / "absent"))
    with pytest.raises(MissingFileError, match="PREBA_CONFIGS"):
        load_device("MINE")


def test_catalogue_of_an_installed_package_is_the_environments_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without configs/ beside the package that of the environment is used; without either the error names both."""
    package = tmp_path / "site" / "preba"
    package.mkdir(parents=True)
    monkeypatch.delenv("PREBA_CONFIGS", raising=False)
    monkeypatch.setattr(preba.data, "__file__", str(package / "data.py"))
    monkeypatch.setattr(preba.data.sys, "prefix", str(tmp_path / "env"))
    with pytest.raises(MissingFileError, match="share/preba/configs"):
        device_names()
    installed = tmp_path / "env" / "share" / "preba" / "configs"
    (installed / "devices").mkdir(parents=True)
    assert device_names() == ()
    assert preba.data.config_folder() == installed
    (tmp_path / "site" / "configs").mkdir()
    assert preba.data.config_folder() == tmp_path / "site" / "configs"
