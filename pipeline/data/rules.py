"""Rules over label columns, evaluated on Arrow columns.

A value that is null or no number leaves a rule unknown only where the other columns do not decide
it: 0 & null is 0, 1 | null is 1 (Kleene's logic).

Legend: B rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.config.expressions import (
    And,
    Column,
    Comparison,
    Not,
    Or,
    Rule,
    columns_of,
)

_COMPARE = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}


@dataclass(frozen=True)
class Truth:
    """bool (B,): where a rule is known to hold, and where it is known not to."""

    holds_B: np.ndarray
    fails_B: np.ndarray

    @property
    def unknown_B(self) -> np.ndarray:
        unknown_B: np.ndarray = ~(self.holds_B | self.fails_B)
        return unknown_B


def truth(rule: Rule, columns: Mapping[str, np.ndarray]) -> Truth:
    """Evaluates a rule on columns of numbers, NaN = null. A bare column holds 0 or 1."""
    match rule:
        case Column(name):
            return Truth(columns[name] == 1.0, columns[name] == 0.0)
        case Comparison(name, operator, number):
            known_B = ~np.isnan(columns[name])
            met_B = _COMPARE[operator](columns[name], number)
            return Truth(known_B & met_B, known_B & ~met_B)
        case Not(inner):
            value = truth(inner, columns)
            return Truth(value.fails_B, value.holds_B)
        case And(rules):
            parts = [truth(part, columns) for part in rules]
            return Truth(
                np.logical_and.reduce([part.holds_B for part in parts]),
                np.logical_or.reduce([part.fails_B for part in parts]),
            )
        case Or(rules):
            parts = [truth(part, columns) for part in rules]
            return Truth(
                np.logical_or.reduce([part.holds_B for part in parts]),
                np.logical_and.reduce([part.fails_B for part in parts]),
            )


def shown_values(rule: Rule, columns: Mapping[str, np.ndarray], row: int) -> str:
    """``click = 1, convert = null``: the columns of a rule in one row."""
    return ", ".join(f"{name} = {shown(columns[name][row])}" for name in columns_of(rule))


def shown(value: float) -> str:
    return "null or NaN" if np.isnan(value) else f"{value:g}"
