"""FFCV over the same images, for `benchmarks.loader`, where it is installed (it needs OpenCV and turbojpeg to build).

Images are stored raw, so nothing is decoded. FFCV 1.0 has MixUp of images but no CutMix: that arm gets batched torch
operations, as the loaders that have no mixing of their own.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import Epoch, Work, mixed


def ffcv(work: Work, *, workers: int) -> Epoch:
    """FFCV's loader with its own crop, mirror and normalisation.

    Args:
        work: see `Work`.
        workers: its threads.
    """
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

    augment = work.augment
    steps: list[Any] = [SimpleRGBImageDecoder()]
    if augment.hflip_prob:
        steps.append(RandomHorizontalFlip(augment.hflip_prob))
    if augment.pad_crop:
        steps.append(RandomTranslate(padding=augment.pad_crop, fill=(0, 0, 0)))
    mean, std = (255 * np.array(values, np.float32) for values in (work.mean, work.std))
    steps += [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage(channels_last=False)]
    loader = Loader(
        str(_written(work)),
        batch_size=work.batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        pipelines={"image": steps, "label": [IntDecoder(), ToTensor()]},
    )

    def epoch() -> Iterator[torch.Tensor]:
        for images, _ in loader:
            yield mixed(images, augment)

    return epoch


class _Rows:
    def __init__(self, work: Work) -> None:
        self._images, self._labels = work.images, work.labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._images[index], int(self._labels[index])


def _written(work: Work) -> Path:
    """The images in FFCV's format, until this process ends."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    folder = tempfile.mkdtemp(prefix="benchmark-ffcv-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "images.beton")
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(_Rows(work))
    return path
