"""F4: learning curves. One panel a block and architecture, one line an augmentation, a band over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import stats

from analysis.figure_inputs import Cell, Inputs, MissingInputs, epochs_of, seeds_of, told_marks, value_range
from analysis.plotting import Page, add_caption, legend, new_figure, shown

PANELS_PER_ROW, PANELS_PER_PAGE = 4, 16
FEW_SEEDS = 5
"""From as many seeds on the band is an interval of the mean, before it is the range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Where the panels of a page stand."""

    places: Sequence[Sequence[_Place | None]]
    """By row and column."""
    as_design: bool
    """Architectures down and blocks across; else one after another."""


_Place = tuple[tuple[str, ...], str]
"""A block and an architecture: one panel."""


def learning_curves(inputs: Inputs) -> list[Page]:
    """Held-out accuracy by epoch; clean training accuracy, where it was measured, as a thin line."""
    if not any(cell.runs for cell in inputs.cells):
        raise MissingInputs("no run of this grid is done, so there are no rows of epochs")
    pages = _layouts(inputs)
    return [_page(inputs, layout, f"F4-{i}" if len(pages) > 1 else "F4") for i, layout in enumerate(pages, 1)]


def _layouts(inputs: Inputs) -> list[_Layout]:
    """A page for every few blocks; the panels that there are in rows where a panel is of one row of the grid, and where
    most places would be empty."""
    live = list(dict.fromkeys((cell.block, cell.arch) for cell in inputs.cells if cell.runs))
    by_design = []
    for blocks in inputs.block_pages():
        here = [cell for cell in inputs.cells if cell.block in blocks]
        archs = [arch for arch in inputs.palette.archs if any(cell.arch == arch for cell in here)]
        by_design.append(_Layout(places=[[(block, arch) for block in blocks] for arch in archs], as_design=True))
    places = sum(len(row) for layout in by_design for row in layout.places)
    if len(inputs.palette.augs) > 1 and 2 * len(live) >= places:
        return by_design
    return [
        _Layout(places=_in_rows(live[i : i + PANELS_PER_PAGE]), as_design=False)
        for i in range(0, len(live), PANELS_PER_PAGE)
    ]


def _in_rows(places: Sequence[_Place]) -> list[list[_Place | None]]:
    width = min(PANELS_PER_ROW, len(places))
    padded = [*places, *[None] * (-len(places) % width)]
    return [padded[i : i + width] for i in range(0, len(padded), width)]


def _page(inputs: Inputs, layout: _Layout, name: str) -> Page:
    palette = inputs.palette
    shape = len(layout.places), len(layout.places[0])
    figure = new_figure(0.5 + 1.6 * shape[0])
    shared = {"sharex": "col", "sharey": "row"} if layout.as_design else {"sharex": False, "sharey": True}
    panels = figure.subplots(*shape, squeeze=False, **shared)
    numbers: list[dict[str, Any]] = []
    cells: list[Cell] = []
    marks: list[str] = []
    for i, row in enumerate(layout.places):
        for j, place in enumerate(row):
            axes = panels[i, j]
            if place is None:
                axes.set_visible(False)
                continue
            own = [cell for aug in palette.augs if (cell := inputs.cell(*place, aug)) is not None]
            for cell in own:
                numbers += _draw(axes, inputs, cell)
                marks.append(inputs.mark(cell))
            cells += own
            if i == 0 or not layout.as_design:
                axes.set_title(_title(inputs, layout, place, own), fontsize=8 if layout.as_design else 7)
            if not axes.lines:
                axes.set_axis_off()
                axes.text(0.5, 0.5, "no run done", ha="center", va="center", transform=axes.transAxes, fontsize=7)
            if j == 0:
                axes.set_ylabel(f"{shown(place[1], 24)}\ntop-1 (%)" if layout.as_design else "top-1 (%)")
            if i == shape[0] - 1 or not layout.as_design:
                axes.set_xlabel("epoch")
                axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if not layout.as_design and len(places := {float(x) for line in axes.lines for x in line.get_xdata()}) == 1:
                axes.set_xticks(sorted(places))  # evaluated once: a scale around that would say nothing
    images = _images(inputs, cells)
    clean = any(row["split"] == "train" for row in numbers)
    thin = [Line2D([], [], color="#444444", linewidth=0.5, label="training images, not mixed")] if clean else []
    legend(figure, [*palette.aug_handles(), *thin])
    caption = (
        f"Top-1 accuracy by epoch on {' or '.join(images.values())}, mean over seeds. "
        f"{_band_text(cells)} "
        + (_chosen_by_test(inputs, cells) if "test" in images else "")
        + told_marks(marks)
        + f"{seeds_of(cells)}, {epochs_of(cells)}."
    )
    add_caption(figure, caption)
    best = max((row for row in numbers if row["split"] != "train"), key=lambda row: row["mean_top1"])
    alt = (
        f"Learning curves of {len(cells)} cells of grid {inputs.results.name}; the highest mean is "
        f"{100 * best['mean_top1']:.1f} % ({best['block']}, {best['arch']}, {best['aug']}, epoch {best['epoch']:g})."
    )
    run_ids = tuple(run.run_id for cell in cells for run in cell.runs)
    return Page(
        name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=("epochs",)
    )


def _title(inputs: Inputs, layout: _Layout, place: _Place, cells: Sequence[Cell]) -> str:
    """A panel's heading: its block, or where panels stand one after another the row's own name."""
    if layout.as_design:
        return "\n".join(shown(part, 22) for part in place[0]) or inputs.results.name
    if len(cells) == 1:
        return shown(cells[0].row.label, 28)
    return "\n".join(shown(part, 22) for part in (*place[0], place[1]))


def _draw(axes: Axes, inputs: Inputs, cell: Cell) -> list[dict[str, Any]]:
    """Draws a cell's lines; returns their points."""
    palette = inputs.palette
    colour, line = palette.colour(cell.arch), palette.line(cell.aug)
    numbers = []
    for split in (_held_out(inputs, cell), "train"):
        epochs, values = _by_seed(inputs, cell, split)
        if not len(epochs):
            continue
        mean = values.mean(axis=0)
        low, high = band(values)
        thin = split == "train"
        alone = "." if len(epochs) == 1 else "none"
        axes.plot(epochs, 100 * mean, color=colour, linestyle=line, linewidth=0.5 if thin else 1.2, marker=alone)
        if not thin and len(values) > 1:
            axes.fill_between(epochs, 100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
        if not thin and (mark := inputs.mark(cell)):
            face = "white" if mark == "†" else colour
            axes.plot(epochs[-1:], 100 * mean[-1:], marker=palette.marker(cell.arch), markersize=4, color=colour,
                      markerfacecolor=face, linestyle="none")  # fmt: skip
            axes.annotate(mark, (epochs[-1], 100 * mean[-1]), (4, -2), textcoords="offset points", color=colour)
        where = {**cell.place, "split": split}
        numbers += [
            {**where, "epoch": epoch, "num_seeds": len(values), "mean_top1": at, "low": lowest, "high": highest}
            for epoch, at, lowest, highest in zip(*(a.tolist() for a in (epochs, mean, low, high)), strict=True)
        ]
    return numbers


def _held_out(inputs: Inputs, cell: Cell) -> str:
    """`val` where the runs have a hold-out, else `test`."""
    splits = {row["split"] for run in cell.runs for row in inputs.curves[run.run_id]}
    return "val" if "val" in splits else "test"


def _chosen_by_test(inputs: Inputs, cells: Sequence[Cell]) -> str:
    """What the test images chose, and what not."""
    started = {
        spec.get("init.checkpoint")
        for spec in (inputs.evidence[run.run_id].spec for cell in cells for run in cell.runs)
    }
    if "best_on_test" in started:
        return "Test images chose no final checkpoint, but some of those that other rows start from. "
    return "Shown for the course of training alone: no checkpoint was chosen by it. "


def _images(inputs: Inputs, cells: Sequence[Cell]) -> dict[str, str]:
    """What the curves were measured on, in words by split."""
    trials: dict[str, set[int]] = {}
    for cell in cells:
        split = _held_out(inputs, cell)
        trials.setdefault(split, set()).update(run.trial[f"num_{split}"] for run in cell.runs)
    words = {"val": "images held out of the training set", "test": "test images"}
    return {split: f"{value_range(sorted(counts))} {words[split]}" for split, counts in sorted(trials.items())}


def _by_seed(inputs: Inputs, cell: Cell, split: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epochs [E] at which every seed was measured, and top-1 [K, E]."""
    courses = []
    for run in cell.runs:
        rows = [row for row in inputs.curves[run.run_id] if row["split"] == split and row["top1"] is not None]
        courses.append({row["epoch"]: row["top1"] for row in rows})
    shared = sorted(set.intersection(*(set(course) for course in courses)))
    return np.array(shared), np.array([[course[epoch] for epoch in shared] for course in courses])


def band(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper edge [E] of a band over seeds, from values [K, E]."""
    num = len(values)
    if num < FEW_SEEDS:
        return values.min(axis=0), values.max(axis=0)
    half = float(stats.t.ppf(0.975, num - 1)) * values.std(axis=0, ddof=1) / np.sqrt(num)
    return values.mean(axis=0) - half, values.mean(axis=0) + half


def _band_text(cells: Sequence[Cell]) -> str:
    counts = {len(cell.runs) for cell in cells}
    parts = []
    if any(1 < count < FEW_SEEDS for count in counts):
        parts.append("Band: lowest to highest seed.")
    if any(count >= FEW_SEEDS for count in counts):
        parts.append(f"Band with {FEW_SEEDS} seeds or more: 95 % t-interval of the mean over seeds.")
    return " ".join(parts) or "One seed, so no band."
