"""Promises of preba.economics: watts, joules per request, requests per dollar."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preba.economics import (
    SliceLoad,
    cost_efficiency,
    energy_per_request_j,
    power,
    power_of_run,
)
from preba.hardware import Hardware
from preba.records import SliceFacts, StationFacts


def machine(**changes: float) -> Hardware:
    """A server with round numbers: 10 cores at 100..200 W, a GPU at 50..250 W, a card at 20..70 W."""

    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "kind": "modelled", "source": "made up for a test"}

    values: dict[str, float] = {
        "software_cores": 0.0,
        "server": 1000,
        "gpu": 2000,
        "accelerator": 500,
    } | changes
    return Hardware.model_validate(
        {
            "name": "round",
            "host": {
                "cores": figure(10),
                "software_cores": figure(values["software_cores"]),
                "idle_w": figure(100),
                "max_w": figure(200),
            },
            "gpu": {"idle_w": figure(50), "max_w": figure(250)},
            "accelerator": {"idle_w": figure(20), "max_w": figure(70)},
            "prices_usd": {name: figure(values[name]) for name in ("server", "gpu", "accelerator")},
            "electricity_usd_per_kwh": figure(0.139),
            "years": figure(3),
        }
    )


def test_idle_machine_draws_its_idle_power() -> None:
    """With nothing busy, each component draws what it draws idle; no card draws nothing."""
    drawn = power(machine(), busy_cores=0, slices=[SliceLoad(7, 0.0)], gpu_count=1, gpcs_per_gpu=7)
    assert (drawn.cpu_w, drawn.gpu_w, drawn.accelerator_w, drawn.total_w) == (100, 50, 0, 150)


def test_fully_used_machine_draws_its_maximum() -> None:
    """With all cores, all GPCs and all units busy, each component draws its maximum."""
    drawn = power(
        machine(),
        busy_cores=10,
        slices=[SliceLoad(1, 1.0)] * 7,
        gpu_count=1,
        gpcs_per_gpu=7,
        accelerators=[1.0],
    )
    assert (drawn.cpu_w, drawn.gpu_w, drawn.accelerator_w, drawn.total_w) == (200, 250, 70, 520)


def test_power_by_hand() -> None:
    """4 of 10 cores, 2 of them software; 3.5 of 14 GPCs on two GPUs; one card at half: 140, 200 and 45 W."""
    drawn = power(
        machine(software_cores=2),
        busy_cores=2,
        slices=[SliceLoad(3, 0.5), SliceLoad(4, 0.5)],
        gpu_count=2,
        gpcs_per_gpu=7,
        accelerators=[0.5],
    )
    assert drawn.cpu_w == 140
    assert drawn.gpu_w == pytest.approx(2 * (50 + 200 * 3.5 / 14))
    assert drawn.accelerator_w == 45


def test_unused_gpcs_draw_no_dynamic_power() -> None:
    """Three busy 2g slices are 6 of 7 GPCs: the seventh, which no slice owns, stays at idle."""
    drawn = power(machine(), busy_cores=0, slices=[SliceLoad(2, 1.0)] * 3, gpu_count=1, gpcs_per_gpu=7)
    assert drawn.gpu_utilization == pytest.approx(6 / 7)


def test_host_cannot_be_used_beyond_its_cores() -> None:
    """Preprocessing on all cores plus serving software is full use, not more."""
    drawn = power(machine(software_cores=4), busy_cores=9, slices=[], gpu_count=0, gpcs_per_gpu=7)
    assert drawn.cpu_utilization == 1.0
    assert drawn.cpu_w == 200


@given(
    busy=st.floats(0, 10),
    more=st.floats(0, 5),
    shares=st.lists(st.floats(0, 1), min_size=7, max_size=7),
    card=st.floats(0, 1),
)
def test_power_never_falls_with_use(busy: float, more: float, shares: list[float], card: float) -> None:
    """More busy cores, or a slice or a card made fully busy, never lower the power."""
    loads = [SliceLoad(1, share) for share in shares]
    fuller = [SliceLoad(1, 1.0), *loads[1:]]
    base = power(machine(), busy_cores=busy, slices=loads, gpu_count=1, gpcs_per_gpu=7, accelerators=[card])
    for drawn in (
        power(machine(), busy_cores=busy + more, slices=loads, gpu_count=1, gpcs_per_gpu=7, accelerators=[card]),
        power(machine(), busy_cores=busy, slices=fuller, gpu_count=1, gpcs_per_gpu=7, accelerators=[card]),
        power(machine(), busy_cores=busy, slices=loads, gpu_count=1, gpcs_per_gpu=7, accelerators=[1.0]),
    ):
        assert drawn.total_w >= base.total_w - 1e-9


def facts(index: int, *, gpcs: int = 1, role: str = "model") -> SliceFacts:
    return SliceFacts(f"gpu0/{index}", 0, f"{gpcs}g", gpcs, 0 if role == "model" else None, role)


def test_busy_cores_count_only_what_they_really_work() -> None:
    """A pool of 10 cores taken all the time with 90 % usable is 9 busy cores: 190 W."""
    cpu = StationFacts("cpu", "cpu", 10, 0.9)
    drawn = power_of_run(machine(), stations=[(cpu, 1.0)], slices=[(facts(0), 0.0)], gpcs_per_gpu=7)
    assert drawn.cpu_w == pytest.approx(190)


def test_card_is_as_busy_as_its_units_are_on_average() -> None:
    """Four mel units at 1.0 and two normalise units at 0.4 make a card 80 % busy; the hop draws nothing."""
    stations = [
        (StationFacts("dpu mel", "dpu", 4), 1.0),
        (StationFacts("dpu normalize", "dpu", 2), 0.4),
        (StationFacts("hop", "hop", 1), 0.9),
    ]
    drawn = power_of_run(machine(), stations=stations, slices=[(facts(0), 0.0)], gpcs_per_gpu=7, accelerator_count=1)
    assert drawn.accelerator_utilization == pytest.approx(0.8)
    assert drawn.accelerator_w == pytest.approx(20 + 50 * 0.8)
    assert drawn.cpu_w == 100


def test_slices_given_to_dali_count_as_gpu() -> None:
    """A DALI slice draws GPU power by its station's busy share, whether or not it is repeated for the slice."""
    dali = StationFacts("dali", "dali", 1)
    slices = [facts(0), facts(1, role="preprocessing")]
    for repeated in (0.0, 0.7):
        drawn = power_of_run(
            machine(),
            stations=[(dali, 0.7)],
            slices=[(slices[0], 0.7), (slices[1], repeated)],
            gpcs_per_gpu=7,
        )
        assert drawn.gpu_utilization == pytest.approx(0.2)


