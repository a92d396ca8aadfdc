"""`DeviceLoader`: the batches of `Loader`, bit for bit, made on the device where the whole split lies as 8-bit pixels.

The thread draws plans, on the host, for several batches at a time; the caller's thread sends them in a few copies and
queues one chain of operations for all of them. Nothing waits for the device, and because that chain is queued on the
caller's own stream, no batch can be overwritten while it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from datasets.epochs import Batch, Epochs
from datasets.gpu import apply_plan
from datasets.normalize import normalization
from datasets.plan import BatchPlan, joined
from datasets.spec import AugmentSpec
from datasets.store import ArrayStore, Manifest
from datasets.subset import Rows

GROUP_PIXELS = 1 << 21
"""Of the images that are prepared together, 2,048 of 32 pixels: they share what a launch costs, and take 25 MB of
float32 for each of the few steps on their way."""
_UPLOAD_BYTES = 1 << 26


def resident(store: ArrayStore, device: torch.device) -> torch.Tensor:
    """All images of a split on a device, [N, H, W, 3] uint8, brought there in parts."""
    images = store.images
    whole = torch.empty(images.shape, dtype=torch.uint8, device=device)
    rows = max(1, _UPLOAD_BYTES // max(1, images[:1].nbytes))
    for first in range(0, len(images), rows):
        whole[first : first + rows] = torch.from_numpy(np.array(images[first : first + rows]))
    return whole


@dataclass(frozen=True, slots=True)
class _Planned:
    """Some batches in a row."""

    plan: BatchPlan
    sizes: list[int]
    integers: torch.Tensor
    """[3, B] int64: label_a, label_b and index."""
    lam: torch.Tensor


class DeviceLoader(Epochs[_Planned]):
    """Yields an epoch's batches per `for` loop; the next loop yields the next epoch.

    Args:
        images: `resident(store, device)`.
        manifest: of the split, for its statistics.
        rows: as `Loader`, like everything below.

    Raises:
        ValueError: a normalisation by a deviation of 0, or `drop_last` where it leaves no batch.
    """

    def __init__(
        self,
        images: torch.Tensor,
        manifest: Manifest,
        rows: Rows,
        augment: AugmentSpec,
        *,
        batch_size: int,
        seed: int,
        train: bool,
        augmented: bool | None = None,
        drop_last: bool = False,
        ahead: int = 1,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            rows,
            augment,
            image_size=manifest.image_size,
            batch_size=batch_size,
            seed=seed,
            train=train,
            augmented=augmented,
            drop_last=drop_last,
            ahead=ahead,
            threads=1,
            group=max(1, GROUP_PIXELS // (manifest.image_size**2 * batch_size)),
        )
        self._images, self._dtype, self._channels_last = images, dtype, channels_last
        rule = normalization(augment, manifest, training=self._augmented)
        self._table = torch.from_numpy(rule.table).to(images.device)

    def _prepare(self, epoch: int, visited: Rows, numbers: range, slot: int) -> _Planned:
        plans, labels = [], []
        for number in numbers:
            index, own = self._chosen(visited, number)
            plan = self._plan(epoch, number, index)
            plans.append(plan)
            labels.append(np.stack([own, own[plan.partner], plan.index.astype(np.int64)]))
        plan = joined(plans)
        integers, lam = torch.from_numpy(np.concatenate(labels, axis=1)), torch.from_numpy(plan.lam.copy())
        if self._images.is_cuda:
            integers, lam = integers.pin_memory(), lam.pin_memory()
        return _Planned(plan, [len(one.index) for one in plans], integers, lam)

    def _batches(self, prepared: _Planned) -> Iterator[Batch]:
        device = self._images.device
        images = apply_plan(
            self._images, prepared.plan, self._table, dtype=self._dtype, channels_last=self._channels_last
        )
        integers = prepared.integers.to(device, non_blocking=True)
        lam = prepared.lam.to(device, non_blocking=True)
        parts = (torch.split(part, prepared.sizes, dim=-1) for part in (*integers.unbind(), lam))
        for one, label_a, label_b, index, weights in zip(torch.split(images, prepared.sizes), *parts, strict=True):
            yield Batch(images=one, label_a=label_a, label_b=label_b, lam=weights, index=index)
