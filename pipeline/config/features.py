"""Features: which columns feed the model and how they are encoded."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Section

Pooling = Literal["sum", "mean"]
Eviction = Literal["frequency", "recency", "frequency_recency"]
MAP_BUCKETS = 16
EVICTION_INTERVAL = 100


class CategoricalFeature(Section):
    """An id, a list of ids, or a weighted list of ids; each id selects one row of a table."""

    name: str = Field(description="Column in the Parquet shards.")
    encoder: Literal["vocabulary", "hash", "identity", "zero_collision"] = Field(
        default="vocabulary",
        description="vocabulary: ids counted by jobs.prepare on the train split, rare and new ones "
        "share the unknown row. hash: a fixed 64-bit hash modulo `rows`. identity: the column "
        "already holds row numbers 0 … rows-1. zero_collision: while training, the ids seen most "
        "get a row of their own, and lose it to others seen more (TorchRec's managed collisions).",
    )
    rows: PositiveInt | None = Field(
        default=None,
        description="Table rows; needed by all but a vocabulary, for which it is the largest "
        "number of ids kept (most frequent first; absent = all).",
    )
    eviction: Eviction | None = Field(
        default=None,
        description="zero_collision only: which id loses its row to a new one: the one seen least "
        "often (frequency), longest ago (recency), or with the fewest sightings per step since the "
        "last (frequency_recency); absent = frequency.",
    )
    eviction_interval: PositiveInt | None = Field(
        default=None,
        description="zero_collision only: training steps whose ids are collected before rows "
        f"change hands; absent = {EVICTION_INTERVAL}.",
    )
    map_buckets: PositiveInt | None = Field(
        default=None,
        description="zero_collision only: parts into which ids and rows are split; the number of "
        f"workers must divide it, and it must divide `rows`; absent = {MAP_BUCKETS}.",
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
        if self.encoder == "zero_collision":
            self._check_map()
        else:
            for option in ("eviction", "eviction_interval", "map_buckets"):
                if getattr(self, option) is not None:
                    raise ValueError(f"`{option}` has an effect with encoder 'zero_collision' only")
        if self.weights is not None and self.pooling == "mean":
            raise ValueError("weighted lists are pooled by weighted sum; remove pooling: mean")
        return self

    def _check_map(self) -> None:
        assert self.rows is not None
        buckets = self.map_buckets or MAP_BUCKETS
        if self.rows % buckets or self.rows < 2 * buckets:
            larger = max(2, -(-self.rows // buckets)) * buckets
            raise ValueError(
                f"`rows` of encoder 'zero_collision' is a multiple of `map_buckets` ({buckets}), "
                f"and twice it or more; set rows: {larger}"
            )
        if self.weights is not None:
            raise ValueError(
                "encoder 'zero_collision' takes no weighted lists; use encoder: hash, or drop "
                "`weights`"
            )


class CrossFeature(Section):
    """Two id columns as one: each pair of ids that occurs together selects a row of a table."""

    name: str = Field(description="Name of the feature and of its table; no column's name.")
    columns: tuple[str, str] = Field(
        description="The two columns, of single ids (integers, booleans or strings); they may be "
        "features as well. Their order is part of the hash."
    )
    rows: Annotated[int, Field(ge=2)] = Field(
        description="Table rows; pairs are hashed to all but the first, which means that either "
        "id is missing."
    )
    dim: PositiveInt | None = Field(
        default=None, description="Embedding width; absent = features.embedding_dim."
    )

    @model_validator(mode="after")
    def _two_columns(self) -> Self:
        if self.columns[0] == self.columns[1]:
            raise ValueError(
                f"`columns` names {self.columns[0]!r} twice; a cross needs two columns (for one, "
                "list it under features.categorical)"
            )
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
    min_count: PositiveInt | None = Field(
        default=None,
        description="With `buckets`: let them begin at values instead of quantiles, so that each "
        "value that at least this many train rows have gets a bucket of its own, and rarer ones "
        "share one with their neighbours; absent = quantiles.",
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
        if self.min_count is not None and self.buckets is None:
            raise ValueError("`min_count` of a numeric feature has an effect with `buckets` only")
        if not self.value and self.buckets is None:
            raise ValueError("value: false without `buckets` leaves nothing of the feature")
        return self


class FeaturesConfig(Section):
    """Everything the model reads, in the order in which it reaches the first level."""

    embedding_dim: PositiveInt = Field(default=16, description="Default embedding width.")
    categorical: list[CategoricalFeature] = Field(
        default_factory=list, description="Columns looked up in embedding tables."
    )
    crosses: list[CrossFeature] = Field(
        default_factory=list, description="Pairs of id columns looked up together."
    )
    numeric: list[NumericFeature] = Field(
        default_factory=list, description="Columns used as numbers."
    )

    @property
    def names(self) -> list[str]:
        """Every column read as an id or a number, features first; a cross's two come last."""
        crossed = [column for cross in self.crosses for column in cross.columns]
        return list(dict.fromkeys([*self._own_columns, *crossed]))

    @property
    def _own_columns(self) -> list[str]:
        return [f.name for f in self.categorical] + [f.name for f in self.numeric]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = self._own_columns
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"feature columns listed twice: {', '.join(repeated)}")
        crosses = [cross.name for cross in self.crosses]
        taken = sorted({n for n in crosses if n in self.names or crosses.count(n) > 1})
        if taken:
            raise ValueError(
                f"features.crosses: {', '.join(taken)} is the name of another feature or of a "
                "column; give the cross a name of its own"
            )
        if not names and not crosses:
            raise ValueError(
                "no features: list columns under features.categorical, .crosses or .numeric"
            )
        return self
