"""The GPU's figures: their arithmetic by hand, and the whole of it on a CPU in the GPU's place."""

from pathlib import Path

import pytest
import torch

from jobs.benchmark import main
from pipeline.benchmark import step_cuda
from pipeline.benchmark.data_sets import write_benchmark_dataset
from pipeline.benchmark.model import benchmark_experiment, trainer_here


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([(0.0, 2.0), (5.0, 6.0)], 3.0),
        ([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0)], 4.0),  # in any order, overlapping
        ([(0.0, 9.0), (1.0, 2.0), (3.0, 4.0)], 9.0),  # one within another
    ],
)
def test_the_time_that_kernels_cover(spans: list, length: float) -> None:
    assert step_cuda.covered(spans) == length


@pytest.mark.slow
def test_every_figure_but_the_idle_share_on_a_cpu(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(step_cuda, "_STEPS", 2)
    monkeypatch.setattr(step_cuda, "_COPY_BYTES", 1 << 24)
    write_benchmark_dataset(tmp_path, 2048, 0, table_rows=1000)
    experiment = benchmark_experiment(tmp_path, 1000, batch_size=1024)
    with trainer_here(experiment) as trainer:
        found = step_cuda.step_figures(trainer, pairs=1, side=512)
        found |= step_cuda.form_figures(trainer, pairs=1, compiled=False)
    assert set(found) == {
        *(
            f"{name}_{kind}"
            for name in ("matmul_share", "memory_share")
            for kind in step_cuda.KINDS
        ),
        *(f"examples_per_second_{kind}" for kind in step_cuda.KINDS),
        "ratio_bf16",
        "ratio_batched",
    }
    # Of one round: seconds of the step in one precision over those in the other.
    speeds = [found[f"examples_per_second_{kind}"] for kind in ("bf16", "fp32")]
    assert found["ratio_bf16"] == pytest.approx(speeds[0] / speeds[1])
    assert all(found[name] > 0.0 for name in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what a machine without a GPU is told")
def test_no_gpu_is_one_clear_error(capsys) -> None:
    assert main(["step", "--device", "cuda"]) == 1
    assert "--device cuda: PyTorch finds no GPU on this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--batch-size", "64"], "--batch-size has an effect with --device cuda only"),
        (["--device", "cuda", "--threads", "1"], "--threads has an effect with --device cpu only"),
    ],
)
def test_options_without_an_effect_are_errors(options: list[str], error: str, capsys) -> None:
    assert main(["step", *options]) == 1
    assert error in capsys.readouterr().err
