"""F17: what rows reach on a data set by what their weights had been trained on before. A mark a row, none joined: such
rows differ in model, size of images, length and in what is trained, all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.figure_inputs import Cell, Inputs, MissingInputs, epochs_of, seeds_of, told_marks, value_range
from analysis.figures_effects import interval_text
from analysis.frame import percent
from analysis.plotting import SMALL, Page, add_caption, legend, new_figure, shown, slug
from analysis.pretraining import EVALUATED, FULL, PARTLY, PROBE, SCRATCH, TRAININGS, Origin, origins
from analysis.stats import contrast

ROWS_PER_PAGE = 30
SHAPES = {FULL: "o", PARTLY: "^", PROBE: "D", EVALUATED: "X"}
GREY = "#444444"
BELOW = 0.3
"""How far a published value stands below ours, in rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """One row of the grid."""

    cell: Cell
    origin: Origin
    numbers: dict[str, Any]


def transfer(inputs: Inputs) -> list[Page]:
    """F17: a page a data set to which anything is transferred; more where it has many rows.

    Raises:
        MissingInputs: no row that is done starts from weights that were trained before.
    """
    found = origins(inputs.results, inputs.evidence)
    targets: dict[tuple[str, tuple[int, ...]], list[Cell]] = {}
    for cell in (cell for cell in inputs.cells if cell.runs):
        targets.setdefault((cell.dataset, tuple(cell.runs[0].trial["classes"])), []).append(cell)
    pages = []
    for (dataset, _), cells in targets.items():
        own = {cell.row.label: found[cell.runs[0].run_id] for cell in cells}
        if any(origin.data for origin in own.values()):
            order = sorted(dict.fromkeys(own.values()), key=lambda origin: bool(origin.data))
            sources = list(dict.fromkeys(origin.source for origin in order))
            ranked = sorted(cells, key=lambda cell: sources.index(own[cell.row.label].source))
            lines = [
                _Line(cell=cell, origin=own[cell.row.label], numbers=_numbers(inputs, cell, own)) for cell in ranked
            ]
            pages += [(dataset, lines[i : i + ROWS_PER_PAGE]) for i in range(0, len(lines), ROWS_PER_PAGE)]
    if not pages:
        raise MissingInputs("no row that is done starts from weights that were trained before")
    datasets = [dataset for dataset, _ in pages]
    names = [f"F17-{slug(name)}" if len(set(datasets)) == len(datasets) else f"F17-{i}" for i, name in
             enumerate(datasets, 1)]  # fmt: skip
    names = ["F17"] if len(pages) == 1 else names
    return [_page(inputs, dataset, lines, name) for (dataset, lines), name in zip(pages, names, strict=True)]


def _evaluation(inputs: Inputs, cell: Cell) -> str:
    """The one that published values are of, where its runs have it."""
    wanted = inputs.results.published_eval or "final"
    return wanted if all(wanted in run.evaluations for run in cell.runs) else "final"


def _numbers(inputs: Inputs, cell: Cell, own: dict[str, Origin]) -> dict[str, Any]:
    inputs.predictions(cell)  # refuses seeds that were judged on different images
    name = _evaluation(inputs, cell)
    found = [run.evaluations[name] for run in cell.runs]
    result = contrast({"row": 1.0}, {"row": np.stack([one.correct for one in found])})
    low, high = (min(1.0, max(0.0, bound)) for bound in result.interval)
    trial, origin = cell.runs[0].trial, own[cell.row.label]
    told: dict[str, Any] = {"row": cell.row.label, "dataset": cell.dataset}
    told |= {"source": origin.source, "training": origin.training}
    told |= {"arch": cell.arch, "image_size": trial["image_size"], "num_parameters": trial["num_parameters"]}
    told |= {"evaluation": name, "num_seeds": len(found), "mean_top1": result.estimate, "low": low, "high": high}
    told |= {"published_top1": cell.row.published.get("top1")}
    return told | {f"seed_{run.seed}": one.metrics["top1"] for run, one in zip(cell.runs, found, strict=True)}


