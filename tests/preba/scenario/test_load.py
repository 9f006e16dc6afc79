"""Reading a scenario file: what is accepted, what --set does, and one clear line for every mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.errors import MissingFileError, PrebaError, ScenarioError
from preba.scenario.draw import draw_scenario_trace
from preba.scenario.load import apply_override, errors_located, load_scenario, split_path
from preba.scenario.resolve import resolve
from preba.scenario.schema import Scenario
from sim.run import simulate

GOOD = """\
preba: 1
name: good
run: {requests: 100}
gpus:
  - device: A100-40GB
    partition: 7x1g.5gb
models:
  - name: m
    profile: parvagpu-resnet50
    batcher: {kind: none}
    arrivals: {kind: poisson, rate_rps: 100}
    sizes: {kind: constant, jpeg_kb: 100}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A correct scenario."""
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def spoilt(folder: Path, right: str, wrong: str) -> Path:
    assert right in GOOD
    path = folder / "wrong.yaml"
    path.write_text(GOOD.replace(right, wrong, 1))
    return path


def load_and_run(path: Path, overrides: tuple[str, ...]) -> None:
    with errors_located(path):
        simulate(resolve(load_scenario(path, overrides), folder=path.parent))


def error_of(path: Path, overrides: tuple[str, ...] = ()) -> PrebaError:
    """What the user is told about a scenario that must not run."""
    with pytest.raises(PrebaError) as caught:
        load_and_run(path, overrides)
    return caught.value


def test_scenario_file_loads_and_runs(good: Path) -> None:
    """The scenario that all mistakes below are made in is itself correct."""
    scenario = load_scenario(good)
    assert scenario.models[0].name == "m"
    assert simulate(resolve(scenario, folder=good.parent)).result.records.served.all()


READING: dict[str, tuple[str, str, str]] = {
    "unknown key": ("name: good", "name: good\nseeed: 3", r"scenario\.seeed: unknown key; did you mean 'seed'\?"),
    "unknown key of a model": (
        "batcher: {kind: none}",
        "batchr: {kind: none}",
        r"scenario\.models\[0\]\.batchr: unknown key; did you mean 'batcher'\?",
    ),
    "unit in a number": (
        "{kind: none}",
        "{kind: fixed, batch_max: 4, timeout_ms: 50ms}",
        r"scenario\.models\[0\]\.batcher\.timeout_ms: should be a valid number, got '50ms'",
    ),
    "text for a rate": (
        "rate_rps: 100",
        "rate_rps: fast",
        r"scenario\.models\[0\]\.arrivals\.rate_rps: should be a valid number, got 'fast'",
    ),
    "negative rate": (
        "rate_rps: 100",
        "rate_rps: -5",
        r"scenario\.models\[0\]\.arrivals\.rate_rps: should be greater than 0, got -5",
    ),
    "infinite rate": (
        "rate_rps: 100",
        "rate_rps: .inf",
        r"scenario\.models\[0\]\.arrivals\.rate_rps: should be a finite number, got inf",
    ),
    "batch of nothing": (
        "{kind: none}",
        "{kind: greedy, batch_max: 0}",
        r"scenario\.models\[0\]\.batcher\.batch_max: should be greater than 0, got 0",
    ),
    "unknown arrivals": (
        "kind: poisson",
        "kind: poison",
        r"scenario\.models\[0\]\.arrivals\.kind: 'poison' is not known; did you mean 'poisson'\?",
    ),
    "unknown batcher": (
        "{kind: none}",
        "{kind: grredy}",
        r"scenario\.models\[0\]\.batcher\.kind: 'grredy' is not known; did you mean 'greedy'\?",
    ),
    "unknown preprocessing": (
        "models:",
        "preprocessing: {kind: fpga}\nmodels:",
        r"scenario\.preprocessing\.kind: 'fpga' is not known; known: cpu, dali_shared, dali_slice, dpu, none",
    ),
    "unknown event": (
        "models:",
        "events: [{kind: slice_fail, at_s: 1, slice: 0}]\nmodels:",
        r"scenario\.events\[0\]\.kind: 'slice_fail' is not known; did you mean 'slice_fails'\?",
    ),
    "no kind": ("{kind: poisson, rate", "{rate", r"scenario\.models\[0\]\.arrivals\.kind: missing"),
    "missing key": ("name: good\n", "", r"scenario\.name: missing"),
    "closed loop with a duration": (
        "run: {requests: 100}",
        "run: {duration_s: 5}",
        r"scenario\.run\.duration_s: .* closed loop makes; give run\.requests",
    ),
    "requests and duration": (
        "{requests: 100}",
        "{requests: 100, duration_s: 3}",
        r"scenario\.run: give exactly one of requests and duration_s",
    ),
    "version of another time": ("preba: 1", "preba: 2", r"scenario\.preba: should be 1, got 2"),
    "no models": ("models:", "models: []\ndescription: x\nmodel:", r"scenario\.models: .*should have at least 1 item"),
    "a key given twice": ("name: good", "name: good\nname: again", r"name: given twice"),
}


@pytest.mark.parametrize("name", READING)
def test_scenario_mistake_gives_one_line_with_field_and_place(tmp_path: Path, name: str) -> None:
    """A mistake is told in one line: the field, the value, what is allowed, the file and the line."""
    right, wrong, message = READING[name]
    path = spoilt(tmp_path, right, wrong)
    if name == "closed loop with a duration":
        path.write_text(path.read_text().replace("kind: poisson, rate_rps: 100", "kind: closed_loop, outstanding: 4"))
    if name == "no models":
        path.write_text(path.read_text().split("model:\n")[0])
    error = error_of(path)
    assert isinstance(error, ScenarioError)
    assert re.fullmatch(rf"{message}.* \({re.escape(str(path))}:\d+\)", str(error)), str(error)


RESOLVING: dict[str, tuple[str, str, str, int]] = {
    "impossible partition": (
        "partition: 7x1g.5gb",
        'partition: ["3g.20gb@0", "2g.10gb@2"]',
        r"scenario\.gpus\[0\]\.partition: .*3g\.20gb@0 overlaps 2g\.10gb@2.*memory slices 2-3",
        6,
    ),
    "too large a partition": ("7x1g.5gb", "3x3g.20gb", r"scenario\.gpus\[0\]\.partition: .* does not fit A100-40GB", 6),
    "unknown slice profile": (
        "7x1g.5gb",
        "7x1g.6gb",
        r"scenario\.gpus\[0\]\.partition: .*'1g\.6gb'; did you mean '1g\.5gb'\?",
        6,
    ),
    "unknown device": (
        "A100-40GB",
        "A100-41GB",
        r"scenario\.gpus\[0\]\.device: device 'A100-41GB'.*did you mean 'A100-40GB'\?",
        5,
    ),
    "unknown profile": (
        "parvagpu-resnet50",
        "parvagpu-resnet51",
        r"scenario\.models\[0\]\.profile: .*did you mean 'parvagpu-resnet50'\?",
        9,
    ),
    "unknown costs": (
        "models:",
        "preprocessing: {kind: cpu, cores: 3, cost: dali}\nmodels:",
        r"scenario\.preprocessing: preprocessing costs 'dali': .*",
        7,
    ),
    "unknown hardware": (
        "models:",
        "hardware: testbet\nmodels:",
        r"scenario\.hardware: hardware 'testbet'.*",
        7,
    ),
    "batch beyond the profile": (
        "{kind: none}",
        "{kind: fixed, batch_max: 4000, timeout_ms: 5}",
        r"scenario\.models\[0\]\.batcher: .*4000 is larger than profile '.*' covers on 1g\.5gb \(at most 32\)",
        10,
    ),
    "slice assigned twice": (
        "sizes:",
        "slices: [1, 1]\n    sizes:",
        r"scenario\.models\[0\]\.slices: slice 1 .* is already taken",
        12,
    ),
    "slice that is not there": (
        "sizes:",
        "slices: [7]\n    sizes:",
        r"scenario\.models\[0\]\.slices: there is no slice 7; slices are 0\.\.6",
        12,
    ),
    "more slices than there are": (
        "sizes:",
        "slices: {1g.5gb: 8}\n    sizes:",
        r"scenario\.models\[0\]\.slices\.1g\.5gb: asks for 8 slices, 7 free",
        12,
    ),
    "all slices taken by preprocessing": (
        "models:",
        "preprocessing: {kind: dali_slice, slices: {1g.5gb: 7}}\nmodels:",
        r"scenario\.models\[0\]\.slices: no slice is left to serve 'm'",
        9,
    ),
    "inputs of another kind": (
        "jpeg_kb: 100",
        "audio_s: 3",
        r"scenario\.models\[0\]\.sizes: gives audio inputs, but profile 'parvagpu-resnet50' takes image",
        12,
    ),
    "failure of a slice that is not there": (
        "models:",
        "events: [{kind: slice_fails, at_s: 1, slice: 9}]\nmodels:",
        r"scenario\.events\[0\]\.slice: there is no slice 9; .*0\.\.6",
        7,
    ),
    "request larger than any batch": (
        "sizes:",
        "batch_units: 3\n    sizes:",
        r"scenario\.models\[0\]\.batch_units: a request of 3 units does not fit .*; the smallest limit is 1",
        12,
    ),
}


@pytest.mark.parametrize("name", RESOLVING)
def test_scenario_that_cannot_be_gives_one_line_with_field_and_place(tmp_path: Path, name: str) -> None:
    """What only looking things up reveals is told just as well: one line, with the field, the file and the line."""
    right, wrong, message, line = RESOLVING[name]
    path = spoilt(tmp_path, right, wrong)
    text = str(error_of(path))
    assert re.fullmatch(rf"{message}.* \({re.escape(str(path))}:{line}\)", text), text


def test_two_models_for_all_slices_are_told_how_to_share(tmp_path: Path) -> None:
    """With two models 'all' is no answer; the message shows what to write instead."""
    path = tmp_path / "two.yaml"
    path.write_text(GOOD + GOOD.split("models:\n")[1].replace("name: m", "name: n"))
    text = str(error_of(path))
    assert re.search(r"models\[0\]\.slices: 'all' works with one model only; .*for example \{1g\.5gb: 2\}", text)
    path.write_text(GOOD + GOOD.split("models:\n")[1])
    assert "two models are named 'm'" in str(error_of(path))


def test_profile_without_provenance_does_not_load(good: Path) -> None:
    """A latency profile that does not say where it comes from is refused, by name."""
    profile = good.parent / "mine.yaml"
    profile.write_text(
        "name: mine\nmodel: m\nmodality: image\ndevice: A100-40GB\nprecision: fp16\nframework: x\n"
        "table: {1g: {1: 2.0}}\n"
    )
    text = str(error_of(good, ("models[0].profile=mine.yaml",)))
    assert re.match(r"provenance: missing; .*mine\.yaml", text)
    assert "\n" not in text


def test_profile_beside_the_scenario_is_found(good: Path) -> None:
    """A relative profile path counts from the scenario's folder, wherever preba is started."""
    profile = good.parent / "mine.yaml"
    profile.write_text(
        "name: mine\nmodel: m\nmodality: image\ndevice: A100-40GB\nprecision: fp16\nframework: x\n"
        "provenance: {kind: modelled, source: made up for a test}\ntable: {1g: {1: 2.0}}\n"
    )
    scenario = load_scenario(good, ["models[0].profile=mine.yaml"])
    assert resolve(scenario, folder=good.parent).models[0].profile.name == "mine"


