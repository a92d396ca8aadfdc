"""F6 and F7: which class is taken for which, readable at 200 classes; and what an augmentation changes of it.

The diagonal is left out, since it would outshine all else; recall stands beside. Classes are ordered so that those
taken for one another are neighbours: by published superclasses, else by Ward clustering of the confusions of all runs
of the data set, so that all pages of a data set have one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from analysis.figure_inputs import Cell, Inputs, MissingInputs, seeds_and_images
from analysis.frame import points
from analysis.plotting import DIVERGING, SEQUENTIAL, SMALL, Page, add_caption, new_figure, shown, slug
from analysis.superclasses import superclasses

NAMED = 15
"""How many confusions are named."""
EVERY_CLASS = 24
"""Up to so many classes each has a label of its own."""
GROUPS = 20
_LABEL_SHARE = 7.6 / 185
"""Height of a label as a share of the picture's, at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassOrder:
    """The order of a data set's classes in its confusion figures."""

    classes: tuple[int, ...]
    names: tuple[str, ...]
    """In the same order."""
    groups: tuple[tuple[str, int], ...]
    """Neighbours that belong together: label, and how many. A group for each class where they are few."""
    told: str
    """How the order came about, for the caption."""


def confusion(inputs: Inputs) -> list[Page]:
    """F6: a page a cell."""
    cells = [cell for cell in inputs.cells if cell.runs]
    if not cells:
        raise MissingInputs("no run of this grid is done, so there are no predictions")
    orders = _orders(inputs, cells)
    return [_confusion_page(inputs, cell, orders[_data(cell)]) for cell in cells]


def confusion_difference(inputs: Inputs) -> list[Page]:
    """F7: a page a block and architecture, a panel an augmentation less the baseline."""
    base = inputs.baseline()
    orders = _orders(inputs, [cell for cell in inputs.cells if cell.runs])
    pages = []
    for block in inputs.blocks:
        for arch in inputs.palette.archs:
            against = inputs.cell(block, arch, base)
            arms = [inputs.cell(block, arch, aug) for aug in inputs.palette.augs if aug != base]
            found = [cell for cell in arms if cell is not None]
            if against is not None and found:
                pages.append(_difference_page(inputs, against, found, orders[_data(against)]))
    if not pages:
        raise MissingInputs(f'no cell is done together with its baseline "{base}"')
    return pages


def _data(cell: Cell) -> tuple[str, tuple[int, ...]]:
    """What makes two cells comparable class by class."""
    trial = cell.runs[0].trial
    return f"{trial['dataset']} {trial['content_sha256']}", tuple(sorted(trial["classes"]))


def _counts(inputs: Inputs, cell: Cell, classes: Sequence[int]) -> NDArray[np.float64]:
    """Share [C, C] of the images of class i that were taken for class j, mean over seeds; rows sum to 1."""
    found = inputs.predictions(cell)
    place = np.full(max(classes) + 1, -1)
    place[list(classes)] = np.arange(len(classes))
    num = len(classes)
    flat = place[found.labels][None, :] * num + place[found.pred]
    counts = np.bincount(flat.reshape(-1), minlength=num * num).reshape(num, num).astype(np.float64)
    of_class = counts.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(counts, of_class, out=np.zeros_like(counts), where=of_class > 0)
    return shares


def _orders(inputs: Inputs, cells: Sequence[Cell]) -> dict[tuple[str, tuple[int, ...]], ClassOrder]:
    groups: dict[tuple[str, tuple[int, ...]], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_data(cell), []).append(cell)
    return {key: _order(inputs, members, key[1]) for key, members in groups.items()}


def _order(inputs: Inputs, cells: Sequence[Cell], classes: tuple[int, ...]) -> ClassOrder:
    named = inputs.class_names(cells[0])
    published = superclasses([named[one] for one in classes])
    if published is not None:
        number = {name: one for one, name in named.items()}
        members = [[number[name] for name in group] for group in published.values()]
        labels, told = list(published), "superclass"
    elif len(classes) <= EVERY_CLASS:
        members, labels, told = [[one] for one in classes], [named[one] for one in classes], "number"
    else:
        mean = np.mean([_counts(inputs, cell, classes) for cell in cells], axis=0)
        members = [[classes[i] for i in group] for group in _ward_groups(mean)]
        labels = [f"{named[group[0]]} +{len(group) - 1}" if len(group) > 1 else named[group[0]] for group in members]
        told = "Ward clustering of the confusions of all runs on this data set, groups named by their first class"
    ordered = tuple(one for group in members for one in group)
    return ClassOrder(
        classes=ordered,
        names=tuple(named[one] for one in ordered),
        groups=tuple((label, len(group)) for label, group in zip(labels, members, strict=True)),
        told=told,
    )


