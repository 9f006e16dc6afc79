"""Promises of preba.preprocessing: what a user may write, what it means, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from preba.data import config_folder
from preba.errors import FormatError, MissingFileError, ScenarioError
from preba.preprocessing import (
    AnyPreprocessing,
    CpuPreprocessing,
    DaliSlicePreprocessing,
    DpuPreprocessing,
    NoPreprocessing,
    PreprocessingConfig,
    accelerator_count,
    cost_provenance,
    inline_costs,
    load_costs,
)
from preba.preprocessing_costs import CpuCosts, DaliCosts, DpuRates
from preba.strictfile import read_yaml

ADAPTER: TypeAdapter[AnyPreprocessing] = TypeAdapter(PreprocessingConfig)
KINDS: dict[str, type[CpuCosts] | type[DaliCosts] | type[DpuRates]] = {
    "cpu": CpuCosts,
    "dali": DaliCosts,
    "dpu": DpuRates,
}
SHIPPED = sorted((config_folder() / "preprocessing").glob("*.yaml"))


def config(**keys: Any) -> AnyPreprocessing:
    return ADAPTER.validate_json(json.dumps(keys))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_cost_profile_loads_under_its_own_name(path: Path) -> None:
    """Every file of configs/preprocessing is a valid profile, found by the name written in it."""
    data, _ = read_yaml(path)
    costs = load_costs(KINDS[data["kind"]], path.stem)
    assert costs.name == path.stem


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "none"},
        {"kind": "cpu", "cores": 32, "image": {"fixed_us": 3}},
        {"kind": "dpu", "audio": {"design": "one_type", "mel_units": 3}, "hop": {"latency_us": 9}},
        {"kind": "dali_slice", "slices": {"1g.5gb": 2}, "launch_us": 7, "hop": {"latency_us": 9}},
        {"kind": "dali_shared", "interference": 0.3, "image": {"engine_gpcs": 2}},
    ],
    ids=lambda keys: str(keys["kind"]),
)
def test_inlined_config_needs_no_file_and_means_the_same(keys: dict[str, Any]) -> None:
    """Inlining, writing as JSON, reading back and inlining again gives the very same value."""
    inlined = inline_costs(config(**keys))
    again = ADAPTER.validate_json(ADAPTER.dump_json(inlined))
    assert again == inlined
    assert inline_costs(again) == inlined


def test_scenario_numbers_replace_those_of_the_profile_and_say_so() -> None:
    """An inline number takes the place of the profile's; its provenance is the scenario, the others keep theirs."""
    inlined = inline_costs(config(kind="dpu", image={"units": 3}, audio={"mel_per_audio_s_us": 12}))
    assert isinstance(inlined, DpuPreprocessing)
    assert isinstance(inlined.rates, DpuRates)
    assert inlined.rates.image is not None
    assert inlined.rates.audio is not None
    assert (inlined.rates.image.units.value, inlined.rates.image.units.source) == (3, "set in the scenario")
    assert inlined.rates.audio.mel_per_audio_s_us.value == 12
    assert "PREBA" in inlined.rates.image.interval_per_100kb_us.source


