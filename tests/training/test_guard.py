"""Which losses are beyond use, and how the chief's word travels with them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torchrec import KeyedJaggedTensor

from pipeline.data.batch import Batch
from pipeline.training.bad_batch import save_bad_batch
from pipeline.training.guard import BadLossError, LossGuard, Request

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def guard(limit: float | None = None) -> LossGuard:
    return LossGuard(["click", "buy"], limit, torch.device("cpu"))


@pytest.mark.parametrize(
    ("numerators", "limit", "losses"),
    [
        ([NAN, 1.0], None, [NAN, 0.5]),
        ([1.0, INF], None, [0.25, INF]),
        ([-INF, 1.0], 9.0, [-INF, 0.5]),
        ([1.0, 6.0], 2.9, [0.25, 3.0]),
    ],
)
def test_bad_losses(numerators: list[float], limit: float | None, losses: list[float]) -> None:
    with pytest.raises(BadLossError) as caught:
        guard(limit).check(torch.tensor(numerators), torch.tensor([4.0, 2.0]))
    assert list(caught.value.losses.values()) == pytest.approx(losses, nan_ok=True)
    finite = {"click": abs(numerators[0]) < INF, "buy": abs(numerators[1]) < INF}
    assert caught.value.here == [name for name, ok in finite.items() if not ok]


def test_good_losses_and_a_task_without_rows_pass() -> None:
    guard(3.1).check(torch.tensor([1.0, 6.0]), torch.tensor([4.0, 2.0]))
    guard(3.1).check(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]))


def test_the_chiefs_word_travels_with_the_losses_and_between_steps() -> None:
    one = guard()
    one.check(torch.zeros(2), torch.ones(2))
    assert one.agreed == Request.NONE
    one.request = Request.STOP
    one.check(torch.zeros(2), torch.ones(2))
    assert one.agreed == Request.STOP
    one.request = Request.SAVE
    assert one.agree() == Request.SAVE
    with pytest.raises(BadLossError):
        one.check(torch.tensor([NAN, 0.0]), torch.ones(2))
    assert one.agreed == Request.SAVE


def test_a_kept_batch_can_be_read(tmp_path: Path) -> None:
    ids = KeyedJaggedTensor(
        keys=["user", "tags"],
        values=torch.tensor([7, 8, 1, 2, 3]),
        lengths=torch.tensor([1, 1, 3, 0]),
    )
    batch = Batch(
        ids=ids,
        weighted_ids=None,
        dense_BN=torch.tensor([[NAN], [2.0]]),
        labels_BT=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        weights_BT=torch.ones(2, 2),
        rows=2,
        cursor={"epoch": 1, "step": 3},
    )
    about = {"cursor": batch.cursor, "row_groups": {"train/a.parquet": [0, 4]}}
    folder = save_bad_batch(str(tmp_path), 12, 1, batch, about)
    assert folder == str(tmp_path / "bad_batch" / "step-00000012")
    tensors = load_file(Path(folder) / "rank-1.safetensors")
    assert tensors["ids/tags"].tolist() == [1, 2, 3]
    assert tensors["lengths/tags"].tolist() == [3, 0]
    assert tensors["ids/user"].tolist() == [7, 8]
    assert torch.equal(tensors["labels_BT"], batch.labels_BT)
    assert tensors["dense_BN"].isnan().tolist() == [[True], [False]]
    assert json.loads((Path(folder) / "rank-1.json").read_text()) == about
