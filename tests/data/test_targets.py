"""Labels, sample spaces and weights: hand-worked values and named faults."""

from collections import Counter

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


def test_spaces_and_labels_by_rules() -> None:
    tasks = [
        TaskConfig(name="both", label="click & convert"),
        TaskConfig(name="convert", space="click & ~bot"),
        TaskConfig(name="long", label="seconds > 5", space="click | seconds >= 2"),
    ]
    targets = TargetEncoder.of(tasks, None)
    assert targets.columns == ("click", "convert", "seconds", "bot")
    batch = rows(
        click=[0, 1, 1, 1, 0],
        convert=[None, 1, 0, 1, None],
        seconds=[6.0, 1.0, 7.0, 2.0, 1.0],
        bot=[None, 0, 0, 1, 0],
    )
    labels_BT, weights_BT = targets.encode(batch)
    assert labels_BT.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert weights_BT.tolist() == [[1, 0, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 0, 0]]


def test_large_numbers_are_compared_exactly() -> None:
    task = TaskConfig(name="late", label="time >= 1700000001")
    batch = pa.record_batch({"time": pa.array([1700000000, 1700000001], pa.int64())})
    assert TargetEncoder.of([task], None).encode(batch)[0].tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            TaskConfig(name="both", label="click & convert"),
            "column 'click & convert', row 2: the label of task 'both' is unknown where click = 1, "
            "convert = null or NaN; mend these columns",
        ),
        (
            TaskConfig(name="convert", space="click & ~bot"),
            "column 'click & ~bot', row 1: the sample space is unknown where click = 1, bot = null",
        ),
    ],
)
def test_rules_that_stay_unknown_are_named(task: TaskConfig, message: str) -> None:
    batch = rows(click=[0, 1, 1, 1], convert=[None, 1, None, None], bot=[None, None, 0, None])
    with pytest.raises(BadValueError) as caught:
        TargetEncoder.of([task], None).encode(batch)
    assert str(caught.value).startswith(message)
    assert caught.value.kind == "labels"
    assert caught.value.rows.tolist() == ([2, 3] if task.name == "both" else [1, 3])


def test_rows_outside_every_space_are_counted() -> None:
    tasks = [TaskConfig(name="buy", space="click"), TaskConfig(name="like", space="seen & ~click")]
    batch = rows(click=[1, 0, 0, 0], buy=[1, 0, 0, 0], like=[0, 1, 0, 0], seen=[1, 1, 0, 0])
    counters: Counter[str] = Counter()
    TargetEncoder.of(tasks, None).encode(batch, counters)
    TargetEncoder.of(tasks, None).encode(batch, counters)
    assert counters == {"rows_outside_all_spaces": 4}
    counters.clear()
    TargetEncoder.of([*tasks, CLICK], None).encode(batch, counters)
    assert not counters


@pytest.mark.parametrize(
    ("task", "good", "bad", "needed"),
    [
        (TaskConfig(name="spend", loss="ziln"), 0.0, -0.1, "a finite label of 0 or above"),
        (
            TaskConfig(name="stars", loss="ordinal", ordinal_range=(1, 5)),
            5.0,
            0.0,
            "a whole number from 1 to 5",
        ),
        (
            TaskConfig(name="stars", loss="ordinal", ordinal_range=(1, 5)),
            1.0,
            2.5,
            "a whole number from 1 to 5",
        ),
        (TaskConfig(name="w", loss="huber"), -1e9, float("inf"), "a finite label"),
        (TaskConfig(name="w", loss="quantile", quantile=0.9), 7.0, None, "a finite label"),
    ],
)
def test_labels_are_those_the_loss_can_take(
    task: TaskConfig, good: float, bad: float | None, needed: str
) -> None:
    targets = TargetEncoder.of([task], None)
    assert targets.encode(rows(**{task.name: [good]}))[0].item() == good
    with pytest.raises(BadValueError, match=f"row 1: holds .*; task '{task.name}' needs {needed}"):
        targets.encode(rows(**{task.name: [good, bad]}))


def test_sampled_negatives_weigh_what_they_stand_for_in_the_other_tasks() -> None:
    tasks = [
        TaskConfig(name="click", negatives_kept=0.25),
        TaskConfig(name="buy", space="click"),
        TaskConfig(name="like"),
    ]
    batch = rows(click=[1, 0, 1, 0], buy=[1, 0, 0, 0], like=[0, 1, 0, 0], w=[1.0, 1.0, 2.0, 3.0])
    train = TargetEncoder.of(tasks, "w", sampled=True).encode(batch)[1]
    assert train.tolist() == [[1, 1, 1], [1, 0, 4], [2, 2, 2], [3, 0, 12]]
    other = TargetEncoder.of(tasks, "w").encode(batch)[1]
    assert other.tolist() == [[1, 1, 1], [1, 0, 1], [2, 2, 2], [3, 0, 3]]
    # Sampled after a click: rows without one are all there.
    tasks = [TaskConfig(name="click"), TaskConfig(name="buy", space="click", negatives_kept=0.5)]
    weights_BT = TargetEncoder.of(tasks, None, sampled=True).encode(batch)[1]
    assert weights_BT.tolist() == [[1, 1], [1, 0], [2, 1], [1, 0]]


def test_labels_that_are_unknown_outside_the_space_do_not_matter() -> None:
    task = TaskConfig(name="both", label="click & convert", space="seen")
    batch = rows(click=[1, 1, None], convert=[1, None, None], seen=[1, 0, 0])
    labels_BT, weights_BT = TargetEncoder.of([task], None).encode(batch)
    assert (labels_BT.tolist(), weights_BT.tolist()) == ([[1], [0], [0]], [[1], [0], [0]])