def test_two_gpus_draw_twice() -> None:
    """Slices on two GPUs mean two GPUs, each with its idle power."""
    other = SliceFacts("gpu1/0", 1, "7g", 7, 0)
    drawn = power_of_run(machine(), stations=[], slices=[(facts(0, gpcs=7), 0.5), (other, 1.0)], gpcs_per_gpu=7)
    assert drawn.gpu_w == pytest.approx(2 * (50 + 200 * 0.75))


def test_energy_per_request_is_power_over_throughput() -> None:
    """300 W at 600 requests per second are half a joule each; a server that serves nothing has no such number."""
    assert energy_per_request_j(300, 600) == 0.5
    assert energy_per_request_j(300, 0) is None


def test_each_watt_costs_3_653_dollars_in_three_years() -> None:
    """3 years are 26,280 hours; at 0.139 USD/kWh one watt costs 3.65292 USD."""
    result = cost_efficiency(machine(), throughput_rps=1, power_w=1, gpu_count=0)
    assert result.hours == 26_280
    assert result.opex_usd == pytest.approx(3.65292, rel=1e-12)


def test_cost_efficiency_by_hand() -> None:
    """100 requests/s for three years at 1000 + 2 x 2000 + 500 USD and 1 kW: 9.46e9 requests / 9152.92 USD."""
    result = cost_efficiency(machine(), throughput_rps=100, power_w=1000, gpu_count=2, accelerator_count=1)
    assert result.capex_usd == 5500
    assert dict(result.capex_parts_usd) == {"server": 1000, "gpu": 4000, "accelerator": 500}
    assert result.requests == 100 * 26_280 * 3600
    assert result.requests_per_usd == pytest.approx(9_460_800_000 / (5500 + 3652.92))


def test_accelerator_is_paid_for_only_where_it_is_used() -> None:
    """Without a card its price is not in the CAPEX, nor are its numbers in the provenance."""
    without = cost_efficiency(machine(), throughput_rps=1, power_w=1, gpu_count=1)
    with_card = cost_efficiency(machine(), throughput_rps=1, power_w=1, gpu_count=1, accelerator_count=1)
    assert with_card.capex_usd - without.capex_usd == 500
    assert not any("accelerator" in what for what, _ in without.provenance)
    assert any("accelerator" in what for what, _ in with_card.provenance)


def test_provenance_lists_what_was_used() -> None:
    """Watts rest on power data, dollars on prices, electricity and years."""
    drawn = power(machine(), busy_cores=0, slices=[], gpu_count=1, gpcs_per_gpu=7)
    assert sorted(what.split(" ")[1] for what, _ in drawn.provenance) == [
        "round.gpu.idle_w",
        "round.gpu.max_w",
        "round.host.cores",
        "round.host.idle_w",
        "round.host.max_w",
        "round.host.software_cores",
    ]
    money = cost_efficiency(machine(), throughput_rps=1, power_w=1, gpu_count=1)
    assert sorted(what.split(" ")[1] for what, _ in money.provenance) == [
        "round.electricity_usd_per_kwh",
        "round.prices_usd.gpu",
        "round.prices_usd.server",
        "round.years",
    ]


def test_senseless_inputs_are_refused() -> None:
    """A busy share above one, negative cores or negative power are errors, not numbers."""
    with pytest.raises(ValueError, match="busy shares"):
        power(machine(), busy_cores=0, slices=[SliceLoad(1, 1.5)], gpu_count=1, gpcs_per_gpu=7)
    with pytest.raises(ValueError, match="busy_cores"):
        power(machine(), busy_cores=-1, slices=[], gpu_count=1, gpcs_per_gpu=7)
    with pytest.raises(ValueError, match="power_w"):
        cost_efficiency(machine(), throughput_rps=1, power_w=-1, gpu_count=1)
