"""Data: where the rows are and in which order they are read."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.config.base import Section
from pipeline.config.faults import FaultsConfig
from pipeline.config.locations import is_uri
from pipeline.config.splits import DATE_FIELD, SplitsConfig

DATE_FORMAT = "%Y-%m-%d"


def _location(path: str) -> str:
    if is_uri(path) and not path.partition("://")[2].strip("/"):
        raise ValueError("names no bucket or folder; write scheme://bucket/folder")
    return path


Location = Annotated[str, AfterValidator(_location)]


class DataConfig(Section):
    """Where the dataset is and in which order its rows are read."""

    path: Location = Field(
        description="Folder of the dataset: a path that every node can reach, or a URI (s3://, "
        "gs://, hdfs://, …). Written by jobs.prepare (it holds manifest.json), or any Parquet "
        "files with `splits`.",
    )
    splits: SplitsConfig | None = Field(
        default=None,
        description="Which files are for what, where jobs.prepare did not write them; absent = "
        "path holds manifest.json.",
    )
    date_format: str | None = Field(
        default=None,
        description="How {date} in splits.*.files is written, as in strftime; absent = %Y-%m-%d.",
    )
    batch_size: PositiveInt = Field(
        default=4096, description="Rows of a global batch, over all workers."
    )
    evaluation_batch_size: PositiveInt = Field(
        default=8192, description="Rows of a global batch when evaluating."
    )
    streams: PositiveInt = Field(
        default=8,
        description="Logical streams, a power of two; workers share them out, so it bounds the "
        "number of workers and fixes the order of rows whatever that number is.",
    )
    shuffle_rows: NonNegativeInt = Field(
        default=262_144,
        description="Rows shuffled together, over all streams; 0 = file order.",
    )
    prefetch_batches: PositiveInt = Field(
        default=8, description="Batches each worker decodes ahead of the step."
    )
    sample_weight: str | None = Field(
        default=None, description="Column of row weights for losses and metrics; absent = 1."
    )
    faults: FaultsConfig = Field(
        default_factory=FaultsConfig, description="What to do with rows that cannot be used."
    )

    @model_validator(mode="after")
    def _splits(self) -> Self:
        patterns = [p for s in self.splits.by_name.values() for p in s.files] if self.splits else []
        if self.date_format is not None:
            if not any(DATE_FIELD in pattern for pattern in patterns):
                raise ValueError("`date_format` has an effect with {date} in splits.*.files only")
            if "%" not in self.date_format:
                raise ValueError("date_format needs the fields of strftime, such as %Y-%m-%d")
        if self.splits is not None:
            self.splits.check_reach(self.path)
        return self

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.streams & (self.streams - 1):
            raise ValueError(f"streams must be a power of two, not {self.streams}")
        for key in ("batch_size", "evaluation_batch_size"):
            if getattr(self, key) % self.streams:
                raise ValueError(f"{key} must be a multiple of streams ({self.streams})")
        return self
