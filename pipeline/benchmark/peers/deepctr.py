"""DeepCTR-Torch's PLE (its package, unchanged), trained by its own ``fit`` on rows in memory."""

import contextlib
import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.config import ConfigError


class DeepCtr:
    """One model; every call trains an epoch and tells how long that took.

    Args:
        ids_BF: int64 rows of each table; dense_BN: float32; labels_BT: float32.
        table_rows: rows of each table; widths: their embedding widths (one for all).
        experts: experts of a task, and shared ones.
        hidden: hidden widths of an expert; the package gives every level the same.
        levels: number of levels; tower: hidden widths of the towers.
        batch_size: rows of a batch.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(
        self,
        ids_BF: np.ndarray,
        dense_BN: np.ndarray,
        labels_BT: np.ndarray,
        *,
        table_rows: Sequence[int],
        width: int,
        experts: int,
        hidden: Sequence[int],
        levels: int,
        tower: Sequence[int],
        batch_size: int,
    ) -> None:
        try:
            from deepctr_torch.inputs import DenseFeat, SparseFeat
            from deepctr_torch.models import PLE
        except ImportError as error:
            raise ConfigError(
                f"the peers need the package deepctr-torch ({error}); install it with "
                "`pip install --no-deps deepctr-torch==0.3.0 tqdm`"
            ) from error
        import torch

        columns: list[Any] = [
            SparseFeat(f"id_{f}", rows, embedding_dim=width) for f, rows in enumerate(table_rows)
        ]
        columns += [DenseFeat(f"number_{n}", 1) for n in range(dense_BN.shape[1])]
        names = [f"label_{t}" for t in range(labels_BT.shape[1])]
        self._model = PLE(
            columns,
            shared_expert_num=experts,
            specific_expert_num=experts,
            num_levels=levels,
            expert_dnn_hidden_units=tuple(hidden),
            gate_dnn_hidden_units=(),
            tower_dnn_hidden_units=tuple(tower),
            # Its penalties run over every table in every step; without them it is faster.
            l2_reg_linear=0,
            l2_reg_embedding=0,
            task_types=["binary"] * len(names),
            task_names=names,
        )
        self._model.compile(
            torch.optim.Adagrad(self._model.parameters(), lr=0.01),
            ["binary_crossentropy"] * len(names),
        )
        self._inputs = {f"id_{f}": ids_BF[:, f] for f in range(ids_BF.shape[1])}
        self._inputs |= {f"number_{n}": dense_BN[:, n] for n in range(dense_BN.shape[1])}
        self._labels_BT = labels_BT
        self._batch_size = batch_size

    def epoch_seconds(self, rows: int) -> float:
        """Trains once over the first ``rows`` rows, shuffled by the package's own loader."""
        inputs = {name: values[:rows] for name, values in self._inputs.items()}
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            self._model.fit(
                inputs, self._labels_BT[:rows], batch_size=self._batch_size, epochs=1, verbose=0
            )
        return time.perf_counter() - started
