"""The map of ids: who holds a row after each interval, against a plain Python account."""

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor
from torchrec.sparse.jagged_tensor import JaggedTensor

from ple import FeatureEmbeddings, FeatureTable, IdMap
from ple.managed_ids import FREE, ManagedIds

ROWS, BUCKETS = 24, 3
BUCKET_ROWS = ROWS // BUCKETS


def jagged(ids: list[int]) -> dict[str, JaggedTensor]:
    return {"t": JaggedTensor(torch.tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int64))}


def rows_of(map_: ManagedIds, ids: list[int]) -> list[int]:
    return map_.remap(jagged(ids))["t"].values().tolist()


class Account:
    """What the documentation says, id by id: the holders of each bucket and what is known of them.

    A new id takes a row if fewer than all rows but one are held, or from the holder with the lowest
    score where its own is higher; the strongest new ids first.
    """

    def __init__(self, eviction: str) -> None:
        self.eviction = eviction
        self.count: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def score(self, count: int, last: int, now: int) -> float:
        if self.eviction == "frequency":
            return count
        if self.eviction == "recency":
            return last
        return count / (now - last + 1)

    def change(self, seen: list[list[int]], now: int) -> None:
        new_count: dict[int, int] = {}
        new_last: dict[int, int] = {}
        for step, ids in enumerate(seen, start=now - len(seen) + 1):
            for i in ids:
                new_count[i] = new_count.get(i, 0) + 1
                new_last[i] = step
        for i in set(new_count) & set(self.count):
            self.count[i] += new_count.pop(i)
            self.last[i] = new_last.pop(i)
        for bucket in range(BUCKETS):
            # Ties: holders stay, the smaller ids first; of new ids the more frequent come first.
            ranked = [
                (-self.score(self.count[i], self.last[i], now), 0, 0, i)
                for i in self.count
                if i % BUCKETS == bucket
            ] + [
                (-self.score(new_count[i], new_last[i], now), 1, -new_count[i], i)
                for i in new_count
                if i % BUCKETS == bucket
            ]
            for place, (_, is_new, _, i) in enumerate(sorted(ranked)):
                if place < BUCKET_ROWS - 1 and is_new:
                    self.count[i], self.last[i] = new_count[i], new_last[i]
                elif place >= BUCKET_ROWS - 1 and not is_new:
                    del self.count[i], self.last[i]


@pytest.mark.parametrize("eviction", ["frequency", "recency", "frequency_recency"])
def test_holders_follow_the_rule(eviction: str) -> None:
    rng = np.random.default_rng(3)
    map_ = ManagedIds(ROWS, BUCKET_ROWS, BUCKETS, eviction, interval=2)
    account = Account(eviction)
    row_of: dict[int, int] = {}
    for step in range(1, 31, 2):
        seen = [(rng.zipf(1.4, 30) % 97 + 3 * step).tolist() for _ in range(2)]
        for ids in seen:
            map_.profile(jagged(ids))
        account.change(seen, step + 1)
        held = set(map_.slot_ids[map_.slot_ids != FREE].tolist())
        assert held == set(account.count)
        everything = sorted({i for ids in seen for i in ids} | held)
        rows = dict(zip(everything, rows_of(map_, everything), strict=True))
        assert len({rows[i] for i in held}) == len(held)
        for i in everything:
            assert rows[i] // BUCKET_ROWS == i % BUCKETS
            is_unknown_row = rows[i] % BUCKET_ROWS == BUCKET_ROWS - 1
            assert is_unknown_row == (i not in held), i
        # An id keeps its row for as long as it is held; rows that changed hands are reported.
        replaced = map_.evict()
        assert replaced is not None
        assert map_.evict() is None
        for i in held & set(row_of):
            assert rows[i] == row_of[i]
            assert rows[i] not in replaced.tolist()
        assert {rows[i] for i in held - set(row_of)} == set(replaced.tolist())
        row_of = {i: rows[i] for i in held}


