"""Data that cannot be used: what stops the run, what is skipped, and how much may be lost."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Section

KINDS = ("unreadable", "schema_drift", "labels", "ids")
MAX_LOST_FRACTION = 0.001


class FaultsConfig(Section):
    """What happens to rows that cannot be used, by kind of fault.

    A skipped row keeps its place in the order of rows, with weight 0 in every task.
    """

    unreadable: Literal["error", "skip_row_group"] = Field(
        default="error",
        description="A file that is gone, cut short, damaged, or changed since the dataset was "
        "prepared. (An object store that does not answer always stops the run.)",
    )
    schema_drift: Literal["error", "skip_row_group"] = Field(
        default="error",
        description="A column that is missing, renamed or of another type in one shard; columns "
        "too many are fine.",
    )
    labels: Literal["error", "skip_row", "skip_row_group"] = Field(
        default="error",
        description="A label, sample space or sample weight that is null, NaN or out of range.",
    )
    ids: Literal["error", "skip_row", "skip_row_group"] = Field(
        default="error",
        description="An id outside its table (encoder identity), or weights that do not match "
        "their list of ids.",
    )
    max_lost_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of a split's rows that may be lost in an epoch before the run stops; "
        f"absent = {MAX_LOST_FRACTION}.",
    )
    read_attempts: PositiveInt = Field(
        default=6,
        description="Times a read from a remote store is tried, with growing waits between, "
        "before the run stops.",
    )
    read_timeout_seconds: PositiveFloat = Field(
        default=60.0, description="Seconds after which a read from a remote store has failed."
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.max_lost_fraction is not None and not self.skips:
            raise ValueError("`max_lost_fraction` has no effect where every fault is an error")
        return self

    @property
    def skips(self) -> bool:
        """Whether rows may be skipped at all."""
        return any(self.of(kind) != "error" for kind in KINDS)

    @property
    def skips_row_groups(self) -> bool:
        """Whether whole row groups may be skipped."""
        return any(self.of(kind) == "skip_row_group" for kind in KINDS)

    @property
    def ceiling(self) -> float:
        """The share of a split's rows that may be lost in an epoch."""
        return MAX_LOST_FRACTION if self.max_lost_fraction is None else self.max_lost_fraction

    def of(self, kind: str) -> str:
        """The policy of one of the KINDS."""
        policy: str = getattr(self, kind)
        return policy
