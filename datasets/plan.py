"""Every random number of a training batch, drawn before any pixel is touched.

Randomness is a function of position: (seed, purpose, epoch, batch) is the key and counter of a Philox generator, so
any batch of any epoch can be drawn on its own and a resumed run needs no generator state. `reference.py`, `cpu.py`
and `gpu.py` turn the same `BatchPlan` into the same pixels: what touches 8-bit pixels is planned in integers, because
integers alone are the same on every device.

An image's way is window, mirror, colour jitter, turn, normalise, erase, mix; a step is off where its draw is neutral.
Jitter, turn and erasing follow torchvision's transforms on Pillow images, as the fourth study used them.

Mixing follows the first study: one lam ~ Beta(alpha, alpha) and one permutation for the whole batch; CutMix's box has
sides int(side * sqrt(1 - lam)), a centre uniform over the pixels, half sides side // 2, is clipped to the image, and
lam becomes 1 - clipped area / image area. `docs/augmentation.md` sets this beside timm, torchvision and kornia.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.spec import AugmentSpec

FIXED_ONE = 1 << 16
"""1 in the 16.16 fixed point of colour factors, cosines and positions."""
HUE_SECTOR = 1 << 20
"""A sixth of the hue circle. Fine enough that every 8-bit colour turned by 0 is itself, coarse enough that a sixth
times 255 fits 32 bits."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The operations of the jitter: columns of `BatchPlan.jitter`, values of `BatchPlan.jitter_order`."""
ERASE_ATTEMPTS = 10
ERASE_AREA = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
"""Of torchvision's RandomErasing: boxes that are tried, share of the image, height by width."""


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
    JITTER = 11
    ROTATE = 12
    ERASE = 13


def _words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def generator(seed: int, purpose: Purpose, epoch: int = 0, batch: int = 0) -> np.random.Generator:
    """The generator of one position. Different positions never share a draw.

    Philox counts up the lowest of its four counter words, so a position has 2^64 blocks of its own.
    """
    return np.random.Generator(np.random.Philox(counter=_words(0, batch, epoch, 0), key=_words(seed, int(purpose))))


class _Moving(threading.local):
    """A generator for every thread, moved from position to position: a new one asks the system for entropy that nobody
    wants, which takes longer than most draws."""

    def __init__(self) -> None:
        self.generator = generator(0, Purpose.ORDER)
        self.state: Any = self.generator.bit_generator.state  # of one that has drawn nothing

    def to(self, seed: int, purpose: Purpose, epoch: int, batch: int) -> np.random.Generator:
        """As `generator`, until this thread moves it on."""
        position = self.state["state"]
        position["counter"][1:3] = batch, epoch
        position["key"][:] = seed, purpose
        self.generator.bit_generator.state = self.state
        return self.generator


_moving = _Moving()


def epoch_order(seed: int, epoch: int, num_images: int) -> NDArray[np.int32]:
    """The order in which an epoch visits its images: a permutation of range(num_images), [N] int32."""
    return generator(seed, Purpose.ORDER, epoch).permutation(num_images).astype(np.int32)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """What to do with each of a batch's B images. All arrays have length B, those of several columns are [B, 4], and
    all are made read-only: plans share what is neutral, and the CPU's kernel is compiled for one kind of arrays."""

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
    jitter: NDArray[np.int32]
    """Factors of brightness, contrast and saturation in 16.16 fixed point (`FIXED_ONE` changes nothing), and the turn
    of the hue, of which `HUE_SECTOR` is a sixth of the circle (0 changes nothing)."""
    jitter_order: NDArray[np.int8]
    """The four operations (`BRIGHTNESS` ... `HUE`) in the order in which the image undergoes them."""
    turn: NDArray[np.int32]
    """Cosine and sine of the counter-clockwise angle, then column and row of the source point of the window's pixel
    (0, 0), all in 16.16: pixel (y, x) shows the pixel that holds (column + cos x - sin y, row + sin x + cos y), black
    where there is none. See `turn_by`."""
    erase_box: NDArray[np.int16]
    """Window (top, left, bottom, right) that is 0 after normalising; empty where nothing is erased."""
    partner: NDArray[np.int32]
    """Position in this batch of the image to mix with (itself where nothing is mixed)."""
    blend: NDArray[np.float32]
    """MixUp's weight of the image itself in every pixel; 1 where there is no MixUp."""
    mix_box: NDArray[np.int16]
    """CutMix's window (top, left, bottom, right) that is taken from the partner; empty where there is no CutMix."""
    lam: NDArray[np.float32]
    """Weight of the image's own label; the partner's label weighs 1 - lam."""

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            getattr(self, name).setflags(write=False)

    @property
    def recolours(self) -> bool:
        """Whether the jitter changes any image."""
        return self.jitter.tobytes() != _NO_JITTER.tobytes() * len(self.index)

    @property
    def turns(self) -> bool:
        """Whether any image is turned."""
        return self.turn.tobytes() != _NO_TURN.tobytes() * len(self.index)

    @property
    def erases(self) -> bool:
        """Whether a box of any image is erased."""
        return bool(self.erase_box.any())

    def on_windows(self) -> BatchPlan:
        """What is left to do once every image has become its window, jittered and turned, in the batch's order."""
        rest = plain_plan(np.arange(len(self.index), dtype=np.int32), self.out_size)
        return replace(
            rest,
            erase_box=self.erase_box,
            partner=self.partner,
            blend=self.blend,
            mix_box=self.mix_box,
            lam=self.lam,
        )


