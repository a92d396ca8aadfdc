"""`Loader`: one epoch after another of batches, prepared ahead by a thread of its own.

Written by hand because the study this project reproduces demands it. What a batch holds is a function of (seed,
epoch, batch), so the loader's whole state is its position, and a resumed loader yields the very same bits.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.cpu import apply_plan
from datasets.normalize import normalization
from datasets.plan import BatchPlan, draw_plan, epoch_order, plain_plan
from datasets.resize import Resizer, Rule, check_resize
from datasets.spec import AugmentSpec
from datasets.store import ArrayStore
from datasets.subset import Rows

STATE_VERSION = 1
EVALUATION_EPOCH = 2**63
"""The epoch at which an augmented evaluation is drawn, whenever it is made; no training gets there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B images ready for a model. The tensors are reused: they hold until the next batch is asked for."""

    images: torch.Tensor
    """[B, 3, S, S] float32, normalised and mixed."""
    label_a: torch.Tensor
    """[B] int64, the image's own label."""
    label_b: torch.Tensor
    """[B] int64, the label of the image it was mixed with."""
    lam: torch.Tensor
    """[B] float32, the weight of label_a; label_b weighs 1 - lam."""
    index: torch.Tensor
    """[B] int64, the image's row in the store."""


class LoaderState(TypedDict):
    """The next batch to come."""

    version: int
    epoch: int
    batch: int


