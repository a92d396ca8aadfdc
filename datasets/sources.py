"""Opens any source of images: a published archive or folder, digits, or an image tree of one's own.

A source is opened, checked as far as its listing allows, and then read block by block, so that memory stays small.
Archives and pickles are never trusted, and nothing is extracted to disk.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.cifar import is_archive, read_cifar
from datasets.folders import open_tree, read_class_folders, read_published_folders, read_tiny_imagenet
from datasets.plan import Purpose, generator
from datasets.published import PUBLISHED
from datasets.source_types import Source, SplitSource
from datasets.store import DataError
from datasets.subset import stratified


def open_source(name: str, path: Path | None, *, image_size: int | None = None) -> Source:
    """Opens the source of data set `name`.

    Args:
        name: a published name, or any name for a class-per-folder tree. CIFAR-10 may be such a tree, too.
        path: archive or folder; None only for data that come with a dependency.
        image_size: resize a class-per-folder tree's images to this side (shorter side, then centre).

    Raises:
        DataError: wrong, truncated or incomplete source; the message names the file and the mend.
    """
    if name == "digits":
        return _digits()
    assert path is not None, "prepare.py downloads or refuses before it opens a source"
    if not path.exists():
        raise DataError(f"--source {path}: no such file or folder")
    if image_size is not None and name in PUBLISHED:
        raise DataError(f"--image-size is for image folders of your own; {name} keeps its published size")
    if name in ("cifar10", "cifar100"):
        classes = PUBLISHED[name].classes
        if classes and not is_archive(name, path):
            return read_published_folders(open_tree(path), name, PUBLISHED[name])
        return read_cifar(name, path)
    tree = open_tree(path)
    return read_tiny_imagenet(tree) if name == "tiny-imagenet-200" else read_class_folders(tree, image_size)


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits (8x8, 17 grey levels), stratified 70/30, grey as three equal channels."""
    from sklearn.datasets import load_digits  # slow to import and needed for this one data set

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int16)
    train = stratified(labels, PUBLISHED["digits"].num_train, generator(0, Purpose.DIGITS_SPLIT))
    test = np.setdiff1d(np.arange(len(labels)), train)

    def split(rows: NDArray[np.integer]) -> SplitSource:
        pixels = np.repeat(grey[rows][..., None], 3, axis=3)
        return SplitSource(labels=labels[rows], blocks=lambda: iter([pixels]))

    return Source(classes=tuple(str(i) for i in range(10)), train=split(train), test=split(test), known_files=False)
