"""Splits of data somebody else wrote: which Parquet files are for training, which for judging."""

import datetime
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.base import Section
from pipeline.config.locations import is_uri

DATE_FIELD = "{date}"


def _pattern(text: str) -> str:
    if not text.strip("/"):
        raise ValueError("an empty name; `.` would be the whole folder data.path")
    if ".." in text.split("/"):
        raise ValueError(f"{text!r}: write it without `..`")
    return text


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Patterns = Annotated[
    list[Annotated[str, AfterValidator(_pattern)]],
    BeforeValidator(_listed),
    Field(min_length=1),
]


class SplitConfig(Section):
    """The files of one split, in reading order."""

    files: Patterns = Field(
        description="One or several of: a Parquet file, a folder (all files below it), or a glob "
        "(*, ?, and ** for any folders); relative to data.path, or absolute on the same file "
        "system. `{date}` stands for every day from first_date to last_date. Names that begin "
        "with . or _ are left out, as Spark and Hive do.",
    )
    first_date: datetime.date | None = Field(
        default=None, description="First day that {date} stands for."
    )
    last_date: datetime.date | None = Field(
        default=None, description="Last day that {date} stands for, itself included."
    )
    skip_dates: list[datetime.date] = Field(
        default_factory=list,
        description="Days of that range that are left out (a day without files is an error).",
    )

    @property
    def days(self) -> list[datetime.date]:
        """The days that {date} stands for, in order."""
        if self.first_date is None or self.last_date is None:
            return []
        count = (self.last_date - self.first_date).days + 1
        days = (self.first_date + datetime.timedelta(days=n) for n in range(count))
        return [day for day in days if day not in self.skip_dates]

    @model_validator(mode="after")
    def _dates(self) -> Self:
        undated = [pattern for pattern in self.files if DATE_FIELD not in pattern]
        if (self.first_date is None) != (self.last_date is None):
            raise ValueError("give both first_date and last_date, or neither")
        if self.first_date is None or self.last_date is None:
            if len(undated) < len(self.files):
                raise ValueError("{date} in `files` needs first_date and last_date")
            if self.skip_dates:
                raise ValueError("`skip_dates` has an effect with {date} in `files` only")
            return self
        if undated:
            raise ValueError(
                f"first_date and last_date have no effect on {undated[0]!r}: write {{date}} where "
                "the day stands"
            )
        if self.first_date > self.last_date:
            raise ValueError(f"first_date {self.first_date} comes after last_date {self.last_date}")
        for day in self.skip_dates:
            if not self.first_date <= day <= self.last_date:
                raise ValueError(f"skip_dates: {day} is outside first_date … last_date")
        if not self.days:
            raise ValueError("skip_dates leaves no day")
        return self


class SplitsConfig(Section):
    """The files of every split, for data that jobs.prepare did not write."""

    train: SplitConfig = Field(description="Rows that are learned from.")
    valid: SplitConfig = Field(description="Rows that choose the best weights.")
    test: SplitConfig | None = Field(
        default=None, description="Rows that are scored once, at the end; absent = none."
    )

    @property
    def by_name(self) -> dict[str, SplitConfig]:
        """The splits that are given, by name."""
        found = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    def check_reach(self, path: str) -> None:
        """Raises ValueError if an absolute file is not on the file system of data.path."""
        for name, split in self.by_name.items():
            for pattern in split.files:
                absolute = is_uri(pattern) or pattern.startswith("/")
                if absolute and system_of(pattern) != system_of(path):
                    raise ValueError(
                        f"splits.{name}.files: {pattern!r} is not on the file system of data.path "
                        "(the same scheme and bucket); one run reads from one"
                    )


def system_of(location: str) -> str:
    """Scheme and bucket (or host) of a location, credentials apart; '' for a local path."""
    if not is_uri(location):
        return ""
    scheme, _, rest = location.partition("://")
    bucket = rest.partition("?")[0].partition("/")[0].rpartition("@")[2]
    return f"{scheme}://{bucket}"
