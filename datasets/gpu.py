"""Applies a `BatchPlan` with batched torch operations to 8-bit images that lie whole on a device.

Agrees with `reference.py` to the bit: 8-bit pixels are changed in integers, normalised by the same table, and mixed by
float32 products that are rounded before they are added. Nothing here waits for the device: a plan is sent in one copy,
and what is decided by looking into it is decided on the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datasets.plan import BRIGHTNESS, CONTRAST, FIXED_ONE, HUE, HUE_SECTOR, BatchPlan

_FIXED_BITS = FIXED_ONE.bit_length() - 1
_SECTOR_BITS = HUE_SECTOR.bit_length() - 1


def apply_plan(
    images: torch.Tensor,
    plan: BatchPlan,
    table: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    """Crops, mirrors, jitters, turns, normalises, erases and mixes one batch.

    Args:
        images: the store, [N, H, W, 3] uint8 on any device.
        plan: what to do with the B images.
        table: `Normalization.table`, [3, 256] float32 on the same device.
        dtype: of the result. Everything is computed in float32 and rounded once, at the end.
        channels_last: lay the result out in memory as [B, S, S, 3].

    Returns:
        [B, 3, S, S] on the images' device, with S = plan.out_size.
    """
    sent = _send(plan, images.device)
    pixels = _windows(images, plan, sent)
    if plan.recolours:
        pixels = _jittered(pixels, sent, turn_hues=bool(plan.jitter[:, HUE].any()))
    if plan.turns:
        pixels = _turned(pixels, sent.turn)
    blends = bool((plan.blend < 1).any())
    channel = -1 if channels_last else 1
    normal = _normalised(pixels, table if blends else table.to(dtype), channel)
    if plan.erases:
        normal = normal.masked_fill(_inside(sent.erase_box, plan.out_size, channel), 0)
    if blends or plan.mix_box.any():
        normal = _mixed(normal, plan, sent, channel, blends)
    return normal.to(dtype).permute(0, 3, 1, 2) if channels_last else normal.to(dtype)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A plan's arrays on the device, int32 but for `blend` and `rest` (float32), `index` and `partner` (int64)."""

    index: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    partner: torch.Tensor
    jitter: torch.Tensor
    jitter_order: torch.Tensor
    turn: torch.Tensor
    erase_box: torch.Tensor
    mix_box: torch.Tensor
    blend: torch.Tensor
    rest: torch.Tensor


_SINGLE = ("index", "top", "left", "flip", "partner")
_FOURFOLD = ("jitter", "jitter_order", "turn", "erase_box", "mix_box")


def _send(plan: BatchPlan, device: torch.device) -> _Sent:
    """Packs a plan into one array, so that one copy brings it to the device."""
    num = len(plan.index)
    columns = [getattr(plan, name).astype(np.int32).reshape(num, -1) for name in (*_SINGLE, *_FOURFOLD)]
    floats = np.stack([plan.blend, np.float32(1) - plan.blend], axis=1)
    packed = torch.from_numpy(np.concatenate([*columns, floats.view(np.int32)], axis=1))
    if device.type == "cuda":
        packed = packed.pin_memory()
    packed = packed.to(device, non_blocking=True)
    index, top, left, flip, partner = packed[:, : len(_SINGLE)].unbind(1)
    jitter, order, turn, erase_box, mix_box = torch.split(packed[:, len(_SINGLE) : -2], 4, dim=1)
    blend, rest = packed[:, -2:].contiguous().view(torch.float32).unbind(1)
    return _Sent(index.long(), top, left, flip, partner.long(), jitter, order, turn, erase_box, mix_box, blend, rest)


def _windows(images: torch.Tensor, plan: BatchPlan, sent: _Sent) -> torch.Tensor:
    """The windows, mirrored where told and black outside the images, [B, S, S, 3] uint8."""
    _, height, width, _ = images.shape
    size = plan.out_size
    if height == width == size and not (plan.top.any() or plan.left.any() or plan.flip.any()):
        return images.index_select(0, sent.index)
    step = torch.arange(size, dtype=torch.int32, device=images.device)
    rows = sent.top[:, None] + step
    columns = sent.left[:, None] + torch.where(sent.flip[:, None] != 0, size - 1 - step, step)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    first = sent.index[:, None] * height + rows.clamp(0, height - 1)
    pixels = images.reshape(-1, 3)[first[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]]
    return pixels.masked_fill(~inside[..., None], 0)


