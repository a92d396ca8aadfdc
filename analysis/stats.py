"""Intervals for accuracies and contrasts of accuracies, on arrays of right and wrong answers.

The same test images are judged by every run, so images are crossed with seeds: an interval that speaks of new images
and new seeds must hold both. With one seed nothing is known of seeds, and the interval speaks of that checkpoint only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Over = Literal["both", "images", "seeds"]
"""What an interval speaks of: new images and new seeds; new images for these checkpoints; new seeds on these images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastResult:
    """A weighted sum of accuracies, or of numbers that follow from them, with its error."""

    estimate: float
    df: float
    """Degrees of freedom (Satterthwaite)."""
    parts: dict[str, float]
    """Variances: images, seeds, residual (image x seed), and total."""
    seeds: dict[str, int]
    """Number of seeds by cell."""
    square_weights: float
    """Sum of the squared weights: what a variance between runs is multiplied by."""

    @property
    def single_seed(self) -> bool:
        """Whether some cell has one seed only, so that the interval holds no seed variance of it."""
        return min(self.seeds.values()) < 2

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(self.parts["total"])

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval."""
        return self.interval_at(0.95)

    def interval_at(self, level: float) -> tuple[float, float]:
        """The interval of a level."""
        half = float(stats.t.ppf(0.5 + level / 2, self.df)) * self.error if self.error else 0.0
        return self.estimate - half, self.estimate + half

    @property
    def p(self) -> float:
        """Two-sided, against 0."""
        return min(1.0, 2 * min(self.p_above(0), self.p_below(0)))

    def p_above(self, bound: float) -> float:
        """One-sided: the estimate or more, were the truth `bound`."""
        gap = self.estimate - bound
        return float(stats.t.sf(gap / self.error, self.df)) if self.error else float(gap <= 0)

    def p_below(self, bound: float) -> float:
        """One-sided: the estimate or less, were the truth `bound`."""
        gap = self.estimate - bound
        return float(stats.t.cdf(gap / self.error, self.df)) if self.error else float(gap >= 0)

    def p_equivalent(self, margin: float) -> float:
        """Two one-sided tests: small where the truth lies within +-margin. Below 5 % exactly when the 90 % interval
        lies within the margin."""
        return max(self.p_above(-margin), self.p_below(margin))

    def smallest_margin(self, alpha: float = 0.05) -> float:
        """The smallest margin within which the truth would be shown to lie."""
        return max(map(abs, self.interval_at(1 - 2 * alpha)))

    @property
    def tipping_sd(self) -> float | None:
        """The standard deviation between runs, beyond the error, at which the 95 % interval would reach 0; None where
        it does so already."""
        spare = (self.estimate / _Z) ** 2 - self.parts["total"]
        return math.sqrt(spare / self.square_weights) if spare > 0 else None


_Z = float(stats.norm.ppf(0.975))


def contrast(
    weights: Mapping[str, float],
    correct_by_cell: Mapping[str, NDArray[Any]],
    *,
    over: Over = "both",
    strata: NDArray[Any] | None = None,
) -> ContrastResult:
    """The contrast sum_c w_c A_c with its two-way error over images and seeds.

    V = max(V_img + V_seed - V_res, V_img, V_seed): the image-by-seed noise is in both terms and counted once. Degrees
    of freedom by Satterthwaite. Seeds are independent across cells; their numbers may differ.

    Args:
        weights: w_c by cell; a single cell of weight 1 gives the interval of its accuracy.
        correct_by_cell: [K_c seeds, N images] of 0 and 1, the same N images in the same order in every cell.
        over: what the error is to speak of; `images` is V_img alone, `seeds` is V_seed alone.
        strata: [N] classes of images whose shares are fixed, so that only variance within classes counts; each needs
            two images.

    Raises:
        ValueError: cells of different images, fewer than two images (of a class), or `seeds` with one seed.
    """
    cells = {name: np.atleast_2d(np.asarray(correct_by_cell[name], np.float64)) for name in weights}
    counts = {cell.shape[1] for cell in cells.values()}
    if len(counts) != 1 or (num := counts.pop()) < 2:
        raise ValueError(f"contrast needs the same images (at least two) in every cell, got {sorted(counts) or num}")
    per_image = sum(weight * cells[name].mean(axis=0) for name, weight in weights.items())
    assert isinstance(per_image, np.ndarray)
    images, images_df = _image_variance(per_image, strata)
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
    sizes = {name: len(cells[name]) for name in weights}
    if over == "seeds" and min(sizes.values()) < 2:
        raise ValueError(f"contrast over seeds needs two seeds in every cell, got {sizes}")
    image_term = images**2 / images_df
    total, spread = {
        "both": (max(images + seeds - residual, images, seeds), image_term + sum(seed_terms)),
        "images": (images, image_term),
        "seeds": (seeds, sum(seed_terms)),
    }[over]
    return ContrastResult(
        estimate=float(per_image.mean()),
        df=total**2 / spread if spread > 0 else math.inf,
        parts={"images": images, "seeds": seeds, "residual": residual, "total": total},
        seeds=sizes,
        square_weights=sum(weight**2 for weight in weights.values()),
    )


def _image_variance(per_image: NDArray[np.float64], strata: NDArray[Any] | None) -> tuple[float, int]:
    """Variance of the mean over images, and its degrees of freedom."""
    num = len(per_image)
    if strata is None:
        return float(per_image.var(ddof=1)) / num, num - 1
    _, which, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        raise ValueError("contrast by classes needs at least two images of every class")
    within = per_image - (np.bincount(which, per_image) / sizes)[which]
    variances = np.bincount(which, within**2) / (sizes - 1)
    return float((sizes * variances).sum()) / num**2, num - len(sizes)


def log_odds(
    weights: Mapping[str, float], correct_by_cell: Mapping[str, NDArray[Any]], *, over: Over = "both"
) -> ContrastResult | None:
    """The contrast of the accuracies' log-odds, its error by the delta method; None where one is 0 or 1."""
    shares = {name: float(np.mean(correct_by_cell[name])) for name in weights}
    if any(share in (0.0, 1.0) for share in shares.values()):
        return None
    slopes = {name: weight / (shares[name] * (1 - shares[name])) for name, weight in weights.items()}
    estimate = sum(weight * math.log(shares[name] / (1 - shares[name])) for name, weight in weights.items())
    return replace(contrast(slopes, correct_by_cell, over=over), estimate=estimate)


