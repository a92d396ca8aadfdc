"""Oracles of what describes features: CKA without bias, effective rank, separability, principal axes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.representation import centred_gram, cka, effective_rank, principal, separability


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def plain_cka(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Kornblith's linear CKA, with its bias."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    across = np.linalg.norm(one.T @ other) ** 2
    return float(across / (np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)))


def hsic(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Song et al.'s unbiased estimate, as they print it."""
    num = len(one)
    grams = [features @ features.T for features in (one, other)]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    k, m = grams
    ones = np.ones(num)
    sums = (ones @ k @ ones) * (ones @ m @ ones) / ((num - 1) * (num - 2))
    return float((np.trace(k @ m) + sums - 2 / (num - 2) * (ones @ k @ m @ ones)) / (num * (num - 3)))


def test_cka_is_the_unbiased_estimate(rng: np.random.Generator) -> None:
    one = rng.normal(size=(40, 7)) + 3
    other = one[:, :4] @ rng.normal(size=(4, 9)) + rng.normal(size=(40, 9))
    expected = hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))
    assert cka(centred_gram(one), centred_gram(other)) == pytest.approx(expected, abs=1e-12)


def test_cka_knows_neither_rotation_nor_scale_nor_shift(rng: np.random.Generator) -> None:
    one, other = rng.normal(size=(200, 30)), rng.normal(size=(200, 12))
    other += one[:, :12]
    turned = 7.5 * one @ np.linalg.qr(rng.normal(size=(30, 30)))[0] + 4
    expected = cka(centred_gram(one), centred_gram(other))
    assert cka(centred_gram(turned), centred_gram(other)) == pytest.approx(expected, abs=1e-12)
    assert cka(centred_gram(one), centred_gram(turned)) == pytest.approx(1, abs=1e-12)
    assert 0.1 < expected < 0.9


def test_cka_of_independent_features_is_nothing_where_the_plain_one_is_large(rng: np.random.Generator) -> None:
    one, other = rng.normal(size=(1000, 384)), rng.normal(size=(1000, 2048))
    assert plain_cka(one, other) == pytest.approx(0.43, abs=0.01)
    assert cka(centred_gram(one), centred_gram(other)) == pytest.approx(0.001, abs=0.004)


def test_cka_of_features_that_do_not_vary_is_nothing() -> None:
    flat = np.full((20, 3), 0.1)
    assert not centred_gram(flat).any()


def test_cka_refuses_what_it_cannot_estimate() -> None:
    with pytest.raises(ValueError, match="3 images; debiased CKA needs at least 4"):
        centred_gram(np.eye(3))
    with pytest.raises(ValueError, match="no finite numbers"):
        centred_gram(np.full((9, 2), np.nan))


def test_effective_rank(rng: np.random.Generator) -> None:
    line = np.outer(rng.normal(size=50), rng.normal(size=20)) + 3
    assert effective_rank(line) == pytest.approx(1, abs=1e-9)
    ball = np.zeros((40, 25))
    ball[:20, :10], ball[20:, :10] = np.eye(20)[:, :10], -np.eye(20)[:, :10]
    assert effective_rank(ball @ np.linalg.qr(rng.normal(size=(25, 25)))[0]) == pytest.approx(10, abs=1e-9)
    assert effective_rank(rng.normal(size=(5000, 10))) == pytest.approx(10, abs=0.02)
    assert effective_rank(np.full((6, 4), 2.0)) == 1


def test_separability_is_corrected_for_the_number_of_classes(rng: np.random.Generator) -> None:
    labels = np.repeat(np.arange(50), 4)
    nothing = [separability(rng.normal(size=(200, 30)), labels) for _ in range(20)]
    assert np.mean(np.array(nothing, float)) == pytest.approx(0, abs=0.005)  # uncorrected: 49 / 199
    assert separability(np.eye(50)[labels], labels) == pytest.approx(1)
    # classes' centres of variance 1 among images of variance 1 within: a half
    centres = rng.normal(size=(50, 400))[labels]
    assert separability(centres + rng.normal(size=(200, 400)), labels) == pytest.approx(0.5, abs=0.02)
    assert separability(np.eye(4), np.arange(4)) is None
    assert separability(np.ones((4, 2)), np.array([0, 0, 1, 1])) is None


def test_principal_axes_hold_the_variance_they_say(rng: np.random.Generator) -> None:
    features = rng.normal(size=(300, 6)) * [5, 2, 1, 1, 1, 1]
    points, shares = principal(features)
    variance = features.var(axis=0).sum()
    np.testing.assert_allclose(points.var(axis=0) / variance, shares, rtol=1e-12)
    assert shares[0] > 0.6 > shares[1] > 0.05
    flipped, _ = principal(-features)
    assert flipped.shape == (300, 2) and points[np.abs(points[:, 0]).argmax(), 0] > 0
    one_axis, one_share = principal(features[:, :1])
    assert one_share == pytest.approx((1, 0)) and not one_axis[:, 1].any()
