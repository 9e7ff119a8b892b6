"""From raw columns of any castable type to the types the transforms were fitted on."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.faults import BadColumnError

_TYPES = {
    "int8": pa.int64(),
    "int16": pa.int64(),
    "int32": pa.int64(),
    "int64": pa.int64(),
    "uint8": pa.int64(),
    "uint16": pa.int64(),
    "uint32": pa.int64(),
    "uint64": pa.int64(),
    "bool": pa.int64(),
    "string": pa.string(),
    "large_string": pa.string(),
    "float": pa.float32(),
    "halffloat": pa.float32(),
    "double": pa.float64(),
}


def value_type(manifest_type: str) -> pa.DataType | None:
    """The type the transforms compute in, for an Arrow type written as text; None = unsupported.

    A list's type is its items', a dictionary's its values'; integers and booleans become int64.
    """
    text = manifest_type
    for prefix in ("list<", "large_list<"):
        if text.startswith(prefix):
            text = text.removeprefix(prefix).removesuffix(">").split(":", 1)[-1].strip()
            text = text.removesuffix(" not null")
    if text.startswith("dictionary<values="):
        text = text.removeprefix("dictionary<values=").split(",", 1)[0]
    return _TYPES.get(text)


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column by name. Raises BadColumnError if it is absent."""
    position = batch.schema.get_field_index(name)
    if position < 0:
        raise BadColumnError(name, "absent from these rows; add it (null where it is not known)")
    return batch.column(position)


def one_batch(rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch:
    """The rows of a table as one batch: columns without chunks."""
    if isinstance(rows, pa.RecordBatch):
        return rows
    batches = rows.to_batches()
    if len(batches) == 1:
        return batches[0]
    arrays = [column.combine_chunks() for column in rows.columns]
    arrays = [a.combine_chunks() if isinstance(a, pa.ChunkedArray) else a for a in arrays]
    return pa.RecordBatch.from_arrays(arrays, schema=rows.schema)


def matrix_of(
    batch: pa.RecordBatch, names: Sequence[str], kind: pa.DataType, row_major: bool = False
) -> np.ndarray | None:
    """Columns of one type as a writable matrix, copied by Arrow in one go.

    (columns, rows), or with ``row_major`` (rows, columns). None where a column is absent, of
    another kind of type, or has nulls; such columns go one by one.
    """
    if not names:
        return None
    try:
        tensor = batch.select(names).to_tensor(row_major=row_major)
    except (KeyError, pa.ArrowTypeError):
        return None
    # Columns of several types come out as the narrowest that holds them all.
    if tensor.type != kind:
        return None
    matrix: np.ndarray = tensor.to_numpy()
    return matrix if row_major else matrix.T


def as_values(array: pa.Array, wanted: pa.DataType, name: str) -> pa.Array:
    """A single-valued column in its fitted type; strings may stay dictionary-encoded."""
    have = array.type
    if have == wanted:
        return array
    if pa.types.is_dictionary(have):
        if pa.types.is_string(wanted) and pa.types.is_string(have.value_type):
            return array
        array = array.dictionary_decode()
    return _cast(array, wanted, name)


def as_lists(array: pa.Array, wanted: pa.DataType, name: str) -> tuple[pa.Array, np.ndarray]:
    """A list column as (values, offsets_B1): row b holds values[offsets[b] : offsets[b + 1]].

    A null list is an empty one. The values are those of these rows only.
    """
    if pa.types.is_null(array.type):
        return pa.array([], wanted), np.zeros(len(array) + 1, np.int64)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise BadColumnError(name, f"holds {array.type}, where lists of {wanted} are expected")
    offsets_B1 = array.offsets.to_numpy().astype(np.int64)
    if array.null_count and (np.diff(offsets_B1)[null_mask(array)] > 0).any():
        # A null list may still span values: let Arrow rebuild the array without them.
        array = array.take(pa.array(np.arange(len(array))))
        offsets_B1 = array.offsets.to_numpy().astype(np.int64)
    first, last = int(offsets_B1[0]), int(offsets_B1[-1])
    # .values ignores the slice the array may be.
    values = as_values(array.values.slice(first, last - first), wanted, name)
    if first:
        offsets_B1 -= first
    return values, offsets_B1


def null_mask(array: pa.Array) -> np.ndarray:
    """bool (B,), true where the value is null."""
    mask: np.ndarray = array.is_null().to_numpy(zero_copy_only=False)
    return mask


def has_nulls(array: pa.Array) -> bool:
    """Whether any value is null, in a dictionary-encoded array also by way of its dictionary."""
    if array.null_count:
        return True
    return pa.types.is_dictionary(array.type) and array.dictionary.null_count > 0


def nulls_of(array: pa.Array) -> np.ndarray:
    """bool (B,), true where the value is null, also by way of a dictionary."""
    if pa.types.is_dictionary(array.type) and array.dictionary.null_count:
        array = pc.take(array.dictionary, array.indices)
    return null_mask(array)


def numbers(array: pa.Array) -> np.ndarray:
    """float (B,) of an Arrow float array, NaN where it is null; a view where there are none."""
    if not array.null_count:
        view: np.ndarray = array.to_numpy()
        return view
    filled: np.ndarray = array.fill_null(float("nan")).to_numpy()
    return filled


def _cast(array: pa.Array, wanted: pa.DataType, name: str) -> pa.Array:
    try:
        if pa.types.is_integer(wanted) and pa.types.is_floating(array.type):
            # pandas turns integers with gaps into floats with NaN.
            array = pc.if_else(pc.is_nan(array), None, array)
        if pa.types.is_boolean(array.type) and pa.types.is_floating(wanted):
            array = array.cast(pa.int8())
        return array.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise BadColumnError(
            name, f"holds {array.type}, which does not convert to {wanted}: {error}"
        ) from None
