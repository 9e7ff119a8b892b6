"""What smaller tables cost: metrics of the test split with and without, and the bytes saved."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import ple
from pipeline.data.columns import one_batch
from pipeline.data.faults import BadValueError
from pipeline.data.manifest import Manifest
from pipeline.data.storage import open_store
from pipeline.data.targets import TargetEncoder
from pipeline.evaluation.metrics import Metrics, MetricSet
from pipeline.registry.bundle import TrainedRanker
from pipeline.registry.columns import RowError
from pipeline.registry.scorer import RowScorer

_BATCH_ROWS = 8192
# Enough for an AUC to a few units of the fourth digit; a large split would take hours.
_MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class QuantisationCost:
    """What a precision costs and saves.

    Attributes:
        precision: of the tables.
        split, rows: measured on these.
        size_ratio: bytes of the tables over those in fp32.
        metrics: by task: name of the metric, its value in fp32, and in this precision.
    """

    precision: str
    split: str
    rows: int
    size_ratio: float
    metrics: dict[str, tuple[str, float, float]]

    def values(self) -> dict[str, float]:
        """As metrics: ``quantisation/TASK/auc_cost`` (of other tasks ``rmse_cost``), positive where
        the model became worse, and ``quantisation/size_ratio``."""
        values = {"quantisation/size_ratio": self.size_ratio, "quantisation/rows": float(self.rows)}
        for task, (metric, full, small) in self.metrics.items():
            cost = full - small if metric == "auc" else small - full
            values[f"quantisation/{task}/{metric}_cost"] = cost
        return values


def quantisation_cost(trained: TrainedRanker, precision: ple.Precision) -> QuantisationCost:
    """Scores the test split (without one, valid; a million rows of it at most) in both precisions.

    Rows whose values cannot be used are left out.
    """
    experiment, manifest = trained.experiment, trained.manifest
    split = "test" if manifest.splits.get("test") else "valid"
    scorers = {"full": trained.scorer("fp32"), "small": trained.scorer(precision)}
    metrics = {name: MetricSet(experiment.tasks) for name in scorers}
    targets = TargetEncoder.of(experiment.tasks, experiment.data.sample_weight)
    columns = list(dict.fromkeys([*trained.transforms.columns, *targets.columns]))
    rows = 0
    for table in _tables(experiment.data.path, manifest, split, columns):
        try:
            labels_BT, weights_BT = map(torch.from_numpy, targets.encode(one_batch(table)))
            predictions = {name: _predictions(part, table) for name, part in scorers.items()}
        except (BadValueError, RowError):
            continue
        for name, predictions_BT in predictions.items():
            metrics[name].update(predictions_BT, labels_BT, weights_BT)
        rows += table.num_rows
    computed = {name: _computed(part) for name, part in metrics.items()}
    found = {}
    for task in experiment.tasks:
        metric = "auc" if task.is_binary else "rmse"
        full, small = (computed[name][task.name].get(metric) for name in ("full", "small"))
        if full is not None and small is not None:
            found[task.name] = (metric, float(full), float(small))
    ratio = _table_bytes(trained, precision) / max(1, _table_bytes(trained, "fp32"))
    return QuantisationCost(precision, split, rows, ratio, found)


def _predictions(scorer: RowScorer, rows: pa.Table) -> torch.Tensor:
    """Logits of binary tasks, values of others."""
    scores_BT = torch.from_numpy(scorer.score_table(rows))
    for column, task in enumerate(scorer.experiment.tasks):
        if task.is_binary:
            scores_BT[:, column] = torch.logit(scores_BT[:, column], eps=1e-12)
    return scores_BT


def _computed(metrics: MetricSet) -> dict[str, Metrics]:
    metrics.reduce()
    return metrics.compute()


def _tables(folder: str, manifest: Manifest, split: str, columns: list[str]) -> Iterator[pa.Table]:
    store, left = open_store(manifest.root or folder), _MOST_ROWS
    for shard in manifest.splits[split]:
        with store.open_input(shard.path) as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                if left <= 0:
                    return
                yield pa.Table.from_batches([batch])
                left -= batch.num_rows


def _table_bytes(trained: TrainedRanker, precision: ple.Precision) -> int:
    weights = trained.served_weights(precision)
    return sum(v.nbytes for name, v in weights.items() if name.startswith("embeddings.banks."))
