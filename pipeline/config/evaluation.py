"""Evaluation: what is measured beyond the tasks' own metrics."""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from pipeline.config.base import Section

MAX_SLICES = 10


class EvaluationConfig(Section):
    """Columns that evaluation looks at besides features and labels; training does not read them."""

    group_by: str | None = Field(
        default=None,
        description="Column of integers or strings, such as user_id: AUC within each of its values "
        "(GAUC) for every binary task; absent = none.",
    )
    slices: tuple[str, ...] = Field(
        default=(),
        description="Categorical columns by whose values the metrics are split as well: the values "
        "most frequent in the train split, the others together.",
    )
    max_slices: PositiveInt | None = Field(
        default=None,
        description="slices: values shown of each column; absent = 10.",
    )
    calibration_bins: int = Field(
        default=20,
        ge=2,
        le=1000,
        description="Bins of equal weight of the reliability diagram and of the expected "
        "calibration error.",
    )

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that evaluation batches carry, each once."""
        first = () if self.group_by is None else (self.group_by,)
        return tuple(dict.fromkeys([*first, *self.slices]))

    @property
    def slice_limit(self) -> int:
        """Values shown of each slice column."""
        return MAX_SLICES if self.max_slices is None else self.max_slices

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.max_slices is not None and not self.slices:
            raise ValueError("`max_slices` has no effect without `slices`")
        repeated = sorted({c for c in self.slices if self.slices.count(c) > 1})
        if repeated:
            raise ValueError(f"slices listed twice: {', '.join(repeated)}")
        return self
