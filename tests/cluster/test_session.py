"""How `auto` becomes numbers, and what a cluster has no room for; a real Ray with made-up sizes."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from pipeline.cluster.session import (
    ClusterError,
    Placement,
    cuda_stack_missing,
    ray_cluster,
    resolve_placement,
    waiting_for,
)
from pipeline.config import ConfigError, Experiment
from pipeline.config.load import parse_experiment
from pipeline.config.schema import RayConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=6,
        num_gpus=1,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def experiment(**train: Any) -> Experiment:
    return parse_experiment(
        {
            "name": "unit",
            "data": {"path": "data", "streams": 4},
            "features": {"numeric": [{"name": "age"}]},
            "tasks": [{"name": "click"}],
            "model": {"levels": [{"shared_experts": 1, "task_experts": 1, "hidden": [4]}]},
            "train": {"device": "cpu", **train},
            "ray": {"address": "somewhere:1", "cpus_per_worker": train.pop("cpus", 1)},
        }
    )


def test_auto_takes_one_worker_per_cpu_up_to_the_streams() -> None:
    assert resolve_placement(experiment()) == Placement(4, "cpu", 1, 1)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"workers": 5}, "5 workers share 4 streams"),
        ({"workers": 4, "cpus": 2}, "need 8 CPUs, Ray has 6"),
    ],
)
def test_too_many_workers_are_refused(train: dict[str, Any], expected: str) -> None:
    cpus = train.pop("cpus", 1)
    tree = experiment(**train).model_dump(mode="json")
    tree["ray"]["cpus_per_worker"] = cpus
    with pytest.raises(ConfigError, match=expected):
        resolve_placement(parse_experiment(tree))


def test_workers_that_cannot_share_the_buckets_are_refused() -> None:
    tree = experiment(workers=3).model_dump(mode="json")
    feature = {"name": "item", "encoder": "zero_collision", "rows": 64}
    tree["features"] = {"categorical": [feature]}
    expected = r"item\.map_buckets: 16 buckets cannot be shared evenly by 3 workers; set it to a"
    with pytest.raises(ConfigError, match=expected):
        resolve_placement(parse_experiment(tree))
    tree["features"] = {"categorical": [feature | {"map_buckets": 3, "rows": 66}]}
    assert resolve_placement(parse_experiment(tree)).workers == 3


@pytest.mark.skipif(cuda_stack_missing() is None, reason="the CUDA stack is installed")
def test_a_gpu_without_the_cuda_stack_is_left_alone() -> None:
    assert resolve_placement(experiment(device="auto")).device == "cpu"
    with pytest.raises(ConfigError, match="install the CUDA stack"):
        resolve_placement(experiment(device="cuda"))


def test_a_busy_cluster_is_said_to_be_waited_for() -> None:
    assert waiting_for(Placement(6, "cpu", 1, 1)) is None
    assert waiting_for(Placement(7, "cpu", 1, 1)) == "waiting for 7 CPUs, the cluster has 6 free"


def test_ray_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(ClusterError, match=r"did not start on this machine: The current .*: try ag"),
        ray_cluster(RayConfig()),
    ):
        raise AssertionError("not reached")
