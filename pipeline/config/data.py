"""Data: where the rows are and in which order they are read."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.config.base import Section


def _folder(path: str) -> str:
    if "://" in path:
        raise ValueError("must be a folder that every node can reach by this path, not a URI")
    return path


Folder = Annotated[str, AfterValidator(_folder)]


class DataConfig(Section):
    """Where the prepared dataset is and in which order its rows are read."""

    path: Folder = Field(description="Folder written by jobs.prepare (holds manifest.json).")
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

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.streams & (self.streams - 1):
            raise ValueError(f"streams must be a power of two, not {self.streams}")
        for key in ("batch_size", "evaluation_batch_size"):
            if getattr(self, key) % self.streams:
                raise ValueError(f"{key} must be a multiple of streams ({self.streams})")
        return self
