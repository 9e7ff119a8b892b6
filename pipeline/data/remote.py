"""Files of an object store, read through failures of the network."""

import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from pipeline.data.faults import OutageError

Result = TypeVar("Result")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a failed read is tried again.

    The wait before attempt n + 1 is drawn between half and all of
    ``min(first_wait · 2^(n - 1), longest_wait)`` seconds, so that workers that failed together do
    not come back together.

    Attributes:
        attempts: in all.
        timeout: seconds after which an attempt has failed, whatever the file system does.
        first_wait, longest_wait: seconds.
    """

    attempts: int = 6
    timeout: float = 60.0
    first_wait: float = 0.2
    longest_wait: float = 10.0

    def wait(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number ``attempt``, from 1."""
        longest = min(self.first_wait * 2.0 ** (attempt - 1), self.longest_wait)
        return longest * random.uniform(0.5, 1.0)


class FileChangedError(OSError):
    """A file has another size than when it was opened."""


class RemoteFile(io.RawIOBase):
    """A file whose reads are tried again, on a freshly opened handle, until they succeed.

    What decodes it sees all bytes or an OutageError: whatever else goes wrong in decoding is the
    fault of the bytes.

    Args:
        open_input: opens the file anew.
        name: for messages.
        retry: how often.
        counters: counts ``read_retries``.

    Raises:
        FileNotFoundError: there is no such file (not tried again).
        OutageError: the store did not answer in all attempts.
    """

    def __init__(
        self,
        open_input: Callable[[], pa.NativeFile],
        name: str,
        retry: RetryPolicy,
        counters: Counter[str],
    ) -> None:
        super().__init__()
        self._open_input = open_input
        self._name = name
        self._retry = retry
        self._counters = counters
        self._handle: pa.NativeFile | None = None
        self._size: int | None = None
        self._at = 0
        self._tried(self._opened)

    def read(self, size: int | None = -1) -> bytes:
        assert self._size is not None
        left = max(self._size - self._at, 0)
        count = left if size is None or size < 0 else min(size, left)
        if count == 0:
            return b""
        content = self._tried(lambda: self._fetched(count))
        self._at += count
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert self._size is not None
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        assert self._size is not None
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        # The handle is not closed: a stalled attempt may still be using it.
        self._handle = None
        super().close()

    def _opened(self) -> pa.NativeFile:
        if self._handle is None:
            handle = self._open_input()
            size = handle.size()
            if self._size is not None and size != self._size:
                raise FileChangedError(f"had {self._size} bytes when opened, now has {size}")
            self._handle, self._size = handle, size
        return self._handle

    def _fetched(self, count: int) -> bytes:
        content: bytes = self._opened().read_at(count, self._at)
        if len(content) != count:
            raise OSError(f"{len(content)} bytes came where {count} were asked for")
        return content

    def _tried(self, fetch: Callable[[], Result]) -> Result:
        for attempt in range(1, self._retry.attempts + 1):
            try:
                return _within(self._retry.timeout, fetch)
            except (FileNotFoundError, FileChangedError):
                raise
            except (OSError, pa.ArrowException) as error:
                self._handle = None
                if attempt == self._retry.attempts:
                    raise OutageError(
                        f"{self._name}: could not be fetched in {attempt} attempt(s) ({error}); "
                        "check the store, its credentials and the network, or raise "
                        "data.faults.read_attempts"
                    ) from error
                self._counters["read_retries"] += 1
                time.sleep(self._retry.wait(attempt))
        raise AssertionError("a retry policy of no attempts")


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """What ``call`` returns or raises; TimeoutError if it has done neither after ``seconds``."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    # A daemon: a call that never comes back must not keep the process from ending.
    thread = threading.Thread(target=work, name="fetch", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return results[0]
