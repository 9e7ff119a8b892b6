"""Which of several workers' failures is told, and what is said when a process died in silence."""

from pipeline.cluster.board import Failure
from pipeline.cluster.launch import failure_message

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
