"""The dense tower: extraction levels and task towers."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.config.base import Section


class LevelConfig(Section):
    """One extraction network (PLE paper, section 4.2; CGC is a model of one level)."""

    shared_experts: NonNegativeInt = Field(description="m_s, experts every task's gate reads.")
    task_experts: NonNegativeInt | dict[str, NonNegativeInt] = Field(
        description="m_k, experts of each task: one number, or one per task by name."
    )
    hidden: list[PositiveInt] = Field(
        min_length=1, description="Hidden widths of an expert MLP; the last is the level's width."
    )
    shared_hidden: list[PositiveInt] | None = Field(
        default=None, description="Hidden widths of shared experts, if not `hidden`; same last."
    )
    gate_hidden: list[PositiveInt] = Field(
        default_factory=list, description="Hidden widths of the gates; empty = a linear gate."
    )
    gate_bias: bool = Field(default=False, description="Bias in the gates' last layer.")

    @model_validator(mode="after")
    def _widths(self) -> Self:
        if self.shared_hidden is not None:
            if not self.shared_hidden or self.shared_hidden[-1] != self.hidden[-1]:
                raise ValueError("shared_hidden must end in the same width as hidden")
            if self.shared_experts == 0:
                raise ValueError("shared_hidden has no effect with shared_experts: 0")
        return self


class ModelConfig(Section):
    """The dense tower: extraction levels and task towers."""

    levels: list[LevelConfig] = Field(min_length=1, description="Extraction networks, first first.")
    tower_hidden: list[PositiveInt] = Field(
        default_factory=lambda: [64], description="Hidden widths of every task tower."
    )
    activation: Literal["relu", "silu", "gelu"] = Field(
        default="relu", description="Non-linearity of experts and towers."
    )
    normalization: Literal["none", "layer"] = Field(
        default="none", description="Normalisation before each activation of an expert."
    )
    input_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout on the feature vector before level 1."
    )
    expert_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout inside experts.")
    tower_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout inside towers.")
