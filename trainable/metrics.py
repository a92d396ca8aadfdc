"""What a run's logits say about every image, and the numbers of a split computed from exactly that.

A table recomputes its numbers from the stored predictions with `summarise`, the very function that filled the trial's
row, so the two agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 5
ECE_BINS = 15
METRICS = (
    "top1",
    "top5",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "nll_nats",
    "brier",
    "ece_em15",
    "ece_ew15",
)

Arrays = dict[str, NDArray[Any]]


def predictions(logits: NDArray[np.float32], labels: NDArray[np.integer], classes: NDArray[np.integer]) -> Arrays:
    """Per-image results, computed in float64 and stored in the dtypes of the `predictions` schema.

    Args:
        logits: [N, C] float32.
        labels: [N], positions in `classes`.
        classes: [C], the data's number of each class.

    Returns:
        Arrays of length N: label, pred, correct, label_rank (1 is best; ties count against the label), p_label, p_max,
        nll_nats, entropy_nats, sum_p2 (Brier = 1 - 2 p_label + sum_p2), and top5_idx, top5_p ([N, min(5, C)]).
        Classes are given by the data's numbers.
    """
    num = len(labels)
    rows = np.arange(num)
    scores = logits.astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    pred = order[:, 0]
    return {
        "label": classes[labels].astype(np.int16),
        "pred": classes[pred].astype(np.int16),
        "correct": pred == labels,
        "label_rank": label_ranks(scores, labels).astype(np.int16),
        "p_label": p[rows, labels].astype(np.float32),
        "p_max": p.max(axis=1).astype(np.float32),
        "nll_nats": -log_p[rows, labels].astype(np.float32),
        "entropy_nats": -(p * np.where(p > 0, log_p, 0)).sum(axis=1).astype(np.float32),
        "sum_p2": (p**2).sum(axis=1).astype(np.float32),
        "top5_idx": classes[order].astype(np.int16),
        "top5_p": np.take_along_axis(p, order, axis=1).astype(np.float32),
    }


def label_ranks(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Rank of every label among its image's scores, [N]: 1 is best, ties count against the label.

    Args:
        scores: [N, C].
        labels: [N], positions in 0..C-1.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    ranks: NDArray[np.int64] = (scores >= own).sum(axis=1)
    return ranks


def summarise(arrays: Mapping[str, NDArray[Any]], classes: NDArray[np.integer]) -> dict[str, float]:
    """The METRICS of one evaluation, from its per-image results.

    top1, top5 (label_rank <= 5) and the macro averages over `classes` (a class never predicted has precision 0) are
    fractions; nll in nats; brier is the multi-class sum; ECE over 15 bins of equal mass (em) and of equal width (ew).
    """
    from sklearn.metrics import precision_recall_fscore_support  # takes a second to import, needed once a run

    precision, recall, f1, _ = precision_recall_fscore_support(
        arrays["label"], arrays["pred"], labels=classes, average="macro", zero_division=0
    )
    correct = arrays["correct"].astype(np.float64)
    confidence = arrays["p_max"].astype(np.float64)
    brier = 1 - 2 * arrays["p_label"].astype(np.float64) + arrays["sum_p2"].astype(np.float64)
    return {
        "top1": float(correct.mean()),
        "top5": float((arrays["label_rank"] <= TOP).mean()),
        "precision_macro": float(precision),
        "recall_macro": float(recall),
        "f1_macro": float(f1),
        "nll_nats": float(arrays["nll_nats"].astype(np.float64).mean()),
        "brier": float(brier.mean()),
        "ece_em15": _ece(correct, confidence, _equal_mass(confidence)),
        "ece_ew15": _ece(correct, confidence, _equal_width(confidence)),
    }


def _equal_mass(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin of every image; sizes differ by at most one. Equal confidences are ordered by position."""
    num = len(confidence)
    bins = np.empty(num, np.int64)
    bins[np.argsort(confidence, kind="stable")] = np.arange(num) * ECE_BINS // num
    return bins


def _equal_width(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bin of every image: (0, 1/15], (1/15, 2/15], ..."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


def _ece(correct: NDArray[np.float64], confidence: NDArray[np.float64], bins: NDArray[np.int64]) -> float:
    """Expected calibration error: mean over images of |accuracy - mean confidence| of the image's bin."""
    gap = np.bincount(bins, correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(correct))
