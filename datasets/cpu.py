"""Applies a `BatchPlan` on the CPU in one fused pass: memory map in, normalised float32 planes out, GIL released.

Agrees with `reference.py` to the bit: both read the same normalisation table and mix in float32 in the same order.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from datasets.plan import BatchPlan
from datasets.store import Manifest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_table(normalize: str, manifest: Manifest) -> NDArray[np.float32]:
    """The normalised value of every pixel value of every channel, [3, 256] float32, computed in float64.

    Raises:
        ValueError: a channel is constant over the whole train split, so it cannot be divided by its deviation.
    """
    mean, std = {
        "dataset": (manifest.mean, manifest.std),
        "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
        "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }[normalize]
    if min(std) <= 0:
        raise ValueError(
            f"augment.normalize: {normalize} divides by a standard deviation of 0 ({manifest.dataset} has a constant "
            "channel); choose imagenet or none"
        )
    values = np.arange(256) / 255
    table: NDArray[np.float64] = (values[None, :] - np.array(mean)[:, None]) / np.array(std)[:, None]
    return table.astype(np.float32)


def apply_plan(
    images: NDArray[np.uint8], plan: BatchPlan, table: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Crops, mirrors, normalises and mixes one batch into `out`.

    Args:
        images: the store, [N, H, W, 3] uint8.
        plan: what to do with the B images.
        table: see `normalize_table`.
        out: [B, 3, S, S] float32, C-contiguous, overwritten.
    """
    rest = np.float32(1) - plan.blend
    _fill(images, plan.index, plan.top, plan.left, plan.flip, plan.partner, plan.blend, rest, plan.mix_box, table, out)


@numba.njit(nogil=True, cache=True)
def _fill(images, index, top, left, flip, partner, blend, rest, box, table, out):  # type: ignore[no-untyped-def]
    other = np.empty(out.shape[1:], np.float32)
    for i in range(len(index)):
        j = partner[i]
        _plain(images[index[i]], top[i], left[i], flip[i], table, out[i])
        if blend[i] < 1:
            _plain(images[index[j]], top[j], left[j], flip[j], table, other)
            _blend(blend[i], rest[i], other, out[i])
        elif box[i, 0] < box[i, 2] and box[i, 1] < box[i, 3]:
            _plain(images[index[j]], top[j], left[j], flip[j], table, other)
            window = (slice(None), slice(box[i, 0], box[i, 2]), slice(box[i, 1], box[i, 3]))
            out[i][window] = other[window]


@numba.njit(nogil=True, cache=True)
def _plain(image, top, left, flip, table, out):  # type: ignore[no-untyped-def]
    """One image without mixing. The columns inside the image are a range, so that the inner loop has no branch."""
    height, width, _ = image.shape
    size = out.shape[1]
    first = min(max(-left, 0), size)
    last = max(min(width - left, size), first)
    for y in range(size):
        inside = 0 <= top + y < height
        for channel in range(3):
            black = table[channel, 0]
            row = out[channel, y]
            if not inside:
                row[:] = black
                continue
            source = image[top + y]
            row[: size - last if flip else first] = black
            row[size - first if flip else last :] = black
            for x in range(first, last):
                row[size - 1 - x if flip else x] = table[channel, source[left + x, channel]]


@numba.njit(nogil=True, cache=True)
def _blend(weight, rest, other, out):  # type: ignore[no-untyped-def]
    for channel in range(3):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                out[channel, y, x] = weight * out[channel, y, x] + rest * other[channel, y, x]
