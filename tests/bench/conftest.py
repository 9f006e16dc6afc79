"""Yardsticks for the engines' speed: the same scenario in other simulators, and a hand-written event loop in C.

Each plays the very trace that preba plays (integers of nanoseconds) and says when each request was done, in which
batch size and on which slice, so that its answer can be checked. No assertions live here.
"""

from __future__ import annotations

import ctypes
import heapq
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from preba.scenario.draw import draw_scenario_trace
from sim.model import SimModel, build_model

Int64 = NDArray[np.int64]
SLICES, BATCH_MAX, DELAY_NS = 7, 8, 2_000_000


@dataclass(frozen=True)
class Answer:
    """What became of every request: int64[n] each; batch and slice are None where a simulator has none."""

    completed_ns: Int64
    batch_size: Int64 | None = None
    slice_index: Int64 | None = None


@dataclass(frozen=True)
class Setting:
    """Scenario A or B of the speed comparison as a model of preba's and as plain integers."""

    model: SimModel
    arrival_ns: Int64
    occupancy_ns: Int64
    cores: int
    tau_ns: Int64

    def cut(self, count: int) -> tuple[list[int], list[int]]:
        """Arrivals and core times of the first requests, as Python integers."""
        return self.arrival_ns[:count].tolist(), self.occupancy_ns[:count].tolist()


def setting(toy: Any, requests: int, *, rate_rps: float = 2000.0, cores: int = 16, batching: bool = True) -> Setting:
    """Poisson arrivals, a pool of cores with log-normal times of 6 ms, batches of 8 or 2 ms, seven slices."""
    times = {str(batch): 2.0 + 0.9 * batch for batch in range(1, BATCH_MAX + 1)}
    batcher = {"kind": "fixed", "batch_max": BATCH_MAX, "timeout_ms": DELAY_NS / 1e6}
    model = toy.model(
        toy.profile({"1g": times}),
        {"kind": "poisson", "rate_rps": rate_rps},
        batcher=batcher if batching else {"kind": "none"},
        preprocess_jitter={"kind": "lognormal", "cv": 0.533},  # sigma 0.5
    )
    data = toy.scenario([model], requests=requests, partition="7x1g.5gb", preprocessing=toy.cpu(cores, 6000))
    resolved = toy.resolve(data)
    built = build_model(resolved, draw_scenario_trace(resolved))
    station = built.preprocessing.stations[0]
    return Setting(
        model=built,
        arrival_ns=np.ascontiguousarray(built.trace.scheduled_ns),
        occupancy_ns=np.ascontiguousarray(station.occupancy_ns),
        cores=cores,
        tau_ns=np.ascontiguousarray(built.tables[0].execution_ns[0, 0]),
    )


def simpy_idiomatic(case: Setting, count: int) -> Answer:
    """SimPy as its documentation teaches it: a process per request, a resource, stores for the queue and the slices."""
    import simpy

    arrival, occupancy = case.cut(count)
    tau = case.tau_ns.tolist()
    env = simpy.Environment()
    cores = simpy.Resource(env, case.cores)
    queue = simpy.Store(env)
    idle = simpy.PriorityStore(env)
    idle.items = list(range(SLICES))
    done, sizes, places = [0] * count, [0] * count, [0] * count
    enqueued = [0] * count

    def source() -> Any:
        for i in range(count):
            yield env.timeout(arrival[i] - env.now)
            env.process(request(i))

    def request(i: int) -> Any:
        with cores.request() as core:
            yield core
            yield env.timeout(occupancy[i])
        enqueued[i] = env.now
        answer = env.event()
        yield queue.put((i, answer))
        sizes[i], places[i] = yield answer
        done[i] = env.now

    def batcher() -> Any:
        while True:
            batch = [(yield queue.get())]
            due = enqueued[batch[0][0]] + DELAY_NS
            while len(batch) < BATCH_MAX and env.now < due:
                following = queue.get()
                alarm = env.timeout(due - env.now)
                found = yield following | alarm
                if following in found:
                    batch.append(found[following])
                else:
                    following.cancel()
            place = yield idle.get()
            while len(batch) < BATCH_MAX and queue.items:
                batch.append((yield queue.get()))
            env.process(execute(place, batch))

    def execute(place: int, batch: list[tuple[int, Any]]) -> Any:
        yield env.timeout(tau[len(batch)])
        for _, answer in batch:
            answer.succeed((len(batch), place))
        yield idle.put(place)

    env.process(source())
    env.process(batcher())
    env.run()
    return Answer(np.array(done), np.array(sizes), np.array(places))


