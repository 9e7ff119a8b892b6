"""Metrics as their definitions say, pair by pair and key by key, in plain NumPy."""

import numpy as np
from sklearn import metrics as sk


def gauc(keys, scores, labels, weights):
    """(GAUC, keys with both classes, keys of one class) by scikit-learn, key by key."""
    total = share = 0.0
    used = one_class = 0
    for key in np.unique(keys):
        rows = (keys == key) & (weights > 0)
        if len(set(labels[rows])) < 2:
            one_class += bool(rows.any())
            continue
        weight = weights[rows].sum()
        total += weight * sk.roc_auc_score(labels[rows], scores[rows], sample_weight=weights[rows])
        share += weight
        used += 1
    return (total / share if used else None), used, one_class


def xauc(predictions, labels, weights):
    """All pairs one by one: right order 1, equal predictions a half, equal labels left out."""
    won = pairs = 0.0
    for i in range(len(labels)):
        for j in range(i):
            if labels[i] == labels[j]:
                continue
            weight = weights[i] * weights[j]
            pairs += weight
            agreement = np.sign(predictions[i] - predictions[j]) * np.sign(labels[i] - labels[j])
            won += weight * (agreement + 1) / 2
    return won / pairs if pairs else None


def ece(logits, labels, weights, bins, cells=2**14):
    """Expected calibration error over bins of equal weight whose edges lie on the logit grid."""
    scores = 1 / (1 + np.exp(-logits))
    cell = np.floor((logits + 20) * (cells / 40))  # for logits within ±16
    order = np.argsort(cell, kind="stable")
    total, before, error = weights.sum(), 0.0, 0.0
    sums = np.zeros((bins, 3))
    for value in np.unique(cell[order]):
        rows = cell == value
        weight = weights[rows].sum()
        which = int(bins * (before + weight / 2) / total)
        sums[which] += weight, (weights * scores)[rows].sum(), (weights * labels)[rows].sum()
        before += weight
    for weight, score, label in sums[sums[:, 0] > 0]:
        error += weight / total * abs(score / weight - label / weight)
    return error
