"""``preba profile``: measures what the simulator takes as given, and writes it as profile files."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from preba.cli.progress import stderr_console
from preba.errors import OutputError, ScenarioError, nearest
from preba.profile_yaml import profile_to_yaml
from preba.scenario.load import errors_located, load_scenario
from preba.scenario.resolve import ResolvedModel, ResolvedScenario, resolve

if TYPE_CHECKING:
    from accel.measure import CostPoint

profile_app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help="Measure execution times and preprocessing."
)


@profile_app.callback()
def _group() -> None:
    pass


@profile_app.command("model")
def model(
    scenario: Annotated[Path, typer.Argument(help="Scenario file; its live.slices say what executes.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a field of the scenario.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--model", help="Which of the scenario's models; default: the first.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, comma separated.")] = "1,2,4,8",
    lengths_s: Annotated[str, typer.Option(help="Audio lengths in seconds, comma separated.")] = "",
    warmup: Annotated[int, typer.Option(min=0, help="Batches thrown away per point.")] = 5,
    repeats: Annotated[int, typer.Option(min=5, help="Batches measured per point.")] = 50,
    out: Annotated[Path | None, typer.Option(help="Write the profile to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every point as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Measure latency per slice kind, audio length and batch through Triton, one batch at a time."""
    from runtime.profiling import Plan, measure_model, profile_of

    plan = Plan(tuple(_integers(batches, "--batches")), tuple(_numbers(lengths_s, "--lengths-s")), warmup, repeats)
    with errors_located(scenario):
        resolved = resolve(load_scenario(scenario, overrides or []), folder=scenario.parent)
        chosen = _chosen(resolved, name)
        console = stderr_console()
        with console.status("starting") as status:
            points = asyncio.run(
                measure_model(resolved, chosen, plan, lambda done, all_: status.update(f"{done} of {all_} points"))
            )
        stem = out.stem if out is not None else f"{chosen.config.name}-measured"
        profile = profile_of(resolved, chosen, plan, points, name=stem.lower())
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(profile_to_yaml(profile, header="Written by preba profile model."), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"--out {out}: cannot be written: {error.strerror}") from error
        console.print(f"profile: {out}", markup=False)
    if as_json:
        typer.echo(json.dumps({"points": [asdict(point) for point in points]}, indent=2))
        return
    typer.echo(
        f"{'slice':12}{'length s':>9}{'batch':>7}{'median ms':>11}{'p10':>9}{'p90':>9}{'in model':>10}{'count':>7}"
    )
    for point in points:
        length = "" if point.length_s is None else f"{point.length_s:g}"
        typer.echo(
            f"{point.slice_profile:12}{length:>9}{point.batch:>7}{point.median_ms:>11.3f}{point.p10_ms:>9.3f}"
            f"{point.p90_ms:>9.3f}{point.inside_ms:>10.3f}{point.count:>7}"
        )


