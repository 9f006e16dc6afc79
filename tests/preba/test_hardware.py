"""Promises of preba.hardware: shipped files load, scenarios replace numbers, nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from preba.data import config_folder
from preba.errors import FormatError, MissingFileError, ScenarioError
from preba.hardware import Hardware, HardwareConfig, hardware_provenance, load_hardware, resolve_hardware

SHIPPED = sorted((config_folder() / "hardware").glob("*.yaml"))


def config(data: Any) -> HardwareConfig:
    return HardwareConfig.model_validate_json(json.dumps(data))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_hardware_loads_under_its_own_name(path: Path) -> None:
    """Every file of configs/hardware is valid and found by the name written in it."""
    assert load_hardware(path.stem).name == path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_price_of_ours_passes_for_published(path: Path) -> None:
    """Dollar values are not in the paper; each shipped price says that it is modelled."""
    prices = [p for what, p in hardware_provenance(load_hardware(path.stem)) if ".prices_usd." in what]
    assert len(prices) == 3
    assert {p.kind for p in prices} == {"modelled"}


def test_default_is_prebas_testbed() -> None:
    """Without a hardware section the machine is PREBA's, with its 32 cores and 0.139 USD/kWh over three years."""
    hardware = resolve_hardware(HardwareConfig())
    assert hardware.name == "preba-testbed"
    assert hardware.host.cores.value == 32
    assert hardware.electricity_usd_per_kwh.value == 0.139
    assert hardware.years.value == 3


def test_name_alone_is_short_for_use() -> None:
    """``hardware: NAME`` and ``hardware: {use: NAME}`` are the same."""
    assert config("h100-pcie-server") == config({"use": "h100-pcie-server"})


def test_scenario_numbers_replace_those_of_the_file_and_say_so() -> None:
    """A price or a draw from the scenario takes the file's place, with the scenario as its source."""
    hardware = resolve_hardware(config({"prices_usd": {"gpu": 9000}, "host": {"max_w": 400}, "years": 5}))
    assert hardware.prices_usd.gpu.value == 9000
    assert hardware.prices_usd.gpu.source == "set in the scenario"
    assert hardware.prices_usd.server.value == 6000
    assert hardware.host.max_w.value == 400
    assert hardware.host.cores.value == 32
    assert hardware.years.value == 5


def test_hardware_can_be_written_out_in_full() -> None:
    """The resolved value written into a scenario means the same without any file."""
    hardware = resolve_hardware(config({"gpu": {"idle_w": 33}}))
    again = config({"use": json.loads(hardware.model_dump_json())})
    assert resolve_hardware(again) == hardware


def test_relative_path_starts_from_the_scenarios_folder(tmp_path: Path) -> None:
    """A hardware file beside the scenario is found there."""
    text = (config_folder() / "hardware" / "preba-testbed.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("name: preba-testbed", "name: mine"), encoding="utf-8")
    assert resolve_hardware(config("mine.yaml"), folder=tmp_path).name == "mine"


def test_component_that_draws_less_when_busy_is_refused(tmp_path: Path) -> None:
    """max_w below idle_w is an error, in a file as in a scenario; the message names both values."""
    with pytest.raises(ScenarioError, match=r"hardware\.gpu\.max_w: must be >= idle_w = 40 W, got 30 W"):
        resolve_hardware(config({"gpu": {"max_w": 30}}))
    text = (config_folder() / "hardware" / "preba-testbed.yaml").read_text(encoding="utf-8")
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace("value: 290", "value: 100"), encoding="utf-8")
    with pytest.raises(FormatError, match="max_w: must be >= idle_w = 130, got 100"):
        load_hardware(str(path))


def test_number_without_provenance_does_not_load(tmp_path: Path) -> None:
    """A price without a source is refused with its field."""
    text = (config_folder() / "hardware" / "preba-testbed.yaml").read_text(encoding="utf-8")
    path = tmp_path / "bare.yaml"
    start = text.index("years:")
    path.write_text(text[:start] + "years: 3\n", encoding="utf-8")
    with pytest.raises(FormatError, match="years"):
        load_hardware(str(path))


def test_misspelt_name_gets_a_suggestion() -> None:
    """Hardware that does not exist is one error with the nearest name."""
    with pytest.raises(MissingFileError, match="did you mean 'preba-testbed'"):
        resolve_hardware(config("preba-testbet"))


@pytest.mark.parametrize("data", [{"gpus": {}}, {"prices_usd": {"gpu": -1}}, {"years": 0}, {"host": {"cores": 1.5}}])
def test_senseless_section_is_refused(data: dict[str, Any]) -> None:
    """Unknown keys, negative prices, no time at all and half a core are errors."""
    with pytest.raises(ValidationError):
        config(data)


def test_every_figure_is_listed_with_its_value() -> None:
    """The provenance of a hardware value names all its numbers."""
    hardware: Hardware = load_hardware("preba-testbed")
    names = [what for what, _ in hardware_provenance(hardware)]
    assert len(names) == 13
    assert "hardware preba-testbed.gpu.max_w = 250" in names
