"""Which rows versions of a model are judged on: a split of the data, or files of their own."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section
from pipeline.config.data import DATE_FORMAT
from pipeline.config.splits import DATE_FIELD, SplitConfig


class RowsConfig(SplitConfig):
    """Parquet files with raw rows and labels, as under data.splits."""

    date_format: str | None = Field(
        default=None,
        description="How {date} is written in `files`, as in strftime; absent = %Y-%m-%d.",
    )

    @model_validator(mode="after")
    def _no_dead_format(self) -> Self:
        if self.date_format is None:
            return self
        if not any(DATE_FIELD in pattern for pattern in self.files):
            raise ValueError("`date_format` has an effect with {date} in `files` only")
        if "%" not in self.date_format:
            raise ValueError(f"date_format needs the fields of strftime, such as {DATE_FORMAT}")
        return self


class JudgedRowsSection(Section):
    """What sections that judge versions share: where the rows come from."""

    split: Literal["train", "valid", "test"] | None = Field(
        default=None, description="Split of the experiment's data; absent = test, unless `rows`."
    )
    rows: RowsConfig | None = Field(
        default=None,
        description="Files to judge on instead: {files: 'dt={date}', first_date: …, last_date: …}, "
        "relative to data.path.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.split is not None and self.rows is not None:
            raise ValueError("give `split` or `rows`, not both")
        return self

    @property
    def split_name(self) -> str | None:
        """The split; None where files of their own are given."""
        return None if self.rows is not None else self.split or "test"
