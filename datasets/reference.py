"""The slow, obvious way to turn a `BatchPlan` into pixels: plain loops, one pixel at a time.

It is the oracle of the fast appliers and is used by nothing but tests and people who want to see what a plan means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.plan import BatchPlan


def apply_plan(images: NDArray[np.uint8], plan: BatchPlan, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Crops, mirrors, normalises and mixes one batch.

    Args:
        images: the store, [N, H, W, 3] uint8.
        plan: what to do with the B images.
        table: [3, 256] float32, the normalised value of every pixel value of every channel.

    Returns:
        [B, 3, S, S] float32 with S = plan.out_size.
    """
    num, size = len(plan.index), plan.out_size
    plain = np.empty((num, 3, size, size), np.float32)
    for i in range(num):
        for y in range(size):
            for x in range(size):
                plain[i, :, y, x] = _pixel(images[plan.index[i]], plan, i, y, x, table)
    mixed = plain.copy()
    for i in range(num):
        other = plain[plan.partner[i]]
        top, left, bottom, right = plan.mix_box[i]
        for y in range(size):
            for x in range(size):
                if plan.blend[i] < 1:
                    mixed[i, :, y, x] = plan.blend[i] * plain[i, :, y, x] + (1 - plan.blend[i]) * other[:, y, x]
                elif top <= y < bottom and left <= x < right:
                    mixed[i, :, y, x] = other[:, y, x]
    return mixed


def _pixel(
    image: NDArray[np.uint8], plan: BatchPlan, i: int, y: int, x: int, table: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The three normalised channels of output pixel (y, x) of image i before mixing; black outside the image."""
    height, width, _ = image.shape
    column = plan.out_size - 1 - x if plan.flip[i] else x
    source_y, source_x = int(plan.top[i]) + y, int(plan.left[i]) + column
    inside = 0 <= source_y < height and 0 <= source_x < width
    value = image[source_y, source_x] if inside else np.zeros(3, np.uint8)
    return np.array([table[channel, value[channel]] for channel in range(3)], np.float32)
