"""Normalisation: the one rule by which every applier turns 8-bit pixels into float32.

A channel's value v becomes float32(v * scale + bias), multiplied and added in float64. That is (v / 255 - mean) / std
to the last bits of a float64, and so, but for values that nearly equal the mean, to the last bit of a float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.spec import AugmentSpec
from datasets.store import Manifest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """A line per channel, from 8-bit values to normalised ones."""

    scale: NDArray[np.float64]
    """[3], per level of 255."""
    bias: NDArray[np.float64]
    """[3], what black becomes."""

    @property
    def table(self) -> NDArray[np.float32]:
        """The normalised value of every pixel value of every channel, [3, 256] float32."""
        lines: NDArray[np.float64] = np.arange(256) * self.scale[:, None] + self.bias[:, None]
        return lines.astype(np.float32)


def normalization(augment: AugmentSpec, manifest: Manifest, *, training: bool) -> Normalization:
    """How images are normalised.

    Args:
        augment: which statistics (`normalize` and `train_normalize`, with `mean` and `std` where they are given).
        manifest: of the images, for their own statistics.
        training: treat them as training images, for which `train_normalize` may say otherwise.

    Raises:
        ValueError: a channel is constant over the whole train split, so it cannot be divided by its deviation.
    """
    field = "train_normalize" if training and augment.train_normalize is not None else "normalize"
    name = getattr(augment, field)
    mean, std = {
        "dataset": (manifest.mean, manifest.std),
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "given": (augment.mean, augment.std),
    }[name]
    assert mean is not None and std is not None, "the spec has both exactly where normalize is given"
    if min(std) <= 0:
        raise ValueError(
            f"augment.{field}: {name} divides by a standard deviation of 0 ({manifest.dataset} has a constant "
            "channel); choose imagenet or none"
        )
    return Normalization(scale=1 / (255 * np.array(std)), bias=-np.array(mean) / np.array(std))
