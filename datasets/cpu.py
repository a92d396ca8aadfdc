"""Applies a `BatchPlan` on the CPU in one fused pass: memory map in, a model's own layout out, GIL released.

Agrees with `reference.py` to the bit: both normalise by the same lines and mix in float32 in the same order.

An image is first cut out and taken apart into three 8-bit planes; all loops over pixels then run over contiguous memory
and are vectorised. Each of a batch's images is read once: after an image comes the one it is mixed with, so that the
partner of one is the next. `benchmarks.augment` measures it.

Kernels that call each other stay in one file: numba's cache on the disk sees no other file's changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from datasets.colours import recoloured_and_turned
from datasets.normalize import Normalization
from datasets.plan import BatchPlan

_kernel = numba.njit(nogil=True, cache=True, error_model="numpy")
_VECTOR = 16
"""Pixels that are worked on at once where loops are too slow."""
_LINE = 4 * _VECTOR
"""Bytes of so many normalised ones: a cache line."""


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
    planes, halves, pixels = _views(out)
    _fill(
        _flat(images), height, width, plan.index, plan.top, plan.left, plan.flip, plan.erase_box, plan.partner,
        plan.blend, np.float32(1) - plan.blend, plan.mix_box, rule.scale, rule.bias, plan.out_size, planes, halves,
        pixels, not out.is_contiguous(), out.data_ptr() % _LINE == 0,
    )  # fmt: skip


def _views(out: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.float32]]:
    """Where a batch goes: planes [B, 3, S*S], or else room for one image's planes, and [B, 3*S*S] of bfloat16's bits or
    [B, S*S*3] of interleaved float32. What is not used is empty: the kernel is compiled for one kind of arguments."""
    num, _, size, _ = out.shape
    assert out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last), "the kernel writes lines"
    if out.is_contiguous() and out.dtype == torch.float32:
        return out.view(num, 3, -1).numpy(), _NO_HALVES, _NO_PIXELS
    one = np.empty((1, 3, size * size), np.float32)
    lines = (out if out.is_contiguous() else out.permute(0, 2, 3, 1)).reshape(num, -1)
    if out.dtype == torch.float32:
        return one, _NO_HALVES, lines.numpy()
    assert out.dtype == torch.bfloat16, "the kernel rounds to bfloat16 only"
    return one, lines.view(torch.uint16).numpy(), _NO_PIXELS


_NO_HALVES, _NO_PIXELS = np.empty((0, 0), np.uint16), np.empty((0, 0), np.float32)


def seen_windows(images: NDArray[np.uint8], plan: BatchPlan) -> NDArray[np.uint8]:
    """What the plan shows of each image before it is normalised: window, mirror, jitter, turn.

    Args:
        images: the store, [N, H, W, 3] uint8, C-contiguous.
        plan: what to do with the B images.

    Returns:
        [B, S, S, 3] uint8 with S = plan.out_size.
    """
    _, height, width, _ = images.shape
    size = plan.out_size
    planes = np.empty((len(plan.index), 3, size * size), np.uint8)
    _cut(_flat(images), height, width, plan.index, plan.top, plan.left, plan.flip, size, planes)
    return recoloured_and_turned(planes, plan)


def _flat(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A read-only line of bytes, as a store's map is: numba compiles a kernel for each of the two kinds of arrays."""
    assert images.flags.c_contiguous, "a copy of the whole store would be made for every batch"
    flat = images.reshape(-1)
    flat.flags.writeable = False
    return flat


