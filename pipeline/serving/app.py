"""The service as a config of Ray Serve names it: ``import_path: pipeline.serving.app:build``.

For KubeRay's RayService and ``serve deploy``; on one machine ``python -m jobs.serve`` starts it.
"""

from typing import Any

from pydantic import Field
from ray.serve import Application

from pipeline.config import ConfigError
from pipeline.config.base import Section
from pipeline.config.load import parse_tree
from pipeline.config.service import ServiceSettings
from pipeline.config.serving import MODEL_URI
from pipeline.serving.deployment import application

_FOREIGN = {
    "host": "set it in Ray Serve's http_options",
    "port": "set it in Ray Serve's http_options",
    "ingress": "requests come by Ray Serve's proxies here; leave it out",
    "models": "name one with `model`",
}


class ServiceArguments(Section):
    """The ``args`` of the application in Ray Serve's config."""

    tracking_uri: str = Field(description="MLflow's server.")
    model: str = Field(pattern=MODEL_URI, description="models:/NAME@ALIAS or models:/NAME/VERSION.")
    serving: dict[str, Any] = Field(
        default_factory=dict, description="As the section `serving` of an experiment."
    )


def build(args: ServiceArguments) -> Application:
    """The application; Ray Serve calls this on the cluster.

    Raises:
        ConfigError: unknown or contradicting settings, or those that are the proxies' own.
    """
    for name in sorted(_FOREIGN.keys() & args.serving.keys()):
        raise ConfigError(f"serving.{name}: {_FOREIGN[name]}")
    models = [{"name": "model", "uri": args.model, "traffic": 1.0}]
    tree = {"serving": {"models": models, **args.serving}}
    config = parse_tree(ServiceSettings, tree, source="args").serving
    built: Application = application(config, list(config.models), args.tracking_uri, direct=False)
    return built
