"""Loaders by others over the same images in memory, each as its library means it to be used, for `benchmarks.loader`.

A peer is a function of `Work` that returns a function, of which every call is one shuffled epoch: an iterator of
normalised batches in the model's layout, [B, 3, S, S] float32. Its worker processes stay from epoch to epoch, and a
library's own fast paths are taken. Labels go along where the library loads them; nobody looks at a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.spec import AugmentSpec

Epoch = Callable[[], Iterator[torch.Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What every loader is given."""

    images: NDArray[np.uint8]
    """[N, S, S, 3] uint8."""
    labels: NDArray[np.int64]
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Per channel, of pixels in [0, 1]."""
    augment: AugmentSpec
    """Only crop, mirror and mixing of a whole batch are done by all."""
    batch_size: int

    @property
    def side(self) -> int:
        """Of the images in pixels."""
        return int(self.images.shape[1])


class _InMemory(Dataset[Any]):
    """Images of an array, transformed one by one; timm replaces `transform`."""

    def __init__(self, work: Work, transform: Callable[[Any], Any], *, pillow: bool) -> None:
        self._images, self._labels, self._pillow = np.array(work.images), work.labels, pillow
        self.transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self._images[index]
        return self.transform(Image.fromarray(image) if self._pillow else image), int(self._labels[index])


def torchvision(work: Work, *, workers: int) -> Epoch:
    """torch's DataLoader with torchvision's v2 transforms, see `torchvision_loader`."""
    loader = torchvision_loader(work, workers=workers)
    return lambda: (batch[0] for batch in loader)


def torchvision_loader(work: Work, *, workers: int) -> DataLoader[Any]:
    """torch's DataLoader with torchvision's v2 transforms for every image, and its MixUp or CutMix in the collation, so
    that the workers do it."""
    from torchvision.transforms import v2

    augment = work.augment
    steps: list[Any] = [v2.ToImage()]
    if augment.pad_crop:
        steps.append(v2.RandomCrop(work.side, padding=augment.pad_crop))
    if augment.hflip_prob:
        steps.append(v2.RandomHorizontalFlip(augment.hflip_prob))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(work.mean, work.std)]
    kind = {"mixup": v2.MixUp, "cutmix": v2.CutMix}.get(augment.mix)
    mix = None if kind is None else kind(alpha=augment.mix_alpha, num_classes=work.num_classes)
    return DataLoader(
        _InMemory(work, v2.Compose(steps), pillow=False),
        batch_size=work.batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=partial(_collated, mix=mix),
        persistent_workers=workers > 0,
    )


def _collated(samples: list[Any], mix: Callable[..., Any] | None) -> Any:
    batch = default_collate(samples)
    return batch if mix is None else mix(*batch)


def timm(work: Work, *, fast: bool) -> Epoch:
    """timm's create_loader with two workers and its Mixup, which mixes a batch in place.

    Args:
        work: see `Work`.
        fast: fast_collate of 8-bit images, normalised as batches (its prefetcher, on the CPU), instead of a tensor an
            image.
    """
    from timm.data import Mixup, create_loader
    from timm.data.transforms import MaybePILToTensor, MaybeToTensor
    from torchvision import transforms

    augment = work.augment
    loader = create_loader(
        _InMemory(work, lambda image: image, pillow=True),
        (3, work.side, work.side),
        work.batch_size,
        is_training=True,
        no_aug=True,
        mean=work.mean,
        std=work.std,
        num_workers=2,
        use_prefetcher=fast,
        device=torch.device("cpu"),
    )
    steps: list[Any] = []  # create_loader knows no crop with padding
    if augment.pad_crop:
        steps.append(transforms.RandomCrop(work.side, padding=augment.pad_crop))
    if augment.hflip_prob:
        steps.append(transforms.RandomHorizontalFlip(augment.hflip_prob))
    steps += [MaybePILToTensor()] if fast else [MaybeToTensor(), transforms.Normalize(work.mean, work.std)]
    loader.dataset.transform = transforms.Compose(steps)
    mix = None
    if augment.mix != "none":
        alphas = {f"{augment.mix}_alpha": augment.mix_alpha}
        mix = Mixup(**{"mixup_alpha": 0.0, **alphas}, label_smoothing=0.0, num_classes=work.num_classes)

    def epoch() -> Iterator[torch.Tensor]:
        for images, labels in loader:
            # it pairs the first with the last, and so refuses the odd batch at the end of small data
            yield images if mix is None or len(images) % 2 else mix(images, labels)[0]

    return epoch


def airbench(work: Work) -> Epoch:
    """The whole split as one normalised tensor; crops and mirrors of a whole epoch at once, then batches by index, as
    KellerJordan/cifar10-airbench's CifarLoader does."""
    augment, pad, side = work.augment, work.augment.pad_crop, work.side
    images = torch.from_numpy(np.array(work.images)).permute(0, 3, 1, 2).contiguous()
    padded = torch.nn.functional.pad(images, (pad,) * 4)  # black before it is normalised, as ours
    mean, std = (torch.tensor(values)[:, None, None] for values in (work.mean, work.std))
    normal = padded.float().div_(255).sub_(mean).div_(std)

    def epoch() -> Iterator[torch.Tensor]:
        changed = normal
        if pad:
            rows, changed = (
                torch.empty((len(normal), 3, side, side + 2 * pad)),
                torch.empty((len(normal), 3, side, side)),
            )
            top, left = torch.randint(0, 2 * pad + 1, (2, len(normal)))
            for first in range(2 * pad + 1):
                rows[top == first] = normal[top == first, :, first : first + side]
            for first in range(2 * pad + 1):
                changed[left == first] = rows[left == first, :, :, first : first + side]
        if augment.hflip_prob:
            mirrored = (torch.rand(len(normal)) < augment.hflip_prob)[:, None, None, None]
            changed = torch.where(mirrored, changed.flip(-1), changed)
        for index in _shuffled(work):
            yield mixed(changed[index], augment)

    return epoch


