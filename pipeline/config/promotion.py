"""Promotion: what a version must show before it becomes the champion."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.config.base import Section
from pipeline.config.rows import JudgedRowsSection

Share = Annotated[float, Field(ge=0, le=1)]


class TaskRulesConfig(Section):
    """Limits of one task that replace the general ones."""

    max_auc_drop: NonNegativeFloat | None = Field(
        default=None, description="As promotion.max_auc_drop, for this task; absent = the same."
    )
    max_loss_rise: NonNegativeFloat | None = Field(
        default=None, description="As promotion.max_loss_rise, for this task; absent = the same."
    )
    max_calibration_error: NonNegativeFloat | None = Field(
        default=None,
        description="As promotion.max_calibration_error, for this task; absent = the same.",
    )
    min_auc: Share | None = Field(
        default=None, description="As promotion.min_auc, for this task; absent = the same."
    )
    min_positives: NonNegativeInt | None = Field(
        default=None, description="As promotion.min_positives, for this task; absent = the same."
    )


class PromotionConfig(JudgedRowsSection):
    """Rules of `jobs.promote`; null switches a rule off."""

    champion: str = Field(
        default="champion",
        pattern=r"^[A-Za-z0-9_\-]+$",
        description="Alias of the version in use, which a promotion moves.",
    )
    previous: str = Field(
        default="previous",
        pattern=r"^[A-Za-z0-9_\-]+$",
        description="Alias of the version that was in use before, to which --rollback goes back.",
    )
    judged_on: Literal["interval", "mean"] = Field(
        default="interval",
        description="What drops and rises are judged on. interval: the unfavourable end of the "
        "95 % interval must keep the limit, so that too little data is no pass. mean: the "
        "difference itself must, which a version of equal worth fails, and a worse one passes, "
        "by chance.",
    )
    max_auc_drop: NonNegativeFloat | None = Field(
        default=0.0005, description="Binary tasks: largest drop of AUC below the champion's."
    )
    max_loss_rise: NonNegativeFloat | None = Field(
        default=0.01,
        description="Largest relative rise of the loss above the champion's: log loss of binary "
        "tasks, pinball loss of quantiles, squared error of others.",
    )
    max_calibration_error: NonNegativeFloat | None = Field(
        default=0.02,
        description="Binary tasks: largest distance of Σ score / Σ label from 1, judged on the "
        "value.",
    )
    max_slice_auc_drop: NonNegativeFloat | None = Field(
        default=0.005,
        description="Largest drop of AUC within a value of evaluation.slices. A slice fails where "
        "its whole interval lies beyond the limit: slices are many and small.",
    )
    min_slice_positives: PositiveInt = Field(
        default=100, description="Positives, and negatives, below which a slice is not judged."
    )
    min_auc: Share | None = Field(default=0.5, description="Binary tasks: least AUC.")
    min_rows: NonNegativeInt = Field(
        default=1000, description="Rows of a task's sample space without which nothing is judged."
    )
    min_positives: NonNegativeInt = Field(
        default=100, description="Binary tasks: positives, and negatives, needed likewise."
    )
    max_p99_ms: PositiveFloat | None = Field(
        default=20.0,
        description="99th percentile of the milliseconds to score one row, in the promoting "
        "process on one thread.",
    )
    latency_calls: PositiveInt = Field(default=500, description="Calls that are timed.")
    max_size_ratio: PositiveFloat | None = Field(
        default=2.0, description="Largest size of the artifact, relative to the champion's."
    )
    tasks: dict[str, TaskRulesConfig] = Field(
        default_factory=dict, description="Limits of single tasks: {like: {max_auc_drop: 0.002}}."
    )
    resample_by: str | None = Field(
        default=None,
        description="Column, such as user_id, whose rows the bootstrap draws together: rows of one "
        "user are alike, and drawn one by one they make intervals too short. Absent = row by row.",
    )
    replicates: Annotated[int, Field(ge=100)] = Field(
        default=1000, description="Bootstrap replicates."
    )
    bootstrap_rows: PositiveInt = Field(
        default=1_000_000,
        description="Rows kept for intervals; of more, a seeded sample (values are of all rows).",
    )
    seed: NonNegativeInt = Field(default=0, description="Seeds the bootstrap.")

    def limit(self, rule: str, task: str) -> float | None:
        """A limit as it holds for a task; None = the rule is off."""
        own = self.tasks.get(task)
        value = None if own is None else getattr(own, rule)
        return getattr(self, rule) if value is None else value
