"""Which rows of a split a run uses: classes to keep, hold-out, and limits, always stratified and seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.plan import Purpose, generator
from datasets.spec import DataSpec
from datasets.store import DataError, Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of one split of a store, with the labels a model of this run learns."""

    index: NDArray[np.int32]
    """Rows in the store, rising, [n] int32."""
    labels: NDArray[np.int64]
    """Position of each row's class in `DataSpec.classes` (or the class itself where all are kept), [n] int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRows:
    """The rows of a run by purpose; `val` is None without a hold-out."""

    train: Rows
    test: Rows
    val: Rows | None
    classes: NDArray[np.int16]
    """The data's number of every class that the model knows, [C] int16."""


def stratified(labels: NDArray[np.integer], count: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Chooses `count` of the positions 0..n-1 so that every class keeps its share to within one image.

    Shares are rounded by largest remainder, ties drawn at random; within a class images are drawn at random.

    Returns:
        Rising positions, [count] int32.
    """
    classes, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(np.int64)
    by_remainder = np.lexsort((rng.random(len(classes)), -(exact - quota)))
    quota[by_remainder[: count - quota.sum()]] += 1
    shuffled = rng.permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for number in range(len(classes)):
        members = shuffled[class_of[shuffled] == number]
        rank[members] = np.arange(len(members))
    return np.flatnonzero(rank < quota[class_of]).astype(np.int32)


def select_rows(spec: DataSpec, data: Dataset) -> RunRows:
    """Applies classes, hold-out and limits, in this order.

    Raises:
        DataError: a class that the data lack, a hold-out of no image, a limit above the number of images.
    """
    known = len(data.manifest.classes)
    keep = np.arange(known, dtype=np.int16) if spec.classes is None else np.array(spec.classes, np.int16)
    if len(keep) and not 0 <= keep.min() <= keep.max() < known:
        raise DataError(f"data.classes: {list(keep)} is not within 0..{known - 1}, the classes of {spec.dataset}")
    train, test = (_of_classes(store.labels, keep) for store in (data.train, data.test))
    val = None
    if spec.val_fraction > 0:
        count = round(spec.val_fraction * len(train.index))
        held = stratified(train.labels, count, generator(spec.val_seed, Purpose.HOLD_OUT))
        val, train = _take(train, held), _take(train, np.setdiff1d(np.arange(len(train.index)), held))
    train = _limit(train, spec.limit_train, generator(spec.limit_seed, Purpose.LIMIT_TRAIN), "limit_train")
    test = _limit(test, spec.limit_eval, generator(spec.limit_seed, Purpose.LIMIT_EVAL), "limit_eval")
    if val is not None and len(val.index) == 0:
        raise DataError(f"data.val_fraction: {spec.val_fraction} holds out no image; raise it")
    return RunRows(train=train, test=test, val=val, classes=keep)


def first_rows(rows: Rows, count: int) -> Rows:
    """The first `count` of the rows, in the order of the store.

    Raises:
        DataError: there are fewer.
    """
    if count > len(rows.index):
        raise DataError(
            f"evaluate.train_first: {count} is more than the {len(rows.index)} training images there are; lower it or "
            "set null"
        )
    return Rows(index=rows.index[:count], labels=rows.labels[:count])


def _of_classes(labels: NDArray[np.int16], keep: NDArray[np.int16]) -> Rows:
    index = np.flatnonzero(np.isin(labels, keep)).astype(np.int32)
    return Rows(index=index, labels=np.searchsorted(keep, labels[index]).astype(np.int64))


def _take(rows: Rows, positions: NDArray[np.integer]) -> Rows:
    return Rows(index=rows.index[positions], labels=rows.labels[positions])


def _limit(rows: Rows, limit: int | None, rng: np.random.Generator, field: str) -> Rows:
    if limit is None:
        return rows
    if limit > len(rows.index):
        raise DataError(
            f"data.{field}: {limit} is more than the {len(rows.index)} images there are; lower it or set null"
        )
    return _take(rows, stratified(rows.labels, limit, rng))
