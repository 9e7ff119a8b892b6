"""Large JSON bodies, read by Arrow: the same tables as the careful way gives, or none."""

import json
import random

import pyarrow as pa
import pytest

from pipeline.benchmark.malformed import MalformedRequests
from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.body import RequestError, parse_body
from pipeline.serving.rows import RequestBody, RowReader
from tests.serving.test_rows import LIMITS, ROWS, SCHEMA

READER = RowReader(SCHEMA, LIMITS, refuse_extra=True)
# White space, which is no fault at the end of JSON: this way is that of large bodies.
PADDING = b" " * 2**17


def at_once(body: bytes | str, reader: RowReader = READER) -> pa.Table | None:
    return unpadded((body.encode() if isinstance(body, str) else body) + PADDING, reader)


def unpadded(body: bytes, reader: RowReader = READER) -> pa.Table | None:
    return RequestBody(body, arrow=False, limits=LIMITS).table_at_once(reader)


def carefully(body: bytes | str, reader: RowReader = READER) -> pa.Table:
    return reader.table(parse_body(body.encode() if isinstance(body, str) else body, LIMITS))


GOOD = [
    json.dumps({"rows": ROWS}),
    json.dumps({"rows": ROWS}, indent=1, ensure_ascii=False),
    json.dumps({"columns": {name: [row.get(name) for row in ROWS] for name in SCHEMA.names}}),
    '{"rows": [{}]}',
    ' {"rows" :[ {"id":-7},{"id" : 9223372036854775807 , "name":"\\u0000\\"{"} ]}\n',
    '{"rows": [{"n\\u0061me": "a:,{}[]", "small": 127}, {"words": ["", "\\ud83d\\ude00"]}]}',
    # Numbers for a float column: rounded to float64 first, then to float32.
    '{"rows": [{"price": 16777217}, {"price": 3.4e38}, {"price": 0.1}, {"exact": 1e-320}]}',
    '{"rows": [{"price": 1.00000005960464477539062500000000000001}, {"exact": 1E2}]}',
    '{"rows": [{"exact": 123456789012345678901234567890}, {"price": 1e-46}]}',
]


@pytest.mark.parametrize("body", GOOD)
def test_good_bodies_give_the_same_table(body):
    found = at_once(body)
    assert found is not None
    assert found.schema == SCHEMA
    assert found.equals(carefully(body))
    assert unpadded(body.encode()) is None  # small ones go the other way


COLUMNS = json.loads(GOOD[2])["columns"]


@pytest.mark.parametrize(
    "value",
    [
        '{"id": 1.5}',
        '{"id": true}',
        '{"id": "1"}',
        '{"id": 9223372036854775808}',
        '{"id": [1]}',
        '{"small": 128}',
        '{"name": 5}',
        '{"name": "123456789"}',
        '{"name": "\\ud800"}',
        '{"price": 1e39}',
        '{"price": NaN}',
        '{"exact": Infinity}',
        '{"exact": 1e400}',
        '{"exact": "1"}',
        '{"flag": 1}',
        '{"tags": [1, 2, 3, 4]}',
        '{"tags": 1}',
        '{"tags": [[1]]}',
        '{"words": [1]}',
        '{"weights": [NaN]}',
        '{"other": 1}',
        '{"id": 1, "id": 2}',
        "null",
        "[]",
        '"a"',
        '{"id": 01}',
        '{"price": 1.}',
        '{"id": 1,}',
    ],
)
def test_what_is_refused_is_not_taken(value):
    body = f'{{"rows": [{{}}, {value}]}}'
    with pytest.raises(RequestError):
        carefully(body)
    assert at_once(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'\xef\xbb\xbf{"rows": [{}]}',
        b'{"rows": [{"name": "\xff"}]}',
        b'{"rows": [{}]}{"rows": [{}]}',
        b'{"rows": [{}]} x',
        b'{"rows": [{}]',
        b'{"rows": [{}], "rows": [{}]}',
        b'{"rows": [{}], "columns": {}}',
        b'{"rows": []}',
        b'{"rows": null}',
        b'{"rows": {"id": 1}}',
        b'{"columns": {}}',
        b'{"columns": {"id": [1], "small": [1, 2]}}',
        b'{"columns": {"id": null}}',
        b'{"columns": null}',
        json.dumps({"columns": COLUMNS | {"id": [1, 2]}}).encode(),
        json.dumps({"columns": COLUMNS | {"id": None}}).encode(),
        b'[{"rows": [{}]}]',
        '{"rows": [{}]}'.encode("utf-16"),
    ],
)
def test_other_shapes_are_not_taken(body):
    with pytest.raises(RequestError):
        carefully(body)
    assert at_once(body) is None


