import json
import time

import pytest

from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.body import RequestError, parse_body

LIMITS = RequestLimitsConfig(rows=3)


def parsed(text: str):
    return parse_body(text.encode(), LIMITS)


def refused(body: bytes | str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_body(body.encode() if isinstance(body, str) else body, LIMITS)
    return caught.value


def test_rows_and_columns_are_the_same_request():
    by_row = parsed('{"rows": [{"a": 1, "b": "x"}, {"b": null}]}')
    by_column = parsed('{"columns": {"a": [1, null], "b": ["x", null]}}')
    for rows in (by_row, by_column):
        assert rows.count == 2
        assert sorted(rows.names) == ["a", "b"]
        assert rows.column("a") == [1, None]
        assert rows.column("b") == ["x", None]


def test_fields_of_later_rows_are_found():
    rows = parsed('{"rows": [{"a": 1}, {"b": 1}, {"a": 2, "c": 1}]}')
    found = {name: rows.column(name) for name in rows.names}
    assert found == {"a": [1, None, 2], "b": [None, 1, None], "c": [None, None, 1]}


def test_fields_in_another_order_stay_with_their_values():
    rows = parsed('{"rows": [{"a": 1, "b": 2}, {"b": 4, "a": 3}]}')
    assert (rows.column("a"), rows.column("b")) == ([1, 3], [2, 4])
    assert not parsed('{"rows": [{}, {}]}').names


def test_many_names_cost_no_more_than_the_body():
    # 500 rows of 1,500 names each, none alike: 375 million values if every row had every field.
    rows = [{f"{row}-{name}": 1 for name in range(1_500)} for row in range(500)]
    body = json.dumps({"rows": rows}).encode()
    started = time.process_time()
    found = parse_body(body, RequestLimitsConfig(body_bytes=2**30))
    assert len(found.names) == 750_000
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("", "not_json", "EOF"),
        ('{"rows": [{"a": 1}]', "not_json", "EOF"),
        ("[" * 100_000, "not_json", "nested too deeply"),
        ('{"rows": [{"a": ' + "[" * 1000 + "]" * 1000 + "}]}", "not_json", "nested too deeply"),
        (b'{"rows": [{"a": "\xff"}]}', "not_json", "unicode"),
        ('{"rows": [{"a": 1}]}'.encode("utf-16"), "not_json", "valid JSON in UTF-8"),
        ('{"rows": [{"a": 1,}]}', "not_json", "trailing comma"),
        ("null", "shape", '{"rows":'),
        ("[]", "shape", '{"rows":'),
        ('{"rows": [{}], "columns": {}}', "shape", '{"rows":'),
        ('{"rows": {}}', "shape", "must be a list of objects, not an object"),
        ('{"rows": []}', "shape", "no rows"),
        ('{"rows": [{}, 3]}', "shape", r"rows[1] must be an object, not a whole number"),
        ('{"columns": {"a": 1}}', "shape", "column a must be a list of values, not a whole number"),
        ('{"columns": {"a": [1], "b": []}}', "shape", "a has 1 values, b has 0"),
        ('{"columns": {}}', "shape", "`columns` must be an object of lists"),
    ],
)
def test_what_is_refused_says_why(body, code, says):
    error = refused(body)
    assert error.status in (400, 422)
    assert error.code == code
    assert says in str(error)


def test_too_many_rows():
    assert parsed(json.dumps({"rows": [{}] * 3})).count == 3
    error = refused(json.dumps({"rows": [{}] * 4}))
    assert (error.status, error.code) == (413, "too_many_rows")
    assert str(error) == "4 rows; a request may hold 3"


@pytest.mark.parametrize(
    "body",
    [
        '{"rows": [{"a": 1, "a": 1}]}',
        '{"rows": [{"a": 1, "a"  : 2}]}',
        '{"rows": [{"a"\n: 1, "b": 3, "a": 2}]}',
        '{"rows": [{"b": "x\\":y", "a"\t: 1, "a" : 2}]}',
        '{"rows": [{"a": 1, "\\u0061": 2}]}',
        '{"columns": {"a": [1], "a": [2]}}',
        '{"rows": [{"a": {"a": 1, "a": 1}}]}',
    ],
)
def test_a_key_that_stands_twice_is_refused(body):
    error = refused(body)
    assert (error.status, error.code, error.field) == (400, "repeated_key", "a")


def test_texts_that_look_like_keys_are_no_keys():
    rows = parsed('{"rows": [{"a": "\\":\\":", "b" : "\\" :"}]}')
    assert rows.column("a") == ['":":']
    assert rows.column("b") == ['" :']
