"""A ranker's dense weights with names for every row and column, so that two models can be matched.

What belongs together (the experts of one owner in one level, a gate, a tower) is a part. Each axis
of its tensors carries labels: input columns the feature they hold, gate outputs the expert they
weigh, experts their position. Where labels agree, numbers mean the same in both models.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import ple
from pipeline.config import Experiment
from pipeline.data.transforms import FeatureTransforms, bucket_name
from pipeline.model import build_served_ranker, tables_of
from pipeline.training.warm_start_axes import (
    Axis,
    Part,
    Tensors,
    bank_tensors,
    low_rank_tensors,
    mlp_tensors,
    units,
)
from ple.wiring import Owner

_VALUE_LOSSES = ("squared_error", "huber", "quantile")


@dataclass(frozen=True)
class Described:
    """A model as it is matched with another.

    Attributes:
        tasks: names of the tasks with a tower.
        features: names of columns and crosses.
        tables: of the model.
        table_keys: a key of each table, like that of a part.
        table_axes: labels of the columns of each table's rows.
        parts: of the dense weights.
        transforms: of the features.
        shapes: of the dense weights by name.
    """

    tasks: tuple[str, ...]
    features: tuple[str, ...]
    tables: tuple[ple.FeatureTable, ...]
    table_keys: tuple[Hashable, ...]
    table_axes: tuple[Axis, ...]
    parts: tuple[Part, ...]
    transforms: FeatureTransforms
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Renames:
    """What the names of a model are called in the other; None = nothing there is meant."""

    tasks: Mapping[str, str | None]
    features: Mapping[str, str | None]


NO_RENAMES = Renames({}, {})


def describe(
    experiment: Experiment, transforms: FeatureTransforms, renames: Renames = NO_RENAMES
) -> Described:
    """Describes the model of an experiment (sections ``model`` and ``tasks``)."""
    return _Description(experiment, transforms, renames).build()


class _Description:
    def __init__(
        self, experiment: Experiment, transforms: FeatureTransforms, renames: Renames
    ) -> None:
        self._experiment, self._transforms, self._renames = experiment, transforms, renames
        self._with_tower = [task for task in experiment.tasks if task.has_tower]
        self._tasks = [task.name for task in self._with_tower]
        self._groups = list(experiment.model.groups or ())
        self._ranker = build_served_ranker(experiment, transforms, "fp32")
        self._tables = tables_of(experiment, transforms)
        self._feature_labels = self._labels_of_features()
        self._parts: list[Part] = []

    def build(self) -> Described:
        views = range(self._ranker.extraction.wiring.views)
        inputs = [self._feature_axis(view) for view in views]
        for view, cross in enumerate(self._ranker.crosses):
            tensors = low_rank_tensors(f"crosses.{view}.layers.", cross.layers, inputs[view])
            of = "" if len(views) == 1 else f" of {self._view_words(view)}"
            self._add(("cross", self._view(view)), f"crosses of features{of}", tensors)
        self._extraction(inputs)
        self._towers()
        self._check()
        return Described(
            tuple(self._tasks),
            tuple(name for name, _ in self._named_features()),
            tuple(self._tables),
            tuple(self._table_key(table) for table in self._tables),
            tuple(self._table_axis(table) for table in self._tables),
            tuple(self._parts),
            self._transforms,
            {name: tuple(value.shape) for name, value in self._dense().items()},
        )

    def _named_features(self) -> list[tuple[str, str]]:
        """Every feature's name, and its kind: ids, or numbers."""
        t = self._transforms
        ids = [encoder.name for encoder in t.categorical] + [cross.name for cross in t.crosses]
        return [(name, "ids") for name in ids] + [(e.name, "number") for e in t.numeric]

    def _labels_of_features(self) -> dict[str, Hashable]:
        """Labels of tables' features."""
        labels: dict[str, Hashable] = {}
        for name, kind in self._named_features():
            label = _renamed(name, self._renames.features)
            table = name if kind == "ids" else bucket_name(name)
            labels[table] = (kind, label)
        return labels

    def _feature_axis(self, view: int) -> Axis:
        labels: list[Hashable] = []
        for table in self._tables:
            if table.slices > 1 or table.view == view:
                feature = self._feature_labels[table.feature]
                labels += [(self._view(view), feature, table.dim, i) for i in range(table.dim)]
        for encoder in self._transforms.numeric:
            name = _renamed(encoder.name, self._renames.features)
            own = [("value", name, encoder.log1p), ("missing", name)]
            labels += own[: len(encoder.dense_names)]
        labels += [None] * self._ranker.padding
        return Axis("input columns", tuple(labels))

    def _table_key(self, table: ple.FeatureTable) -> Hashable:
        owner = "slices" if table.slices > 1 else self._view(table.view)
        return ("table", self._feature_labels[table.feature], owner)

    def _table_axis(self, table: ple.FeatureTable) -> Axis:
        views = range(table.slices) if table.slices > 1 else [table.view]
        labels = [(self._view(view), table.dim, i) for view in views for i in range(table.dim)]
        return Axis("columns", tuple(labels))

    def _view(self, view: int) -> Hashable:
        """Whose feature vector it is."""
        if self._ranker.extraction.wiring.views == 1 or view == len(self._tasks):
            return ("shared",)
        return self._owner(Owner("task", view))

    def _view_words(self, view: int) -> str:
        return self._tasks[view] if view < len(self._tasks) else "shared"

    def _owner(self, owner: Owner) -> Hashable:
        if owner.number is None:
            return (owner.kind,)
        if owner.kind == "task":
            return ("task", _renamed(self._tasks[owner.number], self._renames.tasks))
        if owner.kind == "group":
            return ("group", self._groups[owner.number])
        return (owner.kind, owner.number)

    def _words(self, owner: Owner) -> str:
        if owner.number is None:
            return owner.kind
        if owner.kind == "expert":
            return f"expert {owner.number + 1}"
        return (self._tasks if owner.kind == "task" else self._groups)[owner.number]

    def _extraction(self, inputs: Sequence[Axis]) -> None:
        extraction = self._ranker.extraction
        wiring = extraction.wiring
        axes = [inputs[view] for view in wiring.inputs]
        for number, wired in enumerate(wiring.levels):
            self._level(number, axes)
            if number + 1 == len(wiring.levels):
                break
            joined = self._experiment.model.fusion == "concatenation"
            following = axes[:1] if wiring.keeps_input else []
            for output in wired.outputs:
                stream = (number, self._owner(output.owner), wired.out_width)
                labels: tuple[Hashable, ...] = tuple((*stream, i) for i in range(wired.out_width))
                if joined:
                    assert output.previous is not None, "see check_fusion"
                    labels += axes[output.previous].labels
                following.append(Axis("input columns", labels))
            axes = following

    def _level(self, number: int, axes: Sequence[Axis]) -> None:
        network: Any = self._ranker.extraction.levels[number]
        wired, place = network.wiring, f"extraction.levels.{number}."
        level = "" if len(self._ranker.extraction.levels) == 1 else f", level {number + 1}"
        for bank in wired.banks:
            key, owner = bank.owner.key, self._owner(bank.owner)
            tensors = bank_tensors(f"{place}experts.{key}.", network.experts[key], axes[bank.reads])
            self._add(
                ("experts", number, owner), f"experts of {self._words(bank.owner)}{level}", tensors
            )
            if bank.feature_gated:
                gate, where = network.feature_gates[key], f"{place}feature_gates.{key}."
                read = axes[bank.reads]
                tensors = low_rank_tensors(f"{where}factors.", gate.factors, read)
                if gate.gate is not None:
                    factors = units(gate.factors.maps, "factors")
                    tensors |= mlp_tensors(f"{where}gate.", gate.gate, read, factors)
                title = f"feature gate of {self._words(bank.owner)}{level}"
                self._add(("feature gate", number, owner), title, tensors)
        for output in wired.outputs:
            key, owner, words = output.owner.key, self._owner(output.owner), output.owner
            selectors = [axes[position] for position in output.selectors]
            selector = Axis("input columns", ())
            if selectors:
                parts = selectors if output.joined else selectors[:1]
                selector = Axis("input columns", tuple(x for axis in parts for x in axis.labels))
            if output.gated and network.gates[key].logits is not None:
                experts = self._expert_axis(wired, output.banks)
                gate = network.gates[key].logits
                tensors = mlp_tensors(f"{place}gates.{key}.logits.", gate, selector, experts)
                self._add(("gate", number, owner), f"gate of {self._words(words)}{level}", tensors)
            if output.self_gated is not None:
                experts = self._expert_axis(wired, [output.self_gated])
                gate = network.self_gates[key].logits
                tensors = mlp_tensors(
                    f"{place}self_gates.{key}.logits.", gate, selectors[0], experts
                )
                self._add(
                    ("self gate", number, owner),
                    f"self gate of {self._words(words)}{level}",
                    tensors,
                )
            if key in network.native_weights:
                experts = self._expert_axis(wired, [output.native])
                self._add(
                    ("native", number, owner),
                    f"native weights of {self._words(words)}{level}",
                    {"weights": (f"{place}native_weights.{key}", (experts,))},
                )
        if number < len(self._ranker.extraction.fusions):
            self._fusion(number, wired, axes, level)

    def _fusion(self, number: int, wired: Any, axes: Sequence[Axis], level: str) -> None:
        fusion: Any = self._ranker.extraction.fusions[number]
        for output in wired.outputs:
            key = output.owner.key
            if key in fusion.projections:
                name = f"extraction.fusions.{number}.projections.{key}.weight"
                labels = (units(wired.out_width, "units"), axes[output.previous])
                self._add(
                    ("fusion", number, self._owner(output.owner)),
                    f"fusion of {self._words(output.owner)}{level}",
                    {"weight": (name, labels)},
                )

    def _expert_axis(self, wired: Any, banks: Sequence[int]) -> Axis:
        """The experts that a gate mixes."""
        labels = [
            # Experts of other widths start fresh, and so does what weighs them.
            (self._owner(wired.banks[bank].owner), wired.banks[bank].hidden, position)
            for bank in banks
            for position in range(wired.banks[bank].experts)
        ]
        return Axis("experts", tuple(labels))

    def _towers(self) -> None:
        towers = self._ranker.towers
        stream = units(self._ranker.extraction.out_width, "input columns")
        for number, (task, tower) in enumerate(zip(self._with_tower, towers.towers, strict=True)):
            owner = self._owner(Owner("task", number))
            meaning = "value" if task.loss in _VALUE_LOSSES else task.loss
            count = tower.out.out_features
            outputs = Axis("outputs", tuple((meaning, count, i) for i in range(count)))
            tensors = mlp_tensors(f"towers.towers.{number}.", tower, stream, outputs)
            self._add(("tower", owner), f"tower of {task.name}", tensors)
            if str(number) in towers.transfers:
                source = _renamed(str(task.transfer_from), self._renames.tasks)
                transfer = towers.transfers[str(number)]
                tensors = {}
                for name, layer in transfer.named_children():
                    assert isinstance(layer, nn.Linear)
                    rows = units(layer.out_features, "units")
                    columns = units(layer.in_features, "input columns")
                    where = f"towers.transfers.{number}.{name}."
                    tensors[f"{name}.weight"] = (f"{where}weight", (rows, columns))
                    tensors[f"{name}.bias"] = (f"{where}bias", (rows,))
                title = f"transfer from {task.transfer_from} to {task.name}"
                self._add(("transfer", owner, source), title, tensors)

    def _add(self, key: Hashable, title: str, tensors: Tensors) -> None:
        self._parts.append(Part(key, title, tensors))

    def _dense(self) -> dict[str, Tensor]:
        state = self._ranker.state_dict()
        return {n: value for n, value in state.items() if not n.startswith("embeddings.")}

    def _check(self) -> None:
        """Every weight is in one part, with a label for every number."""
        described = {
            name: tuple(len(axis.labels) for axis in axes)
            for part in self._parts
            for name, axes in part.tensors.values()
        }
        shapes = {name: tuple(value.shape) for name, value in self._dense().items()}
        assert described == shapes, {
            n for n in {*described, *shapes} if described.get(n) != shapes.get(n)
        }


def _renamed(name: str, renames: Mapping[str, str | None]) -> Hashable:
    other = renames.get(name, name)
    return ("fresh", name) if other is None else other
