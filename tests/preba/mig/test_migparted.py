"""Promises of reading and writing mig-parted configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from preba.errors import FormatError, MissingFileError, OutputError, PartitionError
from preba.mig.catalogue import device_names, load_device
from preba.mig.geometry import maximal_placements
from preba.mig.migparted import mig_parted_text, read_mig_parted, write_mig_parted
from preba.mig.placement import Partition, resolve_partition

A100 = load_device("A100-40GB")
H100 = load_device("H100-SXM5-80GB")
DEVICES = [load_device(name) for name in device_names()]
MAXIMAL = {device.name: maximal_placements(device, device.plain_profiles(double_memory=True)) for device in DEVICES}

FILE = """\
version: v1
mig-configs:
  all-disabled:
    - devices: all
      mig-enabled: false
  all-enabled:
    - devices: all
      mig-enabled: true
      mig-devices: {}
  all-1g.10gb:
    - device-filter: ["0x233010DE", "0x20B210DE"]
      devices: all
      mig-enabled: true
      mig-devices:
        "1g.10gb": 7
    - device-filter: "0x20b010de"
      devices: all
      mig-enabled: true
      mig-devices:
        "1g.10gb": 4
        "2g.10gb": 0
  mixed:
    - devices: [0, 1]
      mig-enabled: true
      mig-devices: {"3g.20gb": 1, "1g.5gb+me": 1}
"""


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_mig_parted_file_is_read_with_all_its_labels(tmp_path: Path) -> None:
    """Labels come in order; filters, device lists, disabled entries and counts of zero are understood."""
    found = read_mig_parted(_file(tmp_path, FILE))
    assert found.labels == ("all-disabled", "all-enabled", "all-1g.10gb", "mixed")
    assert found.mig_configs["mixed"][0].devices == (0, 1)
    assert found.mig_configs["all-1g.10gb"][1].counts == {"1g.10gb": 4}


def test_mig_parted_label_gives_the_partition_of_each_kind_of_gpu(tmp_path: Path) -> None:
    """The device filter decides which entry is meant for a GPU, whatever the case of its hex digits."""
    found = read_mig_parted(_file(tmp_path, FILE))
    assert [p.name for p in found.partitions("all-1g.10gb", A100, where="x")] == ["4x1g.10gb"]
    assert [p.name for p in found.partitions("all-1g.10gb", H100, where="x")] == ["7x1g.10gb"]
    assert found.partitions("all-disabled", A100, where="x") == ()
    assert found.partitions("all-enabled", A100, where="x") == ()
    with pytest.raises(PartitionError, match="no label 'mixd'; did you mean 'mixed'"):
        found.partitions("mixd", A100, where="x")
    with pytest.raises(PartitionError, match=r"^x: mixed\[0\]\.mig-devices.*no profile '3g.20gb'"):
        found.partitions("mixed", H100, where="x")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("version: v1\n", "", "version: missing"),
        ("version: v1", "version: v2", "version"),
        (
            "mig-configs:",
            "mig-config:",
            "mig-config: unexpected field; did you mean 'mig-configs'? ({path}:2)",
        ),
        (
            "mig-enabled: false",
            "mig_enabled: false",
            "mig-configs.all-disabled[0].mig_enabled: unexpected field; did you mean 'mig-enabled'? ({path}:5)",
        ),
        ("\n      mig-enabled: false", "", "mig-configs.all-disabled[0].mig-enabled: missing"),
        ("devices: [0, 1]\n      ", "", "mig-configs.mixed[0].devices: missing"),
        (
            "devices: [0, 1]",
            "devices: some",
            "mixed[0].devices: must be all or a list of GPU indices, got 'some'",
        ),
        (
            "devices: [0, 1]",
            "devices: [0, one]",
            "mig-configs.mixed[0].devices: must be all or a list of GPU indices, got [0, 'one']",
        ),
        ("      mig-devices: {}\n", "", "mig-devices: missing although mig-enabled is true"),
        (
            "mig-enabled: false",
            'mig-enabled: false\n      mig-devices: {"7g.40gb": 1}',
            "given although mig-enabled is false",
        ),
        ('"1g.10gb": 7', '"1g.10gb": 0', "all counts are 0"),
        ('"1g.10gb": 7', '"1g.10gb": -1', "1g.10gb"),
        ('"1g.10gb": 7', '"1g-10gb": 7', "'1g-10gb' is not a profile name"),
        ('"1g.10gb": 7', '"1g.10gb": 7\n        "1g.10gb": 6', "given twice"),
        (
            '"0x20b010de"',
            '"A100"',
            "[1].device-filter: must be like 0x20B010DE, or a list of such, got 'A100'",
        ),
        ("mig-enabled: false", "mig-enabled: no way", "mig-enabled"),
    ],
)
def test_mig_parted_file_that_is_wrong_is_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    """What nvidia-mig-parted refuses is refused here, with the field, and the file where it is known."""
    assert before in FILE
    path = _file(tmp_path, FILE.replace(before, after, 1))
    with pytest.raises(FormatError) as caught:
        read_mig_parted(path)
    assert message.format(path=path) in str(caught.value)
    assert "config.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["version: v1\nmig-configs: {}\n", "version: v1\nmig-configs: {a: []}\n", "[]\n", "- a: [\n"]
)
def test_mig_parted_file_without_content_is_refused(tmp_path: Path, text: str) -> None:
    """No labels, a label without entries, a list and broken YAML are all one clear error."""
    with pytest.raises(FormatError, match=r"config\.yaml"):
        read_mig_parted(_file(tmp_path, text))


def test_mig_parted_file_that_is_absent_is_refused(tmp_path: Path) -> None:
    """A missing file is named."""
    with pytest.raises(MissingFileError, match=r"absent\.yaml"):
        read_mig_parted(tmp_path / "absent.yaml")


def test_mig_parted_config_map_is_read(tmp_path: Path) -> None:
    """The GPU operator's ConfigMap form is opened and its inner file read."""
    outer = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"config.yaml": FILE}}
    assert read_mig_parted(_file(tmp_path, yaml.safe_dump(outer))).labels[-1] == "mixed"
    outer["data"] = {"other": "x"}
    with pytest.raises(FormatError, match="holds 0 mig-parted configurations"):
        read_mig_parted(_file(tmp_path, yaml.safe_dump(outer)))


