"""CPU time that a virtual machine's host gives to others."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.host import CpuTicks, cpu_ticks, stolen_percent


def test_time_that_the_host_gave_to_others_is_read_from_the_kernel(tmp_path: Path) -> None:
    """The eighth column of the first line; guests' time is part of the first two. Unreadable files say nothing."""
    file = tmp_path / "stat"
    file.write_text("cpu  100 10 50 800 20 5 5 10 70 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n", encoding="ascii")
    first = cpu_ticks(file)
    assert first == CpuTicks(every=1000, stolen=10)
    assert stolen_percent(first, CpuTicks(every=1200, stolen=15)) == pytest.approx(2.5)
    assert stolen_percent(first, first) is None
    assert stolen_percent(None, first) is None
    for text in ("", "intr 1 2 3 4 5 6 7 8\n", "cpu 1 2 3\n", "cpu a b c d e f g h\n"):
        file.write_text(text, encoding="ascii")
        assert cpu_ticks(file) is None
    assert cpu_ticks(tmp_path / "none") is None
