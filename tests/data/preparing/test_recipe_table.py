"""Any table by description: values, splits, and errors that name file, row and column."""

import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.description import TableDescription, load_description
from pipeline.data.preparing.recipes.table import table
from pipeline.data.preparing.shards import arrow_schema

CONFIGS = Path(__file__).parents[3] / "configs" / "columns"
SHARED = Path(__file__).parents[3].parent / "shared" / "data"

COLUMNS: list[dict[str, Any]] = [
    {"name": "user", "role": "categorical", "type": "int64"},
    {"name": "tags", "role": "categorical", "separator": "|"},
    {"name": "tag_weights", "role": "weight", "weight_of": "tags", "separator": "|"},
    {"name": "price", "role": "numeric", "missing": ["", "?"]},
    {"name": "click", "role": "label"},
    {"name": "bought", "role": "label", "source": "event", "equals": ["buy", "rebuy"]},
    {"name": "long", "role": "label", "source": "seconds", "at_least": 10},
    {"name": "seconds", "role": "label"},
    {"name": "day", "role": "key"},
]
TASKS: list[dict[str, Any]] = [
    {"name": "click"},
    {"name": "bought", "space": "click"},
    {"name": "long"},
    {"name": "seconds", "loss": "squared_error"},
]
CSV = """user,tags,tag_weights,price,click,event,seconds,day,unused
7,a|b,0.5|1,2.5,1,buy,12.5,2024-01-01,x
8,,,?,0,,3,2024-01-02,x
-9,b,2,,1,look,10,2024-01-03,x
7,c||a,1|2|3,-1e3,0,rebuy,0,2024-01-04,x
"""


def described(**changes: Any) -> TableDescription:
    tree = {"name": "shop", "columns": COLUMNS, "tasks": TASKS, **changes}
    return TableDescription.model_validate(tree)


def everything(recipe: Recipe) -> dict[str, dict[str, list[Any]]]:
    batches: dict[str, list[pa.RecordBatch]] = {}
    for split, batch in recipe.read():
        batches.setdefault(split, []).append(batch)
    schema = arrow_schema(recipe.columns)
    return {s: pa.Table.from_batches(b, schema).to_pydict() for s, b in batches.items()}


def all_in_train(tmp_path: Path, text: str = CSV, **changes: Any) -> dict[str, list[Any]]:
    path = tmp_path / "log.csv"
    path.write_text(text)
    everywhere = {"random": {"valid": 0.0, "test": 0.0}}
    return everything(table(path, described(split=everywhere, **changes)))["train"]


EXPECTED = {
    "user": [7, 8, -9, 7],
    "tags": [["a", "b"], None, ["b"], ["c", None, "a"]],
    "tag_weights": [[0.5, 1.0], None, [2.0], [1.0, 2.0, 3.0]],
    "price": [2.5, None, None, -1000.0],
    "click": [1, 0, 1, 0],
    "bought": [1, None, 0, 1],
    "long": [1, 0, 1, 0],
    "seconds": [12.5, 3.0, 10.0, 0.0],
    "day": ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"],
}


def test_values_types_and_conditions_of_a_csv_file(tmp_path: Path) -> None:
    assert all_in_train(tmp_path) == EXPECTED
    columns = table(tmp_path / "log.csv", described()).columns
    assert {c.name: c.type for c in columns} == {
        "user": "int64",
        "tags": "list<item: string>",
        "tag_weights": "list<item: float>",
        "price": "float",
        "click": "int8",
        "bought": "int8",
        "long": "int8",
        "seconds": "float",
        "day": "string",
    }


