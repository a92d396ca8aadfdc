"""Bootstraps: slow references of the intervals in `analysis.stats`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pigeonhole(
    contrasts: Mapping[str, Mapping[str, float]],
    correct_by_cell: Mapping[str, NDArray[Any]],
    *,
    draws: int,
    rng: np.random.Generator,
    strata: NDArray[Any] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Owen's bootstrap for images crossed with seeds: images are drawn once for all runs, seeds within every cell.

    Its variance is V_img + (K-1)/K (V_seed + V_res), above that of `contrast`; the draws of all contrasts are joint.

    Args:
        contrasts: weights by cell, by name.
        correct_by_cell: [K_c seeds, N images], the same images in every cell; any number per image may stand for 0/1.
        draws: B.
        rng: the randomness.
        strata: [N] classes of images; images are drawn within their class.

    Returns:
        [B] float64 by name.
    """
    names = sorted({cell for weights in contrasts.values() for cell in weights})
    cells = [np.atleast_2d(np.asarray(correct_by_cell[name], np.float32)) for name in names]
    runs = np.concatenate(cells).T
    num = len(runs)
    groups = [np.arange(num)] if strata is None else [np.flatnonzero(strata == one) for one in np.unique(strata)]
    means = np.empty((draws, runs.shape[1]))
    for start in range(0, draws, _CHUNK):
        rows = np.arange(min(_CHUNK, draws - start))
        counts = np.zeros((len(rows), num), np.float32)
        for group in groups:
            drawn = group[rng.integers(0, len(group), (len(rows), len(group)))]
            counts += np.bincount((drawn + num * rows[:, None]).ravel(), minlength=counts.size).reshape(counts.shape)
        means[start : start + len(rows)] = counts @ runs / num
    of_cell = {}
    first = 0
    for name, cell in zip(names, cells, strict=True):
        count = len(cell)
        shares = rng.multinomial(count, np.full(count, 1 / count), draws) / count
        of_cell[name] = (shares * means[:, first : first + count]).sum(axis=1)
        first += count
    return {
        label: np.sum([weight * of_cell[name] for name, weight in weights.items()], axis=0)
        for label, weights in contrasts.items()
    }


def pigeonhole_of(
    statistic: Callable[[int, NDArray[np.int64]], float],
    num_seeds: int,
    num: int,
    *,
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The same bootstrap of any statistic of one cell.

    Args:
        statistic: of one seed and the images drawn.
        num_seeds: of the cell.
        num: images.
        draws: B.
        rng: the randomness.

    Returns:
        [B] float64: means over the seeds drawn.
    """
    found = np.empty(draws)
    for i in range(draws):
        images = rng.integers(0, num, num)
        seeds = rng.integers(0, num_seeds, num_seeds)
        found[i] = np.mean([statistic(seed, images) for seed in seeds.tolist()])
    return found


_CHUNK = 250
"""Draws held in memory at once: 10,000 images make 10 MB."""
