"""Intervals against statsmodels, against each other, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from bootstrap import pigeonhole, pigeonhole_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import cochrans_q
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from analysis.stats import (
    benjamini_hochberg,
    contrast,
    contrast_of_shares,
    error_removed,
    holm,
    log_odds,
    macro_f1_values,
    mcnemar,
    mean_interval,
    newcombe,
    noether_size,
    prob_greater,
    wilson,
)


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


@given(data=st.data(), level=st.sampled_from([0.9, 0.95]))
def test_newcombe_is_statsmodels(data: st.DataObject, level: float) -> None:
    num1, num2 = data.draw(st.integers(2, 5000)), data.draw(st.integers(2, 5000))
    one, two = (data.draw(st.integers(0, num1)), num1), (data.draw(st.integers(0, num2)), num2)
    theirs = confint_proportions_2indep(*one, *two, compare="diff", method="newcomb", alpha=1 - level)
    assert newcombe(one, two, level=level) == pytest.approx(theirs, abs=1e-9)


def test_mean_interval_is_scipys() -> None:
    values = [0.5, 0.6, 0.55]
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx(tuple(theirs))
    with pytest.raises(ValueError, match="mean_interval needs at least two values, got 1"):
        mean_interval([0.5])


def test_image_and_seed_parts_are_the_clustered_variances_and_their_two_way_sum_is_too_small() -> None:
    """statsmodels: V_img (N-1)/N by image, V_seed (K-1)/K by run; its two-way sum is below ours at three seeds."""
    import pandas as pd
    import statsmodels.formula.api as smf

    num, count = 300, 3
    cells = simulated(4, count, num, 0.3, np.random.default_rng(8))
    weights = {"0": 1.0, "1": -1.0, "2": -1.0, "3": 1.0}
    frame = pd.concat(
        pd.DataFrame(
            {
                "ok": cells[name].astype(float).ravel(),
                "image": np.tile(np.arange(num), count),
                "run": np.repeat(np.arange(count), num) + 10 * int(name),
                "r": int(name) // 2,
                "c": int(name) % 2,
            }
        )
        for name in cells
    )

    def clustered(groups: object) -> float:
        kwds = {"groups": groups, "use_correction": False}
        return float(smf.ols("ok ~ r * c", frame).fit(cov_type="cluster", cov_kwds=kwds).bse["r:c"] ** 2)

    ours = contrast(weights, cells)
    assert clustered(frame["image"]) == pytest.approx(ours.parts["images"] * (num - 1) / num, rel=1e-10)
    assert clustered(frame["run"]) == pytest.approx(ours.parts["seeds"] * (count - 1) / count, rel=1e-10)
    assert clustered(frame[["image", "run"]]) < 0.9 * ours.parts["total"]


def test_images_or_seeds_alone() -> None:
    cells = simulated(2, 3, 400, 0.2, np.random.default_rng(9))
    weights = {"0": 1.0, "1": -1.0}
    both, images, seeds = (contrast(weights, cells, over=over) for over in ("both", "images", "seeds"))
    assert images.parts["total"] == both.parts["images"] and images.df == 399
    assert seeds.parts["total"] == both.parts["seeds"] and seeds.df <= 4
    with pytest.raises(ValueError, match="over seeds needs two seeds"):
        contrast({"0": 1.0}, {"0": cells["0"][:1]}, over="seeds")


def test_classes_take_their_part_of_the_image_variance_away() -> None:
    rng = np.random.default_rng(10)
    classes = np.repeat(np.arange(4), 50)
    cell = (rng.random(200) < np.array([0.1, 0.4, 0.7, 0.95])[classes]).astype(float)
    within = [cell[classes == one].var(ddof=1) for one in range(4)]
    found = contrast({"a": 1.0}, {"a": cell}, strata=classes)
    assert found.parts["images"] == pytest.approx(sum((50 / 200) ** 2 * v / 50 for v in within))
    assert found.df == pytest.approx(196)
    renamed = contrast({"a": 1.0}, {"a": cell}, strata=np.array([7, 3, 9, 1])[classes])
    assert renamed.parts == pytest.approx(found.parts)
    with pytest.raises(ValueError, match="two images of every class"):
        contrast({"a": 1.0}, {"a": cell}, strata=np.r_[classes[:-1], 9])


def test_closed_form_is_the_paired_bootstrap() -> None:
    """scipy's BCa interval of a difference in differences on one seed, to 0.1 points."""
    cells = simulated(4, 1, 2000, 0, np.random.default_rng(11))
    weights = {"0": 1.0, "1": -1.0, "2": -1.0, "3": 1.0}
    ours = contrast(weights, cells).interval
    theirs = stats.bootstrap(
        tuple(cells[name][0].astype(float) for name in weights),
        lambda a, b, c, d, axis: np.mean(a - b - c + d, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.003)  # 0.1 points at 10,000 images
    assert ours[1] - ours[0] == pytest.approx(theirs.high - theirs.low, rel=0.06)


@pytest.mark.parametrize("count", [3, 5])
def test_pigeonhole_variance(count: int) -> None:
    cells = simulated(2, count, 500, 0.2, np.random.default_rng(12))
    weights = {"0": 1.0, "1": -1.0}
    parts = contrast(weights, cells).parts
    draws = pigeonhole({"it": weights}, cells, draws=8000, rng=np.random.default_rng(0))["it"]
    expected = parts["images"] + (count - 1) / count * (parts["seeds"] + parts["residual"])
    assert draws.var(ddof=1) == pytest.approx(expected, rel=0.06)
    assert draws.mean() == pytest.approx(contrast(weights, cells).estimate, abs=5 * np.sqrt(expected / 8000))


def test_pigeonhole_is_seeded_joint_and_stratified() -> None:
    cells = simulated(3, 2, 120, 0.1, np.random.default_rng(13))
    contrasts = {"a": {"0": 1.0, "1": -1.0}, "b": {"1": 1.0, "2": -1.0}, "a+b": {"0": 1.0, "2": -1.0}}
    one, two = (pigeonhole(contrasts, cells, draws=300, rng=np.random.default_rng(4)) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in contrasts)
    assert one["a"] + one["b"] == pytest.approx(one["a+b"])
    easy = {"0": np.repeat([[1.0, 0.0]], 60, axis=1)}  # right on the first class, wrong on the second
    fixed = pigeonhole({"it": {"0": 1.0}}, easy, draws=50, rng=np.random.default_rng(0), strata=np.repeat([0, 1], 60))
    assert fixed["it"] == pytest.approx(0.5)


def test_macro_f1_values_are_macro_f1_and_its_error() -> None:
    """Against sklearn, and against the bootstrap that computes macro F1 anew from every draw."""
    rng = np.random.default_rng(5)
    count, num, classes = 4, 600, 6
    labels = rng.integers(0, classes, num)
    ease = rng.random(num)
    predicted = np.stack([np.where(ease < 0.5 + 0.05 * seed, labels, rng.integers(0, 4, num)) for seed in range(count)])
    values = np.stack([macro_f1_values(labels, own, classes) for own in predicted])
    for own, mine in zip(predicted, values, strict=True):
        assert mine.mean() == pytest.approx(f1_score(labels, own, average="macro"), abs=1e-12)
    unseen = f1_score(labels, predicted[0], average="macro", labels=np.arange(classes + 2), zero_division=0)
    assert macro_f1_values(labels, predicted[0], classes + 2).mean() == pytest.approx(unseen, abs=1e-12)

    def macro_f1(seed: int, images: np.ndarray) -> float:
        own, said = labels[images], predicted[seed][images]
        hits = np.bincount(own[own == said], minlength=classes)
        return float((2 * hits / (np.bincount(own, minlength=classes) + np.bincount(said, minlength=classes))).mean())

    draws = pigeonhole_of(macro_f1, count, num, draws=3000, rng=np.random.default_rng(6))
    parts = contrast({"row": 1.0}, {"row": values}).parts
    expected = parts["images"] + (count - 1) / count * (parts["seeds"] + parts["residual"])
    assert draws.var(ddof=1) == pytest.approx(expected, rel=0.1)


def test_log_odds_by_hand_and_against_a_logit() -> None:
    import pandas as pd
    import statsmodels.formula.api as smf

    cells = simulated(4, 1, 1500, 0, np.random.default_rng(14))
    weights = {"0": 1.0, "1": -1.0, "2": -1.0, "3": 1.0}
    found = log_odds(weights, cells)
    assert found is not None
    frame = pd.concat(
        pd.DataFrame({"ok": cells[n][0].astype(float), "image": range(1500), "r": int(n) // 2, "c": int(n) % 2})
        for n in cells
    )
    kwds = {"groups": frame["image"], "use_correction": False}
    theirs = smf.logit("ok ~ r * c", frame).fit(disp=0, cov_type="cluster", cov_kwds=kwds)
    assert found.estimate == pytest.approx(theirs.params["r:c"], abs=1e-6)
    assert found.error == pytest.approx(theirs.bse["r:c"] * np.sqrt(1500 / 1499), rel=1e-5)
    assert log_odds({"a": 1.0}, {"a": np.ones((1, 9))}) is None


def test_error_removed_by_hand_and_by_small_steps() -> None:
    cells = simulated(4, 3, 800, 0.1, np.random.default_rng(15))
    weights = {"0": 1.0, "1": -1.0, "2": -1.0, "3": 1.0}
    baselines = {"0": "1", "1": "1", "2": "3", "3": "3"}
    means = {name: cell.mean() for name, cell in cells.items()}

    def value(means: dict[str, float]) -> float:
        return (means["0"] - means["1"]) / (1 - means["1"]) - (means["2"] - means["3"]) / (1 - means["3"])

    found = error_removed(weights, baselines, cells)
    assert found is not None and found.estimate == pytest.approx(value(means))
    steps = {name: (value({**means, name: means[name] + 1e-6}) - value(means)) / 1e-6 for name in means}
    assert found.error == pytest.approx(contrast(steps, cells).error, rel=1e-4)
    assert error_removed({"a": 1.0, "b": -1.0}, {"a": "b", "b": "b"}, {"a": np.zeros(5), "b": np.ones(5)}) is None


def test_shares_alone_give_the_binomial_error() -> None:
    """Worked example of the study: CutMix's gain, ResNet less ViT, on CIFAR-100 from scratch."""
    shares = {"RC": [0.5750], "RD": [0.4588], "VC": [0.1863], "VD": [0.2383]}
    weights = {"RC": 1.0, "RD": -1.0, "VC": -1.0, "VD": 1.0}
    found = contrast_of_shares(weights, shares, 10_000)
    assert 100 * found.estimate == pytest.approx(16.82)
    assert 100 * found.error == pytest.approx(0.91, abs=5e-3)
    assert tuple(100 * bound for bound in found.interval) == pytest.approx((15.04, 18.60), abs=5e-3)
    assert found.tipping_sd is not None and 100 * found.tipping_sd == pytest.approx(4.27, abs=5e-3)
    several = contrast_of_shares({"a": 1.0}, {"a": [0.5, 0.6]}, 100)
    assert several.parts["seeds"] == pytest.approx(0.005 / 2) and not several.single_seed


def test_tipping_sd_puts_the_interval_at_zero() -> None:
    cells = simulated(4, 1, 3000, 0, np.random.default_rng(16))
    cells["0"] = cells["0"] | (np.random.default_rng(17).random((1, 3000)) < 0.3)
    found = contrast({"0": 1.0, "1": -1.0, "2": -1.0, "3": 1.0}, cells)
    assert found.tipping_sd is not None
    variance = found.parts["total"] + 4 * found.tipping_sd**2
    assert abs(found.estimate) == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)
    assert contrast({"1": 1.0, "2": -1.0}, {"1": cells["1"], "2": cells["1"]}).tipping_sd is None


def test_tost_is_statsmodels() -> None:
    """Seeds alone make the contrast of one cell a one-sample t test."""
    from statsmodels.stats.weightstats import DescrStatsW

    values = np.array([0.4, -0.3, 0.1, 0.6, -0.2])
    found = contrast({"x": 1.0}, {"x": np.column_stack([values, values])}, over="seeds")
    assert found.p_equivalent(1.0) == pytest.approx(0.003413889734897943, rel=1e-9)
    assert found.p_equivalent(1.0) == pytest.approx(DescrStatsW(values).ttost_mean(-1, 1)[0], rel=1e-9)
    assert found.interval_at(0.9) == pytest.approx((-0.2455, 0.4855), abs=5e-5)
    assert found.smallest_margin() == pytest.approx(0.4855, abs=5e-5)
    assert found.p_equivalent(found.smallest_margin()) == pytest.approx(0.05)
    assert found.p_equivalent(0.1) > 0.5  # the estimate itself lies outside


def test_corrections_are_statsmodels_and_scipys() -> None:
    rng = np.random.default_rng(20)
    for size in (1, 2, 5, 12, 40):
        p_values = [*(rng.random(size) ** 3).tolist(), 1.0, 0.25, 0.25]
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)
        assert benjamini_hochberg(p_values) == pytest.approx(stats.false_discovery_control(p_values), abs=1e-12)


def test_corrections_known_values() -> None:
    p_values = (0.001, 0.012, 0.03, 0.04)
    assert holm(p_values) == pytest.approx([0.004, 0.036, 0.06, 0.06])
    assert benjamini_hochberg(p_values) == pytest.approx([0.004, 0.024, 0.04, 0.04])
    assert holm(p_values[::-1]) == pytest.approx([0.06, 0.06, 0.036, 0.004])


def test_mcnemar_is_statsmodels() -> None:
    rng = np.random.default_rng(18)
    one, other = rng.random(400) < 0.6, rng.random(400) < 0.5
    only_one, only_other, p = mcnemar(one, other)
    table = [[int((one & other).sum()), only_one], [only_other, int((~one & ~other).sum())]]
    assert p == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, rel=1e-9)
    assert mcnemar(one, one) == (0, 0, 1.0)
    many = np.repeat([True, False], [1856, 1246])
    assert mcnemar(many, ~many)[:2] == (1856, 1246)
    pair = np.column_stack([many, ~many]).astype(int)
    assert cochrans_q(pair).statistic == pytest.approx(119.95486782720825) == pytest.approx((1856 - 1246) ** 2 / 3102)
    assert mcnemar(many, ~many)[2] == pytest.approx(stats.binomtest(1856, 3102).pvalue)


