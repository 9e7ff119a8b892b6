"""Plain trees as bytes: what goes in comes out, and what is not plain does not go in."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoint.trees import decode_tree, encode_tree, join_state, split_state


def test_everything_plain_comes_back_as_it_was() -> None:
    tree = {
        "none": None,
        "flags": [True, False],
        "numbers": (1, -2.5, 10**40, 0.1 + 0.2, math.inf),
        "text": 'é "quoted" $',
        "nested": {"a": {"b": [{"c": ()}]}, "": {}},
        "by number": {0: "zero", 1: {2: "two"}},
        "$": {"$": "tensor", "name": "0"},
        "arrays": {
            "f64": np.linspace(0, 1, 7),
            "strided": np.arange(12).reshape(3, 4)[:, ::2],
            "bool": np.array([True, False]),
            "empty": np.zeros((0, 3), np.float32),
            "u32": np.array([1, 2**32 - 1], np.uint32),
        },
        "scalars": [np.int64(7), np.float32(0.1), np.bool_(True)],
        "python's generator": random.Random(3).getstate(),
        "numpy's generator": np.random.default_rng(3).bit_generator.state,
        "torch's generator": torch.Generator().manual_seed(3).get_state(),
        "halves": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        "alone": torch.tensor(4.0),
        "view": torch.arange(12).reshape(3, 4)[1:, 2:],
    }
    back = decode_tree(encode_tree(tree))
    assert list(back) == list(tree)
    compare(back, tree)
    assert math.isnan(decode_tree(encode_tree([math.nan]))[0])
    generator = random.Random()
    generator.setstate(back["python's generator"])
    assert generator.random() == random.Random(3).random()


def compare(got: Any, expected: Any) -> None:
    assert type(got) is type(expected), (got, expected)
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    elif isinstance(expected, np.ndarray | np.generic):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got, expected)
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            compare(got[key], value)
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            compare(one, other)
    else:
        assert got == expected


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"a": [0, {"b": object()}]}, r"\.a\[1\]\.b: a object"),
        ({"a": {1: print}}, r"\.a\[1\]: a builtin"),
        ({"x": np.array(["text"])}, r"\.x: an array of <U4"),
        ({"x": b"bytes"}, r"\.x: a bytes"),
        ({"x": {1, 2}}, r"\.x: a set"),
    ],
)
def test_what_is_not_plain_is_named(tree: Any, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        encode_tree(tree)


def test_bytes_of_something_else_are_refused() -> None:
    whole = encode_tree({"a": torch.arange(5)})
    for other in (b"", b"{}", whole[:-1], whole[1:], b"\x00" * 64):
        with pytest.raises(ValueError, match="not a plain tree"):
            decode_tree(other)


def test_a_state_is_parted_into_tensors_and_the_rest_and_put_together() -> None:
    state = {
        "state": {"w": {"step": torch.tensor(3), "exp_avg": torch.ones(2)}, "empty": {}},
        "param_groups": [{"lr": 0.1, "params": ["w"]}],
        "count": 4,
    }
    tensors, rest = split_state(state)
    assert set(tensors) == {"state"}
    assert set(tensors["state"]) == {"w"}
    assert rest == {"state": {"empty": {}}, "param_groups": state["param_groups"], "count": 4}
    back = join_state(tensors, rest)
    compare(dict(sorted(back.items())), dict(sorted(state.items())))
