"""Verdicts: every branch of the pure functions and the table of claims."""

from __future__ import annotations

import pytest

from analysis.verdicts import BlockVerdict, ClaimVerdict, claim_verdict, difference_verdict, direction_verdict

B, C = BlockVerdict, ClaimVerdict


@pytest.mark.parametrize(
    ("estimate", "interval", "p_predicted", "p_either", "single", "expected"),
    [
        (0.05, (0.03, 0.07), 0.001, 0.002, False, B.SUPPORTED),
        (0.05, (0.03, 0.07), 0.001, 0.002, True, B.SUPPORTED_ONE_SEED),
        (0.05, (0.03, 0.07), 0.06, 0.08, False, B.INCONCLUSIVE),  # lost to the correction
        (-0.05, (-0.07, -0.03), 1.0, 0.002, False, B.CONTRADICTED),
        (-0.05, (-0.07, -0.03), 1.0, 0.002, True, B.CONTRADICTED_ONE_SEED),
        (-0.05, (-0.07, -0.03), 1.0, 0.06, False, B.INCONCLUSIVE),
        (-0.01, (-0.03, 0.01), 0.9, 0.04, False, B.INCONCLUSIVE),  # its interval holds 0
        (0.01, (-0.01, 0.03), 0.2, 0.4, False, B.INCONCLUSIVE),
    ],
)
def test_direction(
    estimate: float,
    interval: tuple[float, float],
    p_predicted: float,
    p_either: float,
    single: bool,
    expected: BlockVerdict,
) -> None:
    found = direction_verdict(estimate, interval, p_predicted, p_either, alpha=0.05, single_seed=single)
    assert found is expected


@pytest.mark.parametrize(
    ("ninety_five", "ninety", "margin", "single", "expected"),
    [
        ((-0.02, 0.01), (-0.015, 0.005), 0.03, False, B.EQUIVALENT),
        ((-0.02, 0.01), (-0.015, 0.005), 0.03, True, B.UNDECIDED),  # one seed shows no equivalence
        ((0.01, 0.028), (0.012, 0.025), 0.03, False, B.NEGLIGIBLE),
        ((0.01, 0.028), (0.012, 0.025), 0.03, True, B.UNDECIDED),
        ((0.04, 0.08), (0.045, 0.075), 0.03, False, B.DIFFERENT),
        ((-0.08, -0.04), (-0.075, -0.045), 0.03, True, B.DIFFERENT_ONE_SEED),
        ((-0.05, 0.05), (-0.04, 0.04), 0.03, False, B.UNDECIDED),
        ((-0.02, 0.01), (-0.015, 0.005), None, False, B.UNDECIDED),  # a scale without a margin
        ((-0.02, 0.035), (-0.015, 0.03), 0.03, False, B.UNDECIDED),  # on the margin is not within
    ],
)
def test_difference(
    ninety_five: tuple[float, float],
    ninety: tuple[float, float],
    margin: float | None,
    single: bool,
    expected: BlockVerdict,
) -> None:
    assert difference_verdict(ninety_five, ninety, margin, single_seed=single) is expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([B.SUPPORTED] * 4, C.SUPPORTED),
        ([B.SUPPORTED_ONE_SEED] * 4, C.SUPPORTED),
        ([B.SUPPORTED] * 3 + [B.INCONCLUSIVE], C.INCONCLUSIVE),
        ([B.SUPPORTED] * 3 + [B.NOT_ESTIMABLE], C.INCONCLUSIVE),
        ([B.SUPPORTED, B.CONTRADICTED, B.CONTRADICTED, B.CONTRADICTED], C.MIXED),
        ([B.SUPPORTED_ONE_SEED, B.CONTRADICTED_ONE_SEED, B.NOT_ESTIMABLE, B.NOT_ESTIMABLE], C.MIXED),
        ([B.CONTRADICTED, B.INCONCLUSIVE], C.CONTRADICTED),
        ([B.DIFFERENT_ONE_SEED] * 3 + [B.NOT_ESTIMABLE], C.CONTRADICTED),
        ([B.EQUIVALENT, B.NEGLIGIBLE], C.SUPPORTED),
        ([B.EQUIVALENT, B.DIFFERENT], C.MIXED),
        ([B.UNDECIDED, B.EQUIVALENT], C.INCONCLUSIVE),
        ([B.NOT_ESTIMABLE] * 4, C.INCONCLUSIVE),
        ([], C.INCONCLUSIVE),
    ],
)
def test_claims(verdicts: list[BlockVerdict], expected: ClaimVerdict) -> None:
    assert claim_verdict(verdicts) is expected
