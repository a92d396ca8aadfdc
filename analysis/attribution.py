"""Attribution maps as numbers: attention rolled out, pixels put in order, scores of an order. No torch.

A map is a grid [h, w] of blocks over a square image: pixels for input gradients, the layer's positions for Grad-CAM,
patches for attention. It is never smoothed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

LEAST_GRID = 4
"""Blocks a side below which a map says nothing about where."""
STEPS = 16
"""Into so many equal parts an image is taken away, of maps with as many blocks."""

Map = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """How much of a run's answers hangs on what its maps point at; [n] each, an image a number.

    Deletion: mean probability of the true class while blocks are taken away, the most important first: low is good.
    Insertion: the same while they are put back: high is good. Controls: the same run judged in a random order of the
    same blocks, and in the order of an untrained network's map.
    """

    method: str
    layer: str
    """Where in the network the map is taken."""
    grid: tuple[int, int]
    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]
    deletion_random: NDArray[np.float64]
    insertion_random: NDArray[np.float64]
    deletion_untrained: NDArray[np.float64]
    insertion_untrained: NDArray[np.float64]
    likeness: NDArray[np.float64]
    """Rank correlation of the run's map with the untrained network's; NaN where one of them is flat."""


def rollout(attention: NDArray[np.floating]) -> NDArray[np.float64]:
    """Abnar and Zuidema's attention rollout: what part of every token's end lies in which token's beginning.

    Args:
        attention: [L, T, T], mean over heads of each layer, rows sum to 1.

    Returns:
        [T, T] float64, rows sum to 1. Half of every layer's step is the residual connection.
    """
    tokens = attention.shape[-1]
    found = np.eye(tokens)
    for layer in attention.astype(np.float64):
        found = (0.5 * layer + 0.5 * np.eye(tokens)) @ found
    return found


def times_even(values: Map) -> NDArray[np.float64]:
    """Maps [..., h, w] of values that are not negative, as multiples of an even spread: their mean is 1, or all is 0.
    Maps of several networks are comparable so."""
    grid = np.asarray(values, np.float64)
    mean = grid.mean(axis=(-2, -1), keepdims=True)
    found: NDArray[np.float64] = np.divide(grid, mean, out=np.zeros_like(grid), where=mean > 0)
    return found


def order(values: Map, rng: np.random.Generator) -> NDArray[np.intp]:
    """The blocks of a map [h, w], the highest value first, ties in random order: [h * w] flat positions."""
    flat = np.asarray(values, np.float64).reshape(-1)
    return np.lexsort((rng.random(flat.size), -flat))


def removals(blocks: NDArray[np.intp], grid: tuple[int, int], side: int) -> NDArray[np.bool_]:
    """Which pixels are gone as an order of blocks is taken away: nothing first, everything last.

    Args:
        blocks: [h * w] flat positions.
        grid: h, w.
        side: of the image in pixels.

    Returns:
        [k + 1, side, side], k = `STEPS` or the number of blocks where that is less.
    """
    rank = np.empty(blocks.size, np.intp)
    rank[blocks] = np.arange(blocks.size)
    of_pixel = rank.reshape(grid)[np.ix_(*(np.arange(side) * one // side for one in grid))]
    gone: NDArray[np.bool_] = of_pixel[None] < removed(blocks.size)[:, None, None]
    return gone


def removed(blocks: int) -> NDArray[np.intp]:
    """How many of so many blocks are gone at every step, 0 first: [k + 1]."""
    return np.round(np.linspace(0, blocks, min(STEPS, blocks) + 1)).astype(np.intp)


def area(values: NDArray[np.floating], blocks: int) -> NDArray[np.float64]:
    """Mean height of curves [..., k + 1] over the share of the image that is gone (trapezoids)."""
    shares = removed(blocks) / blocks
    found: NDArray[np.float64] = np.trapezoid(np.asarray(values, np.float64), shares, axis=-1)
    return found


def likeness(one: Map, other: Map) -> float:
    """Spearman's rank correlation of two maps of one grid; NaN where one of them is flat."""
    ranks = np.stack([rankdata(np.asarray(grid, np.float64)) for grid in (one, other)])
    if (ranks.std(axis=1) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def hash_order(sample_ids: NDArray[np.integer], seed: int, content: str) -> NDArray[np.intp]:
    """Positions of images in an order that hangs on a seed, the data and an image's number alone, so that the same
    images are chosen whatever else is there."""
    keys = [hashlib.sha256(f"{seed} {content} {number}".encode()).digest() for number in sample_ids.tolist()]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.intp)


def rng_for(seed: int, *what: Any) -> np.random.Generator:
    """The random numbers of one purpose, whatever else was drawn."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *what))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