def test_other_separators_headers_blanks_and_compression(tmp_path: Path) -> None:
    lines = [line.replace(",", " \t ") for line in CSV.splitlines()]
    header = CSV.splitlines()[0].split(",")
    everywhere = {"random": {"valid": 0.0, "test": 0.0}}
    description = described(separator="\t", header=header, trim=True, split=everywhere)
    text = "\n".join(lines[1:]).encode()
    for suffix, compress in ((".gz", gzip.compress), (".xz", lzma.compress)):
        path = tmp_path / f"log.tsv{suffix}"
        path.write_bytes(compress(text))
        assert everything(table(path, description))["train"] == EXPECTED


def test_parquet_keeps_its_types_and_lists(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "user": pa.array([7, 8, -9, 7], pa.int32()),
            "tags": pa.array(EXPECTED["tags"], pa.large_list(pa.string())),
            "tag_weights": pa.array(EXPECTED["tag_weights"], pa.list_(pa.float64())),
            "price": pa.array(EXPECTED["price"], pa.float64()),
            "click": pa.array([True, False, True, False]),
            "event": pa.array(["buy", None, "look", "rebuy"]).dictionary_encode(),
            "seconds": pa.array([12.5, 3.0, 10.0, 0.0]),
            "day": pa.array(EXPECTED["day"]),
        }
    )
    # Several groups and files: lists arrive sliced, row numbers go on.
    pq.write_table(rows.slice(0, 3), tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(rows.slice(3), tmp_path / "b.parquet")
    columns = [
        {k: v for k, v in column.items() if k not in ("separator", "type")} for column in COLUMNS
    ]
    everywhere = {"random": {"valid": 0.0, "test": 0.0}}
    for source in (tmp_path, tmp_path / "*.parquet"):
        found = everything(table(source, described(columns=columns, split=everywhere)))["train"]
        assert found == EXPECTED


def test_missing_tokens_of_numbers_in_parquet(tmp_path: Path) -> None:
    rows = {
        "user": [7, -1, 9],
        "price": [1.5, -1.0, None],
        "ages": pa.array([[3, -1], [], [4]], pa.list_(pa.int64())),
        "click": [1, 0, 1],
    }
    # Days as folders; what begins with _ is none of the data.
    for name in ("dt=2/part.parquet", "dt=1/part.parquet", "dt=1/_tmp.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(rows), tmp_path / name)
    columns = [
        {"name": "user", "role": "categorical"},
        {"name": "price", "role": "numeric"},
        {"name": "ages", "role": "categorical", "missing": ["3", "none"]},
        {"name": "click", "role": "label"},
    ]
    everywhere = {"random": {"valid": 0.0, "test": 0.0}}
    description = described(columns=columns, split=everywhere, missing=["", "-1"], tasks=None)
    for source in (tmp_path, tmp_path / "dt=*"):
        found = everything(table(source, description))["train"]
        assert found["user"] == [7, None, 9] * 2
        assert found["price"] == [1.5, None, None] * 2
        assert found["ages"] == [[None, -1], [], [4]] * 2
    columns[2]["separator"] = "|"
    with pytest.raises(DatasetError, match=r"part\.parquet: column 'ages' holds lists already"):
        everything(table(tmp_path, described(columns=columns, split=everywhere, tasks=None)))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (
            {"by_cut": {"column": "day", "valid_from": "2024-01-03", "test_from": "2024-01-04"}},
            {"train": [1, 0], "valid": [1], "test": [0]},
        ),
        (
            {"by_cut": {"column": "seconds", "valid_from": 3, "test_from": 12}},
            {"train": [0], "valid": [0, 1], "test": [1]},
        ),
        (
            {"by_value": {"column": "user", "train": [7], "valid": [8], "test": [-9]}},
            {"train": [1, 0], "valid": [0], "test": [1]},
        ),
    ],
)
def test_splits_by_cut_and_by_value(
    tmp_path: Path, split: dict[str, Any], expected: dict[str, list[int]]
) -> None:
    (tmp_path / "log.csv").write_text(CSV)
    found = everything(table(tmp_path, described(split=split)))
    assert {s: rows["click"] for s, rows in found.items()} == expected


