"""Text of strangers on a terminal: shown, never obeyed."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from datasets.terminal import Terminal, one_line, plain

TITLE, CLEAR, C1 = "\x1b]0;owned\x07", "\x1b[2J\x1b[H", "\x9b31m"
LINK = "[link=https://evil.example]here[/link] [bold]loud[/bold] :bug:"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (TITLE, r"\x1b]0;owned\x07"),
        (CLEAR, r"\x1b[2J\x1b[H"),
        (C1, r"\x9b31m"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("a\u202etxt.exe", r"a\u202etxt.exe"),
        ("half\udc80", r"half\udc80"),
        ("two\nlines\tand Ä — ± ▇", "two\nlines\tand Ä — ± ▇"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert "\n" not in one_line(text) and "\t" not in one_line(text)


@pytest.mark.parametrize("color", [None, "truecolor"])
def test_a_terminal_obeys_nothing_of_a_cell(color: str | None) -> None:
    sink = io.StringIO()
    console = Terminal(file=sink, width=200, color_system=color, force_terminal=color is not None)
    table = Table(title=TITLE)
    table.add_column(CLEAR)
    table.add_row(LINK)
    table.add_row(Text(TITLE))
    console.print(table)
    console.print(TITLE + LINK, style="bold")
    shown = sink.getvalue()
    assert shown.count(r"\x1b]0;owned") == 3 and LINK in shown
    assert "\x1b]" not in shown and "\x1b[2J" not in shown and "\x07" not in shown
    assert ("\x1b[1m" in shown) == (color is not None), "our own styles stay"
