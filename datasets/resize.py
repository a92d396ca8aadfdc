"""Resizing square 8-bit images: one rule for every path, the same bits on all of them.

`bilinear` and `bicubic` are Pillow's (libImaging/Resample.c): antialiased where they shrink, weights in fixed point of
22 bits, first across, rounded to 8 bits, then down. `bicubic_opencv` is OpenCV's INTER_CUBIC (a = -0.75, edges
repeated, weights of 11 bits, rounded once after both passes): sharper, and without antialiasing, so it only enlarges.

Taps are worked out once a size; then a pass is a sum of a few whole rows, which is vectorised. `reference.resized` is
the same in plain loops. An image can then go through JPEG as the second study's enlarged images did.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Rule = Literal["none", "bilinear", "bicubic", "bicubic_opencv"]
BITS = 22
"""Fractional bits of a pixel's value before it is rounded: Pillow's 32 - 8 - 2, and twice OpenCV's 11."""
OPENCV_BITS = 11


@dataclass(frozen=True, kw_only=True, slots=True)
class Taps:
    """Which source pixels make each target pixel of a line, and with what weight."""

    first: NDArray[np.int32]
    """First source pixel of each of the S target pixels, [S]."""
    weight: NDArray[np.int32]
    """Weights of it and its followers, [S, K], in fixed point; all lie within the line."""
    rounds: bool
    """Whether the first pass is rounded to 8 bits, or all its bits go into the second."""


def check_resize(
    rule: Rule, side: int, image_size: int, jpeg_quality: int | None = None, *, dataset: str = "the data set"
) -> None:
    """Refuses what cannot be resized.

    Args:
        rule: `DataSpec.resize`.
        side: of the prepared images in pixels.
        image_size: what they are to become.
        jpeg_quality: `DataSpec.jpeg_quality`.
        dataset: its name.

    Raises:
        ValueError: nothing resizes images that need it, or the rule only enlarges, or JPEG without resizing.
    """
    if rule == "none" and side != image_size:
        raise ValueError(
            f"data.image_size: {image_size} pixels, but the images of {dataset} have {side} and data.resize is none; "
            f"set data.resize to bilinear, bicubic or bicubic_opencv, or data.image_size to {side}"
        )
    if rule == "none" and jpeg_quality is not None:
        raise ValueError(f"data.jpeg_quality: must be null where data.resize is none, got {jpeg_quality}")
    if rule == "bicubic_opencv" and side > image_size:
        raise ValueError(
            f"data.resize: bicubic_opencv only enlarges, and images of {dataset} would shrink from {side} to "
            f"{image_size} pixels; choose bicubic or bilinear, which antialias"
        )


class Resizer:
    """Turns square images of one size into another.

    Args:
        rule: any but none.
        side: of the images in pixels.
        image_size: what they become.
        jpeg_quality: compress and decode each afterwards; None does not.

    Raises:
        ValueError: see `check_resize`.
    """

    def __init__(self, rule: Rule, side: int, image_size: int, jpeg_quality: int | None = None) -> None:
        check_resize(rule, side, image_size, jpeg_quality)
        self._taps = taps(rule, side, image_size)
        self._jpeg_quality = jpeg_quality

    def fill(self, images: NDArray[np.uint8], index: NDArray[np.int32], out: NDArray[np.uint8]) -> None:
        """Resizes some of the images without the GIL.

        Args:
            images: [N, side, side, 3] uint8, C-contiguous.
            index: which of them, [B].
            out: [B, image_size, image_size, 3] uint8, C-contiguous, overwritten.
        """
        one = self._taps
        images = images.view()
        images.flags.writeable = False  # as a store's map is: numba compiles a kernel for each of the two kinds
        _resize(images, index, one.first, one.weight, one.rounds, out)
        if self._jpeg_quality is not None:
            for pixels in out:
                pixels[:] = through_jpeg(pixels, self._jpeg_quality)

    def on_device(self, images: torch.Tensor) -> torch.Tensor:
        """The same on any device, [B, side, side, 3] uint8 to [B, image_size, image_size, 3].

        Raises:
            ValueError: there is JPEG to be done, which Pillow does on the host.
        """
        if self._jpeg_quality is not None:
            raise ValueError("data.jpeg_quality: is worked on the CPU; resize there, or set it to null")
        one = self._taps
        first = torch.from_numpy(one.first).to(images.device, non_blocking=True)
        weight = torch.from_numpy(one.weight).to(images.device, non_blocking=True)
        across = _pass(images.to(torch.int32), 2, first, weight, one.rounds)
        return _pass(across, 1, first, weight, True).to(torch.uint8)