_ARRAYS = tuple(field.name for field in fields(BatchPlan) if field.name != "out_size")
_NO_JITTER = np.array([FIXED_ONE, FIXED_ONE, FIXED_ONE, 0], np.int32)
_NO_TURN = np.array([FIXED_ONE, 0, FIXED_ONE // 2, FIXED_ONE // 2], np.int32)
_ANY_ORDER = np.arange(4, dtype=np.int8)


@lru_cache(maxsize=16)
def _neutral(num: int) -> dict[str, Any]:
    """Everything but index and size of a plan that only normalises `num` images. Making it anew was half of the time
    that a plan took."""
    zero, boxes, ones = np.zeros(num, np.int16), np.zeros((num, 4), np.int16), np.ones(num, np.float32)
    return {
        "top": zero,
        "left": zero,
        "flip": np.zeros(num, np.bool_),
        "jitter": np.repeat(_NO_JITTER[None], num, axis=0),
        "jitter_order": np.repeat(_ANY_ORDER[None], num, axis=0),
        "turn": np.repeat(_NO_TURN[None], num, axis=0),
        "erase_box": boxes,
        "partner": np.arange(num, dtype=np.int32),
        "blend": ones,
        "mix_box": boxes,
        "lam": ones,
    }


def plain_plan(index: NDArray[np.int32], image_size: int) -> BatchPlan:
    """The plan of a test batch: images are normalised and nothing else."""
    return BatchPlan(index=np.array(index, np.int32), out_size=image_size, **_neutral(len(index)))


def joined(plans: Sequence[BatchPlan]) -> BatchPlan:
    """The plan of several batches at once, of windows of one size."""
    first, partner = 0, []
    for plan in plans:
        partner.append(plan.partner + np.int32(first))
        first += len(plan.index)
    arrays = {name: np.concatenate([getattr(plan, name) for plan in plans]) for name in _ARRAYS if name != "partner"}
    return BatchPlan(out_size=plans[0].out_size, partner=np.concatenate(partner), **arrays)


def draw_plan(
    spec: AugmentSpec, seed: int, epoch: int, batch: int, index: NDArray[np.int32], image_size: int
) -> BatchPlan:
    """Draws the plan of training batch `batch` of `epoch`, whose images are the store's rows `index` ([B] int32).

    Raises:
        ValueError: the crop does not fit into the padded image.
    """
    num = len(index)
    out_size = spec.train_crop or image_size
    low, high = -spec.pad_crop, image_size + spec.pad_crop - out_size
    if high < low:
        raise ValueError(
            f"augment.train_crop: {out_size} pixels do not fit into images of {image_size} padded by "
            f"{spec.pad_crop}; lower train_crop or raise pad_crop"
        )
    drawn: dict[str, Any] = {}
    if high > low:
        rng = _moving.to(seed, Purpose.CROP, epoch, batch)
        drawn["top"], drawn["left"] = rng.integers(low, high, size=(2, num), dtype=np.int16, endpoint=True)
    if spec.hflip_prob > 0:
        drawn["flip"] = _moving.to(seed, Purpose.FLIP, epoch, batch).random(num) < spec.hflip_prob
    if spec.jitter is not None:
        rng = _moving.to(seed, Purpose.JITTER, epoch, batch)
        drawn["jitter"], drawn["jitter_order"] = _draw_jitter(spec.jitter, rng, num)
    if spec.rotate_deg > 0:
        share = 2 * _moving.to(seed, Purpose.ROTATE, epoch, batch).random(num) - 1
        drawn["turn"] = turn_by(spec.rotate_deg * share, out_size)
    if spec.erase_prob > 0:
        rng = _moving.to(seed, Purpose.ERASE, epoch, batch)
        drawn["erase_box"] = _draw_erase(spec.erase_prob, rng, num, out_size)
    if spec.mix != "none":
        drawn |= _draw_mix(spec, _moving.to(seed, Purpose.MIX, epoch, batch), num, out_size)
    return BatchPlan(index=np.array(index, np.int32), out_size=out_size, **(_neutral(num) | drawn))


def turn_by(degrees: NDArray[np.float64], size: int) -> NDArray[np.int32]:
    """`BatchPlan.turn` of counter-clockwise angles about the middle of windows of `size` pixels, [B, 4] int32.

    Rounded as Pillow's Image.rotate does (libImaging/Geometry.c, affine_fixed), so that the same pixels are shown.
    """
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    middle, first = size / 2, 0.5 - size / 2
    position = [cos, sin, middle + cos * first - sin * first, middle + sin * first + cos * first]
    return np.floor(np.stack(position, axis=1) * FIXED_ONE + 0.5).astype(np.int32)


def _draw_jitter(
    strengths: tuple[float, float, float, float], rng: np.random.Generator, num: int
) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Factors uniform in 1 - s to 1 + s, a turn of the hue uniform in -s to s circles, an order for every image."""
    reach = np.array(strengths) * np.array([FIXED_ONE, FIXED_ONE, FIXED_ONE, 6 * HUE_SECTOR])
    jitter = _NO_JITTER + np.rint((2 * rng.random((num, 4)) - 1) * reach).astype(np.int32)
    return jitter, rng.random((num, 4)).argsort(axis=1, kind="stable").astype(np.int8)


def _draw_erase(prob: float, rng: np.random.Generator, num: int, size: int) -> NDArray[np.int16]:
    """Boxes to erase, [B, 4]: the first of ten that leaves a border, as torchvision's RandomErasing.get_params."""
    coin = rng.random(num) < prob
    low, high = np.log(ERASE_RATIO)
    area = size * size * rng.uniform(*ERASE_AREA, (num, ERASE_ATTEMPTS))
    ratio = np.exp(rng.uniform(low, high, (num, ERASE_ATTEMPTS)))
    sides = np.rint(np.sqrt(np.stack([area * ratio, area / ratio]))).astype(np.int64)
    fits = (sides[0] < size) & (sides[1] < size)
    height_width = sides[:, np.arange(num), fits.argmax(axis=1)]
    top_left = (rng.random((2, num)) * (size - height_width + 1)).astype(np.int64)
    box = np.concatenate([top_left, top_left + height_width]).T
    return np.where((coin & fits.any(axis=1))[:, None], box, 0).astype(np.int16, order="C")


def _draw_mix(spec: AugmentSpec, rng: np.random.Generator, num: int, size: int) -> dict[str, Any]:
    """Partner, blend, mix_box and lam of a batch, where they are not neutral. Drawn in a fixed order, what is not
    needed left out: lam, partners, whether to mix, whether to cut, centre."""
    assert spec.mix != "none" and spec.mix_alpha is not None, "the spec has an alpha exactly where it mixes"
    if spec.mix_scope == "batch":
        return _mixed_alike(spec, spec.mix_alpha, rng, num, size)
    return _mixed_each(spec, spec.mix_alpha, rng, num, size)


def _partners(spec: AugmentSpec, rng: np.random.Generator, num: int) -> NDArray[np.int64]:
    return rng.permutation(num) if spec.mix_partner == "permutation" else np.arange(num)[::-1]


def _mixed_each(spec: AugmentSpec, alpha: float, rng: np.random.Generator, num: int, size: int) -> dict[str, Any]:
    """Every image by a draw of its own."""
    lam = rng.beta(alpha, alpha, size=num)
    chosen = _partners(spec, rng, num)
    mixed = rng.random(num) < spec.mix_prob if spec.mix_prob < 1 else np.ones(num, bool)
    cut = rng.random(num) < 0.5 if spec.mix == "switch" else np.full(num, spec.mix == "cutmix")
    centre = np.zeros((2, num), np.int64) if spec.mix == "mixup" else rng.integers(0, size, size=(2, num))
    boxes = _cut_boxes(lam, centre, size)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    label_lam = np.where(cut, 1.0 - area / (size * size), lam)
    return {
        "partner": np.where(mixed, chosen, np.arange(num)).astype(np.int32),
        "blend": np.where(mixed & ~cut, lam, 1.0).astype(np.float32),
        "mix_box": np.where((mixed & cut)[:, None], boxes, 0).astype(np.int16),
        "lam": np.where(mixed, label_lam, 1.0).astype(np.float32),
    }


def _mixed_alike(spec: AugmentSpec, alpha: float, rng: np.random.Generator, num: int, size: int) -> dict[str, Any]:
    """One draw for the whole batch. Plain numbers: arrays of one would take as long as the mixing."""
    lam = rng.beta(alpha, alpha)
    chosen = _partners(spec, rng, num)
    if spec.mix_prob < 1 and rng.random() >= spec.mix_prob:
        return {}
    partner = chosen.astype(np.int32)
    if spec.mix == "mixup" or (spec.mix == "switch" and rng.random() >= 0.5):
        blend = np.full(num, lam, np.float32)
        return {"partner": partner, "blend": blend, "lam": blend}
    half = int(size * math.sqrt(1.0 - lam)) // 2
    row, column = int(rng.integers(size)), int(rng.integers(size))
    top, left = max(0, row - half), max(0, column - half)
    bottom, right = min(size, row + half), min(size, column + half)
    box = np.empty((num, 4), np.int16)
    box[:] = (top, left, bottom, right)
    label_lam = 1.0 - (bottom - top) * (right - left) / (size * size)
    return {"partner": partner, "mix_box": box, "lam": np.full(num, label_lam, np.float32)}


def _cut_boxes(lam: NDArray[np.float64], centre: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """CutMix's clipped windows (top, left, bottom, right), [D, 4], as the first study cuts them."""
    half = (size * np.sqrt(1.0 - lam)).astype(np.int64) // 2
    row, column = centre
    corners: NDArray[np.int64] = np.stack([row - half, column - half, row + half, column + half], axis=1)
    return corners.clip(0, size)
