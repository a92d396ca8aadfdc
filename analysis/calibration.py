"""How well a run's confidence fits its accuracy: calibration errors, and what one temperature would mend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
_MOST_STEPS = 40
_NEAR = 0.01
"""Relative step of Newton's after which a temperature is found: what is left is about its square."""
_FEW = 500
_CHUNK = 256
"""Images at a time, so that their numbers stay in a core's cache."""
_BETAS = (1e-3, 1e3)
"""Inverse temperatures that are looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bins:
    """A reliability diagram."""

    counts: NDArray[np.int64]
    """[B] images."""
    confidence: NDArray[np.float64]
    """[B] mean; of an empty bin NaN."""
    accuracy: NDArray[np.float64]
    """[B] mean; of an empty bin NaN."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean over images of |accuracy - confidence| of their bin. Of a perfectly
        calibrated run it is above 0, by chance."""
        full = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[full]
        return float((gaps * self.counts[full]).sum() / self.counts.sum())

    @property
    def debiased_square(self) -> float:
        """Mean over images of (accuracy - confidence)^2 of their bin, less what chance adds to it (Kumar et al. 2019):
        around 0, and as often below, for a perfectly calibrated run. Bins of one image are left out."""
        full = self.counts > 1
        counts, accuracy = self.counts[full], self.accuracy[full]
        chance = accuracy * (1 - accuracy) / (counts - 1)
        squares = (accuracy - self.confidence[full]) ** 2 - chance
        return float((squares * counts).sum() / self.counts.sum())


def equal_mass(correct: NDArray[Any], confidence: NDArray[Any], bins: int = BINS) -> Bins:
    """Bins of equally many images (they differ by one at most); equal confidences are ordered by position.

    Args:
        correct: [N] of 0 and 1.
        confidence: [N], probability of the predicted class.
        bins: how many.
    """
    num = len(confidence)
    which = np.empty(num, np.int64)
    which[np.argsort(confidence, kind="stable")] = np.arange(num) * bins // num
    return _binned(correct, confidence, which, bins)


def _binned(correct: NDArray[Any], confidence: NDArray[Any], which: NDArray[np.int64], bins: int) -> Bins:
    counts = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Bins(
            counts=counts,
            confidence=np.bincount(which, confidence.astype(np.float64), minlength=bins) / counts,
            accuracy=np.bincount(which, correct.astype(np.float64), minlength=bins) / counts,
        )


def inverse_temperature(shifted: NDArray[np.float32], own: NDArray[np.float32], near: float | None) -> float:
    """The inverse temperature of least mean negative log-likelihood.

    Args:
        shifted: [N, C] float32, logits with their highest at 0.
        own: [N], those of the right classes.
        near: where to begin; None looks at a few of the images first, so that all are asked two or three times only.
    """
    if near is None:
        few = slice(None, None, max(1, len(shifted) // _FEW))
        near = _least(shifted[few], float(own[few].mean(dtype=np.float64)), 1.0)
    return _least(shifted, float(own.mean(dtype=np.float64)), near)


def _least(shifted: NDArray[np.float32], own: float, beta: float) -> float:
    """The inverse temperature of least mean negative log-likelihood, a convex function of it: Newton's steps from
    `beta`, kept within what is known to hold the minimum.

    Args:
        shifted: [N, C] float32, logits with their highest at 0.
        own: mean of those of the right classes.
        beta: where to begin.
    """
    low, high = _BETAS
    for _ in range(_MOST_STEPS):
        slope, curvature = -own, 0.0
        for start in range(0, len(shifted), _CHUNK):
            z = shifted[start : start + _CHUNK]
            weights = np.exp(np.float32(beta) * z)
            total = weights.sum(axis=1)
            weights *= z
            mean = weights.sum(axis=1) / total
            square = np.einsum("nc,nc->n", weights, z) / total
            slope += float(mean.sum(dtype=np.float64)) / len(shifted)
            curvature += float((square - mean**2).sum(dtype=np.float64)) / len(shifted)
        low, high = (low, beta) if slope > 0 else (beta, high)
        step = beta - slope / curvature if curvature > 0 else float("nan")
        after = step if low < step < high else float(np.sqrt(low * high))
        if abs(after - beta) <= _NEAR * beta:
            return after
        beta = after
    return beta


@dataclass(frozen=True, kw_only=True, slots=True)
class Tempered:
    """A run with its logits divided by a temperature that was fitted on other images."""

    temperature: float
    """Geometric mean of the two halves' temperatures."""
    nll_nats: float
    bins: Bins
    """Of equal mass."""


def temper(logits: NDArray[np.float32], labels: NDArray[np.integer], correct: NDArray[np.bool_]) -> Tempered:
    """Fits on one half of every class's images, applies to the other half, and the reverse: no image is judged with a
    temperature that it helped to fit.

    Args:
        logits: [N, C] float32.
        labels: [N], positions in 0..C-1.
        correct: [N], whether the run was right: logits stored in 16 bits may tie where it did not.
    """
    half = _alternating(labels)
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    first = inverse_temperature(shifted[half], own[half], None)
    second = inverse_temperature(shifted[~half], own[~half], first)
    betas = np.where(half, second, first).astype(np.float32)
    total = np.concatenate(
        [
            np.exp(betas[start : start + _CHUNK, None] * shifted[start : start + _CHUNK]).sum(axis=1)
            for start in range(0, len(labels), _CHUNK)
        ]
    ).astype(np.float64)
    return Tempered(
        temperature=float(1 / np.sqrt(first * second)),
        nll_nats=float((np.log(total) - betas * own).mean()),
        bins=equal_mass(correct, 1 / total),
    )


def _alternating(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """[N] bool: every second image of each class, in order; of classes with one image each, every second class."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])
    within = np.arange(len(labels)) - np.repeat(starts, np.diff([*starts, len(labels)]))
    half = np.empty(len(labels), np.bool_)
    half[order] = (within if within.any() else np.arange(len(labels))) % 2 == 0
    return half
