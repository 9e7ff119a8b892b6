"""What every section of the experiment shares: unknown keys are errors, values never change."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A strict, frozen node of the experiment tree."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
