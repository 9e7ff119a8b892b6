"""Peak memory of preparing and of reading a dataset, and of ten times as many rows."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.manifest import load_manifest

GROWTH = 10

_PREPARE = """
from jobs.prepare import main
status = main(["clicklog", "--output", {output!r}, "--rows", "{rows}"])
assert status == 0
print("peak_kib", open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""

_READ = """
from pipeline.config import load_experiment
from pipeline.data.loader import BatchLoader
from pipeline.data.manifest import load_manifest
from pipeline.data.fitting import fit_transforms

experiment = load_experiment({output!r} + "/experiment.yaml")
loader = BatchLoader(
    folder={output!r}, manifest=load_manifest({output!r}), split="train",
    transforms=fit_transforms(experiment.features, {output!r}),
    tasks=experiment.tasks, sample_weight=None, batch_size=4096, streams=8, shuffle_rows=65536,
    seed=0, rank=0, world_size=1, prefetch_batches=8,
)
rows = sum(batch.rows for batch in loader.epoch(0))
print("rows", rows)
print("peak_kib", open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""

_READ_BENCHMARK = """
from pathlib import Path
from pipeline.benchmark.data import Dataset
from pipeline.data.manifest import load_manifest

folder = Path({folder!r})
loader = Dataset(folder, load_manifest(folder), 0).loader(shuffle=True)
rows = sum(batch.rows for batch in loader.epoch(0))
print("peak_kib", open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def measure_memory(rows: int) -> dict[str, Any]:
    """Peak resident memory in MB by number of rows, each measurement in a process of its own.

    Args:
        rows: training rows of the smaller dataset; the larger has ten times as many.
    """
    peaks: dict[str, dict[str, float]] = {"prepare": {}, "read": {}}
    with tempfile.TemporaryDirectory(prefix="ple-memory-") as folder:
        for count in (rows, GROWTH * rows):
            output = str(Path(folder) / str(count))
            for name, script in (("prepare", _PREPARE), ("read", _READ)):
                peaks[name][str(count)] = _peak(script.format(output=output, rows=count))
    ratios = {
        f"{name}_growth": by_rows[str(GROWTH * rows)] / by_rows[str(rows)]
        for name, by_rows in peaks.items()
    }
    return {"peak_rss_mb_by_rows": peaks, **ratios}


def reader_peaks(folders: Sequence[Path]) -> dict[str, float]:
    """Peak resident MB of reading datasets of ``data_sets`` without lists, shuffled, by rows."""
    peaks: dict[str, float] = {}
    for folder in folders:
        rows = load_manifest(folder).rows("train")
        peaks[str(rows)] = _peak(_READ_BENCHMARK.format(folder=str(folder)))
    return peaks


def _peak(script: str) -> float:
    # VmHWM begins anew with a process; what getrusage says begins with its parent's memory.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a measured process failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout.split("peak_kib")[1].split()[0]) / 1024