def test_dates_written_bare_in_yaml_cut_like_text(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(CSV)
    text = "{by_cut: {column: day, valid_from: 2024-01-03, test_from: 2024-01-04}}"
    found = everything(table(tmp_path, described(split=yaml.safe_load(text))))
    assert {s: len(rows["day"]) for s, rows in found.items()} == {"train": 2, "valid": 1, "test": 1}


def test_splits_by_file(tmp_path: Path) -> None:
    header, *lines = CSV.splitlines()
    for name, line in zip(("day1.csv", "day2.csv", "day3.csv"), lines, strict=False):
        (tmp_path / name).write_text(f"{header}\n{line}\n")
    split = {"by_file": {"train": "day[12].csv", "test": "day3.csv"}}
    found = everything(table(tmp_path, described(split=split)))
    assert {s: rows["user"] for s, rows in found.items()} == {"train": [7, 8], "test": [-9]}


def test_the_random_split_has_its_shares_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    numbers = [f"{n},1" for n in range(20_000)]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir()
    halves.mkdir()
    (whole / "a.csv").write_text("\n".join(["id,y", *numbers]))
    (halves / "a.csv").write_text("\n".join(["id,y", *numbers[:7000]]))
    (halves / "b.csv").write_text("\n".join(["id,y", *numbers[7000:]]))

    def ids(folder: Path, seed: int) -> dict[str, list[int]]:
        description = TableDescription.model_validate(
            {
                "name": "n",
                "columns": [
                    {"name": "id", "role": "categorical", "type": "int64"},
                    {"name": "y", "role": "label"},
                ],
                "split": {"random": {"valid": 0.1, "test": 0.25, "seed": seed}},
            }
        )
        return {s: rows["id"] for s, rows in everything(table(folder, description)).items()}

    first = ids(whole, seed=1)
    assert first == ids(halves, seed=1)
    assert first["test"] != ids(whole, seed=2)["test"]
    assert sorted(n for split in first.values() for n in split) == list(range(20_000))
    for split, share in (("valid", 0.1), ("test", 0.25)):
        noise = np.sqrt(share * (1 - share) / 20_000)
        assert len(first[split]) / 20_000 == pytest.approx(share, abs=4 * noise)
        # No drift along the file.
        assert np.mean(first[split]) == pytest.approx(10_000, abs=4 * 5774 / np.sqrt(2000))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("2.5,1,buy", "2.5,2,buy", r"log\.csv: row 1, column 'click': 2\.0: must be 0 or 1"),
        ("?,0,,3", "?,nan,,3", r"log\.csv: row 2, column 'click': nan: must be 0 or 1"),
        ("?,0,,3", "?,,,3", r"log\.csv: row 2, column 'click': None: a sample space must be"),
        ("look,10,", "look,,", r"row 3, column 'long': None: task 'long' needs a number"),
        ("look,10,", ",10,", r"row 3, column 'bought': None: task 'bought' needs .* click is 1"),
        ("look,10,", "look,inf,", r"row 3, column 'seconds': inf: task 'seconds' needs a number"),
        ("-1e3", "cheap", r"log\.csv: row 4, column 'price': 'cheap' is no float; mend"),
        ("-1e3", "1e999", r"log\.csv: row 4, column 'price': inf: an infinite number"),
        ("\n-9,", "\n9x,", r"log\.csv: row 3, column 'user': '9x' is no int64"),
        ("1|2|3", "1|z|3", r"log\.csv: row 4, column 'tag_weights': 'z' is no float"),
        (",2024-01-03,x", ",2024-01-03", r"log\.csv: line 4 has 8 columns, expected 9: '-9,b"),
    ],
)
def test_a_bad_value_is_named_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert CSV.count(old) == 1
    with pytest.raises(DatasetError, match=said):
        all_in_train(tmp_path, CSV.replace(old, new))