def _page(inputs: Inputs, dataset: str, lines: Sequence[_Line], name: str) -> Page:
    places, labels, headings = _places(lines)
    figure = new_figure(0.85 + 0.2 * (len(labels) + 0.5))
    axes = figure.subplots()
    for line, y in zip(lines, places, strict=True):
        _draw(axes, inputs, line, y)
    axes.set_yticks(range(len(labels)), labels, fontsize=SMALL)
    for y in headings:
        axes.get_yticklabels()[y].set_fontweight("bold")
        if y:
            axes.axhline(y - 0.5, color="#BBBBBB", linewidth=0.6)
    published = any(line.numbers["published_top1"] is not None for line in lines)
    heading = "ours (published)" if published else "ours"
    beside: dict[str, Any] = {"fontsize": SMALL, "va": "center", "transform": axes.get_yaxis_transform()}
    axes.text(1.02, -0.9, heading, **beside)
    for line, y in zip(lines, places, strict=True):
        theirs = line.numbers["published_top1"]
        told = percent(line.numbers["mean_top1"]) + (f" ({percent(theirs)})" if theirs is not None else "")
        axes.text(1.02, y, told, **beside)
    axes.set(ylim=(len(labels) - 0.4, -0.6), xlabel=f"top-1 on the test images of {shown(dataset)} (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)
    cells = [line.cell for line in lines]
    legend(figure, _handles(inputs, lines, published=published), ncols=5)
    caption = _caption(inputs, dataset, lines)
    add_caption(figure, caption)
    best = max((line.numbers for line in lines), key=lambda numbers: float(numbers["mean_top1"]))
    alt = (
        f"Accuracy on {dataset} by what weights had been trained on before; the highest of {len(lines)} rows is "
        f"{percent(best['mean_top1'], 1)} % ({best['row']}; {best['source']}; {best['training']})."
    )
    return Page(
        name=name,
        figure=figure,
        caption=caption,
        alt=alt,
        numbers=[line.numbers for line in lines],
        run_ids=tuple(run.run_id for cell in cells for run in cell.runs),
        tables=("trials", "predictions", "provenance"),
    )


def _places(lines: Sequence[_Line]) -> tuple[list[int], list[str], list[int]]:
    """The height of every row, what stands at each height, and which of those are headings."""
    places: list[int] = []
    labels: list[str] = []
    headings: list[int] = []
    for i, line in enumerate(lines):
        if i == 0 or line.origin.source != lines[i - 1].origin.source:
            headings.append(len(labels))
            labels.append(f"pretrained on {shown(line.origin.source, 44)}" if line.origin.data else SCRATCH)
        places.append(len(labels))
        size = f"{line.numbers['image_size']} px, {line.numbers['num_parameters'] / 1e6:.3g} M"
        labels.append(f"{shown(line.cell.row.label, 34)}: {size}")
    return places, labels, headings


def _draw(axes: Axes, inputs: Inputs, line: _Line, y: int) -> None:
    numbers, colour = line.numbers, inputs.palette.colour(line.cell.arch)
    shape, mark = SHAPES[line.origin.training], inputs.mark(line.cell)
    axes.plot([100 * numbers["low"], 100 * numbers["high"]], [y, y], color=colour, linewidth=1.2)
    seeds = [100 * value for key, value in numbers.items() if key.startswith("seed_")]
    if len(seeds) > 1:
        axes.plot(seeds, [y] * len(seeds), color=colour, marker="|", markersize=5, linestyle="none", alpha=0.6)
    mean = 100 * numbers["mean_top1"]
    face = "white" if mark == "†" else colour
    axes.plot([mean], [y], color=colour, marker=shape, markersize=5, markerfacecolor=face, linestyle="none")
    if mark:
        axes.annotate(mark, (mean, y), (5, 1), textcoords="offset points", color=colour)
    if numbers["published_top1"] is not None:
        _hollow(axes, [100 * numbers["published_top1"]], [y + BELOW], shape)


def _hollow(axes: Axes, x: Sequence[float], y: Sequence[float], shape: str) -> None:
    axes.plot(
        x, y, color=GREY, marker=shape, markersize=3.6, markerfacecolor="white", markeredgewidth=0.7, linestyle="none"
    )


def _handles(inputs: Inputs, lines: Sequence[_Line], *, published: bool) -> list[Any]:
    """Shapes, then colours, then what is hollow."""
    trainings = [one for one in TRAININGS if any(line.origin.training == one for line in lines)]
    look: dict[str, Any] = {"linestyle": "none", "markersize": 5}
    handles: list[Any] = [Line2D([], [], color=GREY, marker=SHAPES[one], label=one, **look) for one in trainings]
    archs = [arch for arch in inputs.palette.archs if any(line.cell.arch == arch for line in lines)]
    handles += [Patch(color=inputs.palette.colour(arch), label=shown(arch, 28)) for arch in archs]
    if published:
        look |= {"markersize": 3.6, "markerfacecolor": "white", "markeredgewidth": 0.7}
        handles.append(Line2D([], [], color=GREY, marker=SHAPES[trainings[0]], label="published", **look))
    return handles


def _caption(inputs: Inputs, dataset: str, lines: Sequence[_Line]) -> str:
    cells = [line.cell for line in lines]
    names = list(dict.fromkeys(line.numbers["evaluation"] for line in lines))
    chosen = "best_on_test" in names
    images = value_range(sorted({run.trial["num_test"] for cell in cells for run in cell.runs}))
    gaps = [row.label for row in inputs.results.rows if not row.done and not row.is_parent]
    return (
        f"Top-1 on the {images} test images of {dataset} by the data that the weights had been trained on before; "
        "behind a row's name the side of its images and its parameters. Rows differ in model, size, training and "
        "length at once, so marks are not joined. "
        f"Evaluation {' or '.join(names)}"
        + (", whose epoch the test images chose, so optimistic. " if chosen else ", after the last step. ")
        + f"{interval_text(cells)} "
        + ("Hollow, grey: published. " if any(line.numbers["published_top1"] is not None for line in lines) else "")
        + ("Small strokes: single seeds. " if any(len(cell.runs) > 1 for cell in cells) else "")
        + told_marks(inputs.mark(cell) for cell in cells)
        + (f"Not done, so not shown: {', '.join(shown(gap, 34) for gap in gaps)}. " if gaps else "")
        + f"{seeds_of(cells)}, {epochs_of(cells)}."
    )
