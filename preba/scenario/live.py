"""What a scenario says about running it on real parts: ``live:``. The simulator does not read this; values only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from preba.strict import StrictModel


class EmulatedSlices(StrictModel):
    """Each slice sleeps its latency profile: true queueing, batching and serving software, no real computation."""

    kind: Literal["emulated"]
    null: bool = False
    """Answer at once instead, without any server behind: what is left is the front end itself."""


class CpuSlices(StrictModel):
    """Each slice runs a real ONNX model under ONNX Runtime on CPU threads of its own."""

    kind: Literal["cpu"]
    onnx: str
    """Path of the model, from the scenario's folder; its first input takes a batch."""
    threads: PositiveInt = 1
    pin: bool = True
    """Bind each slice to ``threads`` cores of its own, as far as there are any."""


class GpuSlices(StrictModel):
    """One slice: a whole GPU."""

    kind: Literal["gpu"]
    onnx: str
    device: Annotated[int, Field(ge=0)] = 0


class MigSlices(StrictModel):
    """Each slice is a MIG device, chosen by ``CUDA_VISIBLE_DEVICES``."""

    kind: Literal["mig"]
    onnx: str
    uuids: tuple[str, ...] = ()
    """In the order of the scenario's slices; empty: asked of the driver, by profile."""


class SmPartitionSlices(StrictModel):
    """Each slice is a share of one GPU's multiprocessors (a CUDA green context); memory bandwidth is not divided."""

    kind: Literal["sm-partition"]
    onnx: str
    device: Annotated[int, Field(ge=0)] = 0


AnySlices = Annotated[
    EmulatedSlices | CpuSlices | GpuSlices | MigSlices | SmPartitionSlices, Field(discriminator="kind")
]


class LivePreprocessing(StrictModel):
    """How preprocessing is really done; ``auto`` follows ``preprocessing.kind``."""

    backend: Literal["auto", "cpu", "dali_cpu", "dali_gpu", "none"] = "auto"
    place: Literal["auto", "workers", "slice"] = "auto"
    """In processes of its own, or in the process of the slice that executes; ``auto``: the latter for DALI that shares
    the model's slices."""
    workers: PositiveInt | None = None
    """Processes, one core each; by default the scenario's cores, at most those of this machine."""
    pin: bool = False
    """Keep the workers on cores of their own, the machine's last ones, and everything else of the server on the others:
    an arriving request does not slow down the input that is being preprocessed."""
    hw_decoder_share: Annotated[float, Field(ge=0, le=1)] | None = None


class Live(StrictModel):
    """The live server that runs the scenario."""

    slices: AnySlices = EmulatedSlices(kind="emulated")
    preprocessing: LivePreprocessing = LivePreprocessing()
    batching: Literal["auto", "front_end", "triton"] = "auto"
    """Who batches where the policy is Triton's: preba's front end, or Triton itself. ``auto``: Triton where each slice
    has a server of its own and nothing is preprocessed. ``triton`` with ``server.topology: central``: one server with
    an instance per slice (emulated)."""
    requests_max: PositiveInt = 512
    """Requests inside the server; one more is refused at once."""
    payload_max_mib: PositiveFloat = 32.0
    """Largest request message."""
    ready_timeout_s: PositiveFloat = 30.0
    """How long a slice's server may take to get ready."""
    drain_timeout_s: NonNegativeFloat = 10.0
    """How long requests inside may take to finish when the server is asked to stop."""
