"""Normalisation: which statistics, for which images, and how near to the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from toy import augment

from datasets.normalize import Normalization, normalization
from datasets.store import Dataset

CIFAR100 = (
    (0.5070751592371322, 0.4865488733149497, 0.44091784336703466),
    (0.26733428587924063, 0.25643846292120615, 0.2761504713263903),
)
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def is_the_formula(table: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Scale, product, bias and sum are each rounded once to 24 bits."""
    raised, lowered = np.arange(256) / 255 / np.array(std)[:, None], (np.array(mean) / np.array(std))[:, None]
    close = 2.0**-24 * (3 * raised + 2 * lowered)
    return table.dtype == np.float32 and bool((np.abs(table - (raised - lowered)) <= close * (1 + 1e-6)).all())


def given_by(mean: tuple[float, ...], std: tuple[float, ...], toy: Dataset) -> Normalization:
    return normalization(augment(normalize="given", mean=mean, std=std), toy.train.manifest, training=True)


@pytest.mark.parametrize(("mean", "std"), [CIFAR100, CIFAR10, HALF])
def test_given_statistics_are_as_near_to_the_formula_as_torchvisions(
    mean: tuple[float, ...], std: tuple[float, ...], toy: Dataset
) -> None:
    table = given_by(mean, std, toy).table
    assert is_the_formula(table, mean, std)
    levels = np.arange(256)[:, None]
    formula = ((levels / 255 - np.array(mean)) / np.array(std)).T
    image = torch.from_numpy(np.broadcast_to(levels.astype(np.uint8), (256, 3)).T.reshape(3, 16, 16).copy())
    theirs = v2.functional.normalize(v2.functional.to_dtype(image, torch.float32, scale=True), list(mean), list(std))
    error = np.abs(table - formula).max()
    assert error <= 1.5 * np.abs(theirs.reshape(3, 256).numpy() - formula).max() and error < 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_the_named_statistics(training: bool, toy: Dataset) -> None:
    manifest = toy.train.manifest
    for name, (mean, std) in {
        "dataset": (manifest.mean, manifest.std),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }.items():
        found = normalization(augment(normalize=name), manifest, training=training)
        assert is_the_formula(found.table, mean, std), name


def test_none_scales_to_one(toy: Dataset) -> None:
    table = normalization(augment(normalize="none"), toy.train.manifest, training=False).table
    assert table[0, 0] == 0 and table[2, 255] == 1


numbers = st.floats(0.01, 1.0)


@given(mean=st.tuples(numbers, numbers, numbers), std=st.tuples(numbers, numbers, numbers))
@settings(max_examples=200, deadline=None)
def test_a_line_is_the_formula_to_four_roundings(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    assert is_the_formula(Normalization.by(mean, std).table, mean, std)


def test_training_images_may_be_normalised_otherwise(toy: Dataset) -> None:
    spec, manifest = augment(normalize="dataset", train_normalize="none"), toy.train.manifest
    assert normalization(spec, manifest, training=True).table[0, 255] == 1
    assert is_the_formula(normalization(spec, manifest, training=False).table, manifest.mean, manifest.std)


def test_constant_channel_is_refused(toy: Dataset) -> None:
    flat = toy.train.manifest.model_copy(update={"std": (0.1, 0.0, 0.1)})
    with pytest.raises(ValueError, match=r"augment\.normalize: dataset divides by .* choose imagenet or none"):
        normalization(augment(), flat, training=True)
    changed = augment(normalize="none", train_normalize="dataset")
    with pytest.raises(ValueError, match=r"augment\.train_normalize: dataset divides by"):
        normalization(changed, flat, training=True)
    assert normalization(changed, flat, training=False).table[0, 255] == 1