def test_row_numbers_count_from_the_file_s_first_row(tmp_path: Path) -> None:
    lines = [f"{n},{int(n == 150_000) + 1}" for n in range(200_000)]
    (tmp_path / "big.csv").write_text("\n".join(["id,y", *lines]))
    description = TableDescription.model_validate(
        {
            "name": "n",
            "columns": [
                {"name": "id", "role": "categorical", "type": "int64"},
                {"name": "y", "role": "label"},
            ],
        }
    )
    with pytest.raises(DatasetError, match=r"big\.csv: row 150001, column 'y': 2\.0"):
        everything(table(tmp_path / "big.csv", description))


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        table(tmp_path / "nowhere", described())
    with pytest.raises(DatasetError, match="holds no data files"):
        table(tmp_path, described())
    path = tmp_path / "log.csv"
    for text, said in (
        ("", r"log\.csv: the file is empty"),
        (CSV.splitlines()[0] + "\n", r"log\.csv: the file has no rows"),
        (CSV.replace("click", "clack"), r"log\.csv: has no column 'click' \(columns: user, tags"),
    ):
        with pytest.raises(DatasetError, match=said):
            all_in_train(tmp_path, text)
    path.unlink()
    for name, content, said in (
        ("log.csv.gz", gzip.compress(CSV.encode())[:60], r"log\.csv\.gz: cannot be read"),
        ("log.parquet", b"PAR1 nothing", r"log\.parquet: cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=said):
            everything(table(tmp_path / name, described()))


def test_a_column_missing_in_one_file_of_many_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "day1.csv").write_text(CSV)
    (tmp_path / "day2.csv").write_text(CSV.replace("price", "cost"))
    with pytest.raises(DatasetError, match=r"day2\.csv: has no column 'price'"):
        everything(table(tmp_path, described()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colums": []}, r"d\.yaml: colums: unknown key"),
        ({"tasks": [{"name": "buy"}]}, r"task 'buy': its label 'buy' is no column of role label"),
        ({"tasks": [{"name": "click", "space": "day"}]}, r"its space 'day' is no column of role"),
        ({"columns": COLUMNS + COLUMNS[:1]}, "columns described twice: user"),
        (
            {"columns": [{"name": "p", "role": "numeric", "equals": 1}]},
            r"columns\.0: column 'p': a condition makes a label or a space only",
        ),
        ({"split": {}}, "split: give exactly one of by_file, by_cut, by_value, random"),
        ({"split": {"random": {"valid": 0.5, "test": 0.5}}}, "must leave rows for train"),
        ({"sample_weight": "price"}, "sample_weight 'price' is no column of role weight"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump({"name": "shop", "columns": COLUMNS, "tasks": TASKS, **change}))
    with pytest.raises(DatasetError, match=said):
        load_description(path)


def test_a_description_without_tasks_has_one_per_label() -> None:
    assert [t.name for t in described(tasks=None).task_list] == [
        "click",
        "bought",
        "long",
        "seconds",
    ]


@pytest.mark.parametrize(
    ("name", "source", "rows", "positives"),
    [
        ("ali_ccp", "ali-sample", [100, 50, 50], {"click": 12, "purchase": 3}),
        ("aliexpress", "ali-sample", [100, 0, 20], {"click": 70, "conversion": 4}),
        ("icme2019", "icme2019-byterec-sample", [146, 29, 25], {"finish": 76, "like": 7}),
    ],
)
def test_the_descriptions_here_fit_their_files(
    name: str, source: str, rows: list[int], positives: dict[str, int]
) -> None:
    if not (SHARED / source).is_dir():
        pytest.skip(f"the sample of {name} is not on this machine")
    found = everything(table(SHARED / source, load_description(CONFIGS / f"{name}.yaml")))
    counted = [len(next(iter(found.get(s, {"": []}).values()))) for s in ("train", "valid", "test")]
    assert counted == rows
    summed = {label: sum(sum(rows[label]) for rows in found.values()) for label in positives}
    assert summed == positives
