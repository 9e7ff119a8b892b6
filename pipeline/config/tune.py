"""Search: what `jobs.tune` tries, how it draws, when it gives a trial up."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from pipeline.config.base import Section

_DEFAULT_TRIALS = 16
# What tells a parameter from a part of a dotted key, where an override made a tree of the key.
_RANGE_KEYS = {"low", "high", "values"}


class TuneParameter(Section):
    """The values one setting may take: a range, or a list."""

    low: int | float | None = Field(
        default=None,
        description="Least value. Where low and high are whole numbers, whole numbers are drawn; "
        "write 1.0 and 8.0 for fractions.",
    )
    high: int | float | None = Field(default=None, description="Largest value.")
    scale: Literal["linear", "log"] | None = Field(
        default=None,
        description="Of the range: log draws every order of magnitude equally often; absent = "
        "linear.",
    )
    values: list[Any] | None = Field(
        default=None, description="The values themselves, instead of low and high."
    )

    @model_validator(mode="after")
    def _a_range_or_values(self) -> Self:
        bounds = (self.low, self.high)
        if self.values is not None:
            if bounds != (None, None) or self.scale is not None:
                raise ValueError("give `values`, or `low` and `high` (and `scale`), not both")
            if not self.values:
                raise ValueError("`values` is empty")
            if any(value in self.values[:n] for n, value in enumerate(self.values)):
                raise ValueError("`values` names a value twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give `low` and `high`, or `values`")
        if not self.low < self.high:
            raise ValueError(f"`low` {self.low} must be below `high` {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError("`scale: log` needs `low` above 0")
        return self


class TuneStopping(Section):
    """Asynchronous successive halving (ASHA, https://arxiv.org/abs/1810.05934)."""

    grace: PositiveInt = Field(
        default=1, description="Evaluations of validation that every trial gets."
    )
    factor: Annotated[int, Field(ge=2)] = Field(
        default=3,
        description="After grace, grace·factor, grace·factor² … evaluations a trial goes on if it "
        "is among the best 1/factor of those that came so far before it.",
    )


class TuneConfig(Section):
    """Settings of `jobs.tune`; training one model does not read them."""

    parameters: dict[str, TuneParameter] = Field(
        default_factory=dict,
        description="By dotted key of the experiment, what may be tried: "
        "{dense_optimizer.learning_rate: {low: 1.0e-4, high: 1.0e-2, scale: log}}.",
    )
    search: Literal["random", "grid"] = Field(
        default="random",
        description="random: values are drawn, after a first trial with the file's own. grid: "
        "every combination of `values`.",
    )
    trials: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="random only: trials in all; absent = 16."
    )
    seed: NonNegativeInt | None = Field(
        default=None,
        description="random only: seeds the draws; more `trials` keep the earlier ones; absent = "
        "0. Every trial trains with train.seed.",
    )
    metric: str | None = Field(
        default=None,
        description="Of the validation split, what trials are judged by, as "
        "train.early_stopping.metric names it; absent = that setting.",
    )
    early_stopping: TuneStopping | None = Field(
        default=None, description="Gives up trials that fall behind; absent = all run to the end."
    )
    parallel: PositiveInt | None = Field(
        default=None,
        description="Trials side by side, at most; absent = as many as Ray has room for.",
    )

    @field_validator("parameters", mode="before")
    @classmethod
    def _dotted(cls, tree: Any) -> Any:
        # An override, tune.parameters.dense_optimizer.learning_rate=…, nests what a file dots.
        return _flat(tree, "") if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.search == "grid":
            for key in ("trials", "seed"):
                if getattr(self, key) is not None:
                    raise ValueError(f"`{key}` has no effect with search: grid")
            for key, parameter in self.parameters.items():
                if parameter.values is None:
                    raise ValueError(f"parameters.{key}: search: grid needs `values`")
        return self

    @property
    def trial_count(self) -> int:
        """Trials of a random search."""
        return _DEFAULT_TRIALS if self.trials is None else self.trials


def _flat(tree: dict[Any, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        inner = isinstance(value, dict) and value and not _RANGE_KEYS & value.keys()
        if inner and all(isinstance(item, dict) for item in value.values()):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found
