"""Multi-task ranking models in PyTorch, from shared-bottom to Progressive Layered Extraction (PLE)
and after it, with TorchRec embedding tables.

The model alone: it imports torch and torchrec and nothing else of this project.
"""

from ple import losses
from ple.costs import Cost, cost
from ple.embeddings import FeatureEmbeddings, FeatureTable
from ple.extraction import ExpertOptions, Extraction
from ple.fusion import FUSIONS
from ple.heads import Head, Heads
from ple.kinds import KINDS, wire
from ple.managed_ids import IdMap
from ple.ranker import CrossSpec, Ranker
from ple.wiring import LevelSpec

__all__ = [
    "FUSIONS",
    "KINDS",
    "Cost",
    "CrossSpec",
    "ExpertOptions",
    "Extraction",
    "FeatureEmbeddings",
    "FeatureTable",
    "Head",
    "Heads",
    "IdMap",
    "LevelSpec",
    "Ranker",
    "cost",
    "losses",
    "wire",
]