def gather(work: Work) -> Epoch:
    """The whole split as one padded 8-bit tensor; every batch is gathered pixel by pixel, then normalised."""
    augment, pad, side = work.augment, work.augment.pad_crop, work.side
    images = torch.from_numpy(np.array(work.images)).permute(0, 3, 1, 2).contiguous()
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    scale = torch.tensor([1 / (255 * one) for one in work.std])[:, None, None]
    bias = torch.tensor([-one / two for one, two in zip(work.mean, work.std, strict=True)])[:, None, None]
    step, channel = torch.arange(side), torch.arange(3)[:, None, None]

    def epoch() -> Iterator[torch.Tensor]:
        for index in _shuffled(work):
            if pad or augment.hflip_prob:
                top, left = torch.randint(0, 2 * pad + 1, (2, len(index)))
                mirrored = torch.rand(len(index), 1) < augment.hflip_prob
                rows = (top[:, None] + step)[:, None, :, None]
                columns = (left[:, None] + torch.where(mirrored, side - 1 - step, step))[:, None, None, :]
                pixels = padded[index[:, None, None, None], channel, rows, columns]
            else:
                pixels = padded[index]
            yield mixed(pixels.float().mul_(scale).add_(bias), augment)

    return epoch


def _shuffled(work: Work) -> Iterator[torch.Tensor]:
    """Rows of an epoch's batches."""
    order = torch.randperm(len(work.images))
    return (order[first : first + work.batch_size] for first in range(0, len(order), work.batch_size))


def mixed(images: torch.Tensor, augment: AugmentSpec) -> torch.Tensor:
    """MixUp or CutMix of a whole batch with a permutation of it, by batched operations."""
    if augment.mix == "none":
        return images
    assert augment.mix_alpha is not None, "the spec has both"
    lam = float(np.random.beta(augment.mix_alpha, augment.mix_alpha))
    partner = torch.randperm(len(images))
    if augment.mix == "mixup":
        return torch.lerp(images[partner], images, lam)
    side = images.shape[-1]
    half = int(side * (1 - lam) ** 0.5) // 2
    row, column = torch.randint(0, side, (2,)).tolist()
    rows, columns = (slice(max(0, centre - half), min(side, centre + half)) for centre in (row, column))
    images[:, :, rows, columns] = images[partner][:, :, rows, columns]
    return images
