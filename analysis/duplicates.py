"""Test images that a run may have seen in training: copies of training images, and near-duplicates that people found.

`near_duplicates.csv` lists the SHA-1 of the pixels ([H, W, 3] uint8, C order) of CIFAR-100's test images that Barz and
Denzler, "Do We Train on Test Data? Purging CIFAR of Near-Duplicates" (2020, arXiv 1902.00423), found again in its
training set: 39 copies, 582 near-duplicates, 270 very similar ones. Copies are found in any data set.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainable.dims import read_pixels
from trainable.storage import Storage

LIST = Path(__file__).with_name("near_duplicates.csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """The test images of a data set that are in its training split too, or nearly so."""

    dataset: str
    sample_ids: NDArray[np.int64]
    """[M], rising."""
    num_copies: int
    """How many of them are pixel by pixel what a training image is."""

    def __str__(self) -> str:
        listed = len(self.sample_ids) - self.num_copies
        more = f", and {listed:,} more on the list of Barz and Denzler (2020)" if listed else ""
        return f"{self.dataset}: {self.num_copies:,} copies of training images{more}"


@cache
def known_near_duplicates() -> frozenset[str]:
    """SHA-1 of the pixels of every listed test image."""
    with LIST.open(newline="") as lines:
        return frozenset(line["pixel_sha1"] for line in csv.DictReader(lines))


def find_duplicates(storage: Storage, dataset: str, content_sha256: str | None) -> Duplicates | None:
    """The duplicates among a data set's test images; None where the store does not know its images.

    Raises:
        RecordError: the file is damaged, or is of other data.
    """
    pixels = read_pixels(storage, dataset, content_sha256)
    if pixels is None:
        return None
    copies = {sample for sample, digest in pixels.test.items() if digest in pixels.train}
    listed = {sample for sample, digest in pixels.test.items() if digest in known_near_duplicates()}
    return Duplicates(
        dataset=dataset, sample_ids=np.array(sorted(copies | listed), dtype=np.int64), num_copies=len(copies)
    )
