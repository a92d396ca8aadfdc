"""Random images as a data set in memory, for what costs the same whatever the images show."""

from __future__ import annotations

import numpy as np

from datasets.store import ArrayStore, Dataset, Manifest


def random_images(size: int, count: int) -> Dataset:
    """Random images of 100 classes, both splits the same, read-only as a memory map.

    Args:
        size: side in pixels.
        count: images.
    """
    rng = np.random.default_rng(0)
    manifest = Manifest(
        format=1,
        dataset="random",
        split="train",
        num_images=count,
        image_size=size,
        classes=tuple(str(number) for number in range(100)),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        images_sha256="",
        labels_sha256="",
        content_sha256="0" * 64,
        published=False,
        source="random",
        source_sha256=None,
    )
    images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    images.flags.writeable = False
    store = ArrayStore(
        images=images,
        labels=np.arange(count, dtype=np.int16) % 100,
        manifest=manifest,
    )
    return Dataset(train=store, test=store)
