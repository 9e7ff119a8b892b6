"""A generated log in the shape of a data set one does not have: its columns, sizes, label rates.

Every task's logit is the sum of an effect of each id, drawn once per id and task, and of a wave of
each number. The effects of one id on two tasks have the correlation the schema asks for. A binary
label is a coin thrown with the logit's probability, so the best reachable AUC is known; a number
is the logit with Gaussian noise, so the lowest reachable RMSE is known.

Shapes: B rows, T tasks, V values of an id column.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from pipeline.config.base import Section
from pipeline.config.tasks import TaskConfig
from pipeline.data.manifest import SPLITS, Column, DatasetError
from pipeline.data.preparing.recipes.base import Blocks, Ceilings, Recipe
from pipeline.data.preparing.recipes.clicklog_ceiling import CeilingAuc

BLOCK_ROWS = 32_768
_SAMPLE_ROWS = 65_536

Floats = npt.NDArray[np.float32]


class SimulatedId(Section):
    """A column of integer ids."""

    name: str = Field(description="Column name.")
    values: PositiveInt = Field(description="Distinct ids, 0 … values-1.")
    skew: float = Field(
        default=0.6, ge=0, lt=1, description="Popularity falls as rank to the power -skew."
    )


class SimulatedNumber(Section):
    """One column of standard normal numbers, or several alike."""

    name: str = Field(description="Column name; with `count`, {} stands for 1, 2, …")
    count: PositiveInt | None = Field(default=None, description="How many such columns.")

    @property
    def names(self) -> list[str]:
        if self.count is None:
            return [self.name]
        return [self.name.format(number) for number in range(1, self.count + 1)]


class SimulatedTask(Section):
    """One label."""

    name: str = Field(description="Label column and task name.")
    kind: Literal["binary", "number"] = Field(default="binary", description="What the label is.")
    rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="binary: share of ones among the rows of its space."
    )
    noise: PositiveFloat | None = Field(
        default=None, description="number: deviation of the noise around the row's own mean."
    )
    space: str | None = Field(
        default=None, description="Label without which this one is 0 and not trained on."
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if (self.rate is None) == (self.kind == "binary"):
            raise ValueError("`rate` belongs to kind: binary, and only there")
        if (self.noise is None) == (self.kind == "number"):
            raise ValueError("`noise` belongs to kind: number, and only there")
        return self


class SimulatedSchema(Section):
    """Columns and labels of a simulated log."""

    name: str = Field(description="Dataset name.")
    ids: list[SimulatedId] = Field(default_factory=list, description="Id columns.")
    numbers: list[SimulatedNumber] = Field(default_factory=list, description="Number columns.")
    tasks: list[SimulatedTask] = Field(min_length=1, description="Labels, in order.")
    correlation: float = Field(
        default=0.5, ge=0, le=1, description="Of an id's effects on any two tasks."
    )
    spread: PositiveFloat = Field(default=1.2, description="Deviation of every task's logit.")

    @property
    def number_names(self) -> list[str]:
        return [name for number in self.numbers for name in number.names]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.ids and not self.numbers:
            raise ValueError("no columns: list some under ids or numbers")
        names = [c.name for c in self.ids] + self.number_names + [t.name for t in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"columns named twice: {', '.join(repeated)}")
        before: dict[str, str] = {}
        for task in self.tasks:
            if task.space is not None and before.get(task.space) != "binary":
                raise ValueError(
                    f"space {task.space!r} of {task.name!r} must be a binary task above"
                )
            before[task.name] = task.kind
        return self


def load_schema(path: str | Path) -> SimulatedSchema:
    """Reads a schema file. Raises DatasetError, naming the key and the remedy."""
    try:
        return SimulatedSchema.model_validate(yaml.safe_load(Path(path).read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: cannot read the schema: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise DatasetError(f"{path}: " + "; ".join(lines)) from None


def simulate(schema: SimulatedSchema, rows: int, seed: int) -> Recipe:
    """The simulated log as a recipe: ``rows`` train rows, an eighth as many of each other split."""
    if rows < 8:
        raise DatasetError(f"--rows {rows}: make it 8 or more")
    blocks = Blocks({"train": rows, "valid": rows // 8, "test": rows // 8}, BLOCK_ROWS)
    world = _World(schema, seed)
    best = {s: {t.name: CeilingAuc() for t in schema.tasks if t.rate} for s in SPLITS}

    def read() -> Iterator[tuple[str, pa.RecordBatch]]:
        for split, number, count in blocks:
            random = np.random.default_rng([seed, SPLITS.index(split), number])
            yield split, world.block(random, best[split]).slice(0, count)

    def ceilings() -> Ceilings:
        return {
            split: {task: {"auc": auc} for task, c in tasks.items() if (auc := c.auc) is not None}
            for split, tasks in best.items()
        }

    return Recipe(
        name=schema.name,
        columns=(
            *(Column(column.name, "categorical", "int64") for column in schema.ids),
            *(Column(name, "numeric", "float") for name in schema.number_names),
            *(
                Column(t.name, "label", "int8" if t.kind == "binary" else "float")
                for t in schema.tasks
            ),
        ),
        tasks=tuple(
            TaskConfig(
                name=t.name,
                space=t.space,
                loss="binary_cross_entropy" if t.kind == "binary" else "squared_error",
            )
            for t in schema.tasks
        ),
        read=read,
        share=blocks.share,
        ceilings=ceilings,
        source={"recipe": "simulate", "schema": schema.model_dump(), "rows": rows, "seed": seed},
    )


@dataclass(frozen=True)
class _Wave:
    """A number's effect on the tasks: height_T · sin(speed·x + phase)."""

    speed: float
    phase: float
    height_T: Floats


