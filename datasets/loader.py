"""`Loader`: batches made on the CPU, one epoch after another.

Written by hand because the study this project reproduces demands it. What a batch holds is a function of (seed,
epoch, batch), so the loader's whole state is its position, and a resumed loader yields the very same bits.
"""

from __future__ import annotations

import numpy as np
import torch

from datasets.cpu import apply_plan
from datasets.epochs import Batch, Epochs
from datasets.normalize import normalization
from datasets.resize import Resizer, Rule, check_resize
from datasets.spec import AugmentSpec
from datasets.store import ArrayStore
from datasets.subset import Rows


class Loader(Epochs[Batch]):
    """Yields an epoch's batches per `for` loop; the next loop yields the next epoch.

    Args:
        store: the split.
        rows: which of its rows to use, with their labels.
        augment: how training images are changed. Where nothing is augmented only `normalize` is read.
        batch_size: images a batch; the last one of an epoch may be shorter.
        seed: the run's seed.
        train: in an order of their own every epoch, or in the order of the rows.
        augmented: whether `augment` is applied; None follows `train`. An evaluation that is augmented sees the same
            bits in every pass, and shares no draw with any training.
        drop_last: leave out an epoch's last batch where it is short.
        image_size: side in pixels of the images that are augmented; None is the store's.
        resize: how the store's images become that large, for every batch anew; none where they are.
        jpeg_quality: what every resized image is compressed with and decoded from; None does not.
        ahead: batches prepared ahead by every thread; 0 prepares in the caller's thread.
        threads: that take turns at preparing, each with buffers of its own.
        dtype: of the images, float32 or bfloat16, which is float32 rounded once.
        channels_last: how the images lie in memory.
        pin: every batch lies in page-locked memory of its own, for copies to a GPU that nobody waits for.

    Raises:
        ValueError: a size that no rule makes of the store's images, a normalisation by a deviation of 0, or `drop_last`
            where it leaves no batch.
    """

    def __init__(
        self,
        store: ArrayStore,
        rows: Rows,
        augment: AugmentSpec,
        *,
        batch_size: int,
        seed: int,
        train: bool,
        augmented: bool | None = None,
        drop_last: bool = False,
        image_size: int | None = None,
        resize: Rule = "none",
        jpeg_quality: int | None = None,
        ahead: int = 1,
        threads: int = 1,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        pin: bool = False,
    ) -> None:
        side = store.manifest.image_size
        size = side if image_size is None else image_size
        check_resize(resize, side, size, jpeg_quality, dataset=store.manifest.dataset)
        super().__init__(
            rows,
            augment,
            image_size=size,
            batch_size=batch_size,
            seed=seed,
            train=train,
            augmented=augmented,
            drop_last=drop_last,
            ahead=ahead,
            threads=threads,
            group=1,
        )
        self._images = store.images
        self._rule = normalization(augment, store.manifest, training=self._augmented)
        out_size = augment.train_crop if self._augmented and augment.train_crop else size
        num = min(batch_size, max(1, len(rows.index)))
        self._shape = (num, 3, out_size, out_size)
        self._dtype, self._layout = dtype, torch.channels_last if channels_last else torch.contiguous_format
        slots = 0 if pin else self._threads * self._slots_each
        self._slots = [self._empty(num) for _ in range(slots)]
        self._resizer = None if resize == "none" else Resizer(resize, side, size, jpeg_quality)
        resized = num if self._resizer is not None else 0
        self._resized = np.empty((self._threads, resized, size, size, 3), np.uint8)

    def _empty(self, num: int, *, pin: bool = False) -> torch.Tensor:
        shape = (num, *self._shape[1:])
        return torch.empty(shape, dtype=self._dtype, memory_format=self._layout, pin_memory=pin)

    def _prepare(self, epoch: int, visited: Rows, numbers: range, slot: int) -> Batch:
        index, labels = self._chosen(visited, numbers.start)
        # page-locked memory is torch's to reuse, once the copies from it have been made
        images = self._slots[slot][: len(index)] if self._slots else self._empty(len(index), pin=True)
        if self._resizer is None:
            plan = self._plan(epoch, numbers.start, index)
            apply_plan(self._images, plan, self._rule, images)
        else:
            plan = self._plan(epoch, numbers.start, np.arange(len(index), dtype=np.int32))
            resized = self._resized[slot // self._slots_each, : len(index)]
            self._resizer.fill(self._images, index, resized)
            apply_plan(resized, plan, self._rule, images)
        label_a, label_b, lam, rows = (
            torch.from_numpy(part) if self._slots else torch.from_numpy(part).pin_memory()
            for part in (labels, labels[plan.partner], plan.lam.copy(), index.astype(np.int64))
        )
        return Batch(images=images, label_a=label_a, label_b=label_b, lam=lam, index=rows)

    def _batches(self, prepared: Batch) -> tuple[Batch]:
        return (prepared,)
