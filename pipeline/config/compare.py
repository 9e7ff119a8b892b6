"""Comparison: what `jobs.compare` changes for one kind of model only."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section
from pipeline.config.model import Kind

# Sections a kind may have of its own; the rest must be equal, or nothing is compared.
_OWN_SECTIONS = ("model", "dense_optimizer", "table_optimizer", "schedule", "balance")


class CompareConfig(Section):
    """Settings of `jobs.compare`; training one model does not read them."""

    kinds: dict[Kind, dict[str, Any]] = Field(
        default_factory=dict,
        description="By kind, settings it has of its own, as dotted keys: "
        "{mmoe: {dense_optimizer.learning_rate: 0.001}}. A kind that is given model.levels keeps "
        "those widths; of all others the expert widths are scaled to the budget.",
    )
    single_task_budget: Literal["total", "each"] = Field(
        default="total",
        description="total: the single-task models together meet the budget; each: every one does.",
    )
    tables: Literal["same_width", "same_parameters"] = Field(
        default="same_width",
        description="same_width: embeddings are as wide in every kind, so single_task, with tables "
        "for each task, and stem hold several times the numbers of the others. same_parameters: "
        "widths are divided by the sets of tables a kind has, to the nearest multiple of 4, so "
        "that all hold about as many numbers as the config's model.",
    )

    @model_validator(mode="after")
    def _own_settings(self) -> Self:
        for kind, settings in self.kinds.items():
            for key in settings:
                section, dot, rest = key.partition(".")
                if section not in _OWN_SECTIONS or not dot or not rest:
                    raise ValueError(
                        f"kinds.{kind}: {key!r} is not a setting a kind may have of its own; write "
                        "a dotted key of " + ", ".join(_OWN_SECTIONS)
                    )
                if key == "model.kind":
                    raise ValueError(f"kinds.{kind}: model.kind is {kind} already; leave it out")
        return self

    def settings_of(self, kind: str) -> dict[str, Any]:
        """Dotted settings that only this kind has."""
        return {str(name): settings for name, settings in self.kinds.items()}.get(kind, {})
