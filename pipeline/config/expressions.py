"""Rules over label columns, such as ``click & ~hate`` or ``watch_time > 5``: pure data.

::

    rule       := term ("|" term)*
    term       := factor ("&" factor)*
    factor     := "~" factor | "(" rule ")" | column [comparison number]
    comparison := "<" | "<=" | ">" | ">=" | "==" | "!="
    column     := a name without blanks and the characters above, or any name in `backticks`

A column alone holds 0 or 1. Comparisons bind before ``~``, that before ``&``, that before ``|``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

COMPARISONS = ("<=", ">=", "==", "!=", "<", ">")
_TOKEN = re.compile(r"\s*(?:(<=|>=|==|!=|[<>&|~()])|`([^`]+)`|([^\s`<>=!&|~()]+))")


class RuleError(ValueError):
    """A rule cannot be read; the message shows it, the position and what was expected there."""


@dataclass(frozen=True)
class Column:
    """A 0/1 column."""

    name: str


@dataclass(frozen=True)
class Comparison:
    """A number against a constant."""

    name: str
    operator: str
    number: float


@dataclass(frozen=True)
class Not:
    rule: "Rule"


@dataclass(frozen=True)
class And:
    rules: tuple["Rule", ...]


@dataclass(frozen=True)
class Or:
    rules: tuple["Rule", ...]


Rule = Column | Comparison | Not | And | Or


@cache
def parse_rule(text: str) -> Rule:
    """Reads a rule. Raises RuleError."""
    return _Parser(text).whole()


def columns_of(rule: Rule) -> tuple[str, ...]:
    """The columns a rule reads, each once."""
    return tuple(dict.fromkeys(leaf.name for leaf in leaves_of(rule)))


def leaves_of(rule: Rule) -> Iterator[Column | Comparison]:
    """The columns and comparisons a rule consists of, from left to right."""
    if isinstance(rule, Column | Comparison):
        yield rule
    elif isinstance(rule, Not):
        yield from leaves_of(rule.rule)
    else:
        for part in rule.rules:
            yield from leaves_of(part)


def implies(rule: Rule, condition: Rule) -> bool:
    """Whether `condition` stands among the terms that `rule` joins by ``&``."""
    wanted = condition.rules if isinstance(condition, And) else (condition,)
    given = rule.rules if isinstance(rule, And) else (rule,)
    return set(wanted) <= set(given)


class _Parser:
    """Recursive descent over the tokens of one rule."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._split())
        self._next = 0

    def whole(self) -> Rule:
        rule = self._any_of()
        if self._symbol or self._name:
            self._fail("& or | or the end")
        return rule

    def _any_of(self) -> Rule:
        rules = [self._all_of()]
        while self._took("|"):
            rules.append(self._all_of())
        return rules[0] if len(rules) == 1 else Or(tuple(rules))

    def _all_of(self) -> Rule:
        rules = [self._factor()]
        while self._took("&"):
            rules.append(self._factor())
        return rules[0] if len(rules) == 1 else And(tuple(rules))

    def _factor(self) -> Rule:
        if self._took("~"):
            return Not(self._factor())
        if self._took("("):
            rule = self._any_of()
            if not self._took(")"):
                self._fail(")")
            return rule
        name = self._name
        if not name:
            self._fail("a column, ~ or (")
        self._next += 1
        operator = self._symbol
        if operator not in COMPARISONS:
            return Column(name)
        self._next += 1
        return Comparison(name, operator, self._number())

    def _number(self) -> float:
        try:
            number = float(self._name)
        except ValueError:
            self._fail("a number")
        if number != number or abs(number) == float("inf"):
            self._fail("a finite number")
        self._next += 1
        return number

    def _took(self, symbol: str) -> bool:
        taken = self._symbol == symbol
        self._next += taken
        return taken

    @property
    def _symbol(self) -> str:
        return self._tokens[self._next][1]

    @property
    def _name(self) -> str:
        return self._tokens[self._next][2]

    def _split(self) -> Iterator[tuple[int, str, str]]:
        """(position, symbol or "", name or ""), an empty one last."""
        position = 0
        end = len(self._text.rstrip())
        while position < end:
            match = _TOKEN.match(self._text, position)
            if match is None:
                self._fail("a column, a number or one of & | ~ ( ) < <= > >= == !=", position)
            symbol, quoted, name = match.groups()
            yield match.end() - len(match.group().lstrip()), symbol or "", quoted or name or ""
            position = match.end()
        yield end, "", ""

    def _fail(self, expected: str, position: int | None = None) -> NoReturn:
        position = self._tokens[self._next][0] if position is None else position
        rest = self._text[position:].lstrip()
        position = len(self._text.rstrip()) if not rest else len(self._text) - len(rest)
        found = rest[:12].rstrip() or "the end"
        raise RuleError(
            f"{self._text!r}, position {position + 1}: expected {expected}, found {found!r}; write "
            "columns and comparisons joined by &, | and ~, such as click & ~hate or watch_time > 5 "
            "(a name with other characters in `backticks`)"
        )