def error_removed(
    weights: Mapping[str, float],
    baselines: Mapping[str, str],
    correct_by_cell: Mapping[str, NDArray[Any]],
    *,
    over: Over = "both",
) -> ContrastResult | None:
    """The contrast with every cell in shares of its baseline's error: sum_c w_c A_c / (1 - A_baseline(c)); its error
    by the delta method. None where a baseline makes no error.

    Args:
        weights: w_c by cell; those of one baseline sum to 0.
        baselines: the baseline's cell by cell.
        correct_by_cell: as of `contrast`, the baselines included.
        over: as of `contrast`.
    """
    shares = {name: float(np.mean(correct_by_cell[name])) for name in {*weights, *baselines.values()}}
    if any(shares[name] == 1 for name in baselines.values()):
        return None
    slopes = dict.fromkeys(sorted(shares), 0.0)
    estimate = 0.0
    for name, weight in weights.items():
        error = 1 - shares[baselines[name]]
        estimate += weight * shares[name] / error
        slopes[name] += weight / error
        slopes[baselines[name]] += weight * shares[name] / error**2
    return replace(contrast(slopes, correct_by_cell, over=over), estimate=estimate)


def contrast_of_shares(
    weights: Mapping[str, float], shares_by_cell: Mapping[str, Sequence[float]], num: int
) -> ContrastResult:
    """The contrast where only accuracies are known and no answers: errors of independent proportions, which are too
    wide where runs tend to be right on the same images, and beyond them the variance between seeds.

    Args:
        weights: w_c by cell.
        shares_by_cell: accuracy of every seed.
        num: images that each was measured on.
    """
    images = seeds = 0.0
    seed_terms = []
    for name, weight in weights.items():
        shares = np.asarray(shares_by_cell[name], np.float64)
        images += weight**2 * float((shares * (1 - shares)).mean()) / num
        if len(shares) > 1:
            of_seeds = weight**2 * float(shares.var(ddof=1)) / len(shares)
            seeds += of_seeds
            seed_terms.append(of_seeds**2 / (len(shares) - 1))
    total = images + seeds
    spread = images**2 / (num - 1) + sum(seed_terms)
    return ContrastResult(
        estimate=sum(weight * float(np.mean(shares_by_cell[name])) for name, weight in weights.items()),
        df=total**2 / spread if spread > 0 else math.inf,
        parts={"images": images, "seeds": seeds, "residual": 0.0, "total": total},
        seeds={name: len(shares_by_cell[name]) for name in weights},
        square_weights=sum(weight**2 for weight in weights.values()),
    )


