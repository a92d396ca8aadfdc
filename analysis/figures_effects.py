"""F1 and F5: accuracies by augmentation, whose lines cross where architectures answer differently; and simple gains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.figure_inputs import ASSUMED_RUN_SD, Cell, Inputs, MissingInputs, seeds_and_images, told_marks
from analysis.frame import points
from analysis.plotting import SMALL, Page, add_caption, legend, new_figure, shown
from analysis.stats import contrast


def interaction(inputs: Inputs) -> list[Page]:
    """F1: mean accuracy by augmentation, a line an architecture, a panel a block."""
    if len(inputs.palette.augs) == 1:
        raise MissingInputs(
            f"all rows have one augmentation ({inputs.palette.augs[0]}), so nothing can interact with it"
        )
    pages = inputs.block_pages()
    return [_interaction(inputs, blocks, f"F1-{i}" if len(pages) > 1 else "F1") for i, blocks in enumerate(pages, 1)]


def _interaction(inputs: Inputs, blocks: Sequence[tuple[str, ...]], name: str) -> Page:
    palette = inputs.palette
    figure = new_figure(2.5, width=max(3.3, 0.9 + 1.55 * len(blocks)))
    panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
    numbers: list[dict[str, Any]] = []
    cells: list[Cell] = []
    marks: list[str] = []
    broken = False
    shift = {arch: 0.26 * (i - (len(palette.archs) - 1) / 2) for i, arch in enumerate(palette.archs)}
    for axes, block in zip(panels, blocks, strict=True):
        for arch in palette.archs:
            colour, marker = palette.colour(arch), palette.marker(arch)
            line: list[float] = []
            for x, aug in enumerate(palette.augs):
                cell = inputs.cell(block, arch, aug)
                if cell is None:
                    line.append(math.nan)
                    continue
                cells.append(cell)
                row = _accuracy(inputs, cell)
                numbers.append(row)
                mark = inputs.mark(cell)
                marks.append(mark)
                hollow = mark == "†"
                line.append(math.nan if hollow else 100 * row["mean_top1"])
                at = x + shift[arch]
                mean, low, high = (100 * row[key] for key in ("mean_top1", "low", "high"))
                axes.plot([at, at], [low, high], color=colour, linewidth=1)
                face = "white" if hollow else colour
                axes.plot([at], [mean], color=colour, marker=marker, markersize=4.5, markerfacecolor=face)
                seeds = [100 * run.trial["final_top1"] for run in cell.runs]
                if len(seeds) > 1:
                    axes.plot(
                        [at] * len(seeds), seeds, color=colour, marker="_", markersize=4, linestyle="none", alpha=0.6
                    )
                if mark:
                    axes.annotate(mark, (at, mean), (5, -3), textcoords="offset points", color=colour)
            places = np.arange(len(line)) + shift[arch]
            known = np.isfinite(line)
            whole = bool(known.all())
            broken |= not whole and int(known.sum()) > 1
            axes.plot(
                places[known],
                np.array(line)[known],
                color=colour,
                linewidth=1.2,
                linestyle="-" if whole else (0, (3, 2)),
            )
        axes.set_title("\n".join(shown(part, 22) for part in block) or inputs.results.name)
        axes.set_xticks(range(len(palette.augs)), [shown(aug, 10) for aug in palette.augs])
        axes.set_xlim(-0.5, len(palette.augs) - 0.5)
        axes.grid(axis="x", visible=False)
    panels[0].set_ylabel("top-1 (%)")
    legend(figure, palette.arch_handles())
    caption = (
        "Mean top-1 accuracy on the test images by augmentation. Lines that are not parallel are an interaction; only "
        f"crossing ones are one on every scale. {interval_text(cells)} "
        + ("Small dashes: single seeds. " if any(len(cell.runs) > 1 for cell in cells) else "")
        + ("Dashed line: a point of it is missing or left out. " if broken else "")
        + told_marks(marks)
        + seeds_and_images(cells)
    )
    add_caption(figure, caption)
    best = max(numbers, key=lambda row: row["mean_top1"])
    alt = (
        f"Top-1 by augmentation, one line an architecture; the highest is {100 * best['mean_top1']:.1f} % "
        f"({best['block']}, {best['arch']}, {best['aug']})."
    )
    return _effect_page(name, figure, caption, alt, numbers, cells)


def _accuracy(inputs: Inputs, cell: Cell) -> dict[str, Any]:
    result = contrast({"cell": 1.0}, {"cell": inputs.predictions(cell).correct})
    low, high = (min(1.0, max(0.0, bound)) for bound in result.interval)
    row = cell.place
    row |= {"num_seeds": len(cell.runs), "mean_top1": result.estimate, "low": low, "high": high}
    return row | {f"seed_{run.seed}": run.trial["final_top1"] for run in cell.runs}


def gains(inputs: Inputs) -> list[Page]:
    """F5: what each augmentation gains over the baseline, seeds as single dots."""
    inputs.baseline()
    pages = inputs.block_pages()
    return [_gains(inputs, blocks, f"F5-{i}" if len(pages) > 1 else "F5") for i, blocks in enumerate(pages, 1)]


def _gains(inputs: Inputs, blocks: Sequence[tuple[str, ...]], name: str) -> Page:
    palette, base = inputs.palette, inputs.baseline()
    arms = [(arch, aug) for aug in palette.augs if aug != base for arch in palette.archs]
    figure = new_figure(0.9 + 0.36 * len(arms))
    panels = figure.subplots(1, len(blocks), sharex=True, sharey=True, squeeze=False)[0]
    numbers: list[dict[str, Any]] = []
    cells: list[Cell] = []
    single = False
    marks: list[str] = []
    for axes, block in zip(panels, blocks, strict=True):
        for y, (arch, aug) in enumerate(arms):
            cell, against = inputs.cell(block, arch, aug), inputs.cell(block, arch, base)
            if cell is None or against is None:
                continue
            row = _gain(inputs, cell, against)
            numbers.append(row)
            cells += [cell, against]
            mark = max(inputs.mark(cell), inputs.mark(against), key=("", "‡", "†").index)
            marks.append(mark)
            hollow = mark == "†"
            colour = palette.colour(arch)
            gain, low, high = (100 * row[key] for key in ("gain", "low", "high"))
            if row["assumed_low"] is not None:
                single = True
                axes.plot([100 * row["assumed_low"], 100 * row["assumed_high"]], [y, y], color=colour, linewidth=0.5)
            axes.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot([gain], [y], color=colour, marker=palette.marker(arch), markersize=4, linestyle="none",
                      markerfacecolor="white" if hollow else colour)  # fmt: skip
            if len(cell.runs) > 1:
                dots = [100 * (run.trial["final_top1"] - row["baseline_top1"]) for run in cell.runs]
                axes.plot(
                    dots, [y + 0.3] * len(dots), color=colour, marker=".", markersize=4, linestyle="none", alpha=0.8
                )
            told = f"{points(gain / 100, 1)} {mark}".rstrip()
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
            axes.annotate(told, (gain, y), (0, 5.5), textcoords="offset points", ha="center", fontsize=SMALL, bbox=box)
        axes.axvline(0, color="#444444", linewidth=0.8)
        axes.margins(x=0.16)
        axes.set_title("\n".join(shown(part, 22) for part in block) or inputs.results.name)
        axes.set_xlabel("gain (points)")
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
        if not any(row["block"] == ", ".join(block) for row in numbers):
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no pair done", ha="center", va="center", transform=axes.transAxes, fontsize=7)
    if not numbers:
        raise MissingInputs(f'no cell is done together with its baseline "{base}"')
    panels[0].set_yticks(range(len(arms)), [f"{shown(aug, 12)}, {shown(arch, 16)}" for arch, aug in arms])
    panels[0].set_ylim(len(arms) - 0.4, -0.6)
    caption = (
        f'Simple gains over "{base}" in top-1, percentage points. {interval_text(cells)} '
        + (
            f"Thin line: were the runs' standard deviation {100 * ASSUMED_RUN_SD:g} points (assumed). "
            if single
            else ""
        )
        + ("Dots: single seeds less the baseline's mean. " if any(len(cell.runs) > 1 for cell in cells) else "")
        + told_marks(marks)
        + seeds_and_images(cells)
    )
    add_caption(figure, caption)
    ends = [f"{points(row['gain'], 1)} points ({row['block']}, {row['arch']}, {row['aug']})" for row in _ends(numbers)]
    alt = f"Gains over {base}: from {ends[0]} to {ends[1]}."
    return _effect_page(name, figure, caption, alt, numbers, cells)


def _ends(numbers: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of the smallest and the largest gain."""
    return min(numbers, key=lambda row: row["gain"]), max(numbers, key=lambda row: row["gain"])


