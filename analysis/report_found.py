"""What `analysis.features` left in a report's folder: shown where it was made from the very runs of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from analysis.figure_inputs import Inputs
from analysis.frame import Frame
from analysis.report_content import Drawing, words
from datasets.terminal import one_line

FIGURES = {"F12": "T13", "F13": "T14"}
"""The figures, each with the table that is made with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Figures and tables by id, and what is to be said where there are none."""

    pictures: dict[str, list[Drawing]]
    frames: dict[str, Frame]
    told: tuple[str, ...]


def found_features(inputs: Inputs, folder: Path, lang: str) -> Found:
    """Reads what lies in the folder.

    Raises:
        OSError: a file that is there cannot be read.
    """
    grid = inputs.results
    command = f"python -m analysis.features --grid {grid.name}"
    command += "" if grid.variant == "full" else f" --variant {grid.variant}"
    current = {file.path: file.sha256 for commit in inputs.commits.values() for file in commit.files}
    pictures: dict[str, list[Drawing]] = {}
    frames, told = {}, []
    for figure, table in FIGURES.items():
        paths = sorted([*folder.glob(f"{figure}.json"), *folder.glob(f"{figure}-*.json")])
        pages = [_page(path, current) for path in paths]
        known = [page for page in pages if page is not None]
        if not pages:
            told.append(words(lang)["features"].format(command=command))
        elif len(known) < len(pages):
            told.append(words(lang)["features_stale"].format(name=figure, command=command))
        else:
            pictures[figure] = known
            if (frame := read_frame(folder / f"{table}.html")) is not None:
                frames[table] = frame
    return Found(pictures=pictures, frames=frames, told=tuple(dict.fromkeys(told)))


def _page(path: Path, current: Mapping[str, str]) -> Drawing | None:
    """None: it was made from other files than the store's of now, or is no figure."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        read = facts["inputs_sha256"]
        if not read or any(current.get(name) != digest for name, digest in read.items()):
            return None
        return drawing(path, facts)
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
        return None


def drawing(path: Path, facts: Mapping[str, Any]) -> Drawing:
    """A page of a figure from the files beside its JSON: as SVG, or as PNG where that is smaller, for it was painted.

    Raises:
        KeyError: the facts lack caption or alternative text.
        OSError: the picture cannot be read.
    """
    svg, png = path.with_suffix(".svg"), path.with_suffix(".png")
    painted = png.exists() and (not svg.exists() or png.stat().st_size < svg.stat().st_size / 4)
    file = png if painted else svg
    return Drawing(
        name=path.stem,
        suffix=file.suffix[1:],
        content=file.read_bytes(),
        caption=str(facts["caption"]),
        alt=one_line(str(facts["alt"])),
    )


def read_frame(path: Path) -> Frame | None:
    """A table from the page that `frame.to_html` wrote of it, as text; None where there is none."""
    if not path.exists():
        return None
    parser = _Table()
    parser.feed(path.read_text(encoding="utf-8"))
    if not parser.columns or any(len(row) != len(parser.columns) for row in parser.rows):
        return None
    return Frame(
        title=parser.title,
        notes=tuple(parser.notes),
        columns=tuple(parser.columns),
        left=sum(parser.texts),
        narrow=(),
        rows=tuple(map(tuple, parser.rows)),
        raw=(),
    )


@dataclass(eq=False)
class _Table(HTMLParser):
    title: str = ""
    columns: list[str] = field(default_factory=list)
    texts: list[bool] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _text: str = ""
    _body: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Headings of groups of columns are left out: what stands under them has names of its own."""
        if tag == "tbody":
            self._body = True
        elif tag == "tr" and self._body:
            self.rows.append([])
        elif tag == "tr":
            self.columns, self.texts = [], []
        elif tag == "th":
            self.texts.append(("class", "text") in attrs)
        if tag in ("th", "td", "li", "caption"):
            self._text = ""

    def handle_data(self, data: str) -> None:
        """Text of whatever stands open."""
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        """Text goes where its element belongs."""
        if tag == "caption":
            self.title = self._text
        elif tag == "th":
            self.columns.append(self._text)
        elif tag == "td":
            self.rows[-1].append(self._text)
        elif tag == "li":
            self.notes.append(self._text)