class Loader:
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
        ahead: batches prepared ahead by the thread; 0 prepares in the caller's thread.
        pin: place the batches in page-locked memory, for a fast copy to a GPU.

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
        ahead: int = 2,
        pin: bool = False,
    ) -> None:
        side = store.manifest.image_size
        self._image_size = side if image_size is None else image_size
        check_resize(resize, side, self._image_size, jpeg_quality, dataset=store.manifest.dataset)
        if drop_last and 0 < len(rows.index) < batch_size:
            raise ValueError(
                f"drop_last: {len(rows.index)} images are less than one batch of {batch_size}, which leaves none; "
                "lower the batch size or keep the last batch"
            )
        self._images = store.images
        self._rows = rows
        self._augment = augment
        self._batch_size = batch_size
        self._seed = seed
        self._train = train
        self._augmented = train if augmented is None else augmented
        self._drop_last = drop_last
        self._ahead = ahead
        self._rule = normalization(augment, store.manifest, training=self._augmented)
        out_size = augment.train_crop if self._augmented and augment.train_crop else self._image_size
        num = min(batch_size, max(1, len(rows.index)))
        self._slots = [torch.empty((num, 3, out_size, out_size), pin_memory=pin) for _ in range(ahead + 1)]
        self._resizer = None if resize == "none" else Resizer(resize, side, self._image_size, jpeg_quality)
        resized = num if self._resizer is not None else 0
        self._resized = np.empty((resized, self._image_size, self._image_size, 3), np.uint8)
        self._epoch = 0
        self._batch = 0
        self._worker: _Worker | None = None

    @property
    def num_images(self) -> int:
        """Images an epoch; with `drop_last` not all of them are seen."""
        return len(self._rows.index)

    def __len__(self) -> int:
        """Batches an epoch, the short last one counted unless it is dropped."""
        return self.num_images // self._batch_size if self._drop_last else -(-self.num_images // self._batch_size)

    def state_dict(self) -> LoaderState:
        """Where the loader stands: a batch counts as consumed once it has been yielded."""
        return {"version": STATE_VERSION, "epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: LoaderState) -> None:
        """Moves to a position of `state_dict`.

        Raises:
            ValueError: the state is of another version, or its position does not exist in this epoch.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"loader state: version {state.get('version')} cannot be resumed by this version ({STATE_VERSION}); "
                "finish the run with the version that wrote it, or start it anew"
            )
        if state["epoch"] < 0 or not 0 <= state["batch"] < max(1, len(self)):
            raise ValueError(
                f"loader state: epoch {state['epoch']} batch {state['batch']} does not exist; an epoch here has "
                f"{len(self)} batches"
            )
        self.close()
        self._epoch, self._batch = state["epoch"], state["batch"]

    def close(self) -> None:
        """Stops the thread. The loader can be iterated again afterwards."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the current epoch.

        Raises:
            Exception: whatever the thread met, with its own traceback.
        """
        self.close()
        epoch, first = self._epoch, self._batch
        order = self._order(epoch)
        if self._ahead:
            worker = self._worker = _Worker(self, epoch, order, range(first, len(self)))
            batches = worker.batches()
        else:
            worker = None
            batches = (self._prepare(epoch, order, number, self._slots[0]) for number in range(first, len(self)))
        try:
            for number, batch in enumerate(batches, first):
                last = number + 1 == len(self)
                self._epoch, self._batch = (epoch + 1, 0) if last else (epoch, number + 1)
                yield batch
        finally:
            if worker is not None:
                worker.stop()

    def _order(self, epoch: int) -> NDArray[np.int32]:
        """Positions in `rows` in the order of the epoch."""
        if self._train:
            return epoch_order(self._seed, epoch, self.num_images)
        return np.arange(self.num_images, dtype=np.int32)

    def _prepare(self, epoch: int, order: NDArray[np.int32], number: int, slot: torch.Tensor) -> Batch:
        chosen = order[number * self._batch_size : (number + 1) * self._batch_size]
        index = self._rows.index[chosen]
        images = slot[: len(index)]
        if self._resizer is None:
            plan = self._plan(epoch, number, index)
            apply_plan(self._images, plan, self._rule, images.numpy())
        else:
            plan = self._plan(epoch, number, np.arange(len(index), dtype=np.int32))
            resized = self._resized[: len(index)]
            self._resizer.fill(self._images, index, resized)
            apply_plan(resized, plan, self._rule, images.numpy())
        labels = self._rows.labels[chosen]
        return Batch(
            images=images,
            label_a=torch.from_numpy(labels),
            label_b=torch.from_numpy(labels[plan.partner]),
            lam=torch.from_numpy(plan.lam),
            index=torch.from_numpy(index.astype(np.int64)),
        )

    def _plan(self, epoch: int, number: int, index: NDArray[np.int32]) -> BatchPlan:
        """What to do with images `index` of the store, or of the resized batch."""
        if not self._augmented:
            return plain_plan(index, self._image_size)
        drawn_at = epoch if self._train else EVALUATION_EPOCH
        return draw_plan(self._augment, self._seed, drawn_at, number, index, self._image_size)


class _Worker:
    """The thread that prepares an epoch's batches into the loader's slots, a few ahead of the consumer."""

    def __init__(self, loader: Loader, epoch: int, order: NDArray[np.int32], numbers: range) -> None:
        self._free: queue.SimpleQueue[torch.Tensor | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[torch.Tensor, Batch] | BaseException | None] = queue.SimpleQueue()
        for slot in loader._slots:
            self._free.put(slot)
        self._thread = threading.Thread(
            target=self._run, args=(loader, epoch, order, numbers), name=f"loader-epoch-{epoch}", daemon=True
        )
        self._thread.start()

    def _run(self, loader: Loader, epoch: int, order: NDArray[np.int32], numbers: range) -> None:
        number = numbers.start
        try:
            for number in numbers:
                slot = self._free.get()
                if slot is None:
                    return
                self._ready.put((slot, loader._prepare(epoch, order, number, slot)))
            self._ready.put(None)
        except BaseException as error:  # every kind must reach the consumer, or it would wait for ever
            error.add_note(f"in the loader's thread, preparing batch {number} of epoch {epoch}")
            self._ready.put(error)

    def batches(self) -> Iterator[Batch]:
        while True:
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            slot, batch = item
            yield batch
            self._free.put(slot)

    def stop(self) -> None:
        """Ends the thread after the batch it is at, and waits for it."""
        while True:  # hand out no more slots: the thread must meet the None
            try:
                self._free.get_nowait()
            except queue.Empty:
                break
        self._free.put(None)
        self._thread.join()
