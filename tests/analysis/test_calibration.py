"""Calibration against scikit-learn, torchmetrics and what is known of simulated runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from analysis.calibration import equal_mass, inverse_temperature, temper
from trainable import metrics

Run = tuple[NDArray[np.float32], NDArray[np.int64]]


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return 1 / inverse_temperature(shifted, shifted[np.arange(len(labels)), labels], None)


def calibrated(num: int, classes: int, seed: int) -> Run:
    """Logits whose softmax is the very probability of every label."""
    rng = np.random.default_rng(seed)
    logits = (2 * rng.normal(size=(num, classes))).astype(np.float32)
    labels = (softmax(logits).cumsum(axis=1) > rng.random((num, 1))).argmax(axis=1)
    return logits, labels


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    p = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_errors_are_torchmetrics_and_scikit_learns() -> None:
    logits, labels = calibrated(3000, 10, 1)
    p = softmax(logits)
    arrays = metrics.predictions(logits, labels, np.arange(10))
    found = metrics.summarise(arrays, np.arange(10))
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), num_classes=10, n_bins=15, norm="l1")
    assert found["ece_ew15"] == pytest.approx(float(theirs), abs=1e-6)
    assert equal_mass(arrays["correct"], arrays["p_max"]).error == pytest.approx(found["ece_em15"], abs=1e-12)
    assert found["nll_nats"] == pytest.approx(log_loss(labels, p), abs=1e-6)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, p, scale_by_half=False), abs=1e-6)


def test_chance_alone_makes_an_error_which_the_debiased_one_has_not() -> None:
    """10,000 images of a perfectly calibrated run, 15 bins: 0.0134 on average, and nothing is wrong."""
    rng = np.random.default_rng(3)
    plain, square = [], []
    for _ in range(200):
        confidence = rng.uniform(0.2, 1, 10_000)
        bins = equal_mass(rng.random(10_000) < confidence, confidence)
        plain.append(bins.error)
        square.append(bins.debiased_square)
    assert np.mean(plain) == pytest.approx(0.0130, abs=0.001)
    assert abs(np.mean(square)) < 3e-5 < np.mean(np.square(plain)) / 5 and min(square) < 0 < max(square)


def test_a_real_gap_is_not_debiased_away() -> None:
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.4, 0.9, 20_000)
    bins = equal_mass(rng.random(20_000) < confidence - 0.1, confidence)
    assert bins.debiased_square**0.5 == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 40.0])
def test_the_temperature_is_the_one_that_an_optimiser_finds(scale: float) -> None:
    logits, labels = calibrated(2000, 10, 5)
    scaled = logits * np.float32(scale)

    def nll(log_t: float) -> float:
        return log_loss(labels, softmax((scaled / np.exp(log_t)).astype(np.float32)))

    best = np.exp(minimize_scalar(nll, bounds=(-4, 6), method="bounded", options={"xatol": 1e-7}).x)
    assert fit_temperature(scaled, labels) == pytest.approx(best, rel=1e-3)


def test_a_run_that_is_always_right_has_a_temperature_all_the_same() -> None:
    """Its likelihood grows without end; the search stops at its bound."""
    logits = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
    assert 0 < fit_temperature(logits, np.arange(40) % 4) < 0.1


def test_no_image_is_judged_with_a_temperature_that_it_helped_to_fit() -> None:
    """Over-confident by a factor of three: one number mends it."""
    logits, labels = calibrated(6000, 10, 6)
    right = logits.argmax(axis=1) == labels
    found = temper(logits * np.float32(3), labels, right)
    assert found.temperature == pytest.approx(3, rel=0.05)
    before = equal_mass(right, softmax(logits * np.float32(3)).max(axis=1))
    assert before.error > 0.1 > 3 * found.bins.error
    assert found.nll_nats == pytest.approx(log_loss(labels, softmax(logits)), rel=0.01)
    halves = np.zeros(6000, bool)
    for label in range(10):
        halves[np.flatnonzero(labels == label)[::2]] = True
    expected = np.empty(6000)
    for half in (halves, ~halves):
        temperature = fit_temperature(3 * logits[half], labels[half])
        p = softmax((3 * logits[~half] / temperature).astype(np.float32))
        expected[~half] = -np.log(p[np.arange(len(p)), labels[~half]])
    assert found.nll_nats == pytest.approx(expected.mean(), abs=1e-4)


def test_one_image_a_class_is_enough_for_a_temperature() -> None:
    logits, _ = calibrated(10, 10, 7)
    labels = np.random.default_rng(8).permutation(10)
    found = temper(logits, labels, logits.argmax(axis=1) == labels)
    assert np.isfinite([found.temperature, found.nll_nats]).all()
