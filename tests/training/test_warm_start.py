"""What a new model takes of a source, number by number, and what it says of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from warm_models import (
    DIM,
    crossed,
    fresh_state,
    ids,
    number,
    numbered_ids,
    table_weight,
    transforms_of,
    version_source,
    warm_experiment,
)

import ple
from pipeline.config import Experiment
from pipeline.data.transforms import FeatureTransforms
from pipeline.training.warm_start import fill
from pipeline.training.warm_start_plan import InitPlan, WarmStartError

Model = tuple[Experiment, FeatureTransforms]
PLE = {"kind": "ple", "tower_hidden": [3]}


class Started:
    """A source, a fresh state, and that state after it was filled from the source."""

    def __init__(
        self, folder: Path, source: Model, target: Model, precision: ple.Precision = "fp32"
    ) -> None:
        self.source = fresh_state(*source, seed=1)
        self.fresh = fresh_state(*target, seed=2)
        self.state = {name: value.clone() for name, value in self.fresh.items()}
        found = version_source(folder / "source", *source, self.source, precision)
        self.plan: InitPlan = found.plan(*target)
        fill(self.state, self.plan, found.weights(target[0]))

    def status(self, title: str) -> tuple[str, str]:
        outcome = next(o for o in self.plan.outcomes if o.title == title)
        return outcome.status, outcome.detail

    def tables(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of a table: source's (None where it has none), fresh ones, and what came out."""
        return tuple(table_weight(s, name) for s in (self.source, self.fresh, self.state))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def start(folder: Path, there: list[Any], here: list[Any], **options: Any) -> Started:
    """Two models that differ in their features."""
    source, target = warm_experiment(), warm_experiment(init=options.pop("init", {}))
    return Started(
        folder, (source, transforms_of(*there)), (target, transforms_of(*here)), **options
    )


def test_rows_of_a_vocabulary_are_matched_by_value(folder: Path) -> None:
    done = start(folder, [ids("user", ["a", "b", "c", "d"])], [ids("user", ["c", "x", "a"])])
    source, fresh, got = done.tables("user")
    # Rows 0 and 1 are missing and unknown ids in both.
    for row, expected in enumerate([source[0], source[1], source[4], fresh[3], source[2]]):
        assert torch.equal(got[row], expected), row
    assert done.status("table user") == (
        "resized",
        "by value, 4 of 5 rows, 2 rows of the source left out",
    )


def test_a_vocabulary_in_another_order_is_taken_whole(folder: Path) -> None:
    done = start(folder, [ids("user", ["a", "b"])], [ids("user", ["b", "a"])])
    source, _, got = done.tables("user")
    assert torch.equal(got, source[[0, 1, 3, 2]])
    assert done.status("table user") == ("taken", "by value")


def test_rows_by_number_hash_and_cross(folder: Path) -> None:
    there = [
        numbered_ids("city", "identity", 6),
        numbered_ids("item", "hash", 20),
        numbered_ids("shop", "hash", 20),
        crossed("pair", ("item", "shop"), 30),
        crossed("other", ("item", "shop"), 30),
    ]
    here = [
        numbered_ids("city", "identity", 9),
        numbered_ids("item", "hash", 20),
        numbered_ids("shop", "hash", 40),
        crossed("pair", ("item", "shop"), 30),
        crossed("other", ("shop", "item"), 30),
    ]
    done = start(folder, there, here)
    source, fresh, got = done.tables("city")
    assert torch.equal(got[:6], source)
    assert torch.equal(got[6:], fresh[6:])
    for name in ("item", "pair"):
        source, _, got = done.tables(name)
        assert torch.equal(got, source), name
    for name in ("shop", "other"):
        _, fresh, got = done.tables(name)
        assert torch.equal(got, fresh), name
    assert done.status("table city") == ("resized", "by number, 6 of 9 rows")
    assert "hashed to 20 rows in the source and to 40 here" in done.status("table shop")[1]
    assert "a cross of item (int64) and shop (int64) in the source" in done.status("table other")[1]


