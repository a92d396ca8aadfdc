"""How every figure looks and is written: sizes, colours, words under it, files whose bytes do not change.

Colour and marker say the architecture, position or line style the augmentation. Figures are drawn at their final size
(7 inches, two columns of a page) and carry their caption inside the canvas.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from fontTools.subset import Options
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath
from matplotlib.transforms import Bbox

from analysis.load import ResultRow
from analysis.stand_ins import COLUMN, column, marks_of, note
from datasets.terminal import one_line

WIDTH = 7.0
"""Inches."""
SMALL = 6.5
"""Points, of captions and dense labels; nothing is smaller than `figure_lint.MIN_POINTS`."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
)
SEQUENTIAL = "Greys"
DIVERGING = "PRGn"
FORMATS = ("svg", "png", "pdf")
_ELLIPSIS = "…"
CAPTION = "caption"
"""The id, in SVG, of the caption's lines at the foot of the canvas."""
CAPTION_LINE = 1.3 * SMALL
"""Points of height that each of them takes."""
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "figure.titlesize": 9.0,
    "figure.dpi": 200.0,
    "savefig.dpi": 200.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "grid-tuner",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One picture with everything that is written beside it."""

    name: str
    """The figure's id, with a suffix where the figure has several pages; the stem of its files."""
    figure: Figure
    caption: str
    alt: str
    """One sentence for those who cannot see it: what is shown, and the largest thing in it."""
    numbers: Sequence[Mapping[str, float | int | str | None]]
    """What is plotted, a row a mark; accuracies are fractions."""
    run_ids: tuple[str, ...]
    tables: tuple[str, ...]
    """The tables of the store that were read for it."""
    seed: int | None = None
    """Of random draws; None: nothing was drawn."""


@contextmanager
def style() -> Iterator[None]:
    """Everything about a figure, from its creation to its last byte, happens within this."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's would change bytes
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """Looks of the architectures and augmentations of one grid, in the grid's order."""

    archs: tuple[str, ...]
    augs: tuple[str, ...]

    def colour(self, arch: str) -> str:
        """The architecture's colour."""
        return COLOURS[self.archs.index(arch) % len(COLOURS)]

    def marker(self, arch: str) -> str:
        """The architecture's marker; it differs where colours come round again."""
        return MARKERS[self.archs.index(arch) % len(MARKERS)]

    def line(self, aug: str) -> Any:
        """The augmentation's line style."""
        return LINES[self.augs.index(aug) % len(LINES)]

    def arch_handles(self, *, lines: bool = True, markers: bool = True) -> list[Line2D]:
        """Legend entries of the architectures, as they are drawn: with lines, markers or both."""
        return [
            Line2D(
                [],
                [],
                color=self.colour(arch),
                linestyle="-" if lines else "none",
                marker=self.marker(arch) if markers else "none",
                markersize=4,
                label=shown(arch, 28),
            )
            for arch in self.archs
        ]

    def aug_handles(self) -> list[Line2D]:
        """Legend entries of the augmentations' line styles; none where there is one augmentation alone."""
        if len(self.augs) < 2:
            return []
        return [Line2D([], [], color="#444444", linestyle=self.line(aug), label=shown(aug, 28)) for aug in self.augs]


def new_figure(height: float, *, width: float = WIDTH) -> Figure:
    """An empty figure; `height` in inches, without the caption."""
    return Figure(figsize=(width, height), layout="constrained")


def legend(figure: Figure, handles: Sequence[Artist], *, ncols: int = 6) -> None:
    """A legend above all axes, where it can hide nothing; none where there is nothing to tell apart."""
    if not handles:
        return
    figure.legend(handles=list(handles), loc="outside upper left", ncols=min(len(handles), ncols), handlelength=2.6)


def add_caption(figure: Figure, text: str) -> None:
    """Writes the caption beneath the axes, in as many lines as it takes, in place of one that is there; the figure
    grows by them."""
    width, height = figure.get_size_inches()
    lines = wrapped(text, (width - 0.16) * 72, SMALL)
    former = len(figure.get_supxlabel().splitlines())
    figure.set_size_inches(width, height + (len(lines) - former) * CAPTION_LINE / 72)
    look: dict[str, Any] = {"fontsize": SMALL, "color": "#333333", "linespacing": 1.2}
    figure.supxlabel("\n".join(lines), x=0.08 / width, ha="left", **look).set_gid(CAPTION)


def marked_page(page: Page, rows: Sequence[ResultRow]) -> Page:
    """The page as it is, unless runs that it shows began from random stand-ins of published weights: then its caption
    begins with that, and its numbers have a column of it.

    Args:
        page: not yet settled.
        rows: whose runs it may show.
    """
    alone = [replace(row, runs=tuple(run for run in row.runs if run.run_id in page.run_ids)) for row in rows]
    marks = marks_of(alone)
    if not marks:
        return page
    caption = f"{shown(note(marks), len(note(marks)))}. {page.caption}"
    add_caption(page.figure, caption)
    numbers = [{**row, COLUMN: column(marks)} for row in page.numbers]
    return replace(page, caption=caption, numbers=numbers)


