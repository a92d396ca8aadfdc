"""Metrics against scikit-learn and torchmetrics, and by hand where ties decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.classification import MulticlassCalibrationError

from trainable.metrics import METRICS, predictions, summarise

CLASSES = np.arange(10, dtype=np.int16)


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 700)  # class 9 never occurs
    logits = rng.normal(size=(700, 10)).astype(np.float32)
    logits[np.arange(700), labels] += 1.5
    logits[:, [3, 9]] -= 20  # neither is ever predicted; class 9, absent from both, still counts in macro averages
    return logits, labels


def test_against_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    arrays = predictions(logits, labels, CLASSES)
    found = summarise(arrays, CLASSES)
    assert tuple(found) == METRICS
    pred = logits.argmax(axis=1)
    p = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    report = sk.classification_report(labels, pred, labels=CLASSES, output_dict=True, zero_division=0)["macro avg"]
    assert found["top1"] == pytest.approx(sk.accuracy_score(labels, pred), abs=1e-12)
    assert found["top5"] == pytest.approx(sk.top_k_accuracy_score(labels, p, k=5, labels=CLASSES), abs=1e-12)
    assert found["precision_macro"] == pytest.approx(report["precision"], abs=1e-12)
    assert found["recall_macro"] == pytest.approx(report["recall"], abs=1e-12)
    assert found["f1_macro"] == pytest.approx(report["f1-score"], abs=1e-12)
    assert found["nll_nats"] == pytest.approx(sk.log_loss(labels, p, labels=CLASSES), rel=1e-6)
    assert found["brier"] == pytest.approx(((p - np.eye(10)[labels]) ** 2).sum(axis=1).mean(), rel=1e-6)


def test_calibration_against_torchmetrics_and_by_hand(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    found = summarise(predictions(logits, labels, CLASSES), CLASSES)
    p = torch.softmax(torch.from_numpy(logits), dim=1)
    theirs = MulticlassCalibrationError(num_classes=10, n_bins=15, norm="l1")(p, torch.from_numpy(labels))
    assert found["ece_ew15"] == pytest.approx(float(theirs), abs=1e-6)
    confidence = p.max(dim=1).values.double().numpy()
    order = np.argsort(confidence, kind="stable")
    hits = (logits.argmax(axis=1) == labels).astype(float)
    bins = np.array_split(order, 15)
    sizes = sorted(len(one) for one in bins)
    by_hand = sum(len(one) / 700 * abs(hits[one].mean() - confidence[one].mean()) for one in bins)
    assert sizes[-1] - sizes[0] <= 1
    assert found["ece_em15"] == pytest.approx(by_hand, abs=0.004), "equal mass; the larger bins stand elsewhere"


def test_balanced_classes_make_macro_recall_top1() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(10), 30)
    found = summarise(predictions(rng.normal(size=(300, 10)).astype(np.float32), labels, CLASSES), CLASSES)
    assert found["recall_macro"] == pytest.approx(found["top1"], abs=1e-12)


def test_ties_count_against_the_label() -> None:
    logits = np.array([[1, 1, 0], [2, 1, 0], [0, 0, 0]], np.float32)
    arrays = predictions(logits, np.array([1, 0, 0]), np.arange(3))
    assert arrays["label_rank"].tolist() == [2, 1, 3]
    assert arrays["pred"].tolist() == [0, 0, 0] and arrays["correct"].tolist() == [False, True, True]


def test_classes_are_given_by_the_datas_numbers() -> None:
    arrays = predictions(np.eye(3, dtype=np.float32), np.array([0, 1, 0]), np.array([5, 7, 9]))
    assert arrays["label"].tolist() == [5, 7, 5] and arrays["pred"].tolist() == [5, 7, 9]
    assert arrays["top5_idx"].tolist() == [[5, 7, 9], [7, 5, 9], [9, 5, 7]]
    assert summarise(arrays, np.array([5, 7, 9]))["top5"] == 1.0


def test_huge_logits_stay_finite() -> None:
    arrays = predictions(np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), np.array([0, 0]), np.arange(2))
    assert arrays["p_max"].tolist() == [1, 1] and arrays["nll_nats"].tolist() == [0, 20000]
    assert np.isfinite(arrays["entropy_nats"]).all()
    assert arrays["sum_p2"].tolist() == [1, 1]
