"""Looks at a figure as it will be printed and names what a reader would stumble over.

Text that is cut off, too small or lies over other text, axes without data, a legend over data, a warning (a letter that
the font lacks is one).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Affine2D, Bbox, BboxBase

MIN_POINTS = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """One line of text as it was drawn."""

    text: str
    points: float
    box: Bbox
    """Of its ink, in pixels of the canvas."""
    clip: BboxBase | None


def lint(figure: Figure) -> list[str]:
    """The faults of a figure, in words; empty where there is none. Lays the figure out and changes nothing else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        canvas: Any = FigureCanvasAgg(figure)
        renderer = canvas.get_renderer()
        lines = _drawn(figure, renderer)
        faults = [*_texts(figure, lines), *_axes(figure), *_legends(figure, renderer)]
    return [*faults, *dict.fromkeys(f"warning: {one.message}" for one in caught)]


def _drawn(figure: Figure, renderer: Any) -> list[_Line]:
    """Every line of text that reaches the canvas: tick labels out of view do not."""
    lines: list[_Line] = []
    draw_text = renderer.draw_text

    def recorded(gc: Any, x: float, y: float, s: str, prop: Any, angle: float, *rest: Any, **more: Any) -> None:
        width, height, descent = renderer.get_text_width_height_descent(s, prop, ismath=False)
        turned = Affine2D().rotate_deg(angle).translate(x, renderer.height - y)
        box = Bbox.from_bounds(0, -descent, width, height).transformed(turned)
        if s.strip():
            lines.append(_Line(text=s, points=prop.get_size_in_points(), box=box, clip=gc.get_clip_rectangle()))
        draw_text(gc, x, y, s, prop, angle, *rest, **more)

    renderer.draw_text = recorded
    try:
        figure.draw(renderer)
    finally:
        renderer.draw_text = draw_text
    return lines


def _texts(figure: Figure, lines: Sequence[_Line]) -> list[str]:
    faults = []
    for line in lines:
        if line.points < MIN_POINTS:
            faults.append(f"{_quoted(line)} is {line.points:g} pt, at least {MIN_POINTS:g} is readable")
        if not _within(line.box, figure.bbox):
            faults.append(f"{_quoted(line)} is cut off at the edge")
        elif line.clip is not None and not _within(line.box, line.clip):
            faults.append(f"{_quoted(line)} is cut off at its axes")
    for one, other in itertools.combinations(lines, 2):
        if _overlap(one.box, other.box):
            faults.append(f"{_quoted(one)} and {_quoted(other)} overlap")
    return faults


def _within(box: BboxBase, outer: BboxBase) -> bool:
    return bool(box.x0 >= outer.x0 and box.y0 >= outer.y0 and box.x1 <= outer.x1 and box.y1 <= outer.y1)


def _overlap(one: BboxBase, other: BboxBase) -> bool:
    return bool(one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1)


def _quoted(line: _Line) -> str:
    return f'"{line.text if len(line.text) <= 40 else line.text[:39] + "…"}"'


def _axes(figure: Figure) -> list[str]:
    return [
        f"axes {number} ({axes.get_title() or axes.get_xlabel() or 'untitled'}) are empty"
        for number, axes in enumerate(figure.axes, 1)
        if axes.get_visible() and not any(_has_data(artist) for artist in _data_artists(axes))
    ]


def _data_artists(axes: Axes) -> list[Artist]:
    """Artists that show data, texts of axes without an axis among them (a column of words)."""
    artists: list[Artist] = [*axes.lines, *axes.collections, *axes.patches, *axes.images]
    return artists if axes.axison else [*artists, *axes.texts]


def _has_data(artist: Artist) -> bool:
    if not artist.get_visible():
        return False
    if isinstance(artist, Line2D):
        x, y = (np.asarray(values, np.float64) for values in artist.get_data(orig=False))
        assert artist.axes is not None
        across = artist.get_transform() != artist.axes.transData  # a reference line from edge to edge is no data
        return not across and bool((np.isfinite(x) & np.isfinite(y)).any())
    if isinstance(artist, AxesImage):
        values = artist.get_array()
        return values is not None and bool(np.isfinite(np.ma.filled(values.astype(np.float64), np.nan)).any())
    if isinstance(artist, Collection):
        offsets = np.ma.filled(np.ma.asarray(artist.get_offsets(), np.float64), np.nan)
        return any(np.size(path.vertices) for path in artist.get_paths()) and bool(
            np.isfinite(offsets).all(axis=-1).any()
        )
    return True


def _legends(figure: Figure, renderer: Any) -> list[str]:
    found: list[Legend] = [*figure.legends, *(own for axes in figure.axes if (own := axes.get_legend()) is not None)]
    return [
        f"a legend lies over data of the axes ({axes.get_title() or axes.get_xlabel() or 'untitled'})"
        for box in (one.get_window_extent(renderer) for one in found)
        for axes in figure.axes
        if any(_covers(box, artist) for artist in (*axes.lines, *axes.collections, *axes.patches, *axes.images))
    ]


def _covers(box: Bbox, artist: Artist) -> bool:
    """Whether a box of the canvas lies over an artist's ink."""
    if not artist.get_visible():
        return False
    if isinstance(artist, AxesImage):
        return bool(box.overlaps(artist.get_window_extent()))
    if isinstance(artist, Line2D):
        path = artist.get_path().transformed(artist.get_transform())
        return bool(path.intersects_bbox(box, filled=False)) or bool(box.count_contains(path.vertices))
    if isinstance(artist, Patch):
        return bool(artist.get_path().transformed(artist.get_transform()).intersects_bbox(box, filled=True))
    assert isinstance(artist, Collection)
    offsets = np.ma.filled(np.ma.asarray(artist.get_offsets(), np.float64), np.nan)
    if len(offsets) and (offsets != 0).any():
        points = artist.get_offset_transform().transform(offsets)
        return bool(box.count_contains(points[np.isfinite(points).all(axis=1)]))
    transform = artist.get_transform()
    return any(path.transformed(transform).intersects_bbox(box, filled=True) for path in artist.get_paths())
