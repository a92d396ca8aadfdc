"""A report as one HTML page that loads nothing and runs nothing, and as Markdown."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.frame import Frame, html_table, markdown_text, to_markdown
from analysis.report_content import Block, Drawing, Listing, Paragraph, Picture, Report, Table, Verdicts
from analysis.report_svg import SvgError, inline_svg
from analysis.sentences import Card

PICTURE_BYTES = 6_000_000
"""Of all pictures of a page together; what is beyond is named, folded ones first, so that a page is below 8 MB."""
TABLE_ROWS = 400
"""Of a table in a page; the CSV beside it has all."""
_EMPHASIS = str.maketrans({"*": r"\*", "_": r"\_"})
_TEMPLATES = Path(__file__).with_name("templates")


def to_page(report: Report) -> str:
    """The report as HTML. No text of a store is ever taken for HTML."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    markups = _markups(report)
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    environment.filters["body"] = _body
    environment.filters["table"] = lambda frame: Markup(html_table(_shown(frame)))
    environment.filters["picture"] = lambda page: markups.get(page.name)
    return environment.get_template("report.html").render(
        report=report,
        words=report.words,
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        table_rows=TABLE_ROWS,
    )


def _body(card: Card) -> str:
    """A card's sentence without what stands above it already."""
    return card.sentence.removeprefix(f"{card.id}, {card.claim}: {card.verdict_text}. ")


def _shown(frame: Frame) -> Frame:
    bold = frozenset((row, column) for row, column in frame.bold if row < TABLE_ROWS)
    return dataclasses.replace(frame, rows=frame.rows[:TABLE_ROWS], bold=bold)


def _markups(report: Report) -> dict[str, Markup]:
    """The pictures by name, as far as there is room: unfolded ones first, in their order."""
    pictures = [block for section in report.sections for block in section.blocks if isinstance(block, Picture)]
    room = PICTURE_BYTES
    found = {}
    number = 0
    for picture in sorted(pictures, key=lambda one: one.folded):
        for page in picture.pages:
            number += 1
            markup = _markup(page, f"p{number}-")
            if len(markup) <= room:
                found[page.name] = markup
                room -= len(markup)
    return found


def _markup(page: Drawing, prefix: str) -> Markup:
    if page.suffix == "svg":
        try:
            return Markup(inline_svg(page.content.decode(), prefix, page.alt))
        except (SvgError, UnicodeDecodeError) as error:
            raise SvgError(f"{page.name}.svg: {error}; remove it and make it again") from None
    data = base64.b64encode(page.content).decode()
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, page.alt)


def to_markdown_report(report: Report) -> str:
    """The report as Markdown; its pictures are the SVG files beside it."""
    lines = [f"# {_text(report.name)}", "", _text(report.help), "", report.facts, ""]
    if report.notices:
        lines += [f"**{report.words['before']}**", "", *(f"- {_text(one)}" for one in report.notices), ""]
    for section in report.sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_markdown(block, report), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown(block: Block, report: Report) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield _text(block.text)
    elif isinstance(block, Listing):
        yield from (f"- {_text(item)}" for item in block.items)
    elif isinstance(block, Verdicts):
        for card in block.cards:
            change = card.would_change or report.words["holds"]
            yield from (f"### {card.id}: {card.verdict_text}", "", _text(card.sentence), "")
            yield f"*{report.words['what_changes']}*: {_text(change)}"
            yield ""
    elif isinstance(block, Table):
        yield to_markdown(block.frame).rstrip()
    else:
        yield f"### {_heading(block)}"
        for page in block.pages:
            yield from ("", f"![{_text(page.alt)}]({page.name}.{page.suffix})", "", _text(page.caption))


def _heading(block: Picture | Table) -> str:
    return f"{block.id} {block.title}"


def _text(text: str) -> str:
    """Prose as it is: a star of a verdict begins no emphasis."""
    return markdown_text(text).translate(_EMPHASIS)
