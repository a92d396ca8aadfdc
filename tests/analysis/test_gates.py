"""Gates: the two broken runs of the study and no other; cells that differ in more than they are compared on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from published_store import published_curves

from analysis.gates import Evidence, counted_twice, differences, failed_rules, grid_health, row_health
from analysis.load import GridResults
from analysis.registration import registration

RULES = registration().health


@pytest.fixture
def results(published_results: GridResults) -> GridResults:
    return published_results


@pytest.fixture
def evidence(published_evidence: dict[str, Evidence]) -> dict[str, Evidence]:
    return published_evidence


def test_of_the_24_published_curves_two_are_broken() -> None:
    failed = {label: failed_rules(curve["test_top1"], RULES) for label, curve in published_curves().items()}
    assert {label for label, codes in failed.items() if codes} == {"Exp-5", "Exp-13"}


def test_the_rule_needs_an_early_peak_and_a_deep_fall() -> None:
    assert failed_rules([0.1, 0.5] + [0.39] * 8, RULES) == ("collapsed",)
    assert failed_rules([0.1, 0.5] + [0.41] * 8, RULES) == ()
    assert failed_rules([0.1, 0.2, 0.5] + [0.1] * 7, RULES) == ()  # its peak lies in the third tenth
    assert failed_rules([0.5, 0.1, 0.1, 0.1], RULES) == ()  # too short to judge
    assert failed_rules([0.1] * 10, RULES) == ()


def test_evidence_is_what_the_store_holds(results: GridResults, evidence: dict[str, Evidence]) -> None:
    row = next(row for row in results.rows if row.label == "Exp-5")
    found = evidence[row.runs[0].run_id]
    assert found.test_curve == found.curve == tuple(published_curves()["Exp-5"]["test_top1"])
    assert found.spec["optim.lr"] == 1e-3 and found.spec["augment.mix"] == "mixup"
    assert grid_health(results, evidence, RULES).keys() == {
        row.runs[0].run_id for row in results.rows if row.label in ("Exp-5", "Exp-13")
    }


def test_one_broken_seed_gates_and_two_lift(results: GridResults, evidence: dict[str, Evidence]) -> None:
    row = next(row for row in results.rows if row.label == "Exp-5")
    (run,) = row.done
    other, third = (replace(run, seed=seed, run_id=f"{seed:016x}") for seed in (224, 225))
    good = replace(evidence[run.run_id], curve=(0.1, 0.2, 0.3, 0.4, 0.5))
    bad = evidence[run.run_id]
    one = row_health([run, other], {run.run_id: bad, other.run_id: good}, RULES)
    assert one.gated == ("collapsed",) and one.lifted == () and one.failed == {223: ("collapsed",)}
    two = row_health([run, other, third], {run.run_id: bad, other.run_id: good, third.run_id: bad}, RULES)
    assert two.gated == () and two.lifted == ("collapsed",)


def test_cells_may_differ_in_their_axes_alone(results: GridResults, evidence: dict[str, Evidence]) -> None:
    rule = registration().homogeneity
    rows = [row for row in results.rows if row.label in ("Control-1", "Exp-2", "Control-2", "Exp-4")]
    assert differences(rows, evidence, rule) == ([], ["trained by several versions of the code: 2"])
    assert differences(rows, evidence, replace(rule, code="refuse"))[0] == [
        "trained by several versions of the code: 2"
    ]
    run_id = rows[0].runs[0].run_id

    def with_spec(**changes: object) -> list[str]:
        spec = {**evidence[run_id].spec, **{key.replace("__", "."): value for key, value in changes.items()}}
        return differences(rows, {**evidence, run_id: replace(evidence[run_id], spec=spec)}, rule)[0]

    first, last = with_spec(optim__lr=0.1), with_spec(evaluate__every_epochs=2)
    assert first == ["Control-1 (seed 223) and Exp-2 (seed 223) differ in optim.lr: 0.1 and 0.001"]
    assert len(last) == 3 and "differ in evaluate.every_epochs: 2 and 1" in last[0]
    assert with_spec(seed=9) == []


def test_seeds_of_a_row_have_one_spec(results: GridResults, evidence: dict[str, Evidence]) -> None:
    row = results.rows[0]
    (run,) = row.done
    other = replace(run, seed=224, run_id="0" * 16)
    both = replace(row, runs=(run, other))
    spec = {**evidence[run.run_id].spec, "seed": 224, "budget.epochs": 60}
    known = {**evidence, other.run_id: replace(evidence[run.run_id], spec=spec)}
    reasons, _ = differences([both], known, registration().homogeneity)
    assert len(reasons) == 1 and "differ in budget.epochs" in reasons[0]
    assert counted_twice(both) == "Control-1: seeds 223 and 224 have the same predictions, one run counted twice"
    assert counted_twice(row) is None
