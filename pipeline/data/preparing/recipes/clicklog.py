"""A click log made up so that the best possible model is known: ids, lists, numbers, three tasks.

Every task t has a logit that is a function of what the row shows,

    logit_t = bias_t + Σ_field effect_t[id] + Σ_list Σ_j w_j·effect_t[id_j]
              + <taste_t[user], topic_t[category]> + curve_t(numbers, missing flags),

and its label is a coin thrown with probability sigmoid(logit_t). The effects of one id on the
tasks are drawn from a Gaussian whose correlation between ``click`` and ``like`` is an option
(negative: what earns clicks loses likes), between ``click`` and ``convert`` 0.5. A conversion
exists only after a click: its label is 0 without one, and its sample space is ``click``.

As the true probabilities are known, so is the best AUC any model can reach on these very rows in
expectation; it goes into the manifest as the ceiling of each split and task.

Rows come in blocks, each with its own seed: a block is the same whatever the number of rows asked
for, as long as users and items are as many.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import SPLITS, Column, DatasetError
from pipeline.data.preparing.recipes.base import Blocks, Ceilings, Recipe
from pipeline.data.preparing.recipes.clicklog_ceiling import CeilingAuc
from pipeline.data.preparing.recipes.clicklog_world import TASKS, World

BLOCK_ROWS = 32_768

COLUMNS = (
    Column("user_id", "categorical", "int64"),
    Column("item_id", "categorical", "int64"),
    Column("category", "categorical", "string"),
    Column("city", "categorical", "int64"),
    Column("device", "categorical", "string"),
    Column("hour", "categorical", "int64"),
    Column("item_tags", "categorical", "list<item: int64>"),
    Column("interests", "categorical", "list<item: string>"),
    Column("interest_weights", "weight", "list<item: float>", weight_of="interests"),
    Column("age", "numeric", "float"),
    Column("price", "numeric", "float"),
    Column("hours_since_visit", "numeric", "float"),
    Column("session_depth", "numeric", "float"),
)


@dataclass(frozen=True)
class ClicklogOptions:
    """Size and shape of the log.

    Attributes:
        rows: train rows.
        valid_rows, test_rows: rows of the other splits; absent = an eighth of `rows`.
        seed: everything random follows from it.
        tasks: which of click, convert and like to label.
        correlation: of an id's effects on click and on like, -1 … 1.
        users, items: distinct ids; absent = a two-hundredth and a four-hundredth of `rows`.
    """

    rows: int = 400_000
    valid_rows: int | None = None
    test_rows: int | None = None
    seed: int = 0
    tasks: tuple[str, ...] = TASKS
    correlation: float = -0.4
    users: int | None = None
    items: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown or not self.tasks:
            raise DatasetError(f"--tasks {','.join(self.tasks)}: choose from {', '.join(TASKS)}")
        if "convert" in self.tasks and "click" not in self.tasks:
            raise DatasetError("--tasks: convert exists only after a click; add click")
        if not -1 <= self.correlation <= 1:
            raise DatasetError(f"--correlation {self.correlation}: must lie in -1 … 1")
        for name in ("rows", "valid_rows", "test_rows", "users", "items"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DatasetError(f"--{name.replace('_', '-')} {value}: must be positive")

    def split_rows(self) -> dict[str, int]:
        eighth = max(self.rows // 8, 1)
        return {
            "train": self.rows,
            "valid": self.valid_rows or eighth,
            "test": self.test_rows or eighth,
        }


def clicklog(options: ClicklogOptions) -> Recipe:
    """The generated click log as a recipe."""
    world = World(
        seed=options.seed,
        users=options.users or min(max(options.rows // 200, 50), 20_000_000),
        items=options.items or min(max(options.rows // 400, 50), 10_000_000),
        correlation=options.correlation,
    )
    blocks = Blocks(options.split_rows(), BLOCK_ROWS)
    ceilings = {split: {task: CeilingAuc() for task in options.tasks} for split in SPLITS}

    def read() -> Iterator[tuple[str, pa.RecordBatch]]:
        for split, block, size in blocks:
            yield split, _block(world, options, split, block, size, ceilings[split])

    def known_ceilings() -> Ceilings:
        return {
            split: {task: {"auc": auc} for task, c in by_task.items() if (auc := c.auc) is not None}
            for split, by_task in ceilings.items()
        }

    labels = tuple(Column(task, "label", "int8") for task in options.tasks)
    return Recipe(
        name="clicklog",
        columns=(*COLUMNS, *labels),
        tasks=tuple(
            TaskConfig(name=t, space="click" if t == "convert" else None) for t in options.tasks
        ),
        read=read,
        share=blocks.share,
        ceilings=known_ceilings,
        source={"recipe": "clicklog", **asdict(options), "tasks": list(options.tasks)},
    )


def _block(
    world: World,
    options: ClicklogOptions,
    split: str,
    block: int,
    size: int,
    ceilings: dict[str, CeilingAuc],
) -> pa.RecordBatch:
    random = np.random.default_rng([options.seed, SPLITS.index(split), block])
    features, probabilities_BT = world.draw(random, BLOCK_ROWS)
    thrown_BT = random.random(probabilities_BT.shape, dtype=np.float32) < probabilities_BT
    labels: dict[str, npt.NDArray[np.int8]] = {}
    for number, task in enumerate(TASKS):
        happened = thrown_BT[:size, number]
        if task == "convert":
            happened = happened & thrown_BT[:size, TASKS.index("click")]
        labels[task] = happened.astype(np.int8)
    for task, ceiling in ceilings.items():
        probability, label = probabilities_BT[:size, TASKS.index(task)], labels[task]
        if task == "convert":
            clicked = labels["click"] == 1
            probability, label = probability[clicked], label[clicked]
        ceiling.update(probability, label)
    arrays = [features[column.name].slice(0, size) for column in COLUMNS]
    arrays += [pa.array(labels[task]) for task in options.tasks]
    names = [*(c.name for c in COLUMNS), *options.tasks]
    return pa.RecordBatch.from_arrays(arrays, names)
