"""What a run does when something goes wrong: restarts, stopping in time, losses beyond use."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.config.base import Section

MAX_SKIPPED_BATCHES = 10


class FailuresConfig(Section):
    """Failures of machines, of the network and of the numbers; those of data are in
    ``data.faults``."""

    max_restarts: NonNegativeInt = Field(
        default=3,
        description="Times the workers are started again from the newest checkpoint after one of "
        "them died. An error of the data or the settings is never tried again.",
    )
    stop_within_seconds: PositiveFloat = Field(
        default=60.0,
        description="Seconds from SIGTERM or Ctrl-C to the end of the process; a checkpoint that "
        "takes longer is given up and the one before it stands.",
    )
    collective_timeout_seconds: PositiveInt = Field(
        default=600,
        description="Seconds a worker waits for the others before the run counts as hung; above "
        "the time a worker may wait for a read (data.faults.read_timeout_seconds).",
    )
    bad_loss: Literal["stop", "skip_batch"] = Field(
        default="stop",
        description="A loss that is NaN, infinite or above loss_limit: stop before it moves any "
        "weight and keep the batch, or pass over the batch and count it.",
    )
    loss_limit: PositiveFloat | None = Field(
        default=None,
        description="Mean loss of a task over a global batch above which it counts as bad; "
        "absent = only NaN and infinite ones do.",
    )
    max_skipped_batches: PositiveInt | None = Field(
        default=None,
        description="Batches that may be skipped before the run stops; absent = "
        f"{MAX_SKIPPED_BATCHES}.",
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.max_skipped_batches is not None and self.bad_loss == "stop":
            raise ValueError("`max_skipped_batches` has no effect with `bad_loss: stop`")
        return self

    @property
    def skip_limit(self) -> int:
        """How many batches may be skipped in the whole run."""
        if self.bad_loss == "stop":
            return 0
        limit = self.max_skipped_batches
        return MAX_SKIPPED_BATCHES if limit is None else limit
