"""Tables whose labels and spaces are rules: types of columns, and rows that no rule decides."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.recipes.description import TableDescription
from pipeline.data.preparing.recipes.table import table

COLUMNS = [
    {"name": "user", "role": "categorical", "type": "int64"},
    *({"name": name, "role": "label"} for name in ("click", "convert", "seconds", "stars")),
    {"name": "seen", "role": "space"},
]
TASKS: list[dict[str, Any]] = [
    {"name": "click"},
    {"name": "both", "label": "click & convert"},
    {"name": "long", "label": "seconds > 10", "space": "seen & ~convert | seconds > 20"},
    {"name": "stars", "loss": "ordinal", "ordinal_range": [1, 5], "space": "click"},
]
CSV = """user,click,convert,seconds,stars,seen
1,0,,12.5,,1
2,1,1,30,4,0
3,1,0,2,1,1
"""


def read(folder: Path, text: str, tasks: list[dict[str, Any]] = TASKS) -> dict[str, list[Any]]:
    (folder / "log.csv").write_text(text)
    description = {"name": "shop", "columns": COLUMNS, "tasks": tasks}
    split = {"random": {"valid": 0.0, "test": 0.0}}
    recipe = table(folder, TableDescription.model_validate({**description, "split": split}))
    ((_, rows),) = recipe.read()
    assert [column.type for column in recipe.columns[1:]] == [
        "int8",
        "int8",
        "float",
        "float",
        "int8",
    ]
    values: dict[str, list[Any]] = rows.to_pydict()
    return values


def test_columns_that_are_compared_keep_their_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"row 1, column 'seen & .*': the sample space is unknown"
    ):
        read(tmp_path, CSV)
    known = [task if task["name"] != "long" else task | {"space": "seen"} for task in TASKS]
    rows = read(tmp_path, CSV, known)
    assert rows["seconds"] == [12.5, 30.0, 2.0]
    assert rows["stars"] == [None, 4.0, 1.0]
    assert rows["convert"] == [None, 1, 0]


def test_a_label_that_stays_unknown_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError,
        match=r"log\.csv: row 2, column 'click & convert': the label of task 'both' is unknown "
        r"where click = 1, convert = null",
    ):
        read(tmp_path, CSV.replace("2,1,1,30", "2,1,,30"))


def test_columns_of_rules_need_their_roles() -> None:
    for task, message in (
        ({"name": "x", "label": "click & user"}, "its label 'user' is no column of role label"),
        ({"name": "click", "space": "seen & user"}, "its space 'user' is no column of role"),
    ):
        with pytest.raises(ValueError, match=message):
            TableDescription.model_validate({"name": "s", "columns": COLUMNS, "tasks": [task]})
