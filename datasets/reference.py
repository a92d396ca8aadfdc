"""The slow, obvious way to turn a `BatchPlan` into pixels, and to resize: plain loops, one pixel at a time.

It is the oracle of the fast appliers and is used by nothing but tests and people who want to see what a plan means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasets.plan import BRIGHTNESS, CONTRAST, FIXED_ONE, HUE, HUE_SECTOR, BatchPlan
from datasets.resize import BITS, Taps


def apply_plan(images: NDArray[np.uint8], plan: BatchPlan, table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Crops, mirrors, jitters, turns, normalises, erases and mixes one batch.

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
        pixels = seen(images[plan.index[i]], plan, i)
        for y in range(size):
            for x in range(size):
                plain[i, :, y, x] = [table[channel, pixels[y, x, channel]] for channel in range(3)]
        top, left, bottom, right = plan.erase_box[i]
        plain[i, :, top:bottom, left:right] = 0
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


def seen(image: NDArray[np.uint8], plan: BatchPlan, i: int) -> NDArray[np.uint8]:
    """Image i of the batch as far as it is 8-bit: window, mirror, jitter, turn; [S, S, 3] uint8."""
    pixels = _window(image, plan, i)
    for operation in plan.jitter_order[i]:
        pixels = jittered(pixels, int(operation), int(plan.jitter[i, operation]))
    return turned(pixels, plan.turn[i])


def _window(image: NDArray[np.uint8], plan: BatchPlan, i: int) -> NDArray[np.uint8]:
    """The window of image i, mirrored where the plan says so; black outside the image."""
    height, width, _ = image.shape
    size = plan.out_size
    window = np.zeros((size, size, 3), np.uint8)
    for y in range(size):
        for x in range(size):
            column = size - 1 - x if plan.flip[i] else x
            source_y, source_x = int(plan.top[i]) + y, int(plan.left[i]) + column
            if 0 <= source_y < height and 0 <= source_x < width:
                window[y, x] = image[source_y, source_x]
    return window


def jittered(pixels: NDArray[np.uint8], operation: int, amount: int) -> NDArray[np.uint8]:
    """One operation of the jitter on an image [H, W, 3] uint8.

    Brightness, contrast and saturation blend with black, with the image's rounded mean grey, and with each pixel's own
    grey, as Pillow's ImageEnhance does; `amount` is the factor in 16.16, results are rounded down and clipped.
    """
    height, width, _ = pixels.shape
    mean = (2 * sum(_grey(pixel) for row in pixels for pixel in row) + height * width) // (2 * height * width)
    result = np.empty_like(pixels)
    for y in range(height):
        for x in range(width):
            if operation == HUE:
                result[y, x] = _turned_hue(pixels[y, x], amount)
                continue
            grey = 0 if operation == BRIGHTNESS else mean if operation == CONTRAST else _grey(pixels[y, x])
            for channel in range(3):
                value = int(pixels[y, x, channel])
                result[y, x, channel] = min(max((grey * FIXED_ONE + amount * (value - grey)) // FIXED_ONE, 0), 255)
    return result


def _grey(pixel: NDArray[np.uint8]) -> int:
    """Luma as Pillow rounds it (libImaging/Convert.c, L24)."""
    red, green, blue = (int(value) for value in pixel)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) // 0x10000


def _turned_hue(pixel: NDArray[np.uint8], turn: int) -> tuple[int, int, int]:
    """The colour with its hue turned; largest and smallest channel value, so value and chroma, stay as they are."""
    red, green, blue = (int(value) for value in pixel)
    largest = max(red, green, blue)
    chroma = largest - min(red, green, blue)
    if chroma == 0:
        return red, green, blue
    step = (HUE_SECTOR + chroma // 2) // chroma  # what one level of the middle channel turns
    if largest == red:
        hue = (green - blue) * step
    elif largest == green:
        hue = 2 * HUE_SECTOR + (blue - red) * step
    else:
        hue = 4 * HUE_SECTOR + (red - green) * step

    def channel(sector: int) -> int:
        """How far from its peak's plateau the channel is says how much of the chroma it lacks."""
        position = (hue + turn + sector * HUE_SECTOR) % (6 * HUE_SECTOR)
        lacking = min(max(min(position, 4 * HUE_SECTOR - position), 0), HUE_SECTOR)
        return largest - (chroma * lacking + HUE_SECTOR // 2) // HUE_SECTOR

    return channel(5), channel(3), channel(1)


def turned(pixels: NDArray[np.uint8], turn: NDArray[np.int32]) -> NDArray[np.uint8]:
    """An image [S, S, 3] uint8 turned about its middle, nearest pixel, black outside; see `BatchPlan.turn`."""
    size = len(pixels)
    cos, sin, column, row = (int(value) for value in turn)
    result = np.zeros_like(pixels)
    for y in range(size):
        for x in range(size):
            source_x = (column + cos * x - sin * y) // FIXED_ONE
            source_y = (row + sin * x + cos * y) // FIXED_ONE
            if 0 <= source_y < size and 0 <= source_x < size:
                result[y, x] = pixels[source_y, source_x]
    return result


def resized(image: NDArray[np.uint8], taps: Taps) -> NDArray[np.uint8]:
    """An image [H, H, 3] uint8 resized across, then down, to [S, S, 3] uint8; see `resize.py`."""
    side, size = len(image), len(taps.first)
    across = np.zeros((side, size, 3), np.int64)
    down = np.zeros((size, size, 3), np.int64)
    for x in range(size):
        for y in range(side):
            for k, weight in enumerate(taps.weight[x]):
                across[y, x] += int(weight) * image[y, taps.first[x] + k].astype(np.int64)
            if taps.rounds:
                across[y, x] = _rounded(across[y, x])
    for y in range(size):
        for x in range(size):
            for k, weight in enumerate(taps.weight[y]):
                down[y, x] += int(weight) * across[taps.first[y] + k, x]
            down[y, x] = _rounded(down[y, x])
    return down.astype(np.uint8)


def _rounded(total: NDArray[np.int64]) -> NDArray[np.int64]:
    """Half and more up, within 8 bits."""
    return ((total + (1 << (BITS - 1))) // (1 << BITS)).clip(0, 255)
