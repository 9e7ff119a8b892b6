"""Loss balancing: how the losses of the tasks become one."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Section
from pipeline.config.tasks import TaskConfig

# The options each kind reads, besides `boundary`, which every kind's diagnostics read.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "static": (),
    "decay": ("gamma", "every"),
    "uncertainty": ("every", "learning_rate"),
    "dwa": ("every", "temperature"),
    "gradnorm": ("every", "learning_rate", "asymmetry"),
    "mgda": ("every", "normalize"),
    "pcgrad": ("every",),
    "cagrad": ("every", "radius"),
    "norm": ("every", "target", "relax", "momentum"),
}
# Their formulas want losses of at least zero; these losses are logarithms of densities.
_NON_NEGATIVE = ("uncertainty", "dwa", "gradnorm")
_MAY_BE_NEGATIVE = ("ziln",)


class BalanceConfig(Section):
    """How the joint loss Σ α·ω·L gets its α; ω is `tasks[].weight`."""

    kind: Literal[
        "static", "decay", "uncertainty", "dwa", "gradnorm", "mgda", "pcgrad", "cagrad", "norm"
    ] = Field(
        default="static",
        description="static: α = 1. decay: γ^t (PLE). uncertainty: 1/σ² learnt per task (Kendall "
        "2018). dwa: by how fast losses fall (Liu 2019). gradnorm: gradient norms towards targets "
        "(Chen 2018). mgda: smallest norm (Sener 2018). pcgrad: conflicts projected out (Yu 2020). "
        "cagrad: best for the worst task near the mean (Liu 2021). norm: gradient norms brought "
        "near a target's (He 2022).",
    )
    boundary: Literal["features", "last_level"] = Field(
        default="last_level",
        description="Where task gradients are compared: the feature vector, or the streams that "
        "enter the last level (cheaper). Norms and cosines are logged there whatever the kind.",
    )
    every: PositiveInt | None = Field(
        default=None,
        description="Steps from one renewal of the weights to the next; absent = 1. dwa: steps of "
        "a window, absent = 500. decay: steps of one unit of t, absent = an epoch.",
    )
    gamma: PositiveFloat | dict[str, PositiveFloat] | None = Field(
        default=None, description="decay, required: γ, one number or one per task by name."
    )
    temperature: PositiveFloat | None = Field(
        default=None, description="dwa: larger is nearer to equal weights; absent = 2."
    )
    learning_rate: PositiveFloat | None = Field(
        default=None,
        description="Adam's rate of the weights. uncertainty: absent = 0.01; gradnorm: 0.025.",
    )
    asymmetry: float | None = Field(
        default=None, ge=0, description="gradnorm: pull on tasks that lag; absent = 1.5."
    )
    normalize: Literal["none", "norm", "loss"] | None = Field(
        default=None,
        description="mgda: divide gradients by their norm or by their loss first; absent = none, "
        "which favours tasks with small gradients.",
    )
    radius: float | None = Field(
        default=None, gt=0, lt=1, description="cagrad: c, reach around the mean; absent = 0.5."
    )
    target: str | None = Field(
        default=None,
        description="norm: task whose norm the others take; absent = the geometric mean.",
    )
    relax: float | None = Field(
        default=None, gt=0, le=1, description="norm: share of the difference; absent = 0.7."
    )
    momentum: float | None = Field(
        default=None, ge=0, lt=1, description="norm: memory of the averaged norms; absent = 0.9."
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        for name in type(self).model_fields:
            if name in ("kind", "boundary", *_OPTIONS[self.kind]):
                continue
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` has no effect with kind: {self.kind}")
        if self.kind == "decay" and self.gamma is None:
            raise ValueError("kind: decay needs `gamma`, such as gamma: 0.9")
        return self


def check_balance(balance: BalanceConfig, tasks: Sequence[TaskConfig]) -> None:
    """Raises ValueError if the method cannot serve these tasks."""
    names = [task.name for task in tasks]
    if balance.kind != "static" and len(names) == 1:
        raise ValueError(f"balance.kind: {balance.kind} has no effect with one task; use static")
    idle = [task.name for task in tasks if task.weight == 0]
    if idle and balance.kind not in ("static", "decay"):
        raise ValueError(
            f"balance.kind: {balance.kind} weighs every task, and task {idle[0]!r} has weight 0: "
            "give it a weight, or use static or decay"
        )
    if isinstance(balance.gamma, dict) and set(balance.gamma) != set(names):
        raise ValueError(
            f"balance.gamma names {sorted(balance.gamma)}, the tasks are {sorted(names)}: give one "
            "γ per task"
        )
    if balance.target is not None and balance.target not in names:
        raise ValueError(
            f"balance.target: there is no task {balance.target!r}; choose one of {', '.join(names)}"
        )
    if balance.kind in _NON_NEGATIVE:
        for task in tasks:
            if task.loss in _MAY_BE_NEGATIVE:
                raise ValueError(
                    f"balance.kind: {balance.kind} needs losses of at least zero, and the "
                    f"{task.loss} of task {task.name!r} can be negative; use a kind that compares "
                    "gradients, such as norm or pcgrad"
                )
