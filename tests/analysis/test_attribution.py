"""Maps as numbers: rollout, orders, areas, and images chosen by hash."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.attribution import (
    area,
    hash_order,
    likeness,
    order,
    removals,
    removed,
    rng_for,
    rollout,
    times_even,
)


def test_rollout_of_uniform_attention_is_uniform_off_the_diagonal() -> None:
    found = rollout(np.full((3, 5, 5), 0.2))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    off = found[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(off, off[0], atol=1e-12)
    np.testing.assert_allclose(np.diag(found), 0.5**3 + (1 - 0.5**3) / 5, atol=1e-12)


def test_rollout_goes_from_the_last_layer_to_the_first() -> None:
    """Token 0 reads 1 in the second layer, 1 read 2 in the first: what 0 has of 2 came through 1."""
    first, second = np.eye(3), np.eye(3)
    first[1] = [0, 0, 1]
    second[0] = [0, 1, 0]
    found = rollout(np.stack([first, second]))
    np.testing.assert_allclose(found[0], [0.5, 0.25, 0.25])
    assert rollout(np.stack([second, first]))[0, 2] == 0


def test_an_order_goes_from_high_to_low_and_draws_ties() -> None:
    values = np.array([[0.0, 3.0], [1.0, 0.0]])
    drawn = {tuple(order(values, rng_for(0, number)).tolist()) for number in range(30)}
    assert drawn == {(1, 2, 0, 3), (1, 2, 3, 0)}


def test_removals_take_whole_blocks_from_nothing_to_everything() -> None:
    blocks = np.arange(16)[::-1]
    gone = removals(blocks, (4, 4), 8)
    assert gone.shape == (17, 8, 8)
    assert [int(step.sum()) for step in gone] == [4 * k for k in range(17)]
    assert gone[1, 6:, 6:].all() and not gone[1, :6].any()
    assert (gone[1:] >= gone[:-1]).all()
    pixels = removals(np.arange(64), (8, 8), 8)
    assert pixels.shape == (17, 8, 8) and pixels[4, :2].all() and not pixels[4, 2:].any()


def test_areas_are_mean_heights() -> None:
    assert area(np.linspace(1, 0, 17), 16) == pytest.approx(0.5)
    assert area(np.full(17, 0.3), 1000) == pytest.approx(0.3)
    assert removed(1000)[[0, 1, -1]].tolist() == [0, 62, 1000]
    step = np.r_[1.0, np.zeros(16)]  # all lost with the first block of sixteen
    assert area(step, 16) == pytest.approx(1 / 32)


def test_likeness_is_of_ranks() -> None:
    grid = np.arange(16.0).reshape(4, 4)
    assert likeness(grid, np.exp(grid)) == pytest.approx(1)
    assert likeness(grid, -(grid**3)) == pytest.approx(-1)
    assert np.isnan(likeness(grid, np.ones((4, 4))))


def test_maps_are_multiples_of_an_even_spread() -> None:
    found = times_even(np.array([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]))
    assert found[0].tolist() == [[4, 0], [0, 0]] and not found[1].any()


def test_the_same_images_are_chosen_whatever_else_is_there() -> None:
    ids = np.arange(100)
    chosen = ids[hash_order(ids, 0, "data")]
    fewer = ids[::2][hash_order(ids[::2], 0, "data")]
    assert [one for one in chosen.tolist() if one % 2 == 0] == fewer.tolist()
    assert chosen.tolist() != ids[hash_order(ids, 1, "data")].tolist()
    assert sorted(chosen.tolist()) == ids.tolist()
