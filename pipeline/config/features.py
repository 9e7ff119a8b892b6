"""Features: which columns feed the model and how they are encoded."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Section

Pooling = Literal["sum", "mean"]


class CategoricalFeature(Section):
    """An id, a list of ids, or a weighted list of ids; each id selects one row of a table."""

    name: str = Field(description="Column in the Parquet shards.")
    encoder: Literal["vocabulary", "hash", "identity"] = Field(
        default="vocabulary",
        description="vocabulary: ids counted by jobs.prepare on the train split, rare and new ones "
        "share the unknown row. hash: a fixed 64-bit hash modulo `rows`. identity: the column "
        "already holds row numbers 0 … rows-1.",
    )
    rows: PositiveInt | None = Field(
        default=None,
        description="Table rows; needed by hash and identity, and for a vocabulary the largest "
        "number of ids kept (most frequent first; absent = all).",
    )
    min_count: PositiveInt | None = Field(
        default=None, description="vocabulary only: ids seen fewer times in train are unknown."
    )
    dim: PositiveInt | None = Field(
        default=None, description="Embedding width; absent = features.embedding_dim."
    )
    pooling: Pooling | None = Field(
        default=None, description="Lists only: how the rows of one list combine; absent = sum."
    )
    weights: str | None = Field(
        default=None,
        description="Column with one float per id of the list; the rows are scaled by it.",
    )
    max_length: PositiveInt | None = Field(
        default=None, description="Lists only: keep the first max_length ids."
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.encoder != "vocabulary":
            if self.rows is None:
                raise ValueError(f"encoder {self.encoder!r} needs `rows` (the table's size)")
            if self.min_count is not None:
                raise ValueError("`min_count` has an effect with encoder 'vocabulary' only")
        if self.weights is not None and self.pooling == "mean":
            raise ValueError("weighted lists are pooled by weighted sum; remove pooling: mean")
        return self


class NumericFeature(Section):
    """A number that reaches the tower scaled, with a missing flag, and optionally as a bucket."""

    name: str = Field(description="Column in the Parquet shards.")
    transform: Literal["none", "log1p"] = Field(
        default="none",
        description="log1p: sign(x)·log(1+|x|), applied before scaling.",
    )
    scale: Literal["standardise", "none"] = Field(
        default="standardise",
        description="standardise: subtract the mean and divide by the deviation of the train "
        "split (after `transform`).",
    )
    clip: PositiveFloat | None = Field(
        default=None, description="Limit the scaled value to ±clip; absent = no limit."
    )
    buckets: Annotated[int, Field(ge=2, le=1024)] | None = Field(
        default=None,
        description="Also embed the number of the train-split quantile bucket it falls in.",
    )
    dim: PositiveInt | None = Field(
        default=None, description="Width of the bucket embedding; absent = features.embedding_dim."
    )
    value: bool = Field(
        default=True,
        description="Feed the scaled value (and its missing flag); false = bucket embedding only.",
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.dim is not None and self.buckets is None:
            raise ValueError("`dim` of a numeric feature has an effect with `buckets` only")
        if not self.value and self.buckets is None:
            raise ValueError("value: false without `buckets` leaves nothing of the feature")
        return self


class FeaturesConfig(Section):
    """Everything the model reads, in the order in which it reaches the first level."""

    embedding_dim: PositiveInt = Field(default=16, description="Default embedding width.")
    categorical: list[CategoricalFeature] = Field(
        default_factory=list, description="Columns looked up in embedding tables."
    )
    numeric: list[NumericFeature] = Field(
        default_factory=list, description="Columns used as numbers."
    )

    @property
    def names(self) -> list[str]:
        return [f.name for f in self.categorical] + [f.name for f in self.numeric]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = self.names
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"feature columns listed twice: {', '.join(repeated)}")
        if not names:
            raise ValueError("no features: list columns under features.categorical or .numeric")
        return self