@_kernel
def _fill(  # type: ignore[no-untyped-def]
    flat, height, width, index, top, left, flip, erase, partner, blend, rest, box, scale, bias, size, outs, halves,
    pixels, interleaved, aligned,
):  # fmt: skip
    """Goes from each image to its partner until one was there already; slot 0 keeps the planes it began with."""
    num = len(index)
    direct = len(halves) + len(pixels) == 0
    past = direct and aligned and size * size % _VECTOR == 0
    window = np.empty(size * size * 3, np.uint8)
    planes = np.empty((3, 3, size * size), np.uint8)
    pasted = np.zeros(size * size, np.uint8)
    box_of_pasted = np.zeros(4, np.int16)
    done = np.zeros(num, np.bool_)
    for start in range(num):
        if done[start]:
            continue
        i, own = np.int64(start), 0
        _take(flat, index[i], height, width, top[i], left[i], flip[i], size, window, planes[0])
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
            coming = partner[partner[j]] if j != i else min(i + 2, num - 1)
            _fetch(flat, index[coming], 3 * height * width)
            out = outs[i if direct else 0]
            if blend[i] < 1:
                _blend(planes[own], planes[other], blend[i], rest[i], scale, bias, out, past)
                _clear_blended(
                    planes[own], planes[other], blend[i], rest[i], scale, bias, size, erase[i], erase[j], out
                )
            elif box[i, 0] < box[i, 2] and box[i, 1] < box[i, 3]:
                _mark(pasted, size, box_of_pasted, box[i])
                _paste(planes[own], planes[other], pasted, scale, bias, out, past)
                _clear(out, size, erase[i], erase[j], box[i])
            else:
                _normalise(planes[own], scale, bias, out, past)
                _clear(out, size, erase[i], erase[i], box[i])
            if len(halves):
                _round(out, halves[i], interleaved)
            elif len(pixels):
                _interleave(out, pixels[i])
            i, own = j, other
    _fence()


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


@intrinsic
def _fetch_line(context, flat, at):  # type: ignore[no-untyped-def]
    """Asks for the cache line of flat[at], and waits for nothing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        address = _address(context, builder, signature, arguments, 0, 1)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(function, [address, number(0), number(3), number(1)])  # to be read, kept close, data

    return types.void(flat, at), generate


def _address(context: Any, builder: Any, signature: Any, arguments: Any, array: int, at: int) -> Any:
    """Of one element; `array` and `at` are positions among the arguments."""
    data = make_array(signature.args[array])(context, builder, arguments[array]).data
    return builder.gep(data, [arguments[at]])


@_kernel
def _fetch(flat, row, num_bytes):  # type: ignore[no-untyped-def]
    """Sets an image on its way while another is worked on."""
    for at in range(row * num_bytes, (row + 1) * num_bytes, 64):
        _fetch_line(flat, at)


@_kernel
def _cut(flat, height, width, index, top, left, flip, size, planes):  # type: ignore[no-untyped-def]
    window = np.empty(size * size * 3, np.uint8)
    for i in range(len(index)):
        _take(flat, index[i], height, width, top[i], left[i], flip[i], size, window, planes[i])


@_kernel
def _take(flat, row, height, width, top, left, flip, size, window, planes):  # type: ignore[no-untyped-def]
    """Cuts a window out of image `row` into planes [3, S*S], mirrored where told, black outside the image."""
    image = flat[row * height * width * 3 : (row + 1) * height * width * 3]
    first, last = min(max(0, -left), size), max(0, min(size, width - left))
    above, below = min(max(0, -top), size), max(0, min(size, height - top))
    if first >= last or above >= below:
        planes[:] = 0
    elif size == width:
        _take_run(image, top, left, flip, first, last, above, below, size, window, planes)
    else:
        _take_rows(image, width, top, left, flip, first, last, above, below, size, window, planes)


@_kernel
def _take_run(image, top, left, flip, first, last, above, below, size, window, planes):  # type: ignore[no-untyped-def]
    """Where window and image are equally wide, the rows of the window follow each other in the image: one run of
    pixels. What it has of the next row where its own is outside is blackened."""
    source = (top + above) * size + left + first
    target, count = above * size + first, (below - above - 1) * size + last - first
    run = image[3 * source : 3 * (source + count)]
    if flip:
        # read backwards the whole is upside down as well
        turned = window.reshape(3, size * size)
        end = size * size - target
        _split(run, turned[0][end - count : end], turned[1][end - count : end], turned[2][end - count : end], True)
        for channel in range(3):
            _upside_down(turned[channel], planes[channel], size)
        first, last = size - last, size - first
    else:
        end = target + count
        _split(run, planes[0][target:end], planes[1][target:end], planes[2][target:end], False)
    for channel in range(3):
        plane = planes[channel]
        for p in range(above * size):
            plane[p] = 0
        for p in range(below * size, size * size):
            plane[p] = 0
        _blacken(plane, 0, first, above, below, size)
        _blacken(plane, last, size, above, below, size)


@_kernel
def _blacken(plane, left, right, top, bottom, size):  # type: ignore[no-untyped-def]
    """Few columns. Unsigned: a signed index may be negative to numba."""
    for x in range(np.uint64(left), np.uint64(right)):
        for y in range(np.uint64(top), np.uint64(bottom)):
            plane[y * np.uint64(size) + x] = 0


@_kernel
def _upside_down(plane, out, size):  # type: ignore[no-untyped-def]
    """The rows of a plane in reverse order."""
    if size % _VECTOR == 0:
        for y in range(size):
            for x in range(0, size, _VECTOR):
                _move(plane, y * size + x, out, (size - 1 - y) * size + x)
    else:
        for y in range(size):
            for x in range(size):
                out[(size - 1 - y) * size + x] = plane[y * size + x]


@intrinsic
def _move(context, source, start, target, at):  # type: ignore[no-untyped-def]
    """target[at : at + _VECTOR] = source[start : start + _VECTOR]; a loop of so few is slower than what it does."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        octets = ir.VectorType(ir.IntType(8), _VECTOR).as_pointer()
        read, written = (
            builder.bitcast(_address(context, builder, signature, arguments, array, array + 1), octets)
            for array in (0, 2)
        )
        builder.store(builder.load(read, align=1), written, align=1)

    return types.void(source, start, target, at), generate


