"""Numbers that describe what a network's features hold: alike to others, of how many dimensions, apart by class.

All are of features [n, d], an image a row. No torch: how features come about is `networks.py`'s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]


def centred_gram(features: Features) -> NDArray[np.float64]:
    """What debiased linear CKA compares: the images' inner products above the diagonal, centred without bias.

    Szekely and Rizzo's U-centring, in which an image's product with itself has no part. That product is what makes
    the plain estimate call 2,048 independent dimensions and 384 others alike.

    Args:
        features: [n, d]; their mean and any rotation do not matter.

    Returns:
        [n (n - 1) / 2] float64, of length 1; all 0 where every image has the same features.

    Raises:
        ValueError: fewer than 4 images, or features that are no finite numbers.
    """
    num = len(features)
    if num < 4:
        raise ValueError(f"{num} images; debiased CKA needs at least 4")
    if not np.isfinite(features).all():
        raise ValueError("features that are no finite numbers")
    centred = np.asarray(features, np.float64) - np.mean(features, axis=0, dtype=np.float64)
    gram = centred @ centred.T
    size = float(np.trace(gram))
    np.fill_diagonal(gram, 0.0)
    sums = gram.sum(axis=0)
    gram -= (sums[:, None] + sums[None, :]) / (num - 2) - sums.sum() / ((num - 1) * (num - 2))
    above: NDArray[np.float64] = gram[np.triu_indices(num, 1)]
    length = float(np.linalg.norm(above))
    if length <= 1e-12 * size or not length:
        return np.zeros_like(above)
    above /= length
    return above


def cka(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Debiased linear CKA of two `centred_gram`s of the same images: 1 the same up to rotation and scale, 0 nothing in
    common on average; of few images it may be a little below 0."""
    return float(np.dot(one.astype(np.float64, copy=False), other.astype(np.float64, copy=False)))


def effective_rank(features: Features) -> float:
    """How many directions the features fill: the exponential of the entropy of their singular values' shares (Roy and
    Vetterli 2007), after their mean is taken away. 1 for a line, d for a ball in d dimensions; at most n - 1."""
    centred = np.asarray(features, np.float64) - np.mean(features, axis=0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    values = values[values > 1e-10 * values.max(initial=0.0)]
    if not values.size:
        return 1.0  # a point
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def separability(features: Features, labels: NDArray[np.integer]) -> float | None:
    """Share of the features' variance that lies between classes, corrected for the number of classes: 1 when every
    class is a point, 0 on average when the labels say nothing (so it may be a little below 0). None where no class
    has two images, or nothing varies."""
    classes, member = np.unique(labels, return_inverse=True)
    num = len(labels)
    if num <= len(classes) or len(classes) < 2:
        return None
    values = np.asarray(features, np.float64)
    counts = np.bincount(member)
    means = np.stack([values[member == number].mean(axis=0) for number in range(len(classes))])
    total = float(np.square(values - values.mean(axis=0)).sum())
    within = float(total - (counts[:, None] * np.square(means - values.mean(axis=0))).sum())
    if total <= 0:
        return None
    return 1 - (within / (num - len(classes))) / (total / (num - 1))


def principal(features: Features) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """The features on their two main axes, and the share of the variance on each.

    Every axis points to where its largest coordinate is positive, so that the picture does not hang on a sign.

    Returns:
        [n, 2] float64 and two shares.
    """
    centred = np.asarray(features, np.float64) - np.mean(features, axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    left, values = (np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, max(0, 2 - len(values)))]) for one in (left, values))
    points = left[:, :2] * values[:2]
    points *= np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    shares = np.square(values[:2]) / max(float(np.square(values).sum()), np.finfo(np.float64).tiny)
    return points, (float(shares[0]), float(shares[1]))
