"""The lint of figures: every fault is planted once and found, and a clean figure has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.figure_lint import lint
from analysis.plotting import add_caption, image_bytes, new_figure, shown, style, text_width, wrapped


@pytest.fixture(autouse=True)
def styled() -> Iterator[None]:
    with style():
        yield


def clean() -> Figure:
    """Two panels with lines, an image, bars, a legend above and a caption beneath."""
    figure = new_figure(2.5)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1, 2], [3, 1, 2], label="one")
    left.set(xlabel="epoch", ylabel="top-1 (%)", title="scratch")
    right.imshow(np.eye(3))
    figure.legend(loc="outside upper left")
    add_caption(figure, "A caption that says what is shown. " * 6)
    return figure


def test_a_clean_figure_has_no_fault() -> None:
    figure = clean()
    assert lint(figure) == []
    assert image_bytes(figure, "png")[:4] == b"\x89PNG"


def off_the_edge(figure: Figure) -> None:
    figure.text(0.97, 0.5, "a long word at the edge")


def below_the_edge(figure: Figure) -> None:
    figure.text(0.5, -0.01, "low\nlines")


def cut_by_axes(figure: Figure) -> None:
    figure.axes[0].text(1.9, 2, "cut by the axes", clip_on=True)


def small(figure: Figure) -> None:
    figure.axes[0].text(0.5, 2, "tiny", fontsize=5)


def crossing(figure: Figure) -> None:
    figure.axes[0].set_xticks([0, 1, 1.02, 2], ["none", "mixup", "cutmix", "other"])


def two_lines(figure: Figure) -> None:
    figure.axes[0].text(0.5, 2.5, "one\ntwo\nthree")
    figure.axes[0].text(0.5, 2.6, "four")


def no_data(figure: Figure) -> None:
    figure.axes[0].lines[0].set_data([], [])


def not_a_number(figure: Figure) -> None:
    figure.axes[0].lines[0].set_ydata([np.nan] * 3)


def only_a_reference_line(figure: Figure) -> None:
    no_data(figure)
    figure.axes[0].axhline(1)


def hidden_by_legend(figure: Figure) -> None:
    figure.axes[0].legend(loc="upper left")


def hidden_dots(figure: Figure) -> None:
    axes = figure.axes[0]
    axes.lines[0].remove()
    axes.scatter([0, 1], [0, 1], label="dots")
    axes.legend(loc="lower left")


def foreign(figure: Figure) -> None:
    figure.axes[0].set_title("정확도")


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (off_the_edge, '"a long word at the edge" is cut off at the edge'),
        (below_the_edge, '"lines" is cut off at the edge'),
        (cut_by_axes, '"cut by the axes" is cut off at its axes'),
        (small, '"tiny" is 5 pt, at least 6 is readable'),
        (crossing, '"mixup" and "cutmix" overlap'),
        (two_lines, '"two" and "four" overlap'),
        (no_data, "axes 1 (scratch) are empty"),
        (not_a_number, "axes 1 (scratch) are empty"),
        (only_a_reference_line, "axes 1 (scratch) are empty"),
        (hidden_by_legend, "a legend lies over data of the axes (scratch)"),
        (hidden_dots, "a legend lies over data of the axes (scratch)"),
        (foreign, "warning: Glyph 51221"),
    ],
)
def test_a_planted_fault_is_found(plant: Callable[[Figure], None], fault: str) -> None:
    figure = clean()
    plant(figure)
    found = lint(figure)
    assert [line for line in found if line.startswith(fault)], found


def test_tick_labels_out_of_view_are_no_fault() -> None:
    figure = clean()
    figure.axes[0].set_xticks([0, 1, 2, 2.01, 50], ["a", "b", "c", "far away", "farther"])
    figure.axes[0].set_xlim(-0.5, 2.005)
    assert lint(figure) == []


def test_names_of_strangers_can_be_drawn() -> None:
    assert shown("$x_2$") == "$x_2$" and shown("_hidden") == "hidden"
    assert shown("고양이 cat\n2") == "??? cat 2"
    assert shown("a" * 40, 10) == "aaaaaaaaa…"
    figure = new_figure(2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    axes.set_title(shown("50 % of $a^{"))
    assert lint(figure) == []


def test_captions_are_broken_by_measure() -> None:
    lines = wrapped("words " * 80, 300, 6.5)
    assert len(lines) > 3 and all(text_width(line, 6.5) <= 300 for line in lines)
    assert " ".join(lines).split() == ["words"] * 80
