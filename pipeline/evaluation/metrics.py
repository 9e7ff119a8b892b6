"""Mergeable metrics per task: fixed memory, one all-reduce, AUC within 1e-5 of scikit-learn.

AUC is the Mann-Whitney statistic with ties counted half (Hanley and McNeil, 1982). Up to
``EXACT_ROWS`` rows are kept as they are and ranked exactly. Beyond that the AUC comes from a
histogram of logits in ``BINS`` bins, uniform in logit up to ±16 (h = 3.8e-5 a bin) and logarithmic
from there to ±2^20 (relative width 1.1e-4); logits in one bin count as tied. Equal logits always
share a bin, so ties and constant predictors are exact in both forms.

The histogram's error is Σ_b P_b·N_b·(1/2 − AUC_b) / (P·N) over bins of P_b positives and N_b
negatives, so at most half the share of pairs that share a bin: 0.14·h/s for normal logits of
deviation s, 5e-6 at s = 1. In truth the order within a bin is close to a coin toss, and what is
left is noise of about 0.08·h/(s·√P) for P positives: 2e-7 for s = 1 and P = 200; measured at most
1e-6 down to s = 0.02. Only logits that hardly vary (s < 0.005 over more than EXACT_ROWS rows)
can exceed 1e-5: 9e-5 was seen at s = 0.001.

State per binary task: 2·BINS + 3·EXACT_ROWS float64 = 18.4 MB, whatever the number of rows.

B rows of a batch, T tasks, K bins.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.tasks import TaskConfig
from pipeline.evaluation.scores import BINARY, score

BINS = 2**20
EXACT_ROWS = 2**16

Metrics = dict[str, float | int | str | None]

_LINEAR = 16.0  # logits up to here have bins of equal width
_OCTAVE = 0.25  # room of each doubling beyond, in units of the linear part
_OCTAVES = 16.0  # doublings before everything is one bin
_HALF_RANGE = _LINEAR + _OCTAVE * _OCTAVES

# Sums kept for every task. `label_square`, `square` and `absolute` serve regression, `loss` binary.
_SUMS = (
    "rows",
    "positives",
    "non_finite",
    "weight",
    "label",
    "score",
    "loss",
    "label_square",
    "square",
    "absolute",
)


class MetricSet:
    """Metrics of every task over the rows of one evaluation.

    Use: ``update`` for each batch, ``reduce`` once on every rank, ``compute``. A row counts for a
    task where its weight is positive; means are weighted, ``rows`` and ``positives`` are counts.
    Rows whose logit or label is not finite are left out and counted in ``non_finite``. ``update``
    never waits for the device.
    """

    def __init__(self, tasks: Sequence[TaskConfig], device: torch.device | str = "cpu") -> None:
        self.tasks = tuple(tasks)
        self._binary = [t for t, task in enumerate(self.tasks) if task.loss == BINARY]
        sums = len(self.tasks) * len(_SUMS)
        histograms = len(self._binary) * 2 * BINS
        exact = len(self._binary) * 3 * EXACT_ROWS
        # One tensor, so that one collective merges everything; the rest are views of it.
        self._state = torch.zeros(1 + sums + histograms + exact, dtype=torch.float64, device=device)
        parts = self._state.split([1, sums, histograms, exact])
        self._overflow = parts[0]
        self._sums = parts[1].view(len(self.tasks), len(_SUMS))
        self._histograms = parts[2].view(len(self._binary), 2 * BINS)
        self._exact = parts[3].view(len(self._binary), 3, EXACT_ROWS)
        self._seen = 0  # rows offered here, padding included: known without asking the device
        self._reduced = False

    @property
    def nbytes(self) -> int:
        return self._state.numel() * self._state.element_size()

    def reset(self) -> None:
        """Forgets everything, keeping the memory."""
        self._state.zero_()
        self._seen = 0
        self._reduced = False

    @torch.no_grad()
    def update(self, logits_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor) -> None:
        """Adds one batch; columns in task order, weight 0 = the row is not this task's."""
        assert not self._reduced, "update after reduce: call reset first"
        assert logits_BT.shape == labels_BT.shape == weights_BT.shape, (
            logits_BT.shape,
            labels_BT.shape,
            weights_BT.shape,
        )
        x_BT, y_BT, w_BT = (v.detach().double() for v in (logits_BT, labels_BT, weights_BT))
        counted_BT = w_BT > 0
        finite_BT = x_BT.isfinite() & y_BT.isfinite()
        keep_BT = counted_BT & finite_BT
        # Values of rows left out may be anything, and 0·NaN is NaN: blank them first.
        x_BT, y_BT, w_BT = (torch.where(keep_BT, v, 0.0) for v in (x_BT, y_BT, w_BT))
        p_BT = score(x_BT, self.tasks)
        error_BT = p_BT - y_BT
        loss_BT = F.binary_cross_entropy_with_logits(x_BT, y_BT, reduction="none")
        sums = {
            "rows": keep_BT.double(),
            "positives": (keep_BT & (y_BT == 1)).double(),
            "non_finite": (counted_BT & ~finite_BT).double(),
            "weight": w_BT,
            "label": w_BT * y_BT,
            "score": w_BT * p_BT,
            "loss": w_BT * loss_BT,
            "label_square": w_BT * y_BT.square(),
            "square": w_BT * error_BT.square(),
            "absolute": w_BT * error_BT.abs(),
        }
        self._sums += torch.stack([sums[name].sum(0) for name in _SUMS], dim=1)
        self._update_ranks(x_BT, y_BT, w_BT)

    def _update_ranks(self, x_BT: Tensor, y_BT: Tensor, w_BT: Tensor) -> None:
        first, room = self._seen, EXACT_ROWS - self._seen
        self._seen += x_BT.shape[0]
        for b, t in enumerate(self._binary):
            x_B, y_B, w_B = x_BT[:, t], y_BT[:, t], w_BT[:, t]
            bins_B = _bins(x_B)
            self._histograms[b].index_add_(0, bins_B, w_B * (1.0 - y_B))
            self._histograms[b].index_add_(0, bins_B + BINS, w_B * y_B)
            if room > 0:
                rows = torch.stack([x_B, y_B, w_B])[:, :room]
                self._exact[b, :, first : first + rows.shape[1]] = rows

    def reduce(self, process_group: dist.ProcessGroup | None = None) -> None:
        """Merges all ranks by one sum; without an initialised process group this rank is all."""
        assert not self._reduced, "reduce called twice: call reset first"
        self._reduced = True
        world = dist.get_world_size(process_group) if dist.is_initialized() else 1
        slot = EXACT_ROWS // world
        self._overflow.fill_(float(self._seen > slot))
        if world == 1:
            return
        # Each rank keeps its rows in a slot of its own, so that the sum places them side by side.
        first = dist.get_rank(process_group) * slot
        own = self._exact[:, :, :slot].clone()
        self._exact.zero_()
        self._exact[:, :, first : first + slot] = own
        dist.all_reduce(self._state, op=dist.ReduceOp.SUM, group=process_group)

    def compute(self) -> dict[str, Metrics]:
        """Metrics by task name.

        binary_cross_entropy: ``auc`` (None, with ``auc_undefined`` saying why, when one class is
        absent), ``logloss``, ``normalized_entropy`` (log loss over the entropy of the base rate;
        He et al., 2014), ``calibration`` (Σ w·p / Σ w·y), ``rows``, ``positives``, ``non_finite``.
        squared_error: ``rmse``, ``mae``, ``r2``, ``mean_label``, ``mean_score``, ``rows``,
        ``non_finite``. What cannot be computed is None, with a ``…_undefined`` reason.
        """
        sums = self._sums.cpu().tolist()
        exact = self._seen <= EXACT_ROWS and self._overflow.item() == 0
        result: dict[str, Metrics] = {}
        for t, task in enumerate(self.tasks):
            total = dict(zip(_SUMS, sums[t], strict=True))
            if task.loss == BINARY:
                result[task.name] = _binary(total)
                if "auc_undefined" not in result[task.name]:
                    result[task.name]["auc"] = self._auc(self._binary.index(t), exact)
            else:
                result[task.name] = _regression(total)
        return result

    def _auc(self, b: int, exact: bool) -> float:
        if not exact:
            return _auc_of_groups(*self._histograms[b].view(2, BINS))
        x, y, w = self._exact[b]
        groups, group_of_row = torch.unique(x, return_inverse=True)
        weights = torch.zeros(2, groups.numel(), dtype=torch.float64, device=x.device)
        weights[0].index_add_(0, group_of_row, w * (1.0 - y))
        weights[1].index_add_(0, group_of_row, w * y)
        return _auc_of_groups(weights[0], weights[1])


