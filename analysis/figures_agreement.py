"""F11: whether two cells fail on the same images more often than their accuracies alone would make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.agreement import agreement as consistency
from analysis.figure_inputs import Cell, Inputs, MissingInputs, seeds_and_images
from analysis.frame import number
from analysis.plotting import SEQUENTIAL, SMALL, Page, add_caption, new_figure, shown, slug

WRITTEN = 14
"""Up to so many cells the numbers stand in the squares."""
LEAST_SCALE = 0.5
"""Where the shades end at least, so that what is next to nothing looks so."""


def agreement(inputs: Inputs) -> list[Page]:
    """A page a set of test images: cells by cells, on the diagonal the seeds of a cell with one another."""
    groups: dict[bytes, list[Cell]] = {}
    for cell in inputs.cells:
        if cell.runs:
            found = inputs.predictions(cell)
            key = f"{cell.dataset} {cell.runs[0].trial['content_sha256']} ".encode() + found.sample_ids.tobytes()
            groups.setdefault(key, []).append(cell)
    several = [cells for cells in groups.values() if sum(len(cell.runs) for cell in cells) > 1]
    if not several:
        raise MissingInputs("no two runs of this grid that are done were judged on the same images")
    named = [cells[0].dataset for cells in several]
    names = [f"F11-{slug(name)}" if len(set(named)) == len(named) else f"F11-{i}" for i, name in enumerate(named, 1)]
    return [
        _page(inputs, cells, "F11" if len(several) == 1 else name) for cells, name in zip(several, names, strict=True)
    ]


def _kappa(one: Cell, other: Cell) -> float:
    """Mean over pairs of seeds; not a number where there is none, or where chance leaves nothing to agree on."""
    found = consistency(one.row, other.row).kappa
    return float("nan") if found is None else found


def _page(inputs: Inputs, cells: Sequence[Cell], name: str) -> Page:
    num = len(cells)
    kappa = np.array([[_kappa(one, other) for other in cells] for one in cells])
    shared = {part for part in cells[0].block if all(part in cell.block for cell in cells)}
    labels = [
        ", ".join(shown(part, 20) for part in (*(p for p in cell.block if p not in shared), cell.arch, cell.aug))
        for cell in cells
    ]
    figure = new_figure(min(max(2.2, 0.9 + 0.26 * num), 6.5))
    axes = figure.subplots()
    high = max(float(np.nanmax(kappa, initial=0.0)), LEAST_SCALE)
    image = axes.imshow(kappa, cmap=SEQUENTIAL, vmin=0, vmax=high, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    if num <= 40:
        axes.set_yticks(range(num), labels, fontsize=SMALL)
        axes.set_xticks(range(num), [str(i + 1) for i in range(num)], fontsize=SMALL)
        axes.set_yticklabels([f"{label}  {i}" for i, label in enumerate(labels, 1)])
    if num <= WRITTEN:
        for i, j in np.argwhere(np.isfinite(kappa)).tolist():
            dark = kappa[i, j] > 0.6 * high
            axes.text(
                j,
                i,
                number(float(kappa[i, j]), 2),
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if dark else "black",
            )
    colours = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01)
    colours.set_label("error consistency κ", fontsize=7)
    colours.ax.tick_params(labelsize=SMALL)
    gaps = any(len(cell.runs) < 2 for cell in cells)
    caption = (
        f"{', '.join(sorted(shared)) or cells[0].dataset}: Cohen's κ of two runs' being right on the same images, mean "
        "over pairs of seeds: 0 is chance at their accuracies, 1 the same errors. On the diagonal two seeds of one "
        f"cell, the most that another can be expected to reach{' (blank with one seed)' if gaps else ''}. "
        f"{seeds_and_images(cells)}"
    )
    add_caption(figure, caption)
    numbers: list[dict[str, Any]] = [
        {"one": cells[i].row.label, "other": cells[j].row.label, "kappa": float(kappa[i, j])}
        for i in range(num)
        for j in range(i, num)
    ]
    apart = [(kappa[i, j], i, j) for i in range(num) for j in range(i + 1, num) if np.isfinite(kappa[i, j])]
    alt = f"Error consistency between {num} cells."
    if apart:
        most, i, j = max(apart)
        pair = f"{labels[i]} and {labels[j]}, κ = {number(float(most), 2)}"
        alt = f"Error consistency between {num} cells; the most alike: {pair}."
    run_ids = tuple(run.run_id for cell in cells for run in cell.runs)
    return Page(
        name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=("predictions",)
    )
