"""The made-up store that stands for the published study is what it says: its counts, and the real columns."""

from __future__ import annotations

import numpy as np
import pytest
from published_store import NUM_TEST, from_correct, published_answers, published_curves

from analysis.load import GridResults
from trainable import metrics


@pytest.mark.parametrize("num_classes", [3, 100])
def test_columns_are_those_that_logits_give(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    answers = from_correct(rng.random(500) < 0.6, num_classes, rng)
    logits = answers.logits()
    theirs = metrics.predictions(logits.astype(np.float32), answers.labels, np.arange(num_classes))
    ours = answers.predictions()
    assert ours.keys() == theirs.keys()
    for column, values in theirs.items():
        np.testing.assert_allclose(ours[column], values, rtol=2e-6, atol=1e-7, err_msg=column)


def test_counts_are_the_published_ones(published_results: GridResults) -> None:
    assert [len(row.done) for row in published_results.rows] == [1] * 24
    for row in published_results.rows:
        (run,) = row.done
        found = run.evaluations["best_on_test"]
        assert int(found.correct.sum()) == round(NUM_TEST * row.published["top1"])
        for metric in ("top1", "top5", "recall_macro"):
            assert found.metrics[metric] == pytest.approx(row.published[metric], abs=1e-12)
        for metric in ("precision_macro", "f1_macro"):
            assert found.metrics[metric] == pytest.approx(row.published[metric], abs=5e-5)
        logged = published_curves()[row.label]["test_top1"]
        assert run.evaluations["final"].metrics["top1"] == pytest.approx(logged[-1], abs=1e-12)
        assert max(logged) == pytest.approx(row.published["top1"])


def test_answers_differ_by_seed() -> None:
    published = {"top1": 0.3634, "top5": 0.6153, "precision_macro": 0.3614, "f1_macro": 0.3605}
    one, two = (published_answers(published, 200, np.random.default_rng(seed)) for seed in (0, 1))
    assert (one.preds == one.labels).sum() == (two.preds == two.labels).sum() == 3634
    assert (one.preds != two.preds).mean() > 0.3