def test_buckets_start_from_the_one_their_middle_lies_in(folder: Path) -> None:
    # There: (-inf 0) [0 10) [10 inf) at rows 1, 2, 3. Here: (-inf 4) [4 8) [8 30) [30 inf).
    done = start(folder, [number("price", [0.0, 10.0])], [number("price", [4.0, 8.0, 30.0])])
    source, _, got = done.tables("price_bucket")
    assert torch.equal(got, source[[0, 2, 2, 3, 3]])


def test_other_encoders_and_widths_start_fresh(folder: Path) -> None:
    there = [ids("user", ["a", "b"]), ids("tag", ["t"]), numbered_ids("item", "hash", 20)]
    here = [ids("user", ["x", "y"]), ids("tag", ["t"], dim=8), numbered_ids("item", "identity", 20)]
    done = start(folder, there, here)
    for name in ("user", "tag", "item"):
        _, fresh, got = done.tables(name)
        assert torch.equal(got, fresh), name
    assert "no value in common" in done.status("table user")[1]
    expected = "shape conflict: rows of width 4 in the source, 8 here"
    assert done.status("table tag") == ("fresh", expected)
    assert done.status("table item") == ("fresh", "encoder hash in the source, identity here")


def test_input_columns_follow_their_feature(folder: Path) -> None:
    there = [ids("user", ["a"]), ids("tag", ["t"]), number("age"), number("price", flag=True)]
    here = [
        ids("word", ["w"]),
        ids("label", ["t"]),
        ids("user", ["a"]),
        number("price", flag=True),
        number("size"),
    ]
    done = start(folder, there, here, init={"features": {"label": "tag"}})
    name = "extraction.levels.0.experts.shared.weights.0"
    source, fresh, got = (s[name] for s in (done.source, done.fresh, done.state))
    user, tag, missing = 0, DIM, 2 * DIM + 2
    expected = fresh.clone()
    expected[:, :, DIM : 2 * DIM] = source[:, :, tag : tag + DIM]
    expected[:, :, 2 * DIM : 3 * DIM] = source[:, :, user : user + DIM]
    expected[:, :, 3 * DIM] = source[:, :, missing - 1]
    expected[:, :, 3 * DIM + 1] = source[:, :, missing]
    assert torch.equal(got, expected)
    # The renamed table's rows come along, and gates read the same columns.
    assert torch.equal(table_weight(done.state, "label"), table_weight(done.source, "tag"))
    gate = "extraction.levels.0.gates.task_0.logits.out.weight"
    assert torch.equal(done.state[gate][:, 3 * DIM], done.source[gate][:, missing - 1])
    assert torch.equal(done.state[gate][:, :DIM], done.fresh[gate][:, :DIM])
    detail = "10 of 15 input columns, 1 input columns of the source left out"
    assert done.status("experts of shared") == ("resized", detail)


def test_numbers_on_another_scale_are_named_and_logarithms_kept_apart(folder: Path) -> None:
    there = [ids("user", ["a"]), number("age"), number("price", shift=1.0), number("size")]
    here = [ids("user", ["a"]), number("age", log1p=True), number("price", shift=9.0)]
    done = start(folder, there, [*here, number("size", factor=1.05)])
    assert done.plan.notes == (
        "scaled by other numbers than in the source: price; the first steps adapt to that",
    )
    name = "extraction.levels.0.experts.shared.weights.0"
    assert torch.equal(done.state[name][..., DIM], done.fresh[name][..., DIM])
    assert torch.equal(done.state[name][..., DIM + 1], done.source[name][..., DIM + 1])


USER = transforms_of(ids("user", ["a", "b"]))


