"""A table ready to be shown, and its renderers: every format is written from one frame, so that no two can differ."""

from __future__ import annotations

import csv
import html
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datasets.terminal import one_line

GAP = "—"
MINUS = "\N{MINUS SIGN}"
FORMATS = ("md", "csv", "tex", "html")
Raw = dict[str, float | int | str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A table ready to be rendered: all cells are text, the numbers behind them stand in `raw`."""

    title: str
    notes: tuple[str, ...]
    """Watermarks first, then footnotes in the order of their marks."""
    columns: tuple[str, ...]
    left: int
    """How many of the first columns are text and left-aligned."""
    narrow: tuple[str, ...]
    """The columns shown on a terminal."""
    rows: tuple[tuple[str, ...], ...]
    raw: tuple[Raw, ...]
    """For CSV: fractions, not percent."""
    groups: tuple[str, ...] = ()
    """What stands above every column; equal neighbours share one heading. Empty: no such line."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the cells in bold."""

    @property
    def spans(self) -> list[tuple[str, int]]:
        """The headings above the columns, each with how many columns it stands over."""
        return [(name, len(list(same))) for name, same in itertools.groupby(self.groups)]


def percent(fraction: object, digits: int = 2) -> str:
    """A fraction in percent; a gap where there is none."""
    return _minus(f"{100 * fraction:.{digits}f}") if isinstance(fraction, float | int) else GAP


def points(fraction: float | None, digits: int = 2) -> str:
    """A difference of fractions in percentage points, with its sign; beside published values two decimals, else one."""
    return GAP if fraction is None else _minus(f"{100 * fraction:+.{digits}f}")


def number(value: float | None, digits: int = 3) -> str:
    """Three decimals; a gap where there is none."""
    return GAP if value is None else _minus(f"{value:.{digits}f}")


def count(value: float | int | None) -> str:
    """A whole number with its thousands apart; a gap where there is none."""
    return GAP if value is None else _minus(f"{round(value):,}")


def interval(low: float | None, high: float | None) -> str:
    """An interval of fractions in percent, or of their differences in percentage points."""
    return GAP if low is None or high is None else f"[{percent(low, 1)}, {percent(high, 1)}]"


def p_value(p: float | None) -> str:
    """A probability as papers print it, never as zero: .012, < .001, > .999."""
    if p is None:
        return GAP
    if p < 0.001:
        return "< .001"
    return "> .999" if p > 0.999 else f"{p:.3f}".removeprefix("0")


def _minus(text: str) -> str:
    """With a true minus sign, and none before what was rounded to zero."""
    negative = text.startswith("-") and any(digit in text for digit in "123456789")
    return text.replace("-", MINUS if negative else "")


_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;", "`": "&#96;", "[": "&#91;", "]": "&#93;"}
)
_FOOTNOTE = re.compile(rf"&#91;([0-9., {MINUS}-]+)&#93;")


def markdown_text(text: str) -> str:
    """Text that no renderer of Markdown takes for HTML, a link, code or a new cell. Marks [1] and intervals stay."""
    return _FOOTNOTE.sub(r"[\1]", one_line(text).translate(_MARKDOWN))


def to_markdown(frame: Frame) -> str:
    """GitHub's Markdown; whatever stands in a cell is shown as it is. A group's heading goes before its columns."""
    above = frame.groups or ("",) * len(frame.columns)
    names = [f"{group}: {name}" if group else name for group, name in zip(above, frame.columns, strict=True)]
    aligned = [":--" if _is_text(frame, i) else "--:" for i in range(len(frame.columns))]
    cells = [
        [f"**{markdown_text(cell)}**" if (i, k) in frame.bold else markdown_text(cell) for k, cell in enumerate(row)]
        for i, row in enumerate(frame.rows)
    ]
    body = ["| " + " | ".join(row) + " |" for row in (map(markdown_text, names), aligned, *cells)]
    return "\n".join(
        [f"### {markdown_text(frame.title)}", "", *body, "", *(f"- {markdown_text(note)}" for note in frame.notes), ""]
    )


def _is_text(frame: Frame, column: int) -> bool:
    return column < frame.left or frame.columns[column] == "notes"


def to_csv(frame: Frame) -> str:
    """Numbers as fractions, empty where there is none. A text that a spreadsheet would take for a formula gets a '."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(frame.raw[0]) if frame.raw else [], lineterminator="\n")
    writer.writeheader()
    for row in frame.raw:
        writer.writerow({key: _field(value) for key, value in row.items()})
    return sink.getvalue()


def _field(value: float | int | str | None) -> str:
    if not isinstance(value, str):
        return "" if value is None else repr(value)
    shown = one_line(value)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) and not _is_number(shown) else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_TEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MINUS: "$-$", "±": r"$\pm$", GAP: "---"}
_TEX |= {"<": "$<$", ">": "$>$", "κ": r"$\kappa$", "γ": r"$\gamma$", "δ": r"$\delta$", "σ": r"$\sigma$"}
_TEX |= {"§": r"\S{}", "Δ": r"$\Delta$", "\N{MULTIPLICATION SIGN}": r"$\times$"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in one_line(text))


def to_tex(frame: Frame) -> str:
    """A booktabs tabular with its notes beneath."""

    def line(cells: list[str]) -> str:
        text = " & ".join(cells) + r" \\"
        return f"{{}}{text}" if text.startswith(("[", "*")) else text  # after \\ they would be its arguments

    aligned = "".join("l" if _is_text(frame, i) else "r" for i in range(len(frame.columns)))
    above, start = [], 1
    rules = ""
    for name, width in frame.spans:
        above.append(rf"\multicolumn{{{width}}}{{c}}{{{_tex(name)}}}")
        rules += rf"\cmidrule(lr){{{start}-{start + width - 1}}}" if name else ""
        start += width
    rows = [
        line([rf"\textbf{{{_tex(cell)}}}" if (i, k) in frame.bold else _tex(cell) for k, cell in enumerate(row)])
        for i, row in enumerate(frame.rows)
    ]
    lines = [
        r"\begin{tabular}{" + aligned + "}",
        r"\toprule",
        *([line(above), rules] if above else []),
        line([_tex(name) for name in frame.columns]),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *(r"\par\footnotesize " + _tex(note) for note in frame.notes),
    ]
    return "\n".join(lines) + "\n"


STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid #888; vertical-align: bottom; }
th.group { text-align: center; }
.text { text-align: left; }
thead { border-top: 2px solid #888; }
tbody { border-bottom: 2px solid #888; }
.notes { font-size: 13px; color: #555; padding-left: 1.2rem; }
"""
"""Of a page of its own; a report that holds several tables brings its own."""


def html_table(frame: Frame) -> str:
    """The table and its notes as a part of a page; no text of a cell is ever taken for HTML."""

    def cell(tag: str, column: int, text: str, *, strong: bool = False) -> str:
        shown = html.escape(one_line(text))
        kind = ' class="text"' if _is_text(frame, column) else ""
        return f"<{tag}{kind}>{f'<strong>{shown}</strong>' if strong else shown}</{tag}>"

    above = "".join(
        f'<th class="group" colspan="{width}">{html.escape(one_line(name))}</th>' for name, width in frame.spans
    )
    head = "".join(cell("th", i, name) for i, name in enumerate(frame.columns))
    rows = [
        "".join(cell("td", k, text, strong=(i, k) in frame.bold) for k, text in enumerate(row))
        for i, row in enumerate(frame.rows)
    ]
    lines = [
        '<div class="table"><table>',
        f"<caption>{html.escape(one_line(frame.title))}</caption>",
        "<thead>",
        *([f"<tr>{above}</tr>"] if above else []),
        f"<tr>{head}</tr>",
        "</thead>",
        "<tbody>",
        *(f"<tr>{row}</tr>" for row in rows),
        "</tbody>",
        "</table></div>",
        '<ul class="notes">',
        *(f"<li>{html.escape(one_line(note))}</li>" for note in frame.notes),
        "</ul>",
    ]
    return "\n".join(lines) + "\n"


def to_html(frame: Frame) -> str:
    """A page of its own that loads nothing and runs nothing."""
    title = html.escape(one_line(frame.title))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{html_table(frame)}</body>\n</html>\n"
    )


RENDERERS: dict[str, Callable[[Frame], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "tex": to_tex,
    "html": to_html,
}


def show(frame: Frame, console: Console) -> None:
    """Prints the frame's narrow columns and its notes. Columns that the console has no room for follow below, with the
    columns that name a row again: a number that is cut off is no number."""
    shown = [i for i, name in enumerate(frame.columns) if name in frame.narrow and any(row[i] for row in frame.rows)]
    console.print(frame.title, style="bold", markup=False, highlight=False, soft_wrap=True)
    for number_of_part, part in enumerate(_parts(frame, shown, console.width)):
        if number_of_part:
            console.print()
        table = Table(box=None, pad_edge=False)
        for place, i in enumerate(part):
            table.add_column(
                "\n".join(_head(frame, i, again=place > 0 and _same_group(frame, part[place - 1], i))),
                justify="left" if _is_text(frame, i) else "right",
                no_wrap=True,
                overflow="fold",
                vertical="bottom",
            )
        for number_, row in enumerate(frame.rows):
            table.add_row(*(Text(row[i], "bold" if (number_, i) in frame.bold else "") for i in part))
        console.print(table)
    for note in frame.notes:
        console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)


def _parts(frame: Frame, shown: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each part of a table that stands on so many characters, the first of them naming the rows."""
    widths = {i: _width(frame, i) for i in shown}
    text = [i for i in shown if i < frame.left]
    firsts = (text[:k] for k in range(1, len(text)))
    names = next(
        (one for one in firsts if len({tuple(row[i] for i in one) for row in frame.rows}) == len(frame.rows)), text
    )
    parts = [list(names)]
    for i in shown[len(names) :]:
        if len(parts[-1]) > len(names) and sum(widths[k] + 2 for k in (*parts[-1], i)) - 2 > width:
            parts.append(list(names))
        parts[-1].append(i)
    return parts


def _width(frame: Frame, column: int) -> int:
    """Characters that a column takes, its heading broken at spaces."""
    return max(cell_len(text) for text in (*_head(frame, column, again=False), *(row[column] for row in frame.rows)))


def _head(frame: Frame, column: int, *, again: bool) -> list[str]:
    """The lines of a column's heading, no wider than its cells and longest word need; without its group's where that
    stands over the column before."""
    group = frame.groups[column] if frame.groups else ""
    name = frame.columns[column]
    words = [*group.split(), *name.split()]
    room = max(cell_len(text) for text in (*words, *(row[column] for row in frame.rows)))
    return [*textwrap.wrap("" if again else group, room), *textwrap.wrap(name, room)]


def _same_group(frame: Frame, column: int, other: int) -> bool:
    return bool(frame.groups) and frame.groups[column] == frame.groups[other]
