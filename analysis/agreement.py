"""How far runs agree image by image: McNemar's test, error consistency, churn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.load import AnalysisError, ResultRow
from analysis.stats import mcnemar


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Of all pairs of runs, one of each row; of a row with itself, of two seeds."""

    kappa: float | None
    """Error consistency (Geirhos et al. 2020), mean over pairs: 1 is right and wrong on the same images, 0 as often
    together as chance would have it. None where there is no pair, or all runs are always right or always wrong."""
    churn: float | None
    """Share of images with another answer, mean over pairs."""
    pairs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Discordance:
    """Two runs on the same images."""

    seeds: tuple[int, int]
    only_one: int
    """Images that only the one has right."""
    only_other: int
    p: float
    """Exact, two-sided."""


def error_consistency(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """Cohen's kappa of being right or wrong, [N] bool each; None where chance leaves nothing to agree on."""
    first, second = float(one.mean()), float(other.mean())
    by_chance = first * second + (1 - first) * (1 - second)
    return None if by_chance == 1 else (float((one == other).mean()) - by_chance) / (1 - by_chance)


def discordance(row: ResultRow, other: ResultRow) -> Discordance:
    """McNemar's test of the first seed that both rows have, or of their first seeds.

    Raises:
        AnalysisError: a row has no run that is done, or the two were judged on different images.
    """
    _check(row, other)
    common = {run.seed for run in row.done} & {run.seed for run in other.done}
    first = next((run for run in row.done if run.seed in common), row.done[0])
    second = next((run for run in other.done if run.seed == first.seed), other.done[0])
    only_one, only_other, p = mcnemar(first.final.correct, second.final.correct)
    return Discordance(seeds=(first.seed, second.seed), only_one=only_one, only_other=only_other, p=p)


def agreement(row: ResultRow, other: ResultRow) -> Agreement:
    """Error consistency and churn between two rows, or within one.

    Raises:
        AnalysisError: a row has no run that is done, or the two were judged on different images.
    """
    _check(row, other)
    same = row is other
    kappas, churns = [], []
    for i, first in enumerate(row.done):
        for second in other.done[i + 1 :] if same else other.done:
            one, two = first.final.predictions, second.final.predictions
            kappas.append(error_consistency(one.correct, two.correct))
            churns.append(float((one.predicted != two.predicted).mean()))
    return Agreement(kappa=_mean([one for one in kappas if one is not None]), churn=_mean(churns), pairs=len(churns))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _check(row: ResultRow, other: ResultRow) -> None:
    if not row.done or not other.done:
        raise AnalysisError(f"{row.label} and {other.label}: not both done")
    if not np.array_equal(row.done[0].final.sample_ids, other.done[0].final.sample_ids):
        raise AnalysisError(f"{row.label} and {other.label} were judged on different images")
