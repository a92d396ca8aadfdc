"""Normalisation: the one rule by which every applier turns 8-bit pixels into float32.

A channel's value v becomes v * scale + bias, multiplied, rounded and added in float32. That is (v / 255 - mean) / std
to a few roundings of float32, as torchvision's own float32 steps are.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    scale: NDArray[np.float32]
    """[3], per level of 255."""
    bias: NDArray[np.float32]
    """[3], what black becomes."""

    def __post_init__(self) -> None:
        assert self.scale.dtype == self.bias.dtype == np.float32, "float64 would be other bits"

    @classmethod
    def by(cls, mean: Sequence[float], std: Sequence[float]) -> Normalization:
        """The line that is (v / 255 - mean) / std; no deviation is 0."""
        scale, bias = 1 / (255 * np.array(std)), -np.array(mean) / np.array(std)
        return cls(scale=scale.astype(np.float32), bias=bias.astype(np.float32))

    @property
    def table(self) -> NDArray[np.float32]:
        """The normalised value of every pixel value of every channel, [3, 256] float32."""
        return np.arange(256, dtype=np.float32) * self.scale[:, None] + self.bias[:, None]


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
    return Normalization.by(mean, std)
