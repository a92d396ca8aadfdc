"""F13, the planes: a look at what the classifier's head is given, readable however many classes there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from analysis.attribution import rng_for
from analysis.figure_inputs import Inputs
from analysis.findings import Arm, BlockFindings
from analysis.frame import percent
from analysis.plotting import COLOURS, MARKERS, SMALL, Page, add_caption, legend, new_figure, shown, slug
from analysis.representation import principal
from analysis.superclasses import superclasses

HIGHLIGHTED = 8
"""Classes, or groups of classes, that have a colour of their own; the others are grey."""
REST = "#C8C8C8"
PERPLEXITY = 30.0
COLUMNS, LINES = 3, 4
"""Of planes on a page."""
_INKS = (*COLOURS, "#000000", "#8C564B")

Plane = Callable[[BlockFindings, Arm], tuple[NDArray[np.float64], tuple[str, str]]]


def plane_pages(inputs: Inputs, found: BlockFindings) -> list[Page]:
    """By main axes, and by t-SNE where there are images enough; an architecture begins a new line."""
    archs = [arch for arch in inputs.palette.archs if any(arm.cell.arch == arch for arm in found.arms)]
    rows = [[arm for arm in found.arms if arm.cell.arch == arch] for arch in archs]
    lines = [row[i : i + COLUMNS] for row in rows for i in range(0, len(row), COLUMNS)]
    ways = {"pca": _by_axes}
    if len(found.sample_ids) > 3 * PERPLEXITY:
        ways["tsne"] = _by_neighbours
    pages = []
    for way, plane in ways.items():
        for number, i in enumerate(range(0, len(lines), LINES), 1):
            part = (str(number),) if len(lines) > LINES else ()
            name = f"F13-{slug(*found.block, way, *part)}"
            pages.append(_page(inputs, found, way, plane, lines[i : i + LINES], name))
    return pages


def _by_axes(found: BlockFindings, arm: Arm) -> tuple[NDArray[np.float64], tuple[str, str]]:
    points, shares = principal(arm.features)
    return points, (f"PC 1: {percent(shares[0], 1)} %", f"PC 2: {percent(shares[1], 1)} %")


def _by_neighbours(found: BlockFindings, arm: Arm) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """t-SNE from the two main axes, the same bits every time on one machine."""
    state = int(rng_for(found.seed, "tsne").integers(2**31))
    features = arm.features.astype(np.float64)
    if not np.ptp(features, axis=0).any():
        return np.zeros((len(features), 2)), ("", "")
    plane = TSNE(perplexity=PERPLEXITY, init="pca", random_state=state, n_jobs=1)
    return np.asarray(plane.fit_transform(features), np.float64), ("", "")


def _page(
    inputs: Inputs, found: BlockFindings, way: str, plane: Plane, lines: Sequence[Sequence[Arm]], name: str
) -> Page:
    groups, told = _groups(inputs, found)
    columns = max(map(len, lines))
    figure = new_figure(2.25 * len(lines) + 0.5, width=7.0 if columns > 1 else 4.2)
    panels = figure.subplots(len(lines), columns, squeeze=False)
    numbers: list[dict[str, Any]] = []
    seen: dict[str, tuple[str, str]] = {}
    for line, axes_line in zip(lines, panels, strict=True):
        for axes in axes_line[len(line) :]:
            axes.set_visible(False)
        for arm, axes in zip(line, axes_line, strict=False):
            points, labels = plane(found, arm)
            _scatter(axes, points, groups)
            axes.set_title(f"{shown(arm.cell.arch, 20)}, {shown(arm.cell.aug, 16)}", fontsize=7)
            axes.title.set_color(inputs.palette.colour(arm.cell.arch))
            axes.set_xlabel(labels[0], fontsize=SMALL)
            axes.set_ylabel(labels[1], fontsize=SMALL)
            seen[f"{arm.cell.arch} {arm.cell.aug}"] = labels
            numbers += _numbers(found, arm, groups, points)
    handles = [_handle(*_looks(i), group) for i, group in enumerate(sorted(set(groups) - {""}))]
    legend(figure, [*handles, *([_handle(REST, "o", "all others")] if "" in groups else [])], ncols=5)
    arms = [arm for line in lines for arm in line]
    caption = _caption(found, way, told, arms)
    add_caption(figure, caption)
    return Page(
        name=name,
        figure=figure,
        caption=caption,
        alt=_alt(way, seen),
        numbers=numbers,
        run_ids=tuple(arm.runs[0].run.run_id for arm in arms),
        tables=("predictions",),
        seed=found.seed,
    )


def _caption(found: BlockFindings, way: str, told: str, arms: Sequence[Arm]) -> str:
    how = {
        "pca": "on the two main axes of each arm, with their shares of the variance",
        "tsne": f"by t-SNE (perplexity {PERPLEXITY:.0f}, from the main axes): neighbours mean something, distances "
        "between clusters, their sizes and empty space do not",
    }[way]
    where = f"{', '.join(found.block)}: " if found.block else ""
    seeds = sorted({arm.runs[0].run.seed for arm in arms})
    return (
        f"{where}what the classifier's head is given of {len(found.labels):,} test images, {how}. {told} "
        f"One run an arm (seed {', '.join(map(str, seeds))}), checkpoint after the last step; images chosen by hash, "
        f"seed {found.seed}."
    )


def _alt(way: str, seen: dict[str, tuple[str, str]]) -> str:
    if way == "tsne":
        return f"Features of {len(seen)} arms in a plane by t-SNE."
    told = "; ".join(f"{name}, {labels[0]} and {labels[1]}" for name, labels in list(seen.items())[:3])
    return f"Features of {len(seen)} arms on their main axes: {told}{' and others' if len(seen) > 3 else ''}."


def _numbers(
    found: BlockFindings, arm: Arm, groups: Sequence[str], points: NDArray[np.float64]
) -> list[dict[str, Any]]:
    columns = (found.sample_ids.tolist(), found.labels.tolist(), groups, points.tolist())
    return [
        {
            **arm.cell.place,
            "sample_id": key,
            "label": label,
            "group": group,
            "x": float(f"{x:.6g}"),
            "y": float(f"{y:.6g}"),
        }
        for key, label, group, (x, y) in zip(*columns, strict=True)
    ]


def _groups(inputs: Inputs, found: BlockFindings) -> tuple[list[str], str]:
    """The highlighted group of every image, empty for the others; and how they came about, in words."""
    names = inputs.class_names(found.arms[0].cell)
    of_image = [names[label] for label in found.labels.tolist()]
    known = superclasses([names[one] for one in found.arms[0].cell.runs[0].trial["classes"]])
    if known is not None:
        above = {name: group for group, members in known.items() for name in members}
        of_image, what = [above[name] for name in of_image], "superclasses"
    else:
        what = "classes"
    kinds = list(dict.fromkeys(sorted(of_image)))
    if len(kinds) <= HIGHLIGHTED:
        return of_image, f"Coloured by {'class' if what == 'classes' else 'superclass'}."
    drawn = rng_for(found.seed, "groups").permutation(len(kinds))[:HIGHLIGHTED]
    chosen = {kinds[i] for i in drawn.tolist()}
    return (
        [one if one in chosen else "" for one in of_image],
        f"{HIGHLIGHTED} of {len(kinds)} {what}, drawn by lot, are coloured.",
    )


def _looks(i: int) -> tuple[str, str]:
    return _INKS[i % len(_INKS)], MARKERS[i % len(MARKERS)]


def _handle(colour: str, marker: str, name: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=4, label=shown(name, 26))


def _scatter(axes: Axes, points: NDArray[np.float64], groups: Sequence[str]) -> None:
    size = 9.0 if len(points) <= 400 else 4.0
    group = np.array(groups)
    rest = group == ""
    x, y = points[rest].T
    axes.scatter(x, y, s=size * 0.6, color=REST, linewidths=0, rasterized=True)
    for i, name in enumerate(sorted(set(groups) - {""})):
        colour, marker = _looks(i)
        x, y = points[group == name].T
        axes.scatter(x, y, s=size, color=colour, marker=marker, linewidths=0, rasterized=True)
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
