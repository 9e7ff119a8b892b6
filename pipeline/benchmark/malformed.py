"""Scoring requests with one fault each, made up from a model's schema; none may be answered 2xx.

A fault is put into an otherwise good request, so that it is the fault that is refused.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.arrow_stream import MEDIA_TYPE as ARROW

_HEADERS = {"content-type": "application/json"}
_ARROW_HEADERS = {"content-type": ARROW}
_RAW_MARK = "@raw@"
_DEEP = 50_000


@dataclass(frozen=True)
class Malformed:
    """A request to send.

    Attributes:
        fault: what is wrong with it.
        named: the field an answer must name; None where it is no field's fault.
    """

    fault: str
    body: bytes
    named: str | None = None
    method: str = "POST"
    path: str = "/score"
    headers: dict[str, str] = field(default_factory=lambda: dict(_HEADERS))


class MalformedRequests:
    """Draws faulty requests by a seed.

    Args:
        schema: raw columns of the model.
        limits: of the service.
    """

    def __init__(self, schema: pa.Schema, limits: RequestLimitsConfig) -> None:
        self._schema = schema
        self._limits = limits

    def draw(self, count: int, seed: int) -> Iterator[Malformed]:
        """Every kind of fault in turn, with random particulars."""
        rng = random.Random(seed)
        kinds: list[Callable[[random.Random], Malformed]] = [
            *[self._bad_value] * 4,
            self._bad_item,
            self._raw_value,
            self._broken_text,
            self._wrong_shape,
            self._unknown_field,
            self._repeated_key,
            self._too_much,
            self._http,
            self._arrow_value,
            self._broken_arrow,
        ]
        for number in range(count):
            yield kinds[number % len(kinds)](rng)

    def good_row(self, rng: random.Random) -> dict[str, Any]:
        """A row without faults; some fields absent or null."""
        row = {}
        for column in self._schema:
            if rng.random() < 0.8:
                row[column.name] = None if rng.random() < 0.1 else _good(column.type, rng)
        return row

    def _bad_value(self, rng: random.Random) -> Malformed:
        column = rng.choice(list(self._schema))
        value = _bad(column.type, rng, self._limits)
        return self._with(rng, column.name, value, f"bad value for {column.type}")

    def _bad_item(self, rng: random.Random) -> Malformed:
        lists = [c for c in self._schema if pa.types.is_list(c.type)]
        if not lists:
            return self._bad_value(rng)
        column = rng.choice(lists)
        items = [_good(column.type.value_type, rng) for _ in range(rng.randint(0, 3))]
        bad = _bad(column.type.value_type, rng, self._limits)
        items.insert(rng.randint(0, len(items)), bad)
        return self._with(rng, column.name, items, "bad item of a list")

    def _raw_value(self, rng: random.Random) -> Malformed:
        """What Python's json would not write."""
        numbers = [c for c in self._schema if _is_number(c.type)]
        column = rng.choice(numbers or list(self._schema))
        raw = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 60])
        if raw[0] == "9" and pa.types.is_floating(column.type):
            raw = "9" * 400
        found = self._with(rng, column.name, _RAW_MARK, f"{raw[:9]} as a number")
        return _replaced(found, json.dumps(_RAW_MARK), raw)

    def _broken_text(self, rng: random.Random) -> Malformed:
        good = self._body(rng, self.good_row(rng))
        breaks: list[Callable[[], bytes]] = [
            lambda: good[: rng.randint(0, len(good) - 1)],
            lambda: good + b"}",
            lambda: rng.randbytes(rng.randint(1, 200)),
            lambda: good.decode().encode("utf-16"),
            lambda: b"\xef\xbb\xbf" + good,
            lambda: good.replace(b"}", b",}", 1),
            lambda: b"{'rows': [{}]}",
            lambda: b'{"rows": [{"' + rng.randbytes(3).hex().encode() + b'\xff\xfe": 1}]}',
            lambda: b'{"rows": [{"a": "\\ud800"}]}',
            lambda: b'{"rows": [{"a": "\x00\x01"}]}',
            lambda: b'{"rows": ' + b"[" * rng.randint(200, _DEEP),
            lambda: b'{"rows": [' + b'{"a":' * rng.randint(200, _DEEP),
            lambda: b'{"rows": [{"a": ' + b"9" * 5000 + b"}]}",
            lambda: b"",
        ]
        return Malformed("broken JSON", rng.choice(breaks)())

    def _wrong_shape(self, rng: random.Random) -> Malformed:
        row = self.good_row(rng)
        name = self._schema.names[0]
        trees: list[Any] = [
            None,
            [],
            [row],
            7,
            "rows",
            {},
            row,
            {"rows": []},
            {"rows": None},
            {"rows": row},
            {"rows": [row, None]},
            {"rows": [row, [1]]},
            {"rows": [row], "columns": {}},
            {"rows": [row], "more": 1},
            {"columns": {}},
            {"columns": [row]},
            {"columns": {name: 3}},
            {"columns": {name: []}},
            {"columns": {name: [None], self._schema.names[1]: [None, None]}},
        ]
        return Malformed("wrong shape", json.dumps(rng.choice(trees)).encode())

    def _unknown_field(self, rng: random.Random) -> Malformed:
        names = ["", " ", "\n", "é", "x" * 5000, "a/b/../c", "${x}", "__class__", "\u202e", "0"]
        name = rng.choice([*names, rng.choice(self._schema.names) + "_"])
        return self._with(rng, name, 1, "unknown field")

    def _repeated_key(self, rng: random.Random) -> Malformed:
        name = json.dumps(rng.choice(self._schema.names))
        space = rng.choice(["", " ", "\n", "\t "])
        body = rng.choice(
            [
                f'{{"rows": [{{{name}{space}: null, {name}: null}}]}}',
                f'{{"rows": [{{{name}: null, {name}{space}: null}}]}}',
                f'{{"rows": [{{}}], "rows"{space}: [{{}}]}}',
                f'{{"columns": {{{name}: [null], {name}{space}: [null]}}}}',
            ]
        )
        return Malformed("repeated key", body.encode())

    def _too_much(self, rng: random.Random) -> Malformed:
        limits, column = self._limits, rng.choice(list(self._schema))
        if rng.random() < 0.05:
            return Malformed("large body", b" " * (limits.body_bytes + 1))
        if rng.random() < 0.3:
            rows: list[Any] = [{}] * (limits.rows + rng.randint(1, 50))
            return Malformed("too many rows", json.dumps({"rows": rows}).encode())
        if pa.types.is_list(column.type):
            value: Any = [None] * (limits.list_items + rng.randint(1, 20_000))
        else:
            value = [[1] * 1000] * 10
        return self._with(rng, column.name, value, "huge list")

    def _arrow_value(self, rng: random.Random) -> Malformed:
        """A column of a type that its field cannot have, or a field the model does not read."""
        column = rng.choice(list(self._schema))
        wrong: list[pa.Array] = [
            pa.array([{"a": 1}]),
            pa.array([[[1]]]),
            pa.array([b"\xff"]),
            pa.array(["a"], pa.string_view()),
            pa.array([[0] * (self._limits.list_items + 1)]),
            pa.array([["x" * (self._limits.text_bytes + 1)]]),
            pa.array([True]),
        ]
        name = rng.choice([column.name, column.name, "no such field"])
        body = _stream(pa.table({name: rng.choice(wrong)}))
        return Malformed("Arrow column", body, name, headers=dict(_ARROW_HEADERS))

    def _broken_arrow(self, rng: random.Random) -> Malformed:
        row = {field.name: None for field in self._schema} | self.good_row(rng)
        rows = pa.Table.from_pylist([row] * rng.randint(1, 4), self._schema)
        good = _stream(rows)
        breaks: list[Callable[[], bytes]] = [
            lambda: good[: rng.randint(0, len(good) - 1)],
            lambda: good + rng.randbytes(rng.randint(1, 20)),
            lambda: rng.randbytes(rng.randint(0, 300)) + good[-8:],
            lambda: good[: rng.randint(8, len(good) - 9)] + good[-8:],
            lambda: good[:4] + rng.randbytes(4) + good[8:],
            lambda: _stream(rows, compression="zstd"),
            lambda: _stream(rows.slice(0, 0)),
            lambda: _stream(pa.table({self._schema.names[0]: pa.nulls(self._limits.rows + 1)})),
            lambda: json.dumps({"rows": [row]}).encode(),
        ]
        return Malformed("broken Arrow", rng.choice(breaks)(), headers=dict(_ARROW_HEADERS))

    def _http(self, rng: random.Random) -> Malformed:
        body = self._body(rng, self.good_row(rng))
        choices = [
            Malformed("media type", body, headers={"content-type": "text/csv"}),
            Malformed(
                "charset", body, headers={"content-type": "application/json; charset=utf-16"}
            ),
            Malformed("encoding", body, headers=_HEADERS | {"content-encoding": "gzip"}),
            Malformed("path", body, path="/" + rng.randbytes(4).hex()),
            Malformed("path", body, path="/../../etc/passwd"),
            Malformed("path", body, path="/score/%2e%2e"),
            Malformed("method", body, method="PUT"),
            Malformed("method", b"", method="DELETE"),
            Malformed("method", b"", method="GET"),
            Malformed("query", body, path="/score?debug=1"),
            Malformed("query", body, path="/score?version=1&version=2"),
            Malformed("query", body, path="/score?version=../../x"),
            Malformed("long key", body, headers=_HEADERS | {"x-request-key": "k" * 300}),
        ]
        return rng.choice(choices)

    def _with(self, rng: random.Random, name: str, value: Any, fault: str) -> Malformed:
        row = self.good_row(rng) | {name: value}
        return Malformed(fault, self._body(rng, row), name)

    def _body(self, rng: random.Random, row: dict[str, Any]) -> bytes:
        if rng.random() < 0.3:
            columns = {name: [value] for name, value in row.items()}
            return json.dumps({"columns": columns or {self._schema.names[0]: [None]}}).encode()
        others = [self.good_row(rng) for _ in range(rng.randint(0, 3))]
        rows = [*others, row]
        rng.shuffle(rows)
        return json.dumps({"rows": rows}).encode()


