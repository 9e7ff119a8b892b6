"""Milliseconds to score one row, of versions taking turns."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from pipeline.backtest.versions import LoadedVersion
from pipeline.promotion.outcome import Latency

_WARM_UP = 20


def single_row_latency(
    versions: Sequence[LoadedVersion], rows: pa.Table, calls: int
) -> list[Latency]:
    """Times ``calls`` single rows of each version, on one thread.

    The versions take turns row by row, so that whatever else the machine does hits all alike. What
    is timed is raw row to scores within this process: encoding, model, link; no network.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        singles = [rows.slice(n, 1) for n in range(min(rows.num_rows, calls))]
        seconds = np.zeros((len(versions), calls))
        for call in range(-_WARM_UP, calls):
            row = singles[call % len(singles)]
            for number, version in enumerate(versions):
                began = time.perf_counter()
                version.scorer.score_table(row)
                if call >= 0:
                    seconds[number, call] = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads)
    return [
        Latency(calls, *(float(v) for v in np.percentile(own, [50, 99]) * 1000)) for own in seconds
    ]