def through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """An image as it is after Pillow's JPEG encoder (4:2:0) and decoder.

    Args:
        pixels: [H, W, 3] uint8.
        quality: 1 to 100, as libjpeg counts.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file, formats=("JPEG",)))


def triangle(x: float) -> float:
    """Weight of a pixel at distance x, for bilinear."""
    return max(0.0, 1.0 - abs(x))


def cubic(x: float, a: float) -> float:
    """Keys' weight of a pixel at distance x (Keys 1981, doi:10.1109/TASSP.1981.1163711)."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


@lru_cache(maxsize=16)
def taps(rule: Rule, side: int, image_size: int) -> Taps:
    """The taps of a rule from `side` to `image_size` pixels; the same across and down."""
    if rule == "bicubic_opencv":
        lines = [_opencv_line(x, side, image_size) for x in range(image_size)]
        return _packed(lines, side, rounds=False)
    if rule == "bilinear":
        lines = [_pillow_line(x, side, image_size, 1.0, triangle) for x in range(image_size)]
    else:
        lines = [_pillow_line(x, side, image_size, 2.0, lambda at: cubic(at, -0.5)) for x in range(image_size)]
    return _packed(lines, side, rounds=True)


_Line = tuple[int, list[int]]
"""First source pixel and the weights from there on."""


def _pillow_line(x: int, side: int, image_size: int, support: float, kernel: Callable[[float], float]) -> _Line:
    """precompute_coeffs and normalize_coeffs_8bpc of Pillow's Resample.c, in its order of operations."""
    scale = side / image_size
    stretch = max(scale, 1.0)
    centre, reach = (x + 0.5) * scale, support * stretch
    first = max(int(centre - reach + 0.5), 0)
    last = min(int(centre + reach + 0.5), side)
    weights = [kernel((source - centre + 0.5) * (1.0 / stretch)) for source in range(first, last)]
    total = 0.0
    for weight in weights:  # not sum(), which compensates for rounding from Python 3.12 on
        total += weight
    scaled = [weight / total * (1 << BITS) for weight in weights]
    return first, [int(weight - 0.5) if weight < 0 else int(weight + 0.5) for weight in scaled]


def _opencv_line(x: int, side: int, image_size: int) -> _Line:
    """interpolateCubic of OpenCV's imgproc/src/resize.cpp: in float32, the last weight the rest; edges repeated."""
    position = np.float32((x + 0.5) * (side / image_size) - 0.5)
    floor = math.floor(position)
    at, a, one = np.float32(position - floor), np.float32(-0.75), np.float32(1)
    weights = [
        ((a * (at + 1) - 5 * a) * (at + 1) + 8 * a) * (at + 1) - 4 * a,
        ((a + 2) * at - (a + 3)) * at * at + 1,
        ((a + 2) * (one - at) - (a + 3)) * (one - at) * (one - at) + 1,
    ]
    weights.append(one - weights[0] - weights[1] - weights[2])
    first = min(max(floor - 1, 0), side - 1)
    line = [0] * (min(max(floor + 2, 0), side - 1) - first + 1)
    for k, weight in enumerate(weights):
        line[min(max(floor - 1 + k, 0), side - 1) - first] += round(float(weight) * (1 << OPENCV_BITS))
    return first, line


