"""Runs a function in several real processes joined by gloo on loopback."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_processes(
    function: Callable[..., Any], world_size: int, folder: Path, *args: Any
) -> list[Any]:
    """Calls ``function(rank, world_size, *args)`` in each process; returns what they return."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_entry, (function, world_size, port, str(folder), args), nprocs=world_size)
    return [
        torch.load(folder / f"result-{world_size}-{rank}.pt", weights_only=False)
        for rank in range(world_size)
    ]


def _entry(
    rank: int,
    function: Callable[..., Any],
    world_size: int,
    port: int,
    folder: str,
    args: tuple[Any, ...],
) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    try:
        result = function(rank, world_size, *args)
        torch.save(result, Path(folder) / f"result-{world_size}-{rank}.pt")
        dist.barrier()
    except Exception:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
