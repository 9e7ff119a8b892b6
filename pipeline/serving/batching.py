"""Requests that wait at the same time become one call of the model."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.serving import BatchingConfig
from pipeline.serving.body import RequestError

Score = Callable[[pa.Table], np.ndarray]


@dataclass
class _Waiting:
    rows: pa.Table
    scores: "asyncio.Future[np.ndarray]"


class MicroBatcher:
    """Scores requests in the order they came, several to a call where they wait together.

    Belongs to one event loop. A call runs in `executor`, so that the loop goes on reading requests
    meanwhile; what came in during a call is the next one.

    Args:
        score: the model: B rows → scores_BT.
        config: sizes and waiting.
        executor: runs `score`; one thread, shared by all models of a process.
        on_call: told the rows of every call.
    """

    def __init__(
        self,
        score: Score,
        config: BatchingConfig,
        executor: Executor,
        on_call: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._score = score
        self._config = config
        self._executor = executor
        self._on_call = on_call
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0
        self._more = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    @property
    def queued_rows(self) -> int:
        """Rows that wait for a call."""
        return self._rows

    async def scores(self, rows: pa.Table) -> np.ndarray:
        """scores_BT of these rows.

        Raises:
            RequestError: too many rows wait already (503).
        """
        if self._rows and self._rows + rows.num_rows > self._config.queue_rows:
            raise RequestError(503, "overloaded", "too many rows wait to be scored; try again")
        waiting = _Waiting(rows, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._rows += rows.num_rows
        self._more.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await waiting.scores

    async def _work(self) -> None:
        """Runs calls until nothing waits."""
        while self._waiting:
            await self._gather()
            batch = self._take()
            if batch:
                await self._call(batch)

    async def _gather(self) -> None:
        """Gives others the time to join, unless a call is full already."""
        deadline = asyncio.get_running_loop().time() + self._config.max_wait_ms / 1000
        while self._rows < self._config.max_rows:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """The next requests that fit in a call together; at least one."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting:
            size = self._waiting[0].rows.num_rows
            if batch and rows + size > self._config.max_rows:
                break
            waiting = self._waiting.popleft()
            self._rows -= size
            if not waiting.scores.done():  # done: the client went away
                batch.append(waiting)
                rows += size
        return batch

    async def _call(self, batch: list[_Waiting]) -> None:
        tables = [waiting.rows for waiting in batch]
        rows = tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()
        self._on_call(rows.num_rows)
        loop = asyncio.get_running_loop()
        try:
            scores_BT = await loop.run_in_executor(self._executor, self._score, rows)
        except Exception as error:
            await self._fail(batch, error)
            return
        start = 0
        for waiting in batch:
            stop = start + waiting.rows.num_rows
            if not waiting.scores.done():
                waiting.scores.set_result(scores_BT[start:stop])
            start = stop

    async def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        """One request must not fail the others of its call: each is tried alone."""
        if len(batch) == 1:
            if not batch[0].scores.done():
                batch[0].scores.set_exception(error)
            return
        for waiting in batch:
            await self._call([waiting])
