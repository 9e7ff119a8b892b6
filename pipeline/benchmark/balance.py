"""What balancing costs: a step of every method against a plain step of the same model.

The plain step does what training cannot do without: the weighted sum of the task losses over the
global batch, one backward pass, the optimizers. All subjects train the same weights in turn.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ple
from pipeline.benchmark.data_sets import TASKS, write_benchmark_dataset
from pipeline.benchmark.model import BATCH_SIZE, benchmark_experiment, trainer_here
from pipeline.benchmark.pairs import Ratio, interleaved
from pipeline.config.balance import BalanceConfig
from pipeline.config.tasks import TaskConfig
from pipeline.data.batch import Batch
from pipeline.model import build_heads
from pipeline.training.joint_loss import JointLoss
from pipeline.training.step import TrainStep
from pipeline.training.trainer import Trainer

_TABLE_ROWS = 100_000
_BATCHES = 8
_STEPS = 4
_METHODS: dict[str, dict[str, Any]] = {
    "static": {},
    "decay": {"gamma": 0.9},
    "uncertainty": {},
    "dwa": {},
    "gradnorm": {},
    "mgda": {},
    "pcgrad": {},
    "cagrad": {},
    "norm": {},
}


def measure_balance(pairs: int, threads: int, task_counts: tuple[int, ...] = (2, 4)) -> dict:
    """``ratio_METHOD_TASKS``: seconds of a step over those of the plain one, renewed every step.

    Gradients are compared at the last level; ``ratio_pcgrad_features_TASKS`` at the features. The
    methods that need no gradients measure them at log steps only, here one step in 50.

    Args:
        pairs: interleaved rounds of all methods.
        threads: intra-op threads.
        task_counts: numbers of tasks to measure with.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    summary: dict[str, Any] = {"pairs": pairs, "threads": threads, "batch_size": BATCH_SIZE}
    try:
        with tempfile.TemporaryDirectory(prefix="ple-benchmark-") as name:
            write_benchmark_dataset(Path(name), _BATCHES * BATCH_SIZE, 0)
            experiment = benchmark_experiment(Path(name), _TABLE_ROWS)
            for count in task_counts:
                # The cost does not ask what the labels mean: with four tasks each serves two.
                labels = itertools.islice(itertools.cycle(TASKS), count)
                tasks = [
                    TaskConfig(name=f"task_{i}", label=task.name) for i, task in enumerate(labels)
                ]
                with trainer_here(experiment.model_copy(update={"tasks": tasks})) as trainer:
                    summary |= _ratios(trainer, pairs, count)
    finally:
        torch.set_num_threads(before)
    return summary


def _ratios(trainer: Trainer, pairs: int, count: int) -> dict[str, Any]:
    batches = list(trainer.batches(0))
    heads = build_heads(trainer.tasks)
    configs = {name: BalanceConfig(kind=name, **more) for name, more in _METHODS.items()}
    configs["pcgrad_features"] = BalanceConfig(kind="pcgrad", boundary="features")
    plain = _timed(_plain_step(trainer, heads), itertools.cycle(batches))
    # A plain turn right before every method's: what else the machine does meets both alike.
    subjects: dict[str, Callable[[], float]] = {}
    for name, config in configs.items():
        joint_loss = JointLoss(
            trainer.tasks,
            heads,
            config,
            trainer.context.device,
            trainer.clock,
            steps_per_epoch=trainer.steps_per_epoch,
            measure_every=trainer.experiment.train.log_every,
        )
        step = TrainStep(trainer.model, trainer.optimizers, joint_loss, trainer.clock)
        subjects |= {f"plain {name}": plain, name: _timed(step, itertools.cycle(batches))}
    measured = interleaved(subjects, pairs)
    plains = [value for name in configs for value in measured[f"plain {name}"]]
    summary: dict[str, Any] = {f"plain_step_seconds_{count}": statistics.median(plains)}
    for name in configs:
        rounds = zip(measured[name], measured[f"plain {name}"], strict=True)
        ratio = Ratio.of([subject / before for subject, before in rounds])
        summary[f"ratio_{name}_{count}"] = ratio.median
        summary[f"spread_{name}_{count}"] = [ratio.low, ratio.high]
    return summary


def _timed(step: Callable[[Batch, int], None], batches: Iterator[Batch]) -> Callable[[], float]:
    numbers = itertools.count()

    def seconds_per_step() -> float:
        started = time.perf_counter()
        for _ in range(_STEPS):
            step(next(batches), next(numbers))
        return (time.perf_counter() - started) / _STEPS

    return seconds_per_step


def _plain_step(trainer: Trainer, heads: ple.Heads) -> Callable[[Batch, int], None]:
    def step(batch: Batch, number: int) -> None:
        totals_T = batch.weights_BT.sum(0)
        dist.all_reduce(totals_T)
        trainer.optimizers.prepare(number)
        outputs_BT = trainer.model(batch.ids, batch.weighted_ids, batch.dense_BN)
        numerators_T = heads.losses(outputs_BT, batch.labels_BT, batch.weights_BT)
        (numerators_T / totals_T).sum().backward()
        trainer.optimizers.step()

    return step
