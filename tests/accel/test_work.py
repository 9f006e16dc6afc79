"""Promises of accel.work: the cost formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel import work
from preba.figures import Figure, PositiveFigure
from preba.preprocessing_costs import AudioCost, DaliImageCost, HopCost, ImageCost


def figure(value: float) -> Figure:
    return Figure(value=value, kind="modelled", source="made up for a test")


def positive(value: float) -> PositiveFigure:
    return PositiveFigure(value=value, kind="modelled", source="made up for a test")


def dali_image(*, decode_fraction: float, engine_gpcs: float) -> DaliImageCost:
    return DaliImageCost(
        fixed_us=figure(0),
        per_100kb_us=figure(1000),
        decode_fraction=figure(decode_fraction),
        engine_gpcs=positive(engine_gpcs),
    )


def test_costs_bend_between_their_points_and_are_never_negative() -> None:
    """Straight between two points, as at the nearest one beyond them; what falls below nought stays at nought."""
    bends = ((1.0, 50.0), (3.0, -150.0))
    cost = AudioCost(fixed_us=figure(100), per_audio_s_us=figure(0), bends=bends)
    seconds = np.array([0, 1, 2, 3, 9], dtype=np.int64) * 1_000_000_000
    assert work.audio_work_us(cost, seconds).tolist() == [150.0, 150.0, 50.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="sizes must rise"):
        ImageCost(fixed_us=figure(1), per_100kb_us=figure(1), bends=((2.0, 1.0), (2.0, 3.0)))


def test_image_work_counts_units_of_100000_bytes() -> None:
    """An image of 250,000 bytes costs the fixed part plus two and a half times the part per 100 kB."""
    cost = ImageCost(fixed_us=figure(100), per_100kb_us=figure(40))
    assert work.image_work_us(cost, np.array([250_000])).tolist() == [200.0]


def test_audio_work_counts_seconds() -> None:
    """An utterance of 2.5 s costs the fixed part plus two and a half times the part per second."""
    cost = AudioCost(fixed_us=figure(10), per_audio_s_us=figure(300))
    assert work.audio_work_us(cost, np.array([2_500_000_000])).tolist() == [760.0]


def test_times_are_rounded_to_the_nearest_nanosecond() -> None:
    """Work becomes int64 nanoseconds by rounding, not by cutting."""
    ns = work.to_ns(np.array([0.0014, 0.0016, 1234.5678]))
    assert ns.dtype == np.int64
    assert ns.tolist() == [1, 2, 1_234_568]


def test_hop_takes_the_link_for_bytes_over_bandwidth_and_arrives_a_latency_later() -> None:
    """602,112 bytes at 32 GB/s hold the link for 18,816 ns and arrive 30 us after that."""
    cost = HopCost(
        latency_us=figure(30),
        bandwidth_gb_per_s=positive(32),
        image_bytes=figure(602_112),
        audio_bytes_per_s=figure(32_000),
    )
    occupancy, latency = work.hop_ns(cost, np.array([602_112.0, 0.0]))
    assert occupancy.tolist() == [18_816, 0]
    assert latency.tolist() == [48_816, 30_000]


def test_slice_without_engines_decodes_on_its_sms_whatever_the_share() -> None:
    """Asking for hardware decoding where a slice has no engine changes nothing: its GPCs do all the work."""
    cost = dali_image(decode_fraction=0.8, engine_gpcs=4.0)
    for share in (0.0, 0.65, 1.0):
        factor = work.slice_image_factor(cost, gpcs=2, jpeg_engines=0, hw_decoder_share=share)
        assert factor == 0.5


def test_slice_is_paced_by_the_slower_of_engines_and_sms() -> None:
    """75 % on an engine worth 4 GPCs leave one GPC 0.4 of the work, its slower part; all on the engine take 0.2."""
    cost = dali_image(decode_fraction=0.8, engine_gpcs=4.0)
    mixed = work.slice_image_factor(cost, gpcs=1, jpeg_engines=1, hw_decoder_share=0.75)
    assert mixed == pytest.approx(0.25 * 0.8 + 0.2)
    hardware = work.slice_image_factor(cost, gpcs=7, jpeg_engines=1, hw_decoder_share=1.0)
    assert hardware == pytest.approx(0.8 / 4.0)


@given(
    gpcs=st.integers(1, 7),
    engines=st.integers(1, 7),
    share=st.floats(0, 1),
    decode=st.floats(0, 1),
    engine_gpcs=st.floats(0.1, 10),
)
def test_more_engines_or_gpcs_never_slow_a_slice(
    gpcs: int, engines: int, share: float, decode: float, engine_gpcs: float
) -> None:
    """A slice with one more JPEG engine or one more GPC is never slower."""
    cost = dali_image(decode_fraction=decode, engine_gpcs=engine_gpcs)

    def factor(g: int, e: int) -> float:
        return work.slice_image_factor(cost, gpcs=g, jpeg_engines=e, hw_decoder_share=share)

    assert factor(gpcs, engines + 1) <= factor(gpcs, engines)
    assert factor(gpcs + 1, engines) <= factor(gpcs, engines)