def _replaced(request: Malformed, old: str, new: str) -> Malformed:
    body = request.body.replace(old.encode(), new.encode())
    return Malformed(request.fault, body, request.named)


def _stream(rows: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
        writer.write_table(rows)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _good(kind: pa.DataType, rng: random.Random) -> Any:
    if pa.types.is_list(kind):
        return [_good(kind.value_type, rng) for _ in range(rng.randint(0, 4))]
    if pa.types.is_integer(kind):
        return rng.randint(0, 100)
    if pa.types.is_floating(kind):
        return rng.choice([rng.random(), rng.randint(0, 9)])
    return rng.choice(["", "a", "é", 'q"uote', "b" * 20])


def _bad(kind: pa.DataType, rng: random.Random, limits: RequestLimitsConfig) -> Any:
    anywhere: list[Any] = [True, False, {}, {"a": [{}]}, [[[]]]]
    if pa.types.is_list(kind):
        return rng.choice([1, 0.5, "text", "", *anywhere])
    if pa.types.is_integer(kind):
        return rng.choice([0.5, 2**63, -(2**70), 1e30, "1", "", [], [1], *anywhere])
    if pa.types.is_floating(kind):
        return rng.choice(["0.5", "", "nan", [], [1.0], 10**400, *anywhere])
    return rng.choice([0, 1.5, [], ["a"], "x" * (limits.text_bytes + 1), *anywhere])