class _World:
    """The effects behind a schema's log, drawn once."""

    def __init__(self, schema: SimulatedSchema, seed: int) -> None:
        self._schema = schema
        random = np.random.default_rng([seed, 0xD1CE])
        T = len(schema.tasks)
        correlation = np.full((T, T), schema.correlation) + np.eye(T) * (1 - schema.correlation)
        # A correlation of 1 leaves a matrix without an inverse, which has a root all the same.
        values, vectors = np.linalg.eigh(correlation)
        mixing_TT = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
        sources = len(schema.ids) + len(schema.number_names)
        scale = schema.spread / np.sqrt(sources)
        self._effects = [
            (scale * random.standard_normal((column.values, T)) @ mixing_TT).astype(np.float32)
            for column in schema.ids
        ]
        self._waves = [
            _Wave(
                speed=float(random.uniform(0.5, 2.0)),
                phase=float(random.uniform(0, 2 * np.pi)),
                height_T=(1.4 * scale * random.standard_normal(T) @ mixing_TT).astype(np.float32),
            )
            for _ in schema.number_names
        ]
        self._bias_T = self._biases(np.random.default_rng([seed, 0xB1A5]))

    def block(self, random: np.random.Generator, best: dict[str, CeilingAuc]) -> pa.RecordBatch:
        """``BLOCK_ROWS`` rows; ``best`` hears of the true probabilities."""
        columns, logits_BT = self._draw(random, BLOCK_ROWS)
        logits_BT += self._bias_T
        labels: dict[str, npt.NDArray[np.generic]] = {}
        for t, task in enumerate(self._schema.tasks):
            inside = np.ones(BLOCK_ROWS, bool) if task.space is None else labels[task.space] == 1
            if task.noise is not None:
                noise_B = random.standard_normal(BLOCK_ROWS, np.float32)
                value_B = logits_BT[:, t] + np.float32(task.noise) * noise_B
                labels[task.name] = np.where(inside, value_B, np.float32(0))
                continue
            probability_B = 1 / (1 + np.exp(-logits_BT[:, t]))
            thrown_B = random.random(BLOCK_ROWS, np.float32) < probability_B
            label_B = (thrown_B & inside).astype(np.int8)
            labels[task.name] = label_B
            best[task.name].update(probability_B[inside], label_B[inside])
        arrays = {name: pa.array(values) for name, values in (columns | labels).items()}
        return pa.RecordBatch.from_pydict(arrays)

    def _draw(
        self, random: np.random.Generator, rows: int
    ) -> tuple[dict[str, npt.NDArray[np.generic]], Floats]:
        logits_BT = np.zeros((rows, len(self._schema.tasks)), np.float32)
        columns: dict[str, npt.NDArray[np.generic]] = {}
        for column, effect_VT in zip(self._schema.ids, self._effects, strict=True):
            power = 1 - column.skew
            uniform = random.random(rows)
            rank = (uniform * ((column.values + 1) ** power - 1) + 1) ** (1 / power) - 1
            id_B = np.minimum(rank, column.values - 1).astype(np.int64)
            columns[column.name] = id_B
            logits_BT += effect_VT[id_B]
        for name, wave in zip(self._schema.number_names, self._waves, strict=True):
            x_B = random.standard_normal(rows, np.float32)
            columns[name] = x_B
            logits_BT += np.sin(wave.speed * x_B + wave.phase)[:, None] * wave.height_T
        return columns, logits_BT

    def _biases(self, random: np.random.Generator) -> Floats:
        """What brings every binary label to its rate, by bisection on a sample."""
        _, logits_BT = self._draw(random, _SAMPLE_ROWS)
        probability: dict[str, Floats] = {}
        bias_T = np.zeros(len(self._schema.tasks), np.float32)
        for t, task in enumerate(self._schema.tasks):
            if task.rate is None:
                continue
            # A row of the sample counts as much as it is likely to be in the space.
            weight_B = np.ones(_SAMPLE_ROWS, np.float32)
            if task.space is not None:
                weight_B = probability[task.space]
            low, high = -30.0, 30.0
            for _ in range(50):
                middle = (low + high) / 2
                probability_B = 1 / (1 + np.exp(-(logits_BT[:, t] + np.float32(middle))))
                mean = float((probability_B * weight_B).sum() / weight_B.sum())
                low, high = (low, middle) if mean > task.rate else (middle, high)
            bias_T[t] = (low + high) / 2
            probability[task.name] = weight_B * probability_B
        return bias_T
