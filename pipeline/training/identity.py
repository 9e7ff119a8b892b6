"""What must be the same for a run to go on from a checkpoint."""

from typing import Any

from pipeline.config import Experiment

# Settings that change what is learnt from the next row on, or what it is learnt from. All others
# (workers, threads, sharding, evaluation, logging, checkpoints, failures, Ray, MLflow) may differ.
_SECTIONS = ("features", "balance", "table_optimizer", "dense_optimizer", "schedule")
_DATA = ("sample_weight", "batch_size", "streams", "shuffle_rows")
_TRAIN = ("seed", "epochs")


def run_identity(experiment: Experiment, dataset_digest: str) -> dict[str, Any]:
    """The identity of a run: nested dicts whose leaves are JSON values.

    Args:
        experiment: the run.
        dataset_digest: of its data (``Manifest.digest``).
    """
    tree = experiment.model_dump(mode="json")
    return {
        "name": experiment.name,
        "dataset": dataset_digest,
        "data": {key: tree["data"][key] for key in _DATA},
        "tasks": _by_name(tree["tasks"]),
        **{section: _by_name(tree[section]) for section in _SECTIONS},
        # A group's experts are named by its number, and JSON objects have no order.
        "model": _by_name(tree["model"]) | {"group_order": list(tree["model"]["groups"] or ())},
        "table_schedule": _by_name(tree["table_schedule"]),
        "train": {key: tree["train"][key] for key in _TRAIN}
        | {"early_stopping.metric": tree["train"]["early_stopping"]["metric"]},
    }


def _by_name(tree: Any) -> Any:
    """Lists of named items as dicts, so that a difference shows as one setting of one item."""
    if isinstance(tree, dict):
        return {key: _by_name(value) for key, value in tree.items()}
    if isinstance(tree, list) and tree and all(isinstance(i, dict) and "name" in i for i in tree):
        items = {item["name"]: _by_name(item) for item in tree}
        return {**items, "order": list(items)}
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        return {str(number): _by_name(item) for number, item in enumerate(tree)}
    return tree
