"""The section `failures`, and `train.min_workers`."""

import pytest
from pydantic import ValidationError

from pipeline.config.failures import MAX_SKIPPED_BATCHES, FailuresConfig
from pipeline.config.schema import TrainConfig


def test_how_many_batches_may_be_skipped() -> None:
    assert FailuresConfig().skip_limit == 0
    assert FailuresConfig(bad_loss="skip_batch").skip_limit == MAX_SKIPPED_BATCHES
    assert FailuresConfig(bad_loss="skip_batch", max_skipped_batches=3).skip_limit == 3
    with pytest.raises(ValidationError, match="no effect with `bad_loss: stop`"):
        FailuresConfig(max_skipped_batches=3)


@pytest.mark.parametrize("workers", ["auto", 1, 2])
def test_fewest_workers_are_fewer_than_the_workers(workers: int | str) -> None:
    with pytest.raises(ValidationError, match="`min_workers` must be below `workers`"):
        TrainConfig.model_validate({"workers": workers, "min_workers": 2})
    assert TrainConfig(workers=3, min_workers=2).min_workers == 2
