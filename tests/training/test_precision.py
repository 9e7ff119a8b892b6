import pytest
import torch

import ple
from pipeline.training import precision
from pipeline.training.errors import TrainingError
from pipeline.training.precision import computes_bf16, set_precision


def small_ranker() -> ple.Ranker:
    return ple.Ranker(None, 3, [ple.LevelSpec(1, (1,), (4,))], [()])


def test_fp32_leaves_the_ranker_as_it_is() -> None:
    ranker = small_ranker()
    set_precision(ranker, "fp32", torch.device("cpu"))
    assert ranker.training_dtype == torch.float32


@pytest.mark.parametrize(
    ("capabilities", "can"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
    ],
)
def test_what_the_cpu_says_decides(monkeypatch, capabilities, can) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert computes_bf16(torch.device("cpu")) is can


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda device: False)
    with pytest.raises(TrainingError, match=r"train\.precision: this machine's cpu does not"):
        set_precision(small_ranker(), "bf16", torch.device("cpu"))


def test_bf16_is_set_where_it_is_native(monkeypatch) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda device: True)
    ranker = small_ranker()
    set_precision(ranker, "bf16", torch.device("cpu"))
    assert ranker.training_dtype == torch.bfloat16
