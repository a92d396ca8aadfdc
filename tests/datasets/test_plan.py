"""Plans: randomness by position, and mixing exactly as the first study does it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from toy import augment

from datasets import plan as plans
from datasets.plan import FIXED_ONE, HUE_SECTOR, Purpose, draw_plan, epoch_order, generator, plain_plan, turn_by


def index(num: int) -> np.ndarray:
    return np.arange(num, dtype=np.int32)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    first = epoch_order(1, 0, 1000)
    assert sorted(first) == list(range(1000))
    assert (first == epoch_order(1, 0, 1000)).all()
    others = [epoch_order(1, 1, 1000), epoch_order(2, 0, 1000), epoch_order(0, 1, 1000)]
    assert all((first != other).any() for other in others)


def test_seed_0_epoch_1_is_not_seed_1_epoch_0() -> None:
    assert (epoch_order(0, 1, 100) != epoch_order(1, 0, 100)).any()


def test_positions_never_share_a_draw() -> None:
    seen = set()
    for seed in (0, 1):
        for purpose in (Purpose.ORDER, Purpose.MIX):
            for epoch in (0, 1):
                for batch in (0, 1):
                    seen |= set(generator(seed, purpose, epoch, batch).integers(2**63, size=50).tolist())
    assert len(seen) == 16 * 50


def test_a_generator_that_is_moved_draws_as_a_new_one() -> None:
    """Whatever it drew before, half a word that it kept included."""
    for seed, purpose, epoch, batch in (
        (7, Purpose.CROP, 0, 3),
        (2**63 - 1, Purpose.MIX, 2**63, 5),
        (0, Purpose.FLIP, 1, 0),
    ):
        plans._moving.to(1, Purpose.ORDER, 2, 3).integers(5, dtype=np.int32)
        moved, new = plans._moving.to(seed, purpose, epoch, batch), generator(seed, purpose, epoch, batch)
        for draw in (
            lambda rng: rng.integers(9, size=7, dtype=np.int16),
            lambda rng: rng.random(3),
            lambda rng: rng.permutation(9),
        ):
            assert draw(moved).tolist() == draw(new).tolist()


def test_plans_share_what_is_neutral_and_nobody_can_write_into_it() -> None:
    """One that is changed would change batches of other loaders."""
    rows = index(8)
    plain, other = plain_plan(rows, 32), plain_plan(rows, 12)
    drawn = draw_plan(augment(pad_crop=4, mix="mixup", mix_alpha=1.0), 1, 0, 0, rows, 32)
    assert plain.jitter is other.jitter is drawn.jitter and not (plain.recolours or plain.turns)
    for plan in (plain, drawn):
        for field in fields(plan):
            if field.name != "out_size":
                with pytest.raises(ValueError, match="read-only"):
                    getattr(plan, field.name)[0] = 1
    rows[0] = 7  # the caller's stays the caller's
    assert plain.index[0] == drawn.index[0] == 0


def test_draws_are_pinned() -> None:
    """Numpy may change its streams; results would change with it, so SPEC_VERSION would have to rise."""
    assert epoch_order(223, 3, 10).tolist() == ORDER_223_3
    plan = draw_plan(augment(mix="cutmix", mix_alpha=1.0, pad_crop=2, hflip_prob=0.5), 223, 3, 7, index(4), 32)
    assert (plan.top.tolist(), plan.flip.tolist(), plan.partner.tolist()) == (TOP, FLIP, PARTNER)
    assert plan.lam.tolist() == pytest.approx([LAM] * 4)


ORDER_223_3 = [5, 9, 6, 2, 4, 3, 1, 8, 7, 0]
TOP, FLIP, PARTNER = [2, -2, 0, 2], [True, True, False, True], [0, 1, 2, 3]
LAM = 0.7265625


def test_later_draws_are_pinned() -> None:
    spec = augment(jitter=(0.2, 0.2, 0.2, 0.1), rotate_deg=10.0, erase_prob=1.0)
    plan = draw_plan(spec, 223, 3, 7, index(2), 32)
    assert plan.jitter.tolist() == JITTER and plan.jitter_order.tolist() == JITTER_ORDER
    assert plan.turn.tolist() == TURN and plan.erase_box.tolist() == ERASE


JITTER = [[68850, 75112, 65337, 593248], [61862, 69944, 52802, 34491]]
JITTER_ORDER = [[2, 1, 3, 0], [2, 3, 1, 0]]
TURN = [[65396, -4278, -31371, 101240], [65532, 748, 44433, 21235]]
ERASE = [[22, 3, 31, 16], [5, 12, 18, 24]]


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_draws_of_mixing_are_pinned(scope: Literal["batch", "sample"]) -> None:
    """In their order: lam, partners, whether to mix, whether to cut, centre."""
    spec = augment(mix="switch", mix_alpha=0.5, mix_prob=0.7, mix_scope=scope)
    found = []
    for batch in range(5):
        plan = draw_plan(spec, 223, 3, batch, index(3), 32)
        found.append([plan.partner.tolist(), plan.mix_box[0].tolist(), round(float(plan.blend[0]), 5)])
    assert found == MIXED[scope]


MIXED: dict[str, list[Any]] = {
    "batch": [
        [[0, 2, 1], [11, 0, 32, 21], 1.0],
        [[0, 1, 2], [4, 4, 30, 30], 1.0],
        [[0, 2, 1], [0, 0, 0, 0], 0.07114],
        [[0, 1, 2], [0, 0, 0, 0], 1.0],
        [[2, 1, 0], [0, 0, 17, 17], 1.0],
    ],
    "sample": [
        [[0, 1, 1], [0, 0, 0, 0], 1.0],
        [[2, 1, 0], [16, 0, 32, 15], 1.0],
        [[0, 1, 1], [0, 0, 0, 0], 1.0],
        [[0, 2, 1], [0, 0, 0, 0], 0.93415],
        [[1, 0, 2], [0, 0, 0, 0], 0.01733],
    ],
}


def test_purposes_keep_their_numbers() -> None:
    """A number that changes, or is used twice, changes published results."""
    names = (
        "ORDER CROP FLIP MIX HOLD_OUT LIMIT_TRAIN LIMIT_EVAL MODEL_INIT MODEL_TRAIN DIGITS_SPLIT JITTER ROTATE ERASE"
    )
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        name: number for number, name in enumerate(names.split(), 1)
    }


def test_what_is_drawn_does_not_hang_on_what_else_is_drawn() -> None:
    old = {"pad_crop": 2, "hflip_prob": 0.5, "mix": "cutmix", "mix_alpha": 1.0}
    new = {"jitter": (0.2, 0.2, 0.2, 0.1), "rotate_deg": 10.0, "erase_prob": 1.0}
    one, other, both = (draw_plan(augment(**f), 1, 2, 3, index(8), 16) for f in (old, new, {**old, **new}))
    for name in ("top", "left", "flip", "partner", "blend", "mix_box", "lam"):
        assert (getattr(one, name) == getattr(both, name)).all(), name
    for name in ("jitter", "jitter_order", "turn", "erase_box"):
        assert (getattr(other, name) == getattr(both, name)).all(), name
    assert both.recolours and both.turns and both.erases
    assert not (one.recolours or one.turns or one.erases)


def test_a_test_batch_is_left_alone() -> None:
    plan = plain_plan(index(3), 8)
    assert (plan.jitter == [FIXED_ONE, FIXED_ONE, FIXED_ONE, 0]).all() and not plan.erase_box.any()
    assert (plan.turn == turn_by(np.zeros(3), 8)).all(), "the turn by nothing"
    assert not (plan.recolours or plan.turns or plan.erases)


def test_on_windows_what_made_them_is_done() -> None:
    spec = augment(
        pad_crop=2,
        hflip_prob=0.5,
        mix="mixup",
        mix_alpha=1.0,
        jitter=(0.2, 0.2, 0.2, 0.1),
        rotate_deg=10.0,
        erase_prob=1.0,
    )
    plan = draw_plan(spec, 1, 2, 3, np.array([40, 7, 3], np.int32), 16)
    rest, plain = plan.on_windows(), plain_plan(index(3), 16)
    for name in ("index", "top", "left", "flip", "jitter", "jitter_order", "turn"):
        assert (getattr(rest, name) == getattr(plain, name)).all(), name
    for name in ("erase_box", "partner", "blend", "mix_box", "lam"):
        assert (getattr(rest, name) == getattr(plan, name)).all(), name


def test_default_plan_changes_nothing() -> None:
    plan = draw_plan(augment(), 1, 0, 0, index(5), 32)
    assert not plan.flip.any() and not plan.top.any() and not plan.left.any()
    assert (plan.lam == 1).all() and (plan.blend == 1).all() and (plan.partner == index(5)).all()


@given(seed=st.integers(0, 2**63 - 1), batch=st.integers(0, 10_000), size=st.integers(4, 96))
@settings(max_examples=60, deadline=None)
def test_cutmix_box_and_lambda(seed: int, batch: int, size: int) -> None:
    plan = draw_plan(augment(mix="cutmix", mix_alpha=1.0), seed, 0, batch, index(6), size)
    top, left, bottom, right = plan.mix_box[0].astype(int)
    assert (plan.mix_box == plan.mix_box[0]).all(), "the same box for the whole batch"
    assert 0 <= top <= bottom <= size and 0 <= left <= right <= size
    assert plan.lam[0] == np.float32(1 - (bottom - top) * (right - left) / size**2)
    assert (plan.blend == 1).all()
    assert sorted(plan.partner) == list(range(6))


def test_cutmix_follows_the_study_by_hand() -> None:
    """lam 0.75 on 32 pixels: ratio 0.5, side 16, half 8; centre (3, 20) is clipped to rows 0..11, columns 12..28."""
    from datasets.plan import _cut_boxes

    box = _cut_boxes(np.array([0.75]), np.array([[3], [20]]), 32)
    assert box.tolist() == [[0, 12, 11, 28]]
    odd = _cut_boxes(np.array([1 - (7.5 / 32) ** 2]), np.array([[16], [16]]), 32)  # side int(7.5) = 7, half 3
    assert odd.tolist() == [[13, 13, 19, 19]]


def test_mixup_lambda_is_uniform_for_alpha_one_and_the_same_in_a_batch() -> None:
    spec = augment(mix="mixup", mix_alpha=1.0)
    plans = [draw_plan(spec, 5, 0, batch, index(4), 8) for batch in range(2000)]
    assert all((plan.lam == plan.lam[0]).all() and (plan.blend == plan.lam).all() for plan in plans)
    assert stats.kstest([plan.lam[0] for plan in plans], "uniform").pvalue > 0.001


def test_mixup_lambda_follows_beta() -> None:
    spec = augment(mix="mixup", mix_alpha=0.2)
    lam = [draw_plan(spec, 5, 0, batch, index(2), 8).lam[0] for batch in range(2000)]
    assert stats.kstest(lam, stats.beta(0.2, 0.2).cdf).pvalue > 0.001


def test_other_conventions() -> None:
    sample = draw_plan(augment(mix="mixup", mix_alpha=1.0, mix_scope="sample"), 1, 0, 0, index(64), 8)
    assert len(set(sample.lam.tolist())) == 64
    reverse = draw_plan(augment(mix="mixup", mix_alpha=1.0, mix_partner="reverse"), 1, 0, 0, index(4), 8)
    assert reverse.partner.tolist() == [3, 2, 1, 0]
    never = draw_plan(augment(mix="mixup", mix_alpha=1.0, mix_prob=0.0), 1, 0, 0, index(4), 8)
    assert (never.lam == 1).all() and (never.partner == index(4)).all()
    switch = [draw_plan(augment(mix="switch", mix_alpha=1.0), 1, 0, batch, index(4), 8) for batch in range(400)]
    blended = sum(bool((plan.blend < 1).any()) for plan in switch)
    boxed = sum(bool(plan.mix_box.any()) for plan in switch)
    assert 150 < blended < 250 and boxed > 100
    assert not any((plan.blend < 1).any() and plan.mix_box.any() for plan in switch)


def test_crop_offsets_cover_the_padded_range_evenly() -> None:
    plan = draw_plan(augment(pad_crop=4), 1, 0, 0, index(9000), 32)
    values, counts = np.unique(plan.top, return_counts=True)
    assert values.tolist() == list(range(-4, 5))
    assert stats.chisquare(counts).pvalue > 0.001
    assert (plan.top != plan.left).any()


def test_train_crop_stays_inside() -> None:
    plan = draw_plan(augment(train_crop=32), 1, 0, 0, index(2000), 64)
    assert plan.out_size == 32 and plan.top.min() == 0 and plan.top.max() == 32


def test_crop_that_does_not_fit_says_so() -> None:
    with pytest.raises(ValueError, match=r"augment\.train_crop: 40 pixels do not fit .* lower train_crop or raise"):
        draw_plan(augment(train_crop=40), 1, 0, 0, index(2), 32)


def test_jitter_factors_are_uniform_and_every_image_has_its_own() -> None:
    plan = draw_plan(augment(jitter=(0.2, 0.4, 1.0, 0.1)), 1, 0, 0, index(4000), 8)
    for column, strength in enumerate((0.2, 0.4, 1.0)):
        factors = plan.jitter[:, column] / FIXED_ONE
        assert stats.kstest(factors, stats.uniform(1 - strength, 2 * strength).cdf).pvalue > 0.001
    assert stats.kstest(plan.jitter[:, 3] / (6 * HUE_SECTOR), stats.uniform(-0.1, 0.2).cdf).pvalue > 0.001
    assert (plan.jitter[:, :3] >= 0).all()
    correlation = np.corrcoef(plan.jitter.T.astype(float)) - np.eye(4)
    assert np.abs(correlation).max() < 0.06, "a draw serves one factor"


def test_all_orders_of_the_jitter_are_equally_likely() -> None:
    plan = draw_plan(augment(jitter=(0.2, 0.2, 0.2, 0.1)), 1, 0, 0, index(4800), 8)
    orders, counts = np.unique(plan.jitter_order, axis=0, return_counts=True)
    assert len(orders) == 24 and (np.sort(orders, axis=1) == np.arange(4)).all()
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_jitter_of_no_strength_changes_nothing() -> None:
    assert not draw_plan(augment(jitter=(0.0, 0.0, 0.0, 0.0)), 1, 0, 0, index(50), 8).recolours


def test_angles_are_uniform_both_ways() -> None:
    plan = draw_plan(augment(rotate_deg=15.0), 1, 0, 0, index(4000), 32)
    degrees = np.rad2deg(np.arctan2(plan.turn[:, 1], plan.turn[:, 0]))
    assert stats.kstest(degrees, stats.uniform(-15, 30).cdf).pvalue > 0.001


def test_a_turn_by_hand() -> None:
    """A quarter counter-clockwise in a window of 4: pixel (0, 0), whose middle is 1.5 up and left of the window's, shows
    what was 1.5 up and right of it: column 3.5, row 0.5."""
    assert turn_by(np.array([90.0]), 4).tolist() == [[0, FIXED_ONE, 7 * FIXED_ONE // 2, FIXED_ONE // 2]]


def test_turns_are_about_the_middle_of_the_window_that_is_left() -> None:
    plan = draw_plan(augment(train_crop=8, rotate_deg=90.0), 1, 0, 0, index(3), 32)
    degrees = np.rad2deg(np.arctan2(plan.turn[:, 1], plan.turn[:, 0]))
    assert np.abs(plan.turn - turn_by(degrees, 8)).max() <= 8


@pytest.mark.parametrize("size", [8, 32])
def test_erase_boxes_are_drawn_as_torchvision_draws_them(size: int) -> None:
    from torchvision.transforms import RandomErasing

    torch.manual_seed(0)
    picture = torch.zeros(3, size, size)
    theirs = [RandomErasing.get_params(picture, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(3000)]
    boxes = draw_plan(augment(erase_prob=1.0), 1, 0, 0, index(3000), size).erase_box.astype(int)
    top, left, height, width = (np.array(one) for one in zip(*theirs, strict=True))
    ours = (boxes[:, 0], boxes[:, 1], boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    for name, mine, other in zip(("top", "left", "height", "width"), ours, (top, left, height, width), strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 0.001, name
    assert stats.ks_2samp(ours[2] * ours[3], height * width).pvalue > 0.001
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= size).all()


def test_erasing_tosses_a_coin_for_every_image() -> None:
    plan = draw_plan(augment(erase_prob=0.2), 1, 0, 0, index(5000), 32)
    assert stats.binomtest(int(plan.erase_box.any(axis=1).sum()), 5000, 0.2).pvalue > 0.001


@given(seed=st.integers(0, 2**63 - 1), size=st.integers(4, 96))
@settings(max_examples=60, deadline=None)
def test_an_erased_box_leaves_a_border_and_keeps_its_share(seed: int, size: int) -> None:
    boxes = draw_plan(augment(erase_prob=1.0), seed, 0, 0, index(20), size).erase_box.astype(int)
    height, width = (boxes[:, 2:] - boxes[:, :2]).T
    assert (height < size).all() and (width < size).all() and (boxes >= 0).all() and (boxes <= size).all()
    if size >= 32:  # rounding sides of small images moves their product
        assert (height * width <= 0.36 * size**2).all()


class Told:
    """A generator that draws what it is told: single numbers, or as many equal ones."""

    def __init__(self, lam: float, partners: NDArray[np.int64], coins: tuple[float, float], centre: list[int]) -> None:
        self.lam, self.partners, self.coins, self.centre = lam, partners, list(coins), centre

    def beta(self, a: float, b: float, size: int | None = None) -> Any:
        return self.lam if size is None else np.full(size, self.lam)

    def permutation(self, num: int) -> NDArray[np.int64]:
        return self.partners

    def random(self, size: int | None = None) -> Any:
        coin = self.coins.pop(0)
        return coin if size is None else np.full(size, coin)

    def integers(self, low: int, high: int | None = None, size: tuple[int, int] | None = None) -> Any:
        return self.centre.pop(0) if size is None else np.repeat(np.array(self.centre)[:, None], size[1], axis=1)


@pytest.mark.parametrize("size", [8, 32, 33])
@pytest.mark.parametrize("mix", ["mixup", "cutmix", "switch"])
def test_one_draw_for_a_batch_is_many_equal_draws(size: int, mix: Literal["mixup", "cutmix", "switch"]) -> None:
    """The short way of the study's mixing against the general one, to the bit, at the borders too."""
    rng = np.random.default_rng(size)
    seen = set()
    for trial in range(400):
        lam = float(rng.choice([0.0, 1.0])) if trial < 8 else float(rng.beta(0.5, 0.5))
        centre, chosen = rng.integers(0, size, 2).tolist(), rng.permutation(9)
        coins = (float(rng.choice([0.0, 0.5, rng.random()])), float(rng.choice([0.0, 0.5, rng.random()])))
        drawn = []
        for scope in ("batch", "sample"):
            spec = augment(mix=mix, mix_alpha=1.0, mix_prob=0.5, mix_scope=scope)
            told: Any = Told(lam, chosen, coins, list(centre))
            drawn.append({**plans._neutral(9), **plans._draw_mix(spec, told, 9, size)})
        for name, one in drawn[0].items():
            assert one.dtype == drawn[1][name].dtype and np.array_equal(one, drawn[1][name]), name
        seen.add((bool((drawn[0]["partner"] == np.arange(9)).all()), bool(drawn[0]["mix_box"].any())))
    assert len(seen) >= (3 if mix == "switch" else 2)
