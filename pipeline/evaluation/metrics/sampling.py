"""Rows of a whole evaluation in bounded memory: all of them, or those of a seeded sample of keys.

Every key has a level from a hash: level ℓ or above has a share of 2^−ℓ of all keys. A worker that
holds too many rows drops the keys of the lowest level. At the end all workers agree on the lowest
level whose rows, of all workers together, are not too many: what is left depends on the rows alone,
not on their order nor on the number of workers, and a key has all of its rows or none (distinct
sampling: Gibbons, VLDB 2001).

B rows of a batch, C columns, N rows held, W workers.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_LEVELS = 54
_SEED = 0x5DEECE66D
_SLACK = 1.25  # rows held beyond the capacity before they are thinned


class SampledRows:
    """Keyed rows, at most ``capacity`` over all workers in the end, and of one worker on the way.

    Held are 9 + 4·C bytes a row (key, level, float32 columns), at most 1.25 times the capacity, and
    as much again while rows are dropped.

    Args:
        columns: C, float32 values of a row; model outputs and labels are float32.
        capacity: rows.
        device: of the batches.
    """

    def __init__(self, columns: int, capacity: int, device: torch.device | str) -> None:
        self.capacity = capacity
        self._columns, self._device = columns, device
        self.reset()

    @property
    def max_bytes(self) -> int:
        """Bytes held at most between two batches."""
        return round(_SLACK * self.capacity) * (9 + 4 * self._columns)

    def reset(self) -> None:
        self._counts_L = torch.zeros(_LEVELS, dtype=torch.int64, device=self._device)
        self._chunks: list[tuple[Tensor, Tensor, Tensor]] = []
        self._held = 0
        self.level = 0

    @property
    def share(self) -> float:
        """Share of keys that are kept; 1 = every row is here."""
        return float(2.0**-self.level)

    def add(self, keys_B: Tensor, columns_CB: Sequence[Tensor], counted_B: Tensor) -> None:
        """Takes the counted rows of a batch. Waits for the device only when rows are dropped."""
        level_B = level_of(keys_B)
        self._counts_L.index_add_(0, level_B, counted_B.long())
        # Rows that do not count lie below every level and go when rows are next dropped.
        level_B = torch.where(counted_B, level_B, -1).to(torch.int8)
        values_CB = torch.stack([column_B.float() for column_B in columns_CB])
        self._chunks.append((keys_B.clone(), level_B, values_CB))
        self._held += keys_B.shape[0]
        if self._held > _SLACK * self.capacity:
            level_N = self._joined()[1]
            counts_L = torch.bincount(level_N[level_N >= 0].long(), minlength=_LEVELS)
            self._keep_from(max(self.level, _lowest(counts_L, self.capacity)))

    def merge(self, process_group: dist.ProcessGroup | None, world: int) -> None:
        """Agrees with all workers on what is kept; the rows stay where they are."""
        if world > 1:
            dist.all_reduce(self._counts_L, group=process_group)
        self._keep_from(_lowest(self._counts_L, self.capacity))

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """(keys_N, values_CN) of this worker, after :meth:`merge`."""
        keys_N, _, values_CN = self._joined()
        return keys_N, values_CN

    def _keep_from(self, level: int) -> None:
        self.level = level
        keys_N, level_N, values_CN = self._joined()
        kept = level_N >= level
        self._chunks = [(keys_N[kept], level_N[kept], values_CN[:, kept])]
        self._held = int(self._chunks[0][0].shape[0])

    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        if len(self._chunks) != 1:
            empty = (
                torch.zeros(0, dtype=torch.int64, device=self._device),
                torch.zeros(0, dtype=torch.int8, device=self._device),
                torch.zeros(self._columns, 0, device=self._device),
            )
            keys, levels, values = zip(*(self._chunks or [empty]), strict=True)
            self._chunks = [(torch.cat(keys), torch.cat(levels), torch.cat(values, dim=1))]
        return self._chunks[0]


def level_of(keys_B: Tensor) -> Tensor:
    """Level of each key: ℓ with probability 2^−(ℓ+1)."""
    uniform_B = (mixed(keys_B) & ((1 << 53) - 1)).clamp(min=1).double()
    _, exponent_B = torch.frexp(uniform_B)  # in [2^(e−1), 2^e) of 2^53
    return (53 - exponent_B).long()


def mixed(keys_B: Tensor) -> Tensor:
    """A 64-bit hash of int64 keys: the finaliser of SplitMix64 (see pipeline.data.hashing)."""
    z_B = (keys_B ^ _SEED) + _signed(0x9E3779B97F4A7C15)
    z_B = (z_B ^ _shifted(z_B, 30)) * _signed(0xBF58476D1CE4E5B9)
    z_B = (z_B ^ _shifted(z_B, 27)) * _signed(0x94D049BB133111EB)
    return z_B ^ _shifted(z_B, 31)


def brought_together(
    keys_N: Tensor, values_CN: Tensor, process_group: dist.ProcessGroup | None, world: int
) -> tuple[Tensor, Tensor]:
    """All rows of a key on one worker, whichever had them: each sends away what is others'."""
    if world == 1:
        return keys_N, values_CN
    owner_N = (mixed(keys_N) & 0xFFFFFFFF) % world
    order_N = torch.argsort(owner_N)
    sent_W = torch.bincount(owner_N, minlength=world)
    received_W = torch.empty_like(sent_W)
    dist.all_to_all_single(received_W, sent_W, group=process_group)
    sent, received = sent_W.tolist(), received_W.tolist()
    own_keys_N = keys_N.new_empty(sum(received))
    dist.all_to_all_single(own_keys_N, keys_N[order_N], received, sent, group=process_group)
    own_values_NC = values_CN.new_empty(sum(received), values_CN.shape[0])
    values_NC = values_CN[:, order_N].T.contiguous()
    dist.all_to_all_single(own_values_NC, values_NC, received, sent, group=process_group)
    return own_keys_N, own_values_NC.T


def gathered(values_CN: Tensor, process_group: dist.ProcessGroup | None, world: int) -> Tensor:
    """The rows of all workers, on each of them, in the order of ranks."""
    if world == 1:
        return values_CN
    rank = dist.get_rank(process_group)
    sizes_W = torch.zeros(world, dtype=torch.int64, device=values_CN.device)
    sizes_W[rank] = values_CN.shape[1]
    dist.all_reduce(sizes_W, group=process_group)
    first = int(sizes_W[:rank].sum())
    all_CN = values_CN.new_zeros(values_CN.shape[0], int(sizes_W.sum()))
    all_CN[:, first : first + values_CN.shape[1]] = values_CN
    dist.all_reduce(all_CN, group=process_group)
    return all_CN


def _lowest(counts_L: Tensor, capacity: int) -> int:
    """The lowest level from which on there are at most ``capacity`` rows."""
    from_level_L = counts_L.flip(0).cumsum(0).flip(0)
    return int((from_level_L > capacity).sum())


def _shifted(z_B: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own keeps the sign."""
    return (z_B >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64)
