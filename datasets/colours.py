"""Changes the colours of windows and turns them: the part of a `BatchPlan` that reads and writes 8-bit pixels.

Agrees with `reference.py` to the bit: all of it is arithmetic of integers.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from datasets.plan import BRIGHTNESS, CONTRAST, FIXED_ONE, HUE, HUE_SECTOR, BatchPlan

_kernel = numba.njit(nogil=True, cache=True, error_model="numpy")
_FIXED_BITS = FIXED_ONE.bit_length() - 1


def recoloured_and_turned(planes: NDArray[np.uint8], plan: BatchPlan) -> NDArray[np.uint8]:
    """Windows with their jitter and turn.

    Args:
        planes: the batch's windows, mirrored where the plan says so, [B, 3, S*S] uint8, overwritten.
        plan: of the B images, S = plan.out_size.

    Returns:
        [B, S, S, 3] uint8.
    """
    out = np.empty((len(planes), plan.out_size, plan.out_size, 3), np.uint8)
    _change(planes, plan.jitter, plan.jitter_order, plan.turn, out)
    return out


@_kernel
def _change(planes, jitter, order, turn, out):  # type: ignore[no-untyped-def]
    lut = np.empty(256, np.uint8)
    for i in range(len(planes)):
        one = planes[i]
        for operation in order[i]:
            amount = jitter[i, operation]
            if operation == HUE:
                if amount != 0:
                    _turn_hue(one, np.int32(amount))
            elif amount != FIXED_ONE:
                if operation == BRIGHTNESS:
                    _blend_with(one, 0, amount, lut)
                elif operation == CONTRAST:
                    _blend_with(one, _mean_grey(one), amount, lut)
                else:
                    _saturate(one, amount)
        _turn(one, turn[i], out[i])


@_kernel
def _blend_with(planes, grey, amount, lut):  # type: ignore[no-untyped-def]
    for value in range(256):
        lut[value] = min(max((grey * FIXED_ONE + amount * (value - grey)) >> _FIXED_BITS, 0), 255)
    for channel in range(3):
        plane = planes[channel]
        for p in range(len(plane)):
            plane[p] = lut[plane[p]]


@_kernel
def _mean_grey(planes):  # type: ignore[no-untyped-def]
    red, green, blue = planes[0], planes[1], planes[2]
    total = 0
    for p in range(len(red)):
        total += (19595 * red[p] + 38470 * green[p] + 7471 * blue[p] + 0x8000) >> 16
    return (2 * total + len(red)) // (2 * len(red))


@_kernel
def _saturate(planes, amount):  # type: ignore[no-untyped-def]
    red, green, blue = planes[0], planes[1], planes[2]
    rest = FIXED_ONE - amount
    for p in range(len(red)):
        grey = ((19595 * red[p] + 38470 * green[p] + 7471 * blue[p] + 0x8000) >> 16) * rest
        red[p] = min(max((grey + amount * red[p]) >> _FIXED_BITS, 0), 255)
        green[p] = min(max((grey + amount * green[p]) >> _FIXED_BITS, 0), 255)
        blue[p] = min(max((grey + amount * blue[p]) >> _FIXED_BITS, 0), 255)


_SECTOR, _CIRCLE = np.int32(HUE_SECTOR), np.int32(6 * HUE_SECTOR)
_TWO, _THREE, _FOUR, _FIVE = (np.int32(count * HUE_SECTOR) for count in (2, 3, 4, 5))
_ZERO, _ONE = np.int32(0), np.int32(1)
_HALF_SECTOR = np.int32(HUE_SECTOR // 2)
_SECTOR_BITS = np.int32(HUE_SECTOR.bit_length() - 1)


@_kernel
def _turn_hue(planes, turn):  # type: ignore[no-untyped-def]
    """Without branches and in 32 bits, though numba widens every sum to 64: else it is not vectorised (6x slower).

    A float32 quotient of integers below 2^24 rounds down to the integers' own, since no fraction with a divisor below
    256 is that close to a whole number.
    """
    red, green, blue = planes[0], planes[1], planes[2]
    for p in range(len(red)):
        r, g, b = np.int32(red[p]), np.int32(green[p]), np.int32(blue[p])
        largest = max(r, max(g, b))
        chroma = np.int32(largest - min(r, min(g, b)))
        some = max(chroma, _ONE)  # grey has no hue, and nothing of it is lacking below
        step = np.int32(np.float32(np.int32(_SECTOR + np.int32(some >> _ONE))) / np.float32(some))
        base = _ZERO if largest == r else (_TWO if largest == g else _FOUR)
        ahead = np.int32(g - b) if largest == r else (np.int32(b - r) if largest == g else np.int32(r - g))
        hue = np.int32(np.int32(np.int32(ahead * step) + base) + np.int32(turn + _CIRCLE))
        hue = np.int32(hue - _CIRCLE) if hue >= _CIRCLE else hue
        hue = np.int32(hue - _CIRCLE) if hue >= _CIRCLE else hue  # a turn of half a circle, from more than a whole
        red[p] = largest - _lacking(chroma, np.int32(hue + _FIVE))
        green[p] = largest - _lacking(chroma, np.int32(hue + _THREE))
        blue[p] = largest - _lacking(chroma, np.int32(hue + _SECTOR))


@_kernel
def _lacking(chroma, position):  # type: ignore[no-untyped-def]
    """How much of the chroma a channel lacks whose peak is two sectors from `position`, both [0, 2 circles)."""
    within = np.int32(position - _CIRCLE) if position >= _CIRCLE else position
    share = min(max(min(within, np.int32(_FOUR - within)), _ZERO), _SECTOR)
    return np.int32(np.int32(np.int32(chroma * share) + _HALF_SECTOR) >> _SECTOR_BITS)


@_kernel
def _turn(planes, turn, out):  # type: ignore[no-untyped-def]
    """Planes [3, S*S] as pixels [S, S, 3], turned about the middle; black where there is no pixel."""
    size = out.shape[0]
    flat = out.reshape(size * size * 3)
    red, green, blue = planes[0], planes[1], planes[2]
    cos, sin, column, row = turn
    if cos == FIXED_ONE and sin == 0:
        for p in range(size * size):
            flat[3 * p], flat[3 * p + 1], flat[3 * p + 2] = red[p], green[p], blue[p]
        return
    for y in range(size):
        at_x, at_y = column - sin * y, row + cos * y
        for x in range(size):
            source_x, source_y = at_x >> _FIXED_BITS, at_y >> _FIXED_BITS
            p, q = 3 * (y * size + x), source_y * size + source_x
            if 0 <= source_y < size and 0 <= source_x < size:
                flat[p], flat[p + 1], flat[p + 2] = red[q], green[q], blue[q]
            else:
                flat[p], flat[p + 1], flat[p + 2] = 0, 0, 0
            at_x += cos
            at_y += sin
