"""Applies a `BatchPlan` on the CPU in one fused pass: memory map in, a model's own layout out, GIL released.

Agrees with `reference.py` to the bit: both normalise by the same lines and mix in float32 in the same order.

An image is first cut out and taken apart into three 8-bit planes; all loops over pixels then run over contiguous memory
and are vectorised. Each of a batch's images is read once: after an image comes the one it is mixed with, so that the
partner of one is the next. `benchmarks.augment` measures it.

Kernels that call each other stay in one file: numba's cache on the disk sees no other file's changes.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from datasets.normalize import Normalization
from datasets.plan import BRIGHTNESS, CONTRAST, FIXED_ONE, HUE, HUE_SECTOR, BatchPlan

_kernel = numba.njit(nogil=True, cache=True, error_model="numpy")
_FIXED_BITS = FIXED_ONE.bit_length() - 1


def apply_plan(images: NDArray[np.uint8], plan: BatchPlan, rule: Normalization, out: torch.Tensor) -> None:
    """Crops, mirrors, jitters, turns, normalises, erases and mixes one batch into `out`.

    Args:
        images: the store, [N, H, W, 3] uint8, C-contiguous.
        plan: what to do with the B images.
        rule: how pixels are normalised.
        out: [B, 3, S, S] float32 or bfloat16, contiguous or channels_last, overwritten. All is computed in float32 and
            rounded once, at the end.
    """
    if plan.recolours or plan.turns:
        images, plan = seen_windows(images, plan), plan.on_windows()
    _, height, width, _ = images.shape
    rest = np.float32(1) - plan.blend
    planes, halves, pixels = _views(out)
    _fill(
        _flat(images), height, width, plan.index, plan.top, plan.left, plan.flip, plan.erase_box, plan.partner,
        plan.blend, rest, plan.mix_box, rule.scale, rule.bias, plan.out_size, planes, halves, pixels,
        not out.is_contiguous(),
    )  # fmt: skip


def _views(out: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.float32]]:
    """Where a batch goes: planes [B, 3, S*S], or else room for one image's planes, and [B, 3*S*S] of bfloat16's bits or
    [B, S*S*3] of interleaved float32. What is not used is empty: the kernel is compiled for one kind of arguments."""
    num, _, size, _ = out.shape
    assert out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last), "the kernel writes lines"
    if out.is_contiguous() and out.dtype == torch.float32:
        return out.view(num, 3, -1).numpy(), np.empty((0, 0), np.uint16), np.empty((0, 0), np.float32)
    one = np.empty((1, 3, size * size), np.float32)
    lines = (out if out.is_contiguous() else out.permute(0, 2, 3, 1)).reshape(num, -1)
    if out.dtype == torch.float32:
        return one, np.empty((0, 0), np.uint16), lines.numpy()
    assert out.dtype == torch.bfloat16, "the kernel rounds to bfloat16 only"
    return one, lines.view(torch.uint16).numpy(), np.empty((0, 0), np.float32)


def seen_windows(images: NDArray[np.uint8], plan: BatchPlan) -> NDArray[np.uint8]:
    """What the plan shows of each image before it is normalised: window, mirror, jitter, turn.

    Args:
        images: the store, [N, H, W, 3] uint8, C-contiguous.
        plan: what to do with the B images.

    Returns:
        [B, S, S, 3] uint8 with S = plan.out_size.
    """
    _, height, width, _ = images.shape
    out = np.empty((len(plan.index), plan.out_size, plan.out_size, 3), np.uint8)
    _see(
        _flat(images), height, width, plan.index, plan.top, plan.left, plan.flip, plan.jitter, plan.jitter_order,
        plan.turn, out,
    )  # fmt: skip
    return out


def _flat(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A read-only line of bytes, as a store's map is: numba compiles a kernel for each of the two kinds of arrays."""
    assert images.flags.c_contiguous, "a copy of the whole store would be made for every batch"
    flat = images.reshape(-1)
    flat.flags.writeable = False
    return flat


