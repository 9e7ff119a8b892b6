"""Metrics of every task: mergeable over workers by sums, in memory that does not grow."""

from pipeline.evaluation.metrics.metric_set import MetricOptions, MetricSet
from pipeline.evaluation.metrics.rows import EXACT_ROWS
from pipeline.evaluation.metrics.values import Metrics, finite_values

__all__ = ["EXACT_ROWS", "MetricOptions", "MetricSet", "Metrics", "finite_values"]
