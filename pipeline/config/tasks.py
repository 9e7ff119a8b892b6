"""Tasks: what is predicted, from which label, on which rows."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.config.base import Section


class TaskConfig(Section):
    """One label with its loss, sample space and tower."""

    name: str = Field(description="Task name; metrics and score columns carry it.")
    label: str | None = Field(default=None, description="Label column; absent = the task's name.")
    loss: Literal["binary_cross_entropy", "squared_error"] = Field(
        default="binary_cross_entropy",
        description="binary_cross_entropy: label 0 or 1, score a probability. squared_error: any "
        "finite label, score a number.",
    )
    weight: PositiveFloat = Field(default=1.0, description="ω in the joint loss Σ ω·L.")
    space: str | None = Field(
        default=None,
        description="Sample space: a 0/1 column; the task is trained and scored on rows where it "
        "is 1 (a conversion that exists after a click only: space: click). Absent = all rows.",
    )
    tower_hidden: list[PositiveInt] | None = Field(
        default=None, description="Hidden widths of this task's tower; absent = model.tower_hidden."
    )

    @property
    def label_column(self) -> str:
        return self.label or self.name
