"""Where workers may go on clusters of unlike nodes."""

import os
from pathlib import Path

import pytest
from processes import run_processes

from pipeline.cluster.nodes import (
    Node,
    check_nodes,
    even_local_size,
    worker_environment,
    worker_resources,
)
from pipeline.config import ConfigError
from pipeline.config.schema import RayConfig

CPU = [Node("a", 3, 0, None), Node("b", 3, 0, None)]
GPU = [Node("a", 8, 4, "H100"), Node("b", 8, 4, "H100"), Node("head", 64, 0, None)]
MIXED = [*GPU, Node("c", 8, 8, "A100")]


def ray(**settings: object) -> RayConfig:
    return RayConfig.model_validate(settings)


def test_room_is_counted_node_by_node() -> None:
    check_nodes(CPU, ray(), "cpu", 6)
    check_nodes(CPU, ray(cpus_per_worker=2), "cpu", 2)
    # Six CPUs in all, yet no third place for a worker of two.
    expected = r"room for 2 of 3 workers with 2 CPU each \(a for 1, b for 1\)"
    with pytest.raises(ConfigError, match=expected):
        check_nodes(CPU, ray(cpus_per_worker=2), "cpu", 3)


def test_gpu_workers_go_to_gpu_nodes_only() -> None:
    check_nodes(GPU, ray(), "cuda", 8)
    with pytest.raises(ConfigError, match=r"room for 8 of 9 .*\(a for 4, b for 4\)"):
        check_nodes(GPU, ray(), "cuda", 9)
    # Three CPUs a worker: two of a node's four GPUs stay idle.
    with pytest.raises(ConfigError, match=r"room for 4 of 8 .*\(a for 2, b for 2\)"):
        check_nodes(GPU, ray(cpus_per_worker=3), "cuda", 8)


def test_unlike_gpus_are_refused_until_one_kind_is_named() -> None:
    with pytest.raises(ConfigError, match=r"different GPUs \(A100, H100\).*name one"):
        check_nodes(MIXED, ray(), "cuda", 8)
    check_nodes(MIXED, ray(accelerator="H100"), "cuda", 8)
    with pytest.raises(ConfigError, match=r"room for 8 of 9 .*\(c for 8\)"):
        check_nodes(MIXED, ray(accelerator="A100"), "cuda", 9)
    with pytest.raises(ConfigError, match="no node has T4; the nodes have A100, H100"):
        check_nodes(MIXED, ray(accelerator="T4"), "cuda", 1)
    with pytest.raises(ConfigError, match="no effect on workers without a GPU"):
        check_nodes(MIXED, ray(accelerator="T4"), "cpu", 1)


def test_a_worker_reserves_its_cpus_its_gpu_and_its_kind() -> None:
    assert worker_resources(ray(cpus_per_worker=2), "cpu") == {"CPU": 2}
    assert worker_resources(ray(), "cuda") == {"CPU": 1, "GPU": 1}
    wanted = worker_resources(ray(accelerator="H100"), "cuda")
    assert wanted == {"CPU": 1, "GPU": 1, "accelerator_type:H100": 0.001}


def test_the_network_of_collectives_is_set_for_gloo_and_nccl() -> None:
    assert worker_environment(ray()) == {}
    assert worker_environment(ray(network_interface="eth1")) == {
        "env_vars": {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"}
    }


def local_sizes(rank: int, world_size: int, sizes: list[int]) -> tuple[int, str]:
    return even_local_size(sizes[rank]), os.environ["LOCAL_WORLD_SIZE"]


@pytest.mark.slow
def test_unequal_nodes_count_every_worker_as_a_node(tmp_path: Path) -> None:
    assert run_processes(local_sizes, 2, tmp_path, [2, 2]) == [(2, "2"), (2, "2")]
    assert run_processes(local_sizes, 2, tmp_path, [2, 1]) == [(1, "1"), (1, "1")]
