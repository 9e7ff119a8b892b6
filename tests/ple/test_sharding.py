import ple_sharded_worker
import pytest
from torch import multiprocessing


@pytest.mark.slow
def test_two_processes_with_a_mixed_plan_give_the_features_and_logits_of_a_plain_model(tmp_path):
    multiprocessing.spawn(ple_sharded_worker.compare, (2, str(tmp_path / "rendezvous")), nprocs=2)