def test_probability_of_improvement() -> None:
    one, other = (0.7, 0.8, 0.9), (0.6, 0.75, 0.5)
    assert prob_greater(one, other) == pytest.approx(8 / 9) == pytest.approx(stats.mannwhitneyu(one, other)[0] / 9)
    assert prob_greater((1, 2), (1, 2)) == 0.5
    assert noether_size(0.75) == pytest.approx(28.859, abs=5e-4)


def replicated(seeds: int, tau: float, rng: np.random.Generator, num: int = 2000) -> dict[str, np.ndarray]:
    """Four cells as the published pretrained CIFAR ones: 30 % of an answer's variance is the image's, 20 % the image's
    in this cell, the rest the run's; `tau` is the run-to-run SD in points at 10,000 images."""
    shared = np.sqrt(0.45) * rng.standard_normal(num, np.float32)
    cells = {}
    for name in "0123":
        own = shared + np.sqrt(0.257) * rng.standard_normal(num, np.float32)
        shift = rng.normal(0, tau / 100 * np.sqrt(10_000 / num) / 0.3989, (seeds, 1)).astype(np.float32)
        cells[name] = own + shift + np.sqrt(0.293) * rng.standard_normal((seeds, num), np.float32) > 0
    return cells


@pytest.mark.slow
def test_coverage_is_as_tabled() -> None:
    """400 replications: the two-way interval covers; images alone fail where runs differ, seeds alone where they are
    many."""
    weights = {"0": 1.0, "1": -1.0, "2": -1.0, "3": 1.0}
    covered: dict[str, float] = {}
    for name, seeds, tau in (("3", 3, 0.3), ("1.0", 3, 1.0), ("10", 10, 0.3)):
        rng = np.random.default_rng(19)
        for _ in range(400):
            cells = replicated(seeds, tau, rng)
            found = contrast(weights, cells)
            paired = sum(weight * cells[cell].mean(axis=1) for cell, weight in weights.items())
            low, high = mean_interval(list(paired))
            images_only = contrast(weights, cells, over="images").interval
            for kind, (lower, upper) in (("both", found.interval), ("seeds", (low, high)), ("images", images_only)):
                covered[f"{kind} {name}"] = covered.get(f"{kind} {name}", 0) + (lower <= 0 <= upper) / 400
    assert 0.92 <= covered["both 3"] <= 0.98 and 0.92 <= covered["both 1.0"] <= 0.99 and covered["both 10"] >= 0.92
    assert covered["images 1.0"] < 0.75
    assert covered["seeds 10"] < 0.88
