"""Normalisation: which statistics, for which images, and the same bits as the formula has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import augment

from datasets.normalize import Normalization, normalization
from datasets.store import Dataset

CIFAR100 = (
    (0.5070751592371322, 0.4865488733149497, 0.44091784336703466),
    (0.26733428587924063, 0.25643846292120615, 0.2761504713263903),
)
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def by_formula(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    return ((np.arange(256) / 255 - np.array(mean)[:, None]) / np.array(std)[:, None]).astype(np.float32)


def given_by(mean: tuple[float, ...], std: tuple[float, ...], toy: Dataset) -> Normalization:
    return normalization(augment(normalize="given", mean=mean, std=std), toy.train.manifest, training=True)


@pytest.mark.parametrize(("mean", "std"), [CIFAR100, CIFAR10, HALF])
def test_given_statistics_give_the_formulas_bits(mean: tuple[float, ...], std: tuple[float, ...], toy: Dataset) -> None:
    assert (given_by(mean, std, toy).table == by_formula(mean, std)).all()


@pytest.mark.parametrize("training", [True, False])
def test_the_named_statistics(training: bool, toy: Dataset) -> None:
    manifest = toy.train.manifest
    for name, (mean, std) in {
        "dataset": (manifest.mean, manifest.std),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }.items():
        found = normalization(augment(normalize=name), manifest, training=training)
        assert (found.table == by_formula(mean, std)).all(), name


def test_none_scales_to_one(toy: Dataset) -> None:
    table = normalization(augment(normalize="none"), toy.train.manifest, training=False).table
    assert table[0, 0] == 0 and table[2, 255] == 1


numbers = st.floats(0.01, 1.0)


@given(mean=st.tuples(numbers, numbers, numbers), std=st.tuples(numbers, numbers, numbers))
@settings(max_examples=200, deadline=None)
def test_a_line_is_the_formula_to_a_few_float64_roundings(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    line = Normalization(scale=1 / (255 * np.array(std)), bias=-np.array(mean) / np.array(std)).table
    formula = by_formula(mean, std)
    close = 1e-15 * (1 / np.array(std))[:, None] + np.spacing(np.abs(formula))
    assert (np.abs(line - formula) <= close).all()


def test_training_images_may_be_normalised_otherwise(toy: Dataset) -> None:
    spec, manifest = augment(normalize="dataset", train_normalize="none"), toy.train.manifest
    assert normalization(spec, manifest, training=True).table[0, 255] == 1
    expected = by_formula(manifest.mean, manifest.std)
    assert (normalization(spec, manifest, training=False).table == expected).all()


def test_constant_channel_is_refused(toy: Dataset) -> None:
    flat = toy.train.manifest.model_copy(update={"std": (0.1, 0.0, 0.1)})
    with pytest.raises(ValueError, match=r"augment\.normalize: dataset divides by .* choose imagenet or none"):
        normalization(augment(), flat, training=True)
    changed = augment(normalize="none", train_normalize="dataset")
    with pytest.raises(ValueError, match=r"augment\.train_normalize: dataset divides by"):
        normalization(changed, flat, training=True)
    assert normalization(changed, flat, training=False).table[0, 255] == 1
