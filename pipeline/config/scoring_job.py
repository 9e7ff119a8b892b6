"""The settings of batch scoring without an experiment's file: overrides alone."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from pipeline.config.base import Section
from pipeline.config.load import apply_override, parse_tree
from pipeline.config.schema import RayConfig
from pipeline.config.scoring import ScoringConfig


class ScoringSettings(Section):
    """The sections of an experiment that `jobs.score` reads."""

    scoring: ScoringConfig = Field(default_factory=ScoringConfig)
    ray: RayConfig = Field(default_factory=RayConfig)


def load_scoring(overrides: Sequence[str] = ()) -> ScoringSettings:
    """Defaults, and ``scoring.key=value`` or ``ray.key=value``.

    Raises:
        ConfigError: unknown key, wrong type or contradicting settings.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    return parse_tree(ScoringSettings, tree, source="the command line")
