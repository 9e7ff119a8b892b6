"""The description of a table: which source column becomes which column, tasks and splits.

A description is a short YAML file; configs/columns/ holds examples.
"""

import datetime
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from pipeline.config.base import Section
from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import DatasetError

Scalar = str | int | float | bool


class ColumnDescription(Section):
    """One column of the dataset and where it comes from."""

    name: str = Field(description="Column in the dataset.")
    role: Literal["categorical", "numeric", "label", "weight", "space", "key"] = Field(
        description="What it is for; see pipeline.data.manifest.Column."
    )
    source: str | None = Field(default=None, description="Source column; absent = the name.")
    type: Literal["string", "int64", "float"] | None = Field(
        default=None,
        description="Type of ids or keys (of the elements, for lists); absent = string from CSV, "
        "as stored from Parquet. Numbers, labels and weights have fixed types.",
    )
    separator: str | None = Field(
        default=None, description="Text only: the cell is a list, with this between elements."
    )
    weight_of: str | None = Field(
        default=None, description="role weight: the id list whose elements these weights scale."
    )
    missing: list[str] | None = Field(
        default=None,
        description="Text or number that means missing; absent = the table's `missing`.",
    )
    equals: Scalar | list[Scalar] | None = Field(
        default=None, description="1 where the source equals this value (or one of them), else 0."
    )
    at_least: float | None = Field(
        default=None, description="1 where the source is this number or more, else 0."
    )

    @model_validator(mode="after")
    def _no_dead_settings(self) -> Self:
        if self.equals is not None and self.at_least is not None:
            raise ValueError(f"column {self.name!r}: give `equals` or `at_least`, not both")
        if self.is_condition and self.role not in ("label", "space"):
            raise ValueError(f"column {self.name!r}: a condition makes a label or a space only")
        if self.weight_of is not None and self.role != "weight":
            raise ValueError(f"column {self.name!r}: `weight_of` belongs to role weight")
        if self.type is not None and self.role not in ("categorical", "key"):
            raise ValueError(f"column {self.name!r}: `type` belongs to categorical and key")
        return self

    @property
    def source_column(self) -> str:
        return self.source or self.name

    @property
    def is_condition(self) -> bool:
        return self.equals is not None or self.at_least is not None


class CutSplit(Section):
    """Splits by the value of a column that grows with time."""

    column: str = Field(description="Source column, such as a date.")
    valid_from: Scalar | datetime.date = Field(description="First value of the validation split.")
    test_from: Scalar | datetime.date = Field(description="First value of the test split.")


class ValueSplit(Section):
    """Splits by a column that names the split; rows of other values are an error."""

    column: str = Field(description="Source column.")
    train: list[Scalar] = Field(default=["train"], description="Values of train.")
    valid: list[Scalar] = Field(default=["valid"], description="Values of valid.")
    test: list[Scalar] = Field(default=["test"], description="Values of test.")


class RandomSplit(Section):
    """Splits by a hash of the row's position among all rows, in file order."""

    valid: float = Field(ge=0, lt=1, description="Share of the validation split.")
    test: float = Field(ge=0, lt=1, description="Share of the test split.")
    seed: int = Field(default=0, ge=0, description="Another seed, another split.")

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError("valid + test must leave rows for train")
        return self


class FileSplit(Section):
    """Splits by file: names or globs inside the source folder."""

    train: str = Field(description="Files of the train split.")
    valid: str | None = Field(default=None, description="Files of the validation split.")
    test: str | None = Field(default=None, description="Files of the test split.")


class SplitDescription(Section):
    """Exactly one way to split."""

    by_file: FileSplit | None = None
    by_cut: CutSplit | None = None
    by_value: ValueSplit | None = None
    random: RandomSplit | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (
            sum(way is not None for way in (self.by_file, self.by_cut, self.by_value, self.random))
            != 1
        ):
            raise ValueError("give exactly one of by_file, by_cut, by_value, random")
        return self


class TableDescription(Section):
    """A table: layout of its files, columns, tasks, splits."""

    name: str = Field(description="Dataset name.")
    separator: str = Field(default=",", description="CSV only: between columns.")
    header: list[str] | None = Field(
        default=None, description="CSV only: column names of files that have no header line."
    )
    trim: bool = Field(default=False, description="Remove blanks around text.")
    missing: list[str] = Field(
        default_factory=lambda: [""], description="Text or number that means missing."
    )
    columns: list[ColumnDescription] = Field(min_length=1, description="In dataset order.")
    tasks: list[TaskConfig] | None = Field(
        default=None,
        description="As in an experiment (name, label, loss, space); absent = one binary task per "
        "label column.",
    )
    sample_weight: str | None = Field(default=None, description="Column of row weights to use.")
    split: SplitDescription = Field(
        default_factory=lambda: SplitDescription(random=RandomSplit(valid=0.1, test=0.1)),
        description="How rows are split; absent = a tenth each at random.",
    )

    @model_validator(mode="after")
    def _references(self) -> Self:
        names = [c.name for c in self.columns]
        repeated = sorted({n for n in names if names.count(n) > 1})
        if repeated:
            raise ValueError(f"columns described twice: {', '.join(repeated)}")
        roles = {c.name: c.role for c in self.columns}
        for column in self.columns:
            if column.weight_of is not None and roles.get(column.weight_of) != "categorical":
                raise ValueError(
                    f"column {column.name!r}: weight_of {column.weight_of!r} is no column of role "
                    "categorical"
                )
        for task in self.task_list:
            for name in task.label_columns:
                if roles.get(name) != "label":
                    raise ValueError(
                        f"task {task.name!r}: its label {name!r} is no column of role label"
                    )
            for name in task.space_columns:
                if roles.get(name) not in ("label", "space"):
                    raise ValueError(
                        f"task {task.name!r}: its space {name!r} is no column of role label or "
                        "space"
                    )
        if self.sample_weight is not None and roles.get(self.sample_weight) != "weight":
            raise ValueError(f"sample_weight {self.sample_weight!r} is no column of role weight")
        return self

    @property
    def task_list(self) -> list[TaskConfig]:
        if self.tasks is not None:
            return self.tasks
        return [TaskConfig(name=c.name) for c in self.columns if c.role == "label"]


def load_description(path: str | Path) -> TableDescription:
    """Reads a description; DatasetError names the key that is wrong."""
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise DatasetError(f"{path}: cannot read the description: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise DatasetError(f"{path}: not valid YAML: {error}") from error
    try:
        return TableDescription.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item["loc"], item["msg"]) for item in error.errors()]
        raise DatasetError(f"{path}: " + "; ".join(lines)) from None


def _explain(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(part) for part in place) or "description"
    if message == "Extra inputs are not permitted":
        message = "unknown key"
    return f"{where}: {message.removeprefix('Value error, ')}"
