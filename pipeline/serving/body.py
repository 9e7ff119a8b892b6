"""The bytes of a request's body → columns of plain Python values, or why not."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pydantic_core

from pipeline.config.serving import RequestLimitsConfig

_SHAPES = '{"rows": [{FIELD: VALUE, ...}, ...]} or {"columns": {FIELD: [VALUE, ...], ...}}'
_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')
_SPACES = (b'" ', b'"\n', b'"\r', b'"\t')


class RequestError(ValueError):
    """A request is refused.

    Attributes:
        status: HTTP status, 4xx, or 503 where the service is short of something.
        code: the kind of fault in one word, also the label of the metric.
        field: the field at fault, if it is one.
        row: position of the first row at fault, if it is one.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.row = row


@dataclass(frozen=True)
class RequestRows:
    """Rows as a request gave them, still unchecked values.

    Attributes:
        count: rows, at least 1.
        names: every field that stands in any of the rows.
    """

    count: int
    names: Collection[str]
    _columns: dict[str, list[Any]]
    _rows: list[dict[str, Any]]

    def column(self, name: str) -> list[Any]:
        """A field's values; None where a row does not have it."""
        if name in self._columns:
            return self._columns[name]
        return [row.get(name) for row in self._rows]


def parse_body(body: bytes, limits: RequestLimitsConfig) -> RequestRows:
    """Reads the JSON of a scoring request.

    Raises:
        RequestError: no JSON (400), another shape than asked for (422), too many rows (413).
    """
    tree = _json(body)
    if not isinstance(tree, dict) or len(tree) != 1 or next(iter(tree)) not in ("rows", "columns"):
        raise RequestError(422, "shape", f"the body must be {_SHAPES}")
    if "rows" in tree:
        return _by_row(tree["rows"], limits.rows)
    return _by_column(tree["columns"], limits.rows)


def shown(text: str, length: int = 60) -> str:
    """A field's name as a message may show it: short and printable, quoted unless it is plain."""
    if text.isascii() and text.isidentifier() and len(text) <= length:
        return text
    return ascii(text if len(text) <= length else text[:length] + "...")


def _by_row(rows: Any, limit: int) -> RequestRows:
    if not isinstance(rows, list):
        raise RequestError(422, "shape", f"`rows` must be a list of objects, not {kind_of(rows)}")
    check_count(len(rows), limit)
    if set(map(type, rows)) - {dict}:
        number = next(n for n, row in enumerate(rows) if type(row) is not dict)
        raise RequestError(
            422, "shape", f"rows[{number}] must be an object, not {kind_of(rows[number])}"
        )
    names = tuple(rows[0])
    if all(tuple(row) == names for row in rows):
        # As rows mostly come: the same fields in the same order, turned all at once.
        turned = zip(*(row.values() for row in rows), strict=True)
        return RequestRows(len(rows), names, dict(zip(names, map(list, turned), strict=True)), [])
    # One by one when asked for: a request may hold any number of names nobody reads.
    return RequestRows(len(rows), dict.fromkeys(chain.from_iterable(rows)), {}, rows)


def _by_column(columns: Any, limit: int) -> RequestRows:
    if not isinstance(columns, dict) or not columns:
        raise RequestError(422, "shape", "`columns` must be an object of lists, one per field")
    lengths = set()
    for name, values in columns.items():
        if not isinstance(values, list):
            raise RequestError(
                422,
                "shape",
                f"column {shown(name)} must be a list of values, not {kind_of(values)}",
                field=name,
            )
        lengths.add(len(values))
    if len(lengths) > 1:
        first, count = next((name, len(values)) for name, values in columns.items())
        other = next(name for name, values in columns.items() if len(values) != count)
        raise RequestError(
            422,
            "shape",
            f"columns must be of one length: {shown(first)} has {count} values, {shown(other)} has "
            f"{len(columns[other])}",
            field=other,
        )
    count = lengths.pop()
    check_count(count, limit)
    return RequestRows(count, tuple(columns), columns, [])


def check_count(count: int, limit: int) -> None:
    """Raises RequestError where there are no rows (422) or too many (413)."""
    if not count:
        raise RequestError(422, "shape", "there are no rows to score")
    if count > limit:
        raise RequestError(413, "too_many_rows", f"{count} rows; a request may hold {limit}")


def kind_of(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a whole number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")


def described(value: Any) -> str:
    """A value in words; its content only where that is short."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    if isinstance(value, int | float):
        text = repr(value) if isinstance(value, float) or abs(value) < 10**20 else "a huge number"
        return text
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    return kind_of(value)


def _json(body: bytes) -> Any:
    try:
        # Twice as fast as the standard library, but keeps the last of two equal keys.
        # NaN and Infinity come through here and are refused with the name of their field.
        tree = pydantic_core.from_json(body, allow_inf_nan=True, cache_strings="keys")
    except ValueError as error:
        raise _not_json(str(error)) from None
    if _may_repeat_keys(body, tree):
        _refuse_repeated_keys(body)
    return tree


def _may_repeat_keys(body: bytes, tree: Any) -> bool:
    """False only if no key of the objects that matter was lost while parsing.

    Each key has its colon: as many colons as keys that are left mean that none was lost. Texts may
    hold colons too; but within them a quote is escaped, so that a quote followed by a colon ends a
    key (a few texts look like it), unless white space stands between the two.
    """
    keys = _keys(tree)
    if body.count(b":") == keys:
        return False
    if body.count(b'":') != keys:
        return True
    return any(space in body for space in _SPACES) and _SPACED_COLON.search(body) is not None


def _keys(tree: Any) -> int:
    if not isinstance(tree, dict):
        return 0
    keys = len(tree)
    for value in tree.values():
        if isinstance(value, list):
            keys += sum(len(row) for row in value if isinstance(row, dict))
        elif isinstance(value, dict):
            keys += len(value)
    return keys


def _refuse_repeated_keys(body: bytes) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise RequestError(
                400, "repeated_key", f"{shown(twice)} stands twice in one object", field=twice
            )
        return found

    try:
        json.loads(body, object_pairs_hook=unique)
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise _not_json(str(error)) from None


def _not_json(reason: str) -> RequestError:
    if "recursion" in reason:
        return RequestError(400, "not_json", "the body is nested too deeply")
    return RequestError(400, "not_json", f"the body is not valid JSON in UTF-8: {reason[:200]}")