@_kernel
def _take_rows(image, width, top, left, flip, first, last, above, below, size, window, planes):  # type: ignore[no-untyped-def]
    if last - first < size or below - above < size:
        window[:] = 0
    num_bytes = 3 * (last - first)
    for y in range(above, below):
        # bottom up where the window is mirrored: the whole of it read backwards is then the right way up
        target = 3 * ((size - 1 - y if flip else y) * size + first)
        source = 3 * ((top + y) * width + left + first)
        row, line = image[source : source + num_bytes], window[target : target + num_bytes]
        for x in range(num_bytes):  # of slices of known length it is vectorised, of offsets it is not
            line[x] = row[x]
    _split(window, planes[0], planes[1], planes[2], flip)


@_kernel
def _split(pixels, red, green, blue, backwards):  # type: ignore[no-untyped-def]
    """Pixels [N*3] into planes [N]. Unsigned where it counts down: a signed index may be negative to numba."""
    last = np.uint64(len(red) - 1)
    if backwards:
        for p in range(len(red)):
            at = last - np.uint64(p)
            red[at], green[at], blue[at] = pixels[3 * p], pixels[3 * p + 1], pixels[3 * p + 2]
    else:
        for p in range(len(red)):
            red[p], green[p], blue[p] = pixels[3 * p], pixels[3 * p + 1], pixels[3 * p + 2]


def _past(value: Callable[..., Any]) -> Any:
    """Writes target[at : at + _VECTOR] past the caches: a batch is larger than what they keep of it until it is read,
    and lines that are written without being fetched first cost half.

    `value` makes it of the pixels of one image and another, of those that are pasted, of two weights, and of the line.
    """

    @intrinsic
    def write(context, own, other, pasted, weight, rest, slope, shift, target, at):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> None:
            octets, floats = ir.VectorType(ir.IntType(8), _VECTOR), ir.VectorType(ir.FloatType(), _VECTOR)
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), _VECTOR), [0] * _VECTOR)

            def pixels(array: int) -> Any:
                address = _address(context, builder, signature, arguments, array, 8)
                return builder.load(builder.bitcast(address, octets.as_pointer()), align=1)

            def everywhere(number: int) -> Any:
                undefined = ir.Constant(floats, ir.Undefined)
                first = builder.insert_element(undefined, arguments[number], ir.IntType(32)(0))
                return builder.shuffle_vector(first, undefined, lanes)

            weights, slope_shift = [everywhere(3), everywhere(4)], [everywhere(5), everywhere(6)]

            def line(shown: Any) -> Any:
                return builder.fadd(builder.fmul(builder.uitofp(shown, floats), slope_shift[0]), slope_shift[1])

            address = _address(context, builder, signature, arguments, 7, 8)
            result = value(builder, line, pixels(0), pixels(1), pixels(2), *weights)
            store = builder.store(result, builder.bitcast(address, floats.as_pointer()), align=_LINE)
            store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))

        return types.void(own, other, pasted, weight, rest, slope, shift, target, at), generate

    return write