def _packed(lines: list[_Line], side: int, *, rounds: bool) -> Taps:
    """Equally many taps for every pixel, within the line."""
    count = max(len(weights) for _, weights in lines)
    first = np.array([min(start, side - count) for start, _ in lines], np.int32)
    weight = np.zeros((len(lines), count), np.int32)
    for row, (start, weights) in enumerate(lines):
        weight[row, start - first[row] : start - first[row] + len(weights)] = weights
    return Taps(first=first, weight=weight, rounds=rounds)


def _pass(values: torch.Tensor, axis: int, first: torch.Tensor, weight: torch.Tensor, rounds: bool) -> torch.Tensor:
    """Weighted sums along an axis of [B, H, W, 3] int32; all of them fit 32 bits."""
    shape = [1, 1, 1, 1]
    shape[axis] = len(first)
    total = torch.zeros((), dtype=torch.int32, device=values.device)
    for k in range(weight.shape[1]):
        total = total + values.index_select(axis, first + k) * weight[:, k].reshape(shape)
    return ((total + (1 << (BITS - 1))) >> BITS).clamp(0, 255) if rounds else total


_kernel = numba.njit(nogil=True, cache=True, error_model="numpy")
_HALF, _BITS, _ZERO, _WHITE = np.int32(1 << (BITS - 1)), np.int32(BITS), np.int32(0), np.int32(255)


@_kernel
def _resize(images, index, first, weight, rounds, out):  # type: ignore[no-untyped-def]
    """Across on columns laid side by side, so that both passes add up contiguous rows."""
    side, size = images.shape[1], out.shape[1]
    columns = np.empty((side, 3 * side), np.uint8)
    column = np.empty(3 * side, np.int32)
    rows = np.empty((side, 3 * size), np.int32)
    total = np.empty(3 * max(side, size), np.int32)
    lines = out.reshape((len(index), size, 3 * size))
    for i in range(len(index)):
        image = images[index[i]]
        for y in range(side):
            for x in range(side):
                for channel in range(3):
                    columns[x, 3 * y + channel] = image[y, x, channel]
        for x in range(size):
            _line(columns, first[x], weight[x], rounds, total, column)
            for y in range(side):
                row = rows[y]
                row[3 * x], row[3 * x + 1], row[3 * x + 2] = column[3 * y], column[3 * y + 1], column[3 * y + 2]
        for y in range(size):
            _line(rows, first[y], weight[y], True, total, lines[i, y])


@_kernel
def _line(rows, first, weight, rounds, total, out):  # type: ignore[no-untyped-def]
    """The weighted sum of some rows, rounded to 8 bits where told.

    Enlarging has four taps or two: one loop with constants, which is vectorised down to the bytes. numba widens every
    sum to 64 bits unless told otherwise, which would halve the lanes; all of them fit 32.
    """
    one, two = rows[first], rows[min(first + 1, len(rows) - 1)]
    if len(weight) == 4 and rounds:
        three, four = rows[first + 2], rows[first + 3]
        w1, w2, w3, w4 = weight[0], weight[1], weight[2], weight[3]
        for p in range(len(out)):
            left = np.int32(np.int32(_HALF + np.int32(w1 * one[p])) + np.int32(w2 * two[p]))
            right = np.int32(np.int32(w3 * three[p]) + np.int32(w4 * four[p]))
            out[p] = min(max(np.int32(np.int32(left + right) >> _BITS), _ZERO), _WHITE)
        return
    if len(weight) == 2 and rounds:
        w1, w2 = weight[0], weight[1]
        for p in range(len(out)):
            both = np.int32(np.int32(_HALF + np.int32(w1 * one[p])) + np.int32(w2 * two[p]))
            out[p] = np.int32(both >> _BITS)  # weights of bilinear are not negative: nothing to clip
        return
    for p in range(len(out)):
        total[p] = _HALF if rounds else _ZERO
    for k in range(len(weight)):
        row, w = rows[first + k], weight[k]
        for p in range(len(out)):
            total[p] += np.int32(w * row[p])
    for p in range(len(out)):
        out[p] = min(max(np.int32(total[p] >> _BITS), _ZERO), _WHITE) if rounds else total[p]
