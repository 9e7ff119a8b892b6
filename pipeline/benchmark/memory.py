"""Peak memory of preparing and of reading a dataset, and of ten times as many rows."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

_READ_LONG = """
from dataclasses import replace
from pathlib import Path
from pipeline.benchmark.data import Dataset
from pipeline.data.manifest import load_manifest

folder = Path({folder!r})
manifest = load_manifest(folder)
long = replace(manifest, splits={{"train": manifest.splits["train"] * {times}}})
rows, step = 0, long.rows("train") // {samples}
for batch in Dataset(folder, long, 0).loader(shuffle=True).epoch(0):
    before, rows = rows, rows + batch.rows
    if rows // step > before // step:
        status = open("/proc/self/status").read()
        now, peak = (status.split(name)[1].split()[0] for name in ("VmRSS:", "VmHWM:"))
        print("sample", rows, now, peak)
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


def reader_memory(folder: Path, times: int, samples: int = 40) -> list[tuple[int, float, float]]:
    """Memory of one shuffled epoch over a dataset of ``data_sets`` without lists.

    Args:
        folder: the dataset.
        times: how often its train split is read within the epoch, as if there were so many of it.
        samples: how many to take, evenly spread over the epoch.

    Returns:
        (rows read, resident MB now, highest so far) by sample.
    """
    lines = _run(_READ_LONG.format(folder=str(folder), times=times, samples=samples)).splitlines()
    taken = [line.split()[1:] for line in lines if line.startswith("sample")]
    return [(int(rows), int(now) / 1024, int(peak) / 1024) for rows, now, peak in taken]


def memory_figure(samples: Sequence[tuple[int, float, float]], path: Path) -> None:
    """Draws resident memory over the rows of an epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    rows = [sample[0] / 1e6 for sample in samples]
    axes.plot(rows, [sample[1] for sample in samples], label="resident")
    axes.plot(rows, [sample[2] for sample in samples], label="highest so far", linestyle="--")
    axes.set(xlabel="million rows read", ylabel="MB", title="memory of a shuffled epoch")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def _peak(script: str) -> float:
    # VmHWM begins anew with a process; what getrusage says begins with its parent's memory.
    return int(_run(script).split("peak_kib")[1].split()[0]) / 1024


def _run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a measured process failed: {done.stderr.strip()[-500:]}")
    return done.stdout
