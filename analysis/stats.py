"""Intervals for accuracies and contrasts of accuracies, on arrays of right and wrong answers.

The same test images are judged by every run, so images are crossed with seeds: an interval that speaks of new images
and new seeds must hold both. With one seed nothing is known of seeds, and the interval speaks of that checkpoint only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastResult:
    """A weighted sum of accuracies."""

    estimate: float
    interval: tuple[float, float]
    df: float
    """Degrees of freedom (Satterthwaite)."""
    p: float
    """Two-sided, against 0."""
    parts: dict[str, float]
    """Variances: images, seeds, residual (image x seed), and total."""
    seeds: dict[str, int]
    """Number of seeds by cell."""

    @property
    def single_seed(self) -> bool:
        """Whether some cell has one seed only, so that the interval holds no seed variance of it."""
        return min(self.seeds.values()) < 2


def contrast(
    weights: Mapping[str, float], correct_by_cell: Mapping[str, NDArray[Any]], *, level: float = 0.95
) -> ContrastResult:
    """The contrast sum_c w_c A_c with its two-way interval over images and seeds.

    V = max(V_img + V_seed - V_res, V_img, V_seed): the image-by-seed noise is in both terms and counted once. Degrees
    of freedom by Satterthwaite. Seeds are independent across cells; their numbers may differ.

    Args:
        weights: w_c by cell; a single cell of weight 1 gives the interval of its accuracy.
        correct_by_cell: [K_c seeds, N images] of 0 and 1, the same N images in the same order in every cell.
        level: of the interval.

    Raises:
        ValueError: cells of different images, or fewer than two images.
    """
    cells = {name: np.atleast_2d(np.asarray(correct_by_cell[name], np.float64)) for name in weights}
    counts = {cell.shape[1] for cell in cells.values()}
    if len(counts) != 1 or (num := counts.pop()) < 2:
        raise ValueError(f"contrast needs the same images (at least two) in every cell, got {sorted(counts) or num}")
    per_image = sum(weight * cells[name].mean(axis=0) for name, weight in weights.items())
    assert isinstance(per_image, np.ndarray)
    images = float(per_image.var(ddof=1)) / num
    seeds = residual = 0.0
    seed_terms = []
    for name, weight in weights.items():
        cell = cells[name]
        count = len(cell)
        if count < 2:
            continue
        of_seeds = float(cell.mean(axis=1).var(ddof=1)) * weight**2 / count
        deviation = cell - cell.mean(axis=0) - cell.mean(axis=1, keepdims=True) + cell.mean()
        mean_square = float((deviation**2).sum()) / ((num - 1) * (count - 1))
        seeds += of_seeds
        residual += weight**2 * mean_square / (num * count)
        seed_terms.append(of_seeds**2 / (count - 1))
    total = max(images + seeds - residual, images, seeds)
    spread = images**2 / (num - 1) + sum(seed_terms)
    df = total**2 / spread if spread > 0 else math.inf
    estimate = float(per_image.mean())
    error = math.sqrt(total)
    half = float(stats.t.ppf(0.5 + level / 2, df)) * error if error else 0.0
    p = 2 * float(stats.t.sf(abs(estimate) / error, df)) if error else float(estimate == 0)
    return ContrastResult(
        estimate=estimate,
        interval=(estimate - half, estimate + half),
        df=df,
        p=p,
        parts={"images": images, "seeds": seeds, "residual": residual, "total": total},
        seeds={name: len(cells[name]) for name in weights},
    )


def wilson(correct: int, num: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion: one checkpoint, other images of the same kind.

    Raises:
        ValueError: no images, or more hits than images.
    """
    if not 0 <= correct <= num or num == 0:
        raise ValueError(f"wilson needs 0 <= correct <= num and images at all, got {correct} of {num}")
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = correct / num
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == num else centre + half
    return low, high
