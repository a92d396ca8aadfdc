"""F8: what an augmentation gains class by class, beside what would be seen were all classes' true gains equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy import stats

from analysis.figure_inputs import Cell, Inputs, MissingInputs, seeds_and_images
from analysis.frame import points
from analysis.load import AnalysisError
from analysis.per_class import ClassGains, class_gains
from analysis.plotting import SMALL, Page, add_caption, new_figure, shown, slug

FALSE_DISCOVERIES = 0.05
NAMED = 4
"""Classes named on either side, of those that are no false discovery."""


def per_class(inputs: Inputs) -> list[Page]:
    """A page a block: rows are architectures, columns augmentations."""
    base = inputs.baseline()
    pages = []
    for block in inputs.blocks:
        rows = [
            (against, [cell for aug in inputs.palette.augs if aug != base and (cell := inputs.cell(block, arch, aug))])
            for arch in inputs.palette.archs
            if (against := inputs.cell(block, arch, base))
        ]
        rows = [(against, arms) for against, arms in rows if arms]
        if rows:
            pages.append(_page(inputs, block, rows))
    if not pages:
        raise MissingInputs(f'no cell is done together with its baseline "{base}"')
    return pages


def _page(inputs: Inputs, block: tuple[str, ...], rows: Sequence[tuple[Cell, list[Cell]]]) -> Page:
    columns = max(len(arms) for _, arms in rows)
    figure = new_figure(0.3 + 1.75 * len(rows))
    panels = figure.subplots(len(rows), columns, sharey="row", squeeze=False)
    numbers: list[dict[str, Any]] = []
    for line, (against, arms) in zip(panels, rows, strict=True):
        for axes in line[len(arms) :]:
            axes.set_visible(False)
        for axes, cell in zip(line, arms, strict=False):
            try:
                gains = class_gains(cell.row, against.row)
            except AnalysisError as error:
                raise MissingInputs(str(error)) from None
            names = inputs.class_names(cell)
            _draw(axes, gains, [names[one] for one in gains.classes.tolist()], inputs.palette.colour(cell.arch))
            axes.set_title(f"{shown(cell.arch, 24)}: {shown(cell.aug, 14)}, mean {points(gains.mean, 1)}", fontsize=7)
            numbers += [
                {**cell.place, "class": one, "name": names[one], "gain": gains.gain[i],
                 "error": gains.error[i], "shrunken": gains.shrunken[i], "q": gains.q[i]}
                for i, one in enumerate(gains.classes.tolist())
            ]  # fmt: skip
        line[0].set_ylabel("gain (points)")
    for axes in panels[-1]:
        axes.set_xlabel("classes, by gain")
    figure.align_ylabels(panels[:, 0])
    cells = [cell for against, arms in rows for cell in (against, *arms)]
    where = ", ".join(block) or inputs.results.name
    hits = [row for row in numbers if row["q"] < FALSE_DISCOVERIES]
    caption = (
        f'{where}: gain over "{inputs.baseline()}" by class (exploratory). Dots: classes. Dark line: shrunken towards '
        "the mean. Grey: were all true gains equal, 95 % of classes would lie in the band, and along the dashed line. "
        f"Named: classes that differ at a false discovery rate of {FALSE_DISCOVERIES:g}, {NAMED} a side at most. "
        f"{seeds_and_images(cells)}"
    )
    add_caption(figure, caption)
    alt = f"Gains by class, {where}: {len(hits)} of {len(numbers)} differ from the mean at q < {FALSE_DISCOVERIES:g}."
    run_ids = tuple(run.run_id for cell in cells for run in cell.runs)
    name = f"F8-{slug(*block)}" if block else "F8"
    return Page(
        name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=("predictions",)
    )


def _draw(axes: Axes, gains: ClassGains, names: Sequence[str], colour: str) -> None:
    order = np.argsort(gains.gain, kind="stable")
    x = np.arange(1, len(order) + 1)
    spread = 100 * float(np.sqrt((gains.error**2).mean()))
    centre = 100 * gains.mean
    axes.fill_between(x, centre - 1.96 * spread, centre + 1.96 * spread, color="#DDDDDD", linewidth=0)
    expected = centre + spread * stats.norm.ppf((x - 0.5) / len(x))
    axes.plot(x, expected, color="#888888", linestyle=(0, (3, 2)), linewidth=0.8)
    axes.plot(x, 100 * gains.gain[order], color=colour, marker=".", markersize=3, linestyle="none")
    axes.plot(x, 100 * np.sort(gains.shrunken), color="#222222", linewidth=0.8)
    axes.axhline(0, color="#444444", linewidth=0.6)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    hits = [i for i in order.tolist() if gains.q[i] < FALSE_DISCOVERIES]
    best = [i for i in reversed(hits) if gains.gain[i] > gains.mean][:NAMED]
    worst = [i for i in hits if gains.gain[i] < gains.mean][:NAMED]
    for members, place in ((best, (0.02, 0.98, "top", "left")), (worst, (0.98, 0.02, "bottom", "right"))):
        text = "\n".join(f"{shown(names[i], 18)} {points(gains.gain[i], 1)}" for i in members)
        x0, y0, vertical, horizontal = place
        axes.text(x0, y0, text, transform=axes.transAxes, va=vertical, ha=horizontal, fontsize=SMALL)