@profile_app.command("preprocessing")
def preprocessing(
    backend: Annotated[str, typer.Option(help="cpu, dali_cpu or dali_gpu.")] = "cpu",
    modality: Annotated[str, typer.Option(help="image, audio or both.")] = "both",
    sizes_kb: Annotated[str, typer.Option(help="Sizes of JPEG files in kB, comma separated.")] = "25,50,110,200,400",
    lengths_s: Annotated[str, typer.Option(help="Audio lengths in seconds, comma separated.")] = "2.5,5,10,20,30",
    images: Annotated[
        Path | None, typer.Option(help="A folder of your own JPEG files, instead of made-up ones.")
    ] = None,
    recordings: Annotated[
        Path | None, typer.Option(help="A folder of your own WAV files, instead of made-up ones.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Inputs per call, comma separated; 1 is always measured.")] = "1",
    warmup: Annotated[int, typer.Option(min=0, help="Calls thrown away per point.")] = 5,
    repeats: Annotated[int, typer.Option(min=5, help="Calls measured per point.")] = 40,
    decoder_shares: Annotated[
        str, typer.Option(help="dali_gpu: shares of images on the JPEG engines; 0 and 1 tell what they are worth.")
    ] = "0,1",
    gpcs: Annotated[int, typer.Option(min=1, help="dali_gpu: compute slices of the GPU or MIG slice.")] = 7,
    jpeg_engines: Annotated[
        int, typer.Option(min=1, help="dali_gpu: its JPEG engines (the A100's five count as 1).")
    ] = 1,
    device: Annotated[int, typer.Option(min=0, help="dali_gpu: the CUDA device.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="For made-up inputs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the cost profile to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every point as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Measure what preprocessing one input costs on this machine: latency alone, work and throughput of one core."""
    from accel.executors import MODALITIES
    from accel.measure import MeasuringPlan, measure_costs

    wanted = MODALITIES if modality == "both" else (modality,)
    if modality not in (*MODALITIES, "both"):
        raise ScenarioError(f"--modality: {modality!r} is not known{nearest(modality, (*MODALITIES, 'both'))}")
    inputs = measured_inputs(
        wanted, _numbers(sizes_kb, "--sizes-kb"), _numbers(lengths_s, "--lengths-s"), images, recordings, seed
    )
    shares = _shares(decoder_shares) if backend == "dali_gpu" else [0.65]
    console = stderr_console()
    points: list[CostPoint] = []
    with console.status("starting") as status:

        def progress(done: int, all_: int) -> None:
            status.update(f"{done} of {all_} points")

        for one in wanted:
            for share in shares if one == "image" else shares[:1]:
                plan = MeasuringPlan(backend, tuple(_integers(batches, "--batches")), warmup, repeats, share, device)
                points += measure_costs(one, inputs[one], plan, progress)
    if out is not None:
        _write_costs(out, backend, points, warmup, repeats, gpcs, jpeg_engines, own=[images, recordings])
        console.print(f"preprocessing costs: {out}", markup=False)
    if as_json:
        typer.echo(json.dumps({"points": [{**asdict(each), "work_us": each.work_us} for each in points]}, indent=2))
        return
    per = "GPU" if backend == "dali_gpu" else "core"
    typer.echo(
        f"{'input':6}{'size':>10}{'batch':>7}{'engines':>9}{'median ms':>11}{'p10':>9}{'p90':>9}{'work us each':>14}"
        f"{f'inputs/s a {per}':>18}"
    )
    for each in points:
        size = f"{each.size / 1000:.0f} kB" if each.modality == "image" else f"{each.size:g} s"
        engines = "" if each.hw_decoder_share is None else f"{each.hw_decoder_share:g}"
        typer.echo(
            f"{each.modality:6}{size:>10}{each.batch:>7}{engines:>9}{each.median_us / 1e3:>11.3f}"
            f"{each.p10_us / 1e3:>9.3f}{each.p90_us / 1e3:>9.3f}{each.work_us:>14.1f}{each.inputs_per_s:>18.1f}"
        )


def measured_inputs(
    modalities: Sequence[str],
    sizes_kb: Sequence[float],
    lengths_s: Sequence[float],
    images: Path | None,
    recordings: Path | None,
    seed: int,
) -> dict[str, list[tuple[float, list[bytes]]]]:
    """Per modality and size some inputs: made up, or a user's own sorted into groups of like size."""
    from runtime.load.payloads import own_files, synthesise_jpeg, synthesise_speech, wav_header

    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, list[bytes]]]] = {}
    for modality, folder in (("image", images), ("audio", recordings)):
        if modality not in modalities:
            continue
        if folder is not None:
            sized = sorted(own_files(folder, modality), key=lambda each: each[0])
            groups = [group for group in np.array_split(np.arange(len(sized)), min(8, len(sized))) if len(group)]
            found[modality] = [
                (float(np.mean([sized[k][0] for k in group])), [sized[k][1] for k in group]) for group in groups
            ]
        elif modality == "image":
            made = [[synthesise_jpeg(round(1000 * size), rng) for _ in range(4)] for size in sizes_kb]
            found[modality] = [(float(np.mean([len(one) for one in group])), group) for group in made]
        else:
            found[modality] = []
            for length_s in lengths_s:
                samples = [synthesise_speech(round(16_000 * length_s), rng) for _ in range(2)]
                files = [wav_header(len(one)) + one.astype("<i2").tobytes() for one in samples]
                found[modality].append((length_s, files))
    return found


def _write_costs(
    out: Path,
    backend: str,
    points: Sequence[CostPoint],
    warmup: int,
    repeats: int,
    gpcs: int,
    jpeg_engines: int,
    *,
    own: Sequence[Path | None],
) -> None:
    from accel.measure import cpu_costs, dali_costs
    from preba.profile_yaml import costs_to_yaml
    from runtime.profiling import installed_versions, this_machine

    packages = ["numpy", "scipy", "opencv-python-headless"] if backend == "cpu" else ["nvidia-dali-cuda130", "numpy"]
    spread = max((each.p90_us - each.p10_us) / each.median_us for each in points)
    what = "GPU time" if backend == "dali_gpu" else "processor time of one core"
    inputs = "the user's own files" if any(own) else "made-up photographs and speech"
    facts = {
        "source": f"preba profile preprocessing, {backend} ({installed_versions(packages)}): {what}, {inputs}",
        "where": this_machine(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "notes": f"medians of {repeats} calls per point after {warmup} to warm up; widest spread of the calls' "
        f"durations, (p90 - p10) / median: {spread:.2f}",
    }
    name = out.stem.lower()
    costs = (
        dali_costs(name, points, facts, gpcs=gpcs, jpeg_engines=jpeg_engines)
        if backend == "dali_gpu"
        else cpu_costs(name, points, facts)
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(costs_to_yaml(costs, header="Written by preba profile preprocessing."), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written: {error.strerror}") from error


def _shares(text: str) -> list[float]:
    try:
        found = sorted({float(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = []
    if not found or found[0] < 0 or found[-1] > 1:
        raise typer.BadParameter(f"--decoder-shares: needs numbers from 0 to 1 such as 0,1, got {text!r}")
    return found


def _chosen(resolved: ResolvedScenario, name: str | None) -> ResolvedModel:
    if name is None:
        return resolved.models[0]
    for one in resolved.models:
        if one.config.name == name:
            return one
    raise ScenarioError(
        f"--model: no model named {name!r}{nearest(name, [one.config.name for one in resolved.models])}"
    )


def _integers(text: str, option: str) -> list[int]:
    try:
        found = sorted({int(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise typer.BadParameter(f"{option}: needs whole numbers >= 1 such as 1,2,4, got {text!r}")
    return found


def _numbers(text: str, option: str) -> list[float]:
    try:
        found = sorted({float(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = [-1.0]
    if found and found[0] <= 0:
        raise typer.BadParameter(f"{option}: needs numbers > 0 such as 2.5,5,10, got {text!r}")
    return found
