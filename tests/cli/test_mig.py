"""Promises of ``preba mig``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import preba.errors
from preba.cli.mig import mig_app
from preba.errors import FormatError, MissingFileError, PartitionError, PrebaError
from preba.mig.catalogue import device_names

LISTINGS = Path(__file__).parents[1] / "preba" / "mig" / "listings"


def invoke(*arguments: str) -> str:
    """Run the sub-command; a PrebaError passes through for the caller to look at."""
    result = CliRunner().invoke(mig_app, list(arguments))
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def test_mig_list_names_every_device_within_80_columns() -> None:
    """Every device of the catalogue is listed whole on an 80-column terminal."""
    out = invoke("list")
    assert all(f" {name} " in out for name in device_names())
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "…" not in out


@pytest.mark.parametrize("name", device_names())
def test_mig_list_device_shows_profiles_whole_within_80_columns(name: str) -> None:
    """Profile tables of every device fit 80 columns with no name cut."""
    out = invoke("list", name)
    data = json.loads(invoke("list", name, "--json"))
    assert max(len(line) for line in out.splitlines()) <= 80
    for profile in data["profiles"]:
        assert f" {profile['name']} " in out
    assert f"{data['geometries']['plain']['maximal_placements']} maximal placements" in out
    assert data["geometries"]["plain"]["geometries"]
    assert data["provenance"]["source"]


def test_mig_list_geometries_lists_the_fourteen_of_the_a100() -> None:
    """--geometries prints one line per distinct geometry and states the counts."""
    out = invoke("list", "A100-40GB", "--geometries")
    assert "19 maximal placements, 14 distinct geometries" in out
    assert "78 and 38 with the double-memory 1g.10gb" in out
    lines = [line for line in out.splitlines() if line.startswith("  ") and "gb" in line]
    assert sum(all("g." in word for word in line.split()) for line in lines) == 14


def test_mig_list_json_of_all_devices_is_one_object() -> None:
    """--json gives one object with a row per device."""
    data = json.loads(invoke("list", "--json"))
    assert [row["name"] for row in data["devices"]] == list(device_names())


@pytest.mark.parametrize("name", device_names())
def test_mig_plan_works_on_every_device(name: str) -> None:
    """The whole-GPU slice of every device is planned, as text and as JSON, offline."""
    profiles = json.loads(invoke("list", name, "--json"))["profiles"]
    whole = next(p for p in reversed(profiles) if p["starts"] == [0] and "+" not in p["name"])
    data = json.loads(invoke("plan", name, whole["name"], "--json"))
    assert [each["profile"] for each in data["slices"]] == [whole["name"]]
    assert data["left_over"]["compute_slices"] == 0
    assert data["commands"]["create"] in invoke("plan", name, whole["name"])


def test_mig_plan_prints_commands_on_one_line_each() -> None:
    """Commands can be copied from the output: they are never wrapped."""
    out = invoke("plan", "A100-40GB", "7x1g.5gb", "--gpu", "2").splitlines()
    assert "  sudo nvidia-smi -i 2 -mig 1" in out
    assert "  sudo nvidia-smi mig -i 2 -cgi 19:6,19:4,19:5,19:0,19:1,19:2,19:3 -C" in out
    assert "Kubernetes: nvidia.com/mig-1g.5gb: 7" in out


def test_mig_plan_writes_a_mig_parted_file_that_reads_back_and_plans(tmp_path: Path) -> None:
    """--mig-parted writes a file; read lists it, and plan takes FILE:LABEL."""
    file = tmp_path / "out.yaml"
    first = json.loads(invoke("plan", "H100-SXM5-80GB", "3g+2g+2x1g.10gb", "--json", "--mig-parted", str(file)))
    assert "H100-SXM5-80GB" in invoke("read", str(file))
    read = json.loads(invoke("read", str(file), "--json"))
    assert read["kind"] == "mig-parted"
    assert read["configs"][0]["possible_on"] == ["H100-SXM5-80GB"]
    assert json.loads(invoke("plan", "H100-SXM5-80GB", f"{file}:current", "--json")) == first
    with pytest.raises(PartitionError, match="labels: current"):
        invoke("plan", "H100-SXM5-80GB", str(file))
    with pytest.raises(PartitionError, match="cuts no A100-40GB"):
        invoke("plan", "A100-40GB", f"{file}:current")


@pytest.mark.parametrize("file", ["a30-driver-535.txt", "h100-nvl-two-gpus.txt", "rtx-pro-6000-driver-610.txt"])
def test_mig_read_recognises_listings_and_compares_them(file: str) -> None:
    """An nvidia-smi listing is recognised, shown and found to agree with its device."""
    assert "agrees with it" in invoke("read", str(LISTINGS / file))
    data = json.loads(invoke("read", str(LISTINGS / file), "--json"))
    assert all(gpu["differences"] == [] and gpu["placements"] == "measured" for gpu in data["gpus"])


def test_mig_read_reports_differences() -> None:
    """An older driver's listing is shown with what it says otherwise."""
    out = invoke("read", str(LISTINGS / "a100-2020-joined-lines.txt"))
    assert "closest in the catalogue: A100-40GB; 7 differences" in out
    assert "1g.10gb: only in the catalogue" in out


def test_mig_read_recognises_placements_alone(tmp_path: Path) -> None:
    """-lgipp output without -lgip is shown by profile id."""
    file = tmp_path / "lgipp.txt"
    file.write_text("GPU  0 Profile ID  9 Placements: {0,4}:4\n", encoding="utf-8")
    assert "0, 4" in invoke("read", str(file))
    data = json.loads(invoke("read", str(file), "--json"))
    assert data["gpus"] == [{"gpu": 0, "placements": [{"profile_id": 9, "starts": [0, 4], "size": 4}]}]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["list", "A100-40G"], MissingFileError, "did you mean 'A100-40GB'"),
        (["plan", "A100-40GB", "8x1g.5gb"], PartitionError, "at most 7 fit"),
        (["plan", "A100-40GB", "3g@4,2g@4"], PartitionError, "PARTITION: '3g@4,2g@4' does not fit"),
        (["plan", "A100-40GB", "absent.yaml:x"], MissingFileError, "absent.yaml"),
        (["read", "absent.txt"], MissingFileError, "absent.txt"),
        (["read", preba.errors.__file__], FormatError, "neither output of"),
        (["read", "."], FormatError, "not a text file"),
    ],
)
def test_mig_wrong_input_is_one_clear_error(arguments: list[str], error: type[PrebaError], message: str) -> None:
    """Wrong names, impossible partitions and unreadable files are errors of the tree, told in one line."""
    with pytest.raises(error) as caught:
        invoke(*arguments)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