def _ward_groups(shares: NDArray[np.float64]) -> list[list[int]]:
    """Classes that are taken for one another, as neighbours."""
    alike = (shares + shares.T) / 2
    np.fill_diagonal(alike, 0)
    distance = 1 - alike / max(float(alike.max()), 1e-12)
    np.fill_diagonal(distance, 0)
    tree = hierarchy.linkage(squareform(distance, checks=False), method="ward", optimal_ordering=True)
    cluster = hierarchy.fcluster(tree, GROUPS, criterion="maxclust")
    groups: dict[int, list[int]] = {}
    for leaf in hierarchy.leaves_list(tree).tolist():
        groups.setdefault(int(cluster[leaf]), []).append(leaf)
    return list(groups.values())


def _confusion_page(inputs: Inputs, cell: Cell, order: ClassOrder) -> Page:
    shares = _counts(inputs, cell, order.classes)
    recall = np.diag(shares).copy()
    errors = shares.copy()
    np.fill_diagonal(errors, 0)
    top = _largest(errors)
    where = ", ".join((*cell.block, cell.arch, cell.aug))
    figure = new_figure(3.9)
    figure.suptitle(shown(where, 90), fontsize=8)
    heat, strip, bars = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1, 0.13, 0.42]})
    limit = _limit(errors)
    image = heat.imshow(100 * errors, cmap=SEQUENTIAL, vmin=0, vmax=limit, interpolation="nearest", aspect="auto")
    _group_axes(heat, order, names=True, below=True)
    heat.set_title("errors, % of the true class", fontsize=7)
    colours = figure.colorbar(image, ax=heat, location="bottom", shrink=0.5, pad=0.01, extend=_extend(errors, limit))
    colours.ax.tick_params(labelsize=SMALL)
    edges = np.arange(len(recall) + 1) - 0.5
    strip.stairs(100 * recall, edges, orientation="horizontal", fill=True, color=inputs.palette.colour(cell.arch))
    strip.set(xlim=(0, 100), ylim=heat.get_ylim(), xticks=[0, 100])
    strip.set_title("recall %", fontsize=7)
    strip.tick_params(axis="y", left=False, labelleft=False)
    strip.tick_params(axis="x", labelsize=SMALL)
    strip.grid(visible=False)
    _named_bars(bars, errors, top, order)
    caption = (
        f"Mean over seeds of the share of each true class (row) that was taken for another (column). Classes by "
        f"{order.told}. Diagonal left out; {_told(errors)}. "
        f"{seeds_and_images([cell])}"
    )
    add_caption(figure, caption)
    alt = f"Confusions of {where}; " + (
        f"the largest: {100 * errors[top[0]]:.1f} % of {order.names[top[0][0]]} taken for {order.names[top[0][1]]}."
        if top
        else "there is none."
    )
    numbers = [_entry(order, i, j, {"share_of_true": errors[i, j]}) for i, j in np.argwhere(errors > 0).tolist()]
    numbers += [_entry(order, i, i, {"share_of_true": value}) for i, value in enumerate(recall.tolist())]
    return _page(f"F6-{slug(*cell.block, cell.arch, cell.aug)}", figure, caption, alt, numbers, [cell])


def _difference_page(inputs: Inputs, against: Cell, arms: Sequence[Cell], order: ClassOrder) -> Page:
    before = _counts(inputs, against, order.classes)
    changes = [_counts(inputs, cell, order.classes) - before for cell in arms]
    recalls = [np.diag(change).copy() for change in changes]
    for change in changes:
        np.fill_diagonal(change, 0)
    largest = np.abs(np.stack(changes))
    limit = _limit(largest)
    where = ", ".join((*against.block, against.arch))
    figure = new_figure(3.4)
    figure.suptitle(shown(where, 90), fontsize=8)
    panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
    numbers: list[dict[str, Any]] = []
    for axes, cell, change, recall in zip(panels, arms, changes, recalls, strict=True):
        image = axes.imshow(
            100 * change, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto"
        )
        _group_axes(axes, order, names=axes is panels[0])
        title = f"{shown(cell.aug, 14)} less {shown(against.aug, 14)}: recall {points(float(recall.mean()), 1)} points"
        axes.set_title(title, fontsize=7)
        numbers += [
            _entry(order, i, j, {"aug": cell.aug, "change": float(change[i, j] if i != j else recall[i])})
            for i, j in np.argwhere((change != 0) | np.eye(len(recall), dtype=bool)).tolist()
        ]
    colours = figure.colorbar(image, ax=list(panels), location="right", shrink=0.7, pad=0.01)
    colours.set_label("change, points of the true class", fontsize=7)
    colours.ax.tick_params(labelsize=SMALL)
    caption = (
        "Change of the share of each true class (row) that was taken for another (column), mean over seeds; green: "
        f"more errors than the baseline makes, purple: fewer. Classes by {order.told}. "
        f"{_told(largest).capitalize()}. {seeds_and_images([against, *arms])}"
    )
    add_caption(figure, caption)
    i, j, k = (int(one) for one in np.unravel_index(int(largest.argmax()), largest.shape))
    alt = (
        f"What augmentations change of the confusions of {where}; most: "
        f"{order.names[j]} taken for {order.names[k]} {points(float(changes[i][j, k]), 1)} points with {arms[i].aug}."
    )
    return _page(f"F7-{slug(*against.block, against.arch)}", figure, caption, alt, numbers, [against, *arms])


