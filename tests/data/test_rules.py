"""Rules over columns against pandas and against Arrow's three-valued logic."""

import operator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.config.expressions import (
    And,
    Column,
    Comparison,
    Not,
    Rule,
    columns_of,
    parse_rule,
)
from pipeline.data.rules import shown_values, truth

RULES = [
    "click",
    "~click",
    "click & like",
    "click & ~hate",
    "watch > 5",
    "rating >= 4 | share",
    "rating == 3 & watch <= 2.5 | hate & ~(like | share)",
    "~(click & rating != 2) | watch < 1",
]
FLAGS = ("click", "like", "hate", "share")


def table(rows: int, nulls: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    columns = {name: rng.integers(0, 2, rows).astype(float) for name in FLAGS}
    columns |= {"watch": rng.exponential(4, rows), "rating": rng.integers(1, 6, rows).astype(float)}
    if nulls:
        for values in columns.values():
            values[rng.random(rows) < 0.3] = np.nan
    return columns


@pytest.mark.parametrize("text", RULES)
def test_complete_columns_as_pandas_has_it(text: str) -> None:
    columns = table(500, nulls=False)
    frame = pd.DataFrame({k: v.astype(bool) if k in FLAGS else v for k, v in columns.items()})
    # In pandas & and | bind before comparisons, so they are set in brackets there.
    words = text
    for name in ("watch", "rating"):
        for sign in ("<=", ">=", "==", "!=", "<", ">"):
            words = pd.Series([words]).str.replace(
                rf"{name} {sign} ([\d.]+)", rf"({name} {sign} \1)", regex=True
            )[0]
    expected = frame.eval(words, engine="python").to_numpy()
    value = truth(parse_rule(text), columns)
    np.testing.assert_array_equal(value.holds_B, expected)
    np.testing.assert_array_equal(value.fails_B, ~expected)
    assert 0 < expected.mean() < 1


def arrow(rule: Rule, columns: dict[str, pa.Array]) -> pa.Array:
    if isinstance(rule, Column):
        return pc.equal(columns[rule.name], 1.0)
    if isinstance(rule, Comparison):
        names = {
            "<": "less",
            "<=": "less_equal",
            ">": "greater",
            ">=": "greater_equal",
            "==": "equal",
            "!=": "not_equal",
        }
        return pc.call_function(names[rule.operator], [columns[rule.name], pa.scalar(rule.number)])
    if isinstance(rule, Not):
        return pc.invert(arrow(rule.rule, columns))
    join = pc.and_kleene if isinstance(rule, And) else pc.or_kleene
    value, *rest = [arrow(part, columns) for part in rule.rules]
    for part in rest:
        value = join(value, part)
    return value


@pytest.mark.parametrize("text", RULES)
def test_nulls_as_arrow_has_them(text: str) -> None:
    columns = table(2000, nulls=True)
    rule = parse_rule(text)
    expected = arrow(rule, {k: pa.array(v, from_pandas=True) for k, v in columns.items()})
    value = truth(rule, columns)
    np.testing.assert_array_equal(value.holds_B, expected.fill_null(False).to_numpy(False))
    np.testing.assert_array_equal(value.unknown_B, expected.is_null().to_numpy(False))
    assert value.unknown_B.any()


def test_what_is_neither_0_nor_1_is_unknown() -> None:
    value = truth(parse_rule("click"), {"click": np.array([0.0, 1.0, 2.0, 0.5, np.nan])})
    assert value.unknown_B.tolist() == [False, False, True, True, True]


def test_a_row_in_words() -> None:
    rule = parse_rule("click & rating > 3 | click")
    columns = {"click": np.array([0.0, 1.0]), "rating": np.array([4.5, np.nan])}
    assert columns_of(rule) == ("click", "rating")
    assert shown_values(rule, columns, 1) == "click = 1, rating = null or NaN"


def test_comparisons_are_those_of_python() -> None:
    signs = {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "==": operator.eq,
        "!=": operator.ne,
    }
    values = np.array([1.0, 2.0, 3.0])
    for sign, function in signs.items():
        got = truth(parse_rule(f"n {sign} 2"), {"n": values}).holds_B.tolist()
        assert got == [function(v, 2) for v in values]
