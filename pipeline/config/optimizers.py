"""How tables and the dense part move: optimizers and their schedules."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from pipeline.config.base import Section

# Kernels of these exist on CUDA only.
CUDA_TABLE_OPTIMIZERS = ("adam", "lamb")


class TableOptimizerConfig(Section):
    """The optimizer fused into the backward pass of the embedding tables.

    It moves only the rows a batch touches.
    """

    kind: Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "lamb"] = Field(
        default="rowwise_adagrad",
        description="rowwise_adagrad keeps one moment per row; adam and lamb need CUDA.",
    )
    learning_rate: PositiveFloat = Field(default=0.02, description="Peak learning rate.")
    eps: PositiveFloat | None = Field(
        default=None, description="Offset of the denominator, not for sgd; absent = 1e-8."
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.kind == "sgd" and self.eps is not None:
            raise ValueError("`eps` has no effect with kind: sgd")
        return self

    def state_bytes(self, rows: int, dim: int) -> int:
        """Bytes of optimizer state that a table or a part of one carries beside its weights."""
        if self.kind == "rowwise_adagrad":
            return 4 * rows
        return {"sgd": 0, "adagrad": 4, "adam": 8, "lamb": 8}[self.kind] * rows * dim


class DenseOptimizerConfig(Section):
    """The optimizer of experts, gates and towers."""

    kind: Literal["adam", "adamw", "adagrad", "sgd"] = Field(
        default="adam", description="torch.optim's algorithm of that name."
    )
    learning_rate: PositiveFloat = Field(default=1e-3, description="Peak learning rate.")
    weight_decay: float = Field(
        default=0.0, ge=0, description="L2 penalty; decoupled from the gradient with adamw."
    )
    clip_norm: PositiveFloat | None = Field(
        default=None, description="Clip the global norm of the dense gradient; absent = never."
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Evaluate and export an exponential moving average of the dense weights, "
        "average = ema_decay · average + (1 - ema_decay) · weights after each step (a shorter "
        "memory in the first steps); absent = the weights themselves.",
    )

    def state_bytes(self, parameters: int) -> int:
        """Bytes of optimizer state of this many dense parameters, averages included."""
        per_parameter = {"adam": 8, "adamw": 8, "adagrad": 4, "sgd": 0}[self.kind]
        return (per_parameter + (0 if self.ema_decay is None else 4)) * parameters


class ScheduleConfig(Section):
    """Learning-rate multiplier over steps."""

    kind: Literal["constant", "linear", "cosine", "step"] = Field(
        default="constant", description="Course from the peak after warm-up to the last step."
    )
    warmup_steps: NonNegativeInt = Field(
        default=0, description="Steps of linear growth from 0 to the peak."
    )
    final_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="linear, cosine: rate at the end over the peak; absent = 0.",
    )
    step_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="step: what the rate is multiplied with; absent = 0.1."
    )
    step_every: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="step: steps from one drop to the next, after warm-up."
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.kind in ("constant", "step") and self.final_fraction is not None:
            raise ValueError(f"`final_fraction` has no effect with kind: {self.kind}")
        if self.kind == "step" and self.step_every is None:
            raise ValueError("kind: step needs `step_every`, the steps between two drops")
        for key in ("step_fraction", "step_every"):
            if self.kind != "step" and getattr(self, key) is not None:
                raise ValueError(f"`{key}` has no effect with kind: {self.kind}")
        return self
