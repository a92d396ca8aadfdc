"""A run's loaders: what its spec says of the images, told to `datasets` in one place, and where they are made.

On a GPU a split lies whole on the card as 8-bit pixels where it fits; else, and on a CPU, batches are made by the CPU.
Both ways give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from datasets.device_loader import DeviceLoader, resident
from datasets.loader import Loader
from datasets.store import ArrayStore, Dataset
from datasets.subset import Rows
from trainable.spec import RunSpec

RESIDENT_SHARE = 0.5
"""Of the memory that a run may take of its card: images that need more stay in the machine's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesOn:
    """Where a run's images are made, and as what."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    threads: int = 1
    """That make images on the CPU."""
    resident: dict[str, torch.Tensor] = field(default_factory=dict)
    """The splits that lie on the device whole."""


def images_on(
    spec: RunSpec, stores: Dataset, device: torch.device, model: nn.Module, memory_bytes: int, threads: int
) -> ImagesOn:
    """How to make the images of a run.

    Args:
        spec: the run.
        stores: its data.
        device: where it trains.
        model: on the device.
        memory_bytes: of the device that the run may take; 0 on a CPU, where nothing need be resident.
        threads: of the CPU that the run may take. Where it trains on another device they make images.
    """
    half = spec.optim.precision == "bfloat16"
    # a normaliser of the model's own begins as nothing at all and would be tried in vain
    narrow = half and spec.model.input_norm == "none" and takes_bfloat16(model, device, spec.data.image_size)
    splits = {"train": stores.train, "test": stores.test}
    fits = sum(store.images.nbytes for store in splits.values()) <= RESIDENT_SHARE * memory_bytes
    return ImagesOn(
        device=device,
        dtype=torch.bfloat16 if narrow else torch.float32,
        channels_last=half,
        threads=1 if device.type == "cpu" else threads,
        resident={name: resident(store, device) for name, store in splits.items()}
        if fits and spec.data.resize == "none"
        else {},
    )


def layout(spec: RunSpec) -> torch.memory_format:
    """How weights and images of a run lie in memory: matrix units read bfloat16 of one pixel's channels together."""
    return torch.channels_last if spec.optim.precision == "bfloat16" else torch.contiguous_format


def takes_bfloat16(model: nn.Module, device: torch.device, size: int) -> bool:
    """Whether a model under autocast gives the same bits for images that were rounded to bfloat16 before: whether it
    rounds them itself, first of all. Found by trying; the model and torch's generators are as before."""
    images = torch.linspace(-2, 2, 2 * 3 * size * size, device=device).reshape(2, 3, size, size)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16):
            wide, narrow = model(images), model(images.bfloat16())
        return wide.dtype == narrow.dtype and torch.equal(wide, narrow)
    finally:
        model.train(was_training)


def training_loader(spec: RunSpec, store: ArrayStore, rows: Rows, on: ImagesOn) -> Loader | DeviceLoader:
    """Shuffled, augmented batches; see `Loader`."""
    return _loader(
        spec,
        store,
        rows,
        on,
        batch_size=spec.budget.batch_size,
        drop_last=spec.budget.drop_last,
        train=True,
        augmented=True,
        ahead=1,
    )


def evaluation_loader(
    spec: RunSpec,
    store: ArrayStore,
    rows: Rows,
    on: ImagesOn,
    *,
    batch_size: int | None = None,
    augmented: bool = False,
    ahead: int = 1,
) -> Loader | DeviceLoader:
    """The rows in their order; `batch_size` None is the spec's."""
    return _loader(
        spec,
        store,
        rows,
        on,
        batch_size=batch_size or spec.evaluate.batch_size,
        drop_last=False,
        train=False,
        augmented=augmented,
        ahead=ahead,
    )


def _loader(
    spec: RunSpec,
    store: ArrayStore,
    rows: Rows,
    on: ImagesOn,
    *,
    batch_size: int,
    drop_last: bool,
    train: bool,
    augmented: bool,
    ahead: int,
) -> Loader | DeviceLoader:
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": spec.seed,
        "train": train,
        "augmented": augmented,
        "drop_last": drop_last,
        "ahead": ahead,
        "dtype": on.dtype,
        "channels_last": on.channels_last,
    }
    images = on.resident.get(store.manifest.split)
    if images is not None:
        return DeviceLoader(images, store.manifest, rows, spec.augment, **common)
    return Loader(
        store,
        rows,
        spec.augment,
        image_size=spec.data.image_size,
        resize=spec.data.resize,
        jpeg_quality=spec.data.jpeg_quality,
        pin=on.device.type == "cuda",
        threads=on.threads,
        **common,
    )
