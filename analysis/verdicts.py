"""From tests to verdicts: pure functions and one table, so that no verdict is ever typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class BlockVerdict(StrEnum):
    """On one contrast in one block. A star: from one seed, so of these checkpoints alone."""

    SUPPORTED = "SUPPORTED"
    SUPPORTED_ONE_SEED = "SUPPORTED*"
    CONTRADICTED = "CONTRADICTED"
    CONTRADICTED_ONE_SEED = "CONTRADICTED*"
    INCONCLUSIVE = "INCONCLUSIVE"
    EQUIVALENT = "EQUIVALENT"
    DIFFERENT = "DIFFERENT"
    DIFFERENT_ONE_SEED = "DIFFERENT*"
    NEGLIGIBLE = "DIFFERENT BUT NEGLIGIBLE"
    UNDECIDED = "UNDECIDED"
    NOT_ESTIMABLE = "NOT ESTIMABLE"

    @property
    def side(self) -> str:
        """For the claim, against it, open, or missing."""
        return _SIDES.get(self, "open")


_SIDES = {
    BlockVerdict.SUPPORTED: "for",
    BlockVerdict.SUPPORTED_ONE_SEED: "for",
    BlockVerdict.EQUIVALENT: "for",
    BlockVerdict.NEGLIGIBLE: "for",
    BlockVerdict.CONTRADICTED: "against",
    BlockVerdict.CONTRADICTED_ONE_SEED: "against",
    BlockVerdict.DIFFERENT: "against",
    BlockVerdict.DIFFERENT_ONE_SEED: "against",
    BlockVerdict.NOT_ESTIMABLE: "missing",
}


class ClaimVerdict(StrEnum):
    """On a claim about all blocks."""

    SUPPORTED = "SUPPORTED"
    CONTRADICTED = "CONTRADICTED"
    MIXED = "MIXED"
    INCONCLUSIVE = "INCONCLUSIVE"


_CLAIMS = {
    # some for, some against, some open or missing
    (True, False, False): ClaimVerdict.SUPPORTED,
    (True, False, True): ClaimVerdict.INCONCLUSIVE,
    (True, True, False): ClaimVerdict.MIXED,
    (True, True, True): ClaimVerdict.MIXED,
    (False, True, False): ClaimVerdict.CONTRADICTED,
    (False, True, True): ClaimVerdict.CONTRADICTED,  # a claim about all blocks falls with one
    (False, False, True): ClaimVerdict.INCONCLUSIVE,
    (False, False, False): ClaimVerdict.INCONCLUSIVE,
}


def direction_verdict(
    estimate: float,
    interval: tuple[float, float],
    p_predicted: float,
    p_either: float,
    *,
    alpha: float,
    single_seed: bool,
) -> BlockVerdict:
    """On a contrast that was predicted to be above 0.

    Args:
        estimate: of the contrast.
        interval: 95 %.
        p_predicted: one-sided in the predicted direction, corrected within the family.
        p_either: two-sided, likewise.
        alpha: level.
        single_seed: whether some cell has one seed only.
    """
    if estimate > 0 and p_predicted < alpha:
        return BlockVerdict.SUPPORTED_ONE_SEED if single_seed else BlockVerdict.SUPPORTED
    if interval[1] < 0 and p_either < alpha:
        return BlockVerdict.CONTRADICTED_ONE_SEED if single_seed else BlockVerdict.CONTRADICTED
    return BlockVerdict.INCONCLUSIVE


def difference_verdict(
    interval95: tuple[float, float], interval90: tuple[float, float], margin: float | None, *, single_seed: bool
) -> BlockVerdict:
    """On a contrast that was predicted to be about 0. One seed never shows equivalence.

    Args:
        interval95: 95 %, or of whatever level is tested at.
        interval90: 90 %, of the two one-sided tests.
        margin: of equivalence; None where the scale has none.
        single_seed: whether some cell has one seed only.
    """
    differs = interval95[0] > 0 or interval95[1] < 0
    within = margin is not None and -margin < interval90[0] and interval90[1] < margin
    if within:
        if single_seed:
            return BlockVerdict.UNDECIDED
        return BlockVerdict.NEGLIGIBLE if differs else BlockVerdict.EQUIVALENT
    if differs:
        return BlockVerdict.DIFFERENT_ONE_SEED if single_seed else BlockVerdict.DIFFERENT
    return BlockVerdict.UNDECIDED


def claim_verdict(verdicts: Sequence[BlockVerdict]) -> ClaimVerdict:
    """On a claim from the verdicts on all its blocks. It is supported only where every block supports it."""
    sides = {verdict.side for verdict in verdicts}
    return _CLAIMS["for" in sides, "against" in sides, bool(sides & {"open", "missing"})]
