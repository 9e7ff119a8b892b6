"""Bodies in Arrow's IPC stream format: the same rows, the same refusals as JSON."""

import json
import random
import struct

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.arrow_stream import parse_arrow, scores_stream
from pipeline.serving.body import RequestError, parse_body
from pipeline.serving.rows import RowReader
from tests.serving.test_rows import LIMITS, ROWS, SCHEMA


def stream(rows: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def read(body: bytes, limits=LIMITS, *, refuse_extra=True) -> pa.Table:
    rows = parse_arrow(body, limits)
    return RowReader(SCHEMA, limits, refuse_extra=refuse_extra).table(rows)


def refused(body: bytes, limits=LIMITS) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(body, limits)
    return caught.value


def of(name: str, values, kind=None) -> bytes:
    return stream(
        pa.table({name: values if isinstance(values, pa.Array) else pa.array(values, kind)})
    )


def by_json(rows) -> pa.Table:
    parsed = parse_body(json.dumps({"rows": rows}).encode(), LIMITS)
    return RowReader(SCHEMA, LIMITS, refuse_extra=True).table(parsed)


GIVEN = pa.Table.from_pylist([{n: r.get(n) for n in SCHEMA.names} for r in ROWS], SCHEMA)


def test_the_table_is_that_of_the_same_rows_in_json():
    found = read(stream(GIVEN))
    assert found.equals(by_json(ROWS))
    assert found.schema == SCHEMA
    assert read(stream(pa.concat_tables([GIVEN] * 3))).equals(by_json(ROWS * 3))
    assert read(stream(GIVEN.slice(1, 1))).equals(by_json(ROWS[1:2]))


def test_a_body_in_the_models_types_is_not_copied():
    body = stream(GIVEN.select(["exact"]))
    array = read(body).column("exact").chunk(0)
    start = pa.py_buffer(body).address
    assert start <= array.buffers()[1].address < start + len(body)


def test_other_types_convert_where_json_would_take_the_value():
    other = pa.table(
        {
            "id": pa.array([7.0, None, 8.0]),  # what pandas writes for whole numbers with a gap
            "small": pa.array([1, 2, None], pa.uint64()),
            "name": pa.array(["a", None, "b"]).dictionary_encode(),
            "price": pa.array([1, None, 3], pa.int32()),
            "exact": pa.array([1.5, None, 3], pa.float32()),
            "tags": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int16(), 2)),
            "words": pa.array([["x"], [], None], pa.large_list(pa.large_string())),
            "weights": pa.array([[0.5], None, []], pa.list_(pa.float64())),
            "flag": pa.nulls(3),
        }
    )
    rows = [{k: v for k, v in row.items() if v is not None} for row in other.to_pylist()]
    assert read(stream(other)).equals(by_json(rows))
    assert read(stream(pa.table({"tags": pa.array([[], None])}))).equals(
        by_json([{"tags": []}, {}])
    )


def test_scores_come_back_as_columns():
    scores_BT = np.array([[0.25, 1.0], [0.1, 0.3]])
    table = pa.ipc.open_stream(scores_stream(scores_BT, ["a", "b"], {"version": "3"})).read_all()
    assert table.to_pydict() == {"a": [0.25, 0.1], "b": [1.0, 0.3]}
    assert table.schema.metadata == {b"version": b"3"}


@pytest.mark.parametrize(
    ("name", "values", "kind", "row", "says"),
    [
        (
            "small",
            [None, 200],
            pa.int16(),
            1,
            "a whole number (int8), or null where missing; it is 200",
        ),
        ("id", [2**63], pa.uint64(), 0, str(2**63)),
        ("id", [1.0, 1.5], None, 1, "it is 1.5"),
        ("id", [1.0, float("nan")], None, 1, "it is nan"),
        ("id", [2.0**63], None, 0, "it is 9.2"),
        ("id", [True], None, None, "holds bool"),
        ("id", ["1"], None, None, "holds string"),
        ("flag", [1], None, None, "holds int64"),
        ("price", [None, float("inf")], pa.float32(), 1, "it is inf"),
        ("price", [1e39], None, 0, "it is 1e+39"),
        ("exact", [0.0, float("nan")], None, 1, "it is nan"),
        ("price", [True], None, None, "holds bool"),
        ("name", ["x" * 8, "x" * 9], None, 1, "a text of 9 characters"),
        ("name", [7], None, None, "holds int64"),
        ("name", pa.array(["x" * 9]).dictionary_encode(), None, None, "up to 8 bytes"),
        ("tags", [[], None, [1, 2, 3, 4]], None, 2, "a list of 4 items"),
        ("tags", [7], None, None, "holds int64"),
        ("id", [[7]], None, None, "holds list"),
        ("tags", [[1], None, [2.5]], None, 2, "a list with the item 2.5"),
        ("tags", [[None]], None, None, "holds null"),
        ("words", [["a"], ["b", "x" * 9]], None, 1, "a text of 9"),
        ("weights", [None, [], [1.0, float("nan")]], None, 2, "the item nan"),
        ("tags", [None, [2.5, 1]], pa.list_(pa.float64(), 2), 1, "the item 2.5"),
    ],
)
def test_bad_values_name_field_and_row(name, values, kind, row, says):
    error = refused(of(name, values, kind))
    assert (error.status, error.code, error.field, error.row) == (422, "bad_value", name, row)
    assert says in str(error)


