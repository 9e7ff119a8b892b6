"""Days of columns of every type."""

import datetime

import pyarrow as pa
import pytest

from pipeline.backtest.days import day_numbers, day_text
from pipeline.data.faults import BadColumnError

DAY = datetime.date(2026, 11, 21)
NUMBER = (DAY - datetime.date(1970, 1, 1)).days


@pytest.mark.parametrize(
    "values",
    [
        pa.array([DAY]),
        pa.array([DAY], pa.date64()),
        pa.array([datetime.datetime(2026, 11, 21, 23, 59, 59)]),
        pa.array([datetime.datetime(2026, 11, 21, 23, 59)], pa.timestamp("ns", "UTC")),
        pa.array(["2026-11-21"]),
        pa.array(["2026-11-21T23:59:59+01:00"], pa.large_string()),
        pa.array(["2026-11-21"]).dictionary_encode(),
        pa.array([20261121], pa.int32()),
    ],
    ids=lambda values: str(values.type),
)
def test_every_type(values):
    assert day_numbers(values, "day").to_pylist() == [NUMBER]
    assert day_text(NUMBER) == "2026-11-21"


def test_before_1970_a_day_begins_at_midnight_too():
    moment = datetime.datetime(1969, 12, 31, 0, 0, 1)
    assert day_numbers(pa.array([moment]), "day").to_pylist() == [-1]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["21.11.2026"], "holds no days"),
        ([5], "holds no days"),
        ([1.5], "holds double"),
        (["2026-11-21", None], "1 rows have no day"),
    ],
)
def test_what_is_no_day(values, words):
    with pytest.raises(BadColumnError, match=words):
        day_numbers(pa.array(values), "day")
