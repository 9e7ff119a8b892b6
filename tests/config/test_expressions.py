"""Rules over label columns: how they are read, and where they cannot be."""

import pytest

from pipeline.config.expressions import (
    And,
    Column,
    Comparison,
    Not,
    Or,
    RuleError,
    columns_of,
    implies,
    parse_rule,
)

CLICK, LIKE, HATE, SHARE = (Column(name) for name in ("click", "like", "hate", "share"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("click", CLICK),
        ("  click ", CLICK),
        ("click & like", And((CLICK, LIKE))),
        ("click&~hate", And((CLICK, Not(HATE)))),
        ("~~hate", Not(Not(HATE))),
        ("watch_time > 5", Comparison("watch_time", ">", 5.0)),
        ("watch_time>=-2.5e3", Comparison("watch_time", ">=", -2500.0)),
        ("rating >= 4 | share", Or((Comparison("rating", ">=", 4.0), SHARE))),
        ("click | like & hate", Or((CLICK, And((LIKE, HATE))))),
        ("(click | like) & hate", And((Or((CLICK, LIKE)), HATE))),
        ("~click & like", And((Not(CLICK), LIKE))),
        ("~n == 1", Not(Comparison("n", "==", 1.0))),
        ("~(click | like)", Not(Or((CLICK, LIKE)))),
        ("a<1&b!=2", And((Comparison("a", "<", 1.0), Comparison("b", "!=", 2.0)))),
        ("`seen twice` & `a&b` <= 3", And((Column("seen twice"), Comparison("a&b", "<=", 3.0)))),
        ("long-view.2 & größe", And((Column("long-view.2"), Column("größe")))),
        ("101 == 1", Comparison("101", "==", 1.0)),
    ],
)
def test_rules(text: str, rule: object) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "position", "expected", "found"),
    [
        ("", 1, "a column, ~ or (", "the end"),
        ("click &", 8, "a column, ~ or (", "the end"),
        ("click and like", 7, "& or | or the end", "and like"),
        ("& click", 1, "a column, ~ or (", "& click"),
        ("(click | like", 14, ")", "the end"),
        ("click)", 6, "& or | or the end", ")"),
        ("watch > ", 8, "a number", "the end"),
        ("watch > click", 9, "a number", "click"),
        ("watch > inf", 9, "a finite number", "inf"),
        ("watch > nan", 9, "a finite number", "nan"),
        ("1 < watch < 3", 5, "a number", "watch < 3"),
        ("click = 1", 7, "a column, a number or one of", "= 1"),
        ("`open", 1, "a column, a number or one of", "`open"),
        ("click + like", 7, "& or | or the end", "+ like"),
        ("__import__('os')", 11, "& or | or the end", "('os')"),
    ],
)
def test_what_cannot_be_read(text: str, position: int, expected: str, found: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_rule(text)
    said = str(caught.value)
    assert said.startswith(f"{text!r}, position {position}: expected {expected}")
    assert f"found {found!r}; write columns and comparisons joined by" in said


def test_columns_come_once_and_in_order() -> None:
    assert columns_of(parse_rule("b & (a > 1 | ~b) & c")) == ("b", "a", "c")


@pytest.mark.parametrize(
    ("rule", "condition", "holds"),
    [
        ("click", "click", True),
        ("click & x > 1", "click", True),
        ("x > 1 & (click & like)", "click", False),
        ("a & b & c", "c & a", True),
        ("click | like", "click", False),
        ("~click", "click", False),
    ],
)
def test_which_rules_imply_others(rule: str, condition: str, holds: bool) -> None:
    assert implies(parse_rule(rule), parse_rule(condition)) is holds