def test_what_lies_under_a_missing_value_does_not_matter():
    values = pa.array([1.0, float("nan")])
    masked = pa.Array.from_buffers(pa.float64(), 2, [pa.py_buffer(b"\x01"), values.buffers()[1]])
    assert read(of("exact", masked)).column("exact").to_pylist() == [1.0, None]
    assert read(of("id", masked)).column("id").to_pylist() == [1, None]


@pytest.mark.parametrize(
    ("column", "name"),
    [
        (pa.array([{"a": 1}]), "id"),
        (pa.array([[[1]]]), "tags"),
        (pa.array([b"x"]), "name"),
        (pa.array(["x"], pa.string_view()), "name"),
        (pa.array([1]).dictionary_encode(), "id"),
        (pa.array([["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))), "words"),
        (pa.RunEndEncodedArray.from_arrays([1], [1]), "id"),
        (pa.array([[1] * 4], pa.list_(pa.int64(), 4)), "tags"),
    ],
)
def test_types_nobody_reads_are_refused_before_they_are_decoded(column, name):
    error = refused(stream(pa.table({name: column})))
    assert (error.status, error.code, error.field) == (422, "bad_value", name)
    assert "must hold numbers" in str(error)


def fault(body: bytes, limits=LIMITS) -> tuple[int, str]:
    error = refused(body, limits)
    return error.status, error.code


def test_streams_that_ask_for_more_than_a_request_may_have():
    assert fault(stream(GIVEN, compression="lz4")) == (415, "compressed")
    assert fault(stream(GIVEN, compression="zstd")) == (415, "compressed")
    coded = pa.table({"name": pa.array(["a"] * 3).dictionary_encode()})
    assert fault(stream(coded, compression="zstd")) == (415, "compressed")
    assert fault(stream(GIVEN), RequestLimitsConfig(rows=2)) == (413, "too_many_rows")
    assert fault(stream(pa.table({"id": pa.nulls(2**20)}))) == (413, "too_many_rows")
    assert fault(stream(GIVEN.slice(0, 0))) == (422, "shape")
    pieces = pa.table({"id": pa.chunked_array([[n] for n in range(300)])})
    assert fault(stream(pieces)) == (413, "too_many_messages")
    noted = GIVEN.replace_schema_metadata({"note": "x" * 2**20})
    assert fault(stream(noted)) == (413, "large_schema")
    # 3,000 times the same 1,000 bytes.
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int8()), ["x" * 1000])
    small = RequestLimitsConfig(body_bytes=10_000)
    assert fault(stream(pa.table({"name": texts})), small) == (413, "body_too_large")


def test_streams_that_are_none():
    body = stream(GIVEN)
    repeated = pa.Table.from_arrays([pa.array([1])] * 2, names=["id", "id"])
    error = refused(stream(repeated))
    assert (error.status, error.code, error.field) == (422, "repeated_key", "id")
    error = refused(stream(pa.table({"other": [1]})))
    assert (error.status, error.code, error.field) == (422, "unknown_field", "other")
    for wrong in (
        b"",
        b'{"rows": [{}]}',
        body[:-8],
        body + b"\0" * 8,
        body + body,
        body[-8:],
        body[:100] + body[-8:],
        struct.pack("<iI", -1, 2**31 - 8) + body[8:],
    ):
        assert refused(wrong).status in (400, 422), wrong[:40]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(GIVEN)
    assert fault(sink.getvalue().to_pybytes()) == (400, "not_arrow")


def test_damaged_streams_are_read_or_refused():
    rng = random.Random(3)
    coded = GIVEN.set_column(2, "name", GIVEN.column("name").dictionary_encode())
    outcomes = set()
    for body in (stream(GIVEN), stream(coded)):
        for _ in range(1500):
            damaged = bytearray(body)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(body) - 8)
                damaged[at] = rng.choice(
                    [0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ 1 << rng.randrange(8)]
                )
            before = pa.total_allocated_bytes()
            outcomes.add(outcome(bytes(damaged)))
            assert pa.total_allocated_bytes() - before < 2**20
    assert {"read", (400, "not_arrow"), (422, "bad_value")} <= outcomes
    assert all(found == "read" or 400 <= found[0] < 500 for found in outcomes)


def outcome(body: bytes) -> object:
    try:
        assert read(body, refuse_extra=False).schema == SCHEMA
    except RequestError as error:
        return error.status, error.code
    return "read"
