"""Labels, sample spaces and row weights of the tasks.

Legend: B rows, T tasks.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipeline.config.expressions import Column, Rule, parse_rule
from pipeline.config.tasks import TaskConfig
from pipeline.data.columns import as_values, column_of, matrix_of, numbers
from pipeline.data.faults import BadValueError
from pipeline.data.rules import shown, shown_values, truth

OUTSIDE = "rows_outside_all_spaces"


@dataclass(frozen=True)
class TargetEncoder:
    """Label, space and weight columns → labels_BT and weights_BT.

    The weight of row b for task t is its sample weight where the row is in the task's sample
    space, else 0; its label there is 0 too, whatever the column holds.

    Where the negatives of a task were sampled (``negatives_kept``), those that are left weigh
    1 / the share kept in every other task: their losses estimate those of all rows.

    Attributes:
        sampled: whether the rows are of the split whose negatives were sampled.
    """

    tasks: tuple[TaskConfig, ...]
    sample_weight: str | None
    sampled: bool = False

    @staticmethod
    def of(
        tasks: Sequence[TaskConfig], sample_weight: str | None, sampled: bool = False
    ) -> "TargetEncoder":
        return TargetEncoder(tuple(tasks), sample_weight, sampled)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The raw columns needed, each once."""
        names = [name for task in self.tasks for name in task.label_columns]
        names += [name for task in self.tasks for name in task.space_columns]
        if self.sample_weight is not None:
            names.append(self.sample_weight)
        return tuple(dict.fromkeys(names))

    @cached_property
    def _all_binary(self) -> bool:
        return (
            len(self.columns) == len(self.tasks)
            and self._sampled_task is None
            and all(t.is_binary and t.label_column and t.space is None for t in self.tasks)
        )

    @cached_property
    def _sampled_task(self) -> int | None:
        if not self.sampled:
            return None
        kept = [t for t, task in enumerate(self.tasks) if task.negatives_kept is not None]
        return kept[0] if kept else None

    def encode(
        self, batch: pa.RecordBatch, counters: Counter[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 (labels_BT, weights_BT). Raises BadValueError on a bad value.

        Args:
            batch: raw rows.
            counters: hears of rows that lie in no task's sample space.
        """
        plain = self._plain(batch)
        if plain is not None:
            return plain
        # float64, so that comparisons with large numbers are exact.
        read = {
            name: numbers(as_values(column_of(batch, name), pa.float64(), name))
            for name in self.columns
        }
        labels_BT = np.empty((batch.num_rows, len(self.tasks)), np.float32)
        weights_BT = np.ones_like(labels_BT)
        if self.sample_weight is not None:
            _check_weights(self.sample_weight, read[self.sample_weight])
            weights_BT *= read[self.sample_weight][:, None]
        outside_BT = np.zeros(labels_BT.shape, bool)
        for position, task in enumerate(self.tasks):
            outside_B = None
            if task.space is not None:
                outside_B = _outside(task.space, read)
                outside_BT[:, position] = outside_B
            labels_BT[:, position] = _labels(task, read, outside_B)
        labels_BT[outside_BT] = 0.0
        if self._sampled_task is not None:
            self._weigh_sample(weights_BT, labels_BT, outside_BT)
        weights_BT[outside_BT] = 0.0
        if counters is not None and all(task.space is not None for task in self.tasks):
            counters[OUTSIDE] += int(outside_BT.all(1).sum())
        return labels_BT, weights_BT

    def _weigh_sample(
        self, weights_BT: np.ndarray, labels_BT: np.ndarray, outside_BT: np.ndarray
    ) -> None:
        sampled = self._sampled_task
        assert sampled is not None
        kept = self.tasks[sampled].negatives_kept
        assert kept is not None
        thinned_B = (labels_BT[:, sampled] == 0.0) & ~outside_BT[:, sampled]
        others = np.arange(len(self.tasks)) != sampled
        weights_BT[np.ix_(thinned_B, others)] /= kept

    def _plain(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray] | None:
        """The common case in few passes: float32 columns of 0 and 1, no spaces, no weights."""
        if not self._all_binary:
            return None
        labels_BT = matrix_of(batch, self.columns, pa.float32(), row_major=True)
        if labels_BT is None or not ((labels_BT == 0.0) | (labels_BT == 1.0)).all():
            return None
        return labels_BT, np.ones_like(labels_BT)


def _outside(space: str, read: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool (B,), true where the row is not in the space."""
    rule = parse_rule(space)
    value = truth(rule, read)
    if isinstance(rule, Column):
        remedy = "a sample space needs 0 or 1; mend the column, or write the space as a rule"
        _raise_first(rule.name, read[rule.name], ~value.unknown_B, None, remedy)
    else:
        _raise_unknown(space, rule, read, value.unknown_B, "the sample space")
    return value.fails_B


def _labels(
    task: TaskConfig, read: Mapping[str, np.ndarray], outside_B: np.ndarray | None
) -> np.ndarray:
    """The labels (B,), checked inside the space."""
    rule = parse_rule(task.label_text)
    if not isinstance(rule, Column):
        value = truth(rule, read)
        unknown_B = value.unknown_B if outside_B is None else value.unknown_B & ~outside_B
        _raise_unknown(task.label_text, rule, read, unknown_B, f"the label of task {task.name!r}")
        return value.holds_B
    label_B = read[rule.name]
    usable_B, needed = _usable(task, label_B)
    remedy = (
        f"task {task.name!r} needs {needed}; mend the column, or give the task a `space` that "
        "leaves such rows out"
    )
    _raise_first(rule.name, label_B, usable_B, outside_B, remedy)
    return label_B


def _usable(task: TaskConfig, label_B: np.ndarray) -> tuple[np.ndarray, str]:
    """Which values the task's loss can take, and that in words."""
    with np.errstate(invalid="ignore"):
        if task.is_binary:
            return (label_B == 0.0) | (label_B == 1.0), "0 or 1"
        if task.loss == "ziln":
            return np.isfinite(label_B) & (label_B >= 0.0), "a finite label of 0 or above"
        if task.ordinal_range is not None:
            first, last = task.ordinal_range
            whole_B = label_B == np.floor(label_B)
            inside_B = (label_B >= first) & (label_B <= last)
            return whole_B & inside_B, f"a whole number from {first} to {last}"
        return np.isfinite(label_B), "a finite label"


def _check_weights(name: str, weights_B: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        usable_B = np.isfinite(weights_B) & (weights_B >= 0.0)
    _raise_first(name, weights_B, usable_B, None, "a sample weight is a finite number, 0 or above")


def _raise_first(
    name: str,
    values_B: np.ndarray,
    usable_B: np.ndarray,
    outside_B: np.ndarray | None,
    problem: str,
) -> None:
    if usable_B.all():
        return
    if outside_B is not None:
        usable_B = usable_B | outside_B
        if usable_B.all():
            return
    row = int(np.argmin(usable_B))
    raise BadValueError(
        name,
        row,
        f"holds {shown(values_B[row])}; {problem}",
        kind="labels",
        rows=np.flatnonzero(~usable_B),
    )


def _raise_unknown(
    text: str, rule: Rule, read: Mapping[str, np.ndarray], unknown_B: np.ndarray, of: str
) -> None:
    if not unknown_B.any():
        return
    rows = np.flatnonzero(unknown_B)
    row = int(rows[0])
    raise BadValueError(
        text,
        row,
        f"{of} is unknown where {shown_values(rule, read, row)}; mend these columns, or write the "
        "rule so that others decide such rows (click & convert is 0 where click is 0)",
        kind="labels",
        rows=rows,
    )