def test_mig_parted_text_of_one_partition_is_what_export_writes() -> None:
    """Version, label, filter, devices, flag and counts stand in the form of nvidia-mig-parted export."""
    partition = resolve_partition(H100, "3g.40gb+1g.10gb+me", where="t")
    assert yaml.safe_load(mig_parted_text({"current": [partition]})) == {
        "version": "v1",
        "mig-configs": {
            "current": [
                {
                    "device-filter": ["0x233010DE"],
                    "devices": "all",
                    "mig-enabled": True,
                    "mig-devices": {"3g.40gb": 1, "1g.10gb+me": 1},
                }
            ]
        },
    }


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_mig_parted_round_trip_keeps_every_count(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Partitions written and read again are the same counts on the same GPUs."""
    device = data.draw(st.sampled_from(DEVICES))
    chosen = data.draw(st.lists(st.sampled_from(MAXIMAL[device.name]), min_size=1, max_size=4))
    label = data.draw(st.sampled_from(["current", "all-balanced", "my label: x", "1.5", "true", "ein-ö"]))
    partitions = [Partition(device, placed) for placed in chosen]
    path = tmp_path_factory.mktemp("round") / "written.yaml"
    write_mig_parted(path, {label: partitions})
    found = read_mig_parted(path)
    assert found.labels == (label,)
    assert [p.counts for p in found.partitions(label, device, where="x")] == [p.counts for p in partitions]
    entries = found.mig_configs[label]
    if len(partitions) == 1:
        assert entries[0].devices == "all"
    else:
        assert [entry.devices for entry in entries] == [(index,) for index in range(len(partitions))]


def test_mig_parted_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A path that cannot be written is an error that names it."""
    with pytest.raises(OutputError, match="nowhere"):
        write_mig_parted(tmp_path / "nowhere" / "x.yaml", {"current": [resolve_partition(A100, "7g", where="t")]})
