"""Tables of names that somebody else chose: every format shows them as they are and obeys none."""

from __future__ import annotations

import csv
import html.parser
import io
import re

import pytest

from analysis.frame import (
    GAP,
    MINUS,
    Frame,
    count,
    interval,
    number,
    p_value,
    percent,
    points,
    show,
    to_csv,
    to_html,
    to_markdown,
    to_tex,
)
from datasets.terminal import Terminal

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a & b &lt;",
    "one | two \\| three \\",
    "two\n\n| lines |\r\nhere",
    "![x](https://evil.example/x.png) [a](javascript:alert(1)) [b][c] `code`",
    "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e",
    "[bold]loud[/bold] [link=https://evil.example]x[/link] :bug:",
    r"\input{/etc/passwd} \write18{rm} $x$ 50% #1 ~^_ {}",
    "[3cm] at the line's start",
    "* at the line's start",
)


def frame(text: str) -> Frame:
    """The text in every place of a frame that data can fill."""
    return Frame(
        title=text,
        notes=(text, "[1] a footnote"),
        columns=("run", text, "95 % CI", "notes"),
        left=1,
        narrow=("run", text, "notes"),
        rows=((text, text, "[61.3, 63.2]", "[1]"), ("plain", "small_vit", "[1.0, 2.0]", ""), (text, "", "", "")),
        raw=({"run": text, "number": -0.5, "none": None}, {"run": "plain", "number": 1, "none": None}),
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_and_does_not_obey(text: str) -> None:
    shown = to_markdown(frame(text))
    assert not re.search(r"[<>`\\]", shown) and "](" not in shown and "][" not in shown
    assert not re.search(r"&(?!(amp|lt|gt|#\d+);)", shown)
    assert shown.isprintable() or set(re.findall(r"[^ -~]", shown)) <= set("\n—±")
    lines = [line for line in shown.splitlines() if line.startswith("| ")]
    assert len(lines) == 5 and all(line.count("|") == 5 for line in lines), "as many cells and rows as before"
    assert "[61.3, 63.2]" in shown and "| [1] |" in shown and "- [1] a footnote" in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_tex_has_no_command_of_theirs(text: str) -> None:
    shown = to_tex(frame(text))
    ours = (
        r"\\(?:begin|end|toprule|midrule|bottomrule|par|footnotesize|textbackslash|textasciitilde|textasciicircum|pm)\b"
    )
    rest = re.sub(ours, "", shown)
    assert not re.search(r"\\[a-z]", rest), rest
    assert not re.search(r"\\\\\s*[\[*]", shown), "what follows a line's end is not its argument"
    assert "\x1b" not in shown and "\n\n" not in shown
    assert shown.count(r" \\") == 4


@pytest.mark.parametrize("text", HOSTILE)
def test_html_has_no_tag_of_theirs(text: str) -> None:
    shown = to_html(frame(text))
    page = Page()
    page.feed(shown)
    assert set(page.tags) <= {
        *("html", "head", "meta", "title", "style", "body", "div", "table", "caption", "thead", "tbody", "tr", "th"),
        *("td", "ul", "li", "strong"),
    }
    assert page.tags.count("td") == 12 and page.tags.count("th") == 4
    assert set(page.attributes) <= {"lang", "charset", "name", "content", "class"}
    assert " ".join(text.split()) in page.text or not text.isprintable()
    assert "\x1b" not in shown


class Page(html.parser.HTMLParser):
    """The tags, the names of attributes and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_groups_and_bold_cells_stand_in_every_format() -> None:
    table = Frame(
        title="t",
        notes=(),
        columns=("arm", "a", "b", "c"),
        left=1,
        narrow=("arm", "a", "b", "c"),
        rows=(("x", "1", "2", "3"), ("y", "4", "5", "6")),
        raw=({"arm": "x"}, {"arm": "y"}),
        groups=("", "red", "red", "blue"),
        bold=frozenset({(1, 2)}),
    )
    assert "| arm | red: a | red: b | blue: c |" in to_markdown(table) and "| **5** |" in to_markdown(table)
    tex = to_tex(table)
    assert r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{red} & \multicolumn{1}{c}{blue} \\" in tex
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in tex and r"\textbf{5}" in tex
    page = to_html(table)
    assert '<th class="group" colspan="2">red</th>' in page and "<td><strong>5</strong></td>" in page
    sink = io.StringIO()
    show(table, Terminal(file=sink, width=80, force_terminal=True))
    assert "\x1b[1m5\x1b" in sink.getvalue() and sink.getvalue().count("red") == 1


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.4588), "45.88"),
        (percent(-0.004), f"{MINUS}0.40"),
        (percent(-0.00001), "0.00"),
        (percent(None), GAP),
        (points(0.1162), "+11.62"),
        (points(-0.052, 1), f"{MINUS}5.2"),
        (points(-0.0001, 1), "0.0"),
        (number(-0.12345), f"{MINUS}0.123"),
        (count(23712932), "23,712,932"),
        (interval(-0.0123, 0.0345), f"[{MINUS}1.2, 3.5]"),
        (interval(None, 0.1), GAP),
        (p_value(0.0123), ".012"),
        (p_value(0.0), "< .001"),
        (p_value(0.00099), "< .001"),
        (p_value(0.001), ".001"),
        (p_value(0.9999), "> .999"),
        (p_value(1.0), "> .999"),
        (p_value(None), GAP),
    ],
)
def test_numbers_are_written_by_one_rule(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize("text", HOSTILE)
def test_csv_keeps_its_rows(text: str) -> None:
    header, first, second = csv.reader(io.StringIO(to_csv(frame(text))))
    assert header == ["run", "number", "none"] and second == ["plain", "1", ""] and first[1:] == ["-0.5", ""]
    assert first[0].isprintable()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("=cmd|'/c calc'!A0", "'=cmd|'/c calc'!A0"),
        ("+1+1", "'+1+1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'=1"),
        ("-x", "'-x"),
        ("-0.25", "-0.25"),
        ("+1e-3", "+1e-3"),
        ("Exp-2", "Exp-2"),
    ],
)
def test_csv_holds_no_formula(text: str, field: str) -> None:
    """A spreadsheet takes such a text for a formula; numbers stay numbers."""
    _, first, _ = csv.reader(io.StringIO(to_csv(frame(text))))
    assert first[0] == field


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_shows_and_does_not_obey(text: str) -> None:
    sink = io.StringIO()
    show(frame(text), Terminal(file=sink, width=400))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", sink.getvalue())
    if "bold" in text:
        assert sink.getvalue().count(text) == 6, "markup is text"


def test_columns_without_room_follow_below_and_no_number_is_cut() -> None:
    names = [f"metric {number} of the run" for number in range(8)]
    table = Frame(
        title="wide",
        notes=(),
        columns=("run", *names),
        left=1,
        narrow=("run", *names),
        rows=tuple((f"row-{row}", *(f"{row}.{column:06}" for column in range(8))) for row in range(3)),
        raw=(),
        groups=("", *("the first group",) * 4, *("the second group",) * 4),
    )
    for width in (40, 80, 140):
        sink = io.StringIO()
        show(table, Terminal(file=sink, width=width))
        lines = sink.getvalue().splitlines()
        assert max(map(len, lines)) <= width and "…" not in sink.getvalue()
        parts = [line.split() for line in lines if line.startswith("row-1")]
        assert [number for part in parts for number in part[1:]] == [f"1.{column:06}" for column in range(8)]
        assert (len(parts) == 1) == (width == 140)
