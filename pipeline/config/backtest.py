"""Backtest: days of data on which `jobs.evaluate` judges versions."""

from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.rows import JudgedRowsSection
from pipeline.config.splits import DATE_FIELD


class BacktestConfig(JudgedRowsSection):
    """Settings of `jobs.evaluate`; training does not read them."""

    day_column: str | None = Field(
        default=None,
        description="Column with the day of a row: a date, a time stamp, text that begins "
        "YYYY-MM-DD, or whole numbers such as 20261121. Absent = the day of {date} in rows.files, "
        "else all rows are one period.",
    )
    max_days: PositiveInt = Field(
        default=400, description="Days beyond which a day_column is taken for a mistake."
    )
    watch_psi: PositiveFloat = Field(
        default=0.1, description="Population stability index from which a feature is to be watched."
    )
    act_psi: PositiveFloat = Field(
        default=0.25, description="Population stability index from which something must be done."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.watch_psi >= self.act_psi:
            raise ValueError("watch_psi must be below act_psi")
        dated = self.rows is not None and any(DATE_FIELD in p for p in self.rows.files)
        if dated and self.day_column is not None:
            raise ValueError("`day_column` has no effect with {date} in rows.files, which says it")
        return self
