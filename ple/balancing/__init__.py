"""Loss balancing: how the losses of several tasks become one.

Every method gives weights α for the joint loss Σ_k α_k L_k. Those that compare task gradients work
from their Gramian at a boundary inside the model (:func:`task_gramian`), never from gradients of
parameters: one backward pass of the weighted loss follows, in which fused embedding tables move
exactly once.
"""

from ple.balancing.balancer import Balancer
from ple.balancing.cagrad import CAGrad
from ple.balancing.decay import DecayedWeights
from ple.balancing.dwa import DynamicWeightAverage
from ple.balancing.gradnorm import GradNorm
from ple.balancing.gramian import read_outputs, task_gramian
from ple.balancing.mgda import MGDA
from ple.balancing.norm import NormBalance
from ple.balancing.pcgrad import PCGrad
from ple.balancing.static import StaticWeights
from ple.balancing.uncertainty import UncertaintyWeights

__all__ = [
    "MGDA",
    "Balancer",
    "CAGrad",
    "DecayedWeights",
    "DynamicWeightAverage",
    "GradNorm",
    "NormBalance",
    "PCGrad",
    "StaticWeights",
    "UncertaintyWeights",
    "read_outputs",
    "task_gramian",
]
