"""Tasks: what is predicted, from which label, on which rows."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.config.base import Section
from pipeline.config.expressions import Column, columns_of, parse_rule

BINARY = "binary_cross_entropy"


def _rule(text: str) -> str:
    parse_rule(text)
    return text


RuleText = Annotated[str, AfterValidator(_rule)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]


class TaskConfig(Section):
    """One label with its loss, sample space and tower."""

    name: str = Field(description="Task name; metrics and score columns carry it.")
    label: RuleText | None = Field(
        default=None,
        description="Label column, or for binary tasks a rule as in `space` that makes it (click & "
        "convert, where convert is null without a click); absent = the task's name.",
    )
    loss: Literal[
        "binary_cross_entropy", "squared_error", "huber", "quantile", "ziln", "ordinal"
    ] = Field(
        default="binary_cross_entropy",
        description="binary_cross_entropy: label 0 or 1, score a probability. squared_error, "
        "huber: any number, score its mean (huber: less moved by outliers). quantile: score a "
        "quantile. ziln: a number of at least 0, often 0 (spend, watch time), score its mean. "
        "ordinal: whole numbers of ordinal_range, score the expected one.",
    )
    weight: NonNegativeFloat = Field(
        default=1.0,
        description="ω in the joint loss Σ ω·L; 0 only for a factor of a `product_of`, which then "
        "trains it alone.",
    )
    space: RuleText | None = Field(
        default=None,
        description="Sample space, the rows on which the task is trained and scored: a 0/1 column "
        "(a conversion that exists after a click only: space: click), or a rule: click & ~hate, "
        "watch_time > 5, rating >= 4 | share. Comparisons come before ~, & and |. Absent = all.",
    )
    tower_hidden: list[PositiveInt] | None = Field(
        default=None, description="Hidden widths of this task's tower; absent = model.tower_hidden."
    )
    label_smoothing: OpenShare | None = Field(
        default=None,
        description="binary_cross_entropy: labels are pulled this far towards 1/2; absent = 0.",
    )
    positive_weight: PositiveFloat | None = Field(
        default=None,
        description="binary_cross_entropy: weight of positives; scores are then no probabilities "
        "of the data as it is. Absent = 1.",
    )
    focal_gamma: PositiveFloat | None = Field(
        default=None,
        description="binary_cross_entropy: γ of the focal loss, which favours rows that are hard; "
        "scores are then no probabilities. Absent = 0.",
    )
    huber_delta: PositiveFloat | None = Field(
        default=None, description="huber: error up to which the loss is a square; absent = 1."
    )
    quantile: OpenShare | None = Field(
        default=None, description="quantile, required: which one, such as 0.9."
    )
    ordinal_range: tuple[int, int] | None = Field(
        default=None, description="ordinal, required: first and last level, such as [1, 5]."
    )
    negatives_kept: OpenShare | None = Field(
        default=None,
        description="Share of the train rows with label 0 that jobs.prepare --keep-negatives kept: "
        "the score is put right for it, and the other tasks' rows weigh what they stand for.",
    )
    product_of: list[str] | None = Field(
        default=None,
        min_length=2,
        description="ESMM: binary tasks listed before whose probabilities multiply to this one's, "
        "such as [click, convert] for a conversion on all rows; it has no tower.",
    )
    propensity: str | None = Field(
        default=None,
        description="ESCM²-IPS: binary task listed before, whose label bounds this task's space; "
        "rows weigh 1 / its probability, over the number of all its rows.",
    )
    propensity_floor: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="The least probability that is divided by; absent = 0.05.",
    )
    transfer_from: str | None = Field(
        default=None,
        description="AITM: task listed before, whose tower hands information to this one.",
    )
    transfer_penalty: NonNegativeFloat | None = Field(
        default=None,
        description="AITM: strength of the penalty on a probability above that of transfer_from; "
        "absent = 0.6. 0 where this task's label does not imply the other's on the same rows.",
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        for loss, keys in _OPTIONS.items():
            for key in keys:
                if self.loss != loss and getattr(self, key) is not None:
                    raise ValueError(f"`{key}` has no effect with loss: {self.loss}")
        for source, key in _OF_DEPENDENT:
            if getattr(self, source) is None and getattr(self, key) is not None:
                raise ValueError(f"`{key}` has no effect without `{source}`")
        if self.loss in _REQUIRED and getattr(self, _REQUIRED[self.loss]) is None:
            raise ValueError(f"loss: {self.loss} needs `{_REQUIRED[self.loss]}`")
        if self.ordinal_range is not None and self.ordinal_range[0] >= self.ordinal_range[1]:
            raise ValueError("`ordinal_range` needs a first level below the last, such as [1, 5]")
        if not self.is_binary and not isinstance(parse_rule(self.label_text), Column):
            raise ValueError(f"a label made by a rule is 0 or 1: use loss: {BINARY}")
        if self.product_of is not None:
            for key in ("tower_hidden", "propensity", "transfer_from", "negatives_kept"):
                if getattr(self, key) is not None:
                    raise ValueError(f"`{key}` has no effect with `product_of`: no tower, no rows")
        if self.negatives_kept is not None:
            for key in ("label_smoothing", "positive_weight", "focal_gamma"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"`negatives_kept` puts probabilities right, which `{key}` distorts; "
                        "remove one of them"
                    )
        return self

    @property
    def label_text(self) -> str:
        """The label's column or rule as it is written."""
        return _quoted(self.name) if self.label is None else self.label

    @property
    def label_columns(self) -> tuple[str, ...]:
        return columns_of(parse_rule(self.label_text))

    @property
    def space_columns(self) -> tuple[str, ...]:
        return () if self.space is None else columns_of(parse_rule(self.space))

    @property
    def label_column(self) -> str | None:
        """The column that is the label; None where a rule makes it."""
        rule = parse_rule(self.label_text)
        return rule.name if isinstance(rule, Column) else None

    @property
    def is_binary(self) -> bool:
        """Whether the label is 0 or 1 and the score its probability."""
        return self.loss == BINARY

    @property
    def has_tower(self) -> bool:
        return self.product_of is None


# The options of each loss, and those that say something about another one.
_OPTIONS = {
    BINARY: (
        "label_smoothing",
        "positive_weight",
        "focal_gamma",
        "negatives_kept",
        "product_of",
    ),
    "huber": ("huber_delta",),
    "quantile": ("quantile",),
    "ordinal": ("ordinal_range",),
}
_REQUIRED = {"quantile": "quantile", "ordinal": "ordinal_range"}
_OF_DEPENDENT = (("propensity", "propensity_floor"), ("transfer_from", "transfer_penalty"))


def _quoted(name: str) -> str:
    """A column's name as a rule that reads it, whatever characters it holds."""
    return f"`{name}`" if "`" not in name else name