def test_evaluation_moves_nothing() -> None:
    map_ = ManagedIds(ROWS, BUCKET_ROWS, BUCKETS, "frequency", interval=1).eval()
    before = {name: value.clone() for name, value in map_.state_dict().items()}
    rows = map_(jagged([5, 6, 7]))["t"].values().tolist()
    assert rows == [3 * 8 - 1, 8 - 1, 2 * 8 - 1]
    assert map_.evict() is None
    for name, value in map_.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_saved_map_goes_on_whole_or_cut_by_buckets() -> None:
    map_ = ManagedIds(ROWS, BUCKET_ROWS, BUCKETS, "frequency", interval=1)
    map_.profile(jagged(list(range(40))))
    ids = list(range(50))
    expected = rows_of(map_, ids)
    copy = ManagedIds(ROWS, BUCKET_ROWS, BUCKETS, "frequency", interval=1)
    rows_of(copy, ids)  # an index of the empty map, which loading must drop
    copy.load_state_dict(map_.state_dict())
    assert rows_of(copy, ids) == expected
    for bucket in range(BUCKETS):
        first = bucket * BUCKET_ROWS
        part = map_.rebuild_with_output_id_range((first, first + BUCKET_ROWS), [])
        own = [i for i in range(40) if i % BUCKETS == bucket]
        part.profile(jagged(own))
        assert rows_of(part, own) == [expected[i] for i in own]
    assert int(map_.open_slots()) == 0
    assert int(ManagedIds(ROWS, BUCKET_ROWS, BUCKETS, "frequency", 1).open_slots()) == 21


def test_embeddings_with_and_without_maps_keep_their_order() -> None:
    tables = [
        FeatureTable("a", "a", 9, 4),
        FeatureTable("m", "m", 8, 2, map=IdMap(interval=1, buckets=2)),
        FeatureTable("b", "b", 5, 3),
        FeatureTable("n", "n", 8, 2, pooling="mean", map=IdMap(interval=1, buckets=2)),
    ]
    torch.manual_seed(0)
    embeddings = FeatureEmbeddings(tables)
    big = 2**62 + 10
    ids = KeyedJaggedTensor(
        ["a", "m", "b", "n"],
        torch.tensor([1, 2, big, 7, 3, 4, big, 6, 8]),
        lengths=torch.tensor([1, 1, 1, 1, 1, 1, 0, 3]),
    )
    embeddings(ids, None)  # the ids get their rows
    embeddings.eval()
    weights = {name.split(".")[-2]: value for name, value in embeddings.named_parameters()}
    assert not weights["m"].any()
    with torch.no_grad():
        for name in "mn":
            weights[name].copy_(torch.randn(8, 2))
    module = embeddings.managed[0]._managed_collision_collection._managed_collision_modules
    m, n = rows_of(module["m"], [big, 7]), rows_of(module["n"], [big, 6, 8])
    assert len(set(n)) == 3
    assert all(row % 4 != 3 for row in m + n)
    a, b, w = weights["a"], weights["b"], weights
    first = torch.cat([a[1], w["m"][m[0]], b[3], torch.zeros(2)])
    second = torch.cat([a[2], w["m"][m[1]], b[4], w["n"][n].mean(0)])
    expected = torch.stack([first, second])
    torch.testing.assert_close(embeddings(ids, None), expected)


def test_ids_are_needed_where_there_is_a_map() -> None:
    embeddings = FeatureEmbeddings([FeatureTable("m", "m", 8, 2, map=IdMap(buckets=2))])
    with pytest.raises(ValueError, match="`ids` is None"):
        embeddings(None, None)


def test_tables_that_cannot_have_a_map() -> None:
    with pytest.raises(ValueError, match="'m': 9 rows cannot be cut into 2 buckets"):
        FeatureEmbeddings([FeatureTable("m", "m", 9, 2, map=IdMap(buckets=2))])
    with pytest.raises(ValueError, match="takes no weighted ids"):
        FeatureEmbeddings([FeatureTable("m", "m", 8, 2, weighted=True, map=IdMap(buckets=2))])
