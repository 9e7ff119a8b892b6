import pytest

from pipeline.benchmark.simulate import ASSUMPTIONS, simulate, simulated_lines


@pytest.mark.slow
def test_a_terabyte_on_sixteen_gpus() -> None:
    summary = simulate([16])
    assert summary["rows"] == 10_000_000_000
    assert summary["terabytes"] == pytest.approx(1.0)
    figures = summary["fixed_global_batch"]["16"]
    assert figures["batch_size_per_worker"] == 4096
    assert figures["efficiency"] == 1.0
    # A sixteenth of the tables at the least, and no more than may be filled.
    assert 1e12 / 16 / 2**30 <= figures["gib_per_gpu"] <= 80 * 0.9
    parts = figures["parts_ms"]
    assert figures["step_ms"] == pytest.approx(sum(parts.values()))
    assert figures["examples_per_second"] == pytest.approx(65_536e3 / figures["step_ms"])
    # 26 tables of 24 and 13 numbers: 16 experts of 637 → 1024 → 512, then 512 → 512 → 256.
    experts = 16 * (637 * 1024 + 1024 * 512 + 512 * 512 + 512 * 256)
    towers = 3 * (256 * 256 + 256 * 128 + 128)
    least = 3 * 2 * (experts + towers) * 4096 / ASSUMPTIONS["dense_flops_per_second"] * 1e3
    assert least <= parts["dense products"] <= 1.02 * least
    assert any("16 GPUs" in name for name, _ in simulated_lines(summary))