def test_limits_hold():
    few = RequestLimitsConfig(rows=2)
    assert at_once('{"rows": [{}, {}]}', RowReader(SCHEMA, few, refuse_extra=True)) is not None
    assert at_once('{"rows": [{}, {}, {}]}', RowReader(SCHEMA, few, refuse_extra=True)) is None


def test_bodies_of_nothing_take_no_memory():
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    for row in (b"null", b"{}"):
        body = b'{"rows": [' + (row + b",") * (8 * 2**20 // len(row + b",")) + row + b"]}"
        assert unpadded(body) is None
    assert pool.max_memory() - before < 2**24
    rows = [{"name": None, "tags": None}] * 100_000
    wide = RowReader(SCHEMA, RequestLimitsConfig(rows=100_000), refuse_extra=True)
    assert unpadded(json.dumps({"rows": rows}).encode(), wide).num_rows == 100_000


def test_malformed_requests_and_their_good_neighbours():
    schema = SCHEMA.remove(SCHEMA.get_field_index("flag"))
    reader = RowReader(schema, LIMITS, refuse_extra=True)
    drawn = MalformedRequests(schema, LIMITS)
    for request in drawn.draw(1000, seed=3):
        found = at_once(request.body, reader)
        # Good JSON where something else is wrong, such as the method.
        assert found is None or found.equals(carefully(request.body, reader)), request
    rng = random.Random(1)
    taken = 0
    for _ in range(300):
        rows = [drawn.good_row(rng) for _ in range(rng.randint(1, 4))]
        try:
            wanted = carefully(json.dumps({"rows": rows}), reader)
        except RequestError:  # lists longer than the limit here
            wanted = None
        found = at_once(json.dumps({"rows": rows}), reader)
        assert (found is None) == (wanted is None)
        assert found is None or found.equals(wanted)
        taken += found is not None
    assert taken > 20


def test_fields_that_are_passed_over_go_the_careful_way():
    lenient = RowReader(SCHEMA, LIMITS, refuse_extra=False)
    rows = json.dumps({"rows": [{"id": 3, "other": [1]}]}).encode() + PADDING
    assert unpadded(rows, lenient) is None
    body = RequestBody(rows, arrow=False, limits=LIMITS)
    assert body.table(lenient).column("id").to_pylist() == [3]
    with pytest.raises(RequestError, match="the model reads no field other"):
        body.table(READER)


def test_columns_of_other_types_go_the_careful_way():
    schema = SCHEMA.append(pa.field("day", pa.date32()))
    reader = RowReader(schema, LIMITS, refuse_extra=True)
    assert at_once('{"rows": [{"id": 1}]}', reader) is None


def test_a_second_model_reads_what_the_first_one_read():
    """A shadow beside the model that answered: the JSON itself is not looked at again."""
    fewer_and_more = pa.schema([SCHEMA.field("words"), SCHEMA.field("price"), ("new", pa.int8())])
    rows = [{name: row.get(name) for name in ("words", "price")} | {"new": None} for row in ROWS]
    wanted = pa.Table.from_pylist(rows, fewer_and_more)
    body = RequestBody(json.dumps({"rows": ROWS}).encode() + PADDING, arrow=False, limits=LIMITS)
    assert body.table(READER).equals(carefully(GOOD[0]))
    text, body._body = body._body, b"gone"
    shadow = RowReader(fewer_and_more, LIMITS, refuse_extra=False)
    assert body.table(shadow).equals(wanted)
    assert body.table(READER).equals(carefully(GOOD[0]))
    body._body = text
    strict = RowReader(fewer_and_more, LIMITS, refuse_extra=True)
    with pytest.raises(RequestError, match="the model reads no field"):
        body.table(strict)


def test_a_second_model_with_other_types_reads_for_itself():
    numbers = '{"columns": {"id": [9007199254740993], "price": [0.5]}}'
    as_floats, as_given = (
        RowReader(pa.schema([("id", kind), ("price", pa.float32())]), LIMITS, refuse_extra=False)
        for kind in (pa.float64(), pa.int64())
    )
    body = RequestBody(numbers.encode() + PADDING, arrow=False, limits=LIMITS)
    assert body.table(as_floats)["id"].to_pylist() == [2.0**53]
    assert body.table(as_given)["id"].to_pylist() == [2**53 + 1]
