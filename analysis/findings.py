"""What was found in the networks of a block, ready to be drawn and tabled; which images are looked at. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.attribution import Scores, hash_order
from analysis.figure_inputs import Cell
from analysis.load import SeedRun

PER_KIND = 2
"""Images of every kind that are shown."""
RIGHT_BY_ALL, TO_RIGHT, TO_WRONG = "right by all", "flip to right", "flip to wrong"
RIGHT_BY_SOME, RIGHT_BY_NONE = "right by some", "right by none"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFeatures:
    """What one run makes of the images."""

    run: SeedRun
    weights_sha256: str
    """Over the tensors of the checkpoint that was looked into."""
    dims: dict[str, int]
    """Number of features by depth."""
    ranks: dict[str, float]
    """Effective rank by depth."""
    separability: float | None
    """Of the head's input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One cell of a block."""

    cell: Cell
    runs: tuple[RunFeatures, ...]
    """By seed."""
    features: NDArray[np.float32]
    """[n, d], the head's input in the first of them."""
    shown: SeedRun | None
    """Whose maps these are; None where its network could not be looked into."""
    answers: NDArray[np.int16]
    """[r], its answers on the images shown."""
    maps: dict[str, NDArray[np.float64]]
    """[r, h, w] by method, as multiples of an even spread."""
    scores: tuple[Scores, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFindings:
    """Everything of one block."""

    block: tuple[str, ...]
    content_sha256: str
    """Of the data."""
    seed: int
    """Of all that was drawn."""
    arms: tuple[Arm, ...]
    sample_ids: NDArray[np.int32]
    """[n], whose features were taken."""
    labels: NDArray[np.int16]
    """[n], the data's numbers of their classes."""
    shown_ids: NDArray[np.int32]
    """[r]"""
    shown_labels: NDArray[np.int16]
    """[r]"""
    kinds: tuple[str, ...]
    """[r]"""
    pictures: NDArray[np.uint8]
    """[r, S, S, 3]"""
    num_scored: int
    num_scored_right: int
    """Of them: right by all arms."""
    alike: dict[str, NDArray[np.float64]]
    """Debiased CKA [arms, arms] by depth: mean over pairs of runs of different seeds where there are several, on the
    diagonal the seeds of one arm; NaN where there is no pair."""
    num_alike: int
    """Images behind it."""


def choose_images(
    right: NDArray[np.bool_],
    places: Sequence[tuple[str, str]],
    baseline: str | None,
    in_order: NDArray[np.intp],
) -> list[tuple[str, int]]:
    """The images that are shown: the first of every kind, in an order that nobody chose.

    Args:
        right: [arms, N], whether an arm's answer is right.
        places: architecture and augmentation of every arm.
        baseline: the augmentation that flips are counted from; None where the block has none.
        in_order: the N images in `hash_order`.

    Returns:
        Kind and position. An image flips to right when, in some architecture, the baseline errs and another arm does
        not, and nowhere the reverse.
    """
    by_all: NDArray[np.bool_] = np.logical_and.reduce(right)
    by_some: NDArray[np.bool_] = np.logical_or.reduce(right)
    kinds = {RIGHT_BY_ALL: by_all}
    to_right, to_wrong = np.zeros(right.shape[1], bool), np.zeros(right.shape[1], bool)
    for number, (arch, aug) in enumerate(places):
        if (arch, baseline) in places and aug != baseline:
            before = right[places.index((arch, str(baseline)))]
            to_right |= ~before & right[number]
            to_wrong |= before & ~right[number]
    if (to_right | to_wrong).any():
        kinds |= {TO_RIGHT: to_right & ~to_wrong, TO_WRONG: to_wrong & ~to_right}
    else:
        kinds |= {RIGHT_BY_SOME: by_some & ~by_all}
    chosen = [(kind, int(at)) for kind, fits in kinds.items() for at in in_order[fits[in_order]][:PER_KIND]]
    return chosen or [(RIGHT_BY_NONE, int(at)) for at in in_order[:PER_KIND]]


def mean_alike(
    pairs: NDArray[np.float64], arm_of: Sequence[int], seeds: Sequence[int], num_arms: int
) -> NDArray[np.float64]:
    """Likeness of runs to likeness of arms.

    Two runs of one seed begin with the same weights where their networks are the same, so pairs of different seeds
    count where there are any; these are what the diagonal, seeds of one arm, can be compared with.

    Args:
        pairs: [runs, runs].
        arm_of: [runs], number of each run's arm.
        seeds: [runs].
        num_arms: of the block.

    Returns:
        [arms, arms]; NaN where there is no pair.
    """
    found = np.full((num_arms, num_arms), np.nan)
    arm, seed = np.array(arm_of), np.array(seeds)
    for i in range(num_arms):
        for j in range(num_arms):
            members = (arm[:, None] == i) & (arm[None, :] == j)
            apart = members & (seed[:, None] != seed[None, :])
            chosen = apart if apart.any() or i == j else members
            values = pairs[chosen]
            values = values[np.isfinite(values)]
            if values.size:
                found[i, j] = values.mean()
    return found


def first_of(
    sample_ids: NDArray[np.integer], seed: int, content: str, count: int, preferred: NDArray[np.bool_] | None = None
) -> NDArray[np.intp]:
    """Positions of so many images in `hash_order`, the preferred ones first."""
    chosen = hash_order(sample_ids, seed, content)
    if preferred is not None:
        chosen = chosen[np.argsort(~preferred[chosen], kind="stable")]
    return chosen[:count]
