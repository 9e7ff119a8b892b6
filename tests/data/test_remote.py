"""Reads that fail: tried again, bounded in number and time, and never taken for damage."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from pipeline.data.faults import OutageError
from pipeline.data.remote import FileChangedError, RemoteFile, RetryPolicy

CONTENT = bytes(range(256)) * 4
QUICK = RetryPolicy(attempts=3, timeout=0.2, first_wait=0.01, longest_wait=0.02)


class Handle:
    """A handle whose reads do what they are told, one order after the other."""

    def __init__(self, orders: list[Any], content: bytes = CONTENT) -> None:
        self.orders, self.content = orders, content

    def size(self) -> int:
        return len(self.content)

    def read_at(self, count: int, at: int) -> bytes:
        order = self.orders.pop(0) if self.orders else None
        if isinstance(order, Exception):
            raise order
        if callable(order):
            order()
        if isinstance(order, int):
            count = order
        return self.content[at : at + count]


def remote(
    orders: list[Any], opening: Callable[[], None] = lambda: None
) -> tuple[RemoteFile, Counter[str]]:
    counters: Counter[str] = Counter()

    def open_input() -> Any:
        opening()
        return Handle(orders)

    return RemoteFile(open_input, "s3://bucket/file", QUICK, counters), counters


def test_reads_as_a_file_does() -> None:
    file, counters = remote([])
    with pa.PythonFile(file, mode="r") as arrow:
        assert arrow.size() == 1024
        assert arrow.read_at(10, 250) == CONTENT[250:260]
        arrow.seek(-4, 2)
        assert arrow.read() == CONTENT[-4:]
        assert arrow.read(5) == b""
    assert not counters


@pytest.mark.parametrize(
    "fault", [OSError("curlCode: 56"), pa.ArrowInvalid("?"), 3, lambda: time.sleep(0.5)]
)
def test_a_failed_read_is_tried_again(fault: Any) -> None:
    file, counters = remote([fault, fault])
    file.seek(100)
    assert file.read(10) == CONTENT[100:110]
    assert file.tell() == 110
    assert counters == {"read_retries": 2}


@pytest.mark.parametrize("fault", [OSError("500"), 0])
def test_an_outage_after_all_attempts(fault: Any) -> None:
    file, counters = remote([fault] * 3)
    message = r"s3://bucket/file: could not be fetched in 3 attempt\(s\) .*raise data\.faults"
    with pytest.raises(OutageError, match=message):
        file.read(10)
    assert counters == {"read_retries": 2}
    assert file.read(10) == CONTENT[:10]  # the store is back


def test_a_stalled_store_is_an_outage_within_its_time() -> None:
    never = threading.Event()
    started = time.perf_counter()
    with pytest.raises(OutageError, match=r"no answer within 0\.2 seconds"):
        remote([], opening=lambda: never.wait(20) and None)
    assert time.perf_counter() - started < 3
    never.set()


def test_an_absent_file_is_not_asked_for_twice() -> None:
    calls = []

    def absent() -> None:
        calls.append(1)
        raise FileNotFoundError("s3://bucket/file")

    with pytest.raises(FileNotFoundError):
        remote([], opening=absent)
    assert len(calls) == 1


def test_a_file_of_another_size_is_not_the_same_file() -> None:
    contents = [CONTENT, CONTENT[:-1]]
    file = RemoteFile(
        lambda: Handle([OSError("cut")], contents.pop(0)),  # type: ignore[arg-type,return-value]
        "file",
        QUICK,
        Counter(),
    )
    with pytest.raises(FileChangedError, match="had 1024 bytes when opened, now has 1023"):
        file.read(10)


def test_waits_grow_to_a_limit_and_differ() -> None:
    policy = RetryPolicy(first_wait=0.2, longest_wait=10.0)
    for attempt, longest in ((1, 0.2), (2, 0.4), (5, 3.2), (9, 10.0)):
        waits = [policy.wait(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits) < 0.6 * longest
        assert 0.9 * longest < max(waits) <= longest
