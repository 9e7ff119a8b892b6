"""When a run is saved, and how many of its checkpoints are kept."""

from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.config.base import Section


class CheckpointConfig(Section):
    """Checkpoints are taken at the end of every epoch and at evaluations that improve; here one
    says when else."""

    every_steps: PositiveInt | None = Field(
        default=None, description="Also every so many steps; absent = not by steps."
    )
    every_minutes: PositiveFloat | None = Field(
        default=None,
        description="Also when the last one was begun so many minutes ago; absent = not by time.",
    )
    keep_last: PositiveInt = Field(default=2, description="Latest checkpoints that are kept.")
    keep_best: PositiveInt = Field(
        default=1,
        description="Best checkpoints, by the selection metric, that are kept beside those.",
    )
