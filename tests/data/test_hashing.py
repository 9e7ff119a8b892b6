"""The stable hash against a scalar reference and fixed vectors."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.hashing import (
    expected_collision_rate,
    hash_integers,
    hash_strings,
    mix,
    reduce_to_rows,
)

MASK = (1 << 64) - 1


def mix_reference(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hash_reference(text: str) -> int:
    data = text.encode()
    h = mix_reference(len(data))
    for start in range(0, len(data), 8):
        h = mix_reference(h ^ int.from_bytes(data[start : start + 8], "little"))
    return h


def test_mix_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 0, as published with the generator: output i is
    # the finaliser of i times the increment.
    states = (np.arange(3, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mix(states).tolist() == expected


def test_vectors_of_strings_and_integers() -> None:
    # Written down once: a change of these breaks every registered model that hashes.
    strings = ["", "a", "abcdefgh", "abcdefghi", "café", "x" * 40]
    assert [f"{h:016x}" for h in hash_strings(pa.array(strings)).tolist()] == [
        "e220a8397b1dcdaf",
        "5e025f9ade9eaf3e",
        "804d4bcf99e046d6",
        "cbe0b0512e86ab3b",
        "444690a3dd0b7ffd",
        "04bebf64ca85060b",
    ]
    rows = np.empty(4, np.int64)
    hash_integers(np.array([0, 1, -1, 2**62]), 999_999, 1, rows)
    assert rows.tolist() == [883_310, 566_562, 893_943, 2_599]


@given(st.lists(st.text(max_size=40)), st.integers(0, 5))
def test_strings_equal_the_reference(texts: list[str], offset: int) -> None:
    array = pa.array(["skipped"] * offset + texts, pa.string()).slice(offset)
    expected = [hash_reference(text) for text in texts]
    assert hash_strings(array).tolist() == expected
    assert hash_strings(array.cast(pa.large_string())).tolist() == expected


def test_a_null_string_hashes_like_an_empty_one() -> None:
    assert hash_strings(pa.array(["a", None])).tolist() == [hash_reference("a"), hash_reference("")]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(1, 2**32 - 1), st.integers(0, 3))
def test_integers_equal_the_reference(values: list[int], rows: int, offset: int) -> None:
    keys = np.array(values, np.int64)
    out = np.empty_like(keys)
    hash_integers(keys, rows, offset, out)
    assert out.tolist() == [offset + ((mix_reference(v & MASK) >> 32) * rows >> 32) for v in values]
    assert keys.tolist() == values


def test_pieces_longer_than_the_scratch() -> None:
    keys = np.arange(10_000, dtype=np.int64)
    out = keys.copy()
    hash_integers(out, 1 << 20, 0, out)  # in place
    assert out.tolist() == reduce_to_rows(mix(keys.view(np.uint64)), 1 << 20).tolist()
    assert out[9_999] == mix_reference(9_999) >> 32 << 20 >> 32


def test_rows_are_uniform() -> None:
    out = np.empty(200_000, np.int64)
    hash_integers(np.arange(200_000), 1_000, 0, out)
    counts = np.bincount(out, minlength=1_000)
    # Chi-square of 1000 cells: mean 999, deviation 45.
    assert ((counts - 200.0) ** 2 / 200.0).sum() == pytest.approx(999, abs=5 * 45)


def test_expected_collision_rate() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1_000, (200, 500))
    shared = [1 - (np.bincount(r, minlength=1_000) == 1).sum() / 500 for r in rows]
    assert expected_collision_rate(500, 1_000) == pytest.approx(np.mean(shared), abs=0.005)
    assert expected_collision_rate(1, 10) == 0.0
    assert expected_collision_rate(2, 1) == 1.0