def test_relative_path_starts_from_the_scenarios_folder(tmp_path: Path) -> None:
    """A cost profile beside the scenario is found there."""
    text = (config_folder() / "preprocessing" / "cpu-opencv-epyc.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("value: 1218", "value: 77"), encoding="utf-8")
    inlined = inline_costs(config(kind="cpu", cores=1, cost="mine.yaml"), folder=tmp_path)
    assert isinstance(inlined, CpuPreprocessing)
    assert isinstance(inlined.cost, CpuCosts)
    assert inlined.cost.image is not None
    assert inlined.cost.image.fixed_us.value == 77


def test_misspelt_profile_name_gets_a_suggestion() -> None:
    """A profile that does not exist is one error with the nearest name."""
    with pytest.raises(MissingFileError, match="did you mean 'dali-a100'"):
        inline_costs(config(kind="dali_shared", cost="dali-a1000"))


def test_number_without_provenance_does_not_load(tmp_path: Path) -> None:
    """A bare number in a cost profile is refused with its field and line."""
    path = tmp_path / "bare.yaml"
    path.write_text("kind: cpu\nname: bare\nimage:\n  fixed_us: 5\n", encoding="utf-8")
    with pytest.raises(FormatError, match=r"image\.fixed_us.*bare\.yaml:4"):
        load_costs(CpuCosts, str(path))


def test_profile_of_another_kind_is_refused() -> None:
    """DALI costs cannot pass for CPU costs."""
    with pytest.raises(FormatError, match="kind"):
        load_costs(CpuCosts, "dali-a100")


def test_override_of_what_the_profile_lacks_is_refused(tmp_path: Path) -> None:
    """A number for a modality that the profile does not have would be ignored silently; it is an error."""
    path = tmp_path / "empty.yaml"
    path.write_text("kind: cpu\nname: empty\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"preprocessing\.image\.fixed_us: the profile has no image"):
        inline_costs(config(kind="cpu", cores=1, cost=str(path), image={"fixed_us": 1}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "cpu", "cores": 0}, "greater than 0"),
        ({"kind": "cpu", "cores": 4, "usable_fraction": 1.2}, "less than or equal to 1"),
        ({"kind": "cpu", "cores": 4, "usable_fraction": 0}, "greater than 0"),
        ({"kind": "cpu", "cores": 4, "core_count": 4}, "Extra inputs"),
        (
            {"kind": "dpu", "audio": {"design": "one_type", "normalize_units": 2}},
            "mel_units counts the units",
        ),
        ({"kind": "dpu", "hop": {"bandwidth_gb_per_s": 0}}, "greater than 0"),
        ({"kind": "dali_slice", "slices": {"1g.5gb": 1, "2g.10gb": 1}}, "exactly one slice profile"),
        ({"kind": "dali_slice", "slices": []}, "at least 1"),
        ({"kind": "dali_shared", "hw_decoder_share": 1.5}, "less than or equal to 1"),
        ({"kind": "dali_shared", "interference": -0.1}, "greater than or equal to 0"),
        ({"kind": "gpu"}, "does not match any of the expected tags"),
    ],
)
def test_senseless_config_is_refused(keys: dict[str, Any], message: str) -> None:
    """Out-of-range numbers, unknown keys and contradictions are errors, not defaults."""
    with pytest.raises(ValidationError, match=message):
        config(**keys)


def test_interference_is_always_reported_as_an_assumption() -> None:
    """The interference factor has no published value, and its provenance says so, default or not."""
    for keys in ({}, {"interference": 0.2}):
        found = dict(cost_provenance(inline_costs(config(kind="dali_shared", **keys))))
        (what,) = [name for name in found if "interference" in name]
        assert found[what].kind == "modelled"


def test_one_card_per_modality_that_a_dpu_serves() -> None:
    """Image and audio are separate FPGA builds, so a DPU needs a card for each; other kinds need none."""
    dpu = DpuPreprocessing(kind="dpu")
    assert accelerator_count(dpu, ["image", "image", "tensor"]) == 1
    assert accelerator_count(dpu, ["image", "audio"]) == 2
    assert accelerator_count(dpu, ["tensor"]) == 0
    assert accelerator_count(CpuPreprocessing(kind="cpu", cores=1), ["image"]) == 0
    assert accelerator_count(NoPreprocessing(kind="none"), ["image"]) == 0


def test_slices_are_given_by_profile_or_by_index() -> None:
    """DALI's slices may be counted per profile or listed by index."""
    assert config(kind="dali_slice", slices={"1g.5gb": 2}) == DaliSlicePreprocessing(
        kind="dali_slice", slices={"1g.5gb": 2}
    )
    assert config(kind="dali_slice", slices=[0, 3]) == DaliSlicePreprocessing(kind="dali_slice", slices=(0, 3))
