"""The cluster's nodes: what each has room for, and where the workers of a run may go.

Rules for unlike nodes: workers of one run have one kind of device. GPU workers go to nodes with
GPUs only; where those have different GPUs, ``ray.accelerator`` must say which. Nodes may hold
unequal numbers of workers; the plan of the tables then counts every worker as a node of its own.
"""

import os
from dataclasses import dataclass
from typing import Any

import ray
import torch.distributed as dist

from pipeline.config import ConfigError
from pipeline.config.schema import RayConfig

_ACCELERATOR = "accelerator_type:"
# Enough to be placed beside that accelerator, and as many as there are devices.
_SHARE_OF_ACCELERATOR = 0.001


@dataclass(frozen=True)
class Node:
    """A node that is alive. `accelerator` is Ray's name of its GPUs, such as ``H100``."""

    name: str
    cpus: int
    gpus: int
    accelerator: str | None

    def slots(self, cpus_per_worker: int, device: str) -> int:
        """Workers it has room for when it is empty."""
        by_cpu = self.cpus // cpus_per_worker
        return min(by_cpu, self.gpus) if device == "cuda" else by_cpu


def alive_nodes() -> list[Node]:
    """The nodes of the cluster this process has joined."""
    return [_node(told) for told in ray.nodes() if told["Alive"]]


def check_nodes(nodes: list[Node], config: RayConfig, device: str, workers: int) -> None:
    """Refuses workers that would not find a place, or not the same kind of place.

    Args:
        workers: the fewest with which the run goes on.

    Raises:
        ConfigError: naming the nodes.
    """
    if device == "cuda":
        nodes = _of_one_kind([node for node in nodes if node.gpus], config)
    elif config.accelerator is not None:
        raise ConfigError(
            f"ray.accelerator: {config.accelerator} has no effect on workers without a GPU; leave "
            "it out, or use train.device=cuda"
        )
    slots = {node.name: node.slots(config.cpus_per_worker, device) for node in nodes}
    if sum(slots.values()) < workers:
        each = ", ".join(f"{name} for {count}" for name, count in sorted(slots.items()))
        raise ConfigError(
            f"train.workers: the nodes have room for {sum(slots.values())} of {workers} workers "
            f"with {config.cpus_per_worker} CPU each ({each or 'no node'}); lower train.workers or "
            "ray.cpus_per_worker, or join a larger cluster"
        )


def worker_resources(config: RayConfig, device: str) -> dict[str, float]:
    """What Ray reserves for one worker."""
    found: dict[str, float] = {"CPU": config.cpus_per_worker}
    if device == "cuda":
        found["GPU"] = 1
        if config.accelerator is not None:
            found[_ACCELERATOR + config.accelerator] = _SHARE_OF_ACCELERATOR
    return found


def worker_environment(config: RayConfig) -> dict[str, Any]:
    """The runtime environment of the workers: which network their collectives use."""
    if config.network_interface is None:
        return {}
    name = config.network_interface
    # NCCL takes prefixes unless told otherwise; gloo takes whole names.
    return {"env_vars": {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}}


def even_local_size(local_size: int) -> int:
    """Workers a node for the plan of the tables; collective, called by every worker.

    The number on this node where all nodes have as many, else 1; then, too, TorchRec, which reads
    ``LOCAL_WORLD_SIZE``, is told so.
    """
    sizes: list[int] = [0] * dist.get_world_size()
    # Over gloo: with NCCL the workers of a node would need their devices set by now.
    group = dist.new_group(backend="gloo")
    dist.all_gather_object(sizes, local_size, group=group)
    dist.destroy_process_group(group)
    if len(set(sizes)) == 1:
        return local_size
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    return 1


def _of_one_kind(nodes: list[Node], config: RayConfig) -> list[Node]:
    kinds = sorted({node.accelerator for node in nodes if node.accelerator is not None})
    if config.accelerator is None:
        if len(kinds) > 1:
            raise ConfigError(
                f"ray.accelerator: the nodes have different GPUs ({', '.join(kinds)}) and the "
                "slowest would set the pace of all; name one of them"
            )
        return nodes
    if config.accelerator not in kinds:
        raise ConfigError(
            f"ray.accelerator: no node has {config.accelerator}; the nodes have "
            f"{', '.join(kinds) or 'no GPUs that Ray knows'}"
        )
    return [node for node in nodes if node.accelerator == config.accelerator]


def _node(told: dict[str, Any]) -> Node:
    resources = told["Resources"]
    kinds = [name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)]
    return Node(
        name=told["NodeManagerAddress"] + "/" + told["NodeID"][:6],
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        accelerator=kinds[0] if kinds else None,
    )