def test_new_tasks_and_more_experts(folder: Path) -> None:
    levels = [{"shared_experts": 1, "task_experts": 1, "hidden": [6]}] * 2
    more = [{"shared_experts": 2, "task_experts": 1, "hidden": [6]}, levels[1]]
    source = warm_experiment(("click", "buy"), model=PLE | {"levels": levels})
    target = warm_experiment(("like", "buy", "click"), model=PLE | {"levels": more})
    done = Started(folder, (source, USER), (target, USER))
    own, level = done.state, "extraction.levels.0."
    for here, there in (("task_1", "task_1"), ("task_2", "task_0")):
        name = "extraction.levels.0.experts.{}.weights.0"
        assert torch.equal(own[name.format(here)], done.source[name.format(there)])
        tower = "towers.towers.{}.hidden.0.weight"
        assert torch.equal(own[tower.format(here[-1])], done.source[tower.format(there[-1])])
    shared = f"{level}experts.shared.weights.0"
    assert torch.equal(own[shared][0], done.source[shared][0])
    assert torch.equal(own[shared][1], done.fresh[shared][1])
    for name in (f"{level}experts.task_0.weights.0", "towers.towers.0.out.weight"):
        assert torch.equal(own[name], done.fresh[name])
    # Columns of the shared gate, here: like, buy, click, shared 1, shared 2; there: click, buy,
    # shared 1.
    gate = f"{level}gates.shared.logits.out.weight"
    expected = done.fresh[gate].clone()
    expected[[1, 2, 3]] = done.source[gate][[1, 0, 2]]
    assert torch.equal(own[gate], expected)
    assert done.status("tower of like") == ("fresh", "not in the source")
    assert done.status("gate of shared, level 1") == ("resized", "3 of 5 experts")
    assert done.status("experts of shared, level 2") == ("taken", "")


def test_a_task_may_start_from_another_or_fresh(folder: Path) -> None:
    init = {"tasks": {"like": "click", "buy": None}}
    target = warm_experiment(("like", "click", "buy"), init=init)
    done = Started(folder, (warm_experiment(("click", "buy")), USER), (target, USER))
    for number_ in (0, 1):
        for name in ("experts.task_{}.weights.1", "gates.task_{}.logits.out.weight"):
            there = done.source["extraction.levels.0." + name.format(0)]
            assert torch.equal(done.state["extraction.levels.0." + name.format(number_)], there)
    fresh = "towers.towers.2.out.weight"
    assert torch.equal(done.state[fresh], done.fresh[fresh])
    assert done.plan.left_out == ("experts of buy", "gate of buy", "tower of buy")


def test_a_part_whose_shape_changed_is_fresh_as_a_whole(folder: Path) -> None:
    wider = {"levels": [{"shared_experts": 2, "task_experts": 1, "hidden": [9, 5]}]}
    target = warm_experiment(model=wider | {"tower_hidden": [3, 2]})
    done = Started(folder, (warm_experiment(), USER), (target, USER))
    for name, value in done.state.items():
        if not name.startswith("embeddings."):
            assert torch.equal(value, done.fresh[name]), name
    assert torch.equal(table_weight(done.state, "user"), table_weight(done.source, "user"))
    expected = "shape conflict: weights.0 is [2, 6, 16] in the source, [2, 9, 16] here, no units"
    assert done.status("experts of shared")[1] == f"{expected} in common"
    expected = "shape conflict: hidden.1.bias is only here"
    assert done.status("tower of click") == ("fresh", expected)
    assert "no experts in common" in done.status("gate of click")[1]
    lines = done.plan.lines()
    assert lines[0] == "taken: table user (by value)"
    conflict = "shape conflict: weights.0 is [1, 6, 16] in the source, [1, 9, 16] here"
    assert lines[1] == f"fresh: experts of click, experts of buy ({conflict}, no units in common)"
    tree = done.plan.to_tree()
    shown = {part["part"]: part for part in tree["parts"]}["experts of shared"]
    assert shown["tensors"]["extraction.levels.0.experts.shared.weights.0"] == {
        "shape": [2, 9, 16],
        "source": [2, 6, 16],
    }