def _gain(inputs: Inputs, cell: Cell, against: Cell) -> dict[str, Any]:
    correct = {"arm": inputs.predictions(cell).correct, "baseline": inputs.predictions(against).correct}
    result = contrast({"arm": 1.0, "baseline": -1.0}, correct)
    row = cell.place
    row |= {"num_seeds": len(cell.runs), "gain": result.estimate, "low": result.interval[0], "high": result.interval[1]}
    row |= {"baseline_top1": float(correct["baseline"].mean()), "assumed_low": None, "assumed_high": None}
    if result.single_seed:
        runs = sum(1 / num for num in result.seeds.values())
        half = 1.96 * math.sqrt(result.parts["total"] + ASSUMED_RUN_SD**2 * runs)
        row |= {"assumed_low": result.estimate - half, "assumed_high": result.estimate + half}
    return row | {f"seed_{run.seed}": run.trial["final_top1"] for run in cell.runs}


def interval_text(cells: Sequence[Cell]) -> str:
    """What the bars of accuracies and gains are: a part of a caption."""
    if any(len(cell.runs) > 1 for cell in cells):
        return (
            "Bars: 95 % interval over images and seeds (two-way); one that does not show is narrower than its marker."
        )
    return (
        "Bars: 95 % interval over images, for these checkpoints, the variance over seeds being unknown; one that does "
        "not show is narrower than its marker."
    )


def _effect_page(
    name: str, figure: Any, caption: str, alt: str, numbers: list[dict[str, Any]], cells: Sequence[Cell]
) -> Page:
    run_ids = tuple(dict.fromkeys(run.run_id for cell in cells for run in cell.runs))
    tables = ("trials", "predictions")
    return Page(name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=tables)
