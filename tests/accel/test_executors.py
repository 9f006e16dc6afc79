"""Every back end does what its pipeline is defined to do, on real photographs and made-up speech; nothing breaks it."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures_and_speech import audio_by_definition, image_by_definition, jpeg, photographs, speech, wav
from PIL import Image

from accel.audio_cpu import CpuAudio, at_16_khz, frame_count
from accel.executors import BACKENDS, Preprocessor, available_backends, build_preprocessor
from accel.image_cpu import CpuImages
from accel.inputs import InputLimits, WavFile
from preba.errors import InputError, MissingExtraError, ScenarioError

IMAGE_TOLERANCE = {"cpu": (0.04, 0.35), "dali_cpu": (0.015, 0.2), "dali_gpu": (0.03, 0.3)}
"""Per back end, in normalised units (1 is about 57 grey levels of 256): mean and 99th percentile of the absolute
differences from the definition, each photograph. OpenCV averages over areas where the others filter with a triangle;
GPU decoders interpolate colours more simply."""

AUDIO_TOLERANCE = {"cpu": 1e-3, "dali_cpu": 1e-3, "dali_gpu": 5e-3}
"""Largest difference from the definition, in standard deviations of a band."""

RESAMPLED_TOLERANCE = 0.05
"""Largest difference between two back ends where they resample."""


@functools.cache
def photos() -> dict[str, bytes]:
    return photographs()


@functools.cache
def made(modality: str, backend: str, dtype: str = "fp32") -> Preprocessor:
    """A preprocessor, or a skip that says what is missing."""
    missing = available_backends()[backend]
    if missing is not None:
        pytest.skip(f"{backend}: {missing}")
    return build_preprocessor(modality, backend, dtype=dtype, batch_max=8)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    missing = available_backends()[request.param]
    if missing is not None:
        pytest.skip(f"{request.param}: {missing}")
    return str(request.param)


def tensors(found: list[NDArray[Any] | InputError]) -> list[NDArray[Any]]:
    """All of them tensors."""
    for each in found:
        assert isinstance(each, np.ndarray), each
    return [each for each in found if isinstance(each, np.ndarray)]


# images


def test_image_back_end_agrees_with_the_definition(backend: str) -> None:
    """Each photograph, within the stated tolerances; more of them than fit into one batch."""
    names = list(photos())
    assert len(names) >= 8
    found = tensors(made("image", backend).preprocess([photos()[name] for name in names]))
    mean_max, p99_max = IMAGE_TOLERANCE[backend]
    for name, tensor in zip(names, found, strict=True):
        assert tensor.shape == (3, 224, 224)
        assert tensor.dtype == np.float32
        distance = np.abs(tensor - image_by_definition(photos()[name]))
        assert distance.mean() <= mean_max, name
        assert np.percentile(distance, 99) <= p99_max, name


def test_image_tolerance_notices_a_shift_of_one_pixel_and_swapped_colours() -> None:
    """The tolerances are tight enough to fail what is wrong."""
    content = photos()["astronaut"]
    right = image_by_definition(content)
    for wrong in (np.roll(right, 1, axis=2), right[::-1], right * 0.9, right[:, ::-1]):
        assert np.abs(wrong - right).mean() > IMAGE_TOLERANCE["cpu"][0]


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (900, 2), (224, 224), (256, 256), (257, 300), (37, 53)])
def test_image_of_any_size_gives_a_tensor(backend: str, size: tuple[int, int]) -> None:
    """One pixel, slivers, sizes around the crop's own."""
    content = jpeg(Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)))
    (tensor,) = tensors(made("image", backend).preprocess([content]))
    assert tensor.shape == (3, 224, 224)
    assert np.isfinite(tensor).all()


def test_grey_progressive_and_cmyk_images_are_decoded(backend: str) -> None:
    """Grey and progressive files equal their plain twins; CMYK gives a tensor or is refused, never an accident."""
    colour = Image.open(io.BytesIO(photos()["china.jpg"])).convert("RGB")
    grey = colour.convert("L")
    work = made("image", backend)
    plain, progressive, one, three = tensors(
        work.preprocess(
            [
                jpeg(colour, quality=90), jpeg(colour, quality=90, progressive=True), jpeg(grey, quality=95),
                jpeg(grey.convert("RGB"), quality=95),
            ]
        )
    )  # fmt: skip
    assert np.abs(plain - progressive).mean() < 1e-3
    assert np.abs(one - three).mean() < 0.02
    (cmyk,) = work.preprocess([jpeg(colour.convert("CMYK"), quality=90)])
    assert isinstance(cmyk, InputError) or cmyk.shape == (3, 224, 224)


