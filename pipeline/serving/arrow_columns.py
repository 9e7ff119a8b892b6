"""An Arrow column of a request → the column a model reads, or which value of it is wrong.

What JSON would be refused for is refused here: Arrow's own casts would take true for 1.
"""

from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.serving import RequestLimitsConfig
from pipeline.serving.arrow_stream import is_list
from pipeline.serving.body import RequestError, described, shown


class ArrowColumn:
    """Checks and converts the values of one field.

    Args:
        field: name and type as the model reads them.
        limits: of list lengths and texts.
        expected: what values must be, in words.
    """

    def __init__(self, field: pa.Field, limits: RequestLimitsConfig, expected: str) -> None:
        self._name: str = field.name
        self._type: pa.DataType = field.type
        self._limits = limits
        self._expected = expected
        self._is_list = is_list(field.type)
        self._item = field.type.value_type if self._is_list else field.type

    def array(self, given: pa.ChunkedArray) -> pa.Array:
        """The values in the model's type; memory is shared where they have it already.

        Raises:
            RequestError: a value of another type or size (422).
        """
        if pa.types.is_null(given.type):
            return pa.nulls(len(given), self._type)
        if pa.types.is_dictionary(given.type):
            self._check_texts(pa.chunked_array([c.dictionary for c in given.chunks]), None)
            given = given.cast(given.type.value_type)
        # Arrow would copy a single chunk too.
        array = given.chunk(0) if given.num_chunks == 1 else pa.concat_arrays(given.chunks)
        if is_list(array.type) != self._is_list:
            self._refuse_type(given.type)
        if self._is_list:
            self._check(self._items(array), array)
        else:
            self._check(array, None)
        if array.type != self._type:
            # Checked already; what is left is rounding to a float's precision.
            array = array.cast(self._type, safe=False)
        return array

    def _items(self, lists: pa.Array) -> pa.Array:
        """The items of all lists."""
        limit = self._limits.list_items
        lengths = pc.list_value_length(lists)
        longest = pc.max(lengths).as_py() or 0
        if longest > limit:
            row = pc.index(pc.greater(lengths, limit).fill_null(False), True).as_py()
            self._refuse(row, f"a list of {lengths[row].as_py()} items")
        return lists.flatten()

    def _check(self, items: pa.Array, lists: pa.Array | None) -> None:
        """Refuses what is no value of the column; `lists` are those that hold the items."""
        have, kinds = items.type, pa.types
        if have == self._item or (kinds.is_null(have) and not len(items)):
            pass
        elif kinds.is_floating(self._item):
            if not (kinds.is_floating(have) or kinds.is_integer(have)):
                self._refuse_type(have)
        elif kinds.is_integer(self._item) and (kinds.is_floating(have) or kinds.is_integer(have)):
            self._refuse_first(~_fits_integer(items, self._item), items, lists)
        elif not (_is_text(self._item) and _is_text(have)):
            self._refuse_type(have)
        if kinds.is_floating(self._item) and len(items):
            numbers = items if have == self._item else items.cast(self._item, safe=False)
            values = _filled(numbers).to_numpy(zero_copy_only=False)
            self._refuse_first(~np.isfinite(values), items, lists)
        if _is_text(have):
            self._check_texts(items, lists)

    def _check_texts(self, texts: pa.Array | pa.ChunkedArray, lists: pa.Array | None) -> None:
        lengths = pc.binary_length(texts)
        if (pc.max(lengths).as_py() or 0) <= self._limits.text_bytes:
            return
        if isinstance(texts, pa.ChunkedArray):  # of a dictionary, which knows no rows
            raise RequestError(
                422, "bad_value", f"{shown(self._name)} must be {self._expected}", field=self._name
            )
        too_long = pc.greater(lengths, self._limits.text_bytes).fill_null(False)
        self._refuse_first(too_long.to_numpy(zero_copy_only=False), texts, lists)

    def _refuse_first(self, bad: np.ndarray, items: pa.Array, lists: pa.Array | None) -> None:
        if not bad.any():
            return
        at = int(bad.argmax())
        row = at if lists is None else pc.list_parent_indices(lists)[at].as_py()
        value = described(items[at].as_py())
        self._refuse(row, value if lists is None else f"a list with the item {value}")

    def _refuse(self, row: int, fault: str) -> NoReturn:
        raise RequestError(
            422,
            "bad_value",
            f"rows[{row}].{shown(self._name)} must be {self._expected}; it is {fault}",
            field=self._name,
            row=row,
        )

    def _refuse_type(self, have: pa.DataType) -> NoReturn:
        raise RequestError(
            422,
            "bad_value",
            f"{shown(self._name)} must be {self._expected} (Arrow type {self._type}); "
            f"the column holds {str(have)[:60]}",
            field=self._name,
        )


def _fits_integer(items: pa.Array, wanted: pa.DataType) -> np.ndarray:
    values = _filled(items).to_numpy(zero_copy_only=False)
    limits: Any = np.iinfo(wanted.to_pandas_dtype())
    if pa.types.is_integer(items.type):
        fits: np.ndarray = (values >= limits.min) & (values <= limits.max)
        return fits
    values = values.astype(np.float64)
    # The largest value itself may have no float64: what lies below the next power of two fits.
    fits = (values == np.floor(values)) & (values >= limits.min) & (values < float(limits.max + 1))
    return fits


def _filled(numbers: pa.Array) -> pa.Array:
    return numbers.fill_null(0) if numbers.null_count else numbers


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
