"""Which of several workers' failures is told, and what is said when a process died in silence."""

from pipeline.checkpoint.errors import CheckpointError
from pipeline.cluster.failure import Failure, Place, failure_message
from pipeline.data.manifest import DatasetError

ERROR = RuntimeError("Training failed\nlogs in /tmp/ray")


def failure(rank: int, message: str, expected: bool) -> Failure:
    return Failure(rank, message, expected, trace=f"trace of {rank}")


def test_the_projects_own_error_is_told_alone() -> None:
    lost = failure(0, "RuntimeError: Connection closed by peer", expected=False)
    own = failure(1, "train/part-0.parquet: label click is 2", expected=True)
    assert failure_message([lost, own], 2, ERROR) == own.message


def test_an_unexpected_error_comes_with_its_trace() -> None:
    lost = failure(0, "RuntimeError: Connection reset", expected=False)
    bug = failure(1, "KeyError: 'x'", expected=False)
    assert failure_message([lost, bug], 2, ERROR) == "KeyError: 'x'\ntrace of 1"


def test_a_worker_that_died_in_silence_is_named() -> None:
    lost = failure(0, "RuntimeError: [gloo] Connection closed by peer", expected=False)
    message = failure_message([lost], 2, ERROR)
    assert message.startswith("worker(s) 1 of 2 died")
    assert "lower data.batch_size" in message
    assert message.endswith("logs in /tmp/ray")
    assert failure_message([], 3, ERROR).startswith("worker(s) 0, 1, 2 of 3 died")


def test_a_hang_says_where_each_worker_was() -> None:
    late = failure(0, "RuntimeError: [gloo] Timed out waiting 600000ms for recv", expected=False)
    places = {1: Place(12, "waiting for data", 601.4), 0: Place(13, "training step", 600.0)}
    message = failure_message([late], 2, ERROR, places)
    assert message == (
        "the workers waited for one another longer than failures.collective_timeout_seconds"
        "; worker 0 was last at: training step, step 13, for 600 s"
        "; worker 1 was last at: waiting for data, step 12, for 601 s"
    )


def test_what_another_try_would_repeat_is_told_from_what_it_may_mend() -> None:
    assert Failure.of(1, DatasetError("a shard is gone")).expected
    assert not Failure.of(1, KeyError("x")).expected
    assert Failure.of(0, CheckpointError("no space left on the disk")).expected
    assert not Failure.of(0, CheckpointError("saving: Connection closed by peer")).expected
