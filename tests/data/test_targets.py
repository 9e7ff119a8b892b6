"""Labels, sample spaces and weights: hand-worked values and named faults."""

import pyarrow as pa
import pytest

from pipeline.config.tasks import TaskConfig
from pipeline.data.faults import BadColumnError, BadValueError
from pipeline.data.targets import TargetEncoder

CLICK = TaskConfig(name="click")
BUY = TaskConfig(name="buy", label="bought", space="click")
WATCH = TaskConfig(name="watch", loss="squared_error", space="click")


def rows(**columns: list[float | None]) -> pa.RecordBatch:
    return pa.record_batch({name: pa.array(values) for name, values in columns.items()})


def test_labels_and_weights_by_space() -> None:
    targets = TargetEncoder.of([CLICK, BUY, WATCH], "weight")
    assert targets.columns == ("click", "bought", "watch", "weight")
    batch = rows(
        click=[1, 0, 1, 0],
        bought=[1, None, 0, 7],
        watch=[2.5, None, -3.0, float("nan")],
        weight=[0.5, 2.0, 3.0, 0.0],
    )
    labels_BT, weights_BT = targets.encode(batch)
    assert labels_BT.tolist() == [[1, 1, 2.5], [0, 0, 0], [1, 0, -3], [0, 0, 0]]
    assert weights_BT.tolist() == [[0.5, 0.5, 0.5], [2, 0, 0], [3, 3, 3], [0, 0, 0]]
    assert labels_BT.dtype == weights_BT.dtype == "float32"


def test_without_sample_weights_all_rows_weigh_one() -> None:
    labels_BT, weights_BT = TargetEncoder.of([CLICK], None).encode(
        pa.record_batch({"click": pa.array([True, False])})
    )
    assert labels_BT.tolist() == [[1], [0]]
    assert weights_BT.tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("columns", "column", "row", "text"),
    [
        ({"click": [1, 0, 2]}, "click", 2, "holds 2; task 'click' needs 0 or 1"),
        ({"click": [1.0, float("nan")]}, "click", 1, "holds null or NaN; task 'click' needs 0"),
        ({"click": [1, None]}, "click", 1, "holds null or NaN"),
        ({"click": [1], "bought": [0.5]}, "bought", 0, "holds 0.5; task 'buy' needs 0 or 1"),
        ({"click": [0, 1], "watch": [1.0, None]}, "watch", 1, "task 'watch' needs a finite label"),
        ({"click": [1], "watch": [float("inf")]}, "watch", 0, "holds inf"),
    ],
)
def test_unusable_labels(
    columns: dict[str, list[float | None]], column: str, row: int, text: str
) -> None:
    tasks = [t for t in (CLICK, BUY, WATCH) if t.label_column in columns]
    with pytest.raises(BadValueError, match=text) as caught:
        TargetEncoder.of(tasks, None).encode(rows(**columns))
    assert (caught.value.column, caught.value.row) == (column, row)


def test_a_space_is_0_or_1() -> None:
    task = TaskConfig(name="buy", space="seen")
    with pytest.raises(BadValueError, match="column 'seen', row 1: holds null or NaN; a sample"):
        TargetEncoder.of([task], None).encode(rows(buy=[1, 1], seen=[1, None]))


@pytest.mark.parametrize("bad", [-1.0, None, float("nan"), float("inf")])
def test_sample_weights_are_finite_and_not_negative(bad: float | None) -> None:
    with pytest.raises(BadValueError, match=r"column 'w', row 1: holds .*; a sample weight is"):
        TargetEncoder.of([CLICK], "w").encode(rows(click=[1, 1], w=[1.0, bad]))


def test_labels_that_are_no_numbers() -> None:
    batch = pa.record_batch({"click": pa.array(["yes"])})
    with pytest.raises(BadColumnError, match="'click': holds string, which does not convert"):
        TargetEncoder.of([CLICK], None).encode(batch)