@_kernel
def _fill(  # type: ignore[no-untyped-def]
    flat, height, width, index, top, left, flip, erase, partner, blend, rest, box, scale, bias, size, outs, halves,
    pixels, interleaved,
):  # fmt: skip
    """Goes from each image to its partner until one was there already; slot 0 keeps the planes it began with."""
    num = len(index)
    direct = len(halves) + len(pixels) == 0
    window = np.empty(size * size * 3, np.uint8)
    planes = np.empty((4, 3, size * size), np.uint8)
    normal = np.empty((3, 3, size * size), np.float32)
    is_normal = np.zeros(3, np.bool_)
    done = np.zeros(num, np.bool_)
    touched = 0
    for start in range(num):
        if done[start]:
            continue
        i, own = np.int64(start), 0
        _take(flat, index[i], height, width, top[i], left[i], flip[i], size, window, planes[0])
        is_normal[0] = False
        while not done[i]:
            done[i] = True
            j = np.int64(partner[i])
            if j == i:
                other = own
            elif j == start:
                other = 0
            else:
                other = 2 if own == 1 else 1
                _take(flat, index[j], height, width, top[j], left[j], flip[j], size, window, planes[other])
                is_normal[other] = False
            coming = partner[j] if j != i else min(i + 1, num - 1)
            touched += _touch(flat, index[coming], 3 * height * width)
            out = outs[i if direct else 0]
            if blend[i] < 1:
                for slot, k in ((own, i), (other, j)):
                    if not is_normal[slot]:
                        _normalise(planes[slot], scale, bias, normal[slot])
                        _clear(normal[slot], size, erase[k])
                        is_normal[slot] = True
                _blend(blend[i], rest[i], normal[own], normal[other], out)
            elif box[i, 0] < box[i, 2] and box[i, 1] < box[i, 3]:
                _paste(planes[own], planes[other], size, box[i], planes[3])
                _normalise(planes[3], scale, bias, out)
                _clear_mixed(out, size, erase[i], erase[j], box[i])
            else:
                _normalise(planes[own], scale, bias, out)
                _clear(out, size, erase[i])
            if len(halves):
                _round(out, halves[i], interleaved)
            elif len(pixels):
                _interleave(out, pixels[i])
            i, own = j, other
    return touched


_UPPER, _LAST, _HALF = np.uint32(16), np.uint32(1), np.uint32(0x7FFF)


@_kernel
def _round(planes, line, interleaved):  # type: ignore[no-untyped-def]
    """Float32 planes [3, S*S] as the bits of bfloat16, to the nearest, ties to even; none of them is infinite."""
    count = planes.shape[1]
    for channel in range(3):
        bits = planes[channel].view(np.uint32)
        if interleaved:
            for p in range(count):
                line[3 * p + channel] = (bits[p] + _HALF + ((bits[p] >> _UPPER) & _LAST)) >> _UPPER
        else:
            plane = line[channel * count : (channel + 1) * count]
            for p in range(count):
                plane[p] = (bits[p] + _HALF + ((bits[p] >> _UPPER) & _LAST)) >> _UPPER


@_kernel
def _interleave(planes, line):  # type: ignore[no-untyped-def]
    red, green, blue = planes[0], planes[1], planes[2]
    for p in range(len(red)):
        line[3 * p], line[3 * p + 1], line[3 * p + 2] = red[p], green[p], blue[p]


@_kernel
def _touch(flat, row, num_bytes):  # type: ignore[no-untyped-def]
    """Reads a byte of every cache line of an image, which is then on its way while another is worked on: 1.7 times as
    fast. The sum is returned, for what nobody uses is not read."""
    total = 0
    for at in range(row * num_bytes, (row + 1) * num_bytes, 64):
        total += flat[at]
    return total


@_kernel
def _take(flat, row, height, width, top, left, flip, size, window, planes):  # type: ignore[no-untyped-def]
    """Cuts a window out of image `row` into planes [3, S*S], mirrored where told, black outside the image."""
    start = row * height * width * 3
    if top == 0 and left == 0 and not flip and height == size and width == size:
        _split(flat[start : start + 3 * size * size], planes, False)
        return
    first = min(max(0, -left), size)
    count = max(0, min(size, width - left) - first)
    above = min(max(0, -top), size)
    below = max(above, min(size, height - top))
    if count < size or below - above < size:
        window[:] = 0
    num_bytes = 3 * count
    for y in range(above, below):
        # bottom up where the window is mirrored: the whole of it read backwards is then the right way up
        target = 3 * ((size - 1 - y if flip else y) * size + first)
        source = start + 3 * ((top + y) * width + left + first)
        row, line = flat[source : source + num_bytes], window[target : target + num_bytes]
        for x in range(num_bytes):  # of slices of known length it is vectorised, of offsets it is not
            line[x] = row[x]
    _split(window, planes, flip)


