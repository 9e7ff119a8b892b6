"""Batch scoring: which columns come out, how they are cut into files, and on how many actors."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from pipeline.config.base import Section


class ScoringConfig(Section):
    """`jobs.score`."""

    keep: list[str] | None = Field(
        default=None,
        description="Columns of the input that are written beside the scores, such as row keys; "
        "absent = all of them.",
    )
    prefix: str = Field(
        default="score_", description="The score of task `click` is in column PREFIXclick."
    )
    partition_by: list[str] = Field(
        default_factory=list,
        description="Columns of the input whose values become folders, COLUMN=VALUE, and are left "
        "out of the files.",
    )
    rows_per_file: PositiveInt = Field(
        default=1_000_000,
        description="Most rows of an output file. Row groups of an input file that together have "
        "no more are scored as one piece, which is what a restart repeats.",
    )
    compression: Literal["zstd", "snappy", "lz4", "gzip", "none"] = Field(
        default="zstd", description="Of the output."
    )
    actors: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Processes of one CPU that each hold the model; auto = one per CPU of the "
        "cluster, at most one per piece.",
    )
    batch_rows: PositiveInt = Field(
        default=65_536, description="Rows an actor decodes and holds at once."
    )

    @model_validator(mode="after")
    def _columns_once(self) -> Self:
        for key, names in (("keep", self.keep or []), ("partition_by", self.partition_by)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key}: column {twice[0]} stands twice")
        return self