def wrapped(text: str, points: float, size: float) -> list[str]:
    """Text broken at spaces so that no line is wider than `points`, by the font's own measures; not before a %."""
    lines: list[str] = []
    taken = 0.0
    space = text_width("n n", size) - text_width("nn", size)
    for word in filter(None, text.replace(" %", "\N{NO-BREAK SPACE}%").split(" ")):
        width = text_width(word, size)
        if lines and taken + space + width <= points:
            lines[-1] += f" {word}"
            taken += space + width
        else:
            lines.append(word)
            taken = width
    return lines


@lru_cache(maxsize=16384)  # words come again in every caption, and measuring one takes a millisecond
def text_width(text: str, size: float) -> float:
    """Width in points."""
    properties = FontProperties(family="DejaVu Sans", size=size)
    return float(TextToPath().get_text_width_height_descent(text, properties, ismath=False)[0])


def shown(name: str, at_most: int = 24) -> str:
    """A name of the user's as it can stand in a figure: one line, short, letters that the font has."""
    letters = get_font(findfont("DejaVu Sans")).get_charmap()
    text = "".join(letter if ord(letter) in letters else "?" for letter in one_line(name)).lstrip("_")
    return text if len(text) <= at_most else text[: at_most - 1].rstrip() + _ELLIPSIS


def slug(*parts: str) -> str:
    """Names as a part of a file's name."""
    text = "-".join(parts).lower()
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in text)


def settle(figure: Figure) -> None:
    """Keeps a layout as it is, in every format. Its solver's last bits differ from run to run, and names in an SVG are
    hashes of places, so places are rounded."""
    figure.set_layout_engine("none")
    for axes in figure.axes:
        places = axes.get_position(original=True).get_points()
        axes.set_position(Bbox(np.round(places, 7)))


def image_bytes(figure: Figure, kind: str) -> bytes:
    """A figure that was laid out, as a file: no dates and no versions in it, so that the same numbers give the same
    bytes."""
    sink = io.BytesIO()
    dpi = figure.dpi
    canvas: Any  # drawn once each: `savefig` would do so twice
    if kind == "svg":
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(sink, metadata={"Date": None, "Creator": None})
    elif kind == "png":
        canvas = FigureCanvasAgg(figure)
        canvas.print_png(sink, metadata={"Software": None})
    else:
        canvas = FigureCanvasPdf(figure)
        with _without_layout_tables():
            canvas.print_pdf(sink, metadata={"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None})
    figure.set_dpi(dpi)  # SVG and PDF leave their own
    return sink.getvalue()


@contextmanager
def _without_layout_tables() -> Iterator[None]:
    """Fonts are embedded without their layout tables: a PDF places every glyph itself, and reading those tables is
    two fifths of writing one."""
    known = Options._drop_tables_default
    Options._drop_tables_default = [*known, "GDEF", "GPOS", "GSUB", "MATH"]
    try:
        yield
    finally:
        Options._drop_tables_default = known


def numbers_csv(page: Page) -> str:
    """The plotted numbers; empty where there is none."""
    sink = io.StringIO()
    columns = list(dict.fromkeys(column for row in page.numbers for column in row))
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(row.get(column)) for column in columns] for row in page.numbers)
    return sink.getvalue()


def _field(value: float | int | str | None) -> str:
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        return repr(float(value) if isinstance(value, float) else int(value))  # not numpy's own words for it
    return _text(value)


@lru_cache(maxsize=4096)  # of names, which come again in every row
def _text(value: str) -> str:
    text = one_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text  # a spreadsheet would take it for a formula


def write_files(page: Page, folder: Path, formats: Sequence[str], facts: Mapping[str, Any]) -> list[Path]:
    """Writes a picture that was laid out, its numbers (CSV) and what it is of (JSON).

    Args:
        page: the picture.
        folder: made where it is not there.
        formats: of FORMATS.
        facts: what it came from; the hash of the numbers is added.

    Returns:
        Paths: the pictures in the order of `formats`, then CSV and JSON.

    Raises:
        OSError: cannot be written.
    """
    numbers = numbers_csv(page).encode()
    files = {suffix: image_bytes(page.figure, suffix) for suffix in formats}
    files["csv"] = numbers
    files["json"] = page_json(page, {**facts, "numbers_sha256": hashlib.sha256(numbers).hexdigest()}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, content in files.items():
        path = folder / f"{page.name}.{suffix}"
        path.write_bytes(content)
        paths.append(path)
    return paths


def page_json(page: Page, facts: Mapping[str, Any]) -> str:
    """What the picture is of: caption, alternative text, the hashes of what was read, the command."""
    content = {"caption": page.caption, "alt": page.alt, "seed": page.seed, "runs": sorted(page.run_ids), **facts}
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