def test_towers_of_another_kind_of_task_start_fresh(folder: Path) -> None:
    value = {"name": "buy", "loss": "squared_error"}
    target = warm_experiment(("click", value))
    done = Started(folder, (warm_experiment(), USER), (target, USER))
    assert done.status("tower of click")[0] == "taken"
    assert done.status("tower of buy") == ("fresh", "no outputs in common")


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_tables_come_as_float32(folder: Path, precision: ple.Precision) -> None:
    values = [f"v{i}" for i in range(600)]
    done = start(folder, [ids("user", values)], [ids("user", values[::-1])], precision=precision)
    source, fresh, got = done.tables("user")
    expected = torch.cat([source[:2], source[2:].flip(0)])
    # int8: a row is cut into 255 steps.
    step = (expected.amax(1) - expected.amin(1)).max() / 255
    limit = 2e-3 if precision == "fp16" else 0.51 * float(step)
    assert 0 < float((got - expected).abs().max()) < limit
    assert float((got - fresh).abs().max()) > 1


def test_a_map_of_ids_comes_with_its_rows(folder: Path) -> None:
    from ple.managed_ids import FREE

    features = [numbered_ids("item", "zero_collision", 8, buckets=2)]
    experiment, transforms = warm_experiment(), transforms_of(*features)
    source = fresh_state(experiment, transforms, seed=1)
    place = next(n for n in source if n.endswith("item.slot_ids")).removesuffix("slot_ids")
    # Bucket 0 holds even ids on rows 0 to 3, bucket 1 odd ones on rows 4 to 7.
    slots = {
        "slot_ids": [4, 10, FREE, FREE, 3, 5, 9, FREE],
        "slot_rows": [1, 0, 2, 3, 6, 4, 5, 7],
        "counts": [7, 2, 0, 0, 1, 9, 4, 0],
    }
    for name, values in slots.items():
        source[place + name] = torch.tensor(values)
    fresh = fresh_state(experiment, transforms, seed=2)
    found = version_source(folder / "source", experiment, transforms, source)
    plan = found.plan(experiment, transforms)
    state = {name: value.clone() for name, value in fresh.items()}
    fill(state, plan, found.weights(experiment))
    assert torch.equal(table_weight(state, "item"), table_weight(source, "item"))
    for name in ("slot_ids", "slot_rows"):
        assert state[place + name].tolist() == slots[name], name
    # A version does not know how often an id was seen.
    assert state[place + "counts"].tolist() == [1, 1, 0, 0, 1, 1, 1, 0]
    other = transforms_of(numbered_ids("item", "zero_collision", 16, buckets=2), ids("u", ["a"]))
    both = transforms_of(*features, ids("u", ["a"]))
    detail = next(
        o.detail
        for o in version_source(folder / "b", experiment, both, fresh_state(experiment, both, 1))
        .plan(experiment, other)
        .outcomes
        if o.title == "table item"
    )
    assert detail == (
        "a zero_collision map of 8 rows in 2 buckets in the source, of 16 rows in 2 buckets here"
    )


LEVELS = {
    "single_task": [{"hidden": [6]}],
    "shared_bottom": [{"hidden": [6]}],
    "moe": [{"shared_experts": 2, "hidden": [6]}] * 2,
    "mmoe": [{"shared_experts": 2, "hidden": [6], "gate_hidden": [4], "gate_bias": True}] * 2,
    "cgc": [{"shared_experts": 1, "task_experts": 2, "hidden": [6]}],
    "ple": [{"shared_experts": 1, "task_experts": 2, "hidden": [6]}] * 3,
    "adatt": [{"shared_experts": 2, "task_experts": 2, "hidden": [6]}] * 2,
    "home": [
        {"shared_experts": 1, "group_experts": 2, "hidden": [6]},
        {"shared_experts": 1, "group_experts": 1, "task_experts": 2, "hidden": [6]},
    ],
    "stem": [{"shared_experts": 1, "task_experts": 1, "hidden": [6]}] * 2,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "home": {"groups": {"z": ["click", "like"], "a": ["buy"]}},
    "cgc": {"interaction": {"layers": 2, "rank": 3}, "normalization": "batch"},
    "ple": {"fusion": "concatenation", "normalization": "layer"},
    "adatt": {"fusion": "sum_with_previous"},
    "single_task": {"interaction": {"layers": 1, "rank": 2}},
}
FEATURES = transforms_of(
    ids("user", ["a", "b", "c"]),
    numbered_ids("item", "hash", 9),
    number("price", [1.0, 2.0], flag=True),
)