def _bins(logits_B: Tensor) -> Tensor:
    """Bin number of each logit (float64, finite), non-decreasing in the logit."""
    size_B = logits_B.abs()
    tail_B = (size_B.clamp(min=_LINEAR) / _LINEAR).log2() * _OCTAVE
    place_B = torch.copysign(size_B.clamp(max=_LINEAR) + tail_B, logits_B)
    place_B = (place_B + _HALF_RANGE) * (BINS / (2 * _HALF_RANGE))
    return place_B.long().clamp_(0, BINS - 1)


def _auc_of_groups(negatives_K: Tensor, positives_K: Tensor) -> float:
    """AUC of groups in ascending order of score, ties within a group counted half."""
    below_K = negatives_K.cumsum(0) - 0.5 * negatives_K
    pairs = negatives_K.sum() * positives_K.sum()
    return float(((positives_K * below_K).sum() / pairs).item())


def _binary(total: dict[str, float]) -> Metrics:
    rows, positives, weight = int(total["rows"]), int(total["positives"]), total["weight"]
    result: Metrics = {"auc": None, "logloss": None, "normalized_entropy": None}
    result |= {"calibration": None, "rows": rows, "positives": positives}
    result["non_finite"] = int(total["non_finite"])
    if rows == 0:
        reason = "no rows"
    elif positives == 0:
        reason = f"no positives in {rows} rows"
    elif positives == rows:
        reason = f"no negatives in {rows} rows"
    else:
        reason = ""
    if reason:
        result["auc_undefined"] = reason
    if rows:
        result["logloss"] = total["loss"] / weight
    if total["label"] > 0:
        result["calibration"] = total["score"] / total["label"]
    else:
        result["calibration_undefined"] = reason
    base = total["label"] / weight if rows else 0.0
    if 0 < base < 1:
        entropy = -(base * math.log(base) + (1 - base) * math.log1p(-base))
        result["normalized_entropy"] = total["loss"] / weight / entropy
    else:
        result["normalized_entropy_undefined"] = reason
    return result


def _regression(total: dict[str, float]) -> Metrics:
    rows, weight = int(total["rows"]), total["weight"]
    result: Metrics = {"rmse": None, "mae": None, "r2": None, "mean_label": None}
    result |= {"mean_score": None, "rows": rows, "non_finite": int(total["non_finite"])}
    if rows == 0:
        return result | {"rmse_undefined": "no rows", "r2_undefined": "no rows"}
    mean = total["label"] / weight
    variance = total["label_square"] / weight - mean * mean
    result["rmse"] = math.sqrt(total["square"] / weight)
    result["mae"] = total["absolute"] / weight
    result["mean_label"] = mean
    result["mean_score"] = total["score"] / weight
    # A constant label leaves rounding noise of the order of 1e-16·mean², not a variance.
    if variance > 1e-12 * mean * mean:
        result["r2"] = 1.0 - total["square"] / weight / variance
    else:
        result["r2_undefined"] = f"the label is constant in {rows} rows"
    return result


def finite_values(metrics: dict[str, Metrics]) -> dict[str, dict[str, Any]]:
    """The numbers alone, by task and metric: what can be logged as a metric."""
    return {
        task: {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        for task, values in metrics.items()
    }
