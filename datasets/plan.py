"""Every random number of a training batch, drawn before any pixel is touched.

Randomness is a function of position: (seed, purpose, epoch, batch) is the key and counter of a Philox generator, so
any batch of any epoch can be drawn on its own and a resumed run needs no generator state. `reference.py`, `cpu.py`
and later appliers turn the same `BatchPlan` into the same pixels.

Mixing follows the first study: one lam ~ Beta(alpha, alpha) and one permutation for the whole batch; CutMix's box has
sides int(side * sqrt(1 - lam)), a centre uniform over the pixels, half sides side // 2, is clipped to the image, and
lam becomes 1 - clipped area / image area. `docs/augmentation.md` sets this beside timm, torchvision and kornia.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from datasets.spec import AugmentSpec


class Purpose(IntEnum):
    """What random numbers are for. Members are only ever added: their numbers are part of every result."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    MIX = 4
    HOLD_OUT = 5
    LIMIT_TRAIN = 6
    LIMIT_EVAL = 7
    MODEL_INIT = 8
    MODEL_TRAIN = 9
    DIGITS_SPLIT = 10


def generator(seed: int, purpose: Purpose, epoch: int = 0, batch: int = 0) -> np.random.Generator:
    """The generator of one position. Different positions never share a draw.

    Philox counts up the lowest of its four counter words, so a position has 2^64 blocks of its own.
    """
    counter = np.array([0, batch, epoch, 0], dtype=np.uint64)
    key = np.array([seed, int(purpose)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


def epoch_order(seed: int, epoch: int, num_images: int) -> NDArray[np.int32]:
    """The order in which an epoch visits its images: a permutation of range(num_images), [N] int32."""
    return generator(seed, Purpose.ORDER, epoch).permutation(num_images).astype(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """What to do with each of a batch's B images. All arrays have length B (mix_box: [B, 4])."""

    index: NDArray[np.int32]
    """Row of the image in the store."""
    top: NDArray[np.int16]
    """First row of the window in the unpadded image; negative or beyond it means black."""
    left: NDArray[np.int16]
    """First column of the window, likewise."""
    flip: NDArray[np.bool_]
    """Mirror the window left to right."""
    out_size: int
    """Side of the window in pixels."""
    partner: NDArray[np.int32]
    """Position in this batch of the image to mix with (itself where nothing is mixed)."""
    blend: NDArray[np.float32]
    """MixUp's weight of the image itself in every pixel; 1 where there is no MixUp."""
    mix_box: NDArray[np.int16]
    """CutMix's window (top, left, bottom, right) that is taken from the partner; empty where there is no CutMix."""
    lam: NDArray[np.float32]
    """Weight of the image's own label; the partner's label weighs 1 - lam."""


def plain_plan(index: NDArray[np.int32], image_size: int) -> BatchPlan:
    """The plan of a test batch: nothing cropped, mirrored or mixed."""
    num = len(index)
    return BatchPlan(
        index=np.asarray(index, dtype=np.int32),
        top=np.zeros(num, np.int16),
        left=np.zeros(num, np.int16),
        flip=np.zeros(num, np.bool_),
        out_size=image_size,
        partner=np.arange(num, dtype=np.int32),
        blend=np.ones(num, np.float32),
        mix_box=np.zeros((num, 4), np.int16),
        lam=np.ones(num, np.float32),
    )


def draw_plan(
    spec: AugmentSpec, seed: int, epoch: int, batch: int, index: NDArray[np.int32], image_size: int
) -> BatchPlan:
    """Draws the plan of training batch `batch` of `epoch`, whose images are the store's rows `index` ([B] int32).

    Raises:
        ValueError: the crop does not fit into the padded image.
    """
    num = len(index)
    plan = plain_plan(index, image_size)
    out_size = spec.train_crop or image_size
    top, left, flip = plan.top, plan.left, plan.flip
    low, high = -spec.pad_crop, image_size + spec.pad_crop - out_size
    if high < low:
        raise ValueError(
            f"augment.train_crop: {out_size} pixels do not fit into images of {image_size} padded by "
            f"{spec.pad_crop}; lower train_crop or raise pad_crop"
        )
    if high > low:
        corners = generator(seed, Purpose.CROP, epoch, batch).integers(low, high, size=(2, num), endpoint=True)
        top, left = corners.astype(np.int16)
    if spec.hflip_prob > 0:
        flip = generator(seed, Purpose.FLIP, epoch, batch).random(num) < spec.hflip_prob
    partner, blend, box, lam = _draw_mix(spec, generator(seed, Purpose.MIX, epoch, batch), num, out_size)
    return BatchPlan(
        index=plan.index,
        top=top,
        left=left,
        flip=flip,
        out_size=out_size,
        partner=partner,
        blend=blend,
        mix_box=box,
        lam=lam,
    )


_Mix = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int16], NDArray[np.float32]]


def _draw_mix(spec: AugmentSpec, rng: np.random.Generator, num: int, size: int) -> _Mix:
    """Partner, blend, mix_box and lam of a batch. Draws are in a fixed order: lam, permutation, centre, coins."""
    partner = np.arange(num, dtype=np.int32)
    blend = np.ones(num, np.float32)
    box = np.zeros((num, 4), np.int16)
    if spec.mix == "none" or spec.mix_alpha is None:
        return partner, blend, box, np.ones(num, np.float32)
    draws = 1 if spec.mix_scope == "batch" else num
    lam = rng.beta(spec.mix_alpha, spec.mix_alpha, size=draws)
    permutation = rng.permutation(num)
    centre = rng.integers(0, size, size=(2, draws))
    mixed = rng.random(draws) < spec.mix_prob
    cut = {"mixup": np.zeros(draws, bool), "cutmix": np.ones(draws, bool), "switch": rng.random(draws) < 0.5}[spec.mix]

    boxes = _cut_boxes(lam, centre, size)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    label_lam = np.where(cut, 1.0 - area / (size * size), lam)
    everyone = np.broadcast_to
    use_cut = everyone(mixed & cut, num)
    use_blend = everyone(mixed & ~cut, num)
    use = use_cut | use_blend
    chosen = permutation if spec.mix_partner == "permutation" else np.arange(num)[::-1]
    partner = np.where(use, chosen, partner).astype(np.int32)
    blend = np.where(use_blend, everyone(lam, num), 1.0).astype(np.float32)
    box = np.where(use_cut[:, None], everyone(boxes, (num, 4)), 0).astype(np.int16)
    return partner, blend, box, np.where(use, everyone(label_lam, num), 1.0).astype(np.float32)


def _cut_boxes(lam: NDArray[np.float64], centre: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """CutMix's clipped windows (top, left, bottom, right), [D, 4], as the first study cuts them."""
    half = (size * np.sqrt(1.0 - lam)).astype(np.int64) // 2
    row, column = centre
    corners: NDArray[np.int64] = np.stack([row - half, column - half, row + half, column + half], axis=1)
    return corners.clip(0, size)
