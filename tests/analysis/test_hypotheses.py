"""Hypotheses: the study's own verdicts from its own counts, a design where everything holds, and what must not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from analysis.gates import Evidence
from analysis.hypotheses import MEDIAN, PUBLISHED, Finding, Judgement, Reading, judge
from analysis.load import AnalysisError, GridResults, ResultRow, SeedRun
from analysis.registration import registration
from analysis.verdicts import BlockVerdict as B
from analysis.verdicts import ClaimVerdict as C

KNOWN = registration()
STUDY = Reading(evaluation="best_on_test")
BLOCKS = {("cifar100", "false"): "CIFAR scratch", ("cifar100", "true"): "CIFAR pretrained"}
BLOCKS |= {("tiny-imagenet-200", "false"): "Tiny scratch", ("tiny-imagenet-200", "true"): "Tiny pretrained"}


@pytest.fixture(scope="module")
def study(published_results: GridResults, published_evidence: dict[str, Evidence]) -> Judgement:
    return judge(published_results, published_evidence, KNOWN, STUDY)


@pytest.fixture(scope="module")
def made(made_results: GridResults, made_evidence: dict[str, Evidence]) -> Judgement:
    return judge(made_results, made_evidence, KNOWN)


def by_block(judgement: Judgement, contrast_id: str) -> dict[str, Finding]:
    found = judgement.of(contrast_id)
    return {BLOCKS.get(tuple(one.block.values()), " ".join(one.block.values())): one for one in found}


# points: estimate, interval, tipping SD; of section 2.6 of the design of the analysis
WORKED = {
    ("gamma_cutmix", "CIFAR scratch"): (16.82, (15.04, 18.60), 4.3),
    ("gamma_cutmix", "CIFAR pretrained"): (-5.91, (-7.80, -4.02), 1.4),
    ("gamma_cutmix", "Tiny scratch"): (-12.75, (-14.34, -11.16), 3.2),
    ("gamma_cutmix", "Tiny pretrained"): (-23.45, (-25.37, -21.53), 6.0),
    ("gamma_mixup", "CIFAR scratch"): (-4.83, (-6.67, -2.99), 1.1),
    ("gamma_mixup", "CIFAR pretrained"): (3.52, (1.62, 5.42), 0.8),
    ("gamma_mixup", "Tiny scratch"): (32.81, None, 8.4),
    ("gamma_mixup", "Tiny pretrained"): (55.80, None, 14.2),
    ("kappa", "CIFAR scratch"): (11.99, None, None),
    ("kappa", "CIFAR pretrained"): (-2.39, None, None),
    ("kappa", "Tiny scratch"): (20.06, None, None),
    ("kappa", "Tiny pretrained"): (32.35, None, None),
}


def test_published_values_give_the_worked_example(
    published_results: GridResults, published_evidence: dict[str, Evidence]
) -> None:
    """From the published percentages alone, to every digit that the example prints."""
    found = judge(published_results, published_evidence, KNOWN, Reading(evaluation=PUBLISHED))
    for (contrast_id, block), (estimate, interval, tipping) in WORKED.items():
        result = by_block(found, contrast_id)[block].result
        assert result is not None and result.single_seed
        assert 100 * result.estimate == pytest.approx(estimate, abs=1e-9)
        if interval is not None:
            assert tuple(100 * bound for bound in result.interval) == pytest.approx(interval, abs=0.0051)
        if tipping is not None and result.tipping_sd is not None:
            assert 100 * result.tipping_sd == pytest.approx(tipping, abs=0.051)
    mixup = by_block(found, "delta_mixup")["cifar100"].result
    assert mixup is not None
    assert 100 * mixup.estimate == pytest.approx(8.35) and 100 * mixup.error == pytest.approx(1.35, abs=5e-3)
    assert tuple(100 * bound for bound in mixup.interval_at(0.9)) == pytest.approx((6.13, 10.57), abs=0.0051)
    fragile = by_block(found, "gamma_mixup")["CIFAR pretrained"].result
    assert fragile is not None and fragile.tipping_sd is not None
    assert 100 * fragile.tipping_sd == pytest.approx(0.76, abs=0.0051)


def test_published_counts_through_the_store_give_the_studys_verdicts(study: Judgement) -> None:
    assert study.claims() == {"H1": C.MIXED, "H2": C.MIXED, "Main": C.MIXED, "H3": C.CONTRADICTED}
    verdicts = {
        name: [one.verdict for one in study.of(name)]
        for name in ("gamma_cutmix", "gamma_mixup", "delta_cutmix", "delta_mixup")
    }
    yes, no, gone, other = B.SUPPORTED_ONE_SEED, B.CONTRADICTED_ONE_SEED, B.NOT_ESTIMABLE, B.DIFFERENT_ONE_SEED
    assert verdicts == {
        "gamma_cutmix": [yes, no, no, no],
        "gamma_mixup": [no, yes, gone, gone],
        "delta_cutmix": [other, other],
        "delta_mixup": [other, gone],
    }
    for (contrast_id, block), (estimate, interval, _) in WORKED.items():
        result = by_block(study, contrast_id)[block].result
        if result is not None:
            assert 100 * result.estimate == pytest.approx(estimate, abs=1e-9)
            if interval is not None:  # of the answers themselves, so near the independent one
                assert tuple(100 * bound for bound in result.interval) == pytest.approx(interval, abs=0.1)
    odds = by_block(study, "gamma_cutmix")["CIFAR scratch"].scales
    assert odds is not None and odds.log_odds is not None and odds.crosses and not odds.removable
    assert odds.log_odds.estimate == pytest.approx(0.780, abs=5e-4)
    assert odds.log_odds.error == pytest.approx(0.045, abs=1e-3)
    ordinal = by_block(study, "gamma_cutmix")["CIFAR pretrained"].scales
    assert ordinal is not None and not ordinal.crosses and ordinal.removable  # both gain, the ResNet leads in both arms
    assert [one.reverses for one in study.of("delta_cutmix")] == [True, False]
    assert [one.reverses for one in study.of("delta_mixup")] == [True, None]


def test_gates_name_the_broken_runs_and_the_mixed_code(study: Judgement) -> None:
    found = by_block(study, "gamma_mixup")
    assert found["Tiny scratch"].reasons == ("Exp-5: collapsed (seed 223)",)
    assert found["Tiny pretrained"].reasons == ("Exp-13: collapsed (seed 223)",)
    assert by_block(study, "gamma_cutmix")["Tiny scratch"].reasons == ()  # CutMix's contrast uses no MixUp cell
    assert by_block(study, "gamma_cutmix")["CIFAR scratch"].marks == ("trained by several versions of the code: 2",)
    assert by_block(study, "gamma_mixup")["CIFAR scratch"].marks == ()


def test_other_readings_of_the_study(published_results: GridResults, published_evidence: dict[str, Evidence]) -> None:
    def estimate(reading: Reading, contrast_id: str, block: str) -> float:
        found = judge(published_results, published_evidence, KNOWN, reading, with_scales=False)
        result = by_block(found, contrast_id)[block].result
        assert result is not None
        return round(100 * result.estimate, 2)

    at = ("gamma_mixup", "CIFAR scratch")
    assert [estimate(Reading(evaluation=name), *at) for name in ("best_on_test", "final", MEDIAN)] == [
        -4.83,
        -3.44,
        -3.17,
    ]
    ungated = Reading(evaluation="best_on_test", health=False)
    assert estimate(ungated, "gamma_mixup", "Tiny scratch") == 32.81
    assert estimate(ungated, "delta_mixup", "tiny-imagenet-200") == 22.99
    odds = judge(published_results, published_evidence, KNOWN, replace(STUDY, scale="log_odds"), with_scales=False)
    result = by_block(odds, *at[:1])[at[1]].result
    assert result is not None and result.estimate == pytest.approx(-0.146, abs=5e-4)
    assert result.estimate / result.error == pytest.approx(-3.4, abs=0.1)


def test_where_all_holds_all_is_supported(made: Judgement) -> None:
    assert made.claims() == {"H1": C.SUPPORTED, "H2": C.SUPPORTED, "Main": C.SUPPORTED, "H3": C.SUPPORTED}
    assert {one.verdict for one in made.of("gamma_cutmix")} == {B.SUPPORTED}
    assert {one.verdict for one in made.of("delta_cutmix")} == {B.EQUIVALENT}
    assert [one.block for one in made.of("gamma_cutmix")] == [{"pretrained": "false"}, {"pretrained": "true"}]
    assert [one.block for one in made.of("delta_cutmix")] == [{}]
    for one in made.of("kappa"):
        assert one.result is not None and 100 * one.result.estimate == pytest.approx(8, abs=0.8)
        assert set(one.seeds.values()) == {3} and one.num_images == 4000 and not one.single_seed


Changed = Callable[[ResultRow, SeedRun], SeedRun]


def with_runs(results: GridResults, change: Changed) -> GridResults:
    rows = tuple(replace(row, runs=tuple(change(row, run) for run in row.runs)) for row in results.rows)
    return replace(results, rows=rows)


def answering(run: SeedRun, correct: np.ndarray, sample_ids: np.ndarray | None = None) -> SeedRun:
    own = run.evaluations["final"]
    ids = own.sample_ids if sample_ids is None else sample_ids
    stand_in = SimpleNamespace(correct=correct, sample_ids=ids, metrics={**own.metrics, "top1": float(correct.mean())})
    return replace(run, evaluations={"final": stand_in})


def numbers(judgement: Judgement) -> list[tuple[object, ...]]:
    return [
        (one.spec.id, one.verdict, *(round(value, 12) for value in (one.result.estimate, *one.result.interval)))
        for one in judgement.findings
        if one.result is not None
    ]


def test_order_and_names_do_not_matter(
    made: Judgement, made_results: GridResults, made_evidence: dict[str, Evidence]
) -> None:
    order = np.random.default_rng(1).permutation(4000)
    shuffled = with_runs(made_results, lambda _, run: answering(run, run.evaluations["final"].correct[order]))
    renamed = with_runs(made_results, lambda _, run: replace(run, seed=1000 - run.seed))
    turned = replace(made_results, rows=tuple(replace(row, runs=row.runs[::-1]) for row in made_results.rows))
    for other in (shuffled, renamed, turned):
        assert numbers(judge(other, made_evidence, KNOWN)) == numbers(made)
    backwards = replace(made_results, rows=made_results.rows[::-1])
    assert sorted(numbers(judge(backwards, made_evidence, KNOWN)), key=str) == sorted(numbers(made), key=str)


def test_swapped_architectures_flip_the_signs(
    made: Judgement, made_results: GridResults, made_evidence: dict[str, Evidence]
) -> None:
    other = {"small_resnet": "small_vit", "small_vit": "small_resnet"}
    rows = tuple(replace(row, axes={**row.axes, "model": other[row.axes["model"]]}) for row in made_results.rows)
    found = judge(replace(made_results, rows=rows), made_evidence, KNOWN)
    for name in ("gamma_cutmix", "gamma_mixup", "kappa"):
        for one, mirrored in zip(made.of(name), found.of(name), strict=True):
            assert one.result is not None and mirrored.result is not None
            assert mirrored.result.estimate == pytest.approx(-one.result.estimate, abs=1e-12)
            assert mirrored.result.error == pytest.approx(one.result.error, rel=1e-9)
            assert mirrored.verdict is B.CONTRADICTED
    assert found.claims()["H1"] is C.CONTRADICTED


def test_a_gain_of_all_arms_cancels(
    made: Judgement, made_results: GridResults, made_evidence: dict[str, Evidence]
) -> None:
    """400 further images that every run with augmentation gets right and no other."""

    def gained(row: ResultRow, run: SeedRun) -> SeedRun:
        more = np.full(400, row.axes["mix"] != "none")
        return answering(run, np.concatenate([run.evaluations["final"].correct, more]), np.arange(4400))

    found = judge(with_runs(made_results, gained), made_evidence, KNOWN)
    for one, other in zip(made.findings, found.findings, strict=True):
        assert one.result is not None and other.result is not None
        assert other.result.estimate == pytest.approx(one.result.estimate * 4000 / 4400, abs=1e-12)


def test_seeds_counted_twice_are_refused(made_results: GridResults, made_evidence: dict[str, Evidence]) -> None:
    def doubled(row: ResultRow, run: SeedRun) -> SeedRun:
        if row.label != "vit-default" or run.seed == 1:
            return run
        return replace(run, evaluations=row.runs[0].evaluations)

    found = judge(with_runs(made_results, doubled), made_evidence, KNOWN)
    scratch, pretrained = found.of("gamma_cutmix")
    assert scratch.verdict is B.NOT_ESTIMABLE and pretrained.verdict is B.SUPPORTED
    assert scratch.reasons == ("vit-default: seeds 1 and 2 have the same predictions, one run counted twice",)
    assert found.claims()["H1"] is C.INCONCLUSIVE


def test_missing_runs_and_other_images_are_named(made_results: GridResults, made_evidence: dict[str, Evidence]) -> None:
    def lost(row: ResultRow, run: SeedRun) -> SeedRun:
        if row.label == "vit-cutmix":
            return replace(run, status="failed", trial={}, evaluations={})
        if row.label == "vit-pre-mixup":
            return answering(run, run.evaluations["final"].correct, np.arange(1, 4001))
        return run

    found = judge(with_runs(made_results, lost), made_evidence, KNOWN)
    assert found.of("gamma_cutmix")[0].reasons == ("vit-cutmix: failed",)
    assert found.of("gamma_mixup")[1].reasons == (
        "vit-pre-mixup and vit-pre-default were judged on different test images",
    )
    assert found.of("gamma_mixup")[0].verdict is B.SUPPORTED
    fewer = replace(made_results, rows=tuple(row for row in made_results.rows if row.label != "vit-cutmix"))
    assert judge(fewer, made_evidence, KNOWN).of("gamma_cutmix")[0].reasons == ("the grid has no row for V.C",)


def test_one_seed_left_out(made: Judgement, made_results: GridResults, made_evidence: dict[str, Evidence]) -> None:
    found = judge(made_results, made_evidence, KNOWN, Reading(evaluation="final", without_seed=2), with_scales=False)
    assert {count for one in found.findings for count in one.seeds.values()} == {2}
    assert numbers(found) != numbers(made)


def test_what_cannot_be_tested_still_counts_in_its_family(
    study: Judgement, published_results: GridResults, published_evidence: dict[str, Evidence]
) -> None:
    """The smallest p-value of a family of eight is multiplied by eight though two cannot be tested."""
    found = [one for one in study.findings if one.spec.family == "F1"]
    tested = [one for one in found if one.p is not None and one.p_holm is not None]
    assert len(found) == 8 and len(tested) == 6
    smallest = min(tested, key=lambda one: float(one.p or 0))
    assert smallest.p is not None and smallest.p_holm == pytest.approx(8 * smallest.p, rel=1e-9, abs=0)


def test_a_grid_without_the_parts_is_told_so(made_results: GridResults, made_evidence: dict[str, Evidence]) -> None:
    rows = tuple(row for row in made_results.rows if row.axes["model"] == "small_vit")
    with pytest.raises(AnalysisError, match=r"grid demo: has the parts of no registered design \(paper, demo\)"):
        judge(replace(made_results, rows=rows), made_evidence, KNOWN)
