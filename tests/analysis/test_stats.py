"""Intervals against statsmodels, against each other, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from analysis.stats import contrast, wilson


@given(num=st.integers(1, 20_000), share=st.floats(0, 1), level=st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_is_statsmodels(num: int, share: float, level: float) -> None:
    correct = round(share * num)
    theirs = proportion_confint(correct, num, alpha=1 - level, method="wilson")
    assert wilson(correct, num, level=level) == pytest.approx(theirs, abs=1e-12)


def test_wilson_known_value() -> None:
    assert wilson(4588, 10_000) == pytest.approx((0.4490511892, 0.4685804523), abs=1e-10)


@pytest.mark.parametrize(("correct", "num"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_nonsense(correct: int, num: int) -> None:
    with pytest.raises(ValueError, match="needs 0 <= correct <= num"):
        wilson(correct, num)


def simulated(cells: int, seeds: int, num: int, tau: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    difficulty = rng.normal(size=num)
    return {
        str(cell): (difficulty + rng.normal(0, tau, (seeds, 1)) + rng.normal(size=(seeds, num)) > 0)
        for cell in range(cells)
    }


def test_one_seed_is_the_paired_image_interval() -> None:
    cells = simulated(2, 1, 5000, 0, np.random.default_rng(0))
    difference = cells["0"][0].astype(float) - cells["1"][0]
    found = contrast({"0": 1, "1": -1}, cells)
    assert found.estimate == pytest.approx(difference.mean())
    assert found.parts["total"] == pytest.approx(difference.var(ddof=1) / 5000)
    assert found.single_seed and found.parts["seeds"] == 0


def test_did_is_ols_interaction_and_its_clustered_error() -> None:
    """statsmodels: image-clustered standard error of the interaction, up to the N/(N-1) of its definition."""
    import pandas as pd
    import statsmodels.formula.api as smf

    cells = simulated(4, 1, 400, 0, np.random.default_rng(1))
    weights = {"0": 1.0, "1": -1.0, "2": -1.0, "3": 1.0}
    frame = pd.concat(
        pd.DataFrame({"ok": cells[name][0].astype(float), "image": range(400), "r": int(name) // 2, "c": int(name) % 2})
        for name in cells
    )
    theirs = smf.ols("ok ~ r * c", frame).fit(
        cov_type="cluster", cov_kwds={"groups": frame["image"], "use_correction": False}
    )
    ours = contrast(weights, cells)
    assert ours.estimate == pytest.approx(theirs.params["r:c"], abs=1e-12)
    assert ours.parts["total"] == pytest.approx(theirs.bse["r:c"] ** 2 * 400 / 399, rel=1e-9)


def test_parts_by_hand() -> None:
    cell = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]], float)
    found = contrast({"a": 1.0}, {"a": cell})
    assert found.parts["images"] == pytest.approx(cell.mean(axis=0).var(ddof=1) / 4)
    assert found.parts["seeds"] == pytest.approx(cell.mean(axis=1).var(ddof=1) / 3)
    deviation = cell - cell.mean(axis=0) - cell.mean(axis=1, keepdims=True) + cell.mean()
    assert found.parts["residual"] == pytest.approx((deviation**2).sum() / (3 * 2) / (4 * 3))
    assert found.seeds == {"a": 3} and not found.single_seed


def test_image_by_seed_noise_is_counted_once() -> None:
    cells = simulated(1, 4, 500, 0.2, np.random.default_rng(5))
    parts = contrast({"0": 1.0}, cells).parts
    assert parts["residual"] > 0
    assert parts["total"] == pytest.approx(parts["images"] + parts["seeds"] - parts["residual"], rel=1e-12)
    assert parts["total"] > max(parts["images"], parts["seeds"])


def test_it_covers_what_seeds_alone_and_images_alone_miss() -> None:
    """Three seeds that vary: nominal 95 % intervals over 400 replications."""
    rng = np.random.default_rng(3)
    covered = images_only = 0
    for _ in range(400):
        cells = simulated(2, 3, 1000, 0.05, rng)
        found = contrast({"0": 1.0, "1": -1.0}, cells)
        covered += found.interval[0] <= 0 <= found.interval[1]
        images_only += abs(found.estimate) <= 1.96 * np.sqrt(found.parts["images"])
    assert 0.92 <= covered / 400 <= 0.99
    assert images_only / 400 < 0.88


def test_it_does_not_depend_on_order() -> None:
    rng = np.random.default_rng(4)
    cells = simulated(2, 3, 300, 0.1, rng)
    shuffled = rng.permutation(300)
    other = {name: cell[::-1][:, shuffled] for name, cell in cells.items()}
    one, two = (contrast({"0": 1.0, "1": -1.0}, data) for data in (cells, other))
    assert one.interval == pytest.approx(two.interval, abs=1e-14) and one.p == pytest.approx(two.p)
    flipped = contrast({"0": -1.0, "1": 1.0}, cells)
    assert flipped.estimate == pytest.approx(-one.estimate)


def test_no_variance_gives_a_point() -> None:
    found = contrast({"a": 1.0}, {"a": np.ones((1, 5))})
    assert found.interval == (1.0, 1.0) and found.p == 0.0


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="the same images"):
        contrast({"a": 1, "b": -1}, {"a": np.ones((1, 5)), "b": np.ones((1, 6))})
