import json

import pyarrow as pa
import pytest

from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.body import RequestError, parse_body
from pipeline.serving.rows import RowReader

LIMITS = RequestLimitsConfig(list_items=3, text_bytes=8)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("small", pa.int8()),
        ("name", pa.string()),
        ("price", pa.float32()),
        ("exact", pa.float64()),
        ("flag", pa.bool_()),
        ("tags", pa.list_(pa.int64())),
        ("words", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
    ]
)
ROWS = [
    {"id": 2**53 + 1, "small": -5, "name": "é", "price": 1, "exact": 0.1, "flag": True},
    {"id": None, "name": None, "tags": [1, None, 3], "words": ["a", None], "weights": [1, 0.5]},
    {"tags": [], "words": [], "weights": None, "price": 2.5, "flag": None, "exact": -3},
]


def table(rows, *, refuse_extra=True):
    body = json.dumps({"rows": rows}).encode()
    return RowReader(SCHEMA, LIMITS, refuse_extra=refuse_extra).table(parse_body(body, LIMITS))


def refused(value, field):
    with pytest.raises(RequestError) as caught:
        table([{}, {field: value}])
    error = caught.value
    assert (error.status, error.field, error.row) == (422, field, 1)
    assert str(error).startswith(f"rows[1].{field} must be ")
    return str(error).partition("; it is ")[2]


def test_the_table_is_what_arrow_reads_from_the_same_rows():
    wanted = pa.Table.from_pylist([{n: r.get(n) for n in SCHEMA.names} for r in ROWS], SCHEMA)
    assert table(ROWS).equals(wanted)


def test_columns_give_the_same_table():
    columns = {name: [row.get(name) for row in ROWS] for name in SCHEMA.names}
    body = json.dumps({"columns": columns}).encode()
    found = RowReader(SCHEMA, LIMITS, refuse_extra=True).table(parse_body(body, LIMITS))
    assert found.equals(table(ROWS))


def test_a_field_that_is_absent_is_missing():
    found = table([{}])
    assert found.schema == SCHEMA
    assert found.to_pylist() == [dict.fromkeys(SCHEMA.names)]


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("id", 1.5, "1.5"),
        ("id", True, "true"),
        ("id", "1", "a text of 1 characters"),
        ("id", 2**63, "9223372036854775808"),
        ("id", 10**30, "a huge number"),
        ("id", 1e300, "1e+300"),
        ("id", [1], "a list"),
        ("small", 200, "200"),
        ("name", 1, "1"),
        ("name", ["a"], "a list"),
        ("name", "123456789", "a text of 9 characters"),
        ("name", "ééééé", "a text of 5 characters"),
        ("name", {}, "an object"),
        ("price", True, "true"),
        ("price", "0.5", "a text of 3 characters"),
        ("price", 1e39, "1e+39"),
        ("price", 10**400, "a huge number"),
        ("price", float("nan"), "nan"),
        ("price", float("-inf"), "-inf"),
        ("flag", 1, "1"),
        ("tags", 1, "1"),
        ("tags", "12", "a text of 2 characters"),
        ("tags", {"a": 1}, "an object"),
        ("tags", [1, 0.5], "a list whose item 1 is 0.5"),
        ("tags", [True], "a list whose item 0 is true"),
        ("tags", [[1]], "a list whose item 0 is a list"),
        ("tags", [1, 2, 3, 4], "a list of 4 items"),
        ("words", "abc", "a text of 3 characters"),
        ("words", ["a", 2], "a list whose item 1 is 2"),
        ("words", ["123456789"], "a list whose item 0 is a text of 9 characters"),
        ("weights", [1, float("nan")], "a list whose item 1 is nan"),
        ("weights", [1e39], "a list whose item 0 is 1e+39"),
    ],
)
def test_a_bad_value_is_named_with_its_row(field, value, fault):
    assert refused(value, field) == fault


def test_limits_and_types_are_part_of_the_reason():
    with pytest.raises(
        RequestError, match=r"a list of up to 3 items, each a text of up to 8 bytes"
    ):
        table([{"words": 1}])
    with pytest.raises(RequestError, match=r"price must be a finite number \(float\), or null"):
        table([{"price": "x"}])


def test_whole_numbers_as_pandas_writes_them_are_whole_numbers():
    assert table([{"id": 3.0}, {"id": None}, {"id": 4}])["id"].to_pylist() == [3, None, 4]
    assert table([{"tags": [3.0, 4]}])["tags"].to_pylist() == [[3, 4]]


def test_whole_numbers_a_float_cannot_hold_are_the_nearest_one():
    found = table([{"price": 2**24 + 1, "exact": 2**53 + 1, "weights": [2**24 + 1, None, 0.5]}])
    assert found["price"].to_pylist() == [2.0**24]
    assert found["exact"].to_pylist() == [2.0**53]
    assert found["weights"].to_pylist() == [[2.0**24, None, 0.5]]


def test_fields_the_model_does_not_read():
    with pytest.raises(RequestError, match="the model reads no field colour; it reads: id, small"):
        table([{"id": 1}, {"colour": 1}])
    assert table([{"id": 1}, {"colour": 1}], refuse_extra=False)["id"].to_pylist() == [1, None]
    with pytest.raises(RequestError, match=r"'\\u202ex\\n'"):
        table([{"\u202ex\n": 1}])