def _jittered(pixels: torch.Tensor, sent: _Sent, *, turn_hues: bool) -> torch.Tensor:
    """The four operations, every image's in its own order, [B, S, S, 3] uint8.

    Three of them blend with a grey that differs, so that one formula serves images that are at different operations.
    """
    values = pixels.to(torch.int32)
    for stage in range(4):
        operation = sent.jitter_order[:, stage, None, None, None]
        amount = sent.jitter.gather(1, sent.jitter_order[:, stage, None].long())[:, :, None, None]
        grey = _grey(values)[..., None]
        count = grey[0].numel()
        mean = torch.div(2 * grey.sum(dim=(1, 2, 3), dtype=torch.int64) + count, 2 * count, rounding_mode="floor")
        grey = torch.where(operation == CONTRAST, mean.to(torch.int32)[:, None, None, None], grey)
        grey = grey.masked_fill(operation == BRIGHTNESS, 0)
        blended = ((grey * FIXED_ONE + amount * (values - grey)) >> _FIXED_BITS).clamp(0, 255)
        hued = _hue_turned(values, amount[..., 0]) if turn_hues else values
        values = torch.where(operation == HUE, hued, blended)
    return values.to(torch.uint8)


def _grey(values: torch.Tensor) -> torch.Tensor:
    """Luma of [..., 3] int32 as Pillow rounds it."""
    red, green, blue = values.unbind(-1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _hue_turned(values: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Hues turned by [B, 1, 1] `HUE_SECTOR`s; see `reference._turned_hue`."""
    red, green, blue = values.unbind(-1)
    largest = values.amax(-1)
    chroma = largest - values.amin(-1)
    some = chroma.clamp(min=1)
    step = torch.div(HUE_SECTOR + some // 2, some, rounding_mode="floor")
    hue = torch.where(
        red == largest,
        (green - blue) * step,
        torch.where(green == largest, 2 * HUE_SECTOR + (blue - red) * step, 4 * HUE_SECTOR + (red - green) * step),
    )
    channels = []
    for sector in (5, 3, 1):
        position = (hue + turn + sector * HUE_SECTOR).remainder(6 * HUE_SECTOR)
        lacking = torch.minimum(position, 4 * HUE_SECTOR - position).clamp(0, HUE_SECTOR)
        channels.append(largest - ((chroma * lacking + HUE_SECTOR // 2) >> _SECTOR_BITS))
    return torch.stack(channels, dim=-1)


def _turned(pixels: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Images turned about their middle, nearest pixel, black outside; [B, S, S, 3] uint8."""
    num, size = pixels.shape[:2]
    step = torch.arange(size, dtype=torch.int32, device=pixels.device)
    cos, sin, column, row = turn[:, :, None, None].unbind(1)
    y, x = step[:, None], step[None, :]
    source_x = (column + cos * x - sin * y) >> _FIXED_BITS
    source_y = (row + sin * x + cos * y) >> _FIXED_BITS
    inside = (source_x >= 0) & (source_x < size) & (source_y >= 0) & (source_y < size)
    at = (source_y.clamp(0, size - 1) * size + source_x.clamp(0, size - 1)).long().reshape(num, size * size, 1)
    found = pixels.reshape(num, size * size, 3).gather(1, at.expand(-1, -1, 3)).reshape(pixels.shape)
    return found.masked_fill(~inside[..., None], 0)


def _normalised(pixels: torch.Tensor, table: torch.Tensor, channel: int) -> torch.Tensor:
    """Pixels [B, S, S, 3] uint8 in the table's dtype, with the channels at axis `channel` (1 or -1)."""
    first = torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=pixels.device)
    if channel == 1:
        pixels, first = pixels.permute(0, 3, 1, 2).contiguous(), first[:, None, None]
    return table.reshape(-1)[pixels + first]


def _mixed(normal: torch.Tensor, plan: BatchPlan, sent: _Sent, channel: int, blends: bool) -> torch.Tensor:
    """MixUp and CutMix of normalised images, float32 where anything is blended."""
    other, mixed = normal.index_select(0, sent.partner), normal
    if plan.mix_box.any():
        mixed = torch.where(_inside(sent.mix_box, plan.out_size, channel), other, normal)
    if blends:
        own, rest = sent.blend[:, None, None, None], sent.rest[:, None, None, None]
        # two products and a sum, three kernels: a single one need not round the products
        mixed = torch.where(own < 1, own * normal + rest * other, mixed)
    return mixed


def _inside(box: torch.Tensor, size: int, channel: int) -> torch.Tensor:
    """Which pixels lie in each image's (top, left, bottom, right), [B, S, S] bool with an axis more at `channel`."""
    step = torch.arange(size, dtype=torch.int32, device=box.device)
    top, left, bottom, right = box[:, :, None].unbind(1)
    rows, columns = (top <= step) & (step < bottom), (left <= step) & (step < right)
    return (rows[:, :, None] & columns[:, None, :]).unsqueeze(channel)
