"""A run waits for the verdict on each evaluation, and ends where it says so."""

import threading
from collections.abc import Callable

import pytest

from pipeline.comparison.slots import LatestProgress
from pipeline.config import ConfigError, Experiment
from pipeline.evaluation.selection import selection_metric
from pipeline.training.guard import Request
from pipeline.training.report import Progress
from pipeline.tuning.trial_slot import JudgedRun, Posting

Build = Callable[..., Experiment]
FIGURES = {
    "valid/click/auc": 0.7,
    "valid/click/logloss": 0.4,
    "valid/like/auc": 0.6,
    "valid/like/logloss": 0.2,
}


def judged(build: Build, metric: str) -> JudgedRun:
    run = JudgedRun(selection_metric(metric, build({}).tasks), LatestProgress())
    run.progress(Progress("evaluating", 1, 2, 10, 20, 64))
    return run


def posted(run: JudgedRun, step: int, values: dict[str, float]) -> threading.Thread:
    """The loop's thread, which posts an evaluation and waits."""
    thread = threading.Thread(target=run.metrics, args=(step, step // 10, values), daemon=True)
    thread.start()
    return thread


def first_heard(run: JudgedRun) -> list[Posting]:
    for _ in range(1000):
        heard = run.heard()
        if heard:
            return heard
        threading.Event().wait(0.005)
    raise AssertionError("nothing was posted")


@pytest.mark.parametrize(
    ("metric", "value"),
    [("mean_auc", 0.65), ("like/auc", 0.6), ("click/logloss", 0.4), ("joint_loss", 0.6)],
)
def test_an_evaluation_is_one_number_and_waits(searched: Build, metric: str, value: float) -> None:
    run = judged(searched, metric)
    loop = posted(run, 10, FIGURES)
    (posting,) = first_heard(run)
    assert posting.judged == pytest.approx(value)
    assert (posting.step, posting.epoch, posting.values, posting.last) == (10, 1, FIGURES, False)
    loop.join(0.05)
    assert loop.is_alive()
    assert run.heard() == []
    run.answer(stop=False)
    loop.join(5)
    assert not loop.is_alive()
    assert run.request() is Request.NONE
    # The verdict on one evaluation is none on the next.
    second = posted(run, 20, FIGURES)
    (posting,) = first_heard(run)
    assert posting.last
    second.join(0.05)
    assert second.is_alive()
    run.answer(stop=True)
    second.join(5)
    assert run.request() is Request.STOP


def test_losses_do_not_wait_and_repeated_evaluations_are_dropped(searched: Build) -> None:
    run = judged(searched, "mean_auc")
    run.metrics(5, 1, {"train/loss": 0.5})
    loop = posted(run, 10, FIGURES)
    while loop.is_alive():
        run.answer(stop=False)
        loop.join(0.01)
    # As the trainer does at its end.
    run.metrics(5, 1, {"train/loss": 0.5})
    run.metrics(10, 1, FIGURES)
    judgements = [posting.judged for posting in run.heard()]
    assert judgements == [None, pytest.approx(0.65), None]


def test_an_undefined_figure_is_left_out_of_the_mean_or_refused(searched: Build) -> None:
    values = {key: value for key, value in FIGURES.items() if key != "valid/like/auc"}
    run = judged(searched, "mean_auc")
    loop = posted(run, 10, values)
    assert first_heard(run)[0].judged == 0.7
    run.answer(stop=False)
    loop.join(5)
    with pytest.raises(ConfigError, match="like/auc is undefined"):
        judged(searched, "like/auc").metrics(10, 1, values)