def simpy_one_event(case: Setting, count: int) -> Answer:
    """SimPy processes without stores: everybody who changes something fires the one event the batcher waits for."""
    import simpy

    arrival, occupancy = case.cut(count)
    tau = case.tau_ns.tolist()
    env = simpy.Environment()
    cores = simpy.Resource(env, case.cores)
    done, sizes, places = [0] * count, [0] * count, [0] * count
    waiting: deque[int] = deque()
    enqueued = [0] * count
    idle = list(range(SLICES))
    changed = env.event()

    def change() -> None:
        nonlocal changed
        changed.succeed()
        changed = env.event()

    def source() -> Any:
        for i in range(count):
            yield env.timeout(arrival[i] - env.now)
            env.process(request(i))

    def request(i: int) -> Any:
        with cores.request() as core:
            yield core
            yield env.timeout(occupancy[i])
        enqueued[i] = env.now
        waiting.append(i)
        change()

    def batcher() -> Any:
        while True:
            while not (waiting and idle):
                yield changed
            due = enqueued[waiting[0]] + DELAY_NS
            while idle and len(waiting) < BATCH_MAX and env.now < due:
                yield simpy.AnyOf(env, [changed, env.timeout(due - env.now)])
            if idle:
                place = heapq.heappop(idle)
                batch = [waiting.popleft() for _ in range(min(BATCH_MAX, len(waiting)))]
                env.process(execute(place, batch))

    def execute(place: int, batch: list[int]) -> Any:
        yield env.timeout(tau[len(batch)])
        for i in batch:
            done[i], sizes[i], places[i] = env.now, len(batch), place
        heapq.heappush(idle, place)
        change()

    env.process(source())
    env.process(batcher())
    env.run()
    return Answer(np.array(done), np.array(sizes), np.array(places))


def simpy_callbacks(case: Setting, count: int) -> Answer:
    """SimPy for speed: time-outs with callbacks, no processes."""
    import simpy

    arrival, occupancy = case.cut(count)
    tau = case.tau_ns.tolist()
    env = simpy.Environment()
    done, sizes, places, enqueued = [0] * count, [0] * count, [0] * count, [0] * count
    waiting_cores: deque[int] = deque()
    waiting: deque[int] = deque()
    idle = list(range(SLICES))
    free = case.cores

    def after(delay: int, action: Callable[..., None], *arguments: Any) -> None:
        env.timeout(delay).callbacks.append(lambda _: action(*arguments))

    def arrive(i: int) -> None:
        nonlocal free
        if i + 1 < count:
            after(arrival[i + 1] - arrival[i], arrive, i + 1)
        if free:
            free -= 1
            after(occupancy[i], leave, i)
        else:
            waiting_cores.append(i)

    def leave(i: int) -> None:
        nonlocal free
        if waiting_cores:
            following = waiting_cores.popleft()
            after(occupancy[following], leave, following)
        else:
            free += 1
        enqueued[i] = env.now
        waiting.append(i)
        pump()
        if waiting and waiting[-1] == i:
            after(DELAY_NS, pump)

    def pump() -> None:
        while waiting and idle and (len(waiting) >= BATCH_MAX or env.now >= enqueued[waiting[0]] + DELAY_NS):
            place = heapq.heappop(idle)
            batch = [waiting.popleft() for _ in range(min(BATCH_MAX, len(waiting)))]
            after(tau[len(batch)], finish, place, batch)

    def finish(place: int, batch: list[int]) -> None:
        for i in batch:
            done[i], sizes[i], places[i] = env.now, len(batch), place
        heapq.heappush(idle, place)
        pump()

    after(arrival[0], arrive, 0)
    env.run()
    return Answer(np.array(done), np.array(sizes), np.array(places))


def salabim_components(case: Setting, count: int) -> Answer:
    """Salabim with one long-lived component per core and slice, and none per request."""
    import salabim as sim

    arrival, occupancy = case.cut(count)
    tau = case.tau_ns.tolist()
    sim.yieldless(False)
    env = sim.Environment(trace=False, time_unit="n/a")
    done, sizes, places, enqueued = [0] * count, [0] * count, [0] * count, [0] * count
    jobs: deque[int] = deque()
    waiting: deque[int] = deque()
    resting: list[Any] = []

    class Core(sim.Component):
        def process(self) -> Any:
            while True:
                while not jobs:
                    resting.append(self)
                    yield self.passivate()
                i = jobs.popleft()
                yield self.hold(occupancy[i])
                enqueued[i] = round(env.now())
                waiting.append(i)
                alarm.look()

    class Source(sim.Component):
        def process(self) -> Any:
            for i in range(count):
                yield self.hold(till=arrival[i])
                jobs.append(i)
                if resting:
                    resting.pop().activate()

    class Slice(sim.Component):
        def setup(self, place: int) -> None:
            self.place = place
            self.batch: list[int] = []

        def process(self) -> Any:
            while True:
                while not self.batch:
                    heapq.heappush(idle, self.place)
                    alarm.look()
                    if not self.batch:
                        yield self.passivate()
                yield self.hold(tau[len(self.batch)])
                for i in self.batch:
                    done[i], sizes[i], places[i] = round(env.now()), len(self.batch), self.place
                self.batch = []

    class Alarm(sim.Component):
        def process(self) -> Any:
            while True:
                yield self.passivate()
                self.look()

        def look(self) -> None:
            now = round(env.now())
            while waiting and idle and (len(waiting) >= BATCH_MAX or now >= enqueued[waiting[0]] + DELAY_NS):
                chosen = slices[heapq.heappop(idle)]
                chosen.batch = [waiting.popleft() for _ in range(min(BATCH_MAX, len(waiting)))]
                if chosen.ispassive():
                    chosen.activate()
            if waiting and idle:
                self.activate(at=enqueued[waiting[0]] + DELAY_NS)
            elif not self.ispassive():
                self.passivate()

    idle: list[int] = []
    alarm = Alarm()
    slices = [Slice(place=place) for place in range(SLICES)]
    for _ in range(case.cores):
        Core()
    Source()
    env.run()
    return Answer(np.array(done), np.array(sizes), np.array(places))


