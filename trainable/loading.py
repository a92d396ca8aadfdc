"""A run's loaders: what its spec says of the images, told to `datasets.loader` in one place."""

from __future__ import annotations

from datasets.loader import Loader
from datasets.store import ArrayStore
from datasets.subset import Rows
from trainable.spec import RunSpec


def training_loader(spec: RunSpec, store: ArrayStore, rows: Rows, *, pin: bool = False) -> Loader:
    """Shuffled, augmented batches; see `Loader`."""
    return _loader(
        spec,
        store,
        rows,
        batch_size=spec.budget.batch_size,
        drop_last=spec.budget.drop_last,
        train=True,
        augmented=True,
        ahead=2,
        pin=pin,
    )


def evaluation_loader(
    spec: RunSpec,
    store: ArrayStore,
    rows: Rows,
    *,
    batch_size: int | None = None,
    augmented: bool = False,
    ahead: int = 2,
    pin: bool = False,
) -> Loader:
    """The rows in their order; `batch_size` None is the spec's."""
    return _loader(
        spec,
        store,
        rows,
        batch_size=batch_size or spec.evaluate.batch_size,
        drop_last=False,
        train=False,
        augmented=augmented,
        ahead=ahead,
        pin=pin,
    )


def _loader(
    spec: RunSpec,
    store: ArrayStore,
    rows: Rows,
    *,
    batch_size: int,
    drop_last: bool,
    train: bool,
    augmented: bool,
    ahead: int,
    pin: bool,
) -> Loader:
    return Loader(
        store,
        rows,
        spec.augment,
        batch_size=batch_size,
        seed=spec.seed,
        train=train,
        augmented=augmented,
        drop_last=drop_last,
        image_size=spec.data.image_size,
        resize=spec.data.resize,
        jpeg_quality=spec.data.jpeg_quality,
        ahead=ahead,
        pin=pin,
    )
