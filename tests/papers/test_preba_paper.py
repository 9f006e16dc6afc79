"""PREBA's facts, the fit of what the paper leaves open, and the comparison: complete, reproducible, alive."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from preba.preprocessing import load_costs
from preba.preprocessing_costs import CpuCosts

FOLDER = Path(__file__).parents[2] / "papers" / "preba"

NAMES = ("make_profiles", "facts", "figure_text", "rig", "experiments", "sheet", "compare", "fit")


@pytest.fixture(scope="module")
def paper() -> Iterator[SimpleNamespace]:
    """Import the commands of papers/preba by their own names, and forget them afterwards."""
    sys.path.insert(0, str(FOLDER))
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if isinstance(module, ModuleType):
                sys.modules[name] = module


def test_numbers_say_where_they_stand_and_what_they_are(paper: SimpleNamespace) -> None:
    """Every row has a claim, a value, a unit and a place; derived ones say how."""
    facts = paper.facts.load_facts()
    assert len(facts) >= 60
    for fact in facts.values():
        assert fact.claim, fact.id
        assert fact.text, fact.id
        assert fact.unit, fact.id
        assert any(word in fact.where for word in ("sec.", "Fig", "Table", "abstract")), fact.id
        assert fact.kind == "stated" or fact.note, fact.id


def test_headline_numbers_are_the_papers(paper: SimpleNamespace) -> None:
    """The numbers that the fit and the verdict hang on are those of the paper's text."""
    facts = paper.facts.load_facts()
    stated = {
        "abstract_throughput": 3.7,
        "abstract_tail": 3.4,
        "abstract_energy": 3.5,
        "abstract_cost": 3.0,
        "loss_sec3": 75.6,
        "loss_sec6": 77.2,
        "ideal_share": 91.6,
        "cores_citrinet": 393,
        "cpu_power": 35.4,
        "gpu_power_audio": 2.8,
        "ablation_dpu": 2.01,
        "ablation_batching": 1.54,
        "share_squeezenet": 53,
        "share_conformer": 72,
        "pcie_mobilenet": 6.13,
        "pcie_citrinet": 0.9,
        "time_knee_audio": 35,
    }
    assert {name: facts[name].value for name in stated} == stated
    assert facts["opex_per_watt"].value == pytest.approx(3 * 8.760 * 0.139, abs=5e-4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id,claim", "claim,id", "header"),
        (",stated,no operating point", ",guessed,no operating point", "kind must be"),
        ("abstract_tail,", "abstract_throughput,", "twice"),
    ],
)
def test_broken_numbers_are_refused(paper: SimpleNamespace, tmp_path: Path, old: str, new: str, message: str) -> None:
    """A wrong header, an unknown kind or a repeated id is an error that names it."""
    text = (FOLDER / "numbers.csv").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "numbers.csv").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        paper.facts.load_facts(tmp_path / "numbers.csv")


def test_setting_a_figure_changes_nothing_else(paper: SimpleNamespace) -> None:
    """Only the named figure's block changes; writing the same again changes nothing; a wrong name is an error."""
    path = FOLDER.parents[1] / "configs" / "preprocessing" / "preba-cpu-epyc7502.yaml"
    text = path.read_text(encoding="utf-8")
    changed = paper.figure_text.set_figure(text, "audio.fixed_us", 12.5, source="a test", notes="no reason")
    again = paper.figure_text.set_figure(changed, "audio.fixed_us", 12.5, source="a test", notes="no reason")
    assert again == changed
    before, after = text.splitlines(), changed.splitlines()
    kept = [line for line in before if line in after]
    assert len(before) - len(kept) <= 3
    assert "    value: 12.5" in after
    with pytest.raises(ValueError, match=r"no figure audio\.fixed in"):
        paper.figure_text.set_figure(text, "audio.fixed", 1.0, source="a test", notes="")


