"""What a Triton batcher's configuration accepts, refuses and turns into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from preba.batching import state as s
from preba.batching import triton_layout as t
from preba.batching.triton_config import TritonBatcher
from preba.batching.triton_file import read_model_file
from preba.batching.triton_versions import triton_release
from preba.errors import FormatError, MissingFileError, ScenarioError, UnsupportedError


def batcher(context: dict[str, Any] | None = None, /, **fields: Any) -> TritonBatcher:
    return TritonBatcher.model_validate_json(json.dumps({"kind": "triton", **fields}), context=context)


REFUSED = {
    "preferred too large": ({"preferred_batch_size": [4, 9]}, r"preferred_batch_size\[1\]: must be in 1 .. .*got 9"),
    "preferred zero": ({"preferred_batch_size": [0]}, r"preferred_batch_size\[0\]: .*got 0"),
    "no default level": ({"priority_levels": 2}, "default_priority_level: must be in 1 .. .*got 0"),
    "default level too high": ({"priority_levels": 2, "default_priority_level": 3}, "default_priority_level.*got 3"),
    "policy of no level": (
        {"priority_levels": 2, "default_priority_level": 1, "priority_queue_policy": {"3": {}}},
        r"priority_queue_policy\.3: must be in 1",
    ),
    "ordering with levels": (
        {"priority_levels": 2, "default_priority_level": 1, "preserve_ordering": True},
        "preserve_ordering: allows one priority level, got 2",
    ),
    "ordering with delay": (
        {
            "preserve_ordering": True,
            "default_queue_policy": {"timeout_action": "DELAY", "default_timeout_us": 1},
        },
        "default_queue_policy.timeout_action: must be REJECT",
    ),
    "ordering with a level's delay": (
        {
            "preserve_ordering": True,
            "priority_levels": 1,
            "default_priority_level": 1,
            "priority_queue_policy": {"1": {"timeout_action": "DELAY", "default_timeout_us": 1}},
        },
        r"priority_queue_policy\.1\.timeout_action",
    ),
    "batching fields without batching": (
        {"dynamic_batching": False, "max_queue_delay_us": 5},
        "max_queue_delay_us: needs",
    ),
    "too many levels": ({"priority_levels": 5000, "default_priority_level": 1}, "at most 4096 are modelled, got 5000"),
    "groups do not add up": (
        {"instances_per_slice": 3, "rate_limiter": {"mode": "execution_count", "groups": [{"count": 2}]}},
        r"must add up to instances_per_slice \(3\), got 2",
    ),
    "need beyond the pool": (
        {
            "rate_limiter": {
                "mode": "execution_count",
                "pool": {"a": 1},
                "groups": [{"resources": [{"name": "a", "count": 2}]}],
            }
        },
        r"rate_limiter.pool.a: 1 would prevent an instance from ever running, which needs 2",
    ),
    "resource of two scopes": (
        {
            "instances_per_slice": 2,
            "rate_limiter": {
                "mode": "execution_count",
                "groups": [
                    {"resources": [{"name": "a", "count": 1}]},
                    {"resources": [{"name": "a", "count": 1, "global": True}]},
                ],
            },
        },
        "resource 'a' is both global and per device",
    ),
    "unknown version": ({"server_version": "source-2026-07"}, "did you mean 'source-2026-06'"),
    "version out of range": ({"server_version": "2.12"}, r"known are 2.30 \(23.01\) to 2.71"),
    "unknown field": ({"max_queue_delay_ms": 5}, "max_queue_delay_ms"),
    "unknown action": ({"default_queue_policy": {"timeout_action": "DROP"}}, "timeout_action"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_triton_config_refuses_what_the_server_refuses(case: str) -> None:
    """Each impossible configuration is refused with the field, the value and what is allowed."""
    fields, message = REFUSED[case]
    with pytest.raises(ValidationError, match=message):
        batcher(**{"max_batch_size": 8, **fields})


def test_triton_config_accepts_delay_with_ordering_where_nothing_can_expire() -> None:
    """Like the server, a DELAY action without a timeout does not conflict with preserve_ordering."""
    assert batcher(preserve_ordering=True, default_queue_policy={"timeout_action": "DELAY"}).prefetching


def test_triton_config_normalises_preferred_sizes() -> None:
    """Preferred sizes are sorted and unique; none means max_batch_size; a model that does not batch has none."""
    assert batcher(max_batch_size=8, preferred_batch_size=[4, 2, 4]).to_settings().preferred == (2, 4)
    assert batcher(max_batch_size=8).to_settings().preferred == (8,)
    assert batcher().to_settings().preferred == ()
    assert batcher().batch_max == 1


@pytest.mark.parametrize(
    ("fields", "prefetching"),
    [
        ({}, True),
        ({"default_queue_policy": {"timeout_action": "DELAY"}}, True),
        ({"default_queue_policy": {"default_timeout_us": 1}}, False),
        ({"default_queue_policy": {"allow_timeout_override": True}}, False),
        ({"default_queue_policy": {"max_queue_size": 1}}, False),
        ({"priority_levels": 1, "default_priority_level": 1}, False),
        ({"default_queue_policy": {"max_queue_size": 1}, "server_version": "2.36"}, True),
    ],
)
def test_triton_config_prefetches_only_without_policies(fields: dict[str, Any], prefetching: bool) -> None:
    """Any queue policy or priority turns prefetching off, since release 23.08."""
    config = batcher(max_batch_size=8, **fields)
    assert config.prefetching is prefetching
    assert config.to_settings().setting[t.S_PREFETCH] == int(prefetching)


def test_triton_config_versions_name_the_same_release_alike() -> None:
    """A server version and its container release mean the same, and the faults come and go with the release."""
    assert triton_release("2.51") == triton_release("2.51.0") == triton_release("24.10")
    assert triton_release("source-2026-06") == triton_release("26.06")
    assert not triton_release("25.08").ordering_regression
    assert triton_release("25.09").ordering_regression
    with pytest.raises(ScenarioError, match=r"neither 2.NN, YY.MM nor a source name"):
        triton_release("latest")


def test_triton_config_quirks_follow_the_version_unless_told() -> None:
    """Faults are those of the server version; each can be switched on or off; a lost wake-up needs a queue policy."""
    bounded = {"default_queue_policy": {"max_queue_size": 4}}
    assert batcher(**bounded).to_settings().setting[t.S_BATCHER_FIRST_PERMILLE] > 0
    assert batcher(priority_levels=2, default_priority_level=1).loses_wakeups
    assert batcher().to_settings().setting[t.S_BATCHER_FIRST_PERMILLE] == 0
    told = batcher(quirks={"batcher_first_permille": 3, "counter_drift": False, "ordering_regression": True}, **bounded)
    assert told.to_settings().setting[t.S_BATCHER_FIRST_PERMILLE] == 3
    assert told.to_settings().setting[t.S_COUNTER_DRIFT] == 0
    assert batcher().to_settings().setting[t.S_COUNTER_DRIFT] == 1
    assert told.ordering_regression
    assert not batcher().ordering_regression
    assert batcher(server_version="25.10").ordering_regression


def test_triton_config_counts_instances_that_share_a_thread() -> None:
    """A TensorRT backend drives several instances from one thread; they all count for how far ahead it forms."""
    setting = batcher(instances_per_slice=3, backend="trt").to_settings().setting
    assert (setting[t.S_INSTANCES], setting[t.S_INSTANCES_PER_CONSUMER]) == (1, 3)
    setting = batcher(instances_per_slice=3).to_settings().setting
    assert (setting[t.S_INSTANCES], setting[t.S_INSTANCES_PER_CONSUMER]) == (3, 1)


def test_triton_config_policy_table_has_a_row_per_level() -> None:
    """Levels without a policy of their own take the default one."""
    config = batcher(
        priority_levels=2,
        default_priority_level=1,
        default_queue_policy={"max_queue_size": 5},
        priority_queue_policy={"2": {"timeout_action": "DELAY", "default_timeout_us": 7}},
    )
    assert config.to_settings().policy == (0, 0, 0, 5, 1, 7000, 0, 0)
    assert config.to_settings().queue_count == 4


def test_triton_config_survives_being_written_and_read() -> None:
    """The resolved configuration reads back as the same value."""
    config = batcher(
        max_batch_size=8,
        preferred_batch_size=[4],
        priority_levels=2,
        default_priority_level=1,
        priority_queue_policy={"2": {"max_queue_size": 3}},
        rate_limiter={
            "mode": "execution_count",
            "groups": [{"resources": [{"name": "a", "global": True, "count": 1}]}],
        },
    )
    assert TritonBatcher.model_validate_json(config.model_dump_json()) == config


FILE = """
name: "resnet50"  # served as an engine
backend: "tensorrt"
max_batch_size: 16
input [
  { name: "image" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] },
  { name: "meta" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }
]
output { name: "scores" data_type: TYPE_FP32 dims: 1000 }
instance_group [
  { count: 1 kind: KIND_GPU gpus: [ 0 ] rate_limiter { resources { name: "R1" count: 4 } priority: 2 } },
  { kind: KIND_GPU rate_limiter { resources [ { name: "R2" global: True count: 2 } ] } }
]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  preferred_batch_size: 16
  max_queue_delay_microseconds: 100
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 3000 }
  priority_queue_policy { key: 1 value { max_queue_size: 10 allow_timeout_override: true } }
}
optimization { cuda { graphs: true } }
"""


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.pbtxt"
    file.write_text(text)
    return file


def test_triton_config_reads_a_model_file(tmp_path: Path) -> None:
    """Every field that a config.pbtxt decides comes from it, found relative to the scenario."""
    write(tmp_path / "resnet50", FILE)
    config = batcher({"directory": tmp_path}, config_pbtxt="resnet50/config.pbtxt", input_consumed_ms=1)
    assert config.read_from == "resnet50/config.pbtxt"
    assert config.config_pbtxt is None
    assert config.max_batch_size == 16
    assert config.preferred_batch_size == (4, 8, 16)
    assert config.max_queue_delay_us == 100
    assert config.instances_per_slice == 2
    assert config.backend == "trt-graph"
    assert not config.enforce_equal_shape
    assert config.level_policies()[0].allow_timeout_override
    assert config.level_policies()[1].timeout_action == "DELAY"
    assert [group.priority for group in config.rate_limiter.groups] == [2, 0]
    assert config.rate_limiter.groups[1].resources[0].shared
    assert TritonBatcher.model_validate_json(config.model_dump_json()) == config


def test_triton_config_file_and_field_exclude_each_other(tmp_path: Path) -> None:
    """A field that the file decides may not be given beside it."""
    file = write(tmp_path, FILE)
    with pytest.raises(ValidationError, match="max_batch_size: comes from config_pbtxt"):
        batcher(config_pbtxt=str(file), max_batch_size=4)
    with pytest.raises(ValidationError, match=r"rate_limiter.groups: comes from config_pbtxt"):
        batcher(config_pbtxt=str(file), rate_limiter={"groups": []})


def test_triton_config_missing_file_is_named(tmp_path: Path) -> None:
    """A config.pbtxt that is not there is a clear error."""
    with pytest.raises(MissingFileError, match=r"nowhere/config.pbtxt: no such file"):
        batcher({"directory": tmp_path}, config_pbtxt="nowhere/config.pbtxt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('backend: "onnxruntime"', "blocking"),
        ('platform: "tensorrt_plan"', "trt"),
        ('backend: "tensorrt" optimization { eager_batching: true cuda { graphs: true } }', "eager"),
        ('backend: "python" optimization { eager_batching: true }', "blocking"),
    ],
)
def test_triton_config_file_decides_the_backend_kind(tmp_path: Path, text: str, expected: str) -> None:
    """Only TensorRT frees its instance early; CUDA graphs and eager batching change when."""
    config = batcher(config_pbtxt=str(write(tmp_path, text)))
    assert config.backend == expected
    assert not config.dynamic_batching


@pytest.mark.parametrize(
    ("field", "enforced"),
    [
        ("dims: [ 3, -1 ]", True),
        ("dims: [ 3, -1 ] allow_ragged_batch: true", False),
        ("dims: [ 3 ]", False),
        ("dims: [ 3 ] is_shape_tensor: true", True),
    ],
)
def test_triton_config_file_decides_about_equal_shapes(tmp_path: Path, field: str, enforced: bool) -> None:
    """Inputs of variable size that may not be ragged, and shape tensors, must be equal within a batch."""
    text = f'backend: "python" max_batch_size: 4 dynamic_batching {{ }} input {{ name: "x" {field} }}'
    assert batcher(config_pbtxt=str(write(tmp_path, text))).enforce_equal_shape is enforced


def test_triton_config_refuses_sequences_and_ensembles(tmp_path: Path) -> None:
    """A model whose requests never meet the dynamic batcher says so and, for an ensemble, where to look."""
    with pytest.raises(UnsupportedError, match="sequence_batching is not modelled"):
        batcher(config_pbtxt=str(write(tmp_path, "sequence_batching { direct { } }")))
    text = 'platform: "ensemble" ensemble_scheduling { step [ { model_name: "dali" }, { model_name: "dnn" } ] }'
    file = write(tmp_path, text)
    with pytest.raises(UnsupportedError, match=r"its steps \(dali, dnn\)"):
        batcher(config_pbtxt=str(file))
    assert [step.model_name for step in read_model_file(file).ensemble_steps] == ["dali", "dnn"]


def test_triton_config_file_of_several_gpus_is_refused(tmp_path: Path) -> None:
    """A server on a MIG slice sees one device."""
    file = write(tmp_path, "instance_group { count: 1 gpus: [ 0, 1 ] }")
    with pytest.raises(ValidationError, match=r"instance_group\[0\].gpus: \[0, 1\] names several devices"):
        batcher(config_pbtxt=str(file))
    with pytest.raises(FormatError, match="max_batch_size: must be >= 0, got -1"):
        read_model_file(write(tmp_path, "max_batch_size: -1"))


def test_triton_config_kind_is_triton() -> None:
    """The settings carry the policy kind and the limits that every policy has."""
    setting = batcher(max_batch_size=6, max_queue_delay_us=9).to_settings().setting
    assert setting[s.S_KIND] == s.KIND_TRITON
    assert setting[s.S_BATCH_MAX] == 6
    assert setting[s.S_DELAY_NS] == 9000
