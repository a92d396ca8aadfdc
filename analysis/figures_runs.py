"""F15 and F16: which runs of the grid there are, and what they cost for what they reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from analysis.figure_inputs import Cell, Inputs, MissingInputs, seeds_and_images, told_marks
from analysis.load import ResultRow, SeedRun
from analysis.plotting import SMALL, WIDTH, Page, add_caption, legend, new_figure, shown, text_width

ROWS_PER_PAGE = 45
SEEDS_PER_PAGE = 40
UNITS = ((1.0, "hours"), (60.0, "minutes"), (3600.0, "seconds"))
STATES: dict[str, dict[str, Any]] = {
    "done": {"marker": "s", "color": "#444444"},
    "unhealthy": {"marker": "s", "color": "#444444", "markerfacecolor": "white"},
    "failed": {"marker": "X", "color": "#B00000"},
    "blocked": {"marker": "^", "color": "#B00000", "markerfacecolor": "white"},
    "unfinished": {"marker": "o", "color": "#444444", "markerfacecolor": "white"},
    "not run": {"marker": ".", "color": "#BBBBBB"},
}
"""Looks of a run's states; unhealthy: done, but it failed a health rule."""


def completeness(inputs: Inputs) -> list[Page]:
    """F15: rows by seeds, a mark a run."""
    rows = inputs.results.rows
    seeds = sorted({run.seed for row in rows for run in row.runs})
    if not seeds:
        raise MissingInputs("no run of this grid was ever planned")
    parts = [
        (rows[i : i + ROWS_PER_PAGE], seeds[k : k + SEEDS_PER_PAGE])
        for i in range(0, len(rows), ROWS_PER_PAGE)
        for k in range(0, len(seeds), SEEDS_PER_PAGE)
    ]
    return [_grid(inputs, *part, f"F15-{i}" if len(parts) > 1 else "F15") for i, part in enumerate(parts, 1)]


def _grid(inputs: Inputs, rows: Sequence[ResultRow], seeds: Sequence[int], name: str) -> Page:
    labels = [
        f"{shown(row.label, 22)}: {', '.join(shown(inputs.say(*item), 22) for item in row.axes.items())}"
        + (" (parent)" if row.is_parent else "")
        for row in rows
    ]
    room = max(text_width(label, SMALL) for label in labels) / 72 + 0.3
    figure = new_figure(0.75 + 0.15 * len(rows), width=min(WIDTH, max(4.6, room + 0.2 * len(seeds))))
    axes = figure.subplots()
    numbers: list[dict[str, Any]] = []
    for y, row in enumerate(rows):
        for run in row.runs:
            if run.seed in seeds:
                state = _state(inputs, run)
                axes.plot([seeds.index(run.seed)], [y], markersize=5, linestyle="none", **STATES[state])
                numbers.append({"row": row.label, "seed": run.seed, "state": state, "reason": run.reason})
    axes.set_yticks(range(len(rows)), labels, fontsize=SMALL)
    axes.set_xticks(
        range(len(seeds)), [str(seed) for seed in seeds], fontsize=SMALL, rotation=90 if len(seeds) > 12 else 0
    )
    axes.set(xlim=(-0.6, len(seeds) - 0.4), ylim=(len(rows) - 0.4, -0.6), xlabel="seed")
    axes.tick_params(length=0)
    axes.grid(axis="y", visible=False)
    found = [state for state in STATES if any(row["state"] == state for row in numbers)]
    handles = [
        Line2D(
            [],
            [],
            markersize=5,
            linestyle="none",
            label=f"{state} †" if state == "unhealthy" else state,
            **STATES[state],
        )
        for state in found
    ]
    legend(figure, handles)
    counts = {state: sum(row["state"] == state for row in numbers) for state in found}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    planned = sum(not row.runs for row in rows)
    caption = (
        f"Runs of grid {inputs.results.name} by row and seed: {told}."
        + (f" {planned} rows were never selected; they stand empty." if planned else "")
        + (" † done, but its learning curve failed a health rule." if "unhealthy" in counts else "")
    )
    add_caption(figure, caption)
    run_ids = tuple(run.run_id for row in rows for run in row.done)
    alt = f"Completeness of grid {inputs.results.name}: {told}."
    return Page(
        name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=("trials",)
    )


