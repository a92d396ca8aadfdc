"""F13: how alike arms' features are by depth, and of how many dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from analysis.depths import DEPTHS, HEAD
from analysis.figure_inputs import Inputs
from analysis.figures_planes import plane_pages
from analysis.findings import BlockFindings
from analysis.frame import number
from analysis.plotting import SEQUENTIAL, SMALL, Page, add_caption, legend, new_figure, shown, slug

WRITTEN = 7
"""Up to so many arms the numbers stand in the squares."""
NAMED = 40
"""Up to so many arms are named."""


def representation_pages(inputs: Inputs, found: BlockFindings) -> list[Page]:
    """CKA and effective rank; the head's input in a plane."""
    return [*([_alike_page(inputs, found)] if found.alike else []), *plane_pages(inputs, found)]


def _names(found: BlockFindings) -> list[str]:
    return [f"{shown(arm.cell.arch, 14)} {shown(arm.cell.aug, 12)}" for arm in found.arms]


def _alike_page(inputs: Inputs, found: BlockFindings) -> Page:
    depths = [depth for depth in DEPTHS if depth in found.alike]
    lines = -(-(len(depths) + 1) // 3)
    figure = new_figure(lines * max(1.85, 0.5 + 0.115 * min(len(found.arms), NAMED)) + 0.9)
    panels = list(figure.subplots(lines, 3, squeeze=False).flat)
    for i, depth in enumerate(depths):
        image = _squares(panels[i], found, depth, named=i % 3 == 0)
    _ranks(inputs, found, panels[len(depths)])
    for axes in panels[len(depths) + 1 :]:
        axes.set_visible(False)
    colours = figure.colorbar(image, ax=panels[: len(depths)], location="bottom", shrink=0.4, pad=0.01, aspect=40)
    colours.set_label("debiased linear CKA", fontsize=7)
    colours.ax.tick_params(labelsize=SMALL)
    legend(figure, [*inputs.palette.arch_handles(), *inputs.palette.aug_handles()])
    caption = _caption(found)
    add_caption(figure, caption)
    text = slug(*found.block)
    return Page(
        name=f"F13-{text}" if text else "F13",
        figure=figure,
        caption=caption,
        alt=_alt(found, _names(found)),
        numbers=_numbers(found, depths),
        run_ids=tuple(run.run.run_id for arm in found.arms for run in arm.runs),
        tables=("predictions",),
        seed=found.seed,
    )


def _squares(axes: Axes, found: BlockFindings, depth: str, *, named: bool) -> AxesImage:
    """Arms by arms at one depth."""
    num, alike = len(found.arms), found.alike[depth]
    image = axes.imshow(alike, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_title(depth if depth == HEAD else f"depth {depth}", fontsize=7)
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=SMALL)
    labels = [str(k) for k in range(1, num + 1)]
    if named:
        labels = [f"{name}  {k}" for name, k in zip(_names(found), labels, strict=True)]
    axes.set_yticks(range(num) if num <= NAMED else [], labels if num <= NAMED else [])
    every = range(0, num, -(-num // 12))
    axes.set_xticks(every, [str(k + 1) for k in every])
    if num <= WRITTEN:
        for y, x in np.argwhere(np.isfinite(alike)).tolist():
            value = float(alike[y, x])
            ink = "white" if value > 0.55 else "black"
            axes.text(x, y, number(value, 2), ha="center", va="center", fontsize=SMALL, color=ink)
    return image


def _caption(found: BlockFindings) -> str:
    blank = any(len(arm.runs) < 2 for arm in found.arms)
    same, left_blank = (" (of the same seed where an arm has one)", " (blank with one seed)") if blank else ("", "")
    where = f"{', '.join(found.block)}: " if found.block else ""
    return (
        f"{where}likeness of arms' features on {found.num_alike:,} test images, mean over pairs of runs of different "
        f"seeds{same}; 1: the same up to rotation and scale, 0: nothing in common. On the diagonal two seeds of one "
        f"arm, the most that another arm can be expected to reach{left_blank}. Depths: quarters of a network's stages "
        "or blocks, mean over positions; the head's input as it is. Effective rank: mean over seeds, range as a thin "
        f"line, {len(found.sample_ids):,} images. {_seeds(found)}, checkpoint after the last step."
    )


def _numbers(found: BlockFindings, depths: Sequence[str]) -> list[dict[str, Any]]:
    alike: list[dict[str, Any]] = [
        {
            "quantity": "cka",
            "depth": depth,
            "one": one.cell.row.label,
            "other": other.cell.row.label,
            "value": float(found.alike[depth][i, j]),
        }
        for depth in depths
        for i, one in enumerate(found.arms)
        for j, other in enumerate(found.arms)
        if i <= j
    ]
    ranks: list[dict[str, Any]] = [
        {
            "quantity": "effective rank",
            "depth": depth,
            "one": arm.cell.row.label,
            "run_id": run.run.run_id,
            "seed": run.run.seed,
            "value": rank,
        }
        for arm in found.arms
        for run in arm.runs
        for depth, rank in run.ranks.items()
    ]
    return alike + ranks


def _ranks(inputs: Inputs, found: BlockFindings, axes: Axes) -> None:
    axes.set_title("effective rank", fontsize=7)
    for arm in found.arms:
        here = [depth for depth in DEPTHS if depth in arm.runs[0].ranks]
        values = np.array([[run.ranks[depth] for depth in here] for run in arm.runs])
        at = [DEPTHS.index(depth) for depth in here]
        colour = inputs.palette.colour(arm.cell.arch)
        axes.plot(
            at,
            values.mean(axis=0),
            color=colour,
            linestyle=inputs.palette.line(arm.cell.aug),
            marker=inputs.palette.marker(arm.cell.arch),
            markersize=3,
            linewidth=1,
        )
        if len(arm.runs) > 1:
            axes.vlines(at, values.min(axis=0), values.max(axis=0), color=colour, linewidth=0.6)
    axes.set_xticks(range(len(DEPTHS)), [*DEPTHS[:-1], "head"], fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.set_xlabel("depth", fontsize=7)
    axes.set_ylim(bottom=0)


def _alt(found: BlockFindings, names: Sequence[str]) -> str:
    matrix = found.alike.get(HEAD)
    apart = [] if matrix is None else [(matrix[i, j], i, j) for i in range(len(names)) for j in range(i)]
    known = [one for one in apart if np.isfinite(one[0])]
    text = f"Likeness by depth of the features of {len(names)} arms"
    if not known:
        return f"{text}."
    (low, i, j), (high, k, m) = min(known), max(known)
    if len(known) == 1:
        return f"{text}; at the head's input {names[j]} and {names[i]}, CKA {number(float(low), 2)}."
    return (
        f"{text}; at the head's input least alike are {names[j]} and {names[i]} (CKA {number(float(low), 2)}), most "
        f"alike {names[m]} and {names[k]} ({number(float(high), 2)})."
    )


def _seeds(found: BlockFindings) -> str:
    counts = sorted({len(arm.runs) for arm in found.arms})
    low, high = counts[0], counts[-1]
    return f"{low if low == high else f'{low} to {high}'} seed{'' if counts == [1] else 's'} an arm"
