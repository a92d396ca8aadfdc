"""What people are shown: text that came from data, archives or a stranger's results cannot steer a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment


def plain(text: object) -> str:
    r"""A text with its control characters spelled out (`\x1b`), so that a terminal shows them and does not obey them.

    Also what a reader cannot see: marks that turn the direction of writing, and halves of characters that come from
    names in another encoding. Ends of lines and tabs stay.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(_spelled(one) if _is_hidden(one) else one for one in shown)


def one_line(text: object) -> str:
    """`plain`, and ends of lines and tabs as spaces."""
    return " ".join(plain(text).split())


def _is_hidden(character: str) -> bool:
    category = unicodedata.category(character)
    return (category[0] == "C" and character not in "\n\t") or category in ("Zl", "Zp")


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class Terminal(Console):
    """A console that takes every text literally: no markup such as [bold], no :emoji:, no control characters.

    Args:
        settings: those of `rich.console.Console`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Rich's own rendering, with every piece of text made plain; styles and cursor moves are Rich's."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)
