"""What of a source's weights a new model takes: worked out from the descriptions of both alone."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

import ple
from pipeline.config.init import InitConfig
from pipeline.training.warm_start_axes import Axis, Part
from pipeline.training.warm_start_parts import Described, Renames
from pipeline.training.warm_start_rows import RowMap, encoders_of, row_map

Status = Literal["taken", "resized", "fresh"]
_SHOWN_NAMES = 12


class WarmStartError(ValueError):
    """A model cannot start from that source; the message says why and what to do."""


@dataclass(frozen=True)
class TensorCopy:
    """A dense tensor that starts from one of the source.

    Attributes:
        name, source: of the tensors.
        picks: for each axis the source's index of every index, -1 = fresh.
    """

    name: str
    source: str
    picks: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class TableCopy:
    """A table that starts from one of the source; columns as a :class:`TensorCopy`'s axis."""

    table: ple.FeatureTable
    source: ple.FeatureTable
    rows: RowMap
    columns: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What becomes of one part or table.

    Attributes:
        title: the part in words.
        status: taken whole, taken in part, or as it would start without a source.
        detail: how, or why not.
        shapes: of its tensors by name: the shape here, and in the source where there is one.
    """

    title: str
    status: Status
    detail: str
    copies: tuple[TensorCopy, ...] = ()
    table: TableCopy | None = None
    shapes: dict[str, tuple[Sequence[int], Sequence[int] | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class InitPlan:
    """What is taken, resized and fresh, and what of the source nothing starts from."""

    outcomes: tuple[Outcome, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people: what is alike in one line, what needs a word on a line of its own."""
        found = []
        for status in ("taken", "resized", "fresh"):
            by_detail: dict[str, list[str]] = {}
            for outcome in self.outcomes:
                if outcome.status == status:
                    by_detail.setdefault(outcome.detail, []).append(outcome.title)
            for detail, titles in by_detail.items():
                found.append(f"{status}: {_listed(titles)}" + (f" ({detail})" if detail else ""))
        if self.left_out:
            found.append(f"left out, not in this model: {_listed(self.left_out)}")
        return found + list(self.notes)

    def to_tree(self) -> dict[str, Any]:
        """All of it as plain JSON, tensor by tensor."""
        parts = [
            {
                "part": outcome.title,
                "status": outcome.status,
                "detail": outcome.detail,
                "tensors": {
                    name: {"shape": list(here), "source": None if there is None else list(there)}
                    for name, (here, there) in outcome.shapes.items()
                },
            }
            for outcome in self.outcomes
        ]
        return {"parts": parts, "left_out": list(self.left_out), "notes": list(self.notes)}


def renames_of(init: InitConfig) -> Renames:
    """The mapping of the configuration."""
    return Renames(init.tasks, init.features)


def check_names(init: InitConfig, here: Described, there: Described) -> None:
    """Raises WarmStartError for a task or feature that one of the models does not have."""
    for section, names, own, others in (
        ("tasks", init.tasks, here.tasks, there.tasks),
        ("features", init.features, here.features, there.features),
    ):
        for name, source in names.items():
            if name not in own:
                raise WarmStartError(
                    f"init.{section}: this model has no {name!r}; it has {_listed(own)}"
                )
            if source is not None and source not in others:
                raise WarmStartError(
                    f"init.{section}.{name}: the source has no {source!r}; it has {_listed(others)}"
                )


def make_plan(here: Described, there: Described, renames: Renames) -> InitPlan:
    """Matches two models.

    Args:
        here: the new model, described with ``renames``.
        there: the source, described as it is.
        renames: what the new model's tasks and features are called in the source.

    Raises:
        WarmStartError: nothing at all matches.
    """
    outcomes = [*_tables(here, there, renames), *_parts(here, there)]
    if all(outcome.status == "fresh" for outcome in outcomes):
        reasons = "".join(f"\n  {o.title}: {o.detail}" for o in outcomes[:_SHOWN_NAMES])
        raise WarmStartError(
            f"nothing in the source matches this model. Tasks here: {_listed(here.tasks)}; there: "
            f"{_listed(there.tasks)}. Features here: {_listed(here.features)}; there: "
            f"{_listed(there.features)}. Name what belongs together under init.tasks and "
            f"init.features, or start without --init-from{reasons}"
        )
    used = set(here.table_keys) | {part.key for part in here.parts}
    left_out = [
        f"table {table.name}"
        for table, key in zip(there.tables, there.table_keys, strict=True)
        if key not in used
    ]
    left_out += [part.title for part in there.parts if part.key not in used]
    return InitPlan(tuple(outcomes), tuple(left_out), tuple(_notes(here, there, renames)))