def test_half_precision_is_the_same_rounded(backend: str) -> None:
    """fp16 tensors are the fp32 ones, rounded."""
    inputs = [photos()["coffee"]]
    (full,) = tensors(made("image", backend).preprocess(inputs))
    (half,) = tensors(made("image", backend, "fp16").preprocess(inputs))
    assert half.dtype == np.float16
    assert np.array_equal(half, full.astype(np.float16))


# audio


@pytest.mark.parametrize("seconds", [0.032, 0.1, 1.0, 7.31])
def test_audio_back_end_agrees_with_the_definition(backend: str, seconds: float) -> None:
    """At 16 kHz, from the shortest recording on."""
    content = wav(speech(seconds, 16_000), 16_000, bits=16)
    (tensor,) = tensors(made("audio", backend).preprocess([content]))
    samples = np.round(speech(seconds, 16_000) * 32767) / 32768
    right = audio_by_definition(samples)
    assert tensor.shape == right.shape == (80, frame_count(len(samples)))
    assert np.abs(tensor - right).max() <= AUDIO_TOLERANCE[backend]


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_back_ends_agree_where_they_resample(backend: str, rate_hz: int) -> None:
    """The CPU's result is the yardstick; recordings of different rates share a batch."""
    contents = [wav(speech(seconds, rate_hz), rate_hz) for seconds in (0.5, 3.0)]
    found = tensors(made("audio", backend).preprocess([*contents, wav(speech(1.0, 16_000), 16_000)]))
    right = tensors(made("audio", "cpu").preprocess(contents))
    for ours, theirs in zip(found, right, strict=False):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= RESAMPLED_TOLERANCE


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 48_000])
def test_resampling_keeps_a_tone_and_folds_none_back(rate_hz: int) -> None:
    """A 1 kHz tone keeps its strength; one above the new Nyquist frequency does not come back as another."""
    time_s = np.arange(rate_hz) / rate_hz

    def strength(hertz: float) -> float:
        found = at_16_khz(WavFile(rate_hz, np.sin(2 * np.pi * hertz * time_s).astype(np.float32)))
        return float(np.sqrt(2 * np.mean(np.square(found[1000:-1000]))))

    assert strength(1000.0) == pytest.approx(1.0, abs=2e-3)
    if rate_hz > 16_000:
        assert strength(0.45 * rate_hz) < 1e-2


@pytest.mark.parametrize(
    ("bits", "kind", "extensible"),
    [(8, 1, False), (16, 1, True), (24, 1, False), (24, 1, True), (32, 1, False), (32, 3, False), (64, 3, True)],
)
def test_every_sample_format_is_read_alike(backend: str, bits: int, kind: int, extensible: bool) -> None:
    """The same sound in another encoding gives the same features, as exactly as the encoding allows."""
    sound = speech(1.0, 16_000)
    (plain,) = tensors(made("audio", backend).preprocess([wav(sound, 16_000, bits=32, kind=3)]))
    content = wav(sound, 16_000, bits=bits, kind=kind, extensible=extensible)
    (other,) = tensors(made("audio", backend).preprocess([content]))
    assert np.abs(plain - other).mean() <= (0.3 if bits == 8 else 0.01)


def test_channels_are_averaged(backend: str) -> None:
    """Stereo of one sound twice is that sound; channels that cancel each other are silence."""
    sound = speech(1.0, 16_000)
    work = made("audio", backend)
    mono, stereo = tensors(work.preprocess([wav(sound, 16_000), wav(np.stack([sound, sound], axis=1), 16_000)]))
    assert np.abs(mono - stereo).max() < 1e-2
    (silence,) = tensors(work.preprocess([wav(np.stack([sound, -sound], axis=1), 16_000, bits=32, kind=3)]))
    assert np.abs(silence).max() < 1e-2


# broken inputs


SOUND = wav(speech(0.2, 16_000), 16_000)


@functools.cache
def picture() -> bytes:
    return jpeg(Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8)), quality=80)


def test_broken_input_harms_no_other_in_its_batch(backend: str) -> None:
    """Good, broken, good, cut short, empty: the good ones' tensors are what they are alone."""
    for modality, good in (("image", photos()["coffee"]), ("audio", SOUND)):
        work = made(modality, backend)
        (alone,) = tensors(work.preprocess([good]))
        spoiled = good[:600] + bytes(1200) + good[1800:] if modality == "image" else b"RIFF" + good[8:]
        found = work.preprocess([good, spoiled, good, good[: len(good) // 2], b"", good])
        assert all(isinstance(found[place], InputError) for place in (3, 4))
        for place in (0, 2, 5):
            assert isinstance(found[place], np.ndarray)
            assert np.array_equal(found[place], alone)
        assert isinstance(found[1], InputError) or found[1].shape == alone.shape


@pytest.mark.parametrize("name", ["cpu", "dali_cpu"])
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_bytes_give_a_tensor_or_an_input_error(name: str, data: st.DataObject) -> None:
    """Whatever bytes arrive, the answer is finite and of the right shape, or says that the input is at fault."""
    modality = data.draw(st.sampled_from(["image", "audio"]))
    content = bytearray(picture() if modality == "image" else SOUND)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(content), 700) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    (found,) = made(modality, name).preprocess([bytes(content)])
    if isinstance(found, InputError):
        assert str(found)
    else:
        assert found.shape[0] == (3 if modality == "image" else 80)
        assert np.isfinite(found).all()


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=4000))
def test_any_bytes_are_refused_politely(content: bytes) -> None:
    """Bytes that are no file at all."""
    for work in (CpuImages("fp32", InputLimits()), CpuAudio("fp32", InputLimits())):
        (found,) = work.preprocess([content])
        assert isinstance(found, InputError)


