"""Prometheus metrics of the live server: Triton's names where Triton has the figure, ``preba_*`` where it has not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from runtime.counters import REASONS, ModelCounters
from runtime.front_end import FrontEnd

_PER_MODEL: tuple[tuple[str, str, Callable[[ModelCounters], int]], ...] = (
    ("nv_inference_count", "Inferences performed, not counting cached ones", lambda c: c.inferences),
    ("nv_inference_exec_count", "Model executions performed", lambda c: c.executions),
    ("nv_inference_request_success", "Requests that succeeded", lambda c: c.success),
    ("nv_inference_request_duration_us", "Request duration", lambda c: c.request_ns // 1000),
    ("nv_inference_queue_duration_us", "Time in the batcher and before the slice", lambda c: c.queue_ns // 1000),
    ("nv_inference_compute_infer_duration_us", "Execution on the slice", lambda c: c.compute_ns // 1000),
    ("nv_inference_compute_input_duration_us", "Preprocessing", lambda c: c.preprocess_ns // 1000),
)


_TRITON_COUNTERS = (*(name for name, _, _ in _PER_MODEL), "nv_inference_request_failure")


class _Collector:
    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        models = self._front_end.models.values()
        labels = ("model", "version")
        for name, text, value in _PER_MODEL:
            family = CounterMetricFamily(name, text, labels=labels)
            for model in models:
                family.add_metric((model.name, "1"), value(model.counters))
            yield _plain_name(family, name)
        failed = CounterMetricFamily("nv_inference_request_failure", "Requests that failed", labels=(*labels, "reason"))
        pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests inside the server", labels=labels)
        for model in models:
            for reason in REASONS:
                failed.add_metric((model.name, "1", reason), model.counters.failures[reason])
            pending.add_metric((model.name, "1"), model.counters.pending)
        yield _plain_name(failed, "nv_inference_request_failure")
        yield pending
        up = GaugeMetricFamily("preba_slice_up", "1 while a slice is in service", labels=("slice",))
        restarts = CounterMetricFamily("preba_slice_restarts", "Restarts of a slice's server", labels=("slice",))
        for one in self._front_end.slices.values():
            up.add_metric((one.name,), int(one.is_up))
            restarts.add_metric((one.name,), one.restarts)
        yield up
        yield restarts
        batches = CounterMetricFamily(
            "preba_batches", "Batches executed, by size in batch units", labels=("model", "size")
        )
        for model in models:
            for size, counters in sorted(model.counters.batches.items()):
                batches.add_metric((model.name, str(size)), counters.count)
        yield batches


def _plain_name(family: CounterMetricFamily, name: str) -> Metric:
    """Triton's counters carry no ``_total``, which the library would add."""
    samples = [sample._replace(name=name) for sample in family.samples]
    plain = Metric(name, family.documentation, "unknown")
    plain.type = "counter"
    plain.samples = samples
    return plain


def render(front_end: FrontEnd) -> bytes:
    """The metrics as text, in Prometheus' exposition format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(front_end))
    text = generate_latest(registry)
    for name in _TRITON_COUNTERS:  # the library names every counter's family with _total
        text = text.replace(f" {name}_total ".encode(), f" {name} ".encode())
    return text