def _tables(here: Described, there: Described, renames: Renames) -> Iterator[Outcome]:
    encoders, source_encoders = encoders_of(here.transforms), encoders_of(there.transforms)
    by_key = {key: n for n, key in enumerate(there.table_keys)}
    for table, key, axis in zip(here.tables, here.table_keys, here.table_axes, strict=True):
        title, number = f"table {table.name}", by_key.get(key)
        shape = (table.rows, table.dim * table.slices)
        if number is None:
            yield Outcome(title, "fresh", "not in the source", shapes={table.name: (shape, None)})
            continue
        source = there.tables[number]
        source_shape = (source.rows, source.dim * source.slices)
        shapes: dict[str, tuple[Sequence[int], Sequence[int] | None]] = {
            table.name: (shape, source_shape)
        }
        columns = _picks(axis, there.table_axes[number])
        rows: RowMap | str = row_map(
            encoders[table.feature], table, source_encoders[source.feature], source, renames
        )
        if not (columns >= 0).any():
            rows = (
                f"shape conflict: rows of width {source.dim * source.slices} in the source, "
                f"{table.dim * table.slices} here"
            )
        elif table.map is not None and not isinstance(rows, str) and shape != source_shape:
            rows = "a zero_collision table is taken in its own shape only"
        if isinstance(rows, str):
            yield Outcome(title, "fresh", rows, shapes=shapes)
            continue
        copy = TableCopy(table, source, rows, columns)
        resized = _axis_change(axis, there.table_axes[number], columns)
        if rows.taken < table.rows:
            resized.append(f"{rows.taken:,} of {table.rows:,} rows")
        if rows.left_out:
            resized.append(f"{rows.left_out:,} rows of the source left out")
        detail = ", ".join([rows.how, *resized])
        yield Outcome(title, "resized" if resized else "taken", detail, (), copy, shapes)


def _parts(here: Described, there: Described) -> Iterator[Outcome]:
    by_key: dict[Hashable, Part] = {part.key: part for part in there.parts}
    for part in here.parts:
        source = by_key.get(part.key)
        yield _part(part, source, here.shapes, there.shapes)


def _part(
    part: Part,
    source: Part | None,
    here: Mapping[str, tuple[int, ...]],
    there: Mapping[str, tuple[int, ...]],
) -> Outcome:
    shapes: dict[str, tuple[Sequence[int], Sequence[int] | None]] = {}
    for role, (name, _) in part.tensors.items():
        given = source.tensors.get(role) if source is not None else None
        shapes[name] = (here[name], None if given is None else there[given[0]])
    if source is None:
        return Outcome(part.title, "fresh", "not in the source", shapes=shapes)
    missing = sorted(part.tensors.keys() ^ source.tensors.keys())
    if missing:
        where = "here" if missing[0] in part.tensors else "in the source"
        return Outcome(
            part.title, "fresh", f"shape conflict: {missing[0]} is only {where}", shapes=shapes
        )
    copies, changes = [], []
    for role, (name, axes) in part.tensors.items():
        theirs, given_axes = source.tensors[role]
        picks = tuple(_picks(a, b) for a, b in zip(axes, given_axes, strict=True))
        empty = [axis for axis, pick in zip(axes, picks, strict=True) if not (pick >= 0).any()]
        if empty:
            sizes = f"{list(there[theirs])} in the source, {list(here[name])} here"
            conflict = "" if here[name] == there[theirs] else f"shape conflict: {role} is {sizes}, "
            detail = f"{conflict}no {empty[0].name} in common"
            return Outcome(part.title, "fresh", detail, shapes=shapes)
        copies.append(TensorCopy(name, theirs, picks))
        for axis, other, pick in zip(axes, given_axes, picks, strict=True):
            changes += _axis_change(axis, other, pick)
    detail = ", ".join(dict.fromkeys(changes))
    status: Status = "resized" if changes else "taken"
    return Outcome(part.title, status, detail, tuple(copies), None, shapes)


def _picks(here: Axis, there: Axis) -> np.ndarray:
    """The source's index of every index, -1 = fresh."""
    index = {label: n for n, label in enumerate(there.labels) if label is not None}
    picks = [-1 if label is None else index.get(label, -1) for label in here.labels]
    return np.array(picks, np.int64)


def _axis_change(here: Axis, there: Axis, picks: np.ndarray) -> list[str]:
    """What of an axis is not taken, in words."""
    own = sum(label is not None for label in here.labels)
    others = sum(label is not None for label in there.labels)
    taken = picks[picks >= 0]
    used = np.unique(taken).size
    changes = []
    if taken.size < own:
        changes.append(f"{taken.size} of {own} {here.name}")
    if used < others:
        changes.append(f"{others - used} {here.name} of the source left out")
    return changes


def _notes(here: Described, there: Described, renames: Renames) -> Iterator[str]:
    """Numbers that reach the model on another scale than the one the weights were trained with."""
    before = {encoder.name: encoder for encoder in there.transforms.numeric}
    moved = []
    for encoder in here.transforms.numeric:
        source = before.get(renames.features.get(encoder.name, encoder.name) or "")
        if source is None or source.log1p != encoder.log1p or not (source.value and encoder.value):
            continue
        shift = abs(encoder.shift - source.shift) * abs(source.factor)
        ratio = encoder.factor / source.factor if source.factor else 1.0
        if shift > 0.1 or not 0.9 < ratio < 1.1 or source.clip != encoder.clip:
            moved.append(encoder.name)
    if moved:
        yield (
            f"scaled by other numbers than in the source: {_listed(moved)}; the first steps adapt "
            "to that"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return (shown or "none") + (f" and {more} more" if more > 0 else "")