@_kernel
def _split(pixels, planes, backwards):  # type: ignore[no-untyped-def]
    """Pixels [S*S*3] into planes [3, S*S]. Unsigned where it counts down: a signed index may be negative to numba."""
    red, green, blue = planes[0], planes[1], planes[2]
    last = np.uint64(len(red) - 1)
    if backwards:
        for p in range(len(red)):
            at = last - np.uint64(p)
            red[at], green[at], blue[at] = pixels[3 * p], pixels[3 * p + 1], pixels[3 * p + 2]
    else:
        for p in range(len(red)):
            red[p], green[p], blue[p] = pixels[3 * p], pixels[3 * p + 1], pixels[3 * p + 2]


@_kernel
def _normalise(planes, scale, bias, out):  # type: ignore[no-untyped-def]
    """The line in float64 costs half of what looking each value up in the table of 256 does."""
    for channel in range(3):
        plane, target, slope, shift = planes[channel], out[channel], scale[channel], bias[channel]
        for p in range(len(plane)):
            target[p] = plane[p] * slope + shift


@_kernel
def _blend(weight, rest, own, other, out):  # type: ignore[no-untyped-def]
    for channel in range(3):
        one, two, target = own[channel], other[channel], out[channel]
        for p in range(len(target)):
            target[p] = weight * one[p] + rest * two[p]


@_kernel
def _paste(own, other, size, box, out):  # type: ignore[no-untyped-def]
    """Planes with a box of another's."""
    count = np.uint64(box[3] - box[1])
    for channel in range(3):
        one, two, target = own[channel], other[channel], out[channel]
        for p in range(len(target)):
            target[p] = one[p]
        for y in range(box[0], box[2]):
            first = np.uint64(y * size + box[1])
            for x in range(count):
                target[first + np.uint64(x)] = two[first + np.uint64(x)]


@_kernel
def _clear(out, size, box):  # type: ignore[no-untyped-def]
    """Erases a box of normalised planes [3, S*S]."""
    for channel in range(3):
        for y in range(box[0], box[2]):
            for x in range(box[1], box[3]):
                out[channel, y * size + x] = 0


@_kernel
def _clear_mixed(out, size, own, other, box):  # type: ignore[no-untyped-def]
    """Erases what was erased of an image outside the box it got from its partner, and of the partner within."""
    for channel in range(3):
        for y in range(own[0], own[2]):
            for x in range(own[1], own[3]):
                if not (box[0] <= y < box[2] and box[1] <= x < box[3]):
                    out[channel, y * size + x] = 0
        for y in range(max(other[0], box[0]), min(other[2], box[2])):
            for x in range(max(other[1], box[1]), min(other[3], box[3])):
                out[channel, y * size + x] = 0


@_kernel
def _see(flat, height, width, index, top, left, flip, jitter, order, turn, out):  # type: ignore[no-untyped-def]
    size = out.shape[1]
    window = np.empty(size * size * 3, np.uint8)
    planes = np.empty((3, size * size), np.uint8)
    lut = np.empty(256, np.uint8)
    for i in range(len(index)):
        _take(flat, index[i], height, width, top[i], left[i], flip[i], size, window, planes)
        for operation in order[i]:
            amount = jitter[i, operation]
            if operation == HUE:
                if amount != 0:
                    _turn_hue(planes, np.int32(amount))
            elif amount != FIXED_ONE:
                if operation == BRIGHTNESS:
                    _blend_with(planes, 0, amount, lut)
                elif operation == CONTRAST:
                    _blend_with(planes, _mean_grey(planes), amount, lut)
                else:
                    _saturate(planes, amount)
        _turn(planes, turn[i], out[i])


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