def ciw_tandem(case: Setting, count: int) -> Answer:
    """Ciw, which knows no batches that servers form: two nodes in a row, one request at a time."""
    import ciw

    arrival, occupancy = case.cut(count)
    gaps = np.diff([0, *arrival]).astype(float).tolist()
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Sequential([*gaps, float("inf")]), None],
        service_distributions=[
            ciw.dists.Sequential([float(ns) for ns in occupancy]),
            ciw.dists.Deterministic(float(case.tau_ns[1])),
        ],
        number_of_servers=[case.cores, SLICES],
        routing=[[0.0, 1.0], [0.0, 0.0]],
    )
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_customers(count, method="Finish")
    done = np.zeros(count, dtype=np.int64)
    for record in simulation.get_all_records():
        if record.node == 2:
            done[record.id_number - 1] = round(record.exit_date)
    return Answer(done)


class _Columns(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "preprocess_start", "preprocess_end", "wait", "enqueued", "dispatched", "start", "end", "batch_id",
            "completed", "slice", "size", "units", "server", "outcome", "attempts", "span_station", "span_unit",
            "span_request", "span_arrived", "span_start", "span_released", "span_end",
        )
    ]  # fmt: skip


_NARROW = ("slice", "size", "units", "server", "outcome", "attempts", "span_station", "span_unit")
LEAN = ("preprocess_start", "enqueued", "start", "completed", "slice", "size")


class CLoop:
    """The event loop in C, compiled for this machine.

    Parameters
    ----------
    folder : Path
        Where the library goes.
    """

    def __init__(self, folder: Path) -> None:
        source, library = Path(__file__).with_name("engine.c"), folder / "engine.so"
        flags = ["-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "-o", str(library), str(source)], check=True)
        self.run = ctypes.CDLL(str(library)).run
        self.run.restype = ctypes.c_int64
        self.run.argtypes = [ctypes.c_int64] * 5 + [ctypes.c_void_p] * 4

    def __call__(self, case: Setting, count: int, *, lean: bool = False) -> Answer:
        """Plays the first requests and fills the columns that preba's records and spans have, or six of them."""
        names = [name for name, _ in _Columns._fields_]
        arrays = {
            name: np.empty(count, dtype=np.int32 if name in _NARROW else np.int64)
            for name in names
            if not lean or name in LEAN
        }
        columns = _Columns(*(arrays[name].ctypes.data if name in arrays else None for name in names))
        self.run(
            count, case.cores, SLICES, BATCH_MAX, DELAY_NS, case.arrival_ns.ctypes.data, case.occupancy_ns.ctypes.data,
            case.tau_ns.ctypes.data, ctypes.addressof(columns),
        )  # fmt: skip
        return Answer(arrays["completed"], arrays["size"], arrays["slice"])


@pytest.fixture(scope="session")
def c_loop(tmp_path_factory: pytest.TempPathFactory) -> CLoop:
    """The event loop in C."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: no C yardstick")
    return CLoop(tmp_path_factory.mktemp("c"))


@dataclass(frozen=True)
class Yardsticks:
    """Every yardstick in Python, by name, and how to make the scenario."""

    setting: Callable[..., Setting]
    by_name: dict[str, Callable[[Setting, int], Answer]]


@pytest.fixture(scope="session")
def yardsticks() -> Yardsticks:
    """The simulators to compare with."""
    return Yardsticks(
        setting,
        {
            "SimPy, idiomatic": simpy_idiomatic,
            "SimPy, one event": simpy_one_event,
            "SimPy, callbacks": simpy_callbacks,
            "salabim": salabim_components,
            "Ciw, no batching": ciw_tandem,
        },
    )
