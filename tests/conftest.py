"""Small scenarios written in Python for tests of more than one room; no assertions live here."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from preba.hardware import Hardware, HardwareConfig, load_hardware
from preba.mig.catalogue import Device, load_device
from preba.preprocessing import CpuCosts, DaliCosts, DpuRates, load_costs
from preba.scenario.resolve import ResolvedScenario, resolve
from preba.scenario.schema import Scenario
from preba.units import ns_from_ms
from sim.run import Simulation, simulate

PROVENANCE = {"kind": "modelled", "source": "made up for a test"}


@functools.cache
def _device(name: str) -> Device:
    return load_device(name)


@functools.cache
def _costs(kind: type[CpuCosts | DpuRates | DaliCosts], name: str) -> dict[str, Any]:
    return load_costs(kind, name).model_dump(mode="json")


@functools.cache
def _hardware() -> Hardware:
    return load_hardware("preba-testbed")


class Toy:
    """Builds the plain data of a scenario and runs it; every method is pure."""

    @property
    def image_table(self) -> dict[str, dict[str, float]]:
        """Times of an image model on slices of four sizes, up to batches of 6."""
        return {"1g": {"1": 4, "6": 12}, "2g": {"1": 3, "6": 7}, "3g": {"1": 3, "6": 5}, "full": {"1": 2, "6": 3}}

    def profile(self, table: Mapping[str, Mapping[str, float]], **fields: Any) -> dict[str, Any]:
        """A latency profile of an image model: slice -> batch -> ms."""
        facts = {"name": "toy", "model": "toy", "modality": "image", "device": "A100-40GB", "precision": "fp16"}
        return {**facts, "framework": "none", "provenance": PROVENANCE, "table": table, **fields}

    def audio_profile(self, slices: Sequence[str], *, batch_max: int = 8, **fields: Any) -> dict[str, Any]:
        """A profile whose times grow with batch and length: 2 ms + 1 ms per item of 10 s."""
        form = {
            "floor_ms": 2.5,
            "offset_ms": 2.0,
            "slope_ms": dict.fromkeys(slices, 1.0),
            "reference_length_s": 10.0,
            "length_range_s": [0.0, 30.0],
            "batch_max": dict.fromkeys(slices, batch_max),
        }
        return {**self.profile({}), "modality": "audio", "closed_form": form, "table": None, **fields}

    def figure(self, value: float) -> dict[str, Any]:
        """A number with its provenance."""
        return {"value": value, **PROVENANCE}

    def cpu(self, cores: int, fixed_us: float, *, per_audio_s_us: float = 0.0, usable: float = 1.0) -> dict[str, Any]:
        """A CPU pool with the same work for every image, and work by length for audio."""
        image = {"fixed_us": self.figure(fixed_us), "per_100kb_us": self.figure(0.0)}
        audio = {"fixed_us": self.figure(fixed_us), "per_audio_s_us": self.figure(per_audio_s_us)}
        cost = {"kind": "cpu", "name": "toy", "image": image, "audio": audio}
        return {"kind": "cpu", "cores": cores, "usable_fraction": usable, "cost": cost}

    def dpu(self, **fields: Any) -> dict[str, Any]:
        """The DPU of PREBA."""
        return {"kind": "dpu", "rates": _costs(DpuRates, "preba-u55c"), **fields}

    def dali(self, kind: str, **fields: Any) -> dict[str, Any]:
        """DALI on slices of its own (``dali_slice``) or on the models' (``dali_shared``)."""
        return {"kind": kind, "cost": _costs(DaliCosts, "dali-a100"), **fields}

    def model(self, profile: Any, arrivals: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
        """A model with small images, not batched."""
        common = {"name": "toy", "sizes": {"kind": "constant", "jpeg_kb": 100}, "batcher": {"kind": "none"}}
        return {**common, "profile": profile, "arrivals": arrivals, **fields}

    def arrivals_at(self, folder: Path, times_ms: Sequence[float]) -> dict[str, Any]:
        """Arrivals at exactly these times, and one much later that a run of so many requests is too short for."""
        path = folder / "times.csv"
        times = [*times_ms, times_ms[-1] + 1000]
        path.write_text("time_ns\n" + "\n".join(str(ns_from_ms(at)) for at in times) + "\n")
        return {"kind": "replay", "file": str(path), "format": "csv", "column": "time_ns", "unit": "ns"}

    def scenario(
        self, models: Sequence[Mapping[str, Any]], *, requests: int = 1000, partition: Any = "full", **fields: Any
    ) -> dict[str, Any]:
        """A scenario on one A100."""
        common = {"preba": 1, "name": "toy", "seed": 7, "run": {"requests": requests}}
        return {**common, "gpus": [{"device": "A100-40GB", "partition": partition}], "models": models, **fields}

    def resolve(self, data: Mapping[str, Any]) -> ResolvedScenario:
        """Validates plain data as if it came from a file, without reading catalogue files again and again."""
        scenario = Scenario.model_validate_json(json.dumps(data))
        gpus = [
            gpu.model_copy(update={"device": _device(gpu.device)}) if isinstance(gpu.device, str) else gpu
            for gpu in scenario.gpus
        ]
        changes: dict[str, Any] = {"gpus": tuple(gpus)}
        if "hardware" not in data:
            changes["hardware"] = HardwareConfig(use=_hardware())
        return resolve(scenario.model_copy(update=changes), folder=Path())

    def run(self, data: Mapping[str, Any], **options: Any) -> Simulation:
        """Resolves and simulates, on the reference engine unless told otherwise."""
        return simulate(self.resolve(data), **{"engine": "reference", **options})


@pytest.fixture(scope="session")
def toy() -> Toy:
    """The builder of small scenarios."""
    return Toy()
