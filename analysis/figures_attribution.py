"""F12: what each arm looks at on the same images, as blocks of the map's own size, never smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from analysis.depths import GRAD_CAM, GRADIENT, METHODS, ROLLOUT
from analysis.figure_inputs import Inputs
from analysis.findings import Arm, BlockFindings
from analysis.frame import number
from analysis.plotting import SEQUENTIAL, SMALL, WIDTH, Page, add_caption, new_figure, shown, slug

ARMS_PER_PAGE = 7
NAMES = {GRADIENT: "input gradient", GRAD_CAM: "Grad-CAM", ROLLOUT: "attention rollout"}
SCALE = 0.99
"""Quantile of all blocks where the shades end."""
SAID = {
    GRADIENT: "Input gradient: largest |derivative| of the true class's score over the colours of a pixel",
    GRAD_CAM: "Grad-CAM of the true class, at the deepest stage of at least 4 x 4 positions (of a network of tokens: "
    "before its last block); all white: nothing there speaks for it",
    ROLLOUT: "Attention rollout: what the readout gathers from each patch through all blocks, whatever the class",
}


def attribution_pages(inputs: Inputs, found: BlockFindings) -> list[Page]:
    """A page a method, of so many arms as are readable; empty where no arm has maps."""
    pages = []
    for method in METHODS:
        arms = [arm for arm in found.arms if method in arm.maps]
        groups = [arms[i : i + ARMS_PER_PAGE] for i in range(0, len(arms), ARMS_PER_PAGE)]
        for i, group in enumerate(groups, 1):
            part = (str(i),) if len(groups) > 1 else ()
            name = "-".join(("F12", slug(*found.block, method, *part)))
            pages.append(_page(inputs, found, method, group, name))
    return pages


def _page(inputs: Inputs, found: BlockFindings, method: str, arms: Sequence[Arm], name: str) -> Page:
    rows, columns = len(found.kinds), len(arms) + 1
    classes = inputs.class_names(arms[0].cell)
    side = min(0.8, (WIDTH - 1.45) / columns)
    figure = new_figure(rows * (side + 0.16) + 0.75, width=max(4.2, 1.45 + columns * side))
    figure.suptitle(shown(", ".join((*found.block, NAMES[method])), 60), fontsize=8)
    panels = figure.subplots(rows, columns, squeeze=False)
    values = np.concatenate([arm.maps[method].reshape(-1) for arm in arms])
    high = max(2.0, float(np.quantile(values, SCALE)))
    letters = max(6, int(side * 72 / 4.1) - 3)
    for i, line in enumerate(panels):
        line[0].imshow(found.pictures[i], interpolation="nearest")
        _plain(line[0])
        name_of = shown(classes[int(found.shown_labels[i])], 15)
        line[0].set_ylabel(f"{found.kinds[i]}\n{name_of}", fontsize=SMALL, rotation=0, ha="right", va="center")
        for axes, arm in zip(line[1:], arms, strict=True):
            image = _map(axes, arm.maps[method][i], high, found.pictures.shape[1])
            mark = "✓" if arm.answers[i] == found.shown_labels[i] else "✗"
            answer = shown(classes[int(arm.answers[i])], letters)
            axes.set_xlabel(f"{mark} {answer}", fontsize=SMALL, labelpad=1.5)
    panels[0, 0].set_title("image", fontsize=7)
    for axes, arm in zip(panels[0, 1:], arms, strict=True):
        title = f"{shown(arm.cell.arch, letters + 3)}\n{shown(arm.cell.aug, letters + 3)}"
        axes.set_title(title, fontsize=7, color=inputs.palette.colour(arm.cell.arch))
    colours = figure.colorbar(image, ax=list(panels.flat), location="right", shrink=0.6, pad=0.01, extend="max")
    colours.set_label("times an even spread", fontsize=7)
    colours.ax.tick_params(labelsize=SMALL)
    caption = _caption(found, method, arms)
    add_caption(figure, caption)
    return Page(
        name=name,
        figure=figure,
        caption=caption,
        alt=_alt(found, method, arms),
        numbers=_numbers(found, method, arms),
        run_ids=tuple(arm.shown.run_id for arm in arms if arm.shown is not None),
        tables=("predictions",),
        seed=found.seed,
    )


def _map(axes: Axes, values: NDArray[np.float64], high: float, side: int) -> AxesImage:
    """A map at the size of its image, each block as it is."""
    box = (-0.5, side - 0.5, side - 0.5, -0.5)
    image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=high, interpolation="nearest", extent=box)
    _plain(axes)
    return image


def _caption(found: BlockFindings, method: str, arms: Sequence[Arm]) -> str:
    grids = " and ".join(f"{h} x {w}" for h, w in sorted({arm.maps[method].shape[1:] for arm in arms}))
    seeds = ", ".join(map(str, sorted({arm.shown.seed for arm in arms if arm.shown is not None})))
    without = [f"{arm.cell.arch} {arm.cell.aug}" for arm in found.arms if method not in arm.maps]
    return (
        f"{SAID[method]}. Maps of {grids} blocks, not smoothed; 1 is an even spread, all on one scale that ends at the "
        f"99th percentile, not below 2. Below each map the arm's answer. Rows: images chosen by hash (seed "
        f"{found.seed}); flips are counted from the baseline of the same architecture. One run a cell (seed {seeds}), "
        "checkpoint after the last step. Whether maps find what the answer hangs on is in T13."
        + (f" Without such maps: {', '.join(without)}." if without else "")
    )


def _numbers(found: BlockFindings, method: str, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """A row of blocks a line."""
    return [
        {
            "row": arm.cell.row.label,
            "method": method,
            "sample_id": int(found.shown_ids[i]),
            "kind": kind,
            "label": int(found.shown_labels[i]),
            "answer": int(arm.answers[i]),
            "map_row": y,
            **{f"column_{x}": round(value, 4) for x, value in enumerate(line.tolist())},
        }
        for arm in arms
        for i, kind in enumerate(found.kinds)
        for y, line in enumerate(arm.maps[method][i])
    ]


def _plain(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.4)


def _alt(found: BlockFindings, method: str, arms: Sequence[Arm]) -> str:
    where = ", ".join(found.block)
    gains = {
        f"{arm.cell.arch} {arm.cell.aug}": float((one.deletion_random - one.deletion).mean())
        for arm in arms
        for one in arm.scores
        if one.method == method
    }
    text = f"Maps ({NAMES[method]}) of {len(arms)} arms on {len(found.kinds)} images{f' of {where}' if where else ''}"
    best = max(gains, key=lambda name: gains[name], default=None)
    if best is None or gains[best] <= 0:
        return f"{text}; in no arm does deleting by them cost more than deleting in random order."
    return (
        f"{text}; against a random order most is lost by deleting those of {best}: {number(gains[best])} of the area."
    )