def _state(inputs: Inputs, run: SeedRun) -> str:
    return "unhealthy" if run.run_id in inputs.failed else run.status


def cost(inputs: Inputs) -> list[Page]:
    """F16: accuracy by device time; an architecture's augmentations are joined to its baseline."""
    pages = inputs.block_pages()
    return [_cost(inputs, blocks, f"F16-{i}" if len(pages) > 1 else "F16") for i, blocks in enumerate(pages, 1)]


def _cost(inputs: Inputs, blocks: Sequence[tuple[str, ...]], name: str) -> Page:
    palette = inputs.palette
    cells = [cell for cell in inputs.cells if cell.block in blocks and cell.runs]
    hours = {cell.row.label: _hours(cell) for cell in cells}
    scale, unit = next((one for one in UNITS if max(hours.values()) * one[0] >= 1), UNITS[-1])
    top1 = {cell.row.label: float(np.mean([run.trial["final_top1"] for run in cell.runs])) for cell in cells}
    figure = new_figure(2.4)
    panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
    for axes, block in zip(panels, blocks, strict=True):
        for cell in (one for one in cells if one.block == block):
            x, y = scale * hours[cell.row.label], 100 * top1[cell.row.label]
            colour = palette.colour(cell.arch)
            base = inputs.cell(block, cell.arch, palette.augs[0])
            if base is not None and base is not cell and not (inputs.is_gated(base) or inputs.is_gated(cell)):
                start = scale * hours[base.row.label], 100 * top1[base.row.label]
                axes.plot([start[0], x], [start[1], y], color=colour, linewidth=0.9, linestyle=palette.line(cell.aug))
            axes.plot([x], [y], color=colour, marker=palette.marker(cell.arch), markersize=4, linestyle="none",
                      markerfacecolor="white" if inputs.is_gated(cell) else colour)  # fmt: skip
            if mark := inputs.mark(cell):
                axes.annotate(mark, (x, y), (4, -2), textcoords="offset points", color=colour)
        axes.set_title("\n".join(shown(part, 22) for part in block) or inputs.results.name)
        axes.set_xlabel(f"device {unit}")
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.15)
    panels[0].set_ylabel("top-1 (%)")
    legend(figure, [*palette.arch_handles(lines=False), *palette.aug_handles()[1:]])
    caption = (
        "Mean top-1 on the test images by the time that a run's training and evaluations took on its device (or its "
        "share of one), mean over seeds"
        + ("; lines lead from the baseline to the augmentation of that style. " if len(palette.augs) > 1 else ". ")
        + told_marks(inputs.mark(cell) for cell in cells)
        + seeds_and_images(cells)
    )
    add_caption(figure, caption)
    slow = max(cells, key=lambda cell: hours[cell.row.label])
    where = ", ".join((*slow.block, slow.arch, slow.aug))
    alt = (
        f"Accuracy by device time; the longest is {scale * hours[slow.row.label]:.2g} {unit} ({where}) at "
        f"{100 * top1[slow.row.label]:.1f} %."
    )
    numbers = [
        {**cell.place, "device_hours": hours[cell.row.label],
         "mean_top1": top1[cell.row.label], "num_seeds": len(cell.runs)}
        for cell in cells
    ]  # fmt: skip
    run_ids = tuple(run.run_id for cell in cells for run in cell.runs)
    return Page(
        name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=("trials",)
    )


def _hours(cell: Cell) -> float:
    return float(np.mean([run.trial["train_s"] + run.trial["evaluate_s"] for run in cell.runs])) / 3600
