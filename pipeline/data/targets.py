"""Labels, sample spaces and row weights of the tasks.

Legend: B rows, T tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipeline.config.tasks import TaskConfig
from pipeline.data.columns import as_values, column_of, matrix_of, numbers
from pipeline.data.faults import BadValueError


@dataclass(frozen=True)
class TargetEncoder:
    """Label, space and weight columns → labels_BT and weights_BT.

    The weight of row b for task t is its sample weight where the row is in the task's sample
    space, else 0; its label there is 0 too, whatever the column holds.
    """

    tasks: tuple[TaskConfig, ...]
    sample_weight: str | None

    @staticmethod
    def of(tasks: Sequence[TaskConfig], sample_weight: str | None) -> "TargetEncoder":
        return TargetEncoder(tuple(tasks), sample_weight)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The raw columns needed, each once."""
        names = [task.label_column for task in self.tasks]
        names += [task.space for task in self.tasks if task.space is not None]
        if self.sample_weight is not None:
            names.append(self.sample_weight)
        return tuple(dict.fromkeys(names))

    @cached_property
    def _all_binary(self) -> bool:
        return len(self.columns) == len(self.tasks) and all(
            task.loss == "binary_cross_entropy" for task in self.tasks
        )

    def encode(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """float32 (labels_BT, weights_BT). Raises BadValueError on a bad value."""
        plain = self._plain(batch)
        if plain is not None:
            return plain
        read = {
            name: numbers(as_values(column_of(batch, name), pa.float32(), name))
            for name in self.columns
        }
        labels_BT = np.empty((batch.num_rows, len(self.tasks)), np.float32)
        weights_BT = np.ones_like(labels_BT)
        if self.sample_weight is not None:
            _check_weights(self.sample_weight, read[self.sample_weight])
            weights_BT *= read[self.sample_weight][:, None]
        for position, task in enumerate(self.tasks):
            outside_B = None
            if task.space is not None:
                space_B = read[task.space]
                _check_binary(task.space, space_B, None, "a sample space")
                outside_B = space_B == 0.0
            label_B = read[task.label_column]
            if task.loss == "binary_cross_entropy":
                _check_binary(task.label_column, label_B, outside_B, f"task {task.name!r}")
            else:
                _check_finite(task.label_column, label_B, outside_B, task.name)
            labels_BT[:, position] = label_B
            if outside_B is not None:
                labels_BT[outside_B, position] = 0.0
                weights_BT[outside_B, position] = 0.0
        return labels_BT, weights_BT

    def _plain(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray] | None:
        """The common case in few passes: float32 columns of 0 and 1, no spaces, no weights."""
        if not self._all_binary:
            return None
        labels_BT = matrix_of(batch, self.columns, pa.float32(), row_major=True)
        if labels_BT is None or not ((labels_BT == 0.0) | (labels_BT == 1.0)).all():
            return None
        return labels_BT, np.ones_like(labels_BT)


def _check_binary(name: str, values_B: np.ndarray, outside_B: np.ndarray | None, of: str) -> None:
    usable_B = (values_B == 0.0) | (values_B == 1.0)
    _raise_first(
        name,
        values_B,
        usable_B,
        outside_B,
        f"{of} needs 0 or 1; mend the column, or give the task a `space` that leaves such rows out",
    )


def _check_finite(name: str, values_B: np.ndarray, outside_B: np.ndarray | None, task: str) -> None:
    _raise_first(
        name,
        values_B,
        np.isfinite(values_B),
        outside_B,
        f"task {task!r} needs a finite label; mend the column, or give the task a `space` that "
        "leaves such rows out",
    )


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
    value = values_B[row]
    shown = "null or NaN" if np.isnan(value) else f"{value:g}"
    raise BadValueError(name, row, f"holds {shown}; {problem}")
