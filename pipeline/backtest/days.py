"""Days of rows: whatever a column holds, as days since 1970."""

from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.faults import BadColumnError

_EPOCH = date(1970, 1, 1)


def day_numbers(values: pa.Array, name: str) -> pa.Array:
    """int32 days since 1970 of dates, time stamps (as stored, so UTC where they have a zone), text
    that begins YYYY-MM-DD, or whole numbers YYYYMMDD.

    Raises:
        BadColumnError: another type, text that is no day, or a row without one.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if values.null_count:
        raise BadColumnError(name, f"{values.null_count} rows have no day; fill it in")
    try:
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            days = (
                values.cast(pa.date32(), safe=False) if pa.types.is_date(kind) else _floor(values)
            )
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            days = _parsed(pc.utf8_slice_codeunits(values, 0, 10), "%Y-%m-%d")
        elif pa.types.is_integer(kind):
            days = _parsed(values.cast(pa.string()), "%Y%m%d")
        else:
            raise BadColumnError(
                name, f"holds {kind}; a day is a date, a time stamp, text or a number YYYYMMDD"
            )
    except pa.ArrowException as error:
        raise BadColumnError(name, f"holds no days YYYY-MM-DD or YYYYMMDD: {error}") from None
    return days.cast(pa.int32())


def day_text(number: int) -> str:
    """``2026-11-21``."""
    return (_EPOCH + timedelta(days=number)).isoformat()


def _floor(values: pa.Array) -> pa.Array:
    plain = values.cast(pa.timestamp(values.type.unit))
    return pc.floor_temporal(plain, unit="day").cast(pa.date32())


def _parsed(text: pa.Array, form: str) -> pa.Array:
    return pc.strptime(text, format=form, unit="s").cast(pa.date32())