def test_bomb_is_refused_before_it_is_decoded(backend: str) -> None:
    """A few hundred bytes that claim 65,500 x 65,500 pixels cost neither memory nor time."""
    bomb = bytearray(picture())
    place = bomb.index(b"\xff\xc0") + 5
    bomb[place : place + 4] = b"\xff\xdc\xff\xdc"
    (found,) = made("image", backend).preprocess([bytes(bomb)])
    assert isinstance(found, InputError)
    assert "65500 x 65500" in str(found)


def test_sliver_and_endless_scans_are_refused_before_they_are_decoded(backend: str) -> None:
    """A picture of 65,000 x 1 would be resized to 16 million by 256; a file of 200 scans would be walked 200 times."""
    sliver = bytearray(picture())
    place = sliver.index(b"\xff\xc0") + 5
    sliver[place : place + 4] = b"\x00\x01\xfd\xe8"
    scans = picture()[:-2] + b"\xff\xda\x00\x02" * 200 + b"\xff\xd9"
    narrow, endless = made("image", backend).preprocess([bytes(sliver), scans])
    assert "too narrow" in str(narrow)
    assert "more than 100 scans" in str(endless)


def test_rate_that_needs_an_endless_filter_is_refused(backend: str) -> None:
    """191,999 Hz has no common divisor with 16,000; the usual rates are taken."""
    odd, usual = made("audio", backend).preprocess(
        [wav(speech(0.1, 191_999), 191_999), wav(speech(0.1, 44_100), 44_100)]
    )
    assert "too odd" in str(odd)
    assert isinstance(usual, np.ndarray)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "no JPEG"),
        (b"\xff\xd8" + bytes(50), "marker is missing"),
        (b"\xff\xd8\xff\xd9", "says no size"),
    ],
)
def test_bad_image_is_told_what_is_wrong(content: bytes, said: str) -> None:
    """The message names the fault."""
    (found,) = CpuImages("fp32", InputLimits()).preprocess([content])
    assert said in str(found)


def test_bad_recording_is_told_what_is_wrong() -> None:
    """Too long, too many channels, an odd rate, a codec nobody here reads, no samples, cut short."""
    sound = speech(0.2, 16_000)
    cases = [
        (wav(np.zeros(16_000 * 70), 16_000), "lasts 70.0 s, at most 60"),
        (wav(np.zeros((100, 9)), 16_000), "9 channels, 1 to 8"),
        (wav(sound, 1_000), "rate is 1000 Hz"),
        (wav(sound, 16_000).replace(b"\x01\x00\x01\x00", b"\x55\x00\x01\x00", 1), "format 85, 16 bits"),
        (wav(np.zeros(0), 16_000), "empty"),
        (wav(sound, 16_000)[:-100], "truncated"),
        (wav(np.full(1000, np.nan), 16_000, bits=32, kind=3), "no numbers"),
        (wav(np.zeros(100), 16_000), "too short"),
        (b"RIFF" + bytes(4) + b"AVI " + bytes(40), "no WAV file"),
    ]
    for content, said in cases:
        (found,) = CpuAudio("fp32", InputLimits()).preprocess([content])
        assert isinstance(found, InputError)
        assert said in str(found)


def test_missing_back_end_says_what_would_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DALI the CPU works, and asking for DALI names the extra."""
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("nvidia") else find(name))
    assert available_backends()["cpu"] is None
    with pytest.raises(MissingExtraError, match=r"preba\[dali\]"):
        build_preprocessor("image", "dali_cpu")
    with pytest.raises(ScenarioError, match="did you mean 'dali_cpu'"):
        build_preprocessor("image", "dalicpu")
    with pytest.raises(ScenarioError, match="video"):
        build_preprocessor("video", "cpu")
    with pytest.raises(ScenarioError, match="fp32 or fp16"):
        build_preprocessor("image", "cpu", dtype="int8")
