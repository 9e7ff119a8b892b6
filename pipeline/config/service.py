"""The settings of a service without an experiment's file: a model URI and overrides."""

from collections.abc import Sequence

from pydantic import Field

from pipeline.config.base import Section
from pipeline.config.load import apply_override, parse_tree
from pipeline.config.schema import RayConfig
from pipeline.config.serving import ServingConfig


class ServiceSettings(Section):
    """The sections of an experiment that `jobs.serve` reads."""

    serving: ServingConfig
    ray: RayConfig = Field(default_factory=RayConfig)


def load_service(model_uri: str, overrides: Sequence[str] = ()) -> ServiceSettings:
    """One model that answers everything, and ``serving.key=value`` or ``ray.key=value``.

    Raises:
        ConfigError: unknown key, wrong type or contradicting settings.
    """
    models = [{"name": "model", "uri": model_uri, "traffic": 1.0}]
    tree = {"serving": {"models": models}}
    for override in overrides:
        apply_override(tree, override)
    return parse_tree(ServiceSettings, tree, source="--model")
