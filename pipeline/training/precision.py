"""The precision of the dense part's matrix products in training."""

from typing import Literal

import torch

import ple
from pipeline.training.errors import TrainingError


def set_precision(
    ranker: ple.Ranker, precision: Literal["fp32", "bf16"], device: torch.device
) -> None:
    """Makes the ranker train with products of this precision.

    Raises:
        TrainingError: the device would compute bf16 by float32 in small steps, many times slower.
    """
    if precision == "fp32":
        return
    if not computes_bf16(device):
        raise TrainingError(
            f"train.precision: this machine's {device.type} does not compute in bf16; use fp32"
        )
    ranker.training_dtype = torch.bfloat16


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Under names such as avx512_bf16 and amx_bf16.
    return any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
