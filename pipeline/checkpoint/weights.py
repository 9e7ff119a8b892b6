"""The weights of a checkpoint alone, the averaged ones where there are, for scoring and export."""

import warnings
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from pipeline.checkpoint.catalog import file_faults, read_marker
from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.marker import DamagedMarkerError
from pipeline.checkpoint.reader import CheckpointReader, check_tensors, tensor_kinds
from pipeline.data.storage import Store, open_store

# Names under which a training state keeps them.
MODEL, AVERAGE = "model", "average"


def load_unsharded(model: nn.Module, location: str) -> None:
    """Loads a checkpoint's weights into an unsharded model, in one process without a group.

    Args:
        model: takes them.
        location: the checkpoint's folder (``SavedCheckpoint.location``).

    Raises:
        CheckpointError: no whole checkpoint there, or one of another model.
    """
    store = open_store(location)
    try:
        faults = file_faults(store, read_marker(store))
        if faults:
            raise CheckpointError(f"{store.location}: {', '.join(faults)}")
        with warnings.catch_warnings():
            # torch announces that loading in one process works as it is asked to.
            warnings.simplefilter("ignore")
            weights = Weights(store, model)
            weights.check()
            weights.load(None, no_dist=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{store.location}: no complete checkpoint ({error}); is storage.path a folder that "
            "every node shares?"
        ) from error
    except DamagedMarkerError as error:
        raise CheckpointError(f"{store.location}: its marker {error}") from error


class Weights:
    """The weights of a verified checkpoint, on their way into a model, sharded or not."""

    def __init__(self, store: Store, model: nn.Module) -> None:
        self._store, self._model = store, model
        self._reader = CheckpointReader(store)

    def check(self) -> None:
        """Reads what there is. Raises OSError, or CheckpointError for another model's."""
        saved = self._reader.metadata.state_dict_metadata
        weights = {name: there for name, there in saved.items() if name.startswith(f"{MODEL}.")}
        here = tensor_kinds({MODEL: self._model.state_dict()})
        check_tensors(weights, [here], self._store.location)

    def load(self, group: dist.ProcessGroup | None, *, no_dist: bool = False) -> None:
        """Loads them. Raises torch's CheckpointException, on all workers of the group."""
        saved = self._reader.metadata.state_dict_metadata
        state: dict[str, Any] = self._model.state_dict()
        for key, tree in (
            (AVERAGE, {name: v for name, v in state.items() if f"{AVERAGE}.{name}" in saved}),
            (MODEL, {name: v for name, v in state.items() if f"{AVERAGE}.{name}" not in saved}),
        ):
            if tree:
                dcp.load(
                    {key: tree}, storage_reader=self._reader, process_group=group, no_dist=no_dist
                )
        self._model.load_state_dict(state)
