"""A sharded ranker with its optimizers as a training state, trained on drawn ids."""

from typing import Any

import torch
from torch import Tensor

ROWS, DIMS = (40, 300, 17, 1001), (8, 4, 16, 4)
BATCH = 48
MAP_ROWS, MAP_BUCKETS, MAP_INTERVAL = 240, 12, 4


class State:
    """A sharded ranker with its optimizers, as a training state."""

    def __init__(self, types: tuple[str, ...], seed: int) -> None:
        import torch.distributed as dist

        import ple
        from pipeline.config.optimizers import TableOptimizerConfig
        from pipeline.config.sharding import ShardingConfig
        from pipeline.training.optimizers import copied_tables, dense_parameters
        from pipeline.training.sharding import shard_ranker

        torch.manual_seed(seed)
        tables = [
            ple.FeatureTable(f"t{i}", f"f{i}", rows, dim)
            for i, (rows, dim) in enumerate(zip(ROWS, DIMS, strict=True))
        ]
        self.mapped = types == ("mapped",)
        if self.mapped:
            map_ = ple.IdMap("frequency", MAP_INTERVAL, MAP_BUCKETS)
            tables = [ple.FeatureTable("t0", "f0", MAP_ROWS, 8, map=map_)]
            types = ("row_wise",)
        world_size = dist.get_world_size()
        self.dmp, plan = shard_ranker(
            ple.Ranker(
                ple.FeatureEmbeddings(tables, device="meta"),
                0,
                [ple.LevelSpec(1, (1, 1), (8,))],
                [(), ()],
            ),
            sharding=ShardingConfig(types=types),
            # The state of row-wise Adagrad is a number a row, that of Adagrad a row a row.
            optimizer=TableOptimizerConfig(
                kind="adagrad" if types == ("column_wise",) else "rowwise_adagrad",
                learning_rate=0.05,
            ),
            batch_size=BATCH // world_size,
            device=torch.device("cpu"),
            local_world_size=world_size,
            seed=seed,
        )
        assert {placed.sharding_type for placed in plan.tables} == set(types)
        self.plan = plan.to_tree()
        names = {id(p): name for name, p in self.dmp.named_parameters()}
        dense, copied = dense_parameters(self.dmp), copied_tables(self.dmp)
        self.optimizers = {"dense_optimizer": torch.optim.Adam(dense, lr=0.01)}
        if copied:
            from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

            self.optimizers["copied_optimizer"] = RowWiseAdagrad(copied, lr=0.05)
        self.names = names

    def train(self, first: int, steps: int) -> None:
        import torch.distributed as dist
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        rank, world_size = dist.get_rank(), dist.get_world_size()
        for step in range(first, first + steps):
            generator = torch.Generator().manual_seed(step)
            sizes = (10**6,) if self.mapped else ROWS
            # A few ids come again and again, as in real logs.
            ids_FB = torch.stack(
                [(torch.rand(BATCH, generator=generator) ** 4 * size).long() for size in sizes]
            )
            labels_BT = (torch.rand(BATCH, 2, generator=generator) < 0.4).float()
            share = slice(BATCH * rank // world_size, BATCH * (rank + 1) // world_size)
            ids_FB, labels_BT = ids_FB[:, share], labels_BT[share]
            ids = KeyedJaggedTensor(
                keys=[f"f{i}" for i in range(len(sizes))],
                values=ids_FB.reshape(-1),
                lengths=torch.ones(ids_FB.numel(), dtype=torch.int32),
            )
            logits_BT = self.dmp(ids, None, torch.empty(ids_FB.size(1), 0))
            for optimizer in self.optimizers.values():
                optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logits_BT, labels_BT).backward()
            for optimizer in self.optimizers.values():
                optimizer.step()

    def tensors(self) -> dict[str, Any]:
        parts = {
            part: {
                self.names[id(p)]: dict(optimizer.state[p])
                for group in optimizer.param_groups
                for p in group["params"]
            }
            for part, optimizer in self.optimizers.items()
        }
        fused = self.dmp.fused_optimizer.state_dict()["state"]
        return {
            "model": self.dmp.state_dict(),
            **({"fused_optimizer": fused} if fused else {}),
            **parts,
        }

    def load_tensors(self, tree: dict[str, Any]) -> None:
        self.dmp.load_state_dict(tree["model"])

    def shared(self) -> dict[str, Any]:
        return {}

    def own(self) -> dict[str, Any]:
        return {"maps": {name: map_.collected() for name, map_ in self._maps().items()}}

    def load_plain(self, shared: dict[str, Any], own: list[dict[str, Any]]) -> None:
        for name, map_ in self._maps().items():
            map_.load_collected([part["maps"][name] for part in own])

    def _maps(self) -> dict[str, Any]:
        from ple.managed_ids import ManagedIds

        return {n: m for n, m in self.dmp.module.named_modules() if isinstance(m, ManagedIds)}

    def whole(self) -> dict[str, Tensor]:
        return put_together(self.tensors())


def put_together(tree: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor of nested dicts, whole, on every worker; by torch and not by what is tested."""
    import torch.distributed as dist
    from torch.distributed._shard.sharded_tensor import ShardedTensor
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    parts = []
    for name, value in flatten_state_dict(tree)[0].items():
        if isinstance(value, ShardedTensor):
            for shard in value.local_shards():
                place = shard.metadata.shard_offsets
                parts.append((name, tuple(value.size()), place, shard.tensor.clone()))
        else:
            whole = value.detach().clone()
            parts.append((name, tuple(whole.size()), [0] * whole.dim(), whole))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, parts)
    # What every worker has a copy of is taken from this one.
    others = [p for rank, p in enumerate(gathered) if rank != dist.get_rank()]
    found: dict[str, Tensor] = {}
    for name, size, place, part in (p for of_rank in [*others, parts] for p in of_rank):
        whole = found.setdefault(name, torch.full(size, -1, dtype=part.dtype))
        region = tuple(slice(a, a + n) for a, n in zip(place, part.shape, strict=True))
        whole[region] = part
    return found


def checkpoints_of(folder: str, name: str, state: State) -> Any:
    from pipeline.checkpoint.checkpoints import Checkpoints
    from pipeline.config.checkpoint import CheckpointConfig

    return Checkpoints(f"{folder}/{name}", CheckpointConfig(), {"of": "this"}, plan=state.plan)
