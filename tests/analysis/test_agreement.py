"""Agreement of runs and gains by class against statsmodels, scikit-learn and the contrast of a class's images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar
from synthetic import design, noisy, write_grid

from analysis.agreement import agreement, discordance, error_consistency
from analysis.load import AnalysisError, GridResults, load_results
from analysis.per_class import class_gains
from analysis.stats import contrast
from trainable.spec import RunSpec
from trainable.storage import Storage


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> GridResults:
    """Default, MixUp and CutMix of one model, three seeds, 300 images of 6 classes; MixUp helps by 15 points."""
    storage = Storage(str(tmp_path_factory.mktemp("agreement")))
    accuracy = {"none": 0.5, "mixup": 0.65, "cutmix": 0.5}
    specs = design(rows=3, seeds=3, datasets=("red",))
    write_grid(storage, specs, images=300, classes=6, logits=noisy(accuracy))
    return load_results(storage, "made")


def test_kappa_is_cohens_of_being_right() -> None:
    rng = np.random.default_rng(0)
    for one, other in ((rng.random(200) < 0.7, rng.random(200) < 0.4) for _ in range(5)):
        assert error_consistency(one, other) == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
    assert error_consistency(one, one) == 1
    assert error_consistency(np.ones(5, bool), np.ones(5, bool)) is None, "chance leaves nothing to agree on"


def test_mcnemar_is_of_the_first_seed_that_both_have(results: GridResults) -> None:
    default, mixup, _ = results.rows
    found = discordance(mixup, default)
    one, other = mixup.done[0].final.correct, default.done[0].final.correct
    table = [[(one & other).sum(), (one & ~other).sum()], [(~one & other).sum(), (~one & ~other).sum()]]
    assert found.p == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
    assert (found.seeds, found.only_one, found.only_other) == ((1, 1), table[0][1], table[1][0])


def test_agreement_is_over_all_pairs_of_runs(results: GridResults) -> None:
    default, mixup, _ = results.rows
    within, between = agreement(default, default), agreement(default, mixup)
    assert (within.pairs, between.pairs) == (3, 9)
    runs = [run.final.predictions for run in default.done]
    pairs = [(runs[0], runs[1]), (runs[0], runs[2]), (runs[1], runs[2])]
    assert within.churn == pytest.approx(np.mean([(a.predicted != b.predicted).mean() for a, b in pairs]))
    assert within.kappa == pytest.approx(np.mean([cohen_kappa_score(a.correct, b.correct) for a, b in pairs]))


def test_class_gains_are_the_contrasts_of_each_classs_images(results: GridResults) -> None:
    default, mixup, _ = results.rows
    found = class_gains(mixup, default)
    labels = mixup.done[0].final.predictions.labels
    for position, label in enumerate(found.classes):
        own = labels == label
        cells = {
            name: np.stack([run.final.correct[own] for run in row.done])
            for name, row in (("mixup", mixup), ("default", default))
        }
        expected = contrast({"mixup": 1.0, "default": -1.0}, cells)
        assert found.gain[position] == pytest.approx(expected.estimate, abs=1e-12)
        assert found.error[position] == pytest.approx(expected.error, abs=1e-12)
        assert found.baseline[position] == pytest.approx(cells["default"].mean())
    assert found.mean == pytest.approx(found.gain.mean()) and found.images.tolist() == [50] * 6


def test_gains_without_a_class_effect_are_drawn_to_their_mean(results: GridResults) -> None:
    default, mixup, _ = results.rows
    found = class_gains(mixup, default)
    assert np.abs(found.shrunken - found.mean).max() < np.abs(found.gain - found.mean).max() / 2
    assert (found.q > 0.05).all()


def test_a_class_that_is_harmed_is_found(tmp_path: Path) -> None:
    """MixUp loses class 0 and nothing else."""
    plain = noisy(0.9)

    def logits(spec: RunSpec, labels: np.ndarray) -> np.ndarray:
        found = plain(spec, labels)
        if spec.augment.mix == "mixup":
            found[labels == 0] = np.roll(found[labels == 0], 1, axis=1)
        return found

    storage = Storage(str(tmp_path))
    write_grid(storage, design(rows=2, seeds=3, datasets=("red",)), images=300, classes=6, logits=logits)
    default, mixup = load_results(storage, "made").rows
    found = class_gains(mixup, default)
    assert found.gain[0] < -0.7 and found.shrunken[0] < -0.6 and found.q[0] < 0.01


def test_rows_without_runs_are_an_error(results: GridResults) -> None:
    default, mixup, _ = results.rows
    for function in (agreement, discordance, class_gains):
        with pytest.raises(AnalysisError, match=f"{mixup.label} and {default.label}: not both done"):
            function(mixup, dataclasses.replace(default, runs=()))


def test_a_class_that_nobody_erred_on_has_not_the_surest_gain(tmp_path: Path) -> None:
    """Class 0 is always right in both rows: its gain of 0 has no error of its own, and is no effect for that."""
    plain = noisy({"none": 0.6, "mixup": 0.7})

    def logits(spec: RunSpec, labels: np.ndarray) -> np.ndarray:
        found = plain(spec, labels)
        found[labels == 0] = 9 * np.eye(found.shape[1], dtype=np.float32)[0]
        return found

    storage = Storage(str(tmp_path))
    write_grid(storage, design(rows=2, seeds=1, datasets=("red",)), images=300, classes=6, logits=logits)
    default, mixup = load_results(storage, "made").rows
    found = class_gains(mixup, default)
    assert found.gain[0] == 0 and found.gain[1:].mean() > 0.05
    assert found.error[0] == pytest.approx(np.sqrt((found.error[1:] ** 2).sum() / 6)) and found.q[0] > 0.05
