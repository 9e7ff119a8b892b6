import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config.serving import BatchingConfig
from pipeline.serving.batching import MicroBatcher
from pipeline.serving.body import RequestError


def rows(*values):
    return pa.table({"x": pa.array(values, pa.float64())})


class Model:
    """Doubles x; notes the rows of its calls; waits at a gate where there is one."""

    def __init__(self, gate=None):
        self.calls = []
        self.gate = gate

    def __call__(self, table):
        if self.gate is not None:
            assert self.gate.wait(10)
        x = table["x"].to_numpy()
        self.calls.append(x.tolist())
        if (x < 0).any():
            raise ValueError("negative")
        return 2 * x[:, None]


def run(scenario, model, **settings):
    async def main():
        with ThreadPoolExecutor(1) as executor:
            seen = []
            batcher = MicroBatcher(model, BatchingConfig(**settings), executor, seen.append)
            result = await scenario(batcher)
            assert sorted(seen) == sorted(len(call) for call in model.calls)
            assert batcher.queued_rows == 0
            return result

    return asyncio.run(main())


async def held(batcher, model, *requests):
    """A first request holds the model while the others queue up behind it."""
    tasks = [asyncio.create_task(batcher.scores(rows(0)))]
    await asyncio.sleep(0.05)
    tasks += [asyncio.create_task(batcher.scores(rows(*values))) for values in requests]
    await asyncio.sleep(0.05)
    model.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return results[1:]


def test_requests_that_wait_together_share_a_call_and_get_their_own_scores():
    model = Model(threading.Event())
    found = run(lambda b: held(b, model, [1, 2], [3], [4, 5, 6]), model, max_rows=5)
    assert [scores.tolist() for scores in found] == [[[2], [4]], [[6]], [[8], [10], [12]]]
    assert model.calls == [[0], [1, 2, 3], [4, 5, 6]]


def test_a_request_larger_than_a_call_goes_alone():
    model = Model(threading.Event())
    found = run(lambda b: held(b, model, [1], [2, 3, 4], [5]), model, max_rows=2)
    assert [len(scores) for scores in found] == [1, 3, 1]
    assert model.calls == [[0], [1], [2, 3, 4], [5]]


def test_a_request_that_fails_does_not_fail_its_neighbours():
    model = Model(threading.Event())
    found = run(lambda b: held(b, model, [1], [-1], [2]), model)
    assert found[0].tolist() == [[2]]
    assert isinstance(found[1], ValueError)
    assert found[2].tolist() == [[4]]


def test_a_client_that_went_away_is_left_out():
    model = Model(threading.Event())

    async def scenario(batcher):
        first = asyncio.create_task(batcher.scores(rows(0)))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(batcher.scores(rows(1)))
        kept = asyncio.create_task(batcher.scores(rows(2)))
        await asyncio.sleep(0.05)
        gone.cancel()
        model.gate.set()
        return await kept, await first

    kept, _ = run(scenario, model)
    assert kept.tolist() == [[4]]
    assert model.calls == [[0], [2]]


def test_a_full_queue_refuses():
    model = Model(threading.Event())
    found = run(lambda b: held(b, model, [1, 2], [3, 4], [5]), model, queue_rows=3)
    assert isinstance(found[1], RequestError)
    assert found[1].status == 503
    assert found[2].tolist() == [[10]]


@pytest.mark.parametrize(("wait", "calls"), [(0.0, [[1], [2]]), (200.0, [[1, 2]])])
def test_an_idle_model_waits_only_if_told_to(wait, calls):
    model = Model()

    async def scenario(batcher):
        first = asyncio.create_task(batcher.scores(rows(1)))
        await asyncio.sleep(0.03)
        return await asyncio.gather(first, batcher.scores(rows(2)))

    found = run(scenario, model, max_wait_ms=wait)
    assert np.concatenate(found).tolist() == [[2], [4]]
    assert model.calls == calls


def test_waiting_ends_when_a_call_is_full():
    model = Model()

    async def scenario(batcher):
        both = asyncio.gather(batcher.scores(rows(1)), batcher.scores(rows(2)))
        return await asyncio.wait_for(both, 5)

    run(scenario, model, max_wait_ms=60_000, max_rows=2)
    assert model.calls == [[1, 2]]