def _limit(shares: NDArray[np.float64]) -> float:
    """Where the shades end, in percent: of few classes at the largest, of many where the rare ones would not show."""
    some = shares[shares > 0]
    if not some.size:
        return 1.0
    return 100 * float(some.max() if shares.shape[-1] <= EVERY_CLASS else np.quantile(some, 0.99))


def _extend(shares: NDArray[np.float64], limit: float) -> str:
    return "max" if 100 * shares.max() > limit else "neither"


def _told(shares: NDArray[np.float64]) -> str:
    few = shares.shape[-1] <= EVERY_CLASS
    return f"shades end at {'the largest' if few else 'the 99th percentile of those above 0'}"


def _largest(errors: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Places of the largest errors, largest first; ties in the order of the classes."""
    flat = np.argsort(-errors, axis=None, kind="stable")[:NAMED]
    places = [tuple(map(int, np.unravel_index(one, errors.shape))) for one in flat]
    return [(i, j) for i, j in places if errors[i, j] > 0]


def _group_axes(axes: Axes, order: ClassOrder, *, names: bool, below: bool = False) -> None:
    """Lines between groups; labels at their middles on the left, and below where each class has its own."""
    sizes = np.array([size for _, size in order.groups])
    ends = np.cumsum(sizes)
    middles = ends - sizes / 2 - 0.5
    for end in ends[:-1] - 0.5:
        axes.axhline(end, color="#BBBBBB", linewidth=0.3)
        axes.axvline(end, color="#BBBBBB", linewidth=0.3)
    axes.grid(visible=False)
    kept: list[int] = []
    for i in np.argsort(-sizes, kind="stable").tolist():  # a label of a small group gives way to its neighbours'
        if all(abs(middles[i] - middles[k]) >= _LABEL_SHARE * ends[-1] for k in kept):
            kept.append(i)
    labels = {float(middles[i]): shown(order.groups[i][0], 22) for i in sorted(kept)}
    below = below and len(order.classes) <= EVERY_CLASS
    turned = 90 if max(map(len, labels.values())) > 2 else 0
    axes.set_xticks(
        list(labels) if below else [], list(labels.values()) if below else [], fontsize=SMALL, rotation=turned
    )
    axes.set_xlabel("predicted class" if below else "predicted class, in the same order", fontsize=7)
    if names:
        axes.set_yticks(list(labels), list(labels.values()), fontsize=SMALL)
        axes.set_ylabel("true class", fontsize=7)
    axes.tick_params(length=0)


def _named_bars(axes: Axes, errors: NDArray[np.float64], top: Sequence[tuple[int, int]], order: ClassOrder) -> None:
    axes.set_title(f"{len(top)} largest", fontsize=7)
    axes.barh(range(len(top)), [100 * errors[place] for place in top], color="#777777", height=0.35, align="edge")
    for y, (i, j) in enumerate(top):
        axes.text(0, y - 0.06, f"{shown(order.names[i], 15)} → {shown(order.names[j], 15)}", fontsize=6.2, va="bottom")
    axes.set(ylim=(max(len(top), 1) - 0.4, -0.7), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("% of true class", fontsize=7)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.grid(axis="y", visible=False)


def _entry(order: ClassOrder, i: int, j: int, values: dict[str, Any]) -> dict[str, Any]:
    names = {"true_name": order.names[i], "predicted_name": order.names[j]}
    return {"true": order.classes[i], "predicted": order.classes[j], **names, **values}


def _page(name: str, figure: Any, caption: str, alt: str, numbers: list[dict[str, Any]], cells: Sequence[Cell]) -> Page:
    run_ids = tuple(run.run_id for cell in cells for run in cell.runs)
    tables = ("predictions",)
    return Page(name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=tables)
