"""Raw rows from pandas to Arrow, and the signature that announces them."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.data.manifest import Column
from pipeline.registry.columns import RowError, arrow_schema, arrow_table, arrow_type
from pipeline.registry.signature import signature

TYPES = {
    "user": "string",
    "item": "int64",
    "tags": "list<item: int64>",
    "words": "list<element: string>",
    "scores": "large_list<item: float not null>",
    "price": "double",
}


@pytest.mark.parametrize(
    "kind",
    [
        pa.bool_(),
        pa.int8(),
        pa.uint32(),
        pa.float16(),
        pa.float32(),
        pa.string(),
        pa.large_string(),
        pa.list_(pa.int32()),
        pa.list_(pa.field("element", pa.string(), nullable=False)),
        pa.large_list(pa.float64()),
    ],
)
def test_every_type_a_manifest_writes_is_read_back(kind):
    got = arrow_type(str(kind))
    assert got == kind or got.value_type == kind.value_type


def test_a_dictionary_is_read_as_its_values():
    assert arrow_type(str(pa.dictionary(pa.int32(), pa.string()))) == pa.string()


def test_rows_become_the_types_of_the_dataset():
    rows = pd.DataFrame(
        {
            "price": [1, 2, 3],  # whole numbers for a double
            "user": ["a", None, "c"],
            "item": [7.0, None, 9.0],  # pandas' integers with a gap
            "tags": [[1, 2], None, np.array([3])],
            "words": [["x"], [], ["y", None]],
            "extra": [0, 0, 0],
        },
        index=[5, 3, 3],
    )
    table = arrow_table(rows, arrow_schema(TYPES))
    assert table.column_names == list(TYPES)
    assert table["price"].to_pylist() == [1.0, 2.0, 3.0]
    assert table["user"].to_pylist() == ["a", None, "c"]
    assert table["item"].to_pylist() == [7, None, 9]
    assert table["tags"].to_pylist() == [[1, 2], None, [3]]
    assert table["words"].to_pylist() == [["x"], [], ["y", None]]
    assert table["scores"].to_pylist() == [None, None, None]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("item", [1.5]),
        ("item", ["seven"]),
        ("price", ["cheap"]),
        ("tags", [[1, "two"]]),
        ("tags", [3]),
        ("user", [17]),
    ],
)
def test_a_value_of_another_type_names_the_column(column, values):
    with pytest.raises(RowError, match=rf"column '{column}' must hold "):
        arrow_table(pd.DataFrame({column: values}), arrow_schema(TYPES))


def test_the_signature_lists_columns_and_scores():
    columns = [Column(name, "categorical", kind) for name, kind in TYPES.items()]
    got = signature(columns, ["click", "buy"])
    inputs = {c["name"]: c for c in json.loads(got.to_dict()["inputs"])}
    assert not any(c["required"] for c in inputs.values())
    assert {name: c["type"] for name, c in inputs.items()} == {
        "user": "string",
        "item": "any",
        "tags": "array",
        "words": "array",
        "scores": "array",
        "price": "any",
    }
    assert [inputs[n]["items"]["type"] for n in ("tags", "words", "scores")] == [
        "long",
        "string",
        "double",
    ]
    outputs = json.loads(got.to_dict()["outputs"])
    assert [(c["name"], c["type"]) for c in outputs] == [("click", "double"), ("buy", "double")]
