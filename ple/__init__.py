"""Multi-task ranking models in PyTorch, from shared-bottom to Progressive Layered Extraction (PLE)
and after it, with TorchRec embedding tables.

The model alone: it imports torch and torchrec and nothing else of this project. TorchRec is
imported with the first use of :class:`FeatureEmbeddings`: a served model has plain tables
(:class:`ServingTables`) and does not need it.
"""

from typing import TYPE_CHECKING, Any

import torch

from ple import losses
from ple.costs import Cost, cost
from ple.extraction import ExpertOptions, Extraction
from ple.fusion import FUSIONS
from ple.heads import Head, Heads
from ple.kinds import KINDS, wire
from ple.ranker import CrossSpec, Ranker
from ple.serving_state import serving_state
from ple.serving_tables import FeatureIds, IdLists, Precision, ServingTables
from ple.tables import FeatureTable, IdMap
from ple.wiring import LevelSpec

if TYPE_CHECKING:
    from ple.embeddings import FeatureEmbeddings

__all__ = [
    "FUSIONS",
    "KINDS",
    "Cost",
    "CrossSpec",
    "ExpertOptions",
    "Extraction",
    "FeatureEmbeddings",
    "FeatureIds",
    "FeatureTable",
    "Head",
    "Heads",
    "IdLists",
    "IdMap",
    "LevelSpec",
    "Precision",
    "Ranker",
    "ServingTables",
    "cost",
    "losses",
    "serving_state",
    "wire",
]


def __getattr__(name: str) -> Any:
    if name == "FeatureEmbeddings":
        # What TorchRec computes when it is imported must not land on somebody's meta device.
        with torch.device("cpu"):
            from ple.embeddings import FeatureEmbeddings

        return FeatureEmbeddings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
