"""Epochs of batches that a thread prepares ahead: position, order, resume.

What a batch is made of, and on which device, is said in `loader.py` and `device_loader.py`.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.plan import BatchPlan, draw_plan, epoch_order, plain_plan
from datasets.spec import AugmentSpec
from datasets.subset import Rows

STATE_VERSION = 1
EVALUATION_EPOCH = 2**63
"""The epoch at which an augmented evaluation is drawn, whenever it is made; no training gets there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B images ready for a model, all of it on the loader's device. On the CPU the tensors may be reused: they hold
    until the next batch is asked for."""

    images: torch.Tensor
    """[B, 3, S, S] float32 or bfloat16, normalised and mixed."""
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


Prepared = TypeVar("Prepared")


class Epochs(ABC, Generic[Prepared]):
    """Yields an epoch's batches per `for` loop; the next loop yields the next epoch.

    Args:
        rows: which of a store's rows to use, with their labels.
        augment: how training images are changed.
        image_size: side in pixels of the images that are augmented.
        batch_size: images a batch; the last one of an epoch may be shorter.
        seed: the run's seed.
        train: in an order of their own every epoch, or in the order of the rows.
        augmented: whether `augment` is applied; None follows `train`. An evaluation that is augmented sees the same
            bits in every pass, and shares no draw with any training.
        drop_last: leave out an epoch's last batch where it is short.
        ahead: prepared ahead by every thread; 0 prepares in the caller's thread.
        threads: that take turns at preparing.
        group: batches that are prepared together.

    Raises:
        ValueError: `drop_last` leaves no batch.
    """

    def __init__(
        self,
        rows: Rows,
        augment: AugmentSpec,
        *,
        image_size: int,
        batch_size: int,
        seed: int,
        train: bool,
        augmented: bool | None,
        drop_last: bool,
        ahead: int,
        threads: int,
        group: int,
    ) -> None:
        if drop_last and 0 < len(rows.index) < batch_size:
            raise ValueError(
                f"drop_last: {len(rows.index)} images are less than one batch of {batch_size}, which leaves none; "
                "lower the batch size or keep the last batch"
            )
        self._rows = rows
        self._augment = augment
        self._image_size = image_size
        self._batch_size = batch_size
        self._seed = seed
        self._train = train
        self._augmented = train if augmented is None else augmented
        self._drop_last = drop_last
        self._ahead = ahead
        self._threads = threads if ahead else 1
        self._slots_each = ahead + 1
        self._group = group
        self._epoch = 0
        self._batch = 0
        self._workers: list[_Worker[Prepared]] = []

    @abstractmethod
    def _prepare(self, epoch: int, visited: Rows, numbers: range, slot: int) -> Prepared:
        """Batches `numbers` of an epoch, in a thread, into a slot that nobody reads now. A thread has the slots
        t * _slots_each to (t + 1) * _slots_each - 1."""

    @abstractmethod
    def _batches(self, prepared: Prepared) -> Iterable[Batch]:
        """What was prepared as the batches it is, in the caller's thread."""

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
        """Stops the threads. The loader can be iterated again afterwards."""
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the current epoch.

        Raises:
            Exception: whatever a thread met, with its own traceback.
        """
        self.close()
        epoch, number = self._epoch, self._batch
        visited = self._visited(epoch)
        groups = [range(first, min(first + self._group, len(self))) for first in range(number, len(self), self._group)]
        count = self._threads if self._ahead else 0
        workers = [_Worker(self, epoch, visited, groups[turn::count], turn) for turn in range(count)]
        self._workers = workers
        found: Iterable[Prepared]
        if workers:
            found = _in_turn([worker.prepared() for worker in workers], len(groups))
        else:
            found = (self._prepare(epoch, visited, numbers, 0) for numbers in groups)
        try:
            for prepared in found:
                for batch in self._batches(prepared):
                    number += 1
                    self._epoch, self._batch = (epoch + 1, 0) if number == len(self) else (epoch, number)
                    yield batch
        finally:
            for worker in workers:
                worker.stop()

    def _visited(self, epoch: int) -> Rows:
        """The rows in the order of the epoch, gathered at once: for a batch alone they would come from slow memory."""
        if not self._train:
            return self._rows
        order = epoch_order(self._seed, epoch, self.num_images)
        return Rows(index=self._rows.index[order], labels=self._rows.labels[order])

    def _chosen(self, visited: Rows, number: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Rows in the store and labels of batch `number`; the labels are the batch's own."""
        part = slice(number * self._batch_size, (number + 1) * self._batch_size)
        return visited.index[part], visited.labels[part].copy()

    def _plan(self, epoch: int, number: int, index: NDArray[np.int32]) -> BatchPlan:
        """What to do with images `index` of whatever the plan is applied to."""
        if not self._augmented:
            return plain_plan(index, self._image_size)
        drawn_at = epoch if self._train else EVALUATION_EPOCH
        return draw_plan(self._augment, self._seed, drawn_at, number, index, self._image_size)


def _in_turn(sources: list[Iterator[Prepared]], count: int) -> Iterator[Prepared]:
    return (next(sources[number % len(sources)]) for number in range(count))


class _Worker(Generic[Prepared]):
    """A thread that prepares batches of an epoch, a few ahead of the consumer, into slots that go round."""

    def __init__(self, epochs: Epochs[Prepared], epoch: int, visited: Rows, groups: list[range], number: int) -> None:
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[int, Prepared] | BaseException | None] = queue.SimpleQueue()
        for slot in range(epochs._slots_each):
            self._free.put(number * epochs._slots_each + slot)
        self._thread = threading.Thread(
            target=self._run, args=(epochs, epoch, visited, groups), name=f"loader-epoch-{epoch}-{number}", daemon=True
        )
        self._thread.start()

    def _run(self, epochs: Epochs[Prepared], epoch: int, visited: Rows, groups: list[range]) -> None:
        numbers = range(0)
        try:
            for numbers in groups:
                slot = self._free.get()
                if slot is None:
                    return
                self._ready.put((slot, epochs._prepare(epoch, visited, numbers, slot)))
            self._ready.put(None)
        except BaseException as error:  # every kind must reach the consumer, or it would wait for ever
            error.add_note(f"in the loader's thread, preparing batch {numbers.start} of epoch {epoch}")
            self._ready.put(error)

    def prepared(self) -> Iterator[Prepared]:
        while True:
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            slot, prepared = item
            yield prepared
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