def macro_f1_values(labels: NDArray[Any], predicted: NDArray[Any], num_classes: int) -> NDArray[np.float64]:
    """Numbers per image whose mean is the macro F1 and whose variation is its error, by the delta method: macro F1 plus
    what one more such image would add to it. `contrast` of them is the two-way interval of macro F1.

    Args:
        labels: [N], the data's numbers of the classes.
        predicted: [N], likewise.
        num_classes: over which F1 is averaged; one that is neither label nor prediction counts as 0.

    Returns:
        [N] float64.
    """
    known, which = np.unique(np.concatenate([labels, predicted]), return_inverse=True)
    own, said = np.split(which, 2)
    right = own == said
    num = len(labels)
    hits = np.bincount(own[right], minlength=len(known)) / num
    sums = np.bincount(which, minlength=len(known)) / num
    f1 = 2 * hits / sums
    gain = (2 * right - f1[own]) / sums[own] - f1[said] / sums[said]
    return np.asarray((f1.sum() + gain) / num_classes, np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values (false discovery rate), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    adjusted = [0.0] * len(p_values)
    lowest = 1.0
    for rank, i in enumerate(order):
        lowest = min(lowest, p_values[i] * len(p_values) / (len(p_values) - rank))
        adjusted[i] = lowest
    return adjusted


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int, float]:
    """McNemar's exact test of two runs on the same images.

    Args:
        one: [N] bool, right or wrong.
        other: likewise.

    Returns:
        Images that only the one has right, those that only the other has, and the two-sided p-value.
    """
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return 0, 0, 1.0
    return only_one, only_other, float(stats.binomtest(only_one, only_one + only_other).pvalue)


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


def newcombe(one: tuple[int, int], other: tuple[int, int], *, level: float = 0.95) -> tuple[float, float]:
    """Newcombe's interval of the difference of two proportions (one less the other), from their Wilson intervals.

    Taken of two runs judged on the same images it is too wide rather than too narrow: such runs tend to be right on
    the same images.

    Args:
        one: (hits, images).
        other: likewise.
        level: of the interval.

    Raises:
        ValueError: no images, or more hits than images.
    """
    first, second = one[0] / one[1], other[0] / other[1]
    (low1, high1), (low2, high2) = wilson(*one, level=level), wilson(*other, level=level)
    difference = first - second
    return (
        difference - math.hypot(first - low1, high2 - second),
        difference + math.hypot(high1 - first, second - low2),
    )


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"mean_interval needs at least two values, got {len(values)}")
    array = np.asarray(values, np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    half = float(stats.t.ppf(0.5 + level / 2, len(array) - 1)) * error
    return float(array.mean()) - half, float(array.mean()) + half


def prob_greater(one: Sequence[float], other: Sequence[float]) -> float:
    """How often a value of the one is above one of the other, ties as half: description where runs are few."""
    gaps = np.subtract.outer(np.asarray(one, np.float64), np.asarray(other, np.float64))
    return float(np.mean((gaps > 0) + (gaps == 0) / 2))


def noether_size(prob: float, *, alpha: float = 0.05, power: float = 0.95) -> float:
    """Runs an arm that a one-sided rank test needs to tell `prob_greater` of `prob` from one half (Noether)."""
    return float((stats.norm.ppf(1 - alpha) + stats.norm.ppf(power)) ** 2 / (6 * (prob - 0.5) ** 2))
