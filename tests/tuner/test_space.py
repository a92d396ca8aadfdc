"""The values of a sweep: what is listed, laid out, drawn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuner.space import Space, fraction

RATES = Space(low=1e-4, high=1e-2, log=True)


def test_a_grid_over_an_interval_holds_its_ends_in_few_digits() -> None:
    assert RATES.grid(5) == [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2]
    assert Space(low=0.0, high=1.0).grid(3) == [0.0, 0.5, 1.0]
    assert Space(low=1.0, high=4.0, integer=True).grid(7) == [1, 2, 3, 4], "whole numbers, each once"
    assert RATES.grid(1) == [1e-3]


def test_listed_values_are_all_tried_and_drawn_without_repeats() -> None:
    listed = Space(values=("a", "b", "c", "d"))
    assert listed.grid(2) == ["a", "b", "c", "d"]
    assert sorted(map(str, listed.draw(4, "sweep", "row"))) == ["a", "b", "c", "d"]
    assert listed.draw(2, "sweep", "row") == listed.draw(4, "sweep", "row")[:2]


@given(st.integers(1, 20), st.integers(0, 20), st.text(max_size=5))
def test_a_wider_draw_begins_with_the_narrower(few: int, more: int, row: str) -> None:
    wide = RATES.draw(few + more, "lr_sweep", row)
    assert wide[: len(RATES.draw(few, "lr_sweep", row))] == RATES.draw(few, "lr_sweep", row)
    assert all(RATES.holds(value) and value == float(f"{value:.3g}") for value in wide)


def test_rows_and_positions_draw_different_values() -> None:
    assert RATES.draw(8, "lr_sweep", "Exp-1") != RATES.draw(8, "lr_sweep", "Exp-2")
    assert fraction("a", 1) != fraction("a1") and 0 <= fraction() < 1


def test_rounding_stays_inside() -> None:
    assert Space(low=0.12345, high=0.5).rounded(0.12345) == 0.12345
    assert Space(low=8, high=64, integer=True).rounded(200) == 64
    assert not RATES.holds(0.02) and not RATES.holds("x") and Space(values=(1, 2)).holds(2)