def of_kind(kind: str, tasks: tuple[str, ...]) -> Experiment:
    model = {"kind": kind, "levels": LEVELS[kind], "tower_hidden": [3], **OPTIONS.get(kind, {})}
    given: list[str | dict[str, Any]] = [*tasks]
    if kind == "shared_bottom":
        given[1] = {"name": tasks[1], "transfer_from": tasks[0]}
    return warm_experiment(given, model=model)


@pytest.mark.parametrize("kind", LEVELS)
def test_the_same_model_of_any_kind_comes_whole(folder: Path, kind: str) -> None:
    model = of_kind(kind, ("click", "buy", "like")), FEATURES
    done = Started(folder, model, model)
    assert {outcome.status for outcome in done.plan.outcomes} == {"taken"}
    assert done.plan.left_out == ()
    for name, value in done.state.items():
        # Biases of columns that are always zero are never used.
        used = slice(3 * DIM + 2) if name.startswith("crosses") and "biases" in name else ...
        assert torch.equal(value[used], done.source[name][used]), name


@pytest.mark.parametrize("kind", ["single_task", "stem"])
def test_tables_and_slices_of_tasks_follow_the_task(folder: Path, kind: str) -> None:
    source = of_kind(kind, ("click", "buy")), FEATURES
    target = of_kind(kind, ("like", "buy")), FEATURES
    done = Started(folder, source, target)
    if kind == "single_task":
        assert torch.equal(
            table_weight(done.state, "item@buy"), table_weight(done.source, "item@buy")
        )
        fresh = table_weight(done.fresh, "item@like")
        assert torch.equal(table_weight(done.state, "item@like"), fresh)
        return
    there, fresh, got = done.tables("item")
    assert torch.equal(got[:, :DIM], fresh[:, :DIM])
    assert torch.equal(got[:, DIM:], there[:, DIM:])
    detail = "by hash, 8 of 12 columns, 4 columns of the source left out"
    assert done.status("table item") == ("resized", detail)


def test_nothing_in_common_is_refused(folder: Path) -> None:
    with pytest.raises(WarmStartError, match="nothing in the source matches") as caught:
        Started(
            folder,
            (
                warm_experiment(
                    ("click",), model={"kind": "shared_bottom", "levels": [{"hidden": [6]}]}
                ),
                transforms_of(ids("user", ["a"])),
            ),
            (warm_experiment(("like",)), transforms_of(ids("item", ["a"]))),
        )
    assert "Tasks here: like; there: click. Features here: item; there: user" in str(caught.value)


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ({"tasks": {"like": "click"}}, "init.tasks: this model has no 'like'; it has click, buy"),
        ({"tasks": {"buy": "like"}}, "init.tasks.buy: the source has no 'like'; it has click, buy"),
        ({"features": {"user": "u"}}, "init.features.user: the source has no 'u'; it has user"),
    ],
)
def test_names_that_are_none_are_refused(folder: Path, init: dict[str, Any], expected: str) -> None:
    with pytest.raises(WarmStartError) as caught:
        Started(folder, (warm_experiment(), USER), (warm_experiment(init=init), USER))
    assert str(caught.value) == expected
