"""Progressive Layered Extraction (PLE) in PyTorch, with TorchRec embedding tables.

The model alone: it imports torch and torchrec and nothing else of this project.
"""

from ple.embeddings import FeatureEmbeddings, FeatureTable
from ple.extraction import ExtractionNetwork, LevelSpec, ProgressiveExtraction
from ple.losses import task_losses
from ple.ranker import Ranker

__all__ = [
    "ExtractionNetwork",
    "FeatureEmbeddings",
    "FeatureTable",
    "LevelSpec",
    "ProgressiveExtraction",
    "Ranker",
    "task_losses",
]