def test_missing_scenario_is_an_error_that_suggests_a_neighbour(good: Path) -> None:
    """A file that is not there is named, with the nearest file beside it."""
    with pytest.raises(MissingFileError, match=r"goood\.yaml.*no such file; did you mean 'good\.yaml'\?"):
        load_scenario(good.with_name("goood.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [t", r"bad\.yaml:1: .*"),
        ("- a\n- b\n", r"bad\.yaml: a scenario is a mapping of keys, got list"),
        ("", r"bad\.yaml: a scenario is a mapping of keys, got NoneType"),
        ("name: t\nname: u\n", r"name: given twice .*bad\.yaml:2\)"),
    ],
)
def test_file_that_is_no_scenario_is_one_error(tmp_path: Path, text: str, message: str) -> None:
    """Text that is not YAML, not a mapping or not unique is told in one line."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=message) as caught:
        load_scenario(path)
    assert "\n" not in str(caught.value)


def test_overload_is_a_warning_and_not_an_error(good: Path) -> None:
    """A scenario without a steady state runs, and its warning names the bottleneck."""
    scenario = load_scenario(good, ["models[0].arrivals.rate_rps=100000"])
    (warning,) = simulate(resolve(scenario, folder=good.parent)).warnings
    assert "no steady state exists" in warning
    assert "slices of m" in warning


OVERRIDES = [
    ("seed=9", lambda s: s.seed == 9),
    ("models[0].arrivals.rate_rps=250.5", lambda s: s.models[0].arrivals.rate_rps == 250.5),
    ("models.0.arrivals.rate_rps=250", lambda s: s.models[0].arrivals.rate_rps == 250),
    ("models[0].batcher={kind: greedy, batch_max: 4}", lambda s: s.models[0].batcher.batch_max == 4),
    ('models[0].slices["1g.5gb"]=3', lambda s: s.models[0].slices == {"1g.5gb": 3}),
    ("models[0].slices['1g.5gb']=3", lambda s: s.models[0].slices == {"1g.5gb": 3}),
    ("models[0].slices=[0, 2]", lambda s: s.models[0].slices == (0, 2)),
    ("server.overheads.frontend_us=12", lambda s: s.server.overheads.frontend_us == 12),
    ("gpus[0].partition=3g.20gb+4g.20gb", lambda s: s.gpus[0].partition == "3g.20gb+4g.20gb"),
    ("description=a=b", lambda s: s.description == "a=b"),
]


@pytest.mark.parametrize(("override", "holds"), OVERRIDES, ids=[override for override, _ in OVERRIDES])
def test_override_changes_the_field_it_names(good: Path, override: str, holds: Any) -> None:
    """--set reaches every field, through lists, quoted keys and sections that the file does not have."""
    changed = load_scenario(good, [override])
    assert holds(changed)
    assert changed != load_scenario(good)


def test_overrides_apply_in_order(good: Path) -> None:
    """The last override of a field wins."""
    assert load_scenario(good, ["seed=2", "seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", r"--set seed: expected path=value"),
        ("=3", r"--set: the path before '=' is empty"),
        ("models[5].name=x", r"--set models\[5\]\.name: 5 is not in that list; allowed: an index 0\.\.0"),
        ("models.first=x", r"--set models\.first: 'first' is not in that list"),
        ("name.x=3", r"--set name\.x: nothing lies below 'name'"),
        ("seed=[1", r"--set seed=\[1: value is not valid YAML"),
        ("models[=3", r"--set models\[: cannot read the path from '\[' on"),
        ("sed=3", r"scenario\.sed: unknown key; did you mean 'seed'\?"),
        ("seed=many", r"scenario\.seed: should be a valid integer, got 'many'"),
        ("run.requests=2.5", r"scenario\.run\.requests: should be a valid integer, got 2\.5"),
    ],
)
def test_override_mistake_is_one_error(good: Path, override: str, message: str) -> None:
    """A wrong --set is told in one line that quotes it."""
    with pytest.raises(ScenarioError, match=f"^{message}") as caught:
        load_scenario(good, [override])
    assert "\n" not in str(caught.value)


names = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)


@given(steps=st.lists(st.one_of(names, st.integers(0, 99)), min_size=1, max_size=6))
def test_path_of_names_and_indices_is_read_back(steps: list[str | int]) -> None:
    """A path written with dots and brackets splits into the steps it was made of."""
    bracketed = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    assert split_path(bracketed) == tuple(steps)
    assert split_path(".".join(map(str, steps))) == tuple(steps)


@given(steps=st.lists(names, min_size=1, max_size=5), value=st.integers())
def test_override_builds_the_sections_on_its_way(steps: list[str], value: int) -> None:
    """Setting a field below sections that are not there makes them."""
    data: dict[str, Any] = {}
    apply_override(data, f"{'.'.join(steps)}={value}")
    found: Any = data
    for step in steps:
        found = found[step]
    assert found == value


def test_errors_that_have_a_place_keep_it(good: Path) -> None:
    """Only errors that name a field and lack a place are given one."""
    for text in ("profile x: odd", f"scenario.run: odd ({good}:3)"):
        with pytest.raises(ScenarioError) as caught, errors_located(good):
            raise ScenarioError(text)
        assert str(caught.value) == text
    with pytest.raises(ScenarioError) as caught, errors_located(good):
        raise ScenarioError("scenario.models[0].batcher.batch_max: odd")
    assert str(caught.value) == f"scenario.models[0].batcher.batch_max: odd ({good}:10)"


def test_every_shipped_scenario_loads_resolves_and_draws() -> None:
    """Nothing in configs/scenarios is broken, and each draws as many requests as it says."""
    paths = sorted((Path(__file__).parents[3] / "configs" / "scenarios").glob("*.yaml"))
    assert len(paths) >= 8
    for path in paths:
        scenario = load_scenario(path)
        assert isinstance(scenario, Scenario)
        trace = draw_scenario_trace(resolve(scenario, folder=path.parent))
        if scenario.run.requests is not None:
            assert len(trace) == scenario.run.requests
