"""Gains by class: how much an augmentation helps or harms each class, after what chance alone would show.

With 50 or 100 images a class, the spread of observed gains is mostly noise. So each is drawn towards the mean gain by
as much as its own error calls for, and only what survives a false discovery rate over all classes is an effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.load import AnalysisError, ResultRow
from analysis.stats import benjamini_hochberg


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassGains:
    """Accuracy by class of one row less that of another; fractions, [C] each, in the order of `classes`."""

    classes: NDArray[np.int64]
    """The data's numbers."""
    images: NDArray[np.int64]
    baseline: NDArray[np.float64]
    """Accuracy of the other row."""
    gain: NDArray[np.float64]
    error: NDArray[np.float64]
    """Standard error of a class's gain, over its images and the seeds; where none was seen, that of all classes."""
    shrunken: NDArray[np.float64]
    """Drawn towards the mean gain."""
    q: NDArray[np.float64]
    """Of its being the mean gain: two-sided, Benjamini and Hochberg over the classes."""
    mean: float
    """Mean gain over classes."""
    spread: float
    """Standard deviation of the true gains between classes, as estimated; 0 where noise explains all."""


def class_gains(row: ResultRow, other: ResultRow) -> ClassGains:
    """Gains by class of evaluation `final`.

    Raises:
        AnalysisError: a row has no run that is done, the two were judged on different images, or some class has fewer
            than two images.
    """
    if not row.done or not other.done:
        raise AnalysisError(f"{row.label} and {other.label}: not both done")
    first, second = row.done[0].final.predictions, other.done[0].final.predictions
    if not np.array_equal(first.sample_ids, second.sample_ids):
        raise AnalysisError(f"{row.label} and {other.label} were judged on different images")
    classes, which, images = np.unique(first.labels, return_inverse=True, return_counts=True)
    if images.min() < 2:
        raise AnalysisError(f"class {classes[images.argmin()]} has {images.min()} test image; gains need two a class")
    ours, theirs = (np.stack([run.final.correct for run in one.done]).astype(np.float64) for one in (row, other))
    gain = _by_class(ours.mean(axis=0) - theirs.mean(axis=0), which, images)
    variance, df = _variance(ours, theirs, which, images)
    variance = np.where(variance > 0, variance, variance.mean())  # all answers alike: no error seen is not no error
    mean = float(gain.mean())
    spread2 = max(0.0, float(gain.var(ddof=1) - variance.mean())) if len(classes) > 1 else 0.0
    weight = np.divide(spread2, spread2 + variance, out=np.zeros_like(variance), where=spread2 + variance > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(gain - mean) / np.sqrt(variance), df)
    p = np.where(variance > 0, p, np.where(gain == mean, 1.0, 0.0))
    return ClassGains(
        classes=classes.astype(np.int64),
        images=images,
        baseline=_by_class(theirs.mean(axis=0), which, images),
        gain=gain,
        error=np.sqrt(variance),
        shrunken=mean + weight * (gain - mean),
        q=np.array(benjamini_hochberg(p.tolist())),
        mean=mean,
        spread=spread2**0.5,
    )


def _by_class(values: NDArray[np.float64], which: NDArray[np.intp], images: NDArray[np.int64]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.bincount(which, values) / images
    return means


def _variance(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], which: NDArray[np.intp], images: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two-way variance of every class's gain and its degrees of freedom: `stats.contrast` by class, [C] each."""
    per_image = ours.mean(axis=0) - theirs.mean(axis=0)
    centred = per_image - _by_class(per_image, which, images)[which]
    of_images = np.bincount(which, centred**2) / (images - 1) / images
    of_seeds, residual, terms = np.zeros_like(of_images), np.zeros_like(of_images), np.zeros_like(of_images)
    for arm in (ours, theirs):
        num = len(arm)
        if num < 2:
            continue
        accuracy = np.stack([_by_class(seed, which, images) for seed in arm])
        own = accuracy.var(axis=0, ddof=1) / num
        deviation = arm - arm.mean(axis=0) - accuracy[:, which] + accuracy.mean(axis=0)[which]
        square = np.bincount(which, (deviation**2).sum(axis=0)) / ((images - 1) * (num - 1))
        of_seeds += own
        residual += square / (num * images)
        terms += own**2 / (num - 1)
    total = np.maximum(of_images + of_seeds - residual, np.maximum(of_images, of_seeds))
    spread = of_images**2 / (images - 1) + terms
    df = np.divide(total**2, spread, out=np.full_like(total, np.inf), where=spread > 0)
    return total, df