_normalise_past = _past(lambda b, line, own, *_: line(own))
_blend_past = _past(lambda b, line, own, other, _, *weights: b.fadd(*map(b.fmul, weights, (line(own), line(other)))))
_paste_past = _past(lambda b, line, own, other, pasted, *_: line(b.xor(own, b.and_(b.xor(own, other), pasted))))


@intrinsic
def _fence(context):  # type: ignore[no-untyped-def]
    """What was written past the caches is there for every thread."""
    return types.void(), lambda context, builder, signature, arguments: builder.fence("seq_cst")


@_kernel
def _normalise(planes, scale, bias, out, past):  # type: ignore[no-untyped-def]
    """The line costs a fifth of what looking each value up in the table of 256 does."""
    for channel in range(3):
        plane, target, slope, shift = planes[channel], out[channel], scale[channel], bias[channel]
        if past:
            for p in range(0, len(plane), _VECTOR):
                _normalise_past(plane, plane, plane, slope, slope, slope, shift, target, p)
        else:
            for p in range(len(plane)):
                target[p] = np.float32(plane[p]) * slope + shift


@_kernel
def _blend(own, other, weight, rest, scale, bias, out, past):  # type: ignore[no-untyped-def]
    """Two images normalised, then weighed."""
    for channel in range(3):
        one, two, target, slope, shift = own[channel], other[channel], out[channel], scale[channel], bias[channel]
        if past:
            for p in range(0, len(one), _VECTOR):
                _blend_past(one, two, one, weight, rest, slope, shift, target, p)
        else:
            for p in range(len(one)):
                target[p] = weight * (np.float32(one[p]) * slope + shift) + rest * (np.float32(two[p]) * slope + shift)


@_kernel
def _paste(own, other, pasted, scale, bias, out, past):  # type: ignore[no-untyped-def]
    """An image with the marked pixels of another, normalised."""
    for channel in range(3):
        one, two, target, slope, shift = own[channel], other[channel], out[channel], scale[channel], bias[channel]
        if past:
            for p in range(0, len(one), _VECTOR):
                _paste_past(one, two, pasted, slope, slope, slope, shift, target, p)
        else:
            for p in range(len(one)):  # without a branch it is vectorised
                target[p] = np.float32(one[p] ^ ((one[p] ^ two[p]) & pasted[p])) * slope + shift


@_kernel
def _clear_blended(own, other, weight, rest, scale, bias, size, erase, erase_other, out):  # type: ignore[no-untyped-def]
    """Does the pixels again of which one image or the other is erased."""
    for box in (erase, erase_other):
        for channel in range(3):
            for y in range(box[0], box[2]):
                for x in range(box[1], box[3]):
                    p = y * size + x
                    one = np.float32(own[channel, p]) * scale[channel] + bias[channel]
                    two = np.float32(other[channel, p]) * scale[channel] + bias[channel]
                    if erase[0] <= y < erase[2] and erase[1] <= x < erase[3]:
                        one = np.float32(0)
                    if erase_other[0] <= y < erase_other[2] and erase_other[1] <= x < erase_other[3]:
                        two = np.float32(0)
                    out[channel, p] = weight * one + rest * two


@_kernel
def _mark(pasted, size, marked, box):  # type: ignore[no-untyped-def]
    """Sets `pasted` [S*S] within a box and nowhere else; what was marked is known, since most batches have one box."""
    if marked[0] == box[0] and marked[1] == box[1] and marked[2] == box[2] and marked[3] == box[3]:
        return
    for y in range(marked[0], marked[2]):
        for x in range(marked[1], marked[3]):
            pasted[y * size + x] = 0
    for y in range(box[0], box[2]):
        for x in range(box[1], box[3]):
            pasted[y * size + x] = 255
    for corner in range(4):
        marked[corner] = box[corner]


@_kernel
def _clear(out, size, own, other, box):  # type: ignore[no-untyped-def]
    """Erases what was erased of an image outside the box it got from its partner, and of the partner within."""
    for channel in range(3):
        for y in range(own[0], own[2]):
            for x in range(own[1], own[3]):
                if not (box[0] <= y < box[2] and box[1] <= x < box[3]):
                    out[channel, y * size + x] = 0
        for y in range(max(other[0], box[0]), min(other[2], box[2])):
            for x in range(max(other[1], box[1]), min(other[3], box[3])):
                out[channel, y * size + x] = 0
