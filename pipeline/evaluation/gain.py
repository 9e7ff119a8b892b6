"""MTL gain: how much better a multi-task model is than single-task models.

Δ = (1/T)·Σ_t (−1)^{l_t}·(M_t − S_t) / |S_t| with M_t the metric of task t of the multi-task model,
S_t that of the single-task model, l_t = 1 where lower is better (Maninis et al., CVPR 2019,
equation 4). The PLE paper (Tang et al., RecSys 2020, section 5.1.2) states gains of single tasks as
differences instead, M_t − S_t for AUC and S_t − M_t for MSE: :func:`task_gain`.
"""

import math
from collections.abc import Mapping


def task_gain(value: float, single: float, higher_is_better: bool) -> float:
    """Improvement of one task over its single-task model, in units of the metric."""
    return value - single if higher_is_better else single - value


def mtl_gain(
    values: Mapping[str, float], single: Mapping[str, float], higher_is_better: Mapping[str, bool]
) -> float:
    """Mean over tasks of the improvement relative to the single-task value; 0.01 = one percent.

    Args:
        values: metric of each task of the multi-task model.
        single: the same metric of the single-task models.
        higher_is_better: the metric's direction, by task.

    Raises:
        ValueError: the tasks differ, there are none, or a single-task value is 0, to which nothing
            can be relative.
    """
    if not values or set(values) != set(single) or set(values) != set(higher_is_better):
        raise ValueError(
            f"MTL gain needs the same tasks on both sides: {sorted(values)}, {sorted(single)}, "
            f"{sorted(higher_is_better)}"
        )
    zero = sorted(task for task, value in single.items() if value == 0)
    if zero:
        raise ValueError(
            f"MTL gain is relative to the single-task value, which is 0 for {', '.join(zero)}; "
            "judge these tasks by another metric"
        )
    gains = [
        task_gain(value, single[task], higher_is_better[task]) / abs(single[task])
        for task, value in values.items()
    ]
    return math.fsum(gains) / len(gains)
