"""T13 and T14: how well maps find what answers hang on; what features hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.attribution import STEPS, Scores
from analysis.depths import DEPTHS, HEAD
from analysis.findings import Arm, BlockFindings
from analysis.frame import GAP, Frame, Raw, count, number


def attribution_frame(grid: str, blocks: Sequence[BlockFindings]) -> Frame | None:
    """T13: a line for every arm and method; None where there are no maps."""
    lines = [(found, arm, scores) for found in blocks for arm in found.arms for scores in arm.scores]
    if not lines:
        return None
    rows, raw = [], []
    for found, arm, scores in lines:
        alike = scores.likeness[np.isfinite(scores.likeness)]
        rows.append(
            (
                *_place(arm),
                scores.method,
                f"{scores.layer}, {scores.grid[0]} x {scores.grid[1]}",
                *(
                    _with_error(values)
                    for values in (
                        *(scores.deletion, scores.deletion_random, scores.deletion_untrained),
                        *(scores.insertion, scores.insertion_random, scores.insertion_untrained),
                    )
                ),
                number(float(alike.mean()), 2) if alike.size else GAP,
            )
        )
        raw.append(_score_values(found, arm, scores))
    runs = {arm.shown.run_id: arm.shown.seed for found in blocks for arm in found.arms if arm.shown is not None}
    seeds = sorted(set(runs.values()))
    columns = ("map", "random", "untrained")
    found_images = sorted({(one.num_scored, one.num_scored_right) for one in blocks})
    images = "; ".join(f"{num} ({right} of them right by all arms)" for num, right in found_images)
    return Frame(
        title=f"T13, grid {grid}: scores of attribution maps (exploratory)",
        notes=(
            f"exploratory; one run a cell (seed {', '.join(map(str, seeds))}), checkpoint after the last step; images "
            f"of a block: {images}, those right by all arms first, else in an order by hash",
            f"deletion: area under the probability of the true class while the blocks of a map are taken away, the "
            f"highest first, in at most {STEPS} equal steps: low is good. insertion: the same while they are put back: "
            "high is good. What is gone has the image's mean colour. Mean ± standard error over images",
            "random: the same blocks in random order; compare a map with its own random, since areas also hang on how "
            "sure an arm is",
            "untrained: the order of the map of the same network with random weights, judged by the trained one; "
            "likeness: rank correlation of the two maps, mean over images: a map that looks alike without training "
            "shows the image, not what was learnt",
        ),
        columns=("block", "arch", "aug", "method", "layer, blocks", *columns, *columns, "likeness"),
        groups=("",) * 5 + ("deletion",) * 3 + ("insertion",) * 3 + ("untrained",),
        left=5,
        narrow=("block", "arch", "aug", "method", *columns, "likeness"),
        rows=tuple(rows),
        raw=tuple(raw),
    )


def _score_values(found: BlockFindings, arm: Arm, scores: Scores) -> Raw:
    values: Raw = {
        "block": ", ".join(found.block),
        "run": arm.cell.row.label,
        "run_id": arm.shown.run_id if arm.shown is not None else "",
        "arch": arm.cell.arch,
        "aug": arm.cell.aug,
        "method": scores.method,
        "layer": scores.layer,
        "blocks_high": scores.grid[0],
        "blocks_wide": scores.grid[1],
        "num_images": len(scores.deletion),
    }
    for name in ("deletion", "insertion"):
        for control in ("", "_random", "_untrained"):
            areas: NDArray[np.float64] = getattr(scores, name + control)
            values[name + control] = float(areas.mean())
            values[f"{name}{control}_se"] = _error(areas)
    alike = scores.likeness[np.isfinite(scores.likeness)]
    values["likeness_untrained"] = float(alike.mean()) if alike.size else None
    return values


def representation_frame(grid: str, blocks: Sequence[BlockFindings], baseline: str | None) -> Frame | None:
    """T14: a line for every arm; None where there is none.

    Args:
        grid: its name.
        blocks: what was found.
        baseline: the augmentation that the others are compared with; None where the grid has none.
    """
    lines = [(found, i) for found in blocks for i in range(len(found.arms))]
    if not lines:
        return None
    cells = [_representation(found, i, baseline) for found, i in lines]
    numbers = sorted({len(found.sample_ids) for found in blocks})
    alike = sorted({found.num_alike for found in blocks})
    short = tuple(f"{depth}" for depth in DEPTHS)
    columns = ("block", "arch", "aug", "seeds", "features", *short, "separability", "to baseline", "of seeds")
    return Frame(
        title=f"T14, grid {grid}: what features hold (exploratory)",
        notes=(
            f"exploratory; features of {', '.join(map(count, numbers))} test images, checkpoint after the last step, "
            "mean over seeds; features and effective rank are bounded by images and dimensions, so compare within an "
            "architecture",
            "effective rank: exponential of the entropy of the singular values' shares, by depth (quarters of the "
            "stages or blocks, mean over positions; the head's input as it is)",
            "separability: share of the variance of the head's input between classes, corrected for their number",
            f"CKA of the head's input: debiased, linear, {', '.join(map(count, alike))} images, mean over pairs of "
            "runs of different seeds (of the same seed where there is one). To baseline: with the baseline of the same "
            "architecture; of seeds: between seeds of one cell, as high as the former could be expected",
        ),
        columns=columns,
        groups=("",) * 5 + ("effective rank",) * 5 + ("",) + ("CKA",) * 2,
        left=3,
        narrow=columns,
        rows=tuple(row for row, _ in cells),
        raw=tuple(raw for _, raw in cells),
    )


def _representation(found: BlockFindings, i: int, baseline: str | None) -> tuple[tuple[str, ...], Raw]:
    arm = found.arms[i]
    ranks = {depth: _mean([run.ranks.get(depth) for run in arm.runs]) for depth in DEPTHS}
    apart = _mean([run.separability for run in arm.runs])
    head = found.alike.get(HEAD)
    base = next(
        (
            k
            for k, other in enumerate(found.arms)
            if other.cell.arch == arm.cell.arch and other.cell.aug == baseline and k != i
        ),
        None,
    )
    to_base = _known(head, i, base)
    of_seeds = _known(head, i, i)
    row = (
        *_place(arm),
        str(len(arm.runs)),
        count(arm.runs[0].dims[HEAD]),
        *(number(ranks[depth], 1) for depth in DEPTHS),
        number(apart, 3),
        number(to_base, 2),
        number(of_seeds, 2),
    )
    raw: Raw = {
        "block": ", ".join(found.block),
        "run": arm.cell.row.label,
        "arch": arm.cell.arch,
        "aug": arm.cell.aug,
        "num_seeds": len(arm.runs),
        "num_images": len(found.sample_ids),
        "num_features": arm.runs[0].dims[HEAD],
        **{f"effective_rank {depth}": ranks[depth] for depth in DEPTHS},
        "separability": apart,
        "cka_to_baseline": to_base,
        "cka_of_seeds": of_seeds,
    }
    return row, raw


def _known(alike: NDArray[np.float64] | None, i: int, k: int | None) -> float | None:
    if alike is None or k is None or not np.isfinite(alike[i, k]):
        return None
    return float(alike[i, k])


def _place(arm: Arm) -> tuple[str, str, str]:
    return ", ".join(arm.cell.block) or GAP, arm.cell.arch, arm.cell.aug


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _error(values: NDArray[np.float64]) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _with_error(values: NDArray[np.float64]) -> str:
    error = _error(values)
    return number(float(values.mean())) + ("" if error is None else f" ± {number(error)}")
