"""How sure an AUC is."""

import math


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an AUC over other rows like these.

    J. A. Hanley and B. J. McNeil: The Meaning and Use of the Area under a Receiver Operating
    Characteristic (ROC) Curve. Radiology 143, 1982, equation 2. It needs counts, no scores: rows
    are taken as independent and of equal weight, scores as exponentially distributed.

    Args:
        auc: the area.
        positives, negatives: rows of each class, at least one of both.
    """
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(max(variance, 0.0) / (positives * negatives))
