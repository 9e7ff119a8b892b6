"""What the service tells Prometheus.

Labels have few values: names of configured models, fields of their schemas, fixed words.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "ple_serving_"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16_384)
_DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class ServiceMetrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="ple_serving", registry=self.registry)
        self.requests = self._counter("requests", "Scoring requests by outcome.", "outcome")
        self.rows = self._counter("rows", "Rows scored for requests.", "model", "version")
        self.seconds = self._histogram("request_seconds", "From body to answer.", _SECONDS)
        self.request_rows = self._histogram("request_rows", "Rows of good requests.", _ROWS)
        self.batch_rows = self._histogram("batch_rows", "Rows of a model call.", _ROWS, "model")
        self.model_seconds = self._histogram(
            "model_seconds", "Time of a model call.", _SECONDS, "model"
        )
        self.unknown_ids = self._counter(
            "unknown_ids", "Ids of rows scored that the model does not know.", "model", "feature"
        )
        self.queued_rows = self._gauge("queued_rows", "Rows that wait for a model.", "model")
        self.version = self._gauge(
            "version_info", "1 = loaded now.", "model", "registered", "version"
        )
        self.loads = self._counter("loads", "Versions loaded, by outcome.", "model", "outcome")
        self.failing = self._gauge(
            "load_failing", "1 = the version wanted could not be loaded.", "model"
        )
        self.registry_up = self._gauge("registry_up", "1 = the last look at the registry worked.")
        self.shadow_requests = self._counter(
            "shadow_requests", "Requests for shadow models by outcome.", "model", "outcome"
        )
        self.shadow = ShadowDifferences()
        self.registry.register(self.shadow)

    def families(self) -> list[Metric]:
        """Every metric with its samples, to send to another process."""
        return list(self.registry.collect())

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(
            _PREFIX + name, text, labels, buckets=tuple(buckets), registry=self.registry
        )


class ShadowDifferences(Collector):
    """|score of a shadow model - score that was returned|, by model and task."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], np.ndarray] = defaultdict(
            lambda: np.zeros(len(_DIFFERENCES) + 1, np.int64)
        )
        self._sums: dict[tuple[str, str], float] = defaultdict(float)

    def observe(self, model: str, task: str, differences_B: np.ndarray) -> None:
        """Adds the absolute differences of some rows."""
        places_B = np.searchsorted(_DIFFERENCES, differences_B)
        self._counts[model, task] += np.bincount(places_B, minlength=len(_DIFFERENCES) + 1)
        self._sums[model, task] += float(differences_B.sum())

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            _PREFIX + "shadow_difference",
            "Absolute difference between a shadow model's score and the one returned.",
            labels=["model", "task"],
        )
        for (model, task), counts in list(self._counts.items()):
            totals = np.cumsum(counts).tolist()
            borders = [*map(str, _DIFFERENCES), "+Inf"]
            family.add_metric(
                [model, task],
                list(zip(borders, totals, strict=True)),
                self._sums[model, task],
            )
        yield family


def exposition(families_of: Mapping[str, Iterable[Metric]]) -> bytes:
    """Prometheus text of the metrics of one or several replicas, told apart by a label."""
    merged: dict[str, Metric] = {}
    for replica, families in families_of.items():
        for family in families:
            into = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            into.samples += [
                Sample(s.name, {**s.labels, "replica": replica}, s.value, s.timestamp)
                for s in family.samples
                if not s.name.endswith("_created")
            ]
    return generate_latest(_Fixed(merged.values()))


class _Fixed(CollectorRegistry):
    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
