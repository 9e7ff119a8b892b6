"""The experiment: one strict, frozen, documented tree that describes a training run."""

from pipeline.config.load import ConfigError, load_experiment, resolved_yaml
from pipeline.config.schema import Experiment

__all__ = ["ConfigError", "Experiment", "load_experiment", "resolved_yaml"]