def test_fit_is_reproducible(paper: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Fitting again gives byte for byte the numbers in configs/."""
    assert paper.fit.main(["--check"]) == 0
    assert "0 stale" in capsys.readouterr().out


def test_every_parameter_names_facts_that_exist(paper: SimpleNamespace) -> None:
    """What determines a parameter is a fact of the paper, and every fitted fact determines one."""
    facts = paper.facts.load_facts()
    named = {name.strip() for _, names, _ in paper.fit.PARAMETERS for name in names.split(",")}
    for name in named:
        matching = [fact for fact in facts if fact.startswith(name.rstrip("*"))]
        assert matching, name
    assert set(paper.fit.FITTED) <= named


def test_prediction_follows_its_parameters(paper: SimpleNamespace) -> None:
    """A tight DPU costs throughput and traffic; cheaper images cut the loss; exact parameters meet their facts."""
    facts = paper.facts.load_facts()
    rates = dict.fromkeys(paper.rig.MODELS, 1000.0)
    setting = paper.fit.Setting(ideal=rates, fixed=rates, characterised=rates, audio_s=10.0, cores=32.0, usable=0.9)
    free = paper.fit.free_at(setting, facts, cores=128.0, dpu_audio=5000.0, shared=False)
    found = paper.fit.predict(setting, free)
    assert found["cores_citrinet"] == pytest.approx(393)
    assert found["ideal_share"] == pytest.approx(50)
    assert found["pcie_citrinet"] == pytest.approx(5000 * 96_000 / 1e9)
    cheaper = replace(free, image_core_s={m: s / 2 for m, s in free.image_core_s.items()})
    assert paper.fit.predict(setting, cheaper)["loss_sec6"] == pytest.approx(found["loss_sec6"] - 12.5)
    assert paper.fit.deviation("ideal_share", 99.0, facts) == 0
    assert paper.fit.deviation("ideal_share", 50.0, facts) < -0.4


def test_cost_files_share_one_number_of_cores(paper: SimpleNamespace) -> None:
    """Each vision model's cost file lets the same number of cores sustain its 1g.5gb(7x)."""
    names = {"mobilenet-v3-small": "preba-cpu-epyc7502", **paper.rig.COST_FILES}
    cores = []
    for model, name in names.items():
        cost = load_costs(CpuCosts, name).image
        assert cost is not None
        work_us = cost.fixed_us.value + cost.per_100kb_us.value * paper.fit.JPEG_BYTES / 1e5
        profile = paper.rig.load_profile(paper.rig.profile_name(model))
        cores.append(work_us / 1e6 * paper.rig.characterised_rps(profile, 7) / 0.9)
    assert max(cores) / min(cores) < 1.01


@pytest.fixture(scope="module")
def tiny(paper: SimpleNamespace) -> SimpleNamespace:
    """A comparison from runs that are far too short and too few to believe."""
    experiments = paper.experiments
    experiments.LOADS, experiments.DUE_LOADS, experiments.GREEDY_LOADS = (0.9,), (0.4,), (0.5,)
    experiments.BATCHES, experiments.SERVERS, experiments.QUEUE_FACTORS = (4,), (7,), (0.5, 1.0)
    scale = paper.experiments.Scale(saturation=300, steady=600)
    with ThreadPoolExecutor(1) as pool:
        results = paper.compare.simulate_all(pool, scale)
    rows = paper.sheet.rows(results, paper.facts.load_facts())
    return SimpleNamespace(scale=scale, results=results, rows=rows)


def test_comparison_has_a_row_for_every_item_of_the_sheet(paper: SimpleNamespace, tiny: SimpleNamespace) -> None:
    """All nine items are there, each row has a known status, and fitted facts say so."""
    items = list(dict.fromkeys(row.item[:2] for row in tiny.rows))
    assert items == ["1.", "2.", "3.", "4.", "5.", "6.", "7."]
    assert {row.status for row in tiny.rows} <= set(paper.sheet.STATUSES)
    fitted = {row.fact.id for row in tiny.rows if row.status == paper.sheet.FITTED}
    assert set(paper.fit.FITTED) <= fitted
    predicted = {row.fact.id for row in tiny.rows if row.status == paper.sheet.PREDICTED}
    assert {"abstract_tail", "abstract_energy", "gpu_power_audio", "share_squeezenet"} <= predicted


def test_comparison_knees_are_the_papers(tiny: SimpleNamespace) -> None:
    """All six stated knees come back exactly."""
    knees = [row for row in tiny.rows if row.fact.id.startswith(("knee_1g", "knee_7g"))]
    assert len(knees) == 6
    assert all(row.off == 0 for row in knees)


def test_policy_reduces_as_the_paper_implies(tiny: SimpleNamespace) -> None:
    """With one length, PREBA's batcher answers every request when Batch_max with a time-out would."""
    assert tiny.results.one_bucket == {"mobilenet-v3-small": 0, "squeezenet1.1": 0, "swin": 0}


def test_comparison_is_written_as_markdown_and_json(paper: SimpleNamespace, tiny: SimpleNamespace) -> None:
    """Every row's claim stands in the page, and the JSON holds the same numbers."""
    page = paper.compare.render(tiny.rows, tiny.results, tiny.scale)
    data = json.loads(paper.compare.as_json(tiny.rows, tiny.results, tiny.scale))
    assert len(data["rows"]) == len(tiny.rows)
    for row, entry in zip(tiny.rows, data["rows"], strict=True):
        assert f"| {row.fact.claim} |" in page
        assert entry["ours"] == row.ours
        assert entry["difference"] == row.off


def test_shipped_comparison_is_of_these_facts() -> None:
    """comparison.md and comparison.json were written together and hold every reproduced fact."""
    data = json.loads((FOLDER / "comparison.json").read_text(encoding="utf-8"))
    page = (FOLDER / "comparison.md").read_text(encoding="utf-8")
    assert f"Status of the {len(data['rows'])} rows" in page
    assert data["requests"]["steady"] >= 10_000
